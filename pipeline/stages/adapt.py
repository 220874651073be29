"""Apply one remedy for domain shift to one backbone's models: fitted on target_adapt, a site at a time.

What is written are the plain predictions of the remedy's base method, with the adapted logits in place of the plain
ones where the remedy was applied: for a remedy of one site on its ood_test, for one of the sources everywhere.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from lightning.fabric import Fabric

from pipeline import cli
from pipeline.adaptation.interface import Case, Evidence, Outcome, Scores
from pipeline.errors import PipelineError
from pipeline.imaging.store import INDEX_FILE, Store
from pipeline.params import ParamsError, check_versions, load_names, load_params, nearest
from pipeline.splits import SplitParams
from pipeline.stages.finetune import FinetuneParams, Run, load_dataset, restrict
from pipeline.tables.adaptation import Remedies
from pipeline.tables.contract import plain_text, read_table, read_tables, write_table
from pipeline.tables.images import Images
from pipeline.tables.labels import Labels
from pipeline.tables.predictions import Predictions
from pipeline.tables.training import Samples
from pipeline.training.checkpoints import load_model, load_weights
from pipeline.training.determinism import ComputeParams, make_fabric, memory_format
from pipeline.training.engine import Engine
from pipeline.training.feed import Dataset
from pipeline.training.feed import Images as Pixels
from pipeline.training.loop import LoopParams, predict_logits

LEAST_ALIGNED = 2  # images of a target, of which a covariance or a batch can be made


def load_remedy(name: str) -> ModuleType:
    """The module ``pipeline/adaptation/NAME.py``.

    Raises:
        ParamsError: there is none.
    """
    files = (Path(__file__).parents[1] / "adaptation").glob("*.py")
    known = sorted({path.stem for path in files} - {"__init__", "interface", "prior"})
    if name not in known:
        raise ParamsError(f"remedies: unknown remedy '{name}'{nearest(name, known)}")
    return importlib.import_module(f"pipeline.adaptation.{name}")


def plain_runs(predictions: pd.DataFrame, backbone: str, base: str) -> dict[str, pd.DataFrame]:
    """The rows of each run with all labels of one backbone and method, by the run's name.

    Raises:
        PipelineError: there is none.
    """
    whole = (predictions["label_fraction"] == 1.0) & predictions["shots"].isna()
    own = (predictions["backbone"] == backbone) & (predictions["method"] == base)
    chosen = predictions[own & whole & (predictions["adaptation"] == "none")]
    if not len(chosen):
        raise PipelineError(
            f"no predictions of {backbone} by {base} with all labels, which the remedy is applied to or compared with; "
            "put 1.0 among finetune.label_fractions"
        )
    return {str(run): rows for run, rows in chosen.groupby("run", sort=True)}


def scores_of(rows: pd.DataFrame, labels: pd.DataFrame) -> Scores:
    """One finding's rows, by image_id, with the labels that are given: (image_id, finding, label)."""
    joined = rows.merge(labels, on=["image_id", "finding"], how="left").sort_values("image_id")
    return Scores(
        joined["logit"].to_numpy(np.float64),
        joined["label"].astype("Float64").to_numpy(np.float64, na_value=np.nan),
        joined["patient_id"].to_numpy(str),
    )


def evidence_of(
    rows: pd.DataFrame, site: str, findings: list[str], source_labels: pd.DataFrame, target_labels: pd.DataFrame
) -> list[Evidence]:
    """Of one run and target site, one a finding."""
    found = []
    for finding in findings:
        own = rows[rows["finding"] == finding]
        away = own[(own["split"] == "target_adapt") & (own["site"] == site)]
        found.append(
            Evidence(
                site,
                finding,
                scores_of(own[own["split"] == "id_val"], source_labels),
                scores_of(away, target_labels),
            )
        )
    return found


def replace_logits(
    rows: pd.DataFrame, image_ids: npt.NDArray[np.str_], findings: list[str], logits: npt.NDArray[np.floating[Any]]
) -> pd.DataFrame:
    """The rows with other logits (len(image_ids), findings) for these images."""
    keys = pd.MultiIndex.from_product([image_ids, findings], names=["image_id", "finding"])
    fresh = pd.Series(logits.astype(np.float64).ravel(), index=keys)
    here = rows["image_id"].isin(image_ids)
    wanted = pd.MultiIndex.from_frame(rows.loc[here, ["image_id", "finding"]].astype(object))
    return rows.assign(logit=rows["logit"].mask(here, fresh.reindex(wanted).set_axis(rows.index[here])))


