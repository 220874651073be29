"""Deep CORAL: fine-tuning that also draws the covariances of source and target features together.

Sun B, Saenko K. Deep CORAL: Correlation Alignment for Deep Domain Adaptation. ECCV 2016 workshops.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor

from pipeline.params import StrictParams
from pipeline.training.alignment import train_alongside
from pipeline.training.backbone import Classifier
from pipeline.training.engine import Engine, LearningRates
from pipeline.training.feed import Images, Indices


class Params(StrictParams):
    """``remedies.coral``: the peak learning rate, or several to choose from on id_val; the ``weight`` of the loss."""

    base: Literal["full_finetune"] = "full_finetune"
    learning_rate: LearningRates
    weight: float = Field(default=1.0, gt=0.0)


def align(engine: Engine, images: Images, indices: Indices, params: Params) -> tuple[Classifier, str]:
    """Train on the source's labels and the target's images; the model and what to note."""
    model = engine.best_of(
        params.learning_rate,
        lambda rate: train_alongside(engine, rate, images, indices, coral_loss, params.weight),
    )
    return model, f"CORAL loss with weight {params.weight:g}"


def coral_loss(source: Tensor, target: Tensor) -> Tensor:
    """Squared Frobenius norm of the difference of covariances over 4 D² (their eq. 1).

    Args:
        source: (n, D), n at least 2.
        target: (m, D), m at least 2.
    """
    width = source.shape[1]
    difference = source.T.cov().view(width, width) - target.T.cov().view(width, width)
    return difference.square().sum() / (4 * width**2)
