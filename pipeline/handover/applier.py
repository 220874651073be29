"""A handed-over model on arrays: verified, checked on its own test pictures, and its rule applied."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from tqdm import tqdm

from pipeline.errors import PipelineError
from pipeline.handover.bundle import Application, read_application, read_model, verify
from pipeline.handover.monai_bundle import CHECK
from pipeline.handover.pictures import Pictures, round_alike
from pipeline.handover.rule import Reference, decide, probability_of
from pipeline.imaging.store import Store
from pipeline.tables.contract import make_table, plain_text
from pipeline.tables.handover import Applied
from pipeline.training.backbone import Classifier
from pipeline.training.determinism import make_fabric, memory_format
from pipeline.training.feed import AugmentParams, ImageFeed
from pipeline.training.inference import logits_of

# A probability that differs by more on the bundle's own test pictures is another model's.
CHECK_TOLERANCE = 1e-3
_BATCHES_AT_ONCE = 8


@dataclass(frozen=True)
class Applier:
    """A bundle's model on its device."""

    application: Application
    model: Classifier
    reference: Reference
    device: torch.device
    layout: torch.memory_format

    def outputs(self, images: Store, indices: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float64], ...]:
        """Logits (n, findings) and distances (n,) of some images, a progress bar beside it."""
        feed = ImageFeed(images, self.device, self.layout, AugmentParams(), 0)
        step = self.application.compute.batch_size * _BATCHES_AT_ONCE
        logits, distances = [], []
        with tqdm(total=len(indices), desc="apply", unit="image", mininterval=0.5, disable=not len(indices)) as bar:
            for start in range(0, len(indices), step):
                some = indices[start : start + step]
                kept = np.ones(len(some), dtype=bool)
                found, features = logits_of(
                    self.model, [self.model.head], feed, some, self.application.compute.batch_size, kept
                )
                logits.append(found[0].astype(np.float64))
                distances.append(self.reference.distance(features))
                bar.update(len(some))
        return np.concatenate(logits), np.concatenate(distances)

    def check(self, folder: Path) -> float:
        """How far the probabilities of the bundle's test pictures are from what they were where it was made.

        Raises:
            PipelineError: too far.
        """
        pictures = np.stack([np.load(path, allow_pickle=False) for path in sorted((folder / CHECK).glob("*.npy"))])
        feed = ImageFeed(Pictures(pictures), self.device, self.layout, AugmentParams(), 0)
        every = np.arange(len(pictures))
        found, _ = logits_of(
            self.model, [self.model.head], feed, every, self.application.compute.batch_size, every >= 0
        )
        expected = np.array(self.application.check_logits)
        off = float(np.abs(probability_of(found[0].astype(np.float64)) - probability_of(expected)).max())
        if not off <= CHECK_TOLERANCE:
            raise PipelineError(
                f"on this machine the model gives other probabilities on its own test pictures, by up to {off:.2g}: "
                "it is not the model that was evaluated. Install the versions that configs/apply.json names"
            )
        return off


def apply_model(applier: Applier, found: pd.DataFrame, store: Store, unlike: Mapping[str, set[str]]) -> pd.DataFrame:
    """``tables.handover.Applied`` of the images in ``found`` (``make_arrays``)."""
    if not len(found):
        return make_table(Applied, [])
    found = plain_text(found).sort_values("array_index", ignore_index=True)
    logits, distances = applier.outputs(store, found["array_index"].to_numpy(np.int64))
    columns = found[["image_id", "source_id", "frame", "patient_id", "study_id"]]
    told = {source_id: "+".join(sorted(reasons)) for source_id, reasons in unlike.items() if reasons}
    columns = columns.assign(distance=distances, unlike=columns["source_id"].map(told).astype(object))
    frames = [
        columns.assign(finding=finding, logit=logits[:, place])
        for place, finding in enumerate(applier.application.findings)
    ]
    decided = decide(pd.concat(frames, ignore_index=True), applier.application.rule)
    return make_table(Applied, decided[list(Applied.columns)])


def write_arrays(store: Store, found: pd.DataFrame, folder: Path) -> None:
    """Each image as IMAGE_ID.npy, (C, H, W), for ``monai.bundle run``."""
    folder.mkdir(parents=True, exist_ok=True)
    for image_id, index in zip(found["image_id"], found["array_index"], strict=True):
        np.save(folder / f"{image_id}.npy", store.read([int(index)])[0], allow_pickle=False)


def differing(application: Application, installed: Mapping[str, str]) -> Sequence[str]:
    """Packages that are here in another version than where the bundle was made, in words."""
    return [
        f"{name} {installed[name]} instead of {wanted}"
        for name, wanted in application.versions.items()
        if installed[name] != wanted
    ]


def load_applier(folder: Path) -> Applier:
    """A bundle that is whole, on a GPU where there is one.

    Raises:
        PipelineError: it is not whole, or of another version of this repository.
    """
    verify(folder)
    application = read_application(folder)
    compute = application.compute.model_copy(update={"accelerator": "auto", "devices": 1, "nodes": 1})
    fabric = make_fabric(compute)
    round_alike()
    layout = memory_format(compute)
    model, _, reference = read_model(folder)
    return Applier(application, model.to(memory_format=layout).to(fabric.device), reference, fabric.device, layout)
