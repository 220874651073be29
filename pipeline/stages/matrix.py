"""Train on one hospital, test on every hospital: all pairs, and all hospitals but one. One backbone.

Every hospital takes its turn, whatever its role: of a target the labelled ``target_adapt`` patients train. Rows are
equalised: each trains on as many labelled patients of each class as the poorest has, drawn anew by each seed. The
method is the linear probe on the features of ``embed``, and full fine-tuning where the section asks for it. Labels of
``id_test`` and ``ood_test`` are not read (``matrix_scores`` joins them to the predictions).

A fine-tuning that was killed goes on where it stopped (.checkpoints/matrix).
"""

import hashlib
import json
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field, PositiveFloat, field_validator

from pipeline import cli
from pipeline.errors import PipelineError
from pipeline.imaging.store import Store, read_summary
from pipeline.key import PrivacyParams
from pipeline.labelled import Labelled, read_labelled, read_tested
from pipeline.ledger import read_ledger
from pipeline.params import (
    Name,
    Seed,
    StrictParams,
    check_versions,
    load_params,
    parse,
    read_params_file,
    section_of,
)
from pipeline.splits import SplitParams
from pipeline.tables.contract import plain_text, read_table, write_table
from pipeline.tables.diagnosis import Embedded
from pipeline.tables.matrix import MatrixPredictions, MatrixRows
from pipeline.training.checkpoints import load_weights
from pipeline.training.determinism import ComputeParams, make_fabric, memory_format
from pipeline.training.engine import Engine, InverseL2
from pipeline.training.equalise import Budget, Sides, budget, draw, shortage
from pipeline.training.feed import Dataset, Floats
from pipeline.training.loop import LoopParams, Plan, predict_logits
from pipeline.training.probe import fit_probe
from pipeline.work import code_fingerprint, locked

CHECKPOINTS = Path(".checkpoints") / "matrix"
FIT_FILE = "fit.npz"
_PACKAGES = ("lightning", "monai", "numpy", "scikit-learn", "torch", "torchvision")
Row = dict[str, Any]
Protocol = Literal["single_source", "leave_one_out"]
Logits = npt.NDArray[np.float64]


class ProbeParams(StrictParams):
    """``matrix.linear_probe``: penalties to choose from, as in ``methods.linear_probe``."""

    inverse_l2: InverseL2


class FinetuneParams(StrictParams):
    """``matrix.full_finetune``: the learning rate; ``loop``: what departs from ``finetune`` (epochs ...)."""

    learning_rate: PositiveFloat
    loop: dict[str, Any] = Field(default_factory=dict)


class MatrixParams(StrictParams):
    """Section ``matrix``. ``backbones: []`` leaves the stage out.

    ``seeds`` draw the patients (and start the fine-tuning). A row with fewer than ``least_patients`` labelled patients
    of a class is not trained, and says so. ``equalised: false`` gives every row all that its hospital has.
    """

    backbones: list[Name] = Field(min_length=1)
    protocols: list[Protocol] = Field(default=["single_source", "leave_one_out"], min_length=1)
    seeds: list[Seed] = Field(min_length=1)
    linear_probe: ProbeParams
    full_finetune: FinetuneParams | None = None
    equalised: bool = True
    least_patients: int = Field(default=5, ge=1)

    @field_validator("backbones", "protocols", "seeds")
    @classmethod
    def _distinct(cls, values: list[Any]) -> list[Any]:
        if len(set(values)) < len(values):
            raise ValueError("each may stand there once")
        return values


def trains_on(protocol: str, row: str, sites: list[str]) -> list[str]:
    """The hospitals that train in a row."""
    return [row] if protocol == "single_source" else [site for site in sites if site != row]


def tests_on(protocol: str, row: str, sites: list[str]) -> list[str]:
    """The hospitals that a row is tested on."""
    return sites if protocol == "single_source" else [row]


@dataclass(frozen=True)
class Fit:
    """One training: who trains and selects."""

    protocol: str
    finding: str
    row: str
    seed: int
    given: Budget
    sides: Sides

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.protocol}-{self.finding}-{self.row}-seed{self.seed}"


def plan(labelled: Labelled, sites: list[str], params: MatrixParams) -> tuple[list[Fit], list[Row]]:
    """All trainings; and rows of ``MatrixRows``, without method, of those that cannot be."""
    fits: list[Fit] = []
    left_out: list[Row] = []
    for protocol in params.protocols:
        for position, finding in enumerate(labelled.findings):
            labels = labelled.labels[:, position]
            annotated = np.isfinite(labels)
            rows = {}
            for row in sites:
                among = trains_on(protocol, row, sites)
                train, val = (labelled.where(side, among) for side in ("train", "val"))
                rows[row] = Sides(train[annotated[train]], val[annotated[val]])
            lacking = {row: shortage(labels, labelled.patients, rows[row], params.least_patients) for row in sites}
            left_out += [
                {"protocol": protocol, "finding": finding, "row": row, "seed": seed, "note": note,
                 "num_train_patients": 0, "num_train_images": 0, "num_val_patients": 0}
                for row, note in lacking.items() if note
                for seed in params.seeds
            ]  # fmt: skip
            able = {row: sides for row, sides in rows.items() if not lacking[row]}
            given = budget(labels, labelled.patients, able, equalised=params.equalised)
            fits += [
                Fit(protocol, finding, row, seed, given, draw(labels, labelled.patients, sides, given, seed))
                for row, sides in able.items()
                for seed in params.seeds
            ]
    return fits, left_out