class Study:
    """What all runs of the job share: images by site, labels of the source's, and the device.

    Of labels it reads what ``gather`` left (train and id_val of the source), and no target's.
    """

    def __init__(self, args: Any, split: SplitParams, compute: ComputeParams) -> None:
        self.args, self.split, self.compute = args, split, compute
        self.fabric: Fabric = make_fabric(compute)
        self.layout = memory_format(compute)
        self.stores = {site: Store(args.images / site) for site in split.sites}
        self.places = {
            site: read_table(Images, args.images / site / INDEX_FILE).set_index("image_id")["array_index"]
            for site in split.sites
        }
        self.source_labels = read_table(Labels, args.gather / "labels.parquet").drop(columns="status")
        self.data: Dataset
        self.findings: list[str]
        self.data, self.findings = load_dataset(args.gather)
        samples = read_table(Samples, args.gather / "samples.parquet").sort_values("array_index")
        self.sites = samples["site"].to_numpy(str)

    def images_of(self, rows: pd.DataFrame, site: str, *splits: str) -> tuple[npt.NDArray[np.str_], Any]:
        """image_id and array_index of a site's images in these splits, by image_id."""
        own = rows[(rows["site"] == site) & rows["split"].isin(splits)]
        names = np.unique(own["image_id"].to_numpy(str))
        return names, self.places[site].loc[names].to_numpy(np.int64)

    def labels_for(self, rows: pd.DataFrame, site: str, params: Any) -> pd.DataFrame:
        """What a remedy may know of target_adapt: labels for a few-label remedy, nothing for the others."""
        none = self.source_labels.iloc[:0]
        if not hasattr(params, "labelled_images"):
            return none
        labels = read_table(Labels, self.args.labels / site / "labels.parquet").drop(columns="status")
        return labels[labels["image_id"].isin(self.images_of(rows, site, "target_adapt")[0])]

    def logits(self, model: Any, images: Pixels, indices: Any) -> npt.NDArray[np.float32]:
        """(len(indices), findings) of a model on the device."""
        return predict_logits(self.fabric, model, images, indices, self.compute.batch_size, self.layout)

    def engine(self, run: Run, finetune: FinetuneParams, description: str) -> Engine:
        """As plain fine-tuning of that run would have it."""
        state, card = load_weights(self.args.weights)
        if card["backbone"] != run.backbone:
            raise PipelineError(f"{self.args.weights} holds weights of {card['backbone']}, not of {run.backbone}")
        none = np.empty((0, 0), np.float32)
        return Engine(
            fabric=self.fabric,
            backbone=run.backbone,
            weights=state,
            findings=self.findings,
            data=restrict(self.data, run, finetune),
            features=none,
            pooled=none,
            loop=LoopParams(**{name: getattr(finetune, name) for name in LoopParams.model_fields}),
            seed=run.seed,
            layout=self.layout,
            description=description,
        )


Step = tuple[str, int, list[Outcome], pd.DataFrame]


def recalibrated(study: Study, remedy: ModuleType, params: Any, rows: pd.DataFrame, site: str) -> Step:
    """A remedy on logits, for one run and site: site, images seen, outcomes, and the rows after it."""
    labels = study.labels_for(rows, site, params)
    outcomes = []
    for evidence in evidence_of(rows, site, study.findings, study.source_labels, labels):
        outcome = remedy.recalibrate(evidence, params)
        outcomes.append(outcome)
        if outcome.decision != "refused":
            here = (rows["site"] == site) & (rows["split"] == "ood_test") & (rows["finding"] == evidence.finding)
            rows = rows.assign(logit=rows["logit"].mask(here, outcome.slope * rows["logit"] + outcome.intercept))
    return site, len(evidence.target.logits), outcomes, rows


def adapted(study: Study, remedy: ModuleType, params: Any, rows: pd.DataFrame, site: str) -> Step:
    """A remedy on a trained model or its images; as ``recalibrated``."""
    _, indices = study.images_of(rows, site, "target_adapt")
    first = rows.iloc[0]
    folder = study.args.models / f"{first['backbone']}-{first['method']}" / first["run"]
    model = load_model(folder)[0].to(memory_format=study.layout).to(study.fabric.device)
    evidence = evidence_of(rows, site, study.findings, study.source_labels, study.labels_for(rows, site, params))
    case = Case(
        study.fabric, study.layout, study.compute.batch_size, model, study.stores[site], indices,
        study.data.images, study.data.train, evidence,
    )  # fmt: skip
    found = remedy.adapt(case, params)
    names, tested = study.images_of(rows, site, "ood_test")
    if len(names) and any(outcome.decision != "refused" for outcome in found.outcomes):
        rows = replace_logits(rows, names, study.findings, study.logits(found.model, found.images, tested))
    return site, len(indices), found.outcomes, rows


def aligned(
    study: Study, remedy: ModuleType, params: Any, rows: pd.DataFrame, site: str, finetune: FinetuneParams
) -> Step:
    """A remedy that trains with images of the target; as ``recalibrated``."""
    _, indices = study.images_of(rows, site, "target_adapt")
    if len(indices) < LEAST_ALIGNED:
        note = f"{len(indices)} images in target_adapt; training needs {LEAST_ALIGNED}"
        return site, len(indices), [Outcome("refused", note)] * len(study.findings), rows
    run = run_of(rows)
    engine = study.engine(run, finetune, f"{run.name} {remedy.__name__.rpartition('.')[2]} {site}")
    model, note = remedy.align(engine, study.stores[site], indices, params)
    names, tested = study.images_of(rows, site, "ood_test")
    if len(names):
        rows = replace_logits(rows, names, study.findings, study.logits(model, study.stores[site], tested))
    return site, len(indices), [Outcome("applied", note)] * len(study.findings), rows


