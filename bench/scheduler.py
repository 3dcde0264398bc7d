"""Measures what the scheduler itself takes per cell: ledger, store and dispatch, with empty cells.

Run: python bench/scheduler.py [--cells 500] [--workers 2]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from doublebind.execution.executor import Executor, Job
from doublebind.execution.ledger import Ledger
from doublebind.execution.store import Store
from doublebind.schema.executor import LocalOptions


def empty(out: Path) -> None:
    """Make an artefact of one small file."""
    (out / "x").write_text("x")


def measure(cells: int, workers: int) -> dict[str, float]:
    """Return seconds per cell, made and found again, and bytes of ledger and store per cell."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        jobs = [Job("empty", f"{i:08x}", empty, {}) for i in range(cells)]
        with Executor(
            Store(root / "store"),
            Ledger(root / "ledger.jsonl"),
            LocalOptions(kind="local", workers=workers),
        ) as executor:
            executor.map(jobs[:workers])  # processes start
            began = time.perf_counter()
            executor.map(jobs)
            seconds_made = time.perf_counter() - began
            began = time.perf_counter()
            executor.map(jobs)
            seconds_found = time.perf_counter() - began
        began = time.perf_counter()
        Ledger(root / "ledger.jsonl")
        opened = time.perf_counter() - began
        ledger = (root / "ledger.jsonl").stat().st_size
        files = sum(1 for path in (root / "store").rglob("*") if path.is_file())
    return {
        "cells": cells,
        "workers": workers,
        "seconds_per_cell_made": seconds_made / (cells - workers),
        "seconds_per_cell_found": seconds_found / cells,
        "seconds_per_cell_to_open_the_ledger": opened / cells,
        "ledger_bytes_per_cell": ledger / cells,
        "files_per_cell": files / cells,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--cells", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    print(json.dumps(measure(args.cells, args.workers), indent=1))
