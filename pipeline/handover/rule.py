"""From a model's logits and an image's distance to a call, or to none: one rule, fixed on the source's id_val.

Distance is Mahalanobis' in the features that the model's own head sees, of mean and covariance of the images it was
trained on, the covariance shrunk (Ledoit & Wolf 2004, J Multivar Anal 88:365); no label is used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import logit
from sklearn.covariance import LedoitWolf

from pipeline.analysis.aggregate import Aggregation
from pipeline.params import StrictParams
from pipeline.tables.handover import ABSTENTIONS

Floats = npt.NDArray[np.float64]
Reals = npt.NDArray[np.floating[Any]]

_MOST_ROWS = 20_000  # of training images; of 2,048 features, 330 MB


@dataclass(frozen=True)
class Reference:
    """Where the training images lie: mean (D,) and inverse covariance (D, D) of their features, float64."""

    mean: Floats
    precision: Floats

    def distance(self, features: Reals) -> Floats:
        """How far each of (N, D) lies from there, (N,) in standard deviations."""
        centred = features.astype(np.float64) - self.mean
        return np.asarray(np.sqrt(np.maximum(np.einsum("nd,nd->n", centred @ self.precision, centred), 0.0)))


def fit_reference(features: Reals) -> Reference:
    """From the features (M, D) of M > 1 training images, of at most ``_MOST_ROWS`` evenly spaced ones.

    Raises:
        ValueError: fewer than two.
    """
    if len(features) < 2:
        raise ValueError(f"a reference needs two images; got {len(features)}")
    rows = features[:: max(1, -(-len(features) // _MOST_ROWS))].astype(np.float64)
    model = LedoitWolf(store_precision=True).fit(rows)
    # A tie of all images in all features has no spread, and its inverse no value: then nothing else is alike.
    if not np.isfinite(model.precision_).all():
        raise ValueError("all training images have the same features")
    return Reference(model.location_, (model.precision_ + model.precision_.T) / 2)


class Rule(StrictParams):
    """When the model calls, and what.

    Attributes:
        unit: what is called, an image or a study.
        aggregate: how a study's logits come together.
        distance_limit: a case with an image beyond it is out of distribution.
        thresholds: per finding on the probability; None where it is undefined.
        margins: per finding; a case whose logit is nearer to the threshold's than that is not called.
    """

    unit: Literal["image", "study"]
    aggregate: Aggregation
    distance_limit: float
    thresholds: dict[str, float | None]
    margins: dict[str, float]


def to_cases(rows: pd.DataFrame, unit: str, aggregate: Aggregation) -> pd.DataFrame:
    """What is called, brought to each of its images.

    Args:
        rows: image_id, study_id, finding, logit, distance; one an image and finding.
        unit: "image" or "study".
        aggregate: of the logits; of distances the largest counts.

    Returns:
        ``rows`` with ``case`` (its name), ``unit_logit`` and ``unit_distance``.
    """
    rows = rows.assign(case=rows["study_id" if unit == "study" else "image_id"])
    groups = rows.groupby(["case", "finding"], sort=False)
    return rows.assign(
        unit_logit=groups["logit"].transform(aggregate), unit_distance=groups["distance"].transform("max")
    )


def probability_of(logits: Floats) -> Floats:
    """The sigmoid, to full relative precision at both ends, as ``predict`` writes it."""
    return np.asarray(np.exp(-np.logaddexp(0.0, -logits)))


def decide(rows: pd.DataFrame, rule: Rule) -> pd.DataFrame:
    """``to_cases``, with probabilities and what the rule makes of them, as ``tables.handover.Applied`` has them."""
    cases = to_cases(rows, rule.unit, rule.aggregate)
    threshold = cases["finding"].map(rule.thresholds).astype(float).to_numpy()
    logits = cases["unit_logit"].to_numpy(float)
    far = cases["unit_distance"].to_numpy(float) > rule.distance_limit
    margins = cases["finding"].map(rule.margins).astype(float).to_numpy()
    near = _gaps(logits, threshold) < margins
    because = np.select([np.isnan(threshold), far, near], ABSTENTIONS, default="").astype(object)
    because[because == ""] = None
    called = np.where(probability_of(logits) >= threshold, "positive", "negative").astype(object)
    abstained = np.array([reason is not None for reason in because], dtype=bool)
    called[abstained] = None
    return cases.assign(
        probability=probability_of(cases["logit"].to_numpy(float)),
        unit_probability=probability_of(logits),
        threshold=threshold,
        call=called,
        abstained=abstained,
        abstained_because=because,
        distance_limit=rule.distance_limit,
        out_of_distribution=far,
    )


def fix_rule(
    selecting: pd.DataFrame, thresholds: Mapping[str, float | None], *, unit: Literal["image", "study"],
    aggregate: Aggregation, in_distribution: float, undecided: float,
) -> Rule:  # fmt: skip
    """The rule that leaves these shares of the source's id_val cases.

    Args:
        selecting: as for ``to_cases``, the source's id_val images.
        thresholds: per finding.
        unit: see ``Rule``.
        aggregate: see ``Rule``.
        in_distribution: share of the cases that are not beyond the distance's limit, at least.
        undecided: share of the cases that are nearer to the threshold than the margin, at most.

    Raises:
        ValueError: there is no such image.
    """
    if not len(selecting):
        raise ValueError("no image of the source's id_val to fix a rule on")
    cases = to_cases(selecting, unit, aggregate)
    of_case = cases.drop_duplicates("case")["unit_distance"].to_numpy(float)
    limit = float(np.quantile(of_case, in_distribution, method="higher"))
    margins = {}
    for finding, rows in cases.drop_duplicates(["case", "finding"]).groupby("finding", sort=True):
        value = thresholds[str(finding)]
        nearer = int(undecided * len(rows) + 1e-9)
        margins[str(finding)] = 0.0
        if nearer and value is not None:
            gap = np.sort(_gaps(rows["unit_logit"].to_numpy(float), np.full(len(rows), value)))[nearer]
            margins[str(finding)] = float(gap) if np.isfinite(gap) else 0.0  # infinite: no probability reaches it
    return Rule(unit=unit, aggregate=aggregate, distance_limit=limit, thresholds=dict(thresholds), margins=margins)


def _gaps(logits: Floats, thresholds: Floats) -> Floats:
    """Distance of logits from the threshold's; infinite from a threshold that no probability reaches."""
    inside = np.clip(thresholds, 0.0, 1.0)
    return np.asarray(np.abs(logits - logit(inside)))
