"""The tutorials' recipe: a frozen backbone, global average pooling, a dense layer with ReLU, and the output.

As in "Transfer learning and fine-tuning" pages since Chollet F, "Building powerful image classification models using
very little data", Keras blog 2016: VGG16's convolutions, GlobalAveragePooling2D, Dense(1024, relu), Dense(softmax). A
softmax over "with" and "without" is the logistic function of one logit, which stands here for each finding.
"""

from pydantic import Field

from pipeline.params import StrictParams
from pipeline.training.backbone import Classifier
from pipeline.training.engine import Engine, LearningRates
from pipeline.training.loop import Plan


class Params(StrictParams):
    """``methods.vgg_head``: the peak learning rate, or several; ``hidden`` units of the dense layer."""

    learning_rate: LearningRates
    hidden: int = Field(default=1024, ge=1)


def fit(engine: Engine, params: Params) -> Classifier:
    """Train the new head on cached features, without augmentation; no weight of the backbone changes."""

    def fit_at(rate: float) -> tuple[Classifier, float]:
        model = engine.pretrained(hidden=params.hidden, pooled=True)
        return model, engine.train_head(model, Plan(rate), engine.pooled)

    return engine.best_of(params.learning_rate, fit_at)
