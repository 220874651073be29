"""AUROC at home as the acquisition shifts: id_test images corrupted in known ways, through every full-label model.

Each curve is one kind of shift alone, at known strength, with all else as it was. It says what a model stands, not what
another hospital's images are like.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field, field_validator
from tqdm import tqdm

from pipeline import cli
from pipeline.errors import PipelineError
from pipeline.imaging.corruption import CORRUPTIONS, SEVERITIES, corrupt, image_key
from pipeline.imaging.intensity import Grey
from pipeline.imaging.store import INDEX_FILE, Store
from pipeline.metrics.binary import FloatArray, IntArray, auroc
from pipeline.metrics.intervals import Estimate, bootstrap, interval, over_seeds, patient_counts
from pipeline.params import Seed, StrictParams, check_versions, load_names, load_params
from pipeline.splits import uniform
from pipeline.tables.contract import read_table, read_tables, write_table
from pipeline.tables.images import Images as ImagesTable
from pipeline.tables.images import Splits
from pipeline.tables.labels import Labels
from pipeline.tables.stress import StressCurves
from pipeline.training.checkpoints import MODEL_CARD
from pipeline.training.determinism import ComputeParams, make_fabric, memory_format
from pipeline.training.feed import AugmentParams, ImageFeed, Images, Indices
from pipeline.training.inference import load_together, logits_of, model_folders

Kind = Literal["noise", "blur", "gamma", "window", "resolution", "marker"]
Condition = tuple[str, int]  # kind and severity; kind "" at severity 0, which is one for all kinds
Logits = npt.NDArray[np.float32]
Row = dict[str, Any]


class StressParams(StrictParams):
    """Section ``stress``. ``seed`` draws the noise, the patients (up to ``max_images`` of theirs) and resamples."""

    seed: Seed
    kinds: list[Kind] = Field(default=["noise", "blur", "gamma", "window", "resolution", "marker"], min_length=1)
    severities: list[Annotated[int, Field(ge=1, le=SEVERITIES)]] = Field(default=[1, 2, 3, 4, 5], min_length=1)
    max_images: int = Field(default=500, ge=1)
    resamples: Annotated[int, Field(ge=100, le=100_000)] = 1000

    @field_validator("kinds", "severities")
    @classmethod
    def _once(cls, given: list[Any]) -> list[Any]:
        if len(set(given)) < len(given):
            raise ValueError("each may stand there once")
        return given

    @property
    def conditions(self) -> list[Condition]:
        """All that the models see, the images as they are first."""
        return [("", 0), *((kind, severity) for kind in self.kinds for severity in self.severities)]


@dataclass(frozen=True)
class Corrupted:
    """A store's images under one condition; ``keys`` (N,) by array_index, see ``image_key``."""

    images: Images
    condition: Condition
    keys: Mapping[int, int]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(images, channels, rows, columns)."""
        return self.images.shape

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: Indices) -> Grey:
        """(B, C, H, W)."""
        pixels = self.images.read(indices)
        for number, index in enumerate(indices):
            pixels[number] = corrupt(pixels[number], *self.condition, self.keys[int(index)])
        return pixels


def draw_patients(tested: pd.DataFrame, max_images: int, seed: int) -> pd.DataFrame:
    """The rows (image_id, patient_id ...) of patients in an order drawn by ``seed``, as far as ``max_images`` go.

    All images of a patient or none, and at least one patient; who is drawn early stays when others join.
    """
    order = tested["patient_id"].map(lambda name: uniform(seed, "stress", name))
    sizes = tested.groupby(order.to_numpy())["image_id"].size().sort_index()
    last = sizes.index[max(int((sizes.cumsum() <= max_images).sum()), 1) - 1]
    return tested[(order <= last).to_numpy()]


def curves(
    run: str,
    finding: str,
    labels: FloatArray,
    patients: npt.NDArray[np.str_],
    logits: Mapping[Condition, FloatArray],
    params: StressParams,
) -> Iterator[Row]:
    """Rows of ``tables.stress.StressCurves`` of one backbone and method for one finding.

    Args:
        run: the name of backbone and method.
        finding: name.
        labels: (n,), NaN where not annotated.
        patients: (n,) pseudonyms.
        logits: per condition (k, n), one row a training seed.
        params: resamples and seed.
    """
    annotated = np.isfinite(labels)
    truth: IntArray = labels[annotated].astype(np.int8)
    names, codes = np.unique(patients[annotated], return_inverse=True)
    sides = [len(np.unique(codes[truth == side])) for side in (1, 0)]
    one_class = "" if all(sides) else "undefined: no annotated image" if not any(sides) else "undefined: one class"
    counts = patient_counts([str(name) for name in names], params.resamples, params.seed)
    once = np.ones((1, len(truth)))

    def scored(rows: FloatArray) -> tuple[FloatArray, FloatArray]:
        """AUROC of each run (k,), and on the resamples (k, resamples)."""
        each = [partial(auroc, truth, row) for row in rows[:, annotated]]
        return np.array([score(once)[0] for score in each]), np.stack([bootstrap(s, counts, codes) for s in each])

    undefined = np.full(len(logits["", 0]), np.nan), np.full((len(logits["", 0]), params.resamples), np.nan)
    plain = undefined if one_class else scored(logits["", 0])
    for kind in params.kinds:
        corruption = CORRUPTIONS[kind]
        for severity in (0, *params.severities):
            found = plain if not severity or one_class else scored(logits[kind, severity])
            estimate = over_seeds(found[0], found[1], min(sides))
            made = interval(estimate, "logit", exact=True)
            notes = [one_class, made.note]
            row = {"difference": None, "difference_low": None, "difference_high": None}
            if severity:
                # Run by run: a seed's luck is in both and counts only as far as it differs.
                row, why_none = _difference(over_seeds(found[0] - plain[0], found[1] - plain[1], min(sides)))
                notes.append(f"difference: {why_none}" if why_none and not one_class else "")
            if len(found[0]) == 1:
                notes.append("one run, spread between seeds unknown")
            yield {
                "run": run,
                "finding": finding,
                "kind": kind,
                "severity": severity,
                "strength": corruption.strengths[severity],
                "unit": corruption.unit,
                "value": estimate.value,
                "ci_low": made.low,
                "ci_high": made.high,
                **row,
                "num_images": len(truth),
                "num_patients": len(names),
                "note": "; ".join(note for note in notes if note),
            }


def _difference(estimate: Estimate) -> tuple[Row, str]:
    made = interval(estimate, "identity")
    # What lies beyond -1 and 1 cannot be.
    low, high = (float(np.clip(limit, -1.0, 1.0)) for limit in (made.low, made.high))
    return {"difference": estimate.value, "difference_low": low, "difference_high": high}, made.note


def full_label_folders(models: Path, jobs: list[str]) -> list[list[Path]]:
    """The folders of the runs that had all labels, those with one trunk together."""

    def full(folder: Path) -> bool:
        card = json.loads((folder / MODEL_CARD).read_text(encoding="utf-8"))
        return card["label_fraction"] == 1.0 and card["shots"] is None

    groups = [[folder for folder in folders if full(folder)] for folders in model_folders(models, jobs)]
    return [folders for folders in groups if folders]


def predict_all(
    groups: list[list[Path]],
    parts: Mapping[str, pd.DataFrame],
    stores: Mapping[str, Images],
    params: StressParams,
    compute: ComputeParams,
) -> dict[tuple[str, str], dict[Condition, list[Logits]]]:
    """By name of backbone and method, and finding: under each condition the logits (n,) of each run.

    Args:
        groups: folders of models, those with one trunk together; one trunk is held at a time.
        parts: per site the image_id and array_index of its images, n in all.
        stores: per site.
        params: the conditions and the noise's seed.
        compute: device and batch size.
    """
    fabric, layout = make_fabric(compute), memory_format(compute)
    keys = {
        site: {
            int(i): image_key(params.seed, name) for i, name in zip(part["array_index"], part["image_id"], strict=True)
        }
        for site, part in parts.items()
    }
    made: dict[tuple[str, str], dict[Condition, list[Logits]]] = {}
    total = len(groups) * len(params.conditions) * sum(map(len, parts.values()))
    with tqdm(total=total, desc="stress", unit="image", mininterval=0.5) as bar:
        for folders in groups:
            model, members = load_together(folders)
            model = model.to(memory_format=layout).to(fabric.device)
            heads = [head.to(fabric.device) for head, _ in members]
            for condition in params.conditions:
                found = []
                for site, part in parts.items():
                    feed = ImageFeed(
                        Corrupted(stores[site], condition, keys[site]), fabric.device, layout, AugmentParams(), 0
                    )
                    index = part["array_index"].to_numpy(np.int64)
                    no_features = np.zeros(len(index), dtype=np.bool_)
                    found.append(logits_of(model, heads, feed, index, compute.batch_size, no_features)[0])
                    bar.update(len(index))
                for (_, card), of_sites in zip(members, zip(*found, strict=True), strict=True):
                    values = np.concatenate(of_sites)
                    for position, finding in enumerate(card["findings"]):
                        # Named as evaluation names families with all labels.
                        own = made.setdefault((f"{card['backbone']}-{card['method']}", finding), {})
                        own.setdefault(condition, []).append(values[:, position])
    return made


def main() -> None:
    """Run the stage."""
    arguments = cli.parser(
        __doc__,
        split="the folder of split",
        images="the folder of all sites' preprocess",
        labels="the folder of all sites' labels",
        models="the folder of all finetune outputs",
        out="folder for the curves",
    )
    args = arguments.parse_args()
    check_versions("monai", "numpy", "scipy", "torch", "torchvision", path=args.params)
    params = load_params(StressParams, "stress", args.params)
    compute = load_params(ComputeParams, "compute", args.params)
    jobs = [
        f"{backbone}-{method}"
        for backbone in load_names("backbones", args.params)
        for method in load_names("methods", args.params)
    ]
    splits = read_table(Splits, args.split / "splits.parquet")
    tested = splits[splits["split"] == "id_test"]
    groups = full_label_folders(args.models, jobs)
    if not len(tested) or not groups:
        raise PipelineError(
            f"nothing to stress: {len(tested)} images of id_test, models of {len(groups)} trunks with all labels. "
            "Raise split.id_test_fraction, or have 1.0 among finetune.label_fractions"
        )
    parts = {
        str(site): part.merge(
            read_table(ImagesTable, args.images / str(site) / INDEX_FILE)[["image_id", "array_index"]], on="image_id"
        )
        for site, part in draw_patients(tested, params.max_images, params.seed).groupby("site", sort=True)
    }
    stores = {site: Store(args.images / site) for site in parts}
    logits = predict_all(groups, parts, stores, params, compute)
    # Labels join last: nothing above has seen one.
    labels = read_tables(Labels, [args.labels / site / "labels.parquet" for site in parts])
    images = pd.concat(parts.values(), ignore_index=True)
    rows: list[Row] = []
    for (run, finding), by_condition in sorted(logits.items()):
        given = labels[labels["finding"] == finding].set_index("image_id")["label"].reindex(images["image_id"])
        truth = given.to_numpy(dtype=np.float64, na_value=np.nan)
        stacked = {condition: np.stack(values).astype(np.float64) for condition, values in by_condition.items()}
        rows += curves(run, finding, truth, images["patient_id"].to_numpy(dtype=np.str_), stacked, params)
    write_table(StressCurves, rows, args.out / "curves.parquet")
    print(f"{len(rows)} points of curves, on {len(images)} images")


if __name__ == "__main__":
    cli.run(main)
