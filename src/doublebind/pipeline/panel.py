"""Measures references once and freezes them for other studies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from doublebind.execution.executor import Executor, Progress, check_executor
from doublebind.execution.ledger import Ledger, lock_run
from doublebind.execution.store import Store, weights_sha256
from doublebind.pipeline.measure import measure
from doublebind.runs.provenance import describe_hardware, read_versions
from doublebind.schema.errors import ConfigError
from doublebind.schema.score_table import M0
from doublebind.schema.study import BankReferences, PanelSpec
from doublebind.study import panel as panels
from doublebind.study.plan import Plan
from doublebind.study.planner import REVISIONS, Planner
from doublebind.study.protocol import list_audit_names
from doublebind.study.resolve import assign_roles
from doublebind.study.teachers import TeacherSource


def freeze_panel(
    measurement: PanelSpec,
    out: str | Path,
    *,
    folder: str | Path = ".",
    store: str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Make and audit references and organisms, and keep their scores in the folder `out`.

    Returns:
        `panel` (its hash), `references`, `families`, `organisms`, `students`.

    Raises:
        ConfigError: If the references are a panel's already.
    """
    out, kept = Path(out), Store(store)
    planner = Planner(measurement, Path(folder), kept)
    if isinstance(measurement.references, BankReferences) and measurement.references.panel:
        raise ConfigError("`references.panel`: a panel is made of references; leave it out")
    role = assign_roles(measurement, planner.pack)
    found = {ref: planner.find(ref) for ref in role}
    plan = planner.plan(list(found.values()))
    check_executor(measurement.executor, measurement.device)
    with lock_run(out):
        ledger = Ledger(out / "ledger.jsonl")
        on = measurement.executor
        executor = Executor(kept, ledger, on, device=measurement.device, progress=progress)
        scores = measure(plan, executor)
        shapes = plan.read_shapes(kept)
        panel = panels.Panel(
            conditions=panels.PanelConditions(
                pack_hash=planner.pack.sha256,
                recipes=tuple(r.model_dump(mode="json") for r in measurement.recipes),
                audits=list_audit_names(planner.audits),
                seeds=measurement.seeds,
                dtype=measurement.dtype,
                device=measurement.device,
                student=planner.student.sha256,
                revisions=REVISIONS,
            ),
            baselines=measurement.baselines,
            teachers=tuple(
                _describe_teacher(t, role[ref], shapes[ref], plan, kept) for ref, t in found.items()
            ),
            scores_sha256="",
            versions=read_versions(),
            hardware=describe_hardware(),
        )
        panel = panels.write_panel(out, panel, scores.loc[scores["teacher"] != M0, :])
    return {
        "panel": panel.hash,
        "references": len(panel.of("reference")),
        "families": len({t.family for t in panel.of("reference")}),
        "organisms": len(panel.of("organism")),
        "students": sum(len(t.students) for t in panel.teachers),
    }


def _describe_teacher(
    teacher: TeacherSource, role: Any, shape: dict[str, float], plan: Plan, store: Store
) -> panels.PanelTeacher:
    """Return what a panel keeps of a teacher."""

    def weights(kind: str, key: str) -> str:
        return weights_sha256(store.path(kind, key) / "model")

    return panels.PanelTeacher(
        label=teacher.label,
        role=role,
        family=teacher.family,
        key=teacher.key,
        spec=teacher.spec.model_dump(mode="json") if teacher.spec else None,
        weights_sha256=weights("teacher", teacher.key) if teacher.spec else teacher.base.sha256,
        shape=shape,
        students=tuple(
            panels.PanelStudent(
                recipe=cell.recipe.name,
                seed=cell.seed,
                key=cell.train.key,
                weights_sha256=weights("student", cell.train.key),
            )
            for cell in plan.students
            if cell.teacher.label == teacher.label
        ),
    )
