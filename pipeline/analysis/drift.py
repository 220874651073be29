"""Whether a known site's new images, which nobody has labelled, are still like its earlier ones.

Two things may drift: the images, seen in a backbone's embeddings (maximum mean discrepancy), and how often the model
says that a finding is there, seen in its calibrated probabilities (their mean). Each is tested by exchange of patients
between before and now, and p-values are adjusted after Holm over all tests of a run, so that without drift the level is
the chance of any alarm. That nothing is found says no more than that so many patients show nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.special import expit

from pipeline.analysis.covariate_shift import TwoSamples
from pipeline.analysis.label_shift import LEAST_PATIENTS, calibrated, compare_means
from pipeline.analysis.shift import holm, seed_of
from pipeline.params import Fraction, Seed, StrictParams

FloatArray = NDArray[np.float64]
RealArray = NDArray[np.floating[Any]]


class DriftParams(StrictParams):
    """Section ``drift``, which the command ``drift`` reads.

    ``model``: the backbone and method whose predictions are watched, as ``resnet18-full_finetune``. ``alpha``: the
    chance of an alarm where nothing has drifted, each time it is run: with 0.01 and a run a month, one in eight years.
    ``permutations``: of each test, at least.
    """

    model: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*-[a-z][a-z0-9_]*$")]
    seed: Seed
    alpha: Fraction = 0.01
    permutations: Annotated[int, Field(ge=99)] = 999


@dataclass(frozen=True)
class Sides:
    """Values of a site's earlier and new images, and their patients, none of whom is on both sides.

    Attributes:
        before: (N, D) or (N,).
        patients: (N,) names.
        now: (M, D) or (M,).
        patients_now: (M,) names.
    """

    before: RealArray
    patients: NDArray[Any]
    now: RealArray
    patients_now: NDArray[Any]

    @property
    def refusal(self) -> str:
        """Why nothing can be tested; "" where it can."""
        counts = {"before": len(set(self.patients.tolist())), "now": len(set(self.patients_now.tolist()))}
        few = [f"{number} {when}" for when, number in counts.items() if number < LEAST_PATIENTS]
        return f"needs {LEAST_PATIENTS} patients on each side; there are {', '.join(few)}" if few else ""


@dataclass(frozen=True)
class Check:
    """A test of one thing that may drift.

    ``before`` and ``now`` are the mean calibrated probabilities, NaN for embeddings; ``statistic`` is the squared
    discrepancy, or the difference of means; NaN where it cannot be tested (``note``).
    """

    kind: str
    subject: str
    before: float
    now: float
    statistic: float
    p_value: float
    p_holm: float
    drifted: bool
    note: str = ""


def drift_checks(embeddings: Mapping[str, Sides], scores: Mapping[str, Sides], params: DriftParams) -> list[Check]:
    """The tests, with Holm's adjustment over those that could be made.

    Args:
        embeddings: by backbone, values (N, D).
        scores: by finding, calibrated probabilities (N,) (``predicted``).
        params: the section.
    """
    number = len(embeddings) + len(scores)
    # The smallest p-value, 1 / (permutations + 1), must survive Holm's factor.
    permutations = max(params.permutations, int(np.ceil(2 * number / params.alpha)))
    none = float("nan")
    found: list[tuple[str, str, float, float, float, float, str]] = []
    for name, sides in embeddings.items():
        statistic, p = none, none
        if not sides.refusal:
            seed = seed_of(params.seed, "images", name)
            drawn = TwoSamples.of(sides.before, sides.now, sides.patients, sides.patients_now, seed)
            statistic, p = drawn.test(permutations)
        found.append(("images", name, none, none, statistic, p, sides.refusal))
    for name, sides in scores.items():
        means = [float(values.mean()) if len(values) else none for values in (sides.before, sides.now)]
        statistic, p = none, none
        if not sides.refusal:
            values = [side.astype(np.float64) for side in (sides.before, sides.now)]
            statistic, p = compare_means(
                values[0], sides.patients, values[1], sides.patients_now, permutations=permutations,
                seed=seed_of(params.seed, "prevalence", name),
            )  # fmt: skip
        found.append(("prevalence", name, means[0], means[1], statistic, p, sides.refusal))
    adjusted = holm([row[5] for row in found])
    return [
        Check(*row[:6], p_holm=float(p), drifted=bool(p <= params.alpha), note=row[6])
        for row, p in zip(found, adjusted, strict=True)
    ]


def predicted(logits: FloatArray, labels: NDArray[np.integer[Any]], others: FloatArray) -> FloatArray:
    """Calibrated probabilities (M,) of ``others``, by what labels of both classes say of ``logits`` (N,) at home."""
    return np.asarray(expit(calibrated(logits, labels, others)), dtype=np.float64)
