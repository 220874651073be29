"""Linear probe: the pretrained backbone as it is, a logistic regression on its features."""

from pydantic import Field, PositiveFloat

from pipeline.params import StrictParams
from pipeline.training.backbone import Classifier
from pipeline.training.engine import Engine


class Params(StrictParams):
    """``methods.linear_probe``: penalties to choose from on id_val, as scikit-learn's C (inverse strength)."""

    inverse_l2: list[PositiveFloat] = Field(min_length=1)


def fit(engine: Engine, params: Params) -> Classifier:
    """Fit the head alone; no weight of the backbone changes, batch-norm's statistics neither."""
    model = engine.pretrained()
    engine.probe_head(model, params.inverse_l2)
    return model.eval()
