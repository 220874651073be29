"""The target's prevalence by maximum likelihood (``metrics.prevalence``), as several remedies start from it."""

from pydantic import Field

from pipeline.adaptation.interface import BaseParams, Evidence
from pipeline.metrics import prevalence
from pipeline.metrics.prevalence import Estimate
from pipeline.params import Seed


class PriorParams(BaseParams):
    """``resamples`` of patients, on both sides, for the interval of the prevalence; drawn from ``seed``."""

    resamples: int = Field(default=200, ge=100)
    seed: Seed = 1


def estimate(evidence: Evidence, resamples: int, seed: int) -> Estimate:
    """The target's prevalence with an interval that counts the source's validation as a sample too."""
    source, target = evidence.source, evidence.target
    return prevalence.estimate(
        source.logits, source.labels, source.patients, target.logits, target.patients, resamples, seed
    )
