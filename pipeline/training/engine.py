"""What a transfer method works with: models, the data, the probe and the loop, all under one seed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from lightning.fabric import Fabric
from pydantic import BeforeValidator, Field, PositiveFloat
from torch import Tensor, nn

from pipeline.params import ParamsError
from pipeline.training.backbone import Classifier, blocks, build
from pipeline.training.checkpoints import Checkpoint
from pipeline.training.feed import Dataset, FeatureFeed, Feed, ImageFeed
from pipeline.training.loop import Epoch, LoopParams, Plan, train
from pipeline.training.probe import fit_probe

# One learning rate, or several to choose from by the id_val loss: a method's tuning budget.
LearningRates = Annotated[
    list[PositiveFloat],
    Field(min_length=1),
    BeforeValidator(lambda value: value if isinstance(value, list) else [value]),
]
InverseL2 = Annotated[list[PositiveFloat], Field(min_length=1)]


@dataclass
class Engine:
    """One run's tools. Everything random in it hangs on ``seed``.

    Attributes:
        fabric: the device.
        backbone: name in torchvision's registry.
        weights: state dict of the pretrained backbone.
        findings: outputs, in order.
        data: source images only.
        features: (N, D) float32 of the frozen pretrained backbone, N as in ``data``.
        pooled: the same from the pooled last map of the convolutions; ``features`` for most backbones.
        loop: shared by all methods that train by gradient.
        seed: of this run.
        layout: memory format of images and weights.
        description: for the progress bar.
        compiled: whether torch compiles what is trained.
        work: where a killed run finds what it had done; None keeps nothing.
        on_epoch: told of each epoch.
        curves: filled as training goes on.
        trials: candidates that were tried, of which id_val chose one.
        image_passes: images that went forward and back through a model, over all candidates.
        judged: images of id_val that went forward through one.
    """

    fabric: Fabric
    backbone: str
    weights: Mapping[str, Tensor]
    findings: list[str]
    data: Dataset
    features: npt.NDArray[np.float32]
    pooled: npt.NDArray[np.float32]
    loop: LoopParams
    seed: int
    layout: torch.memory_format
    description: str
    compiled: bool = False
    work: Path | None = None
    on_epoch: Callable[[Epoch], None] = lambda row: None  # noqa: ARG005 (nobody listens)
    curves: list[Epoch] = field(default_factory=list)
    trials: int = 1
    image_passes: int = 0
    judged: int = 0
    _phases: int = 0

    def scratch(self) -> Classifier:
        """A model with random weights.

        Raises:
            ParamsError: batch-norm is frozen, of which a random network has no statistics.
        """
        if self.loop.batch_norm == "frozen":
            raise ParamsError(
                "finetune.batch_norm: 'frozen' leaves a network that is trained from scratch without statistics; use "
                "'train', or 'synchronised' on several GPUs, or take the methods from scratch out"
            )
        return self._build(None)

    def pretrained(self, *, hidden: int | None = None, pooled: bool = False) -> Classifier:
        """A model whose trunk has the pretrained weights; its head is random."""
        return self._build(self.weights, hidden, pooled)

    def blocks(self, model: Classifier) -> list[list[str]]:
        """The parameters' names in blocks from the input to the output, the head last."""
        trunk = [[f"trunk.{name}" for name in block] for block in blocks(model.trunk)]
        return [*trunk, [f"head.{name}" for name, _ in model.head.named_parameters()]]

    def probe_head(self, model: Classifier, inverse_l2: list[float]) -> None:
        """Set the head to the logistic regression on the frozen features, a finding at a time."""
        self.trials = max(self.trials, len(inverse_l2))
        for position, finding in enumerate(self.findings):
            probe = fit_probe(
                self.features, self.data.labels[:, position], self.data.train, self.data.id_val, inverse_l2, finding
            )
            self.set_head(model, position, probe.weight, probe.bias)
            phase = f"probe {finding}"
            self.curves.append(Epoch(phase, 0, probe.train_loss, probe.id_val_loss, float("nan"), kept=True))

    def set_head(self, model: Classifier, position: int, weight: npt.NDArray[np.float64], bias: float) -> None:
        """Weight (D,) and bias of one finding's logit."""
        with torch.no_grad():
            model.last.weight[position] = torch.from_numpy(weight)
            model.last.bias[position] = bias

    def train(self, model: Classifier, plan: Plan) -> float:
        """Train on images; returns the id_val loss of the epoch that stays."""
        augmentation = self.loop.augment
        feed = ImageFeed(self.data.images, self.fabric.device, self.layout, augmentation, self.seed)
        return self._train(model, plan, feed)

    def train_head(self, model: Classifier, plan: Plan, features: npt.NDArray[np.float32]) -> float:
        """Train the head alone, on cached features (N, D) of the frozen trunk; as ``train``."""
        passes, judged = self.image_passes, self.judged
        loss = self._train(model.head, plan, FeatureFeed(torch.from_numpy(features).to(self.fabric.device)))
        self.image_passes, self.judged = passes, judged  # no image went anywhere
        model.to(self.fabric.device).eval()
        return loss

    def best_of(self, rates: Sequence[float], fit: Callable[[float], tuple[Classifier, float]]) -> Classifier:
        """The model of the learning rate whose id_val loss is least; all of them stand in the curves.

        Args:
            rates: learning rates.
            fit: from a learning rate to a trained model and its id_val loss.
        """
        self.trials = max(self.trials, len(rates))
        before = self.curves
        rows: list[list[Epoch]] = []
        fitted: list[tuple[float, Classifier]] = []
        for rate in rates:
            self.curves = []
            model, loss = fit(rate)
            rows.append(self.curves)
            if not fitted or loss < fitted[-1][0]:
                fitted = [(loss, model)]
                chosen = len(rows) - 1
        self.curves = list(before)
        for number, (rate, own) in enumerate(zip(rates, rows, strict=True)):
            for row in own:
                phase = row.phase if len(rates) == 1 else f"{row.phase}, rate {rate:g}"
                self.curves.append(replace(row, phase=phase, kept=row.kept and number == chosen))
        return fitted[-1][1]

    def _build(self, state: Mapping[str, Tensor] | None, hidden: int | None = None, pooled: bool = False) -> Classifier:
        _, channels, rows, columns = self.data.images.shape
        return build(
            self.backbone, len(self.findings), seed=self.seed, state=state, image_shape=(channels, rows, columns),
            hidden=hidden, pooled=pooled,
        )  # fmt: skip

    def _train(self, model: nn.Module, plan: Plan, feed: Feed) -> float:
        self._phases += 1
        rows = train(
            self.fabric,
            model,
            self.data,
            self.loop,
            plan,
            feed=feed,
            findings=self.findings,
            seed=self.seed,
            layout=self.layout,
            description=self.description,
            compiled=self.compiled,
            checkpoint=None if self.work is None else Checkpoint(self.work / f"phase{self._phases}.pt"),
            on_epoch=self.on_epoch,
        )
        self.image_passes += len(rows) * len(self.data.train)
        self.judged += len(rows) * len(self.data.id_val)
        self.curves.extend(rows)
        return min(row.id_val_loss for row in rows if row.kept)
