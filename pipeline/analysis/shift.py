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
  Its estimate is by that mean score (black-box shift estimation), beside the one of maximum likelihood.
- covariate_shift_only: p(y | x) is the source's. Without target labels any change of the images is compatible with
  it, and nothing rejects it. With them: label given score and propensity as at home (``label_given_propensity``, see
  the module of that name). The score alone would not do: p(y | score) changes where p(x) alone did.
- label_and_covariate_shift: without labels nothing rejects it. With them: the same but for a constant, which is all
  that a change of prevalence does to log odds (``slope_given_propensity``).

What a hypothesis implies is tested with it: with target labels ``label_given_score`` is a test of no_shift, and
``slope_given_score`` one of label_shift_only. Each hypothesis has its own correction, so that a weaker one may be
rejected where a stronger one just is not. Where features tell the hospitals apart so well that few images could come
from either, the last two are undetermined: no label can then say whether it means the same.

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
from pipeline.analysis.label_given_propensity import Remainder, propensity, remainder
from pipeline.analysis.label_given_score import line_change
from pipeline.analysis.label_shift import (
    LEAST_PATIENTS,
    PrevalenceEstimate,
    Scores,
    compare_prevalence,
    estimate_prevalence,
)
from pipeline.errors import PipelineError
from pipeline.metrics import prevalence
from pipeline.params import Fraction, Seed, StrictParams
from pipeline.tables.contract import make_table
from pipeline.tables.diagnosis import HYPOTHESES, Diagnoses, ShiftTests

FloatArray = NDArray[np.float64]
RealArray = NDArray[np.floating[Any]]

Model = tuple[str, str, str]  # finding, backbone, method

_TESTS_PER_MODEL = 3  # of one hypothesis, at most
_LIKELIHOOD_RESAMPLES = 200  # as the remedies draw; each is an optimisation
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
        target_ids: (M,) image_id; None where no label of the target is looked at.
    """

    source: RealArray
    source_ids: NDArray[Any]
    patients: NDArray[Any]
    target: RealArray
    target_patients: NDArray[Any]
    target_ids: NDArray[Any] | None = None


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
    likelihoods: dict[Model, prevalence.Estimate] = {}
    left: dict[Model, Remainder] = {}
    odds: dict[str, pd.Series] = {}
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
            likelihoods[model] = prevalence.estimate(
                score.logits, score.labels.astype(np.float64), score.patients,
                score.target_logits, score.target_patients, _LIKELIHOOD_RESAMPLES, params.seed,
            )  # fmt: skip
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
            change = line_change(
                score.logits, score.labels.astype(np.float64), score.patients,
                score.target_logits, score.target_labels, score.target_patients,
            )  # fmt: skip
            add(model, "no_shift", "label_given_score", change.both, change.note)
            add(model, "label_shift_only", "slope_given_score", change.slope, change.note)
            if backbone in embeddings and backbone not in odds:
                odds[backbone] = _propensities(embeddings[backbone], seed_of(params.seed, "propensity", backbone))
            rest = left[model] = _remainder(score, odds.get(backbone))
            add(model, "covariate_shift_only", "label_given_propensity", rest.both, rest.note)
            add(model, "label_and_covariate_shift", "slope_given_propensity", rest.slope, rest.note)
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
            decided = _decide(own, hypothesis, params.alpha)
            if hypothesis == "label_shift_only" and model in estimates:
                decided = _of_prevalence(decided, estimates[model], likelihoods[model])
            elif hypothesis in _NOTES and model in left:
                value, low, high = left[model].level if hypothesis == "covariate_shift_only" else left[model].change
                decided |= {"estimate": value, "ci_low": low, "ci_high": high}
            diagnoses.append(
                {**named, "site": site, "hypothesis": hypothesis, "num_patients": patients[model], **decided}
            )
    return make_table(Diagnoses, diagnoses), make_table(ShiftTests, frame)


def _propensities(own: Embeddings, seed: int) -> pd.Series:
    """Log odds of the target by image_id, of all images of both sides."""
    if own.target_ids is None:
        raise ValueError("with target labels the embeddings need target_ids")
    away = np.repeat([0.0, 1.0], [len(own.source), len(own.target)])
    patients = np.concatenate([own.patients, own.target_patients])
    features = np.concatenate([own.source, own.target])
    return pd.Series(propensity(features, away, patients, seed), np.concatenate([own.source_ids, own.target_ids]))


def _remainder(score: Scores, odds: pd.Series | None) -> Remainder:
    """What the hospital adds to score and propensity; ``score`` has target labels.

    Raises:
        PipelineError: an image with a score has no features.
    """
    if odds is None or score.ids is None or score.target_ids is None or score.target_labels is None:
        return Remainder.none("no features to tell the hospitals' images apart by")
    ids = np.concatenate([score.ids, score.target_ids])
    if missing := len(set(ids) - set(odds.index)):
        raise PipelineError(f"every image with a prediction must have features; {missing} have none. Run `dvc repro`")
    return remainder(
        np.concatenate([score.logits, score.target_logits]),
        np.concatenate([score.labels.astype(np.float64), score.target_labels]),
        odds.loc[ids].to_numpy(np.float64),
        np.repeat([0.0, 1.0], [len(score.ids), len(score.target_ids)]),
        np.concatenate([score.patients, score.target_patients]),
    )


def _of_prevalence(
    decided: dict[str, Any], estimate: PrevalenceEstimate, likelihood: prevalence.Estimate
) -> dict[str, Any]:
    """With both estimates of the target's prevalence, their limits, and what is to be said of them."""
    low, high = estimate.confidence_set(0.95)
    note = f"prevalence at home {estimate.source:.3g}"
    if np.isnan(estimate.value):
        note += "; the model does not separate the labels at home"
    elif np.isnan(low):
        note += "; no prevalence explains the target's mean score"
    if likelihood.reason:
        note += f"; no estimate by likelihood: {likelihood.reason}"
    made = {"estimate": estimate.value, "ci_low": low, "ci_high": high}
    less, more = likelihood.interval
    if less == more:  # a bootstrap that stays at the border knows nothing of how sure that is
        less = more = _NAN
        note += f"; the likelihood is highest at a prevalence of {likelihood.target:.0f} in every resample: no interval"
    limits = {"likelihood_low": less, "likelihood_high": more}
    told = "; ".join(part for part in (note, decided["note"]) if part)
    return decided | made | {"likelihood": likelihood.target, **limits, "note": told}


def _decide(tests: pd.DataFrame, hypothesis: str, alpha: float) -> dict[str, Any]:
    """Verdict, test, statistic, p_value and note of one hypothesis from its own tests."""
    tested = tests[tests["p_holm"].notna()]
    if len(tested):
        first = tested.loc[tested["p_holm"].astype(float).idxmin()]
        verdict = "rejected" if first["p_holm"] <= alpha else "compatible"
        found = first[["test", "statistic"]].to_dict()
        return {"verdict": verdict, **found, "p_value": first["p_holm"], "note": ""}
    if len(tests):
        return {"verdict": "undetermined", "note": "; ".join(dict.fromkeys(tests["note"]))}
    untested = hypothesis in _NOTES
    note = _NOTES[hypothesis] if untested else "no predictions for the site"
    return {"verdict": "compatible" if untested else "undetermined", "note": note}
