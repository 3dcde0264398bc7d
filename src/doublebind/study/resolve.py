"""Resolves a study: its teachers and their roles, its plan, its protocol; runs nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from doublebind.execution.store import Store
from doublebind.packs.pack import Pack
from doublebind.schema.calibration import TeacherClass
from doublebind.schema.errors import ConfigError
from doublebind.schema.executor import LocalOptions
from doublebind.schema.model_source import Teacher
from doublebind.schema.protocol import Protocol
from doublebind.schema.study import BankReferences, PanelSpec, Study, load_study
from doublebind.stages.audits.protocol import Audit
from doublebind.stages.audits.validate import check_audits
from doublebind.study.jobs import REVISIONS
from doublebind.study.panel import (
    Panel,
    check_panel,
    draw_teachers,
    find_panel_folder,
    read_panel,
    read_panel_scores,
)
from doublebind.study.plan import Plan
from doublebind.study.planner import Planner
from doublebind.study.protocol import freeze_protocol
from doublebind.study.replacement import ReplacementStudy, resolve_replacement
from doublebind.study.teachers import TeacherSource, list_reference_names

if TYPE_CHECKING:
    import pandas as pd


class PanelFolder(NamedTuple):
    """A panel, and the folder of its files."""

    folder: Path
    panel: Panel


class ResolvedStudy(NamedTuple):
    """A study with its teachers found, its jobs planned and its protocol fixed."""

    study: Study
    planner: Planner
    suspect: TeacherSource
    """The teacher under investigation."""
    teacher_sources: list[TeacherSource]
    """Teachers to be built or opened: the suspect, and all that come from no panel."""
    teachers: list[Teacher]
    """Suspect, references and positive controls, a panel's included."""
    plan: Plan
    protocol: Protocol
    panel: PanelFolder | None
    replacement: ReplacementStudy | None
    """`None` where the study looks for no replacement."""

    @property
    def store(self) -> Store:
        """The store of all artefacts."""
        return self.planner.store

    @property
    def selection_teachers(self) -> list[Teacher]:
        """Teachers on whose students recipes compete; empty without a search for a replacement."""
        return self.replacement.teachers if self.replacement else []

    @property
    def all_references(self) -> list[Teacher]:
        """The study's references, or all those of its panel."""
        if self.panel is None:
            return self.draw_references(0)
        return [t.to_teacher() for t in self.panel.panel.select_role("reference")]

    def draw_references(self, i: int) -> list[Teacher]:
        """Return the study's references; of a panel, the `i`-th draw after the study's."""
        bank = self.study.references
        teachers = self.teachers
        if self.panel is not None and isinstance(bank, BankReferences):
            drawn = bank.model_copy(update={"seed": bank.seed + i})
            teachers = draw_teachers(self.panel.panel, drawn, self.panel.folder)
        return [t for t in teachers if t.role == "reference"]

    def add_panel_scores(self, scores: pd.DataFrame, *, all_teachers: bool = False) -> pd.DataFrame:
        """Return `scores` with the rows of the panel's teachers: those of this study, or all."""
        if self.panel is None:
            return scores
        import pandas as pd

        measured = set(scores["teacher"])
        teachers = self.panel.panel.teachers if all_teachers else self.teachers
        labels = [t.label for t in teachers if t.label not in measured]
        rows = read_panel_scores(self.panel.folder, labels)
        return pd.concat([scores, rows], ignore_index=True)

    def read_shapes(self, plan: Plan | None = None) -> dict[str, dict[str, float]]:
        """Return match features, label -> feature -> value, measured by `plan` or in the panel.

        Without `plan`, of the teachers of this study; with one, of all the panel's teachers too.
        """
        measured = (plan or self.plan).read_shapes(self.store)
        of_panel = {t.label: t.shape for t in self.panel.panel.teachers} if self.panel else {}
        if plan is None:
            of_panel = {t.label: of_panel[t.label] for t in self.teachers if t.label in of_panel}
        return of_panel | measured


def load_if_path(study: Study | str | Path, folder: str | Path | None) -> tuple[Study, Path]:
    """Return a study, read if it is a path, and the folder that its paths are relative to."""
    if isinstance(study, Study):
        return study, Path(folder or ".")
    return load_study(study), Path(folder or Path(study).parent)


