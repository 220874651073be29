"""What each process of test_distributed runs; under torchrun, or alone."""

import sys
from pathlib import Path

import numpy as np
import tiny
import torch

from pipeline.training import loop
from pipeline.training.backbone import build
from pipeline.training.determinism import ComputeParams, make_fabric
from pipeline.training.feed import AugmentParams, ImageFeed
from pipeline.training.loop import Plan, predict_logits, train


def main() -> None:
    """Three steps; the state of process 0 goes to a file, with what all predict together."""
    processes, batch_norm, fault, out = int(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4])
    if batch_norm == "each":  # what is refused, to show why
        loop.check_batches = lambda *_arguments: None
        batch_norm = "train"
    if fault == "own_images":  # each process divides by its own share's labels
        real = loop.masked_loss
        loop.masked_loss = lambda *arguments: (real(*arguments)[0] * 0.5, real(*arguments)[1])
    fabric = make_fabric(ComputeParams(threads=1, accelerator="cpu", devices=processes), together=True)
    data = tiny.dataset(num=31, num_val=7)
    data.labels[3] = np.nan
    params = tiny.loop(epochs=1, batch_size=8, batch_norm=batch_norm, augment=AugmentParams())
    model = build("resnet18", 1, seed=1, state=tiny.weights("resnet18"), image_shape=(1, 32, 32))
    feed = ImageFeed(data.images, fabric.device, torch.contiguous_format, params.augment, 1)
    rows = train(
        fabric, model, data, params, Plan(1e-3), feed=feed, findings=["opacity"], seed=1,
        layout=torch.contiguous_format, description="run",
    )  # fmt: skip
    together = predict_logits(fabric, model, data.images, data.id_val, 3, torch.contiguous_format)
    if fabric.is_global_zero:
        state = {key: value.clone() for key, value in model.state_dict().items()}
        torch.save({"state": state, "logits": torch.from_numpy(together), "loss": rows[0].train_loss}, out)
    fabric.barrier()


if __name__ == "__main__":
    main()
