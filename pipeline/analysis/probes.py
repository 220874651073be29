"""What can be read off features or cues: the hospital, the label inside one hospital, the label from a shortcut.

Each question is a logistic regression on standardised inputs, fitted out of fold with whole patients in one fold; its
AUROC has an interval by a bootstrap of patients, which takes the fits as given. Scores of several fits are pooled,
which costs a little AUROC (Parker et al. 2007, BMC Bioinformatics 8:326): the numbers err towards "cannot be read".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.metrics.binary import auroc
from pipeline.metrics.intervals import bootstrap, interval, over_seeds, patient_counts

Floats = npt.NDArray[np.float64]
Reals = npt.NDArray[np.floating[Any]]

LEAST_PATIENTS = 5  # of each class, and folds: one for each
_INVERSE_L2 = 0.01  # standardised embeddings have more columns than a small study has images

# What of a header is how an image was acquired, and what is how its file came about; text beside numbers.
FIELDS: dict[str, tuple[str, ...]] = {
    "acquisition": (
        "modality", "manufacturer", "model", "view_position", "body_part", "laterality", "orientation", "kvp",
        "row_spacing_mm", "column_spacing_mm", "imager_row_spacing_mm", "imager_column_spacing_mm",
        "slice_thickness_mm",
    ),
    "file": (
        "rows", "columns", "bits_stored", "samples_per_pixel", "photometric_interpretation", "transfer_syntax",
        "sop_class_uid", "lossy", "size_bytes",
    ),
}  # fmt: skip
_MOST_LEVELS = 50  # of a text; rarer terms count as none


@dataclass(frozen=True)
class Auroc:
    """AUROC with 95 % limits, of how many images and patients, the score behind it, and why there is none (NaN)."""

    value: float
    low: float
    high: float
    num_images: int
    num_patients: int
    scores: Floats
    note: str = ""

    @classmethod
    def none(cls, patients: npt.NDArray[Any], note: str) -> "Auroc":
        """Of images of these ``patients``, undefined for the reason in ``note``."""
        nan = float("nan")
        return cls(nan, nan, nan, len(patients), len(set(patients)), np.full(len(patients), nan), note)

    def row(self) -> dict[str, Any]:
        """Columns of ``tables.diagnosis.Probes``."""
        return {
            "auroc": self.value, "ci_low": self.low, "ci_high": self.high,
            "num_images": self.num_images, "num_patients": self.num_patients, "note": self.note,
        }  # fmt: skip


def auroc_of(
    labels: npt.NDArray[Any], scores: Floats, patients: npt.NDArray[Any], *, resamples: int, seed: int,
    weights: Floats | None = None,
) -> Auroc:  # fmt: skip
    """AUROC of given scores with an interval by a bootstrap of patients.

    Args:
        labels: (N,) 0 or 1.
        scores: (N,) float64.
        patients: (N,) names.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        weights: (N,) of the images; None for 1 each.
    """
    names, codes = np.unique(patients, return_inverse=True)
    fewest = min(len(np.unique(codes[labels == label])) for label in (0, 1)) if len(labels) else 0
    if not fewest:
        return Auroc.none(patients, "one class only" if len(labels) else "no labels")
    own = np.ones(len(labels)) if weights is None else weights
    value = auroc(labels, scores, own[None])[0]
    draws = bootstrap(
        lambda taken: auroc(labels, scores, taken * own), patient_counts(list(names), resamples, seed), codes
    )
    made = interval(over_seeds(np.array([value]), draws[None], fewest), "logit", exact=True)
    return Auroc(float(value), made.low, made.high, len(labels), len(names), scores, made.note)


def probe(
    features: Reals, labels: npt.NDArray[Any], patients: npt.NDArray[Any], *, resamples: int, seed: int,
    weights: Floats | None = None,
) -> Auroc:  # fmt: skip
    """AUROC of a label from features, out of fold by patient.

    Args:
        features: (N, D), finite.
        labels: (N,) 0 or 1.
        patients: (N,) names; one with both labels is in one fold all the same.
        resamples: of the bootstrap.
        seed: of folds and bootstrap.
        weights: (N,) of the images in fit and AUROC; None for 1 each, and classes of equal weight in the fit.
    """
    counts = [len(set(patients[labels == label])) for label in (0, 1)]
    if min(counts) < LEAST_PATIENTS:
        note = f"needs {LEAST_PATIENTS} patients of each class; there are {counts[1]} with and {counts[0]} without"
        return Auroc.none(patients, note)
    scores = np.full(len(labels), np.nan)
    folds = StratifiedGroupKFold(LEAST_PATIENTS, shuffle=True, random_state=seed)
    for train, held_out in folds.split(features, labels, groups=patients):
        if len(np.unique(labels[train])) < 2:
            return Auroc.none(patients, "one class only outside of a fold")
        model = make_pipeline(
            StandardScaler(), LogisticRegression(C=_INVERSE_L2, class_weight="balanced", max_iter=5000, tol=1e-6)
        )
        options = {} if weights is None else {"logisticregression__sample_weight": weights[train]}
        model.fit(features[train].astype(np.float64), labels[train], **options)
        scores[held_out] = model.decision_function(features[held_out].astype(np.float64))
    return auroc_of(labels, scores, patients, resamples=resamples, seed=seed, weights=weights)


def a_distance(labels: npt.NDArray[Any], scores: Floats) -> float:
    """Proxy A-distance 2 (1 - 2 error) of a site classifier (Ben-David et al. 2010, Mach Learn 79:151).

    The error is the mean of both sides', so that their sizes do not count. 0 is chance, a little below by chance too;
    2 is told apart without error. NaN where there are no scores.
    """
    if np.isnan(scores).any() or len(np.unique(labels)) < 2:
        return float("nan")
    error = np.mean([np.mean((scores[labels == label] > 0) != label) for label in (0, 1)])
    return float(2 * (1 - 2 * error))


def label_balanced(labels: npt.NDArray[Any], sites: npt.NDArray[Any]) -> Floats:
    """Weights (N,) by which both labels weigh the same in every site, and all sites the same; mean 1."""
    groups = pd.MultiIndex.from_arrays([sites, labels])
    sizes = pd.Series(1, index=groups).groupby(level=[0, 1]).sum()
    weights = 1.0 / sizes.loc[groups].to_numpy(np.float64)
    return np.asarray(weights / weights.mean() if len(weights) else weights)


def site_probes(
    features: Reals, labels: npt.NDArray[Any], sites: npt.NDArray[Any], patients: npt.NDArray[Any],
    *, resamples: int, seed: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of ``tables.diagnosis.Probes``: can features name a source hospital, and the label inside one?

    Args:
        features: (N, D) of the source sites' annotated images.
        labels: (N,) 0 or 1.
        sites: (N,) names.
        patients: (N,) names.
        resamples: of the bootstrap.
        seed: of folds and bootstrap.
    """
    rows: list[dict[str, Any]] = []
    options: dict[str, Any] = {"resamples": resamples, "seed": seed}
    names = np.unique(sites)
    mixed = [site for site in names if len(np.unique(labels[sites == site])) == 2]
    both = np.isin(sites, mixed)
    weights = label_balanced(labels[both], sites[both])
    inside = probe(features[both], labels[both], patients[both], weights=weights, **options)
    for site in names:
        here, those = sites[both] == site, sites == site
        if site in mixed and not np.isnan(inside.scores).any():
            found = auroc_of(labels[both][here], inside.scores[here], patients[both][here], **options)
        else:
            note = inside.note if site in mixed else "one class only"
            found = Auroc.none(patients[those], note)
        rows.append({"kind": "label_within_site", "site": site, **found.row()})
        if len(mixed) > 1 and site in mixed:
            named = probe(features[both], here.astype(np.int64), patients[both], weights=weights, **options)
        else:
            named = Auroc.none(patients[those], "needs two source sites with both labels")
        rows.append({"kind": "site", "site": site, **named.row()})
    return rows


