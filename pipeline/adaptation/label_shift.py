"""Label shift: logits corrected by the target's prevalence, which is estimated without labels (``prior.py``)."""

from scipy.special import logit

from pipeline.adaptation.interface import NAN, Evidence, Outcome
from pipeline.adaptation.prior import PriorParams, estimate


class Params(PriorParams):
    """``remedies.label_shift``; see ``PriorParams``."""


def recalibrate(evidence: Evidence, params: Params) -> Outcome:
    """Calibrate on the source, then add the difference of the prevalences' logits (Saerens 2002, eq. 2.4)."""
    found = estimate(evidence, params.resamples, params.seed)
    if found.reason:
        return Outcome("refused", found.reason, source_prevalence=found.source)
    border = found.target in (0.0, 1.0)
    return Outcome(
        "refused" if border else "applied",
        f"the likelihood is highest at a prevalence of {found.target:.0f}, for which no correction is finite"
        if border
        else "calibrated on the source's validation, then moved to the estimated prevalence",
        source_prevalence=found.source,
        estimated_prevalence=found.target,
        ci_low=found.interval[0],
        ci_high=found.interval[1],
        slope=NAN if border else found.slope,
        intercept=NAN if border else float(found.intercept + logit(found.target) - logit(found.source)),
    )
