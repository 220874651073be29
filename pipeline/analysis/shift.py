"""What a target hospital's data is compatible with: no shift, label shift only, covariate shift only, or both.

Two words only. A hypothesis is *rejected* where a test of it has a p-value, after Holm over the site's tests of that
hypothesis (Holm 1979), of at most alpha; else it is *compatible*; *undetermined* where no test can be made. Several
hypotheses are compatible at once, more the less data there is: no kind of shift is ever named as the cause.

- no_shift: images and labels have one distribution. Tests: maximum mean discrepancy of the frozen backbone's
  embeddings (``embedding_mmd``), mean calibrated score of the model (``mean_score``). Exact permutation tests.
- label_shift_only: p(x | y) is the source's, the prevalence is not. Source images are drawn by label so that they
  have the target's estimated prevalence; embeddings and scores must then be alike (``matched_embedding_mmd``,
  ``matched_score_mmd``). The prevalence being estimated, the p-value is the largest over its confidence set plus the
  chance that the set misses (Berger & Boos 1994, JASA 89:1012).
- covariate_shift_only: p(y | x) is the source's. Without target labels any change of the images is compatible with
  it, and nothing rejects it. With them: label given logit as at home (``label_given_score``). A score is less than an
  image: it may also change its meaning because p(x) did.
- label_and_covariate_shift: without labels nothing rejects it. With them: label given logit as at home but for a
  constant, which is all that a change of prevalence does to log odds (``slope_given_score``).

What a hypothesis implies is tested with it: with target labels ``label_given_score`` is a test of no_shift too, and
``slope_given_score`` one of label_shift_only. Each hypothesis has its own correction, so that a weaker one may be
rejected where a stronger one just is not.

Concept shift, a change of p(y | x) itself, cannot be identified without labels; rejection of the last two says that
something is left which neither correction explains.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field

from pipeline.analysis.covariate_shift import TwoSamples
from pipeline.analysis.label_given_score import LineChange, line_change
from pipeline.analysis.label_shift import (
    LEAST_PATIENTS,
    PrevalenceEstimate,
    Scores,
    compare_prevalence,
    estimate_prevalence,
)
from pipeline.params import Fraction, Seed, StrictParams
from pipeline.tables.contract import make_table
from pipeline.tables.diagnosis import HYPOTHESES, Diagnoses, ShiftTests

FloatArray = NDArray[np.float64]
RealArray = NDArray[np.floating[Any]]

Model = tuple[str, str, str]  # finding, backbone, method

_TESTS_PER_MODEL = 3  # of one hypothesis, at most
_NAN = float("nan")
_NOTES = {
    "covariate_shift_only": "without target labels nothing can reject it: any change of the images is compatible",
    "label_and_covariate_shift": "without target labels nothing can reject it",
}


class DiagnoseParams(StrictParams):
    """Section ``diagnose``.

    ``permutations``: of each test, at least; more where Holm's correction could else never reject. ``alpha``: chance
    of a shift claimed at a site that has none. ``use_target_labels``: look at the labels of target_adapt.
    ``specificity``: of the threshold at which abstention counts sensitivity.
    """

    permutations: int = Field(default=500, ge=99)
    seed: Seed
    alpha: Fraction = 0.05
    resamples: int = Field(default=1000, ge=100)
    use_target_labels: bool = False
    specificity: Fraction = 0.9


@dataclass(frozen=True)
class Embeddings:
    """A backbone's features of the source and of one target site.

    Attributes:
        source: (N, D) float.
        source_ids: (N,) image_id.
        patients: (N,) names.
        target: (M, D) float.
        target_patients: (M,) names.
    """

    source: RealArray
    source_ids: NDArray[Any]
    patients: NDArray[Any]
    target: RealArray
    target_patients: NDArray[Any]


def seed_of(seed: int, *names: str) -> int:
    """A seed that hangs on these names alone: another site or method changes no one else's lot."""
    return int.from_bytes(hashlib.sha256("|".join((str(seed), *names)).encode()).digest()[:4], "big")


def holm(p_values: Sequence[float]) -> FloatArray:
    """Adjusted p-values (Holm 1979, Scand J Stat 6:65); NaN stays NaN and counts for nothing."""
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")[: int(np.isfinite(values).sum())]
    adjusted = np.full(len(values), np.nan)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1)))
    return adjusted


