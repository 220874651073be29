"""Features of one frozen, pretrained backbone for all gathered images, computed once and reused by every probe."""

import numpy as np
import torch
from tqdm import tqdm

from pipeline import cli
from pipeline.imaging.store import Store
from pipeline.params import check_versions, load_params
from pipeline.training.backbone import build
from pipeline.training.checkpoints import load_weights
from pipeline.training.determinism import ComputeParams, make_fabric, memory_format
from pipeline.training.feed import in_batches, to_unit


def main() -> None:
    """Run the stage."""
    arguments = cli.parser(
        __doc__,
        gather="the folder of gather",
        weights="the backbone's folder of weights",
        out="folder for features.npy",
    )
    args = arguments.parse_args()
    check_versions("torch", "torchvision", path=args.params)
    compute = load_params(ComputeParams, "compute", args.params)
    fabric = make_fabric(compute)
    layout = memory_format(compute)
    state, card = load_weights(args.weights)
    images = Store(args.gather)
    model = build(card["backbone"], 1, seed=0, state=state, channels=images.shape[1])
    model = model.to(memory_format=layout).to(fabric.device).eval()
    parts = []
    with torch.no_grad(), tqdm(total=len(images), desc=f"features {card['backbone']}", unit="image") as bar:
        for batch in in_batches(np.arange(len(images)), compute.batch_size):
            parts.append(model.features(to_unit(images.read(batch), fabric.device, layout)).float().cpu().numpy())
            bar.update(len(batch))
    args.out.mkdir(parents=True, exist_ok=True)
    np.save(args.out / "features.npy", np.concatenate(parts), allow_pickle=False)


if __name__ == "__main__":
    cli.run(main)
