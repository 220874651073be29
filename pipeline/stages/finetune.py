"""Train one backbone by one transfer method, for every seed, label fraction and draw; source images only."""

import importlib
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field, field_validator

from pipeline import cli
from pipeline.errors import PipelineError
from pipeline.imaging.store import Store
from pipeline.params import ParamsError, Seed, check_versions, load_params, nearest, read_params_file, section_of
from pipeline.splits import label_order
from pipeline.tables import Curves, Labels, Samples, read_table, write_table
from pipeline.training.checkpoints import load_weights, save_model
from pipeline.training.determinism import ComputeParams, make_fabric, memory_format
from pipeline.training.engine import Engine
from pipeline.training.feed import Dataset, Indices
from pipeline.training.loop import LoopParams


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
    """One training: everything that tells it from its siblings."""

    backbone: str
    method: str
    seed: int
    label_fraction: float
    draw: int

    @property
    def name(self) -> str:
        """``resnet18-lp_ft-seed0``; a part of the labels adds ``-labels25-draw0`` (per cent)."""
        base = f"{self.backbone}-{self.method}-seed{self.seed}"
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
    dataset = Dataset(
        images=Store(gather),
        labels=wide.astype("Float32").to_numpy(np.float32, na_value=np.nan),
        patients=samples["patient_id"].to_numpy(str),
        train=index[(samples["split"] == "train").to_numpy(bool)],
        id_val=index[(samples["split"] == "id_val").to_numpy(bool)],
    )
    return dataset, [str(finding) for finding in wide.columns]


def annotated(train: Indices, patients: npt.NDArray[np.str_], run: Run) -> Indices:
    """The training images that a run's label budget annotates: those of the first patients of its draw's order."""
    if run.label_fraction == 1.0:
        return train
    order = label_order(run.draw, run.draw, patients[train].tolist())
    chosen = set(order[: max(2, round(run.label_fraction * len(order)))])
    return train[[patient in chosen for patient in patients[train]]]


def restrict(data: Dataset, run: Run, params: FinetuneParams) -> Dataset:
    """The data of one run: the first patients of its draw's order, and permuted labels where asked for."""
    train = annotated(data.train, data.patients, run)
    labels = data.labels
    if params.permute_labels:
        labels = labels.copy()
        for side in (train, data.id_val):
            labels[side] = labels[np.random.default_rng([run.seed, 2]).permutation(side)]
    return Dataset(data.images, labels, data.patients, train, data.id_val)


def model_card(
    run: Run, data: Dataset, findings: list[str], weights_card: dict[str, Any], model: Any, params: dict[str, Any]
) -> dict[str, Any]:
    """What stands beside a model's weights: all that loading it needs, and what it was made from."""
    scratch = run.method == "scratch"
    channels = data.images.shape[1]
    return {
        **vars(run),
        "run": run.name,
        "findings": findings,
        "channels": channels,
        "input": weights_card["input"] if channels in (1, 3) else model.input_spec,
        "initialisation": "scratch" if scratch else weights_card["initialisation"],
        "weights_name": None if scratch else weights_card["name"],
        "weights_sha256": None if scratch else weights_card["sha256"],
        "num_train_images": len(data.train),
        "num_train_patients": len(set(data.patients[data.train].tolist())),
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "params": params,
        "versions": {name: version(name).split("+")[0] for name in ("torch", "torchvision", "scikit-learn")},
    }


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
    fabric = make_fabric(compute)
    state, weights_card = load_weights(args.weights)
    if weights_card["backbone"] != args.backbone:
        raise PipelineError(f"{args.weights} holds weights of {weights_card['backbone']}, not of {args.backbone}")
    data, findings = load_dataset(args.gather)
    features = np.load(args.features / "features.npy", allow_pickle=False)
    raw = read_params_file(args.params)
    told = {
        "finetune": section_of(raw, "finetune", args.params),
        "method": method_params.model_dump(),
        "compute": compute.model_dump(),
    }
    curves: list[dict[str, Any]] = []
    for fraction, seed in product(params.label_fractions, params.seeds):
        for draw in range(params.draws if fraction < 1.0 else 1):
            run = Run(args.backbone, args.method, seed, fraction, draw)
            part = restrict(data, run, params)
            engine = Engine(
                fabric=fabric,
                backbone=args.backbone,
                weights=state,
                findings=findings,
                data=part,
                features=features,
                loop=LoopParams(**{name: getattr(params, name) for name in LoopParams.model_fields}),
                seed=seed,
                layout=memory_format(compute),
                description=run.name,
            )
            model = method.fit(engine, method_params)
            save_model(model, model_card(run, part, findings, weights_card, model, told), args.out / run.name)
            curves.extend({"run": run.name, **vars(epoch)} for epoch in engine.curves)
    write_table(Curves, pd.DataFrame(curves), args.out / "curves.parquet")


if __name__ == "__main__":
    cli.run(main)
