"""Compares what `plan` foresees of a study with what running it takes: time and memory.

A pilot, the study with other overrides, is run first in the same store, so that `plan` knows what
cells of each kind cost; then `plan` is asked about the study, and the study is run.

Run: python bench/plan_check.py STUDY.yaml PILOT_OVERRIDES [key.sub=value]...

PILOT_OVERRIDES: overrides of the pilot alone, joined by `;`, such as `references=[a.yaml,b.yaml]`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import doublebind
from doublebind.pipeline.plan import plan
from doublebind.schema.executor import LocalOptions
from doublebind.schema.study import load_study


def check(path: Path, pilot: list[str], overrides: list[str]) -> dict[str, Any]:
    """Return what was foreseen and measured, and the ratios."""
    study = load_study(path, *overrides)
    small = load_study(path, *overrides, *pilot)
    workers = study.executor.workers if isinstance(study.executor, LocalOptions) else 1
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        doublebind.run(small, root / "pilot", store=root / "store", folder=path.parent)
        before = set((root / "store").glob("*/*/*/timing.json"))
        foreseen = plan(study, store=root / "store", folder=path.parent)
        if foreseen.wall_seconds is None or foreseen.peak_bytes is None:
            sys.exit(f"no estimate: the pilot left nothing to make, or lacks {foreseen.missing}")
        run = doublebind.run(study, root / "run", store=root / "store", folder=path.parent)
        attempts = [e for e in run.ledger if e.status == "done" and not e.cached]
        began = [e.started for e in run.ledger if e.status == "started"]
        wall = max(e.ended or e.started for e in attempts) - min(began)
        files = set((root / "store").glob("*/*/*/timing.json")) - before
        timings = [json.loads(file.read_text()) for file in files]
        top = sorted((facts["peak_bytes"] for facts in timings), reverse=True)
        peak = sum(top[:workers])
        per_kind = {
            kind: max(json.loads(f.read_text())["peak_bytes"] for f in files if f.parts[-4] == kind)
            for kind in {file.parts[-4] for file in files}
        }
        cost = {kind: cell.peak_bytes or 0 for kind, cell in foreseen.cells.items()}
    ratios = [per_kind[kind] / cost[kind] for kind in per_kind if cost.get(kind)]
    return {
        "cells": len(files),
        "workers": workers,
        "foreseen_seconds": round(foreseen.wall_seconds, 1),
        "measured_seconds": round(wall, 1),
        "time_ratio": round(wall / foreseen.wall_seconds, 2),
        "foreseen_gib": round(foreseen.peak_bytes / 2**30, 2),
        "measured_gib": round(peak / 2**30, 2),
        "memory_ratio": round(peak / foreseen.peak_bytes, 2),
        "memory_ratio_by_kind": [round(min(ratios), 2), round(max(ratios), 2)],
        "load": round(os.getloadavg()[1], 1),
    }


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[2].split(";") if argument]
    print(json.dumps(check(Path(sys.argv[1]), arguments, sys.argv[3:])))
