"""One hospital after another joins a trained study: naive fine-tuning, replay, and joint retraining of one backbone.

The first hospital of the sequence trains on its own; each further one joins with its labelled patients: of a target
those of ``target_adapt``, whose labels are spent by joining. Epochs are chosen on patients of the same hospitals that
train; labels of ``id_test`` and ``ood_test`` are not read at all (``forgetting`` joins them to the predictions).

A job that was killed goes on where it stopped (.checkpoints/continual), and ends in the same bytes on a CPU.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.fabric import Fabric
from pydantic import Field, PositiveFloat, field_validator, model_validator
from torch import Tensor

from pipeline import cli
from pipeline.errors import PipelineError
from pipeline.imaging.store import Store, read_summary
from pipeline.key import PrivacyParams
from pipeline.labelled import Labelled, read_labelled, read_tested
from pipeline.ledger import read_ledger
from pipeline.params import (
    Name,
    ParamsError,
    Seed,
    StrictParams,
    check_versions,
    load_params,
    nearest,
    parse,
    read_params_file,
    section_of,
)
from pipeline.splits import SplitParams
from pipeline.tables.continual import ContinualPredictions, ContinualSteps
from pipeline.tables.contract import read_table, write_table
from pipeline.tables.training import Curves
from pipeline.training.backbone import Classifier
from pipeline.training.checkpoints import load_model, load_weights, save_model
from pipeline.training.determinism import ComputeParams, make_fabric, memory_format
from pipeline.training.engine import Engine
from pipeline.training.feed import Dataset, Indices
from pipeline.training.loop import LoopParams, Plan, predict_logits
from pipeline.training.rehearsal import ReplayParams, Strategy, kept_patients
from pipeline.work import code_fingerprint, locked

CHECKPOINTS = Path(".checkpoints") / "continual"
STEP_FILE, CURVES_FILE, LOGITS_FILE = "step.json", "curves.parquet", "logits.npy"
_PACKAGES = ("lightning", "monai", "numpy", "torch", "torchvision")


class ContinualParams(StrictParams):
    """Section ``continual``. ``backbones: []`` leaves the stage out.

    ``sequence``: the hospitals in the order in which they are learnt; each may be a source or a target. ``loop``:
    what departs from ``finetune`` (epochs, batch_size ...). ``replay``: the buffer of earlier hospitals' patients.
    """

    backbones: list[Name] = Field(min_length=1)
    sequence: list[Name] = Field(min_length=2)
    strategies: list[Strategy] = Field(default=["naive", "replay", "joint"], min_length=1)
    learning_rate: PositiveFloat
    seeds: list[Seed] = Field(min_length=1)
    replay: ReplayParams | None = None
    loop: dict[str, Any] = Field(default_factory=dict)

    @field_validator("backbones", "sequence", "strategies", "seeds")
    @classmethod
    def _distinct(cls, values: list[Any]) -> list[Any]:
        if len(set(values)) < len(values):
            raise ValueError("each may stand there once")
        return values

    @model_validator(mode="after")
    def _has_a_buffer(self) -> "ContinualParams":
        if ("replay" in self.strategies) != (self.replay is not None):
            raise ValueError("replay (the buffer) belongs to the strategy replay: give both or neither")
        return self


@dataclass(frozen=True)
class Step:
    """One training: after it the hospitals up to ``number`` of the sequence are learnt.

    ``after`` is the folder of the model that it goes on from; None starts from the pretrained weights.
    """

    strategy: Strategy
    seed: int
    number: int
    folder: str
    after: str | None


def steps_of(params: ContinualParams) -> Iterator[Step]:
    """All trainings of a job, each after the one it goes on from. Step 0 is one for all strategies."""
    for seed in params.seeds:
        first = f"seed{seed}-step0"
        yield Step(params.strategies[0], seed, 0, first, None)
        for strategy in params.strategies:
            before = first
            for number in range(1, len(params.sequence)):
                folder = f"{strategy}-seed{seed}-step{number}"
                yield Step(strategy, seed, number, folder, None if strategy == "joint" else before)
                before = folder


def who_trains(labelled: Labelled, step: Step, params: ContinualParams) -> dict[str, Indices]:
    """The images that train ("train") and select ("val") at a step.

    Naive: the newcomer's alone. Joint: those of all hospitals so far. Replay: the newcomer's, and of each earlier
    hospital the patients in the buffer, which is drawn by the seed.
    """
    *earlier, newcomer = params.sequence[: step.number + 1]
    chosen = {}
    for side in ("train", "val"):
        parts = [labelled.where(side, [newcomer])]
        if step.strategy == "joint":
            parts.append(labelled.where(side, earlier))
        if step.strategy == "replay" and params.replay is not None:
            for site in earlier:
                own = labelled.where(side, [site])
                kept = kept_patients(labelled.labels[own], labelled.patients[own], params.replay, step.seed)
                parts.append(own[np.isin(labelled.patients[own], kept)])
        chosen[side] = np.sort(np.concatenate(parts))
    return chosen


def check_sides(labelled: Labelled, sequence: list[str]) -> None:
    """Whether every hospital can be learnt on its own.

    Raises:
        PipelineError: one has nobody to select on, or lacks a class of a finding in training.
    """
    for site in sequence:
        train, val = (labelled.where(side, [site]) for side in ("train", "val"))
        selecting = int(np.isfinite(labelled.labels[val]).any(axis=1).sum())
        for finding, labels in zip(labelled.findings, labelled.labels[train].T, strict=True):
            counts = int((labels == 1).sum()), int((labels == 0).sum())
            if not min(counts) or not selecting:
                raise PipelineError(
                    f"continual: {site} cannot join: of its labelled images {counts[0]} with and {counts[1]} without "
                    f"'{finding}' train, {selecting} select; all must be above 0. Raise split.target_adapt_fraction "
                    "(new patients alone follow it), or leave it out of continual.sequence"
                )


@dataclass(frozen=True)
class Job:
    """What all trainings of a job share."""

    fabric: Fabric
    backbone: str
    weights: dict[str, Tensor]
    labelled: Labelled
    tested: pd.DataFrame
    stores: dict[str, Store]
    params: ContinualParams
    loop: LoopParams
    compute: ComputeParams
    roles: dict[str, str]
    work: Path

    def engine(self, step: Step, data: Dataset) -> Engine:
        """The tools of one training."""
        none = np.empty((0, 0), np.float32)
        return Engine(
            fabric=self.fabric,
            backbone=self.backbone,
            weights=self.weights,
            findings=self.labelled.findings,
            data=data,
            features=none,
            pooled=none,
            loop=self.loop,
            seed=step.seed,
            layout=memory_format(self.compute),
            description=f"{self.backbone} {step.folder}",
            compiled=self.compute.compile,
            work=self.work / f"{step.folder}.phases",
        )

    def finish(self, step: Step) -> None:
        """Train one step, or take it as a killed job left it, so that it lies whole in ``work``."""
        folder = self.work / step.folder
        if (folder / STEP_FILE).is_file():
            return
        who = who_trains(self.labelled, step, self.params)
        engine = self.engine(step, self.labelled.dataset(who["train"], who["val"]))
        model = engine.pretrained() if step.after is None else load_model(self.work / step.after)[0]
        engine.train(model, Plan(self.params.learning_rate))
        partial = folder.with_name(folder.name + ".part")
        shutil.rmtree(partial, ignore_errors=True)
        save_model(model, self.card(model), partial)
        np.save(partial / LOGITS_FILE, self.logits(model), allow_pickle=False)
        rows = [{"run": f"{self.backbone}-{step.folder}", **vars(epoch)} for epoch in engine.curves]
        write_table(Curves, rows, partial / CURVES_FILE)
        told = json.dumps(self.told(step, who, engine, model), sort_keys=True)
        (partial / STEP_FILE).write_text(told, encoding="utf-8")
        partial.rename(folder)
        shutil.rmtree(self.work / f"{step.folder}.phases", ignore_errors=True)

    def card(self, model: Classifier) -> dict[str, Any]:
        """What loading the model needs."""
        return {
            "backbone": self.backbone,
            "findings": self.labelled.findings,
            "image_shape": self.labelled.images.shape[1:],
            "hidden": None,
            "pooled": False,
            "input": model.input_spec,
        }

    def logits(self, model: Classifier) -> np.ndarray[Any, np.dtype[np.float32]]:
        """(len(tested), findings), in the order of ``tested``."""
        made = np.empty((len(self.tested), len(self.labelled.findings)), np.float32)
        for site, store in self.stores.items():
            here = (self.tested["site"] == site).to_numpy(bool)
            index = self.tested.loc[here, "array_index"].to_numpy(np.int64)
            if len(index):
                layout = memory_format(self.compute)
                made[here] = predict_logits(self.fabric, model, store, index, self.compute.batch_size, layout)
        return made

    def told(self, step: Step, who: dict[str, Indices], engine: Engine, model: Classifier) -> dict[str, Any]:
        """A row of ``tables.continual.ContinualSteps`` but for run and strategy."""
        site = self.params.sequence[step.number]
        patients = {side: set(self.labelled.patients[index].tolist()) for side, index in who.items()}
        own = set(self.labelled.patients[self.labelled.where("train", [site])].tolist())
        (kept,) = (epoch for epoch in engine.curves if epoch.kept)
        return {
            "step": step.number,
            "backbone": self.backbone,
            "seed": step.seed,
            "site": site,
            "role": self.roles[site],
            "num_train_images": len(who["train"]),
            "num_train_patients": len(patients["train"]),
            "num_earlier_patients": len(patients["train"] - own),
            "num_val_patients": len(patients["val"]),
            "kept_epoch": kept.epoch,
            "val_loss": kept.id_val_loss,
            "model_sha256": state_digest(model),
        }


def state_digest(model: torch.nn.Module) -> str:
    """SHA-256 over names and values of a model's weights."""
    total = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        total.update(name.encode())
        total.update(value.detach().cpu().contiguous().numpy())
    return total.hexdigest()


