"""Hand over one trained model: a MONAI bundle with its card, its rule, and all that `apply` needs for new files.

Which model is the person's choice, in section `handover` of params; nothing is chosen here. The rule (threshold,
abstention) is fixed on the source's id_val; test labels fill the card and decide nothing.
"""

import shutil
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from pydantic import ConfigDict, Field, field_validator

from pipeline import cli
from pipeline.analysis.aggregate import to_studies
from pipeline.analysis.evaluation import EvaluateParams, evaluate
from pipeline.analysis.subgroups import check_names, columns_of, group_names
from pipeline.dicom.headers import IngestParams
from pipeline.errors import PipelineError
from pipeline.handover import bundle, card
from pipeline.handover.monai_bundle import CHECK, SCHEMA_URL, inference_config, network_data_format
from pipeline.handover.operation import operation
from pipeline.handover.pictures import Pictures, draw_pictures, round_alike
from pipeline.handover.rule import Reference, decide, fit_reference, fix_rule, probability_of
from pipeline.handover.seen import CHECKED, describe_seen
from pipeline.imaging.recipe import PreprocessParams
from pipeline.imaging.store import INDEX_FILE, Store
from pipeline.params import Fraction, Name, ParamsError, Seed, StrictParams, check_versions, load_params
from pipeline.splits import SplitParams
from pipeline.tables.contract import make_table, plain_text, read_table, read_tables
from pipeline.tables.evaluation import Metrics, Thresholds
from pipeline.tables.files import Instances
from pipeline.tables.handover import Operation
from pipeline.tables.images import Composition, Images, Splits
from pipeline.tables.labels import Terms
from pipeline.tables.predictions import Predictions
from pipeline.tables.training import Runs, Samples
from pipeline.training.backbone import Classifier
from pipeline.training.checkpoints import MODEL_CARD, MODEL_FILE, file_sha256, load_model
from pipeline.training.determinism import ComputeParams, make_fabric, memory_format
from pipeline.training.feed import AugmentParams, ImageFeed
from pipeline.training.inference import logits_of

_PACKAGES = (
    "monai",
    "numpy",
    "opencv-python-headless",
    "pydicom",
    "scikit-learn",
    "scipy",
    "torch",
    "torchvision",
)
# What configs/inference.json imports beyond MONAI's own; not pinned by the study, so the oldest that will do.
_REQUIRED = {"pandas": "3.0", "safetensors": "0.6"}
_TEST_SPLITS = ("id_val", "id_test", "ood_test")
# In probability: the same images through the same model, whatever device `predict` had and however it rounded.
_ALIKE = 1e-2


class HandoverParams(StrictParams):
    """An entry of section ``handover``, under the name of the bundle.

    ``in_distribution``: the share of the source's id_val cases that the flag lets pass; ``undecided``: the share of
    them, nearest to the threshold, on which no call is made. ``accept``: per header column (modality, view_position,
    body_part) terms that were not among the training images and are to be taken all the same. The texts are told as
    they stand.
    """

    backbone: Name
    method: Name
    seed: Seed
    version: str = Field(default="0.1.0", pattern=r"^\d+\.\d+\.\d+$")
    in_distribution: Fraction = 0.95
    undecided: float = Field(default=0.0, ge=0.0, lt=1.0)
    accept: dict[str, list[str]] = Field(default_factory=dict)
    intended_use: str = ""
    authors: str = ""
    copyright: str = ""
    licence: str = ""

    @field_validator("accept")
    @classmethod
    def _columns(cls, accept: dict[str, list[str]]) -> dict[str, list[str]]:
        if unknown := sorted(set(accept) - set(CHECKED)):
            raise ValueError(f"accept: columns are {', '.join(CHECKED)}; unknown: {', '.join(unknown)}")
        return accept


