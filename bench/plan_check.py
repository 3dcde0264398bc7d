"""Runs a study from an empty store, and compares its wall-clock time with the simulated one.

The costs of cells are those of this very run, so what is checked is the schedule: slots, stages and
overheads, not whether one machine is as fast as another.

Run: python bench/plan_check.py STUDY.yaml [key.sub=value]...
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import doublebind
from doublebind.config import Cluster, Local, Nodes, load_study
from doublebind.schedule import Ask, Need, simulate
from doublebind.setting import prepare
from doublebind.store import Store


def check(path: Path, *overrides: str) -> dict[str, float]:
    """Return seconds measured and simulated, and their ratio."""
    study = load_study(path, *overrides)
    workers = study.executor.workers if isinstance(study.executor, Local) else 1
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        run = doublebind.run(study, root / "run", folder=path.parent, store=root / "store")
        times = [(entry.started, entry.ended or entry.started) for entry in run.ledger]
        measured = max(end for _, end in times) - min(start for start, _ in times)
        store = Store(root / "store")
        stages = []
        for stage in prepare(study, path.parent, store).plan.stages():
            costs = {kind: store.cost(kind) for kind in {job.kind for job in stage}}
            known = {kind: Need(kind, *cost) for kind, cost in costs.items() if cost}
            stages.append([known[kind] for kind, _ in sorted({(j.kind, j.key) for j in stage})])
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    nodes = Nodes(count=1, cpus=workers, memory_gib=memory)
    here = Cluster(nodes=(nodes,), store_mib_per_second=500, driver_seconds=0.005)
    simulated = simulate(stages, here, Ask(1, 0.0, None))["seconds"]
    return {
        "cells": sum(map(len, stages)),
        "workers": workers,
        "measured_seconds": round(measured, 1),
        "simulated_seconds": round(simulated, 1),
        "ratio": round(measured / simulated, 2),
    }


if __name__ == "__main__":
    print(json.dumps(check(Path(sys.argv[1]), *sys.argv[2:])))
