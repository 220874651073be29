"""Gradual unfreezing: the head first, then one group of layers more at a time, from the output to the input.

Howard J, Ruder S. Universal Language Model Fine-tuning for Text Classification. ACL 2018, section 3.3. Each phase has
its own warm-up and cosine, and starts from the best epoch of the one before.
"""

import math
from collections.abc import Collection
from functools import partial

from pydantic import Field

from pipeline.params import ParamsError, StrictParams
from pipeline.training.backbone import Classifier
from pipeline.training.engine import Engine, LearningRates
from pipeline.training.loop import Plan


class Params(StrictParams):
    """``methods.gradual_unfreeze``: the peak learning rate, or several; ``groups`` that the backbone is cut into.

    The epochs of ``finetune`` are shared out evenly over the groups and the head.
    """

    learning_rate: LearningRates
    groups: int = Field(default=3, ge=1)


def fit(engine: Engine, params: Params) -> Classifier:
    """Train in ``groups`` + 1 phases; the model of the phase with the least id_val loss.

    Raises:
        ParamsError: there are fewer epochs than phases.
    """
    phases = params.groups + 1
    if engine.loop.epochs < phases:
        raise ParamsError(
            f"methods.gradual_unfreeze: {phases} phases need as many epochs; finetune.epochs is {engine.loop.epochs}. "
            "Lower groups, or raise the epochs"
        )
    shares = [engine.loop.epochs // phases + (number < engine.loop.epochs % phases) for number in range(phases)]

    def fit_at(rate: float) -> tuple[Classifier, float]:
        model = engine.pretrained()
        parts = engine.blocks(model)
        # Groups of near equal numbers of blocks, the output's first.
        groups = min(params.groups, len(parts) - 1)
        order: dict[str, int] = {}
        for number, names in enumerate(reversed(parts)):
            phase = 0 if number == 0 else 1 + (number - 1) * groups // (len(parts) - 1)
            order |= dict.fromkeys(names, phase)
        best, state = math.inf, model.state_dict()
        for phase, epochs in enumerate(shares):
            open_now = {name for name, first in order.items() if first <= phase}
            plan = Plan(rate, f"unfreeze {phase}", factor=partial(_open, open_now), epochs=epochs)
            loss = engine.train(model, plan)
            if loss < best:
                best, state = loss, {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(state)
        return model, best

    return engine.best_of(params.learning_rate, fit_at)


def _open(names: Collection[str], name: str) -> float:
    return float(name in names)
