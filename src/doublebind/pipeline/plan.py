"""Says what a study would take and what it could show, before any of it is made."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from doublebind.execution.costs import Cost, CostEstimates, classify_cost
from doublebind.execution.executor import Job
from doublebind.execution.store import Store
from doublebind.runs.run import Run
from doublebind.schema.executor import LocalOptions
from doublebind.schema.model_source import Teacher
from doublebind.schema.protocol import Protocol
from doublebind.schema.study import Study
from doublebind.stages.evidence.conformal import min_references, smallest_p
from doublebind.stages.prompts.policies import count_passing_prompts
from doublebind.study.plan import Plan
from doublebind.study.references import describe_assumption
from doublebind.study.replacement import plan_certification, plan_competition
from doublebind.study.resolve import ResolvedStudy, label_teachers, load_if_path, resolve_study
from doublebind.study.teachers import TeacherSource

CUDA_RESERVED_BYTES = 2**29
"""Bytes of a GPU that a process takes beside its tensors: CUDA's own, half a GiB as a rule."""


def plan(
    study: Study | str | Path,
    *,
    folder: str | Path | None = None,
    store: str | Path | None = None,
    pilot: str | Path | None = None,
    calibrate: bool = False,
) -> dict[str, Any]:
    """Return what a study would take, without running anything.

    Args:
        study: What would be done, or the file that says it.
        folder: What relative paths in the study are relative to; default the file's folder, or
            the current one.
        store: Where artefacts are kept.
        pilot: Run directory whose references, benign by assumption, give the variance components
            from which power is simulated.
        calibrate: Count what `calibrate` would make, of everyone whose truth is known.

    Returns:
        `cells` (kind -> needed, in the store, seconds and bytes still to come), `seconds`, `bytes`,
        `references`, `families`, `smallest_p`, `exchangeability` (what the p-value assumes),
        `power` (as planned, and for other n, seeds and items) and `missing` (why a number is
        absent). Times are means over artefacts in this store of the same kind, base and amount,
        or of the same kind and base where none asked for as much; a kind never made here for
        this base has none. With `executor: local` also `wall_seconds`, from start to end, and
        `peak_bytes`, held by all workers together if the largest cells meet; on `device: cuda`
        also `device_peak_bytes`, the same of a GPU's memory, and `device_fits`, whether the
        smallest GPU here has that and `RESERVED` for each worker.
    """
    study, folder = load_if_path(study, folder)
    kept = Store(store)
    setting = resolve_study(study, folder, kept)
    missing: dict[str, str] = {}
    plans, costs = _list_plans(study, setting, calibrate=calibrate), CostEstimates(kept)
    cells = _sum_costs(plans, costs, missing)
    references = [t for t in setting.teachers if t.role == "reference"]
    found: dict[str, Any] = {
        "cells": cells,
        "references": len(references),
        "families": len({t.family for t in references}),
        "smallest_p": smallest_p(len(references)),
        "exchangeability": describe_assumption(study.references)
        if "incriminate" in study.horns
        else "nothing is asked about incrimination",
        "references_for_alpha": min_references(study.policy.alpha),
        "protocol_hash": setting.protocol.hash,
        "missing": missing,
    }
    missing |= _find_prompt_shortages(plans)
    few = len(study.replace.organisms) < study.policy.min_controls
    if setting.replacement is not None and few:
        missing["within_margin"] = (
            f"`replace.organisms` names {len(study.replace.organisms)}: of fewer than "
            f"{study.policy.min_controls} positive controls nothing is certified"
        )
    if not any(key.startswith("cells.") for key in missing):
        found["seconds"] = sum(cell.get("seconds", 0.0) for cell in cells.values())
        found["bytes"] = sum(cell.get("bytes", 0) for cell in cells.values())
    seen: set[tuple[str, str]] = set()  # plans share cells
    stages = [_stage_costs(stage, costs, seen) for plan in plans for stage in plan.list_batches()]
    known = [stage for stage in stages if stage is not None]
    if len(known) == len(stages):
        found |= _local_estimate(study, known)
    found |= _estimate_gpu_memory(study, cells, missing)
    if pilot is None:
        missing["power"] = "no benign pilot; name a finished run with --pilot"
    else:
        found |= _simulate_power(study, setting.protocol, references, Run(pilot), missing)
    return found


def _list_plans(study: Study, setting: ResolvedStudy, *, calibrate: bool) -> list[Plan]:
    """Return everything that would be made, for the suspect or for everyone of known truth."""
    if not calibrate:
        return [setting.plan, *_list_replacement_plans(setting, [setting.suspect], every=False)]
    known = label_teachers(study, setting)
    first = setting.planner.plan([*setting.teacher_sources, *known.benign_sources.values()])
    every = study.replace.bound == "every"
    return [first, *_list_replacement_plans(setting, known.sources, every=every)]


def _list_replacement_plans(
    setting: ResolvedStudy, suspects: Sequence[TeacherSource], *, every: bool
) -> list[Plan]:
    """Return the plans of the second horn, as if its first recipe won where one has to win."""
    contest = setting.replacement
    if contest is None:
        return []
    first = plan_competition(contest, setting.planner, suspects[0])
    names = [recipe.name for recipe in contest.recipes[: None if every else 1]]
    return [first, plan_certification(contest, setting.planner, suspects, names)]


