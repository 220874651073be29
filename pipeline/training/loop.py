"""The training loop: masked binary cross-entropy, AdamW, warm-up and cosine, the best epoch by id_val loss.

**Several processes** (``torchrun``, or ``compute.devices``) take each batch in turns: process r of w has every w-th
image from r on. Losses are divided by the whole batch's labels, so that w processes make the step of one.

**Batch-norm** (``finetune.batch_norm``): ``train`` takes each process's own batch for its statistics, so that several
processes are not one; it is refused there. ``frozen`` holds the statistics of the pretrained weights; ``synchronised``
takes those of all processes' images, on GPUs alone (torch has no such kernel for the CPU).

**Frozen parts** are in evaluation mode: their batch-norm statistics stand still too, in each epoch and after a resume.

**Randomness.** Order and augmentation hang on seed, epoch and image; dropout on seed, epoch, batch and process. Nothing
is carried from step to step, so that a run that was killed goes on as if nothing had been.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from lightning.fabric import Fabric
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from pipeline.errors import PipelineError
from pipeline.params import ParamsError
from pipeline.training.checkpoints import Checkpoint
from pipeline.training.feed import (
    AugmentParams,
    Dataset,
    Feed,
    Floats,
    ImageFeed,
    Images,
    Indices,
    epoch_order,
    in_batches,
)
from pipeline.training.loss import AUXILIARY_WEIGHT, LossParams, loss_weights, masked_loss

# Whether a loss is finite is asked after so many steps: asking makes a GPU wait.
STEPS_UNCHECKED = 16


class LoopParams(LossParams):
    """What all methods that train by gradient share, so that they are compared on an equal budget.

    ``patience``: epochs without a better id_val loss after which training ends; null trains them all.
    ``accumulate``: parts of a batch that go through the device one after the other, where a whole one does not fit.
    How labels weigh is in ``LossParams``.
    """

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=3)  # with 2, an odd number of images leaves a batch of one
    patience: int | None = Field(default=None, ge=1)
    accumulate: int = Field(default=1, ge=1)
    batch_norm: Literal["train", "frozen", "synchronised"] = "train"
    weight_decay: float = Field(default=0.01, ge=0.0)
    warmup_fraction: float = Field(default=0.1, ge=0.0, lt=1.0)
    clip_norm: float = Field(default=1.0, gt=0.0)
    augment: AugmentParams = AugmentParams()


@dataclass(frozen=True)
class Plan:
    """One phase of training.

    Attributes:
        learning_rate: the peak.
        phase: its name in the curves.
        factor: of the learning rate, for a parameter by its name; 0 freezes it.
        penalty: added to the loss, from the model.
        weight_decay: other than the loop's.
        epochs: other than the loop's.
        patience: other than the loop's.
    """

    learning_rate: float
    phase: str = "finetune"
    factor: Callable[[str], float] = lambda name: 1.0  # noqa: ARG005 (one signature)
    penalty: Callable[[nn.Module], Tensor] | None = None
    weight_decay: float | None = None
    epochs: int | None = None
    patience: int | None = None


@dataclass(frozen=True)
class Epoch:
    """A row of a training curve; losses in nats per annotated label."""

    phase: str
    epoch: int
    train_loss: float
    id_val_loss: float
    learning_rate: float
    kept: bool = False


@dataclass
class Progress:
    """How far a phase is: ``batch`` batches of ``epoch`` are done, with the sum of their losses over ``labels``."""

    epoch: int = 0
    batch: int = 0
    loss: float = 0.0
    labels: int = 0
    learning_rate: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    best_loss: float = math.inf
    best_epoch: int = -1
    finished: bool = False


def learning_rate_factor(step: int, steps: int, warmup_fraction: float) -> float:
    """Linear warm-up, then a half cosine to 0, as a factor of the peak (Loshchilov and Hutter, ICLR 2017)."""
    warmup = round(steps * warmup_fraction)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def predict_logits(
    fabric: Fabric,
    model: nn.Module,
    images: Images,
    indices: Indices,
    batch_size: int,
    layout: torch.memory_format,
) -> Floats:
    """Logits (len(indices), findings) float32 in evaluation mode."""
    return judge(fabric, model, ImageFeed(images, fabric.device, layout, AugmentParams(), 0), indices, batch_size)


def judge(fabric: Fabric, model: nn.Module, feed: Feed, indices: Indices, batch_size: int) -> Floats:
    """Logits (len(indices), findings) float32 in evaluation mode; several processes share the work."""
    if not len(indices):
        return np.empty((0, 0), dtype=np.float32)
    model.eval()
    share = -(-len(indices) // fabric.world_size)
    # The last process may have fewer: its share is filled up, and cut off again.
    padded = np.resize(indices, share * fabric.world_size)
    own = padded[share * fabric.global_rank : share * (fabric.global_rank + 1)]
    with torch.inference_mode():
        logits = torch.cat([model(inputs).float() for inputs in feed.plain(in_batches(own, batch_size))])
    if fabric.world_size > 1:
        shares = [torch.empty_like(logits) for _ in range(fabric.world_size)]
        torch.distributed.all_gather(shares, logits.contiguous())
        logits = torch.cat(shares)
    return logits[: len(indices)].cpu().numpy()


def train(
    fabric: Fabric,
    model: nn.Module,
    data: Dataset,
    params: LoopParams,
    plan: Plan,
    *,
    feed: Feed,
    findings: Sequence[str],
    seed: int,
    layout: torch.memory_format,
    description: str,
    compiled: bool = False,
    checkpoint: Checkpoint | None = None,
    on_epoch: Callable[[Epoch], None] = lambda row: None,  # noqa: ARG005 (nobody listens)
) -> list[Epoch]:
    """Train in place; the model ends with the weights of the epoch of least id_val loss.

    Args:
        fabric: the device, or this process's of several.
        model: inputs of ``feed`` to logits (B, findings).
        data: labels and sides.
        params: what is common to all methods.
        plan: what is not.
        feed: the inputs.
        findings: names of the columns of labels.
        seed: of the run.
        layout: memory format of the weights.
        description: for the progress bar and errors.
        compiled: whether torch compiles the model.
        checkpoint: where a killed run finds what it had done.
        on_epoch: told of each epoch, those before a resume too.

    Raises:
        PipelineError: too few images or one class; a loss that is not finite (says which images were in the batch);
            no memory left on the device (says what to lower).
    """
    check_data(data, findings, description)
    check_batches(fabric, data, params, description)
    model.to(memory_format=layout)
    found = checkpoint.load() if checkpoint is not None else None
    if found is None or not found["progress"]["finished"]:
        trainer = _Trainer(fabric, model, data, params, plan, feed, findings, seed, description, compiled, found)
        found = trainer.run(checkpoint, on_epoch)
    else:
        for row in found["progress"]["rows"]:
            on_epoch(Epoch(**row))
    progress = found["progress"]
    if progress["best_epoch"] < 0:
        raise PipelineError(f"{description}: the id_val loss was never finite")
    model.requires_grad_(True)
    model.load_state_dict(found["best"])
    model.to(fabric.device).eval()
    return [Epoch(**{**row, "kept": row["epoch"] == progress["best_epoch"]}) for row in progress["rows"]]


class _Trainer:
    """One phase under way: the model wrapped for the device, its optimiser and how far it is."""

    def __init__(
        self, fabric: Fabric, model: nn.Module, data: Dataset, params: LoopParams, plan: Plan, feed: Feed,
        findings: Sequence[str], seed: int, description: str, compiled: bool, found: Mapping[str, Any] | None,
    ) -> None:  # fmt: skip
        self.fabric, self.data, self.params, self.plan, self.feed = fabric, data, params, plan, feed
        self.seed, self.description = seed, description
        self.epochs = plan.epochs or params.epochs
        self.patience = plan.patience or params.patience
        self.model = model
        if params.batch_norm == "synchronised":
            nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]  # in place
        optimiser = torch.optim.AdamW(
            parameter_groups(self.model, plan),
            weight_decay=params.weight_decay if plan.weight_decay is None else plan.weight_decay,
        )
        self.wrapped, self.optimiser = fabric.setup(torch.compile(self.model) if compiled else self.model, optimiser)
        steps = self.epochs * num_batches(data, params)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser, lambda step: learning_rate_factor(step, steps, params.warmup_fraction)
        )
        self.labels = torch.from_numpy(data.labels).to(fabric.device)
        self.weights = loss_weights(data, params, findings, fabric.device)
        self.progress = Progress()
        self.best: Mapping[str, Tensor] = {}
        if found is not None:
            self.progress = Progress(**found["progress"])
            self.best = found["best"]
            self.model.load_state_dict(found["model"])
            self.optimiser.load_state_dict(found["optimiser"])
            self.schedule.load_state_dict(found["schedule"])

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        return {
            "progress": vars(self.progress),
            "best": self.best,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def run(self, checkpoint: Checkpoint | None, on_epoch: Callable[[Epoch], None]) -> dict[str, Any]:
        """From where it stands to the end."""
        progress, images = self.progress, len(self.data.train)
        for done in progress.rows:
            on_epoch(Epoch(**done))

        def save(*, now: bool) -> None:
            if checkpoint is not None and self.fabric.is_global_zero and (now or checkpoint.due()):
                checkpoint.save(self.state())

        seen_before = progress.epoch * images + progress.batch * self.params.batch_size
        with tqdm(
            total=self.epochs * images, initial=min(seen_before, self.epochs * images), desc=self.description,
            unit="image", mininterval=0.5, disable=not self.fabric.is_global_zero,
        ) as bar:  # fmt: skip
            while not progress.finished:
                if progress.batch == 0:
                    progress.learning_rate = float(self.schedule.get_last_lr()[0])
                for seen in self._batches():
                    bar.update(seen)
                    save(now=False)
                row = self._judge()
                bar.set_postfix(train=f"{row.train_loss:.3f}", id_val=f"{row.id_val_loss:.3f}")
                on_epoch(row)
                save(now=progress.finished)
        return self.state()

    def _batches(self) -> Iterator[int]:
        """The rest of the epoch; after each few steps, checked to be finite, the number of images seen."""
        progress, fabric = self.progress, self.fabric
        order = epoch_order(self.data.train, self.seed, progress.epoch)
        batches = list(in_batches(order, self.params.batch_size))[progress.batch :]
        parts = [np.array_split(b[fabric.global_rank :: fabric.world_size], self.params.accumulate) for b in batches]
        inputs = self.feed.training([part for of_batch in parts for part in of_batch], progress.epoch)
        set_modes(self.wrapped, self.params)
        for start in range(0, len(batches), STEPS_UNCHECKED):
            group = range(start, min(start + STEPS_UNCHECKED, len(batches)))
            first = progress.batch
            losses = [self._step(batches[n], parts[n], inputs, first + n - start) for n in group]
            self._check_losses(torch.stack(losses), [batches[n] for n in group])
            progress.batch += len(losses)
            yield sum(len(batches[n]) for n in group)

    def _step(self, batch: Indices, parts: list[Indices], inputs: Iterator[Tensor], number: int) -> Tensor:
        """One step of the optimiser; this process's share of the batch's summed loss."""
        # Dropout draws from torch's global generator.
        torch.manual_seed(_mixed(self.seed, self.progress.epoch, number, self.fabric.global_rank))
        known = max(1, int(np.isfinite(self.data.labels[batch]).sum()))
        total = torch.zeros((), device=self.fabric.device)
        self.optimiser.zero_grad()
        try:
            for position, part in enumerate(parts):
                labels = self.labels[torch.from_numpy(part).to(self.labels.device)]
                with self.fabric.no_backward_sync(self.wrapped, enabled=position < len(parts) - 1):
                    outputs = self.wrapped(next(inputs))
                    logits, *others = outputs if isinstance(outputs, tuple) else (outputs,)
                    summed, _ = masked_loss(logits, labels, *self.weights)
                    loss = summed + sum(AUXILIARY_WEIGHT * masked_loss(o, labels, *self.weights)[0] for o in others)
                    # Gradients are averaged over processes: times their number, they are those of the whole batch.
                    loss = loss * (self.fabric.world_size / known)
                    if self.plan.penalty is not None:
                        loss = loss + self.plan.penalty(self.model) / len(parts)
                    self.fabric.backward(loss)
                total += summed.detach()
            norm = self.fabric.clip_gradients(
                self.wrapped, self.optimiser, max_norm=self.params.clip_norm, error_if_nonfinite=False
            )
            self.optimiser.step()
        except torch.OutOfMemoryError:
            raise PipelineError(
                f"{self.description}: no memory left on {self.fabric.device} at a batch of {len(batch)} images. Lower "
                "finetune.batch_size, raise finetune.accumulate (as many parts of a batch go one after the other), or "
                "set compute.precision: bf16-mixed"
            ) from None
        self.schedule.step()
        # Not finite where the gradient is not; asking here would make a GPU wait.
        return total + 0.0 * norm.detach() if norm is not None else total

    def _check_losses(self, losses: Tensor, batches: Sequence[Indices]) -> None:
        """Add up the losses of some steps; all processes see the same sums."""
        losses = self.fabric.all_reduce(losses, reduce_op="sum") if self.fabric.world_size > 1 else losses
        for value, batch in zip(losses.tolist(), batches, strict=True):
            if not math.isfinite(value):
                raise PipelineError(
                    f"{self.description}: the loss is {value} in epoch {self.progress.epoch} at the batch of images "
                    f"{', '.join(self.data.image_ids[batch])}; lower the learning rate, or look at these images. "
                    "Nothing of this batch was saved"
                )
            self.progress.loss += value
            self.progress.labels += int(np.isfinite(self.data.labels[batch]).sum())

    def _judge(self) -> Epoch:
        """The epoch's end: its row, the best weights so far, and whether it was the last."""
        progress, data = self.progress, self.data
        logits = judge(self.fabric, self.wrapped, self.feed, data.id_val, self.params.batch_size)
        weights = [None if weight is None else weight.cpu() for weight in self.weights]
        total, count = masked_loss(torch.from_numpy(logits), torch.from_numpy(data.labels[data.id_val]), *weights)
        row = Epoch(
            self.plan.phase, progress.epoch, progress.loss / max(1, progress.labels), float(total / count),
            progress.learning_rate,
        )  # fmt: skip
        progress.rows.append(vars(row))
        if math.isfinite(row.id_val_loss) and row.id_val_loss < progress.best_loss:
            progress.best_loss, progress.best_epoch = row.id_val_loss, progress.epoch
            self.best = copy.deepcopy(self.model.state_dict())
        stale = self.patience is not None and progress.epoch - progress.best_epoch >= self.patience
        progress.epoch, progress.batch, progress.loss, progress.labels = progress.epoch + 1, 0, 0.0, 0
        progress.finished = stale or progress.epoch >= self.epochs
        return row