class LabelledTeachers(NamedTuple):
    """Teachers of known truth, each of which `calibrate` weighs as if it were the suspect."""

    labelled: list[tuple[TeacherClass, Teacher]]
    """With their class: `organism`, `benign` or `near_miss`."""
    benign_sources: dict[str, TeacherSource]
    """Held-out benign teachers and near misses, which have no role in the study itself."""
    sources: list[TeacherSource]
    """In the order of `labelled`."""


def label_teachers(study: Study, resolved: ResolvedStudy) -> LabelledTeachers:
    """Return the teachers that `calibrate` weighs.

    Raises:
        ConfigError: If the study names none.
    """
    if not any((study.organisms, study.held_out, study.near_misses)):
        raise ConfigError(
            "`organisms`, `held_out` and `near_misses` are empty; calibrate needs one of them"
        )
    benign = {
        ref: resolved.planner.find_teacher(ref) for ref in (*study.held_out, *study.near_misses)
    }
    labelled: list[tuple[TeacherClass, Teacher]] = [
        ("organism", t) for t in resolved.teachers if t.label in study.organisms
    ]
    for ref, source in benign.items():
        kind: TeacherClass = "near_miss" if ref in study.near_misses else "benign"
        labelled.append((kind, source.to_teacher("organism")))
    sources = {source.label: source for source in (*resolved.teacher_sources, *benign.values())}
    return LabelledTeachers(labelled, benign, [sources[teacher.label] for _, teacher in labelled])


def assign_roles(spec: PanelSpec, pack: Pack) -> dict[str, Any]:
    """Return reference -> role, of every teacher that is to be built or opened."""
    roles: dict[str, Any] = dict.fromkeys(list_reference_names(spec, pack), "reference")
    return roles | dict.fromkeys(spec.organisms, "organism")


def resolve_study(
    study: Study, folder: Path, store: Store, audits: Sequence[Audit] = ()
) -> ResolvedStudy:
    """Find every teacher, plan every job, and fix the protocol.

    Raises:
        DoublebindError: With one line per problem: a name, a path, or a panel measured under other
            conditions.
    """
    executor = study.executor
    in_workers = not isinstance(executor, LocalOptions) or executor.workers > 1
    check_audits(audits, study.audits, in_workers=in_workers)
    planner = Planner(study, folder, store, audits)
    roles = {study.suspect: "suspect", **assign_roles(study, planner.pack)}
    sources = [planner.find_teacher(ref) for ref in roles]
    teachers = [source.to_teacher(roles[source.label]) for source in sources]
    panel = _read_panel_folder(study.references, folder)
    if panel and isinstance(study.references, BankReferences):
        teachers += draw_teachers(panel.panel, study.references, panel.folder)
        _check_duplicates(teachers)
    replacement = resolve_replacement(study, planner)
    protocol = freeze_protocol(
        study,
        planner.pack,
        planner.audits,
        teachers,
        student=planner.student_base.sha256,
        revisions=REVISIONS,
        panel=panel.panel.hash if panel else None,
        replacement=replacement.protocol if replacement else None,
    )
    if panel:
        check_panel(panel.panel, protocol, panel.folder)
    return ResolvedStudy(
        study=study,
        planner=planner,
        suspect=planner.find_teacher(study.suspect),
        teacher_sources=sources,
        teachers=teachers,
        plan=planner.plan(sources),
        protocol=protocol,
        panel=panel,
        replacement=replacement,
    )


def _read_panel_folder(references: object, folder: Path) -> PanelFolder | None:
    if not isinstance(references, BankReferences) or references.panel is None:
        return None
    panel_folder = find_panel_folder(references.panel, folder)
    return PanelFolder(panel_folder, read_panel(panel_folder))


def _check_duplicates(teachers: Sequence[Teacher]) -> None:
    """Refuse a teacher that the panel holds as well: none is weighed against itself."""
    counted = Counter(teacher.content_key for teacher in teachers)
    twice = sorted({teacher.label for teacher in teachers if counted[teacher.content_key] > 1})
    if twice:
        raise ConfigError(
            f"{twice[0]}: is in the panel, too, and would be weighed against itself; name another, "
            f"or draw other references with `references.seed`"
        )