def border_cues(images: npt.NDArray[np.uint8]) -> dict[str, Floats]:
    """Grey statistics of where no anatomy is looked for, by cue: (B, d) float64 of images (B, H, W).

    border: mean, standard deviation and maximum of four strips of 1/32 of the edge (at least one pixel).
    corners: the same of four squares of 1/8 of the edge, where side markers stand.
    """
    strip, square = max(1, images.shape[1] // 32), max(1, images.shape[1] // 8)
    strips = [images[:, :strip], images[:, -strip:], images[:, :, :strip], images[:, :, -strip:]]
    squares = [part[:, :, side] for part in (images[:, :square], images[:, -square:])
               for side in (slice(square), slice(-square, None))]  # fmt: skip
    return {"border": _statistics(strips), "corners": _statistics(squares)}


def header_cues(instances: pd.DataFrame) -> dict[str, Floats]:
    """Design matrices (N, d) by cue of ``FIELDS``: numbers with 0 and an indicator where null, a column a term."""
    cues = {}
    for cue, fields in FIELDS.items():
        columns = [np.zeros((len(instances), 1))]
        for field in fields:
            values = instances[field]
            if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
                numbers = values.astype("Float64").to_numpy(np.float64, na_value=np.nan)
                missing = np.isnan(numbers)
                middle = float(np.median(numbers[~missing])) if (~missing).any() else 0.0
                columns += [np.where(missing, middle, numbers)[:, None], missing[:, None].astype(np.float64)]
            else:
                terms = values.astype(object).where(values.notna(), "").astype(str).to_numpy()
                levels, counts = np.unique(terms, return_counts=True)
                kept = np.sort(levels[np.argsort(-counts, kind="stable")[:_MOST_LEVELS]])
                columns.append((terms[:, None] == kept).astype(np.float64))
        cues[cue] = np.concatenate(columns, axis=1)
    return cues


def shortcut_probes(
    cues: Mapping[str, Floats], labels: npt.NDArray[Any], patients: npt.NDArray[Any], *, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Rows of ``tables.diagnosis.Probes``: the label at home from each cue alone.

    Args:
        cues: by name (N, d).
        labels: (N,) 0 or 1.
        patients: (N,) names.
        resamples: of the bootstrap.
        seed: of folds and bootstrap.
    """
    rows = []
    for cue, values in sorted(cues.items()):
        if (values == values[:1]).all():
            found = Auroc.none(patients, "the cue is the same on all images")
        else:
            found = probe(values, labels, patients, resamples=resamples, seed=seed)
        rows.append({"kind": "shortcut", "cue": cue, **found.row()})
    return rows


def _statistics(parts: Sequence[npt.NDArray[np.uint8]]) -> Floats:
    return np.stack(
        [
            function(part.reshape(len(part), -1).astype(np.float64), axis=1)
            for part in parts
            for function in (np.mean, np.std, np.max)
        ],
        axis=1,
    )