class ReportFacts(StrictParams):
    """What the card takes from section ``report``."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    title: str
    notice: str = ""
    min_cell: int = 11


@dataclass(frozen=True)
class Chosen:
    """The model that is handed over, and what it goes through."""

    model: Classifier
    card: dict[str, Any]
    device: torch.device
    layout: torch.memory_format
    batch_size: int

    def outputs(
        self, images: Store | Pictures, indices: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32]]:
        """Logits (n, findings) and features (n, D) of some images of a store."""
        feed = ImageFeed(images, self.device, self.layout, AugmentParams(), 0)
        every = np.ones(len(indices), dtype=bool)
        logits, features = logits_of(self.model, [self.model.head], feed, indices, self.batch_size, every)
        return logits[0].astype(np.float64), features


def choose(models: Path, params: HandoverParams, compute: ComputeParams) -> Chosen:
    """The model that params name.

    Raises:
        ParamsError: it was not trained; says which seeds were.
    """
    run = f"{params.backbone}-{params.method}-seed{params.seed}"
    if not (models / run / MODEL_CARD).is_file():
        there = sorted(path.parent.name for path in models.glob(f"*/{MODEL_CARD}"))
        raise ParamsError(f"handover: no model {run}; {models.name} holds {', '.join(there) or 'none'}")
    fabric = make_fabric(compute)
    round_alike()
    layout = memory_format(compute)
    model, made = load_model(models / run)
    return Chosen(model.to(memory_format=layout).to(fabric.device), made, fabric.device, layout, compute.batch_size)


def tested_rows(chosen: Chosen, images: Path, predictions: pd.DataFrame, reference: Reference) -> pd.DataFrame:
    """The run's predictions, each with its image's distance.

    Raises:
        PipelineError: there are none, or the model gives other probabilities than stand there.
    """
    if not len(predictions):
        raise PipelineError(f"predict has nothing of {chosen.card['run']}; run `dvc repro`")
    frames = []
    for site, rows in predictions.groupby("site", sort=True):
        index = plain_text(read_table(Images, images / str(site) / INDEX_FILE))[["image_id", "array_index"]]
        own = rows[["image_id"]].drop_duplicates().merge(index, on="image_id").sort_values("array_index")
        logits, features = chosen.outputs(Store(images / str(site)), own["array_index"].to_numpy(np.int64))
        distances = pd.Series(reference.distance(features), index=own["image_id"], name="distance")
        again = pd.DataFrame(logits, index=own["image_id"], columns=chosen.card["findings"])
        again = again.reset_index().melt("image_id", var_name="finding", value_name="again")
        frames.append(rows.merge(distances, on="image_id").merge(again, on=["image_id", "finding"]))
    together = pd.concat(frames, ignore_index=True)
    off = np.abs(probability_of(together["again"].to_numpy(float)) - together["probability"].to_numpy(float)).max()
    if len(together) != len(predictions) or not off <= _ALIKE:
        raise PipelineError("the model's probabilities are not those of predict; run `dvc repro`")
    return together.drop(columns="again")


def own_metrics(predictions: pd.DataFrame, params: EvaluateParams, sides: SplitParams, ingest: Path) -> pd.DataFrame:
    """``Metrics`` of this model alone, with domains and subgroups, as `evaluate` makes them of all."""
    names = check_names(params.domains, params.subgroups)
    groups = None
    if names:
        columns = columns_of(names)
        parts = [read_table(Instances, ingest / site / "instances.parquet")[columns] for site in sides.sites]
        groups = group_names(pd.concat(parts, ignore_index=True), names, params.unit)
    if params.unit == "study":
        predictions = to_studies(predictions, params.aggregate)
    metrics = evaluate(predictions, params, sides.source, sides.target, groups).metrics
    # The run's own rows have no intervals; those under the name of backbone and method have, and it is the only run.
    return metrics[~metrics["run"].str.contains("-seed")]


def trained_on(args: Namespace, sides: SplitParams) -> tuple[pd.DataFrame, pd.DataFrame]:
    """``Instances`` and ``Images`` of the images that were trained or selected on."""
    used = set(read_table(Samples, args.gather / "samples.parquet")["image_id"])
    instances = read_tables(Instances, [args.ingest / site / "instances.parquet" for site in sides.source])
    images = pd.concat([read_table(Images, args.images / site / INDEX_FILE) for site in sides.source])
    return instances[instances["image_id"].isin(used)], images[images["image_id"].isin(used)]


def started_from(model: Mapping[str, Any]) -> str:
    """Where the weights came from before training."""
    if model["initialisation"] == "scratch":
        return "random numbers (trained from scratch)"
    if model["initialisation"] == "random":
        return str(model["weights_name"])
    return f"{model['weights_name']}, SHA-256 {model['weights_sha256']}"


def weights_licence(model: Mapping[str, Any]) -> str:
    """The licence of what it started from."""
    if model["initialisation"] in ("scratch", "random"):
        return "none needed: random numbers"
    return model["weights_licence"] or "not stated (licence of this backbone in params.yaml)"


def main() -> None:
    """Run the stage."""
    arguments = cli.parser(
        __doc__,
        models="the folder of the chosen backbone's and method's finetune",
        gather="the folder of gather",
        images="the folder of all sites' preprocess",
        ingest="the folder of all sites' ingest",
        labels="the folder of all sites' labels",
        split="the folder of split",
        predict="the folder of predict",
        evaluate="the folder of evaluate",
        out="folder for the bundle",
    )
    arguments.add_argument("--bundle", required=True, help="its name under handover in params")
    args = arguments.parse_args()
    check_versions(
        "monai", "numpy", "opencv-python-headless", "pydicom", "scikit-learn", "scipy", "torch", "torchvision",
        path=args.params,
    )  # fmt: skip
    params = load_params(HandoverParams, f"handover.{args.bundle}", args.params)
    compute = load_params(ComputeParams, "compute", args.params)
    preprocess = load_params(PreprocessParams, "preprocess", args.params)
    policy = load_params(IngestParams, "ingest", args.params)
    judged = load_params(EvaluateParams, "evaluate", args.params)
    sides = load_params(SplitParams, "split", args.params)
    report = load_params(ReportFacts, "report", args.params)
    chosen = choose(args.models, params, compute)
    run = chosen.card["run"]

    samples = read_table(Samples, args.gather / "samples.parquet").sort_values("array_index")
    training = samples.loc[samples["split"] == "train", "array_index"].to_numpy(np.int64)
    _, features = chosen.outputs(Store(args.gather), training)
    try:
        reference = fit_reference(features)
    except ValueError as error:
        raise PipelineError(f"handover: nothing to tell what lies far from training: {error}") from None

    predictions = plain_text(read_table(Predictions, args.predict / "predictions.parquet"))
    predictions = predictions[(predictions["run"] == run) & predictions["split"].isin(_TEST_SPLITS)]
    tested = tested_rows(chosen, args.images, predictions, reference)
    points = read_table(Thresholds, args.evaluate / "thresholds.parquet")
    points = points[points["run"] == run]
    thresholds = {row["finding"]: row["threshold"] for row in card.records(points)}
    if sorted(thresholds) != sorted(chosen.card["findings"]):
        raise PipelineError(f"evaluate has no thresholds of {run} for all of its findings; run `dvc repro`")
    try:
        rule = fix_rule(
            tested[tested["split"] == "id_val"], thresholds, unit=judged.unit, aggregate=judged.aggregate,
            in_distribution=params.in_distribution, undecided=params.undecided,
        )  # fmt: skip
        seen = describe_seen(*trained_on(args, sides), params.accept)
    except ValueError as error:
        raise PipelineError(f"handover: {error}") from None
    operated = make_table(
        Operation,
        operation(decide(tested, rule), resamples=judged.resamples, seed=judged.seed, confidence=judged.confidence),
    )
    metrics = card.records(own_metrics(predictions, judged, sides, args.ingest))

    versions = {package: version(package).split("+")[0] for package in _PACKAGES}
    pictures = draw_pictures(tuple(chosen.card["image_shape"]), preprocess.bits)
    logits, _ = chosen.outputs(Pictures(pictures), np.arange(len(pictures)))
    application = bundle.Application(
        format=1,
        name=args.bundle,
        run=run,
        findings=chosen.card["findings"],
        ingest=policy,
        preprocess=preprocess,
        compute=compute,
        seen=seen,
        rule=rule,
        check_logits=logits.tolist(),
        versions=versions,
    )
    write(args, application, chosen, reference, pictures)
    facts = card_facts(args, params, report, judged, sides, application, chosen, metrics, points, operated)
    bundle.write_text(args.out, bundle.CARD, card.render("README.md.j2", **facts))
    terms = read_tables(Terms, [args.labels / site / "terms.parquet" for site in sides.source])
    licence = {
        "name": args.bundle,
        "licence": params.licence,
        "copyright": params.copyright,
        "started_from": facts["started_from"],
        "weights_licence": weights_licence(chosen.card),
        "terms": card.records(terms),
    }
    bundle.write_text(args.out, bundle.LICENCE, card.render("LICENSE.j2", **licence))
    bundle.seal(args.out, metadata(args.bundle, params, report, application, chosen, metrics, licence["terms"]))
    bundle.verify(args.out)
    print(f"{args.bundle}: {run}, {sum(path.is_file() for path in args.out.rglob('*'))} files")


def write(
    args: Namespace, application: bundle.Application, chosen: Chosen, reference: Reference,
    pictures: npt.NDArray[Any],
) -> None:  # fmt: skip
    """All files but card, licence and metadata."""
    shutil.rmtree(args.out, ignore_errors=True)
    (args.out / bundle.MODELS).mkdir(parents=True)
    for name in (MODEL_FILE, MODEL_CARD):
        shutil.copyfile(args.models / application.run / name, args.out / bundle.MODELS / name)
    bundle.write_reference(args.out, reference)
    (args.out / CHECK).mkdir()
    for number, picture in enumerate(pictures):
        np.save(args.out / CHECK / f"{number}.npy", picture, allow_pickle=False)
    config = inference_config(chosen.model, chosen.card, chosen.batch_size, application.preprocess.bits)
    bundle.write_text(args.out, bundle.INFERENCE, bundle.to_json(config))
    bundle.write_text(args.out, bundle.APPLY, bundle.to_json(application.model_dump()))
    bundle.write_text(args.out, bundle.SCHEMA, card.render("metadata_schema.json"))


def card_facts(
    args: Namespace, params: HandoverParams, report: ReportFacts, judged: EvaluateParams, sides: SplitParams,
    application: bundle.Application, chosen: Chosen, metrics: list[card.Row], points: pd.DataFrame,
    operated: pd.DataFrame,
) -> dict[str, Any]:  # fmt: skip
    """What the card's template asks for."""
    model, least = chosen.card, report.min_cell
    composition = card.records(read_table(Composition, args.split / "composition.parquet"))
    family = read_table(Metrics, args.evaluate / "metrics.parquet")
    name = f"{model['backbone']}-{model['method']}"
    family = family[(family["run"] == name) & (family["metric"] == "auroc")]
    family = family[family["group"].isin(["source", "target"]) & (family["split"] != "id_val")]
    runs = read_table(Runs, args.predict / "runs.parquet")
    full = runs[(runs["backbone"] == model["backbone"]) & (runs["method"] == model["method"])]
    full = full[(full["label_fraction"] == 1.0) & full["shots"].isna()]
    splits = read_table(Splits, args.split / "splits.parquet")
    tested = splits[splits["split"].isin(["id_test", "ood_test"])]
    counts = tested.groupby(["site", "split"])["patient_id"].nunique()
    findings = application.findings
    training = [row for row in composition if row["split"] == "train" and row["finding"] == findings[0]]
    return {
        **{key: getattr(params, key) for key in ("version", "in_distribution", "undecided", "intended_use")},
        **{key: model[key] for key in ("backbone", "method", "seed", "image_shape", "num_parameters", "file_sha256")},
        "name": application.name,
        "title": report.title,
        "notice": report.notice,
        "min_cell": least,
        "findings": findings,
        "kind": application.seen.kind,
        "files": {"dicom": "DICOM", "raster": "PNG or JPEG"}[application.seen.kind],
        "random_start": model["initialisation"] in ("random", "scratch"),
        "scratch": model["initialisation"] == "scratch",
        "started_from": started_from(model),
        "num_train": card.total(training, "num_images", least),
        "source": sides.source,
        "target": sides.target,
        "composition": card.composition_rows(composition, least),
        "seen": {column: application.seen.levels[column] for column in CHECKED},
        "accepted": "; ".join(f"{column} {', '.join(terms)}" for column, terms in sorted(params.accept.items())),
        "confidence": judged.confidence,
        "places": {finding: card.places(metrics, finding, least) for finding in findings},
        "subgroups": {finding: card.subgroups(metrics, finding, least) for finding in findings},
        "family": {finding: card.records(family[family["finding"] == finding]) for finding in findings},
        "num_runs": len(full),
        "undefined": card.undefined_notes(metrics),
        "unit": judged.unit,
        "aggregate": judged.aggregate,
        "thresholds": card.records(points.sort_values("finding")),
        "distance_limit": application.rule.distance_limit,
        "operation": card.records(operated),
        "num_test_patients": "hidden" if ((counts > 0) & (counts < least)).any() else
                             f"{tested['patient_id'].nunique():,}",
        "versions": application.versions,
        "schema_sha256": file_sha256(args.out / bundle.SCHEMA),
    }  # fmt: skip


