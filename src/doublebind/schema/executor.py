"""Settings of the backends that run the jobs of a study."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from doublebind.schema.hashing import Record


class LocalOptions(Record):
    """Run on this machine."""

    kind: Literal["local"]
    workers: int = Field(default=1, ge=1, le=256)
    """Processes; 1 runs in the current one and leaves all cores to it. On `device: cuda` they share
    the GPUs in turn: the n-th begins with the n-th."""
    retries: int = Field(default=1, ge=0, le=100)
    """Times a cell is tried again after its process died."""


class RayOptions(Record):
    """Run on the nodes of a Ray cluster that share the store."""

    kind: Literal["ray"]
    address: str = "auto"
    """Of a running cluster; `auto` takes `$RAY_ADDRESS`, or the cluster this machine is part of."""
    cpus: int = Field(default=1, ge=1)
    """Cores per cell, and the threads it computes with: other counts give other last bits."""
    gpus: float = Field(default=0.0, ge=0, le=8)
    """Accelerators per cell; a fraction shares one."""
    memory_gib: float | None = Field(default=None, gt=0)
    """Memory asked for per cell; `null` takes what cells of its kind took so far in this store."""
    retries: int = Field(default=3, ge=0, le=100)
    """Times a cell is tried again after its worker or node died."""


LOCAL = LocalOptions(kind="local")
