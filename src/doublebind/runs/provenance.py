"""Versions of libraries and the hardware that a run was made with."""

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
    found = {name: _version(name) for name in _LIBRARIES}
    return found | {"python": platform.python_version()}


def describe_hardware() -> dict[str, Any]:
    """Return what this machine is."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "machine": platform.machine(),
        "cpu": cpu(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
    }


def cpu() -> str:
    """Return which processor this is: its kind decides the last bits of every sum."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return platform.processor()
    said = dict(re.findall(r"(?m)^(.+?)\s*: (.+)$", text))
    name = said.get("model name", platform.processor())
    which = [f"{of} {said[of]}" for of in ("cpu family", "model", "stepping") if of in said]
    return ", ".join([name, *which])


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
