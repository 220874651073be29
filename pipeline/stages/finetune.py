"""Train one backbone by one transfer method, for every seed, label budget and draw; source images only.

A run that was killed goes on where it stopped (.checkpoints/finetune), and ends in the same bytes on a CPU.
"""

import hashlib
import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.fabric import Fabric
from pydantic import Field, field_validator
from torch.utils.flop_counter import FlopCounterMode

from pipeline import cli
from pipeline.errors import PipelineError
from pipeline.imaging.store import Store, read_summary
from pipeline.params import ParamsError, Seed, check_versions, load_params, nearest, read_params_file, section_of
from pipeline.tables.contract import read_table, write_table
from pipeline.tables.labels import Labels
from pipeline.tables.training import Curves, Samples
from pipeline.training.backbone import Classifier
from pipeline.training.budget import annotated_patients
from pipeline.training.checkpoints import MODEL_CARD, MODEL_FILE, file_sha256, load_weights, save_model, trunk_digest
from pipeline.training.determinism import ComputeParams, make_fabric, memory_format
from pipeline.training.engine import Engine
from pipeline.training.feed import Dataset
from pipeline.training.live import live_curves
from pipeline.training.loop import LoopParams
from pipeline.training.meter import Meter, write_cost
from pipeline.work import code_fingerprint, locked

CHECKPOINTS = Path(".checkpoints") / "finetune"
COSTS = Path(".checkpoints") / "costs"
LIVE = "live"
FEATURES_FILE, POOLED_FILE = "features.npy", "pooled.npy"
_PACKAGES = ("lightning", "monai", "numpy", "scikit-learn", "torch", "torchvision")


class FinetuneParams(LoopParams):
    """Section ``finetune``: the runs, and what they share.

    ``label_fractions`` of the training patients are used, ``draws`` times each (nested within a draw);
    ``permute_labels`` shuffles training labels among images: a control in which nothing can be learnt.
    """

    seeds: list[Seed] = Field(min_length=1)
    label_fractions: list[float] = Field(default=[1.0], min_length=1)
    draws: int = Field(default=1, ge=1)
    permute_labels: bool = False

    @field_validator("seeds", "label_fractions")
    @classmethod
    def _distinct(cls, values: list[float]) -> list[float]:
        if len(set(values)) < len(values):
            raise ValueError("each must stand there once, or two runs have one name")
        return values


@dataclass(frozen=True)
class Run:
    """One training: everything that tells it from its siblings. ``shots`` are labelled patients a class, or None."""

    backbone: str
    method: str
    seed: int
    label_fraction: float
    draw: int
    shots: int | None = None

    @property
    def name(self) -> str:
        """``resnet18-lp_ft-seed0``; a part of the labels adds ``-labels25-draw0`` (per cent) or ``-shots5-draw0``."""
        base = f"{self.backbone}-{self.method}-seed{self.seed}"
        if self.shots is not None:
            return f"{base}-shots{self.shots}-draw{self.draw}"
        return base if self.label_fraction == 1.0 else f"{base}-labels{self.label_fraction * 100:g}-draw{self.draw}"


def load_method(name: str) -> ModuleType:
    """The module ``pipeline/transfer/NAME.py``.

    Raises:
        ParamsError: there is none.
    """
    known = sorted(p.stem for p in (Path(__file__).parents[1] / "transfer").glob("*.py") if p.stem != "__init__")
    if name not in known:
        raise ParamsError(f"methods: unknown transfer method '{name}'{nearest(name, known)}")
    return importlib.import_module(f"pipeline.transfer.{name}")


def load_dataset(gather: Path) -> tuple[Dataset, list[str]]:
    """What ``gather`` left, as arrays; and the findings in the order of the labels' columns."""
    samples = read_table(Samples, gather / "samples.parquet").sort_values("array_index")
    labels = read_table(Labels, gather / "labels.parquet")
    wide = labels.set_index(["image_id", "finding"])["label"].unstack().reindex(samples["image_id"])  # noqa: PD010 - a key is unique; nothing to aggregate
    index = samples["array_index"].to_numpy(np.int64)
    train = index[(samples["split"] == "train").to_numpy(bool)]
    dataset = Dataset(
        images=Store(gather),
        labels=wide.astype("Float32").to_numpy(np.float32, na_value=np.nan),
        patients=samples["patient_id"].to_numpy(str),
        train=train,
        pool=train,
        id_val=index[(samples["split"] == "id_val").to_numpy(bool)],
        image_ids=samples["image_id"].to_numpy(str),
    )
    return dataset, [str(finding) for finding in wide.columns]


