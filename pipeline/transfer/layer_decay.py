"""Layer-wise learning rates: full fine-tuning, the slower the nearer to the input.

Howard & Ruder, ACL 2018, section 3.1 (discriminative fine-tuning); as a power per layer in Clark et al., ELECTRA, ICLR
2020, and Bao et al., BEiT, ICLR 2022.
"""

from pydantic import Field

from pipeline.params import StrictParams
from pipeline.training.backbone import Classifier
from pipeline.training.engine import Engine, LearningRates
from pipeline.training.loop import Plan


class Params(StrictParams):
    """``methods.layer_decay``: the head's peak learning rate, or several; ``decay`` from a block to the one below."""

    learning_rate: LearningRates
    decay: float = Field(default=0.8, gt=0.0, le=1.0)


def fit(engine: Engine, params: Params) -> Classifier:
    """Train all weights from the pretrained start, a block d below the head at ``decay`` ** d of the head's rate."""

    def fit_at(rate: float) -> tuple[Classifier, float]:
        model = engine.pretrained()
        depth = {name: d for d, names in enumerate(reversed(engine.blocks(model))) for name in names}
        return model, engine.train(model, Plan(rate, factor=lambda name: params.decay ** depth[name]))

    return engine.best_of(params.learning_rate, fit_at)