def told(fit: Fit, labelled: Labelled, choice: float) -> Row:
    """A row of ``MatrixRows``, without method."""
    patients = {name: labelled.patients[index] for name, index in vars(fit.sides).items()}
    return {
        "protocol": fit.protocol,
        "finding": fit.finding,
        "row": fit.row,
        "seed": fit.seed,
        "num_patients_per_class": fit.given.per_class,
        "num_train_patients": len(set(patients["train"].tolist())),
        "num_train_images": len(fit.sides.train),
        "num_val_patients": len(set(patients["val"].tolist())),
        "choice": choice,
        "note": "",
    }


def read_features(folder: Path, names: Any) -> Floats:
    """Embeddings (len(names), D) of images, by image_id.

    Raises:
        PipelineError: they are not there, or not of these images.
    """
    rows = plain_text(read_table(Embedded, folder / "index.parquet")).set_index("image_id")["row"].reindex(names)
    try:
        array = np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        raise PipelineError(f"{folder}/features.npy is missing or damaged; `dvc repro` makes it") from None
    if rows.isna().any() or (len(rows) and int(rows.max()) >= len(array)):
        raise PipelineError(f"{folder}: not all images have features; `dvc repro` makes them")
    features: Floats = array[rows.to_numpy(np.int64)]
    return features


@dataclass(frozen=True)
class Probes:
    """Linear probes on cached features: of the labelled images (N, D), and of the tested ones (M, D)."""

    labelled: Labelled
    features: Floats
    tested: Floats
    params: ProbeParams

    def fit(self, fit: Fit) -> tuple[Logits, float]:
        """Logits (M,) of the tested images, and the penalty."""
        labels = self.labelled.labels[:, self.labelled.findings.index(fit.finding)]
        found = fit_probe(
            self.features, labels, fit.sides.train, fit.sides.val, self.params.inverse_l2, f"{fit.finding}, {fit.row}"
        )
        return self.tested.astype(np.float64) @ found.weight + found.bias, found.inverse_l2


@dataclass(frozen=True)
class Finetunings:
    """Full fine-tuning from the pretrained weights, each kept in ``work`` until all are done."""

    args: Any
    labelled: Labelled
    tested: pd.DataFrame
    stores: dict[str, Store]
    params: FinetuneParams
    loop: LoopParams
    compute: ComputeParams
    work: Path

    def fit(self, fit: Fit) -> tuple[Logits, float]:
        """Logits (M,) of the tested images, and the epoch; as a killed job left them, where it did."""
        path = self.work / fit.name / FIT_FILE
        if not path.is_file():
            logits, epoch = self._train(fit)
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name("part.npz")
            np.savez(partial, logits=logits, epoch=np.array(epoch))
            partial.replace(path)
            shutil.rmtree(self.work / f"{fit.name}.phases", ignore_errors=True)
        with np.load(path, allow_pickle=False) as found:
            return found["logits"].astype(np.float64), float(found["epoch"])

    def _train(self, fit: Fit) -> tuple[Floats, int]:
        state, _ = load_weights(self.args.weights)
        own, none = self.labelled, np.empty((0, 0), np.float32)
        labels = own.labels[:, [own.findings.index(fit.finding)]]
        layout = memory_format(self.compute)
        engine = Engine(
            fabric=make_fabric(self.compute),
            backbone=self.args.backbone,
            weights=state,
            findings=[fit.finding],
            data=Dataset(
                own.images, labels, own.patients, fit.sides.train, fit.sides.train, fit.sides.val, own.image_ids
            ),
            features=none,
            pooled=none,
            loop=self.loop,
            seed=fit.seed,
            layout=layout,
            description=fit.name,
            compiled=self.compute.compile,
            work=self.work / f"{fit.name}.phases",
        )
        model = engine.pretrained()
        engine.train(model, Plan(self.params.learning_rate))
        logits = np.empty(len(self.tested), np.float32)
        for site, store in self.stores.items():
            here = (self.tested["site"] == site).to_numpy(bool)
            index = self.tested.loc[here, "array_index"].to_numpy(np.int64)
            if len(index):
                made = predict_logits(engine.fabric, model, store, index, self.compute.batch_size, layout)
                logits[here] = made[:, 0]
        (kept,) = (epoch.epoch for epoch in engine.curves if epoch.kept)
        return logits, kept


