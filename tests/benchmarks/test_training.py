"""What the engine costs beside the network itself: ratios of one run, on the GPU where there is one.

Run it on a quiet machine: `OMP_WAIT_POLICY=PASSIVE pytest tests/benchmarks/test_training.py -n 0 -m slow -s`, with the
policy that the stages have in dvc.yaml. On a GPU it also tells the images a second of ResNet-50 at 224 px in bf16 and
the peak of the device's memory.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.models import get_model

from pipeline.imaging.store import PlaneFormat, Store, write_store
from pipeline.training.backbone import build
from pipeline.training.determinism import ComputeParams, make_fabric, memory_format
from pipeline.training.engine import Engine
from pipeline.training.feed import AugmentParams, Dataset, ImageFeed, augment, draw_affine, in_batches, to_unit
from pipeline.training.loop import LoopParams, Plan, train

pytestmark = pytest.mark.slow

GPU = torch.cuda.is_available()
BACKBONE, SIZE, BATCH = ("resnet50", 224, 256) if GPU else ("mobilenet_v2", 128, 16)
BATCHES = 40 if GPU else 8
COMPUTE = ComputeParams(
    threads=2, channels_last=GPU, precision="bf16-mixed" if GPU else "32-true", batch_size=BATCH, compile=GPU
)
LAYOUT = memory_format(COMPUTE)


def stored(folder: Path, size: int, num_train: int) -> Dataset:
    """A store on disk; id_val is as small as can be, since it is no part of what is compared."""
    count = num_train + 2
    generator = np.random.default_rng(0)
    planes = (generator.integers(0, 255, (size, size), np.uint8) for _ in range(count))
    write_store(planes, np.arange(count)[:, None], PlaneFormat(size, 8), folder)
    labels = (np.arange(count) % 2).astype(np.float32)[:, None]
    names = np.arange(count).astype(str)
    side = np.arange(num_train)
    return Dataset(Store(folder), labels, names, side, side, np.arange(count - 2, count), names)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return stored(tmp_path_factory.mktemp("store"), SIZE, BATCH * BATCHES)


@pytest.fixture(scope="module")
def fabric():
    return make_fabric(COMPUTE)


@dataclass(frozen=True)
class Resident(ImageFeed):
    """The same batch on the device all the time; augmented as the real one is."""

    batch: torch.Tensor = None  # type: ignore[assignment]

    def training(self, batches, epoch):
        theta, contrast = draw_affine(len(self.images), self.seed, epoch, self.augmentation)
        for batch in batches:
            pixels = self.batch[: len(batch)]
            yield augment(
                to_unit(pixels, self.device, self.layout),
                torch.from_numpy(theta[batch]).to(self.device),
                torch.from_numpy(contrast[batch]).to(self.device),
            )


def wait() -> None:
    if GPU:
        torch.cuda.synchronize()


def seconds(work: Callable[[], object]) -> float:
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def paired(peer: Callable[[], float], ours: Callable[[], float], times: int) -> float:
    """The median of the peer's time over ours, measured in turn, after one of each."""
    peer(), ours()
    return statistics.median(peer() / ours() for _ in range(times))


def engine_epoch(fabric, data: Dataset, feed: ImageFeed) -> float:
    """Seconds of an epoch of the engine's own loop: the second of two, from one row of the curve to the next."""
    ends: list[float] = []

    def told(_row) -> None:
        wait()
        ends.append(time.perf_counter())

    model = build(BACKBONE, 1, seed=0, state=None, image_shape=(1, SIZE, SIZE))
    params = LoopParams(epochs=2, batch_size=BATCH)
    train(
        fabric, model, data, params, Plan(1e-4), feed=feed, findings=["x"], seed=0, layout=LAYOUT, description="bench",
        compiled=COMPUTE.compile, on_epoch=told,
    )  # fmt: skip
    return ends[1] - ends[0]


def from_disk(fabric, data: Dataset) -> ImageFeed:
    return ImageFeed(data.images, fabric.device, LAYOUT, AugmentParams(), 0)


