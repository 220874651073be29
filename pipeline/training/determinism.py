"""Settings that decide whether the same inputs give the same bytes."""

import os
from typing import Literal

import torch
from lightning.fabric import Fabric
from pydantic import Field
from threadpoolctl import threadpool_limits

from pipeline.params import ParamsError, StrictParams


class ComputeParams(StrictParams):
    """Section ``compute``. ``threads`` and ``channels_last`` change the bytes of a result; the others its rounding.

    ``devices`` on each of ``nodes``: more than one in all train together (DDP). The stage starts the processes of its
    own machine itself; under ``torchrun`` or SLURM's ``srun`` it finds them started. ``compile``: torch compiles what
    is trained, which takes a minute or two and pays on long runs on a GPU.
    """

    threads: int = Field(default=2, ge=1)
    channels_last: bool = False
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    devices: int = Field(default=1, ge=1)
    nodes: int = Field(default=1, ge=1)
    compile: bool = False
    batch_size: int = Field(default=64, ge=1)  # where nothing is trained


def make_fabric(params: ComputeParams, *, together: bool = False) -> Fabric:
    """One device, or with ``together`` all of them; deterministic algorithms, a fixed number of threads.

    On a CPU two runs give the same bytes. On a GPU torch raises where a layer has no deterministic kernel.

    Raises:
        ParamsError: ``torchrun`` started another number of processes than params say.
    """
    # cuBLAS reads it at its first use: https://docs.nvidia.com/cuda/cublas/#results-reproducibility
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(params.threads)
    threadpool_limits(params.threads)  # BLAS and OpenMP under scikit-learn
    torch.use_deterministic_algorithms(True)
    # Fills what nobody has written yet with NaN, to find who reads it: a debugging aid that costs a pass over memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property
    torch.backends.cudnn.benchmark = False
    processes = params.devices * params.nodes
    if not together or processes == 1:
        return Fabric(accelerator=params.accelerator, devices=1, precision=params.precision)
    started = os.environ.get("WORLD_SIZE")
    if started is not None and int(started) != processes:
        raise ParamsError(
            f"compute: {params.devices} devices on {params.nodes} nodes make {processes} processes; there are {started}"
        )
    fabric = Fabric(
        accelerator=params.accelerator,
        devices=params.devices,
        num_nodes=params.nodes,
        strategy="ddp",
        precision=params.precision,
    )
    fabric.launch()
    torch.set_num_threads(params.threads)  # launching sets it to the cores' share
    return fabric


def memory_format(params: ComputeParams) -> torch.memory_format:
    """The layout of weights and images."""
    return torch.channels_last if params.channels_last else torch.contiguous_format