def parameter_groups(model: nn.Module, plan: Plan) -> list[dict[str, Any]]:
    """The optimiser's groups, one a learning rate; what the plan freezes needs no gradient from now on."""
    factors = {name: plan.factor(name) for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(factors[name] > 0)
    return [
        {
            "params": [parameter for name, parameter in model.named_parameters() if factors[name] == factor],
            "lr": plan.learning_rate * factor,
        }
        for factor in sorted({value for value in factors.values() if value > 0}, reverse=True)
    ]


def set_modes(model: nn.Module, params: LoopParams) -> None:
    """Training mode, but for what is frozen: there neither batch-norm's statistics nor dropout are at work."""
    model.train()
    for module in model.modules():
        own = list(module.parameters())
        frozen = bool(own) and not any(parameter.requires_grad for parameter in own)
        if frozen or (params.batch_norm == "frozen" and isinstance(module, _BatchNorm)):
            module.eval()


def check_data(data: Dataset, findings: Sequence[str], description: str) -> None:
    """Whether there is enough to train on.

    Raises:
        PipelineError: too few images, or a finding with fewer than two classes; says which.
    """
    if len(data.train) < 2 or len(data.id_val) == 0:
        raise PipelineError(
            f"{description}: training needs 2 images to train on (batch-norm) and 1 in id_val; there are "
            f"{len(data.train)} and {len(data.id_val)}"
        )
    for finding, labels in zip(findings, data.labels[data.train].T, strict=True):
        positives, negatives = int((labels == 1).sum()), int((labels == 0).sum())
        if not positives or not negatives:
            raise PipelineError(
                f"{description}: training needs images with and without '{finding}'; there are {positives} with and "
                f"{negatives} without"
            )


def num_batches(data: Dataset, params: LoopParams) -> int:
    """Of an epoch."""
    return max(1, -(-len(data.train) // params.batch_size))


def check_batches(fabric: Fabric, data: Dataset, params: LoopParams, description: str) -> None:
    """Whether batches can be divided over processes, and batch-norm be what params say.

    Raises:
        PipelineError: a part would be empty, or hold one image where batch-norm needs two.
        ParamsError: batch-norm cannot be so on this device or with several processes.
    """
    parts = fabric.world_size * params.accumulate
    least = len(data.train) // num_batches(data, params) // parts
    if least < (1 if params.batch_norm == "frozen" else 2):
        raise PipelineError(
            f"{description}: a batch of {params.batch_size} of {len(data.train)} images in {parts} parts (processes x "
            f"finetune.accumulate) leaves {least} in some; raise finetune.batch_size, or use fewer"
        )
    if fabric.world_size > 1 and params.batch_norm == "train":
        raise ParamsError(
            "finetune.batch_norm: several processes need 'frozen', or 'synchronised' on GPUs: with 'train' each would "
            "take statistics of its own images, and the result hang on their number"
        )
    if params.batch_norm == "synchronised" and fabric.device.type != "cuda":
        raise ParamsError("finetune.batch_norm: 'synchronised' needs GPUs; torch has no kernel for the CPU")


def _mixed(*numbers: int) -> int:
    """One seed out of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
