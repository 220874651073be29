"""All of the diagnosis, from features, scores, labels and cues to tables; ``analysis.shift`` and others do the work."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipeline.analysis import outlying, probes
from pipeline.analysis.label_shift import Scores
from pipeline.analysis.shift import DiagnoseParams, Embeddings, Model, diagnose_site
from pipeline.embedded import Features
from pipeline.errors import PipelineError
from pipeline.metrics.binary import threshold_at_specificity
from pipeline.splits import SplitParams
from pipeline.tables.contract import Table, make_table
from pipeline.tables.diagnosis import Abstention, Diagnoses, Outlyingness, Probes, ShiftTests

_HOME = ("id_val", "id_test")


@dataclass(frozen=True)
class Cues:
    """What the shortcut audit sees of the source sites' images.

    Attributes:
        images: image_id and patient_id, a row an image.
        values: by cue (N, d) float64, in the same order.
    """

    images: pd.DataFrame
    values: Mapping[str, npt.NDArray[np.float64]]


def diagnose(
    features: Mapping[str, Features],
    logits: pd.DataFrame,
    home: Mapping[str, pd.Series],
    away: Mapping[str, pd.Series] | None,
    cues: Cues,
    sides: SplitParams,
    params: DiagnoseParams,
) -> dict[str, tuple[type[Table], pd.DataFrame]]:
    """All tables with their contracts, by the name of their file.

    Args:
        features: by backbone.
        logits: as ``mean_logits``.
        home: the source sites' labels, as ``by_finding``.
        away: the target_adapt images' labels; None where they may not be looked at.
        cues: of the source sites.
        sides: which sites are source and which target.
        params: the section.
    """
    models: dict[Model, pd.DataFrame] = {
        (str(finding), str(backbone), str(method)): rows
        for (finding, backbone, method), rows in logits.groupby(["finding", "backbone", "method"], sort=True)
    }
    options = {"resamples": params.resamples, "seed": params.seed}
    diagnoses, tests = [], []
    for site in sides.target:
        embeddings = {name: embeddings_of(own, site) for name, own in features.items()}
        scores = {
            model: scores_of(rows, site, None if away is None else away.get(model[0], pd.Series(dtype="Int8")))
            for model, rows in models.items()
        }
        made = diagnose_site(site, embeddings, scores, home, params)
        diagnoses.append(made[0])
        tests.append(made[1])
    answered = _shortcuts(cues, home, options)
    outlyingness: dict[Model, pd.Series] = {}
    for backbone, own in features.items():
        answered += _of_backbone(backbone, own, home, sides, options)
        train = own.array[(own.index["split"] == "train").to_numpy(bool)]
        if len(train) > 1:
            distances = outlying.mahalanobis(train, own.array)
            outlyingness["", backbone, ""] = pd.Series(distances, index=own.index["image_id"])
    abstained = []
    for model, rows in models.items():
        outlyingness[model] = pd.Series(outlying.energy(rows["logit"].to_numpy(float)), index=rows["image_id"])
        for score, key in (("mahalanobis", ("", model[1], "")), ("energy", model)):
            if key in outlyingness:
                made_rows = _abstentions(rows, outlyingness[key], sides, params)
                abstained += [{**_named(model), "score": score, **row} for row in made_rows]
    columns = ["image_id", "patient_id", "site", "split"]
    known = pd.concat([logits[columns], *(own.index[columns] for own in features.values())])
    places = known.drop_duplicates("image_id").set_index("image_id")
    far = []
    for model, values in outlyingness.items():
        score = "energy" if model[0] else "mahalanobis"
        rows = places.loc[values.index].assign(value=values.to_numpy()).reset_index()
        far.append(rows.drop(columns="patient_id").assign(score=score, **_named(model)))
        answered += [{**_named(model), "cue": score, **row} for row in _out_of_distribution(rows, sides, options)]
    return {
        "diagnoses": (Diagnoses, pd.concat(diagnoses, ignore_index=True)),
        "tests": (ShiftTests, pd.concat(tests, ignore_index=True)),
        "probes": (Probes, make_table(Probes, answered)),
        "outlyingness": (Outlyingness, make_table(Outlyingness, pd.concat(far) if far else [])),
        "abstention": (Abstention, make_table(Abstention, abstained)),
    }


def mean_logits(predictions: pd.DataFrame) -> pd.DataFrame:
    """One row an image, finding, backbone and method: the mean logit of the runs with the most labels.

    Args:
        predictions: rows of ``tables.predictions.Predictions``; adapted models are left out.

    Raises:
        PipelineError: a row twice, a logit that is not finite, or a probability outside of [0, 1]; says how often.
    """
    odds, chance = (predictions[name].to_numpy(np.float64, na_value=np.nan) for name in ("logit", "probability"))
    faults = {
        "run, finding and image_id must be unique": predictions.duplicated(["run", "finding", "image_id"]),
        "logit must be finite": ~np.isfinite(odds),
        "probability must lie in [0, 1]": ~((chance >= 0) & (chance <= 1)),
    }
    for constraint, bad in faults.items():
        if number := int(np.asarray(bad, dtype=bool).sum()):
            raise PipelineError(f"predictions: {constraint}; {number} of {len(predictions)} rows are not so")
    plain = predictions[predictions["adaptation"].fillna("none") == "none"]
    shots = plain["shots"].astype("Float64").fillna(np.inf).astype(float)
    budget = plain.assign(_fraction=plain["label_fraction"].fillna(1.0), _shots=shots)
    for column in ("_fraction", "_shots"):
        most = budget.groupby(["finding", "backbone", "method"])[column].transform("max")
        budget = budget[budget[column] == most]
    keys = ["finding", "backbone", "method", "image_id", "patient_id", "site", "split"]
    together = budget.assign(label=budget["label"].astype("Float64").astype(float)).groupby(keys, as_index=False)
    return together.agg(logit=("logit", "mean"), label=("label", "first"))


def scores_of(own: pd.DataFrame, site: str, target_labels: pd.Series | None) -> Scores:
    """A model's logits at home (id_val, id_test, annotated) and in a site's target_adapt.

    Args:
        own: rows of ``mean_logits`` of one model.
        site: the target.
        target_labels: by image_id; None where they may not be looked at.
    """
    home = own[own["split"].isin(["id_val", "id_test"]) & own["label"].notna()]
    there = own[(own["split"] == "target_adapt") & (own["site"] == site)]
    known = None if target_labels is None else _numbers(target_labels.reindex(there["image_id"]))
    return Scores(
        home["logit"].to_numpy(float),
        home["label"].to_numpy(np.int64),
        home["patient_id"].to_numpy(object),
        there["logit"].to_numpy(float),
        there["patient_id"].to_numpy(object),
        known,
        home["image_id"].to_numpy(object),
        there["image_id"].to_numpy(object),
    )


def by_finding(labels: pd.DataFrame) -> dict[str, pd.Series]:
    """0, 1 or null by image_id, for each finding in alphabetical order, of ``tables.labels.Labels``."""
    return {str(name): rows.set_index("image_id")["label"] for name, rows in labels.groupby("finding", sort=True)}


def embeddings_of(features: Features, site: str) -> Embeddings:
    """A backbone's features of all source images and of a site's target_adapt."""
    index = features.index
    there = ((index["site"] == site) & (index["split"] == "target_adapt")).to_numpy(bool)
    home = index["split"].isin(["train", *_HOME]).to_numpy(bool)
    patients, names = index["patient_id"].to_numpy(object), index["image_id"].to_numpy(object)
    return Embeddings(
        features.array[home], names[home], patients[home], features.array[there], patients[there], names[there]
    )


def _of_backbone(
    backbone: str, features: Features, home: Mapping[str, pd.Series], sides: SplitParams, options: dict[str, int]
) -> list[dict[str, Any]]:
    """Rows of ``Probes``: the source against each target's target_adapt, and the source sites among themselves."""
    rows: list[dict[str, Any]] = []
    blank = {**_named(("", backbone, "")), "cue": ""}
    for site in sides.target:
        own = embeddings_of(features, site)
        side = np.repeat([0, 1], [len(own.source), len(own.target)])
        patients = np.concatenate([own.patients, own.target_patients])
        found = probes.probe(
            np.concatenate([own.source, own.target]),
            side,
            patients,
            resamples=options["resamples"],
            seed=options["seed"],
        )
        distance = probes.a_distance(side, found.scores)
        rows.append({**blank, "kind": "domain", "site": site, **found.row(), "a_distance": distance})
    for finding, labels in home.items():
        known = _numbers(labels.reindex(features.index["image_id"]))
        kept = features.index["site"].isin(sides.source).to_numpy(bool) & ~np.isnan(known)
        sites, patients = (features.index.loc[kept, name].to_numpy(object) for name in ("site", "patient_id"))
        made = probes.site_probes(features.array[kept], known[kept].astype(np.int64), sites, patients, **options)
        rows += [{**blank, "finding": finding, **row} for row in made]
    return rows


