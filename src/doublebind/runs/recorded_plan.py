"""Plans a recorded study again from its manifest, to recompute the key of every artefact.

Opens no model and no file that the manifest names: the content keys in the protocol stand for the
models. Only built-in packs and packs below a folder that the user names are read.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from doublebind.execution.store import Store
from doublebind.packs.load import BUILT_IN_PACKS, load_pack
from doublebind.packs.pack import Pack
from doublebind.runs.files import check_file
from doublebind.runs.records import FurtherTrainedModel
from doublebind.schema.content import Item, Prompt, Purpose, Split, Trait, Transcript
from doublebind.schema.errors import DoublebindError, PackError
from doublebind.schema.evidence import RecipeResult
from doublebind.schema.model_source import ModelSource, ServedModel, Teacher
from doublebind.schema.protocol import Manifest, Protocol
from doublebind.schema.study import BankReferences, Study
from doublebind.schema.teacher_spec import TeacherSpec
from doublebind.stages.audits.builtin import resolve_audits
from doublebind.stages.audits.protocol import Audit
from doublebind.study.access import attach_server_options
from doublebind.study.audits import AuditPlanner
from doublebind.study.jobs import REVISIONS, ModelJobs, plan_adapter_merge
from doublebind.study.plan import Audited, Plan
from doublebind.study.planner import Planner
from doublebind.study.protocol import list_audit_names
from doublebind.study.replacement import (
    ReplacementStudy,
    find_delivered_student,
    plan_certification,
    plan_competition,
)
from doublebind.study.runtime import PackRef, Runtime
from doublebind.study.teachers import TeacherSource, list_reference_names
from doublebind.study.workspace import Workspace

_BUILT_IN = re.compile(rf"({'|'.join(BUILT_IN_PACKS)})(/[A-Za-z0-9][A-Za-z0-9_-]*)?")


class CannotCheck(Exception):
    """Raised where a check cannot be made on this machine; says why."""


class NamedFolder(NamedTuple):
    """A folder that a user names, for names in a manifest: the run itself is no part of it."""

    path: Path
    run: Path
    """The run whose manifest gives the names; whoever made it filled it."""

    def holds(self, name: str) -> bool:
        """Return whether `name` stays below the folder, and outside the run."""
        parts = PurePosixPath(name).parts
        if not parts or name.startswith(("/", "~")) or ".." in parts or "\0" in name:
            return False
        try:
            place, run = (self.path / name).resolve(), self.run.resolve()
            inside = place.is_relative_to(self.path.resolve())
        except (OSError, ValueError, RuntimeError):  # too long, not encodable, links in a circle
            return False
        return inside and not place.is_relative_to(run) and not run.is_relative_to(place)


class RecordedPacks(NamedTuple):
    """The packs of a recorded study."""

    audit: PackRef
    certify: PackRef
    missing: str | None
    """Why their items are not known here; `None` where they are."""


class RecordedPlan(NamedTuple):
    """A recorded study, planned again."""

    study: Study
    planner: Planner
    plan: Plan
    own_teachers: list[Teacher]
    """Those that are no panel's, in the manifest's order."""
    replacement: ReplacementStudy | None


class RecordedReplacement(NamedTuple):
    """The plans of a recorded search for a replacement."""

    competition: Plan
    certification: Plan
    delivered: ModelSource


@dataclass(frozen=True)
class _PackOfHash:
    """A pack of which only name and hash are known: enough for most keys."""

    name: str
    sha256: str
    traits: tuple[Trait, ...] = ()
    score_endpoints: dict[str, tuple[str, ...]] = dataclasses.field(
        default_factory=dict[str, tuple[str, ...]]
    )

    def items(self, split: Split) -> tuple[Item, ...]:
        return ()

    def prompts(self) -> tuple[Prompt, ...]:
        return ()

    def transcripts(
        self, trait: str | None, purpose: Purpose, *, n: int, seed: int
    ) -> tuple[Transcript, ...]:
        return ()

    def spec(self, name: str) -> TeacherSpec:
        raise PackError(f"pack {self.name}: is not at hand")


def find_recorded_packs(study: Study, protocol: Protocol, folder: NamedFolder) -> RecordedPacks:
    """Return the packs of a recorded study: built-in ones, or folders below `folder`."""
    replacement = protocol.replacement
    wanted = [(study.pack, protocol.pack_hash)]
    if replacement is not None:
        wanted.append((study.replace.certify or study.pack, replacement.certify_hash))
    packs: list[PackRef] = []
    missing: str | None = None
    for name, sha256 in wanted:
        pack = _find_pack(name, folder)
        if not isinstance(pack, str) and pack.sha256 != sha256:
            pack = f"pack {name} here is another than the run's"
        if isinstance(pack, str):
            missing = missing or pack
            pack = _PackOfHash(protocol.pack, sha256)
        packs.append(PackRef(name, pack))
    return RecordedPacks(packs[0], packs[-1], missing)


def _find_pack(name: str, folder: NamedFolder) -> Pack | str:
    """Return a pack, or why it is not at hand."""
    whole, _, traits = name.rpartition(":")
    whole = whole or name
    try:
        if is_built_in(whole) and "/" not in traits.removeprefix(whole):
            return load_pack(name, relative_to=Path())
        if not folder.holds(whole) or not check_file(folder.path, f"{whole}/pack.yaml"):
            return f"pack {name} is not built in, and not in {folder.path}; name its parent folder"
        return load_pack(name, relative_to=folder.path)
    except (DoublebindError, OSError, ValueError) as error:
        return str(error).split("\n")[0]


def is_built_in(name: str) -> bool:
    """Return whether a name is that of a built-in pack, a part of one, or a model of its bank."""
    return _BUILT_IN.fullmatch(name) is not None


def plan_recorded_study(
    manifest: Manifest, study: Study, packs: RecordedPacks, store: Store, folder: NamedFolder
) -> RecordedPlan:
    """Return the plan of a recorded study; its keys are those that the run should have.

    Args:
        manifest: Of the run.
        study: As in the manifest.
        packs: Of the study.
        store: Where the artefacts of the plan would be; nothing is read.
        folder: Folder that prompt files of the study are relative to.

    Raises:
        CannotCheck: If the keys depend on what is not at hand: another revision of a stage, an
            audit or a student base that the protocol does not hold, a file of prompts.
    """
    protocol = manifest.protocol
    if protocol.revisions != REVISIONS:
        raise CannotCheck("keys of artefacts: made by other revisions of the stages")
    _check_inputs(study, folder)
    m0 = ModelSource(kind="folder", path="m0", sha256=protocol.student).with_device(study.device)
    runtime = Runtime(study.dtype, store.root / "converted", study.device, study.engine)
    audits = _resolve_recorded_audits(study, protocol)
    workspace = Workspace(store, folder.path, runtime, packs.audit, packs.certify, m0, audits)
    planner = Planner.from_workspace(study, workspace)
    own_teachers = list_own_teachers(manifest, study)
    try:
        sources = [_recall_teacher(t, manifest, study, planner) for t in own_teachers]
        plan = planner.plan(sources)
        return RecordedPlan(
            study, planner, plan, own_teachers, _recall_replacement(manifest, study, planner)
        )
    except DoublebindError as error:
        raise CannotCheck(f"keys of artefacts: {error.problems[0]}") from None


def list_own_teachers(manifest: Manifest, study: Study) -> list[Teacher]:
    """Return the teachers whose students were made for this study, not taken from a panel."""
    if manifest.protocol.panel is None:
        return list(manifest.teachers)
    named = {study.suspect, *study.organisms}
    return [teacher for teacher in manifest.teachers if teacher.label in named]


def list_teacher_names(study: Study, pack: Pack) -> list[str]:
    """Return the labels that a study gives to its own teachers: suspect, references, organisms."""
    return [study.suspect, *list_reference_names(study, pack), *study.organisms]


def _check_inputs(study: Study, folder: NamedFolder) -> None:
    """Raise `CannotCheck` where keys depend on content that is not at hand."""
    for recipe in (*study.recipes, *(study.replace.recipes or ())):
        if recipe.student is not None:
            raise CannotCheck(
                f"keys of artefacts: recipe {recipe.name} names another student base, "
                f"{recipe.student}"
            )
        file = recipe.prompts.file
        if file is not None and not (folder.holds(file) and _is_file(folder.path, file)):
            raise CannotCheck(
                f"keys of artefacts: the prompts {file} of recipe {recipe.name} are not in "
                f"{folder.path}"
            )


def _is_file(folder: Path, name: str) -> bool:
    try:
        return check_file(folder, name)
    except DoublebindError:
        return False


def _resolve_recorded_audits(study: Study, protocol: Protocol) -> tuple[Audit, ...]:
    """Return the audits of a recorded study; no task file of another harness is opened."""
    for name in study.audits:
        kind, is_task, _ = name.partition(":")
        if is_task and kind != "prompted":
            raise CannotCheck(f"keys of artefacts: the audit {name} is another harness's task")
    audits = resolve_audits(study.audits)
    if list_audit_names(audits) != protocol.audits:
        raise CannotCheck("keys of artefacts: the study has audits of its own")
    return audits


def _recall_teacher(
    teacher: Teacher, manifest: Manifest, study: Study, planner: Planner
) -> TeacherSource:
    """Return a teacher as a model of its content key, whether it was built or opened."""
    m0, key = planner.student_base, teacher.content_key
    base = ModelSource(kind="folder", path="teacher", sha256=key).with_device(study.device)
    facts = manifest.served.get(teacher.label)
    if facts is not None:
        try:
            served = ServedModel.model_validate(facts)
        except ValueError:
            raise CannotCheck("keys of artefacts: `served` in the manifest is damaged") from None
        base = base.model_copy(update={"kind": "served", "served": served})
    else:
        adapter = base.model_copy(update={"kind": "adapter", "path": m0.path, "adapter": "teacher"})
        # A teacher that is tuned is merged first if it is an adapter, which no label says.
        merged = plan_adapter_merge(planner.store, ModelJobs(adapter), planner.runtime)
        is_merged = merged.source.sha256 in manifest.artefacts.get("base", {})
        if is_merged or (study.engine is not None and key != m0.sha256):
            base = adapter
        elif key == m0.sha256:
            base = m0
    source = TeacherSource(teacher.label, teacher.family, key, base, None)
    return attach_server_options(source, study, m0)


def _recall_replacement(
    manifest: Manifest, study: Study, planner: Planner
) -> ReplacementStudy | None:
    protocol = manifest.protocol.replacement
    if protocol is None:
        return None
    recipes = {recipe.name: recipe for recipe in study.recipes}
    teachers = list(manifest.selection_teachers)
    return ReplacementStudy(
        recipes=study.competing_recipes,
        teachers=teachers,
        teacher_sources={t.label: _recall_teacher(t, manifest, study, planner) for t in teachers},
        protocol=protocol,
        control_recipe=recipes.get(str(study.replace.controls), study.recipes[0]),
        first_fresh_seed=max(study.replace.seeds, study.seeds),
        # Further training depends on how the suspect was made; its models are recorded.
        further_training=None,
    )


def plan_recorded_replacement(
    recorded: RecordedPlan,
    results: Sequence[RecipeResult],
    winner: str,
    further: Sequence[FurtherTrainedModel],
) -> RecordedReplacement:
    """Return the plans of a recorded search for a replacement, which the winner decides.

    Args:
        recorded: The study, which looks for a replacement.
        results: Of the recipes that compete.
        winner: The recipe of the fresh students.
        further: Students that were trained further, as recorded: their keys are taken over.

    Raises:
        CannotCheck: If a model cannot be planned.
    """
    planner, replacement = recorded.planner, recorded.replacement
    assert replacement is not None
    suspect = recorded.plan.students[0].teacher
    try:
        competition = plan_competition(replacement, planner, suspect)
        certification = plan_certification(replacement, planner, [suspect], [winner])
        won = next(result for result in results if result.recipe == winner)
        delivered = find_delivered_student(certification, suspect.label, won)
    except (DoublebindError, StopIteration, KeyError) as error:
        raise CannotCheck(f"keys of the replacement's artefacts ({error})") from None
    models = [_recall_further_trained(each, suspect.label, planner) for each in further]
    certification = dataclasses.replace(certification, further_training=models)
    return RecordedReplacement(competition, certification, delivered)


def _recall_further_trained(model: FurtherTrainedModel, suspect: str, planner: Planner) -> Audited:
    source = ModelSource(kind="folder", path="further", sha256=model.content_key)
    source = source.with_device(planner.study.device)
    audit = AuditPlanner(planner.workspace).plan_audit(ModelJobs(source), "certify")
    return Audited(audit, suspect, model.model_kind, model.recipe, model.seed, step=model.step)


def is_panel_study(study: Study) -> bool:
    """Return whether a study takes its references from a panel."""
    return isinstance(study.references, BankReferences) and study.references.panel is not None
