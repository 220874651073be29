"""The training loop: masked binary cross-entropy, AdamW, warm-up and cosine, the best epoch by id_val loss."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from pydantic import Field
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm import tqdm

from pipeline.errors import PipelineError
from pipeline.imaging.store import Store
from pipeline.params import StrictParams
from pipeline.training.backbone import Classifier
from pipeline.training.feed import (
    AugmentParams,
    Dataset,
    Indices,
    augment,
    draw_affine,
    epoch_order,
    in_batches,
    to_unit,
)


class LoopParams(StrictParams):
    """What all methods that train by gradient share, so that they are compared on an equal budget."""

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=3)  # with 2, an odd number of images leaves a batch of one
    weight_decay: float = Field(default=0.01, ge=0.0)
    warmup_fraction: float = Field(default=0.1, ge=0.0, lt=1.0)
    clip_norm: float = Field(default=1.0, gt=0.0)
    augment: AugmentParams = AugmentParams()


@dataclass(frozen=True)
class Epoch:
    """A row of a training curve; losses in nats per annotated label."""

    phase: str
    epoch: int
    train_loss: float
    id_val_loss: float
    learning_rate: float
    kept: bool = False


def masked_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy summed over annotated labels, and how many they are; NaN labels count for nothing.

    Args:
        logits: (B, findings).
        labels: (B, findings) 0, 1 or NaN.
    """
    known = ~torch.isnan(labels)
    losses = binary_cross_entropy_with_logits(logits, torch.nan_to_num(labels), reduction="none")
    return (losses * known).sum(), known.sum()


def learning_rate_factor(step: int, steps: int, warmup_fraction: float) -> float:
    """Linear warm-up, then a half cosine to 0, as a factor of the peak (Loshchilov and Hutter, ICLR 2017)."""
    warmup = round(steps * warmup_fraction)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def predict_logits(
    fabric: Fabric,
    model: torch.nn.Module,
    images: Store,
    indices: Indices,
    batch_size: int,
    layout: torch.memory_format,
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Logits (len(indices), findings) float32 in evaluation mode."""
    model.eval()
    parts = []
    with torch.no_grad():
        for batch in in_batches(indices, batch_size) if len(indices) else ():
            logits = model(to_unit(images.read(batch), fabric.device, layout))
            parts.append(logits.float().cpu().numpy())
    return np.concatenate(parts) if parts else np.empty((0, 0), dtype=np.float32)


def train(
    fabric: Fabric,
    model: Classifier,
    data: Dataset,
    params: LoopParams,
    *,
    learning_rate: float,
    seed: int,
    layout: torch.memory_format,
    description: str,
    phase: str = "finetune",
    parameters: Callable[[Classifier], Sequence[Tensor]] = lambda model: list(model.parameters()),
) -> list[Epoch]:
    """Train in place; the model ends with the weights of the epoch of least id_val loss.

    Raises:
        PipelineError: the loss is not finite; says which images were in the batch (as array indices). Or there are
            too few images.
    """
    if len(data.train) < 2 or len(data.id_val) == 0:
        raise PipelineError(
            f"{description}: training needs 2 images to train on (batch-norm) and 1 in id_val; there are "
            f"{len(data.train)} and {len(data.id_val)}"
        )
    model.to(memory_format=layout)
    chosen = parameters(model)
    optimiser = torch.optim.AdamW(chosen, lr=learning_rate, weight_decay=params.weight_decay)
    wrapped, optimiser = fabric.setup(model, optimiser)
    steps = params.epochs * len(list(in_batches(data.train, params.batch_size)))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: learning_rate_factor(step, steps, params.warmup_fraction)
    )
    # Dropout draws from torch's global generator.
    torch.manual_seed(seed)
    rows: list[Epoch] = []
    best: tuple[float, int, dict[str, Tensor]] | None = None
    bar = tqdm(total=params.epochs * len(data.train), desc=description, unit="image", mininterval=0.5)
    with bar:
        for epoch in range(params.epochs):
            rate = float(optimiser.param_groups[0]["lr"])
            train_loss = _train_epoch(fabric, wrapped, optimiser, schedule, data, params, seed, epoch, layout, bar)
            logits = predict_logits(fabric, wrapped, data.images, data.id_val, params.batch_size, layout)
            total, count = masked_loss(torch.from_numpy(logits), torch.from_numpy(data.labels[data.id_val]))
            id_val_loss = float(total / count)
            bar.set_postfix(train=f"{train_loss:.3f}", id_val=f"{id_val_loss:.3f}")
            rows.append(Epoch(phase, epoch, train_loss, id_val_loss, rate))
            if math.isfinite(id_val_loss) and (best is None or id_val_loss < best[0]):
                best = (id_val_loss, epoch, copy.deepcopy(model.state_dict()))
    if best is None:
        raise PipelineError(f"{description}: the id_val loss was never finite")
    model.load_state_dict(best[2])
    model.eval()
    return [Epoch(**{**vars(row), "kept": row.epoch == best[1]}) for row in rows]


def _train_epoch(
    fabric: Fabric, model: Any, optimiser: Any, schedule: Any, data: Dataset, params: LoopParams,
    seed: int, epoch: int, layout: torch.memory_format, bar: Any,
) -> float:  # fmt: skip
    """One pass over the training images; returns the mean loss per annotated label."""
    model.train()
    theta, contrast = draw_affine(len(data.images), seed, epoch, params.augment)
    sums, counts = 0.0, 0
    for batch in in_batches(epoch_order(data.train, seed, epoch), params.batch_size):
        images = augment(
            to_unit(data.images.read(batch), fabric.device, layout),
            torch.from_numpy(theta[batch]).to(fabric.device),
            torch.from_numpy(contrast[batch]).to(fabric.device),
        )
        labels = torch.from_numpy(data.labels[batch]).to(fabric.device)
        total, count = masked_loss(model(images), labels)
        loss = total / count.clamp(min=1)
        if not torch.isfinite(loss):
            raise PipelineError(
                f"the loss is {loss.item()} in epoch {epoch} at the batch of array indices {batch.tolist()}; "
                "lower the learning rate, or look at these images (data/gather/samples.parquet names them)"
            )
        optimiser.zero_grad()
        fabric.backward(loss)
        fabric.clip_gradients(model, optimiser, max_norm=params.clip_norm)
        optimiser.step()
        schedule.step()
        sums, counts = sums + float(total.detach()), counts + int(count)
        bar.update(len(batch))
    return sums / max(1, counts)
