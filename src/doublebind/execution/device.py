"""Says which processor of this machine a process computes on, and moves numbers there.

One rule: `cuda` is the process's current GPU, the first that it sees unless it chose another. Who
starts several processes lets each see its own first (`pools`), shard r takes the r-th
(`distillation.spread`), and `CUDA_VISIBLE_DEVICES` hides those that are not to be used. Results
leave as the CPU's. Knows devices. Does not know models.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from doublebind.schema.errors import ConfigError
from doublebind.schema.model_source import Device


def select_device(device: Device) -> torch.device:
    """Return where tensors of a model go that is to be run on `device`.

    Raises:
        ConfigError: If that is `cuda` and torch sees no GPU.
    """
    if device == "cpu":
        return torch.device("cpu")
    check_gpus_available(device)
    return torch.device("cuda", torch.cuda.current_device())


def check_gpus_available(device: Device, n: int = 1) -> None:
    """Refuse a device that is not there, or not `n` times.

    Raises:
        ConfigError: Says what torch sees and what to do.
    """
    seen = torch.cuda.device_count() if device == "cuda" and torch.cuda.is_available() else 0
    if device == "cpu" or seen >= n:
        return
    if seen:
        raise ConfigError(
            f"`processes`: {n} need a GPU each and torch sees {seen}; show it more "
            f"(CUDA_VISIBLE_DEVICES), or use fewer"
        )
    built = torch.version.cuda
    why = (
        f"torch {torch.__version__} is built for CUDA {built}"
        if built
        else (f"torch {torch.__version__} is built without CUDA")
    )
    raise ConfigError(
        f"`device`: cuda was asked for and torch sees no GPU ({why}); install a build of torch for "
        f"your driver, show it a GPU (CUDA_VISIBLE_DEVICES), or use cpu"
    )


def list_visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    named = [name.strip() for name in told.split(",") if name.strip()]
    return named or [str(i) for i in range(torch.cuda.device_count())]


def list_gpu_memory() -> list[int]:
    """Return the memory of every GPU that torch sees."""
    n = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [int(torch.cuda.get_device_properties(i).total_memory) for i in range(n)]


def move_to_device(host: Tensor, device: Any) -> Tensor:
    """Return a tensor of the CPU on `device`; a GPU does not make the CPU wait for it."""
    if torch.device(device).type != "cuda":
        return host.to(device)
    # From pinned memory the copy is made while both go on; torch keeps it until it is done.
    return host.pin_memory().to(device, non_blocking=True)