def runs_of(backbone: str, method: str, params: FinetuneParams, method_params: Any) -> Iterator[Run]:
    """All runs of a job: seeds x label fractions x draws; then, where the method has ``shots``, those x draws.

    The few-shot methods have no random start, so that their draws take the place of seeds. A method whose params say
    ``all_labels_only`` leaves the smaller fractions out.
    """
    fractions = [1.0] if getattr(method_params, "all_labels_only", False) else params.label_fractions
    for fraction, seed in product(fractions, params.seeds):
        for draw in range(params.draws if fraction < 1.0 else 1):
            yield Run(backbone, method, seed, fraction, draw)
    for shots in getattr(method_params, "shots", []):
        for draw in range(method_params.draws):
            yield Run(backbone, method, params.seeds[0], 1.0, draw, shots)


def restrict(data: Dataset, run: Run, params: FinetuneParams) -> Dataset:
    """The data of one run: the patients of its label budget, and permuted labels where asked for.

    Raises:
        PipelineError: there are fewer patients of a class than the run's shots.
    """
    patients = data.patients[data.train]
    chosen = annotated_patients(data.labels[data.train], patients, run.label_fraction, run.draw, run.shots)
    train = data.train[np.isin(patients, chosen)]
    labels = data.labels
    if params.permute_labels:
        labels = labels.copy()
        for side in (train, data.id_val):
            labels[side] = labels[np.random.default_rng([run.seed, 2]).permutation(side)]
    return Dataset(data.images, labels, data.patients, train, data.pool, data.id_val, data.image_ids)


def forward_flops(model: Classifier, image_shape: tuple[int, int, int]) -> int:
    """Floating point operations of one image's way through a model, a multiplication and an addition counted as two."""
    device = next(model.parameters()).device
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, *image_shape, device=device))
    return int(counter.get_total_flops())


def training_cost(engine: Engine, model: Classifier) -> float:
    """Tera floating point operations of a run: counted, not timed, so that it is the same wherever it is run.

    Forward and twice as much back for each image that was trained on (Kaplan et al. 2020), an upper bound where a part
    was frozen; once forward for each judgement on id_val; and where the trunk is frozen throughout, one pass for the
    features and nothing else, the head's share being a thousandth.
    """
    _, *image_shape = engine.data.images.shape
    flops = forward_flops(model, (image_shape[0], image_shape[1], image_shape[2]))
    sides = len(engine.data.train) + len(engine.data.id_val)
    passes = engine.image_passes * 3 + engine.judged if engine.image_passes else sides
    return flops * passes / 1e12


def model_card(
    run: Run, engine: Engine, weights_card: dict[str, Any], model: Classifier, params: dict[str, Any]
) -> dict[str, Any]:
    """What stands beside a model's weights: all that loading it needs, and what it was made from."""
    scratch = run.method.startswith("scratch")
    data = engine.data
    _, *image_shape = data.images.shape
    return {
        **vars(run),
        "run": run.name,
        "findings": engine.findings,
        "image_shape": image_shape,
        "hidden": None if isinstance(model.head, torch.nn.Linear) else model.last.in_features,
        "pooled": model.pooled,
        "input": weights_card["input"] if image_shape[0] in (1, 3) else model.input_spec,
        "initialisation": "scratch" if scratch else weights_card["initialisation"],
        "weights_name": None if scratch else weights_card["name"],
        "weights_sha256": None if scratch else weights_card["sha256"],
        "weights_licence": None if scratch else weights_card.get("licence"),
        "trunk_sha256": trunk_digest(model),
        "trials": engine.trials,
        "train_tflop": training_cost(engine, model),
        "num_train_images": len(data.train),
        "num_train_patients": len(set(data.patients[data.train].tolist())),
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "params": params,
        "versions": {name: version(name).split("+")[0] for name in ("torch", "torchvision", "scikit-learn")},
    }


def job_digest(args: Any, method: ModuleType, told: dict[str, Any], weights_card: dict[str, Any]) -> str:
    """A hash over all that decides the models' bytes: under it a killed job finds what it had done."""
    package = Path(__file__).parents[1]
    context = [
        code_fingerprint([Path(__file__), package / "training", Path(str(method.__file__))]),
        told,
        [sys.version, *map(version, _PACKAGES)],
        weights_card["file_sha256"],
        read_summary(args.gather)["sha256"],
        [file_sha256(args.gather / name) for name in ("samples.parquet", "labels.parquet")],
        [file_sha256(path) for path in sorted(args.features.glob("*.npy"))],
    ]
    return hashlib.sha256(json.dumps(context, sort_keys=True).encode()).hexdigest()[:32]


