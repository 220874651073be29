"""Training from random weights: the twin that every transfer method is compared with."""

from pydantic import Field

from pipeline.params import StrictParams
from pipeline.training.backbone import Classifier
from pipeline.training.engine import Engine


class Params(StrictParams):
    """``methods.scratch``: the peak learning rate."""

    learning_rate: float = Field(gt=0.0)


def fit(engine: Engine, params: Params) -> Classifier:
    """Train all weights from a random start."""
    model = engine.scratch()
    engine.train_all(model, params.learning_rate)
    return model
