"""Full fine-tuning: all weights from the pretrained start, a random head (Yosinski et al., NeurIPS 2014)."""

from pydantic import Field

from pipeline.params import StrictParams
from pipeline.training.backbone import Classifier
from pipeline.training.engine import Engine


class Params(StrictParams):
    """``methods.full_finetune``: the peak learning rate."""

    learning_rate: float = Field(gt=0.0)


def fit(engine: Engine, params: Params) -> Classifier:
    """Train all weights from the pretrained start."""
    model = engine.pretrained()
    engine.train_all(model, params.learning_rate)
    return model