def _sum_costs(
    plans: Sequence[Plan], costs: CostEstimates, missing: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """Return kind -> cells needed, in the store, and what those still to be made would take."""
    found: dict[str, dict[str, Any]] = {}
    for kind, jobs in _group_jobs(plans).items():
        todo = [job for job in jobs if not costs.store.has(kind, job.content_key)]
        found[kind] = {"needed": len(jobs), "stored": len(jobs) - len(todo)}
        told = [costs.estimate(kind, classify_cost(job.cost_base, job.inputs)) for job in todo]
        known = [cost for cost in told if cost is not None]
        if len(known) < len(todo):
            missing[f"cells.{kind}.seconds"] = "no such cell was ever made here for this base"
            continue
        found[kind]["seconds"] = sum(cost.seconds for cost in known)
        found[kind]["bytes"] = sum(cost.size_bytes for cost in known)
        for name in ("peak_bytes", "device_peak_bytes") if known else ():
            if most := max(getattr(cost, name) for cost in known):
                found[kind][name] = most
    return found


def _group_jobs(plans: Sequence[Plan]) -> dict[str, list[Job]]:
    """Return kind -> its jobs, each once."""
    found: dict[str, dict[str, Job]] = {}
    for job in (job for plan in plans for job in plan.list_jobs()):
        found.setdefault(job.kind, {}).setdefault(job.content_key, job)
    return {kind: list(jobs.values()) for kind, jobs in found.items()}


def _find_prompt_shortages(plans: Sequence[Plan]) -> dict[str, str]:
    """Return policy -> that its recipes ask for more prompts than pass its screens."""
    asked = sorted(
        (job.inputs for job in _group_jobs(plans)["prompts"]), key=lambda each: each["n"]
    )
    found: dict[str, str] = {}
    for each in asked:
        there = count_passing_prompts(**{k: v for k, v in each.items() if k != "n"})
        if there < each["n"]:
            found[f"prompts.{each['policy']}"] = (
                f"{each['n']} are asked for (`n`) and {there} pass; name more in `file`, or ask "
                "for more `samples` of each"
            )
    return found


def _stage_costs(
    stage: Sequence[Job], costs: CostEstimates, seen: set[tuple[str, str]]
) -> list[Cost] | None:
    """Return the cost of each cell of a stage still to be made; `None` where one is unknown.

    Cells in `seen` are left out, and those of this stage are added to it.
    """
    todo = {
        (job.kind, job.content_key): job
        for job in stage
        if (job.kind, job.content_key) not in seen
        and not costs.store.has(job.kind, job.content_key)
    }
    seen |= todo.keys()
    means = [
        costs.estimate(job.kind, classify_cost(job.cost_base, job.inputs))
        for _, job in sorted(todo.items())
    ]
    known = [cost for cost in means if cost is not None]
    return known if len(known) == len(todo) else None


def _local_estimate(study: Study, stages: Sequence[Sequence[Cost]]) -> dict[str, float]:
    """Return seconds and most bytes of memory of the local executor; empty with another one."""
    if not isinstance(study.executor, LocalOptions) or not any(stages):
        return {}
    workers = study.executor.workers
    at_once = min(workers, max(map(len, stages)))
    return {
        "wall_seconds": sum(_makespan(stage, workers) for stage in stages),
        "peak_bytes": at_once * max(cost.peak_bytes for stage in stages for cost in stage),
    }


def _makespan(stage: Sequence[Cost], workers: int) -> float:
    """Return the seconds of a stage whose cells start in order on the worker that is free first.

    List scheduling, at most twice the optimum (Graham 1969).
    """
    free = [0.0] * workers
    for cost in stage:
        heapq.heappush(free, heapq.heappop(free) + cost.seconds)
    return max(free)


def _estimate_gpu_memory(
    study: Study, cells: Mapping[str, Mapping[str, Any]], missing: dict[str, str]
) -> dict[str, Any]:
    """Return what the local executor's workers take of a GPU together, and whether it has that."""
    on, todo = study.executor, [c for c in cells.values() if c["needed"] > c["stored"]]
    if study.device == "cpu" or not isinstance(on, LocalOptions) or not todo:
        return {}
    most = max(cell.get("device_peak_bytes", 0.0) for cell in todo)
    if not most:
        missing["device_peak_bytes"] = "no such cell was ever made on a GPU in this store"
        return {}
    from doublebind.execution.device import list_gpu_memory

    sizes = list_gpu_memory()
    sharing = math.ceil(on.workers / max(1, len(sizes)))
    found: dict[str, Any] = {"device_peak_bytes": sharing * most}
    if sizes:
        return found | {"device_fits": sharing * (most + CUDA_RESERVED_BYTES) <= min(sizes)}
    missing["device_fits"] = "torch sees no GPU here"
    return found


def _simulate_power(
    study: Study,
    protocol: Protocol,
    references: Sequence[Teacher],
    pilot: Run,
    missing: dict[str, str],
) -> dict[str, Any]:
    """Return the study's power, simulated from the references of the run `pilot`."""
    from doublebind.stages.evidence import power_analysis as plan_power

    benign = {t.label: t.family for t in pilot.manifest.teachers if t.role == "reference"}
    known, why = plan_power.estimate_pilot(pilot.scores, benign, protocol)
    if known is None:
        missing |= {f"power.{name}": reason for name, reason in why.items()}
        return {}
    families = len({t.family for t in references})
    design = plan_power.Design(len(references), families, study.seeds, 1.0)
    policy = study.policy
    power = plan_power.tabulate_power(known, design, alpha=policy.alpha, floor=policy.scale_floor)
    for row in power["others"]:  # what it would cost, beside the organisms
        row["students"] = (row["references"] + 1) * row["seeds"] * len(study.recipes)
    return {"power": power}
