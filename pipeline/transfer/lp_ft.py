"""LP-FT: a linear probe first, then full fine-tuning from it.

Kumar A, Raghunathan A, Jones R, Ma T, Liang P. Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution. ICLR 2022.

The head is fitted on features with the pretrained running statistics. Batch-norm in training mode would give it other
features from the first step on: with few images its loss began at 100 nats, and what the probe knew was lost. So
batch-norm is frozen, unless params say otherwise.
"""

from typing import Literal

from pipeline.params import StrictParams
from pipeline.training.backbone import Classifier
from pipeline.training.engine import Engine, InverseL2, LearningRates
from pipeline.training.loop import Plan


class Params(StrictParams):
    """``methods.lp_ft``: the probe's penalties (scikit-learn's C) and the peak learning rate, or several, after it.

    ``batch_norm``: ``frozen`` keeps the statistics of the probe's features; ``shared`` does as ``finetune`` says.
    """

    inverse_l2: InverseL2
    learning_rate: LearningRates
    batch_norm: Literal["frozen", "shared"] = "frozen"


def fit(engine: Engine, params: Params) -> Classifier:
    """Head from the probe, then all weights."""
    probed = engine.pretrained()
    engine.probe_head(probed, params.inverse_l2)
    if params.batch_norm == "frozen":
        engine.loop = engine.loop.model_copy(update={"batch_norm": "frozen"})

    def fit_at(rate: float) -> tuple[Classifier, float]:
        model = engine.pretrained()
        model.head.load_state_dict(probed.head.state_dict())
        return model, engine.train(model, Plan(rate))

    return engine.best_of(params.learning_rate, fit_at)
