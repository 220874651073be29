"""DANN: fine-tuning against a classifier that tries to tell source from target features.

Ganin Y, Ustinova E, Ajakan H, et al. Domain-Adversarial Training of Neural Networks. JMLR 2016; 17: 1.
"""

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import softplus

from pipeline.params import StrictParams
from pipeline.training.alignment import train_alongside
from pipeline.training.backbone import Classifier
from pipeline.training.engine import Engine, LearningRates
from pipeline.training.feed import Images, Indices
from pipeline.training.loop import num_batches


class Params(StrictParams):
    """``remedies.dann``: as ``coral``; ``hidden`` units of the domain classifier."""

    base: Literal["full_finetune"] = "full_finetune"
    learning_rate: LearningRates
    weight: float = Field(default=1.0, gt=0.0)
    hidden: int = Field(default=256, ge=1)


class ReverseGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by -``factor`` (their section 4.2)."""

    @staticmethod
    def forward(context: Any, inputs: Tensor, factor: float) -> Tensor:
        """The inputs as they are."""
        context.factor = factor
        return inputs.view_as(inputs)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Reversed."""
        return -context.factor * gradient, None


class DomainClassifier(nn.Module):
    """The cross-entropy of telling domains apart, both counted alike; its gradient reaches the features reversed.

    Args:
        width: of the features.
        hidden: units.
        steps: of the training, over which the reversal grows from 0 to 1 (their section 5.2.2).
        seed: of its weights.
    """

    def __init__(self, width: int, hidden: int, steps: int, seed: int) -> None:
        super().__init__()
        self._steps, self._step = steps, 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """(n, D) and (m, D) to the loss in nats."""
        factor = reversal(self._step / self._steps)
        self._step += 1
        logits = self.layers(ReverseGradient.apply(torch.cat([source, target]), factor)).squeeze(1)
        return 0.5 * (softplus(-logits[: len(source)]).mean() + softplus(logits[len(source) :]).mean())


def align(engine: Engine, images: Images, indices: Indices, params: Params) -> tuple[Classifier, str]:
    """Train on the source's labels and the target's images; the model and what to note."""
    steps = engine.loop.epochs * num_batches(engine.data, engine.loop) * engine.loop.accumulate
    width = engine.pretrained().last.in_features

    def fit_at(rate: float) -> tuple[Classifier, float]:
        domains = DomainClassifier(width, params.hidden, steps, engine.seed)
        return train_alongside(engine, rate, images, indices, domains, params.weight)

    return engine.best_of(params.learning_rate, fit_at), f"domain classifier's loss with weight {params.weight:g}"


def reversal(progress: float) -> float:
    """The factor of the reversed gradient, from 0 at the start to nearly 1 at the end: their eq. 14 with gamma 10."""
    return 2.0 / (1.0 + math.exp(-10.0 * progress)) - 1.0
