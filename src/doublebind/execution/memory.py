"""Measures the peak memory of a process and of its GPU."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path
from typing import Any


def reset_peak() -> None:
    """Reset the peak if the kernel can; otherwise the process's peak so far counts."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if (cuda := _find_cuda()) is not None:
        cuda.empty_cache()  # so that other processes on the GPU can use it
        cuda.reset_peak_memory_stats()


def measure_device_peak() -> dict[str, int]:
    """Return torch's peak GPU memory in bytes; empty if this process uses no GPU."""
    cuda = _find_cuda()
    return {} if cuda is None else {"device_peak_bytes": cuda.max_memory_reserved()}


def _find_cuda() -> Any:
    """Return `torch.cuda` if this process has initialised it; never imports torch."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def measure_peak() -> int:
    """Return the peak memory of this process in bytes since `reset_peak`."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
