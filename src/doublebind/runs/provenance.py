"""Reads the versions of libraries, and the hardware, of this machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

_LIBRARIES = ("doublebind", "torch", "transformers", "peft", "tokenizers", "numpy", "scipy")


def read_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results depend on."""
    return {name: _version(name) for name in _LIBRARIES} | {"python": platform.python_version()}


def describe_hardware() -> dict[str, Any]:
    """Return processor, cores, memory and system of this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "machine": platform.machine(),
        "cpu": cpu(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
    }


def cpu() -> str:
    """Return the model of the processor, which decides the last bits of every sum."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return platform.processor()
    fields = dict(re.findall(r"(?m)^(.+?)\s*: (.+)$", text))
    numbers = [f"{k} {fields[k]}" for k in ("cpu family", "model", "stepping") if k in fields]
    return ", ".join([fields.get("model name", platform.processor()), *numbers])


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