def job_digest(args: Any, job_told: dict[str, Any], labelled: Labelled, tested: pd.DataFrame) -> str:
    """A hash over all that decides what comes out: under it a killed job finds what it had done."""
    package = Path(__file__).parents[1]
    names = ("labelled.py", "imaging", "training")
    arrays = (labelled.image_ids, labelled.patients, labelled.sites, labelled.sides)
    context = [
        code_fingerprint([Path(__file__), *(package / name for name in names)]),
        job_told,
        [sys.version, *map(version, _PACKAGES)],
        load_weights(args.weights)[1]["file_sha256"],
        [values.tolist() for values in arrays],
        hashlib.sha256(labelled.labels.tobytes()).hexdigest(),
        tested.to_dict("list"),
        [read_summary(args.images / site)["sha256"] for site in job_told["continual"]["sequence"]],
    ]
    return hashlib.sha256(json.dumps(context, sort_keys=True).encode()).hexdigest()[:32]


def publish(job: Job, out: Path) -> None:
    """All steps to the output, as tables; nothing is left in ``work``, the models neither."""
    steps, curves, predictions = [], [], []
    for step in steps_of(job.params):
        folder = job.work / step.folder
        told = json.loads((folder / STEP_FILE).read_text(encoding="utf-8"))
        logits = np.load(folder / LOGITS_FILE, allow_pickle=False).astype(np.float64)
        curves.append(read_table(Curves, folder / CURVES_FILE))
        # The first step is every strategy's.
        for strategy in job.params.strategies if step.number == 0 else [step.strategy]:
            run = f"{job.backbone}-{strategy}-seed{step.seed}"
            steps.append({**told, "run": run, "strategy": strategy})
            rows = job.tested[["image_id", "patient_id", "site", "split"]].assign(run=run, step=step.number)
            for position, finding in enumerate(job.labelled.findings):
                predictions.append(rows.assign(finding=finding, logit=logits[:, position]))
    write_table(ContinualSteps, steps, out / "steps.parquet")
    write_table(Curves, pd.concat(curves, ignore_index=True), out / CURVES_FILE)
    write_table(ContinualPredictions, pd.concat(predictions, ignore_index=True), out / "predictions.parquet")
    shutil.rmtree(job.work)


