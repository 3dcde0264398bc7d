"""Selects the device that a process computes on, and moves tensors there.

`cuda` means the process's current GPU: the first that it sees unless it selected another.
`execution.backends` rotates the GPUs that workers see, shard r of `distillation.multi_process`
takes the r-th, and `CUDA_VISIBLE_DEVICES` hides GPUs. Results are returned on the CPU.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from doublebind.schema.errors import ConfigError
from doublebind.schema.model_source import Device


def select_device(device: Device) -> torch.device:
    """Return the torch device of a study's `device`.

    Raises:
        ConfigError: If it is `cuda` and torch sees no GPU.
    """
    if device == "cpu":
        return torch.device("cpu")
    check_gpus_available(device)
    return torch.device("cuda", torch.cuda.current_device())


def check_gpus_available(device: Device, n: int = 1) -> None:
    """Check that torch sees at least `n` GPUs if `device` is `cuda`.

    Raises:
        ConfigError: If it sees fewer.
    """
    n_seen = torch.cuda.device_count() if device == "cuda" and torch.cuda.is_available() else 0
    if device == "cpu" or n_seen >= n:
        return
    if n_seen:
        raise ConfigError(
            f"`processes`: {n} need a GPU each and torch sees {n_seen}; show it more "
            f"(CUDA_VISIBLE_DEVICES), or use fewer"
        )
    version = torch.version.cuda
    build = f"for CUDA {version}" if version else "without CUDA"
    raise ConfigError(
        f"`device`: cuda, but torch sees no GPU (torch {torch.__version__} is built {build}); "
        f"install a build of torch for your driver, show it a GPU (CUDA_VISIBLE_DEVICES), or use "
        f"cpu"
    )


def list_visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    names = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return [name for name in names if name] or [str(i) for i in range(torch.cuda.device_count())]


def list_gpu_memory() -> list[int]:
    """Return the memory in bytes of every GPU that torch sees."""
    n = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [int(torch.cuda.get_device_properties(i).total_memory) for i in range(n)]


def move_to_device(host: Tensor, device: Any) -> Tensor:
    """Return a CPU tensor on `device`; the copy to a GPU is asynchronous."""
    if torch.device(device).type != "cuda":
        return host.to(device)
    # Only pinned memory is copied asynchronously; torch keeps it until the copy has ended.
    return host.pin_memory().to(device, non_blocking=True)