def resident(fabric, data: Dataset) -> Resident:
    pixels = torch.from_numpy(data.images.read(np.arange(BATCH))).to(fabric.device)
    return Resident(data.images, fabric.device, LAYOUT, AugmentParams(), 0, pixels)


def bare_epoch(fabric, data: Dataset) -> float:
    """torchvision's model, autocast and compile, AdamW, clipping, the same augmentation; nothing else."""
    feed = resident(fabric, data)
    model = get_model(BACKBONE, num_classes=1).to(fabric.device, memory_format=LAYOUT).train()
    stepped = torch.compile(model) if COMPUTE.compile else model
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    labels = torch.from_numpy(data.labels).to(fabric.device)
    batches = list(in_batches(data.train, BATCH))

    def epoch() -> None:
        for batch, images in zip(batches, feed.training(batches, 0), strict=True):
            with torch.autocast(fabric.device.type, torch.bfloat16, enabled=GPU):
                logits = stepped(images.expand(-1, 3, -1, -1))
            loss = binary_cross_entropy_with_logits(logits.float(), labels[torch.from_numpy(batch)])
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()

    epoch()
    return seconds(epoch)


def test_fed_from_disk_beside_a_batch_that_stays(fabric, data: Dataset):
    ratio = paired(
        lambda: engine_epoch(fabric, data, resident(fabric, data)),
        lambda: engine_epoch(fabric, data, from_disk(fabric, data)),
        5,
    )
    print(f"\n{BACKBONE}, {SIZE} px, batch {BATCH}: rate fed from disk / resident batch = {ratio:.3f}")
    assert ratio >= 0.95


def test_engine_beside_a_bare_loop(fabric, data: Dataset):
    ratio = paired(lambda: bare_epoch(fabric, data), lambda: engine_epoch(fabric, data, resident(fabric, data)), 5)
    print(f"\n{BACKBONE}, {SIZE} px, batch {BATCH}: rate of the engine / bare torchvision loop = {ratio:.3f}")
    assert ratio >= 0.95


def test_a_probes_epoch_from_cached_features(fabric, tmp_path: Path):
    """A head on cached features beside the same through the frozen backbone, at the size of a study."""
    backbone, size, batch = (BACKBONE, SIZE, BATCH) if GPU else ("resnet18", 224, 64)
    data = stored(tmp_path, size, 1024 if not GPU else BATCH * BATCHES)
    every = np.arange(len(data.images))
    model = build(backbone, 1, seed=0, state=None, image_shape=(1, size, size)).to(fabric.device).eval()
    feed = from_disk(fabric, data)
    kept: list[torch.Tensor] = []

    def recompute() -> None:
        with torch.inference_mode():
            kept[:] = [model.features(images) for images in feed.plain(in_batches(every, batch))]

    peer = seconds(recompute)
    features = torch.cat(kept).float().cpu().numpy()
    engine = Engine(
        fabric=fabric, backbone=backbone, weights=model.trunk.state_dict(), findings=["x"], data=data,
        features=features, pooled=features, loop=LoopParams(epochs=6, batch_size=batch), seed=0, layout=LAYOUT,
        description="bench",
    )  # fmt: skip
    ends: list[float] = []

    def told(_row) -> None:
        wait()
        ends.append(time.perf_counter())

    engine.on_epoch = told
    engine.train_head(model, Plan(1e-3), features)
    ours = statistics.median(np.diff(ends))
    what = f"{len(every)} images, {size} px, batch {batch}"
    print(f"\n{what}: time through {backbone} / epoch on cached features = {peer / ours:.0f}")
    assert peer / ours >= 100


@pytest.mark.skipif(not GPU, reason="images a second and device memory are told of a GPU, and there is none")
def test_images_a_second_on_a_gpu(fabric, data: Dataset):
    torch.cuda.reset_peak_memory_stats()
    taken = engine_epoch(fabric, data, from_disk(fabric, data))
    rate, peak = len(data.train) / taken, torch.cuda.max_memory_allocated() / 2**30
    print(f"\n{BACKBONE}, {SIZE} px, bf16, batch {BATCH}: {rate:.0f} images/s, peak {peak:.1f} GiB of device memory")
    assert rate >= 3000
