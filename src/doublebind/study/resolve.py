"""Resolves a study: its teachers and their roles, its plan, its protocol; runs nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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
from doublebind.study.distinct import (
    NamedModel,
    check_distinct,
    name_panel_teacher,
    name_teacher,
)
from doublebind.study.jobs import REVISIONS
from doublebind.study.panel import (
    Panel,
    check_panel,
    describe_conditions,
    draw_teachers,
    find_panel_folder,
    read_panel,
    read_panel_scores,
)
from doublebind.study.plan import Plan, hash_artefact_keys, list_artefacts
from doublebind.study.planner import Planner
from doublebind.study.protocol import freeze_protocol
from doublebind.study.replacement import ReplacementStudy, resolve_replacement
from doublebind.study.teachers import TeacherSource, list_reference_names

if TYPE_CHECKING:
    import pandas as pd

_ROLE_KEYS = {"suspect": "suspect", "reference": "references", "organism": "organisms"}
"""Role -> the study's key for it."""


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
        ConfigError: If the study names none, or names one model twice.
    """
    if not any((study.organisms, study.held_out, study.near_misses)):
        raise ConfigError(
            "`organisms`, `held_out` and `near_misses` are empty; calibrate needs one of them"
        )
    benign = {
        ref: resolved.planner.find_teacher(ref) for ref in (*study.held_out, *study.near_misses)
    }
    _check_weighed(study, resolved, benign)
    labelled: list[tuple[TeacherClass, Teacher]] = [
        ("organism", t) for t in resolved.teachers if t.label in study.organisms
    ]
    for ref, source in benign.items():
        kind: TeacherClass = "near_miss" if ref in study.near_misses else "benign"
        labelled.append((kind, source.to_teacher("organism")))
    sources = {source.label: source for source in (*resolved.teacher_sources, *benign.values())}
    return LabelledTeachers(labelled, benign, [sources[teacher.label] for _, teacher in labelled])


def _check_weighed(
    study: Study, resolved: ResolvedStudy, benign: Mapping[str, TeacherSource]
) -> None:
    """Check that no teacher that `calibrate` weighs is another's reference, or competes."""
    store = resolved.store
    panel = resolved.panel.panel.teachers if resolved.panel else ()
    roles = {t.label: _ROLE_KEYS[t.role] for t in resolved.teachers}
    known = [
        name_teacher("held_out" if ref in study.held_out else "near_misses", source, store)
        for ref, source in benign.items()
    ]
    own = [name_teacher(roles[s.label], s, store) for s in resolved.teacher_sources]
    check_distinct([*own, *known, *map(name_panel_teacher, panel)])
    if resolved.replacement is not None:
        weighed = [model for model in own if model.role == "organisms"]
        check_distinct([*resolved.replacement.name_teachers(store), *weighed, *known])


def assign_roles(spec: PanelSpec, pack: Pack) -> dict[str, Any]:
    """Return reference -> role, of every teacher that is to be built or opened, the suspect first.

    Raises:
        ConfigError: If one is named in two roles, say by its number in the bank and by its name.
    """
    suspects = [spec.suspect] if isinstance(spec, Study) else []
    named = {
        "suspect": suspects,
        "reference": list_reference_names(spec, pack),
        "organism": spec.organisms,
    }
    roles: dict[str, Any] = {}
    for role, names in named.items():
        for name in names:
            if name in roles:
                raise ConfigError(
                    f"`{_ROLE_KEYS[role]}`: {name} is the study's {roles[name]}, too; name another "
                    f"in place of one"
                )
            roles[name] = role
    return roles


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
    roles = assign_roles(study, planner.pack)
    sources = [planner.find_teacher(ref) for ref in roles]
    teachers = [source.to_teacher(roles[source.label]) for source in sources]
    panel = _read_panel_folder(study.references, folder)
    if panel and isinstance(study.references, BankReferences):
        teachers += draw_teachers(panel.panel, study.references, panel.folder)
    check_distinct(
        [
            *(name_teacher(_ROLE_KEYS[roles[s.label]], s, store) for s in sources),
            *_name_panel_teachers(panel, {t.label for t in teachers}),
        ]
    )
    replacement = resolve_replacement(study, planner)
    plan = planner.plan(sources)
    protocol = freeze_protocol(
        study,
        planner.pack,
        planner.audits,
        teachers,
        recipes=planner.identify_recipes(study.recipes),
        student=planner.student_base.sha256,
        revisions=REVISIONS,
        jobs=hash_artefact_keys(list_artefacts(plan)),
        panel=panel.panel.hash if panel else None,
        replacement=replacement.protocol if replacement else None,
    )
    if panel:
        check_panel(panel.panel, describe_conditions(planner), study.baselines, panel.folder)
    return ResolvedStudy(
        study=study,
        planner=planner,
        suspect=planner.find_teacher(study.suspect),
        teacher_sources=sources,
        teachers=teachers,
        plan=plan,
        protocol=protocol,
        panel=panel,
        replacement=replacement,
    )


def _read_panel_folder(references: object, folder: Path) -> PanelFolder | None:
    if not isinstance(references, BankReferences) or references.panel is None:
        return None
    panel_folder = find_panel_folder(references.panel, folder)
    return PanelFolder(panel_folder, read_panel(panel_folder))


def _name_panel_teachers(panel: PanelFolder | None, labels: Collection[str]) -> list[NamedModel]:
    """Return the teachers of a panel, if there is one, that are called `labels`."""
    teachers = panel.panel.teachers if panel else ()
    return [name_panel_teacher(teacher) for teacher in teachers if teacher.label in labels]
