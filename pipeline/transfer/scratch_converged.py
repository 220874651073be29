"""Training from random weights until it has converged: what transfer is worth when time is no matter.

He K, Girshick R, Dollár P. Rethinking ImageNet Pre-training. ICCV 2019: from scratch takes several times as long, so
that an equal number of epochs flatters the pretrained.
"""

from pydantic import Field

from pipeline.params import StrictParams
from pipeline.training.backbone import Classifier
from pipeline.training.engine import Engine, LearningRates
from pipeline.training.loop import Plan


class Params(StrictParams):
    """``methods.scratch_converged``: as ``scratch``, with its own ``epochs`` (the most) and ``patience``.

    ``all_labels_only`` trains it with all labels and not with each of ``finetune.label_fractions``: it costs several
    times what the others do, and its question is what transfer is worth where time is no matter.
    """

    learning_rate: LearningRates
    epochs: int = Field(ge=1)
    patience: int = Field(ge=1)
    all_labels_only: bool = True


def fit(engine: Engine, params: Params) -> Classifier:
    """Train all weights from a random start until id_val has not become better for ``patience`` epochs."""

    def fit_at(rate: float) -> tuple[Classifier, float]:
        model = engine.scratch()
        return model, engine.train(model, Plan(rate, epochs=params.epochs, patience=params.patience))

    return engine.best_of(params.learning_rate, fit_at)
