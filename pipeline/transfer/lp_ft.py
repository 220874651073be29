"""LP-FT: a linear probe first, then full fine-tuning from it.

Kumar A, Raghunathan A, Jones R, Ma T, Liang P. Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution. ICLR 2022.
"""

from pydantic import Field, PositiveFloat

from pipeline.params import StrictParams
from pipeline.training.backbone import Classifier
from pipeline.training.engine import Engine


class Params(StrictParams):
    """``methods.lp_ft``: the probe's penalties (scikit-learn's C) and the peak learning rate after it."""

    inverse_l2: list[PositiveFloat] = Field(min_length=1)
    learning_rate: float = Field(gt=0.0)


def fit(engine: Engine, params: Params) -> Classifier:
    """Head from the probe, then all weights."""
    model = engine.pretrained()
    engine.probe_head(model, params.inverse_l2)
    engine.train_all(model, params.learning_rate)
    return model
