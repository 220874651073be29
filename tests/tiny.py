"""Small data, weights and folders for the tests of training and its stages; one thread throughout."""

import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np
import pandas as pd
import torch
from ruamel.yaml import YAML

from pipeline.imaging.store import INDEX_FILE, PlaneFormat, write_store
from pipeline.tables.contract import write_table
from pipeline.tables.images import Images, Splits
from pipeline.tables.labels import Labels
from pipeline.tables.training import Samples
from pipeline.training.backbone import architecture, input_spec
from pipeline.training.checkpoints import save_weights
from pipeline.training.determinism import ComputeParams, make_fabric
from pipeline.training.engine import Engine
from pipeline.training.feed import AugmentParams, Dataset, to_unit
from pipeline.training.loop import LoopParams

torch.set_num_threads(1)

BACKBONE = "shufflenet_v2_x0_5"
NATIVE_PX = {"inception_v3": 299, "vit_b_16": 224}  # others take any size
COMPUTE = {"threads": 1, "accelerator": "cpu", "batch_size": 7}
STILL = AugmentParams(rotation_degrees=0.0, translation=0.0, scale=0.0, contrast=0.0)
METHODS = {
    "scratch": {"learning_rate": 1e-3},
    "scratch_converged": {"learning_rate": 1e-3, "epochs": 2, "patience": 1},
    "linear_probe": {"inverse_l2": [1e-3, 1e-1]},
    "vgg_head": {"learning_rate": 1e-3, "hidden": 16},
    "full_finetune": {"learning_rate": 1e-3},
    "lp_ft": {"inverse_l2": [1e-3, 1e-1], "learning_rate": 1e-3},
    "gradual_unfreeze": {"learning_rate": 1e-3, "groups": 1},
    "layer_decay": {"learning_rate": 1e-3},
    "l2_sp": {"learning_rate": 1e-3},
    "prototypes": {"shots": [1, 2], "draws": 2},
}
SCRATCH = ["scratch", "scratch_converged"]
FROZEN = ["linear_probe", "vgg_head", "prototypes"]  # no weight of the trunk changes
BY_EPOCHS = sorted(set(METHODS) - {"linear_probe", "prototypes"})


def fabric():
    return make_fabric(ComputeParams(threads=1, accelerator="cpu"))


