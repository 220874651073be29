"""What a transfer method works with: models, the data, the probe and the loop, all under one seed."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from lightning.fabric import Fabric
from torch import Tensor

from pipeline.training.backbone import Classifier, build
from pipeline.training.feed import Dataset
from pipeline.training.loop import Epoch, LoopParams, train
from pipeline.training.probe import fit_probe


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
        loop: shared by all methods that train by gradient.
        seed: of this run.
        layout: memory format of images and weights.
        description: for the progress bar.
        curves: filled as training goes on.
    """

    fabric: Fabric
    backbone: str
    weights: Mapping[str, Tensor]
    findings: list[str]
    data: Dataset
    features: npt.NDArray[np.float32]
    loop: LoopParams
    seed: int
    layout: torch.memory_format
    description: str
    curves: list[Epoch] = field(default_factory=list)

    def scratch(self) -> Classifier:
        """A model with random weights."""
        return build(self.backbone, len(self.findings), seed=self.seed, state=None, channels=self.data.images.shape[1])

    def pretrained(self) -> Classifier:
        """A model whose trunk has the pretrained weights; its head is random."""
        return build(
            self.backbone, len(self.findings), seed=self.seed, state=self.weights, channels=self.data.images.shape[1]
        )

    def probe_head(self, model: Classifier, inverse_l2: list[float]) -> None:
        """Set the head to the logistic regression on the frozen features, a finding at a time."""
        for position, finding in enumerate(self.findings):
            probe = fit_probe(
                self.features, self.data.labels[:, position], self.data.train, self.data.id_val, inverse_l2, finding
            )
            with torch.no_grad():
                model.head.weight[position] = torch.from_numpy(probe.weight)
                model.head.bias[position] = probe.bias
            phase = f"probe {finding}"
            self.curves.append(Epoch(phase, 0, probe.train_loss, probe.id_val_loss, float("nan"), kept=True))

    def train_all(self, model: Classifier, learning_rate: float) -> None:
        """Train every parameter; the epoch of least id_val loss stays."""
        self.curves.extend(
            train(
                self.fabric,
                model,
                self.data,
                self.loop,
                learning_rate=learning_rate,
                seed=self.seed,
                layout=self.layout,
                description=self.description,
            )
        )
