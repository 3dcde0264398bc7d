"""Says when cells would end on a described cluster, by simulating the scheduler on it.

Knows slots, a driver that starts cells one after another, and a store of one bandwidth. Runs
nothing and knows no study: costs per cell are given.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any, NamedTuple

from doublebind.config import Cluster, Nodes
from doublebind.errors import ConfigError


class Need(NamedTuple):
    """What one cell takes."""

    kind: str
    seconds: float
    """On the machine where it was measured."""
    bytes: float
    """Of its artefact, which goes through the store."""
    memory: float
    """Bytes held at most; 0 where that was never measured."""


class Ask(NamedTuple):
    """What the scheduler asks a node for, per cell."""

    cpus: int
    gpus: float
    memory_gib: float | None


def simulate(stages: Sequence[Sequence[Need]], cluster: Cluster, ask: Ask) -> dict[str, Any]:
    """Return when everything would be done, at what price, and what holds it up.

    Cells of a stage start in order, each on the slot that is free first; a stage begins when the
    one before has ended, as the executor works (list scheduling; Graham 1969). The driver starts
    cells one at a time. Artefacts pass one shared store in the order of their cells.

    Args:
        stages: Cells, stage by stage.
        cluster: What there is.
        ask: What each cell is given.

    Returns:
        `seconds` (makespan), `cost` (absent without prices), `slots`, `used` (share of slot time
        spent in cells, in [0, 1]), `bottleneck`, `bounds` (seconds that each resource alone would
        take: `cells`, `stages`, `driver`, `store`; none can be beaten by more of the others) and
        `stages` (one row each).

    Raises:
        ConfigError: If no node has room for one cell.
    """
    clock, busy, rows = 0.0, 0.0, []
    driver_free = store_free = 0.0
    bounds = dict.fromkeys(("cells", "stages", "driver", "store"), 0.0)
    slots_most = 0
    for cells in (stage for stage in stages if stage):
        slots = _slots(cluster, ask, max(cell.memory for cell in cells))
        slots_most = max(slots_most, len(slots))
        free = [(clock, number, speed) for number, speed in enumerate(slots)]
        heapq.heapify(free)
        began = ended = clock
        for cell in cells:
            at, number, speed = heapq.heappop(free)
            start = max(at, driver_free)
            driver_free = start + cluster.driver_seconds
            taken = cell.seconds / speed
            sent = cell.bytes / (cluster.store_mib_per_second * 2**20)
            store_free = max(store_free, start + taken) + sent if sent else store_free
            end = max(start + taken, store_free if sent else 0.0)
            busy += taken
            ended = max(ended, end)
            heapq.heappush(free, (end, number, speed))
        clock = ended
        rows.append(_row(cells, slots, ended - began))
        fastest = max(slots)
        bounds["cells"] += sum(c.seconds for c in cells) / sum(slots)
        bounds["stages"] += max(c.seconds for c in cells) / fastest
        bounds["driver"] += len(cells) * cluster.driver_seconds
        bounds["store"] += sum(c.bytes for c in cells) / (cluster.store_mib_per_second * 2**20)
    found: dict[str, Any] = {
        "seconds": clock,
        "slots": slots_most,
        "used": busy / (clock * slots_most) if clock else 0.0,
        "bottleneck": max(bounds, key=lambda name: bounds[name]),
        "bounds": bounds,
        "stages": rows,
    }
    if all(nodes.price_per_hour is not None for nodes in cluster.nodes):
        hourly = sum(nodes.count * (nodes.price_per_hour or 0.0) for nodes in cluster.nodes)
        found["cost"] = hourly * clock / 3600
    return found


def _row(cells: Sequence[Need], slots: Sequence[float], seconds: float) -> dict[str, Any]:
    kinds = sorted({cell.kind for cell in cells})
    return {"kinds": kinds, "cells": len(cells), "slots": len(slots), "seconds": seconds}


def _slots(cluster: Cluster, ask: Ask, measured: float) -> list[float]:
    """Return the speed of every slot; a node has as many as its scarcest resource allows."""
    memory = measured if ask.memory_gib is None else ask.memory_gib * 2**30
    found = [
        nodes.speed
        for nodes in cluster.nodes
        for _ in range(nodes.count * _fit(nodes, ask, memory))
    ]
    if not found:
        asked = f"{ask.cpus} CPUs, {ask.gpus:g} GPUs and {memory / 2**30:.1f} GiB"
        raise ConfigError(f"`nodes`: none has {asked} for one cell; describe larger ones")
    return found


def _fit(nodes: Nodes, ask: Ask, memory: float) -> int:
    fits = nodes.cpus // ask.cpus
    if ask.gpus:
        fits = min(fits, int(nodes.gpus // ask.gpus))
    if memory:
        fits = min(fits, int(nodes.memory_gib * 2**30 // memory))
    return fits