def main() -> None:
    """Run the stage."""
    arguments = cli.parser(
        __doc__,
        split="the folder of split",
        ledger="the study's ledger of patients, splits.csv",
        images="the folder of all sites' preprocess",
        labels="the folder of all sites' labels",
        weights="the backbone's folder of weights",
        out="folder for the steps, their curves and predictions",
    )
    arguments.add_argument("--backbone", required=True)
    args = arguments.parse_args()
    check_versions("monai", "numpy", "torch", "torchvision", path=args.params)
    params = load_params(ContinualParams, "continual", args.params)
    split = load_params(SplitParams, "split", args.params)
    for site in params.sequence:
        if site not in split.sites:
            raise ParamsError(f"continual.sequence: unknown site '{site}'{nearest(site, split.sites)}")
    shared = section_of(read_params_file(args.params), "finetune", args.params)
    loop = {name: value for name, value in shared.items() if name in LoopParams.model_fields}
    compute = load_params(ComputeParams, "compute", args.params)
    key = load_params(PrivacyParams, "privacy", args.params).key_fingerprint or ""
    state, card = load_weights(args.weights)
    if card["backbone"] != args.backbone:
        raise PipelineError(f"{args.weights} holds weights of {card['backbone']}, not of {args.backbone}")
    ledger = read_ledger(args.ledger, key)
    labelled = read_labelled(args.split, ledger, args.images, args.labels, split, params.sequence)
    check_sides(labelled, params.sequence)
    tested = read_tested(args.split, args.images, params.sequence)
    fabric = make_fabric(compute)
    told = {"continual": params.model_dump(), "loop": {**loop, **params.loop}, "compute": compute.model_dump()}
    told["backbone"] = args.backbone
    root = args.params.parent / CHECKPOINTS
    work = root / f"{args.backbone}-{job_digest(args, told, labelled, tested)}"
    with locked(root, args.backbone):
        for other in root.glob(f"{args.backbone}-*"):  # of other data, params or code
            if other.is_dir() and other != work and len(other.name) == len(work.name):
                shutil.rmtree(other)
        work.mkdir(exist_ok=True)
        job = Job(
            fabric=fabric,
            backbone=args.backbone,
            weights=state,
            labelled=labelled,
            tested=tested,
            stores={site: Store(args.images / site) for site in params.sequence},
            params=params,
            loop=parse(LoopParams, told["loop"], "continual.loop"),
            compute=compute,
            roles={site: "source" if site in split.source else "target" for site in params.sequence},
            work=work,
        )
        steps = list(steps_of(params))
        for step in steps:
            job.finish(step)
        publish(job, args.out)
    print(f"{len(steps)} trainings over {' > '.join(params.sequence)}")
    spent = [site for site in params.sequence if job.roles[site] == "target"]
    if spent:
        print(f"labels of target_adapt were spent by joining: {', '.join(spent)}")


if __name__ == "__main__":
    cli.run(main)
