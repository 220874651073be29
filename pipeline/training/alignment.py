"""Training that sees more than source images and labels: the target's images alongside, or weights of groups.

Both are modules around a classifier that the ordinary loop trains, so that a remedy differs from plain fine-tuning in
what it adds and in nothing else. One device; ``compute.compile`` is not used.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.training.backbone import Classifier
from pipeline.training.engine import Engine
from pipeline.training.feed import Feed, ImageFeed, Images, Indices, epoch_order, in_batches
from pipeline.training.loop import Plan, train

Distance = Callable[[Tensor, Tensor], Tensor]


class Alongside(nn.Module):
    """A classifier that in training takes a batch of target images with each batch of source images.

    Both go through the trunk as one batch, so that batch-norm's statistics in training are of the mixture that its
    running statistics will be of: apart, each domain would be centred by itself, and judged on other features.
    """

    def __init__(self, classifier: Classifier, target: Iterator[Tensor], distance: Distance) -> None:
        super().__init__()
        self.classifier, self.distance, self._target = classifier, distance, target
        self._features: tuple[Tensor, Tensor]

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """(B, C, H, W) of the source to logits (B, findings), as the classifier's."""
        if not self.training:
            return self.classifier(images)
        own = len(images)
        features, auxiliary = self.classifier._trunk(torch.cat([images, next(self._target)]))
        # Single precision for what is estimated from them.
        self._features = features[:own].float(), features[own:].float()
        logits = self.classifier.head(features[:own])
        return logits if auxiliary is None else (logits, auxiliary[:own])

    def penalty(self) -> Tensor:
        """The distance of the last forward pass."""
        return self.distance(*self._features)


class Reweighted(nn.Module):
    """A classifier whose loss is sum_g q_g (mean loss of group g), q by exponentiated gradient ascent.

    Sagawa 2020, algorithm 1: q_g <- q_g exp(step * mean loss of g in the batch), then normalised. The loop's loss is
    the mean over labels; here each label's gradient is scaled, which comes to the same as another loss.

    Args:
        classifier: what is trained.
        feed: tells which images are in the batch.
        labels: (N, findings) 0, 1 or NaN.
        groups: (N, findings) from 0, -1 where there is no label.
        step: of the ascent.
    """

    weights: Tensor

    def __init__(self, classifier: Classifier, feed: "Told", labels: Tensor, groups: Tensor, step: float) -> None:
        super().__init__()
        self.classifier, self._feed, self._step = classifier, feed, step
        self._labels, self._groups = labels, groups
        number = int(groups.max()) + 1
        self.register_buffer("weights", torch.full((number,), 1.0 / number, dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """(B, C, H, W) to logits (B, findings), as the classifier's."""
        outputs = self.classifier(images)
        if self.training:
            logits, *others = outputs if isinstance(outputs, tuple) else (outputs,)
            factors = self.ascend(logits.detach().float(), torch.from_numpy(self._feed.batch))
            for each in (logits, *others):
                each.register_hook(lambda gradient: gradient * factors.to(gradient.dtype))
        return outputs

    def ascend(self, logits: Tensor, batch: Tensor) -> Tensor:
        """One step of q; the factor of each label's gradient (B, findings)."""
        labels = self._labels[batch].to(logits.device)
        groups = self._groups[batch].to(logits.device)
        known = groups >= 0
        losses = nn.functional.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none")
        sums, sizes = torch.zeros_like(self.weights), torch.zeros_like(self.weights)
        for group in range(len(self.weights)):  # few, and summed in one order on any device
            own = groups == group
            sums[group], sizes[group] = losses[own].sum(), own.sum()
        means = sums / sizes.clamp(min=1)
        raised = self.weights * torch.exp(self._step * means)
        self.weights.copy_(raised / raised.sum())
        share = self.weights / sizes.clamp(min=1) * known.sum()
        return torch.where(known, share[groups.clamp(min=0)], 0.0)


@dataclass
class Told:
    """A feed that says which images it gave last."""

    feed: Feed
    batch: Indices = field(default_factory=lambda: np.empty(0, np.int64))

    def training(self, batches: Iterable[Indices], epoch: int) -> Iterator[Tensor]:
        """As the feed's."""
        listed = list(batches)
        for batch, images in zip(listed, self.feed.training(listed, epoch), strict=True):
            self.batch = batch
            yield images

    def plain(self, batches: Iterable[Indices]) -> Iterator[Tensor]:
        """As the feed's."""
        return self.feed.plain(batches)


def source_feed(engine: Engine) -> ImageFeed:
    """The run's images, as plain fine-tuning sees them."""
    return ImageFeed(engine.data.images, engine.fabric.device, engine.layout, engine.loop.augment, engine.seed)


def target_batches(engine: Engine, images: Images, indices: Indices) -> Iterator[Tensor]:
    """Batches of the target without end, in another order each time round, augmented as the source's."""
    feed = ImageFeed(images, engine.fabric.device, engine.layout, engine.loop.augment, engine.seed)
    size = max(3, engine.loop.batch_size // engine.loop.accumulate)
    for epoch in count():
        yield from feed.training(in_batches(epoch_order(indices, engine.seed, epoch), size), epoch)


def train_around(engine: Engine, module: nn.Module, feed: Feed, plan: Plan) -> float:
    """Train a module around a classifier; returns the id_val loss of the epoch that stays."""
    rows = train(
        engine.fabric, module, engine.data, engine.loop, plan, feed=feed, findings=engine.findings, seed=engine.seed,
        layout=engine.layout, description=engine.description,
    )  # fmt: skip
    return min(row.id_val_loss for row in rows if row.kept)


def train_alongside(
    engine: Engine, rate: float, images: Images, indices: Indices, distance: Distance, weight: float
) -> tuple[Classifier, float]:
    """Plain fine-tuning from the pretrained start plus ``weight`` times a distance of source and target features.

    Args:
        engine: of the source.
        rate: the peak learning rate.
        images: of the target site.
        indices: those that may be seen, at least two.
        distance: of features (n, D) and (m, D); its parameters are trained too, where it has any.
        weight: of the distance.

    Returns:
        The model and its id_val loss.
    """
    classifier = engine.pretrained()
    module = Alongside(classifier, target_batches(engine, images, indices), distance)
    loss = train_around(engine, module, source_feed(engine), Plan(rate, penalty=lambda _: weight * module.penalty()))
    return classifier.to(engine.fabric.device), loss