def _shortcuts(cues: Cues, home: Mapping[str, pd.Series], options: dict[str, int]) -> list[dict[str, Any]]:
    """Rows of ``Probes``: each finding at home from each cue alone."""
    rows: list[dict[str, Any]] = []
    for finding, labels in home.items():
        known = _numbers(labels.reindex(cues.images["image_id"]))
        kept = ~np.isnan(known)
        chosen = {cue: values[kept] for cue, values in cues.values.items()}
        patients = cues.images.loc[kept, "patient_id"].to_numpy(object)
        made = probes.shortcut_probes(chosen, known[kept].astype(np.int64), patients, **options)
        rows += [{**_named((finding, "", "")), "site": "", **row} for row in made]
    return rows


def _abstentions(
    rows: pd.DataFrame, outlyingness: pd.Series, sides: SplitParams, params: DiagnoseParams
) -> list[dict[str, Any]]:
    """Rows of ``Abstention`` of one model and score: each source site's id_test and each target's ood_test."""
    val = rows[(rows["split"] == "id_val") & rows["label"].notna()]
    threshold, _ = threshold_at_specificity(
        val["label"].to_numpy(np.int64), val["logit"].to_numpy(float), params.specificity
    )
    made = []
    for site in sides.sites:
        tested = rows[(rows["site"] == site) & rows["split"].isin(["id_test", "ood_test"])]
        found = outlying.abstention(
            outlyingness.reindex(tested["image_id"]).to_numpy(float), tested["logit"].to_numpy(float),
            tested["label"].to_numpy(float), tested["patient_id"].to_numpy(object), threshold,
            resamples=params.resamples, seed=params.seed,
        )  # fmt: skip
        made += [{"site": site, **row} for row in found]
    return made


def _out_of_distribution(far: pd.DataFrame, sides: SplitParams, options: dict[str, int]) -> list[dict[str, Any]]:
    """Rows of ``Probes``: AUROC of one score, the source's id_test against each target."""
    rows = []
    for site in sides.target:
        chosen = far[(far["split"] == "id_test") | (far["site"] == site)]
        side = (chosen["site"] == site).to_numpy(np.int64)
        patients = chosen["patient_id"].to_numpy(object)
        found = probes.auroc_of(
            side, chosen["value"].to_numpy(float), patients, resamples=options["resamples"], seed=options["seed"]
        )
        rows.append({"kind": "out_of_distribution", "site": site, **found.row()})
    return rows


def _named(model: Model) -> dict[str, str]:
    return dict(zip(("finding", "backbone", "method"), model, strict=True))


def _numbers(labels: pd.Series) -> npt.NDArray[np.float64]:
    return np.asarray(labels.astype("Float64").to_numpy(np.float64, na_value=np.nan))