def diagnose_site(
    site: str,
    embeddings: Mapping[str, Embeddings],
    scores: Mapping[Model, Scores],
    labels: Mapping[str, pd.Series],
    params: DiagnoseParams,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All hypotheses about one target site, for each model, and the tests behind them.

    Args:
        site: the target's name.
        embeddings: by backbone.
        scores: by finding, backbone and method.
        labels: by finding, the source's 0 or 1 by image_id; null is left out.
        params: the section.

    Returns:
        ``tables.diagnosis.Diagnoses`` and ``tables.diagnosis.ShiftTests``.
    """
    family = _TESTS_PER_MODEL * len(scores) + len(embeddings)
    # The smallest p-value, 1 / (permutations + 1), and the confidence set's part must survive Holm's factor.
    permutations = max(params.permutations, int(np.ceil(2 * family / params.alpha)))
    gamma = params.alpha / (10 * max(family, 1))
    tests: list[dict[str, Any]] = []
    estimates: dict[Model, PrevalenceEstimate] = {}
    lines: dict[Model, LineChange] = {}
    patients = {("", name, ""): len(set(own.target_patients)) for name, own in embeddings.items()}
    patients |= {model: len(set(own.target_patients)) for model, own in scores.items()}

    def add(model: Model, hypothesis: str, test: str, found: tuple[float, float], note: str = "") -> None:
        named = dict(zip(("finding", "backbone", "method"), model, strict=True))
        result = {"statistic": found[0], "p_value": found[1], "num_patients": patients[model], "note": note}
        tests.append({**named, "site": site, "hypothesis": hypothesis, "test": test, **result})

    samples: dict[str, TwoSamples] = {}
    for name, own in embeddings.items():
        model = ("", name, "")
        if min(len(set(own.patients)), patients[model]) < LEAST_PATIENTS:
            note = f"needs {LEAST_PATIENTS} patients on each side; there are {patients[model]} in the target"
            add(model, "no_shift", "embedding_mmd", (_NAN, _NAN), note)
            continue
        drawn = TwoSamples.of(own.source, own.target, own.patients, own.target_patients, seed_of(params.seed, name))
        samples[name] = drawn
        add(model, "no_shift", "embedding_mmd", drawn.test(permutations))
    for model, score in scores.items():
        finding, backbone, _ = model
        if refusal := score.refusal:
            add(model, "no_shift", "mean_score", (_NAN, _NAN), refusal)
            add(model, "label_shift_only", "matched_score_mmd", (_NAN, _NAN), refusal)
        else:
            seed = seed_of(params.seed, *model)
            found = estimates[model] = estimate_prevalence(score, resamples=params.resamples, seed=params.seed)
            add(model, "no_shift", "mean_score", compare_prevalence(score, permutations=permutations, seed=seed))
            x, y = score.logits[:, None], score.target_logits[:, None]
            compared = TwoSamples.of(x, y, score.patients, score.target_patients, seed)
            result = compared.matched_test(score.labels[compared.rows].astype(float), found, gamma, permutations)
            add(model, "label_shift_only", "matched_score_mmd", result)
            if backbone in samples:
                known = labels[finding].reindex(embeddings[backbone].source_ids[samples[backbone].rows])
                own_labels = known.to_numpy(np.float64, na_value=np.nan)
                result = samples[backbone].matched_test(own_labels, found, gamma, permutations)
                add(model, "label_shift_only", "matched_embedding_mmd", result)
        if score.target_labels is not None:
            change = lines[model] = line_change(
                score.logits, score.labels.astype(np.float64), score.patients,
                score.target_logits, score.target_labels, score.target_patients,
            )  # fmt: skip
            for hypothesis in ("no_shift", "covariate_shift_only"):
                add(model, hypothesis, "label_given_score", change.both, change.note)
            for hypothesis in ("label_shift_only", "label_and_covariate_shift"):
                add(model, hypothesis, "slope_given_score", change.slope, change.note)
    frame = pd.DataFrame(tests, columns=list(ShiftTests.columns))
    for _, rows in frame.groupby("hypothesis"):
        frame.loc[rows.index, "p_holm"] = holm(rows["p_value"].to_list())
    alone = [("", name, "") for name in embeddings if name not in {model[1] for model in scores}]
    diagnoses = []
    for model in [*scores, *alone]:
        named = dict(zip(("finding", "backbone", "method"), model, strict=True))
        for hypothesis in HYPOTHESES:
            about = (frame["hypothesis"] == hypothesis) & (frame["backbone"] == model[1])
            own = frame[about & (frame["finding"].isin(["", model[0]])) & (frame["method"].isin(["", model[2]]))]
            decided = _decide(own, hypothesis, params.alpha, estimates.get(model), lines.get(model))
            diagnoses.append(
                {**named, "site": site, "hypothesis": hypothesis, "num_patients": patients[model], **decided}
            )
    return make_table(Diagnoses, diagnoses), make_table(ShiftTests, frame)


def _decide(
    tests: pd.DataFrame, hypothesis: str, alpha: float, estimate: PrevalenceEstimate | None, line: LineChange | None
) -> dict[str, Any]:
    """Verdict, test, statistic, p_value, estimate, limits and note of one hypothesis from its own tests."""
    made: dict[str, Any] = {"note": ""}
    if hypothesis == "label_shift_only" and estimate is not None:
        low, high = estimate.confidence_set(0.95)
        made |= {"estimate": estimate.value, "ci_low": low, "ci_high": high}
        made["note"] = f"prevalence at home {estimate.source:.3g}"
        if np.isnan(estimate.value):
            made["note"] += "; the model does not separate the labels at home"
        elif np.isnan(low):
            made["note"] += "; no prevalence explains the target's mean score"
    if hypothesis in _NOTES and line is not None:
        made |= {"estimate": line.change, "ci_low": line.low, "ci_high": line.high}
    tested = tests[tests["p_holm"].notna()]
    if len(tested):
        first = tested.loc[tested["p_holm"].astype(float).idxmin()]
        verdict = "rejected" if first["p_holm"] <= alpha else "compatible"
        if first["test"] == "label_given_score":
            made["note"] = "of the logit, which may change its meaning where p(x) alone changed"
        return made | {"verdict": verdict, **first[["test", "statistic"]].to_dict(), "p_value": first["p_holm"]}
    if len(tests):
        return made | {"verdict": "undetermined", "note": "; ".join(dict.fromkeys(tests["note"]))}
    untested = hypothesis in _NOTES
    note = _NOTES[hypothesis] if untested else "no predictions for the site"
    return made | {"verdict": "compatible" if untested else "undetermined", "note": note}
