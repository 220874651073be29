"""Features of one frozen, pretrained backbone for all gathered images, computed once and reused by every probe."""

import numpy as np
import numpy.typing as npt
import torch
from lightning.fabric import Fabric
from tqdm import tqdm

from pipeline import cli
from pipeline.imaging.store import Store
from pipeline.params import check_versions, load_params
from pipeline.training.backbone import Classifier, architecture, build, has_hidden_layers
from pipeline.training.checkpoints import load_weights
from pipeline.training.determinism import ComputeParams, make_fabric, memory_format
from pipeline.training.feed import AugmentParams, ImageFeed, in_batches

# VGG and its like have dense layers after the pooled map: what the head sees is not what the convolutions say.
FEATURES_FILE, POOLED_FILE = "features.npy", "pooled.npy"


def main() -> None:
    """Run the stage."""
    arguments = cli.parser(
        __doc__,
        gather="the folder of gather",
        weights="the backbone's folder of weights",
        out="folder for features.npy (and pooled.npy, where it differs)",
    )
    args = arguments.parse_args()
    check_versions("torch", "torchvision", path=args.params)
    compute = load_params(ComputeParams, "compute", args.params)
    fabric = make_fabric(compute)
    state, card = load_weights(args.weights)
    images = Store(args.gather)
    channels, rows, columns = images.shape[1:]
    models = {FEATURES_FILE: build(card["backbone"], 1, seed=0, state=state, image_shape=(channels, rows, columns))}
    # Of the whole architecture: the trunk has lost its last layer, perhaps the second of two.
    if has_hidden_layers(architecture(card["backbone"], 0, empty=True)):
        models[POOLED_FILE] = build(
            card["backbone"], 1, seed=0, state=state, image_shape=(channels, rows, columns), pooled=True
        )
    args.out.mkdir(parents=True, exist_ok=True)
    for name, model in models.items():
        np.save(args.out / name, features_of(model, images, fabric, compute, card["backbone"]), allow_pickle=False)


def features_of(
    model: Classifier, images: Store, fabric: Fabric, compute: ComputeParams, description: str
) -> npt.NDArray[np.float32]:
    """(N, D) of all images, in the store's order."""
    layout = memory_format(compute)
    model = model.to(memory_format=layout).to(fabric.device).eval()
    feed = ImageFeed(images, fabric.device, layout, AugmentParams(), 0)
    batches = list(in_batches(np.arange(len(images)), compute.batch_size))
    parts = []
    with torch.inference_mode(), tqdm(total=len(images), desc=f"features {description}", unit="image") as bar:
        for batch, pixels in zip(batches, feed.plain(batches), strict=True):
            parts.append(model.features(pixels).float().cpu().numpy())
            bar.update(len(batch))
    return np.concatenate(parts)


if __name__ == "__main__":
    cli.run(main)
