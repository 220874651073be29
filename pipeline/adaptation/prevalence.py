"""Prevalence: the intercept alone is recalibrated, so that the mean probability is a stated or estimated prevalence.

"Recalibration in the large", with the mean over the target's unlabelled images in place of the observed outcomes
(Janssen KJM et al. J Clin Epidemiol 2008; 61: 76). A hospital often knows its prevalence where it has no labels.
"""

import numpy as np
from pydantic import Field
from scipy.optimize import brentq
from scipy.special import expit, logit

from pipeline.adaptation.interface import NAN, Evidence, Outcome
from pipeline.adaptation.prior import PriorParams, estimate
from pipeline.params import Fraction


class Params(PriorParams):
    """``remedies.prevalence``: ``stated`` prevalences, by site and finding; the others are estimated (``prior.py``)."""

    stated: dict[str, dict[str, Fraction]] = Field(default={})


def recalibrate(evidence: Evidence, params: Params) -> Outcome:
    """Add to the logits what gives their probabilities the wanted mean over the target's unlabelled images."""
    stated = params.stated.get(evidence.site, {}).get(evidence.finding)
    source, low, high = NAN, NAN, NAN
    if stated is None:
        found = estimate(evidence, params.resamples, params.seed)
        wanted, source, (low, high) = found.target, found.source, found.interval
        if found.reason or wanted in (0.0, 1.0):
            reason = found.reason or f"the likelihood is highest at a prevalence of {wanted:.0f}"
            return Outcome("refused", reason, 0, source, wanted, low, high)
    else:
        wanted = stated
    logits = evidence.target.logits
    shift = brentq(
        lambda a: float(np.mean(expit(logits + a))) - wanted,
        logit(wanted) - logits.max() - 1.0,
        logit(wanted) - logits.min() + 1.0,
        xtol=1e-12,
    )
    return Outcome(
        "applied",
        "the prevalence was estimated" if stated is None else f"the prevalence is stated in params: {stated:g}",
        source_prevalence=source,
        estimated_prevalence=wanted if stated is None else NAN,
        ci_low=low,
        ci_high=high,
        slope=1.0,
        intercept=float(shift),
    )
