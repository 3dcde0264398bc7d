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
    spec: PanelSpec,
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
    planner = Planner(spec, Path(folder), kept)
    if isinstance(spec.references, BankReferences) and spec.references.panel:
        raise ConfigError("`references.panel`: a panel is made of references; leave it out")
    role = assign_roles(spec, planner.pack)
    found = {ref: planner.find_teacher(ref) for ref in role}
    plan = planner.plan(list(found.values()))
    check_executor(spec.executor, spec.device)
    with lock_run(out):
        ledger = Ledger(out / "ledger.jsonl")
        on = spec.executor
        executor = Executor(kept, ledger, on, device=spec.device, progress=progress)
        scores = measure(plan, executor)
        shapes = plan.read_shapes(kept)
        panel = panels.Panel(
            conditions=panels.PanelConditions(
                pack_hash=planner.pack.sha256,
                recipes=tuple(r.model_dump(mode="json") for r in spec.recipes),
                audits=list_audit_names(planner.audits),
                seeds=spec.seeds,
                dtype=spec.dtype,
                device=spec.device,
                student=planner.student_base.sha256,
                revisions=REVISIONS,
            ),
            baselines=spec.baselines,
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
        "references": len(panel.select_role("reference")),
        "families": len({t.family for t in panel.select_role("reference")}),
        "organisms": len(panel.select_role("organism")),
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
        content_key=teacher.content_key,
        spec=teacher.spec.model_dump(mode="json") if teacher.spec else None,
        weights_sha256=weights("teacher", teacher.content_key)
        if teacher.spec
        else teacher.base.sha256,
        shape=shape,
        students=tuple(
            panels.PanelStudent(
                recipe=cell.recipe.name,
                seed=cell.seed,
                content_key=cell.train.content_key,
                weights_sha256=weights("student", cell.train.content_key),
            )
            for cell in plan.students
            if cell.teacher.label == teacher.label
        ),
    )
