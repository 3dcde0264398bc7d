"""Makes a study concrete: who is who, what has to be made, what was frozen; runs nothing."""

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
from doublebind.study import panel as panels
from doublebind.study.plan import Plan
from doublebind.study.planner import REVISIONS, Planner
from doublebind.study.protocol import freeze_protocol
from doublebind.study.replacement import ReplacementStudy, freeze_replacement, resolve_replacement
from doublebind.study.teachers import TeacherSource, list_reference_names

if TYPE_CHECKING:
    import pandas as pd


class PanelFolder(NamedTuple):
    """A panel, and where it lies."""

    folder: Path
    panel: panels.Panel


class ResolvedStudy(NamedTuple):
    """A study made concrete."""

    planner: Planner
    teacher_sources: list[TeacherSource]
    """Teachers to be made or opened: the suspect, and all that no panel keeps."""
    teachers: list[Teacher]
    """All that are weighed, those of a panel too."""
    plan: Plan
    protocol: Protocol
    panel: PanelFolder | None
    replacement: ReplacementStudy | None
    """The second horn, where it was asked for."""

    @property
    def suspect(self) -> TeacherSource:
        """The teacher under investigation: the first one named."""
        return self.teacher_sources[0]

    @property
    def all_references(self) -> list[Teacher]:
        """All references there are: the study's, or all that its panel keeps."""
        if self.panel is None:
            return self.draw_references(0)
        return [t.to_teacher() for t in self.panel.panel.select_role("reference")]

    def draw_references(self, i: int) -> list[Teacher]:
        """Return the study's references; of a panel, the `i`-th draw of them from the study's."""
        bank = self.planner.study.references
        if self.panel is None or not isinstance(bank, BankReferences):
            return [t for t in self.teachers if t.role == "reference"]
        drawn = bank.model_copy(update={"seed": bank.seed + i})
        teachers = panels.draw_teachers(self.panel.panel, drawn, self.panel.folder)
        return [t for t in teachers if t.role == "reference"]

    def add_panel_scores(self, scores: pd.DataFrame, *, all_teachers: bool = False) -> pd.DataFrame:
        """Return `scores` with the panel's rows, of all its teachers or of those weighed."""
        if self.panel is None:
            return scores
        import pandas as pd

        there = set(scores["teacher"])
        teachers = self.panel.panel.teachers if all_teachers else self.teachers
        kept = [t.label for t in teachers if t.label not in there]
        return pd.concat(
            [scores, panels.read_panel_scores(self.panel.folder, kept)], ignore_index=True
        )

    def read_shapes(self, store: Store, plan: Plan | None = None) -> dict[str, dict[str, float]]:
        """Return the shapes of all that are weighed: label -> feature -> number."""
        made = (plan or self.plan).read_shapes(store)
        there = {t.label: t.shape for t in self.panel.panel.teachers} if self.panel else {}
        if plan is None:
            there = {t.label: there[t.label] for t in self.teachers if t.label in there}
        return there | made


def load_if_path(study: Study | str | Path, folder: str | Path | None) -> tuple[Study, Path]:
    """Return a study, read if it is a path, and the folder that its paths are relative to."""
    if isinstance(study, Study):
        return study, Path(folder or ".")
    return load_study(study), Path(folder or Path(study).parent)


class LabelledTeachers(NamedTuple):
    """Teachers whose truth is known, each weighed in turn as if it were the suspect."""

    labelled: list[tuple[TeacherClass, Teacher]]
    """With their class: `organism`, `benign` or `near_miss`."""
    benign_sources: dict[str, TeacherSource]
    """Held-out benign teachers and near misses, which are nobody in the study itself."""
    sources: list[TeacherSource]
    """In the order of `known`."""


def label_teachers(study: Study, setting: ResolvedStudy) -> LabelledTeachers:
    """Return whom `calibrate` weighs.

    Raises:
        ConfigError: If the study names nobody.
    """
    if not any((study.organisms, study.held_out, study.near_misses)):
        raise ConfigError(
            "`organisms`, `held_out` and `near_misses` are empty; calibrate needs one of them"
        )
    benign = {
        ref: setting.planner.find_teacher(ref) for ref in (*study.held_out, *study.near_misses)
    }
    known: list[tuple[TeacherClass, Teacher]] = [
        ("organism", t) for t in setting.teachers if t.label in study.organisms
    ]
    classes: dict[str, TeacherClass] = dict.fromkeys(study.held_out, "benign")
    classes |= dict.fromkeys(study.near_misses, "near_miss")
    known.extend((classes[ref], source.to_teacher("organism")) for ref, source in benign.items())
    there = {found.label: found for found in (*setting.teacher_sources, *benign.values())}
    return LabelledTeachers(known, benign, [there[teacher.label] for _, teacher in known])


def assign_roles(measurement: PanelSpec, pack: Pack) -> dict[str, Any]:
    """Return the role of every teacher to be made that has one: reference -> role."""
    found: dict[str, Any] = dict.fromkeys(list_reference_names(measurement, pack), "reference")
    return found | dict.fromkeys(measurement.organisms, "organism")


def resolve_study(
    study: Study, folder: Path, store: Store, audits: Sequence[Audit] = ()
) -> ResolvedStudy:
    """Find every teacher, list every job, and fix the protocol.

    Raises:
        DoublebindError: With one line per problem: a name, a path, or a panel measured under other
            conditions.
    """
    executor = study.executor
    elsewhere = not isinstance(executor, LocalOptions) or executor.workers > 1
    check_audits(audits, study.audits, in_workers=elsewhere)
    planner = Planner(study, folder, store, audits)
    role = {study.suspect: "suspect", **assign_roles(study, planner.pack)}
    found = {ref: planner.find_teacher(ref) for ref in role}
    teachers = [t.to_teacher(role[ref]) for ref, t in found.items()]
    kept = _read_panel_folder(study.references, folder)
    if kept and isinstance(study.references, BankReferences):
        teachers += panels.draw_teachers(kept.panel, study.references, kept.folder)
        _check_duplicates(teachers)
    contest = resolve_replacement(study, planner)
    protocol = freeze_protocol(
        study,
        planner.pack,
        planner.audits,
        teachers,
        student=planner.student_base.sha256,
        revisions=REVISIONS,
        panel=kept.panel.hash if kept else None,
        replacement=freeze_replacement(study, contest, planner) if contest else None,
    )
    if kept:
        panels.check_panel(kept.panel, protocol, kept.folder)
    everyone = list(found.values())
    plan = planner.plan(everyone)
    return ResolvedStudy(planner, everyone, teachers, plan, protocol, kept, contest)


def _read_panel_folder(references: object, folder: Path) -> PanelFolder | None:
    if not isinstance(references, BankReferences) or references.panel is None:
        return None
    where = panels.find_panel_folder(references.panel, folder)
    return PanelFolder(where, panels.read_panel(where))


def _check_duplicates(teachers: Sequence[Teacher]) -> None:
    """Refuse a teacher that the panel holds, too: nobody is weighed against itself."""
    counted = Counter(teacher.content_key for teacher in teachers)
    twice = sorted({teacher.label for teacher in teachers if counted[teacher.content_key] > 1})
    if twice:
        raise ConfigError(
            f"{twice[0]}: is in the panel, too, and would be weighed against itself; name another, "
            f"or draw other references with `references.seed`"
        )
