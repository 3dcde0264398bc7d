"""Simulates studies of 10^2, 10^4 and 10^6 students, and says what breaks first on each cluster.

Costs per cell are given, not measured here: the question is which part of the machinery binds.

Run: python bench/scale.py
"""

from __future__ import annotations

import json
import time

from doublebind.config import Cluster, Nodes
from doublebind.schedule import Ask, Need, simulate

MIB, GIB = 2**20, 2**30
# A student of an 8B base by LoRA on one accelerator: minutes to train, tens of MiB of adapter.
STUDENT = {
    "rollouts": Need("rollouts", 300.0, 5 * MIB, 40 * GIB),
    "targets": Need("targets", 120.0, 200 * MIB, 40 * GIB),
    "student": Need("student", 600.0, 80 * MIB, 60 * GIB),
    "audit": Need("audit", 90.0, 1 * MIB, 40 * GIB),
}
DRIVER = {"local processes": 0.004, "ray": 0.031}
"""Seconds per cell, as `bench/scheduler.py` and the same cells on Ray's local cluster took."""


def stages(students: int, seeds: int = 10) -> list[list[Need]]:
    """Return the cells of a study: `seeds` students per teacher share rollouts and targets."""
    teachers = students // seeds
    return [
        [STUDENT["rollouts"]] * teachers,
        [STUDENT["targets"]] * teachers,
        [STUDENT["student"]] * students,
        [STUDENT["audit"]] * (students + teachers),
    ]


def table() -> list[dict[str, object]]:
    """Return one row per size of study and cluster."""
    rows: list[dict[str, object]] = []
    for students in (100, 10_000, 1_000_000):
        for gpus in (8, 512, 16_384):
            nodes = Nodes(count=gpus // 8, cpus=64, gpus=8, memory_gib=1024, price_per_hour=16.0)
            for store in (500.0, 20_000.0):
                cluster = Cluster(
                    nodes=(nodes,), store_mib_per_second=store, driver_seconds=DRIVER["ray"]
                )
                began = time.perf_counter()
                found = simulate(stages(students), cluster, Ask(1, 1.0, None))
                rows.append(
                    {
                        "students": students,
                        "gpus": gpus,
                        "store_mib_per_second": store,
                        "hours": round(found["seconds"] / 3600, 2),
                        "used": round(found["used"], 3),
                        "cost": round(found["cost"]),
                        "bottleneck": found["bottleneck"],
                        "simulated_in_seconds": round(time.perf_counter() - began, 1),
                    }
                )
    return rows


if __name__ == "__main__":
    for row in table():
        print(json.dumps(row))