def job_digest(args: Any, context: Row, labelled: Labelled, tested: pd.DataFrame) -> str:
    """A hash over all that decides what a fine-tuning gives."""
    package = Path(__file__).parents[1]
    parts = [
        code_fingerprint([Path(__file__), *(package / name for name in ("labelled.py", "imaging", "training"))]),
        context,
        [sys.version, *map(version, _PACKAGES)],
        load_weights(args.weights)[1]["file_sha256"],
        [values.tolist() for values in (labelled.image_ids, labelled.patients, labelled.sites, labelled.sides)],
        hashlib.sha256(labelled.labels.tobytes()).hexdigest(),
        tested.to_dict("list"),
        [read_summary(args.images / site)["sha256"] for site in context["sites"]],
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def results(
    method: str, trainer: Probes | Finetunings, fits: list[Fit], tested: pd.DataFrame, sites: list[str], backbone: str
) -> list[tuple[Row, pd.DataFrame]]:
    """Of each training its row and its predictions, without labels."""
    made = []
    for fit in fits:
        logits, choice = trainer.fit(fit)
        row = {"backbone": backbone, "method": method, **told(fit, trainer.labelled, choice)}
        which = {name: row[name] for name in ("backbone", "method", "protocol", "finding", "row", "seed")}
        rows = tested[["image_id", "patient_id", "site", "split"]].assign(logit=logits, **which)
        made.append((row, rows[rows["site"].isin(tests_on(fit.protocol, fit.row, sites))]))
    return made


def finetuned(
    args: Any, params: FinetuneParams, labelled: Labelled, tested: pd.DataFrame, fits: list[Fit], sites: list[str]
) -> list[tuple[Row, pd.DataFrame]]:
    """``results`` of full fine-tuning; one process at a time, and nothing is left of the work."""
    compute = load_params(ComputeParams, "compute", args.params)
    shared = section_of(read_params_file(args.params), "finetune", args.params)
    loop = {name: value for name, value in shared.items() if name in LoopParams.model_fields} | params.loop
    context = {
        "backbone": args.backbone,
        "learning_rate": params.learning_rate,
        "loop": loop,
        "compute": compute.model_dump(),
        "sites": sites,
        "fits": [[fit.name, *(index.tolist() for index in vars(fit.sides).values())] for fit in fits],
    }
    root = args.params.parent / CHECKPOINTS
    work = root / f"{args.backbone}-{job_digest(args, context, labelled, tested)}"
    with locked(root, args.backbone):
        for other in root.glob(f"{args.backbone}-*"):  # of other data, params or code
            if other.is_dir() and other != work and len(other.name) == len(work.name):
                shutil.rmtree(other)
        work.mkdir(exist_ok=True)
        trainer = Finetunings(
            args=args,
            labelled=labelled,
            tested=tested,
            stores={site: Store(args.images / site) for site in sites},
            params=params,
            loop=parse(LoopParams, loop, "matrix.full_finetune.loop"),
            compute=compute,
            work=work,
        )
        found = results("full_finetune", trainer, fits, tested, sites, args.backbone)
        shutil.rmtree(work)
    return found


def main() -> None:
    """Run the stage."""
    arguments = cli.parser(
        __doc__,
        split="the folder of split",
        ledger="the study's ledger of patients, splits.csv",
        images="the folder of all sites' preprocess",
        labels="the folder of all sites' labels",
        embed="the backbone's folder of embed",
        weights="the backbone's folder of weights",
        out="folder for the rows and predictions",
    )
    arguments.add_argument("--backbone", required=True)
    args = arguments.parse_args()
    check_versions("monai", "numpy", "scikit-learn", "torch", "torchvision", path=args.params)
    params = load_params(MatrixParams, "matrix", args.params)
    split = load_params(SplitParams, "split", args.params)
    key = load_params(PrivacyParams, "privacy", args.params).key_fingerprint or ""
    make_fabric(load_params(ComputeParams, "compute", args.params))  # sets threads and determinism, for the probe too
    sites = split.sites
    labelled = read_labelled(args.split, read_ledger(args.ledger, key), args.images, args.labels, split, sites)
    tested = read_tested(args.split, args.images, sites)
    fits, left_out = plan(labelled, sites, params)
    seen, unseen = (read_features(args.embed, names) for names in (labelled.image_ids, tested["image_id"]))
    probes = Probes(labelled, seen, unseen, params.linear_probe)
    found = results("linear_probe", probes, fits, tested, sites, args.backbone)
    methods = ["linear_probe"]
    if params.full_finetune is not None:
        methods.append("full_finetune")
        found += finetuned(args, params.full_finetune, labelled, tested, fits, sites)
    rows = [row for row, _ in found]
    rows += [{"backbone": args.backbone, "method": method, **row} for row in left_out for method in methods]
    predictions = pd.concat([frame for _, frame in found]) if found else pd.DataFrame()
    write_table(MatrixRows, rows, args.out / "rows.parquet")
    write_table(MatrixPredictions, predictions, args.out / "predictions.parquet")
    for protocol in params.protocols:
        numbers = {fit.given.per_class for fit in fits if fit.protocol == protocol}
        words = ", ".join("all" if number is None else str(number) for number in numbers) or "no"
        print(f"{protocol}: {words} labelled patients of each class in every row")
    for told_row in left_out:
        if told_row["seed"] == params.seeds[0]:
            print(f"{told_row['protocol']}, {told_row['finding']}, {told_row['row']}: {told_row['note']}")


if __name__ == "__main__":
    cli.run(main)