def steps(
    study: Study, remedy: ModuleType, params: Any, rows: pd.DataFrame, finetune: FinetuneParams
) -> Iterator[Step]:
    """What a remedy does for one run, a site at a time."""
    if hasattr(remedy, "fit"):  # of the sources: one model for all sites
        run = run_of(rows)
        engine = study.engine(run, finetune, f"{run.name} {remedy.__name__.rpartition('.')[2]}")
        model, note = remedy.fit(engine, study.sites, params)
        for site in study.split.sites:
            names, indices = study.images_of(rows, site, "id_val", "id_test", "ood_test")
            if len(names):
                logits = study.logits(model, study.stores[site], indices)
                rows = replace_logits(rows, names, study.findings, logits)
            yield site, 0, [Outcome("applied", note)] * len(study.findings), rows
        return
    for site in study.split.target:
        if not len(study.images_of(rows, site, "target_adapt")[0]):
            none = Outcome("refused", "no image in target_adapt")
            step: Step = site, 0, [none] * len(study.findings), rows
        elif hasattr(remedy, "recalibrate"):
            step = recalibrated(study, remedy, params, rows, site)
        elif hasattr(remedy, "adapt"):
            step = adapted(study, remedy, params, rows, site)
        else:
            step = aligned(study, remedy, params, rows, site, finetune)
        rows = step[-1]
        yield step


def run_of(rows: pd.DataFrame) -> Run:
    """The run that rows of predictions are of."""
    first = rows.iloc[0]
    return Run(first["backbone"], first["method"], int(first["seed"]), 1.0, int(first["draw"]))


def main() -> None:
    """Run the stage."""
    arguments = cli.parser(
        __doc__,
        images="the folder of all sites' preprocess",
        labels="the folder of all sites' labels",
        gather="the folder of gather",
        weights="the backbone's folder of weights",
        models="the folder of all finetune outputs",
        predict="the folder of predict",
        out="folder for predictions and remedies",
    )
    arguments.add_argument("--backbone", required=True)
    arguments.add_argument("--remedy", required=True)
    args = arguments.parse_args()
    check_versions("monai", "numpy", "scipy", "torch", "torchvision", path=args.params)
    remedy = load_remedy(args.remedy)
    params = load_params(remedy.Params, f"remedies.{args.remedy}", args.params)
    methods = load_names("methods", args.params)
    if params.base not in methods:
        raise ParamsError(
            f"remedies.{args.remedy}.base: no method '{params.base}' under methods{nearest(params.base, methods)}"
        )
    split = load_params(SplitParams, "split", args.params)
    finetune = load_params(FinetuneParams, "finetune", args.params)
    study = Study(args, split, load_params(ComputeParams, "compute", args.params))
    # Its labels are let go at once; those of the tests are read at the end.
    plain_rows = plain_text(read_table(Predictions, args.predict / "predictions.parquet").drop(columns="label"))
    runs = plain_runs(plain_rows, args.backbone, params.base)
    trained = not hasattr(remedy, "recalibrate") and not hasattr(remedy, "adapt")
    frames, told = [], []
    for run, plain in runs.items():
        rows, name = plain, f"{run}-adapt_{args.remedy}"
        for site, count, outcomes, after in steps(study, remedy, params, plain, finetune):
            rows = after
            told += [
                {
                    "run": name,
                    "site": site,
                    "finding": finding,
                    "remedy": args.remedy,
                    "num_adapt_images": count,
                    "selection": "source validation" if trained and outcome.decision != "refused" else None,
                    **vars(outcome),
                }
                for finding, outcome in zip(study.findings, outcomes, strict=True)
            ]
        frames.append(rows[rows["split"] != "target_adapt"].assign(run=name, adaptation=args.remedy))
    write_table(Remedies, told, args.out / "remedies.parquet")
    predictions = pd.concat(frames)
    logits = predictions["logit"].to_numpy(np.float64)
    labels = read_tables(Labels, [args.labels / site / "labels.parquet" for site in split.sites])
    predictions = predictions.assign(probability=np.exp(-np.logaddexp(0.0, -logits))).merge(
        labels.drop(columns="status"), on=["image_id", "finding"], how="left"
    )
    write_table(Predictions, predictions, args.out / "predictions.parquet")
    done = sum(row["decision"] != "refused" for row in told)
    print(f"{len(runs)} runs; {done} of {len(told)} applied")


if __name__ == "__main__":
    cli.run(main)
