"""Linear probe: the pretrained backbone as it is, a logistic regression on its features."""

from pydantic import Field, PositiveInt

from pipeline.params import StrictParams
from pipeline.training.backbone import Classifier
from pipeline.training.engine import Engine, InverseL2


class Params(StrictParams):
    """``methods.linear_probe``: penalties to choose from on id_val, as scikit-learn's C (inverse strength).

    ``shots`` adds runs with so many labelled patients a class, ``draws`` times each: the few-shot twin of
    ``prototypes``.
    """

    inverse_l2: InverseL2
    shots: list[PositiveInt] = Field(default=[])
    draws: int = Field(default=1, ge=1)


def fit(engine: Engine, params: Params) -> Classifier:
    """Fit the head alone; no weight of the backbone changes, batch-norm's statistics neither."""
    model = engine.pretrained()
    engine.probe_head(model, params.inverse_l2)
    return model.eval()
