"""Says what a study would take and what it could show, before any of it is made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from doublebind.config import Study
from doublebind.evidence import reference_requirements, smallest_p
from doublebind.records import Protocol, Teacher
from doublebind.rundir import Run
from doublebind.setting import opened, prepare
from doublebind.store import Store
from doublebind.teachers.matched import assumes


def plan(
    study: Study | str | Path,
    *,
    folder: str | Path | None = None,
    store: str | Path | None = None,
    pilot: str | Path | None = None,
) -> dict[str, Any]:
    """Return what a study would take, without running anything.

    Args:
        study: What would be done, or the file that says it.
        folder: What relative paths in the study are relative to; default the file's folder, or
            the current one.
        store: Where artefacts are kept.
        pilot: Run directory whose references, benign by assumption, give the variance components
            from which power is simulated.

    Returns:
        `cells` (kind -> needed, in the store, seconds and bytes still to come), `seconds`, `bytes`,
        `references`, `families`, `smallest_p`, `exchangeability` (what the p-value assumes),
        `power` (as planned, and for other n, seeds and
        items) and `missing` (why a number is absent). Times are means over artefacts of the same
        kind in this store; a kind never made here has none.
    """
    study, folder = opened(study, folder)
    kept = Store(store)
    setting = prepare(study, folder, kept)
    cells: dict[str, dict[str, Any]] = {}
    missing: dict[str, str] = {}
    for kind, keys in setting.plan.cells().items():
        there = [key for key in keys if kept.has(kind, key)]
        cost = kept.cost(kind)
        todo = len(keys) - len(there)
        cells[kind] = {"needed": len(keys), "stored": len(there)}
        if cost is not None:
            cells[kind] |= {"seconds": todo * cost.seconds, "bytes": todo * cost.bytes}
        elif todo:
            missing[f"cells.{kind}.seconds"] = "no such cell was ever made in this store"
    references = [t for t in setting.teachers if t.role == "reference"]
    found: dict[str, Any] = {
        "cells": cells,
        "references": len(references),
        "families": len({t.family for t in references}),
        "smallest_p": smallest_p(len(references)),
        "exchangeability": assumes(study.references),
        "references_for_alpha": reference_requirements(study.policy.alpha),
        "protocol_hash": setting.protocol.hash,
        "missing": missing,
    }
    if not any(key.startswith("cells.") for key in missing):
        found["seconds"] = sum(cell.get("seconds", 0.0) for cell in cells.values())
        found["bytes"] = sum(cell.get("bytes", 0) for cell in cells.values())
    if pilot is None:
        missing["power"] = "no benign pilot; name a finished run with --pilot"
    else:
        found |= _planned_power(study, setting.protocol, references, Run(pilot), missing)
    return found


def _planned_power(
    study: Study,
    protocol: Protocol,
    references: Sequence[Teacher],
    pilot: Run,
    missing: dict[str, str],
) -> dict[str, Any]:
    """Return the study's power, simulated from the references of the run `pilot`."""
    from doublebind.evidence import plan_power

    benign = {t.label: t.family for t in pilot.manifest.teachers if t.role == "reference"}
    known, why = plan_power.pilot(pilot.scores, benign, protocol)
    if known is None:
        missing |= {f"power.{name}": reason for name, reason in why.items()}
        return {}
    families = len({t.family for t in references})
    design = plan_power.Design(len(references), families, study.seeds, 1.0)
    policy = study.policy
    power = plan_power.table(known, design, alpha=policy.alpha, floor=policy.scale_floor)
    for row in power["others"]:  # what it would cost, beside the organisms
        row["students"] = (row["references"] + 1) * row["seeds"] * len(study.recipes)
    return {"power": power}
