"""Measures references once and freezes them for other studies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from doublebind.execution.executor import Executor, Job, Progress, check_executor
from doublebind.execution.ledger import Ledger, lock_run
from doublebind.execution.store import Store, read_absence, weights_sha256
from doublebind.pipeline.measure import measure
from doublebind.pipeline.preflight import check_before_work
from doublebind.runs.provenance import describe_hardware, read_versions
from doublebind.schema.errors import ConfigError, ModelError
from doublebind.schema.score_table import M0
from doublebind.schema.study import BankReferences, PanelSpec
from doublebind.study.distinct import check_distinct, name_teacher
from doublebind.study.panel import (
    Panel,
    PanelStudent,
    PanelTeacher,
    describe_conditions,
    write_panel,
)
from doublebind.study.plan import Plan
from doublebind.study.planner import Planner
from doublebind.study.resolve import assign_roles


def freeze_panel(
    spec: PanelSpec,
    out: str | Path,
    *,
    folder: str | Path = ".",
    store: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Build and audit references and organisms; write their scores into the folder `out`.

    Returns:
        `panel` (its hash), `references`, `families`, `organisms`, `students`.

    Raises:
        ConfigError: If the references already come from a panel, or one model is named twice.
    """
    out = Path(out)
    planner = Planner(spec, Path(folder), Store(store))
    if isinstance(spec.references, BankReferences) and spec.references.panel:
        raise ConfigError("`references.panel`: a panel is made of references; leave it out")
    roles = assign_roles(spec, planner.pack)
    sources = [planner.find_teacher(ref) for ref in roles]
    check_distinct(name_teacher(f"{roles[s.label]}s", s, planner.store) for s in sources)
    plan = planner.plan(sources)
    check_executor(spec.executor, spec.device)
    check_before_work(planner, sources, plan)
    with lock_run(out):
        ledger = Ledger(out / "ledger.jsonl")
        executor = Executor(
            planner.store, ledger, spec.executor, device=spec.device, progress=progress
        )
        scores = measure(plan, executor)
        panel = Panel(
            conditions=describe_conditions(planner),
            baselines=spec.baselines,
            teachers=_describe_teachers(roles, planner, plan),
            scores_sha256="",
            versions=read_versions(),
            hardware=describe_hardware(),
        )
        panel = write_panel(out, panel, scores.loc[scores["teacher"] != M0, :])
    return {
        "panel": panel.hash,
        "references": len(panel.select_role("reference")),
        "families": len({t.family for t in panel.select_role("reference")}),
        "organisms": len(panel.select_role("organism")),
        "students": sum(len(t.students) for t in panel.teachers),
    }


def _describe_teachers(
    roles: Mapping[str, Any], planner: Planner, plan: Plan
) -> tuple[PanelTeacher, ...]:
    """Return the records of a panel's teachers and their students, built and measured."""
    store, shapes = planner.store, plan.read_shapes(planner.store)

    def hash_weights(job: Job) -> str:
        return weights_sha256(store.open_artefact(job.kind, job.content_key) / "model")

    students: dict[str, list[PanelStudent]] = {}
    for student in plan.students:
        absent = read_absence(store.path(student.train.kind, student.train.content_key))
        if absent is not None:
            raise ModelError(absent)
        record = PanelStudent(
            recipe=student.recipe.name,
            seed=student.seed,
            content_key=student.train.content_key,
            weights_sha256=hash_weights(student.train),
        )
        students.setdefault(student.teacher.label, []).append(record)
    records: list[PanelTeacher] = []
    for ref, role in roles.items():
        teacher = planner.find_teacher(ref)
        building = planner.workspace.find_model(teacher).needs
        records.append(
            PanelTeacher(
                label=teacher.label,
                role=role,
                family=teacher.family,
                content_key=teacher.content_key,
                spec=teacher.spec.model_dump(mode="json") if teacher.spec else None,
                weights_sha256=hash_weights(building[0]) if building else teacher.base.sha256,
                shape=shapes[ref],
                students=tuple(students[teacher.label]),
            )
        )
    return tuple(records)
