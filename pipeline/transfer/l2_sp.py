"""L2-SP: full fine-tuning that is drawn back to the pretrained weights instead of to zero.

Li X, Grandvalet Y, Davoine F. Explicit Inductive Bias for Transfer Learning with Convolutional Networks. ICML 2018.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.params import StrictParams
from pipeline.training.backbone import Classifier
from pipeline.training.engine import Engine, LearningRates
from pipeline.training.loop import Plan


class Params(StrictParams):
    """``methods.l2_sp``: the peak learning rate, or several; ``alpha`` to the start, ``beta`` of the head to zero.

    The paper's grid is 1e-4 to 1e-1 for alpha, and 1e-2 for beta.
    """

    learning_rate: LearningRates
    alpha: float = Field(default=0.01, ge=0.0)
    beta: float = Field(default=0.01, ge=0.0)


def fit(engine: Engine, params: Params) -> Classifier:
    """Train all weights with alpha/2 |w - w0|^2 on the trunk and beta/2 |w|^2 on the head, in place of weight decay."""

    def fit_at(rate: float) -> tuple[Classifier, float]:
        model = engine.pretrained().to(engine.fabric.device)
        # All that has weights of the pretraining; Inception's auxiliary output is new, as the head is.
        start = {
            name: value.detach().clone()
            for name, value in model.named_parameters()
            if name.startswith("trunk.") and not name.startswith("trunk.AuxLogits.fc.")
        }

        def penalty(trained: nn.Module) -> Tensor:
            drawn, head = [], []
            for name, value in trained.named_parameters():
                if name in start:
                    drawn.append(((value - start[name]) ** 2).sum())
                else:
                    head.append((value**2).sum())
            return 0.5 * (params.alpha * torch.stack(drawn).sum() + params.beta * torch.stack(head).sum())

        return model, engine.train(model, Plan(rate, penalty=penalty, weight_decay=0.0))

    return engine.best_of(params.learning_rate, fit_at)