def images(labels, size_px=32, seed=0):
    """(N, H, W) uint8 noise, brighter in the left half where the label is 1."""
    made = np.random.default_rng(seed).integers(0, 120, (len(labels), size_px, size_px))
    made[np.asarray(labels) == 1, :, : size_px // 2] += 120
    return made.astype(np.uint8)


class Memory:
    """A store of one-channel images in memory."""

    def __init__(self, pixels):
        self.pixels = pixels[:, None]
        self.shape = self.pixels.shape

    def __len__(self):
        return len(self.pixels)

    def read(self, indices):
        return self.pixels[indices]


def dataset(num=24, num_val=8, size_px=32, seed=0, findings=1):
    """Separable by the left half's brightness; the last ``num_val`` images are id_val; two images a patient."""
    truth = np.arange(num) % 2
    return Dataset(
        images=Memory(images(truth, size_px, seed)),
        labels=np.repeat(truth.astype(np.float32)[:, None], findings, axis=1),
        patients=np.array([f"p{index // 2:03d}" for index in range(num)]),
        train=np.arange(num - num_val),
        pool=np.arange(num - num_val),
        id_val=np.arange(num - num_val, num),
        image_ids=np.array([f"image{index:03d}" for index in range(num)]),
    )


def loop(**changes):
    return LoopParams(**{"epochs": 2, "batch_size": 8, "augment": STILL, **changes})


@cache
def weights(backbone=BACKBONE, seed=7):
    """Random, with batch-norm statistics of noise: with the fresh ones features would vanish in evaluation mode."""
    size_px = NATIVE_PX.get(backbone, 64)
    model = architecture(backbone, seed).train()
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for module in norms:
        module.momentum = None
    if norms:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            model(torch.randn(32 if size_px == 64 else 2, 3, size_px, size_px))
    return MappingProxyType(model.state_dict())


def engine(data, backbone=BACKBONE, seed=1, **changes):
    state = weights(backbone)
    made = Engine(
        fabric=fabric(),
        backbone=backbone,
        weights=state,
        findings=[f"finding{index}" for index in range(data.labels.shape[1])],
        data=data,
        features=np.empty((0, 0), np.float32),
        pooled=np.empty((0, 0), np.float32),
        loop=loop(),
        seed=seed,
        layout=torch.contiguous_format,
        description="test",
    )
    for name, value in changes.items():
        setattr(made, name, value)
    if not made.features.size:
        every = torch.from_numpy(data.images.read(np.arange(len(data.images))))
        unit = to_unit(every, torch.device("cpu"), torch.contiguous_format)
        with torch.no_grad():
            made.features = made.pretrained().eval().features(unit).numpy()
            made.pooled = made.pretrained(pooled=True).eval().features(unit).numpy()
    return made


def card_of(model, backbone, made):
    """What loading a model needs."""
    return {
        "backbone": backbone,
        "findings": made.findings,
        "image_shape": made.data.images.shape[1:],
        "hidden": None if isinstance(model.head, torch.nn.Linear) else model.last.in_features,
        "pooled": model.pooled,
        "input": model.input_spec,
    }


# --- folders as the stages before leave them --------------------------------------------------------------


def write_params(path: Path, **changes: Any) -> Path:
    """A params.yaml with what the stages of training read."""
    packages = ("monai", "numpy", "scikit-learn", "scipy", "torch", "torchvision")
    params = {
        "split": {"seed": 1, "source": ["home"], "target": ["away"]},
        "backbones": {BACKBONE: {"weights": "IMAGENET1K_V1"}},
        "methods": METHODS,
        "compute": COMPUTE,
        "finetune": {"seeds": [1], "epochs": 1, "batch_size": 8},
        "evaluate": {"resamples": 100, "seed": 1},
        "versions": {name: version(name).split("+")[0] for name in packages},
        **changes,
    }
    yaml = YAML(typ="safe")
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(params, file)
    return path


def write_weights(folder: Path, backbone: str = BACKBONE) -> dict[str, torch.Tensor]:
    """As ``fetch_weights`` leaves them, from a made-up file."""
    spec = input_spec(backbone)
    card = {
        "backbone": backbone,
        "input": {"mean": spec.mean, "std": spec.std},
        "initialisation": "file",
        "name": "random numbers, for tests",
        "sha256": "ab" * 32,
        "licence": "a licence",
        "request": {},
    }
    save_weights(weights(backbone), card, folder)
    return weights(backbone)


def image_name(index: int) -> str:
    """An image_id whose alphabetical order is not that of the array."""
    return f"i{index * 7 % 97:03d}"


def write_gather(folder: Path, num: int = 32, finding: str = "opacity") -> Path:
    """Three quarters train, the rest id_val; two images a patient, with one label."""
    truth = np.arange(num) % 2
    write_store(images(truth), np.arange(num)[:, None], PlaneFormat(32, 8), folder)
    names = [image_name(index) for index in range(num)]
    samples = pd.DataFrame(
        {
            "image_id": names[::-1],  # neither sorted by id nor by index
            "array_index": np.arange(num)[::-1],
            "patient_id": [f"p{index // 4 * 2 + index % 2:03d}" for index in range(num)][::-1],
            "site": "home",
            "split": ["id_val" if index >= num * 3 // 4 else "train" for index in range(num)][::-1],
        }
    )
    write_table(Samples, samples, folder / "samples.parquet")
    write_table(
        Labels,
        [{"image_id": n, "finding": finding, "label": int(y)} for n, y in zip(names, truth, strict=True)],
        folder / "labels.parquet",
    )
    return folder


def write_sites(root: Path, finding: str = "opacity", per_split: int = 6) -> None:
    """split, images and labels of a source (home) and a target (away)."""
    sides = {
        "home": [("source", split) for split in ("train", "id_val", "id_test")],
        "away": [("target", split) for split in ("target_adapt", "ood_test")],
    }
    rows = []
    for site, parts in sides.items():
        names = []
        for role, split in parts:
            for index in range(per_split):
                name = f"{site}-{split}-{index}"
                names.append(name)
                rows.append(
                    {
                        "image_id": name,
                        "patient_id": f"patient-{name}",
                        "study_id": name,
                        "site": site,
                        "role": role,
                        "split": split,
                    }
                )
        truth = np.arange(len(names)) % 2
        write_store(
            images(truth, seed=len(site)), np.arange(len(names))[:, None], PlaneFormat(32, 8), root / "images" / site
        )
        write_table(
            Images,
            [
                {"image_id": n, "array_index": i, "voi": "none", "inverted": False, "pixels_sha256": "00"}
                for i, n in enumerate(names)
            ],
            root / "images" / site / INDEX_FILE,
        )
        write_table(
            Labels,
            [{"image_id": n, "finding": finding, "label": int(y)} for n, y in zip(names, truth, strict=True)],
            root / "labels" / site / "labels.parquet",
        )
    write_table(Splits, rows, root / "split" / "splits.parquet")


def call(monkeypatch: Any, module: ModuleType, *arguments: object, **paths: object) -> None:
    """Run a stage's or command's ``main`` with these options, in this process."""
    options = [str(part) for name, path in paths.items() for part in (f"--{name}", path)]
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments), *options])
    module.main()
