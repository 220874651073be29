"""Seconds and energy of a training. They differ from run to run, so that they reach no cached output."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

RAPL = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Cost:
    """What one training took, as a clock and the device's own counter say.

    Attributes:
        seconds: by the clock, of all that the run did; None where it was killed and went on, so that a part is unknown.
        device: its name.
        devices: how many of them.
        energy_joule: of the device (a GPU's whole board, a CPU's packages with all that runs on them); None where
            nothing counts it.
        note: why a value is None, or "".
    """

    seconds: float | None
    device: str
    devices: int
    energy_joule: float | None
    note: str = ""


class Meter:
    """Counts from its making on."""

    def __init__(self, device: torch.device, devices: int = 1, *, resumed: bool = False, rapl: Path = RAPL) -> None:
        self._device, self._devices, self._resumed, self._rapl = device, devices, resumed, rapl
        self._before = self._energy()
        self._start = time.perf_counter()

    def stop(self) -> Cost:
        """What it took up to now."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        seconds, after = time.perf_counter() - self._start, self._energy()
        name = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "cpu"
        if self._resumed:
            return Cost(None, name, self._devices, None, "killed and resumed: a part is unknown")
        if self._devices > 1:
            return Cost(seconds, name, self._devices, None, "energy is counted of single devices only")
        if self._before is None or after is None or after < self._before:  # the counter began anew
            return Cost(seconds, name, self._devices, None, "the device tells no count of energy")
        return Cost(seconds, name, self._devices, after - self._before)

    def _energy(self) -> float | None:
        """Joules since some start."""
        return _gpu_joule(self._device) if self._device.type == "cuda" else _cpu_joule(self._rapl)


def _gpu_joule(device: torch.device) -> float | None:
    import pynvml

    try:
        pynvml.nvmlInit()
        # By its UUID: CUDA_VISIBLE_DEVICES numbers devices anew, NVML does not.
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
    except pynvml.NVMLError:
        return None


def _cpu_joule(rapl: Path) -> float | None:
    """Of all packages (https://docs.kernel.org/power/powercap/powercap.html); most kernels let only root read it."""
    counters = sorted(rapl.glob("intel-rapl:[0-9]*/energy_uj"))
    packages = [path for path in counters if path.parent.name.count(":") == 1]
    try:
        return sum(int(path.read_text()) for path in packages) / 1e6 if packages else None
    except OSError:
        return None


def write_cost(cost: Cost, model_sha256: str, path: Path) -> None:
    """One training's cost, with the model that it gave."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**asdict(cost), "model_sha256": model_sha256}, sort_keys=True) + "\n", encoding="utf-8")


def read_cost(path: Path) -> tuple[Cost, str] | None:
    """A training's cost and its model's SHA-256; None where it was not trained here."""
    if not path.is_file():
        return None
    row = json.loads(path.read_text(encoding="utf-8"))
    model = str(row.pop("model_sha256"))
    return Cost(**row), model
