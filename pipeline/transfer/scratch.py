"""Training from random weights: the twin that every transfer method is compared with."""

from pipeline.params import StrictParams
from pipeline.training.backbone import Classifier
from pipeline.training.engine import Engine, LearningRates
from pipeline.training.loop import Plan


class Params(StrictParams):
    """``methods.scratch``: the peak learning rate, or several to choose from on id_val."""

    learning_rate: LearningRates


def fit(engine: Engine, params: Params) -> Classifier:
    """Train all weights from a random start."""

    def fit_at(rate: float) -> tuple[Classifier, float]:
        model = engine.scratch()
        return model, engine.train(model, Plan(rate))

    return engine.best_of(params.learning_rate, fit_at)