def metadata(
    name: str, params: HandoverParams, report: ReportFacts, application: bundle.Application, chosen: Chosen,
    metrics: list[card.Row], terms: list[card.Row],
) -> dict[str, Any]:  # fmt: skip
    """configs/metadata.json but for the hashes."""
    findings = ", ".join(application.findings)
    cited = "; ".join(sorted({row["citation"] or row["origin"] or row["site"] for row in terms}))
    return {
        "schema": SCHEMA_URL,
        "version": params.version,
        "changelog": {params.version: application.run},
        "monai_version": application.versions["monai"],
        "pytorch_version": application.versions["torch"],
        "numpy_version": application.versions["numpy"],
        "required_packages_version": {"torchvision": application.versions["torchvision"], **_REQUIRED},
        "name": name,
        "task": f"Tell whether an image shows: {findings}",
        "description": f"{report.title}. {application.run}. {report.notice} Research use only; see {bundle.CARD}.",
        "authors": params.authors or "not stated",
        "copyright": params.copyright or "not stated",
        "intended_use": params.intended_use or "the author must fill this in",
        "data_source": cited,
        "data_type": application.seen.kind,
        "pred_classes": f"one probability each of: {findings}",
        "eval_metrics": card.eval_metrics(metrics, report.min_cell),
        "network_data_format": network_data_format(chosen.card),
    }


if __name__ == "__main__":
    cli.run(main)