def finish_run(
    run: Run, engine: Engine, method: ModuleType, method_params: Any, weights_card: dict[str, Any],
    told: dict[str, Any], work: Path, fabric: Fabric, costs: Path,
) -> None:  # fmt: skip
    """Train one run, or take it as a killed job left it, so that it lies whole in ``work``; ``costs`` gets its cost."""
    if not (work / run.name / MODEL_CARD).is_file():
        phases = work / f"{run.name}.phases"
        meter = Meter(fabric.device, fabric.world_size, resumed=phases.is_dir())
        with live_curves(work / LIVE / run.name if fabric.is_global_zero else None) as engine.on_epoch:
            model = method.fit(engine, method_params)
        cost = meter.stop()
        if fabric.is_global_zero:
            partial = work / f"{run.name}.part"
            shutil.rmtree(partial, ignore_errors=True)
            save_model(model, model_card(run, engine, weights_card, model, told), partial)
            rows = [{"run": run.name, **vars(epoch)} for epoch in engine.curves]
            write_table(Curves, pd.DataFrame(rows), partial / "curves.parquet")
            partial.rename(work / run.name)
            shutil.rmtree(phases, ignore_errors=True)
            write_cost(cost, file_sha256(work / run.name / MODEL_FILE), costs / f"{run.name}.json")
    fabric.barrier()


def main() -> None:
    """Run the stage."""
    arguments = cli.parser(
        __doc__,
        gather="the folder of gather",
        features="the backbone's folder of features",
        weights="the backbone's folder of weights",
        out="folder for the models",
    )
    arguments.add_argument("--backbone", required=True)
    arguments.add_argument("--method", required=True)
    args = arguments.parse_args()
    check_versions("monai", "numpy", "scikit-learn", "torch", "torchvision", path=args.params)
    params = load_params(FinetuneParams, "finetune", args.params)
    for fraction in params.label_fractions:
        if not 0.0 < fraction <= 1.0:
            raise ParamsError(f"finetune.label_fractions: each must be above 0 and at most 1; got {fraction}")
    method = load_method(args.method)
    method_params = load_params(method.Params, f"methods.{args.method}", args.params)
    compute = load_params(ComputeParams, "compute", args.params)
    fabric = make_fabric(compute, together=True)
    state, weights_card = load_weights(args.weights)
    if weights_card["backbone"] != args.backbone:
        raise PipelineError(f"{args.weights} holds weights of {weights_card['backbone']}, not of {args.backbone}")
    data, findings = load_dataset(args.gather)
    features = np.load(args.features / FEATURES_FILE, allow_pickle=False)
    pooled_file = args.features / POOLED_FILE
    pooled = np.load(pooled_file, allow_pickle=False) if pooled_file.is_file() else features
    raw = read_params_file(args.params)
    told = {
        "finetune": section_of(raw, "finetune", args.params),
        "method": method_params.model_dump(),
        "compute": compute.model_dump(),
    }
    job = f"{args.backbone}-{args.method}"
    root = args.params.parent / CHECKPOINTS
    runs = list(runs_of(args.backbone, args.method, params, method_params))
    work = root / f"{job}-{job_digest(args, method, told, weights_card)}"
    with locked(root, job) if fabric.is_global_zero else nullcontext():
        if fabric.is_global_zero:
            for other in root.glob(f"{job}-*"):  # of other data, params or code
                if other.is_dir() and other != work and len(other.name) == len(work.name):
                    shutil.rmtree(other)
            work.mkdir(exist_ok=True)
        fabric.barrier()
        for run in runs:
            engine = Engine(
                fabric=fabric,
                backbone=args.backbone,
                weights=state,
                findings=findings,
                data=restrict(data, run, params),
                features=features,
                pooled=pooled,
                loop=LoopParams(**{name: getattr(params, name) for name in LoopParams.model_fields}),
                seed=run.seed,
                layout=memory_format(compute),
                description=run.name,
                compiled=compute.compile,
                work=work / f"{run.name}.phases",
            )
            finish_run(run, engine, method, method_params, weights_card, told, work, fabric, args.params.parent / COSTS)
        if fabric.is_global_zero:
            publish(work, runs, args.out)


def publish(work: Path, runs: list[Run], out: Path) -> None:
    """All runs to the output, their curves as one table; nothing is left in ``work``."""
    out.mkdir(parents=True, exist_ok=True)
    curves = []
    for run in runs:
        own = out / run.name
        shutil.rmtree(own, ignore_errors=True)
        shutil.copytree(work / run.name, own)
        curves.append(read_table(Curves, own / "curves.parquet"))
        (own / "curves.parquet").unlink()
    shutil.rmtree(out / LIVE, ignore_errors=True)
    if (work / LIVE).is_dir():
        shutil.copytree(work / LIVE, out / LIVE)
    write_table(Curves, pd.concat(curves, ignore_index=True), out / "curves.parquet")
    shutil.rmtree(work)


if __name__ == "__main__":
    cli.run(main)
