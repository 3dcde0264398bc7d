"""The second horn's plans: what is made so that recipes can compete and one can be bounded.

Knows which cells the two phases need. Runs nothing and decides nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from doublebind.execution.executor import Job
from doublebind.execution.store import weights_sha256
from doublebind.packs.load import load_pack
from doublebind.schema.errors import ConfigError
from doublebind.schema.evidence import RecipeResult, TrainingKind
from doublebind.schema.hashing import content_hash
from doublebind.schema.model_source import ModelSource, Teacher
from doublebind.schema.protocol import (
    Protocol,
    ReplacementProtocol,
    find_control_recipe,
    select_organisms,
)
from doublebind.schema.recipe import Recipe
from doublebind.schema.study import FurtherTraining, Study
from doublebind.schema.teacher_spec import Phase, TeacherSpec
from doublebind.stages.teachers import REV as TEACHERS_REV
from doublebind.stages.teachers.build import build_teacher
from doublebind.study.access import check_served
from doublebind.study.jobs import create_audit_job, locate_trained_model, plan_adapter_merge
from doublebind.study.plan import FurtherTrainingJobs, Plan, StudentJobs
from doublebind.study.planner import Planner
from doublebind.study.protocol import select_auditable_endpoints
from doublebind.study.teachers import TeacherSource


class ReplacementStudy(NamedTuple):
    """The second horn of a study, made concrete."""

    recipes: tuple[Recipe, ...]
    teachers: list[Teacher]
    """On whose students recipes compete; none where the suspect's do."""
    teacher_sources: dict[str, TeacherSource]
    """Label -> model or spec."""

    def check_disjoint_from(self, weighed: Sequence[Sequence[str]]) -> None:
        """Refuse to calibrate where recipes would be chosen by those they are tried on.

        Raises:
            ConfigError: If nobody competes, or somebody who is weighed does.
        """
        if not self.teacher_sources:
            raise ConfigError(
                "`replace.organisms` is empty; calibrate needs teachers on whose students recipes "
                "compete, beside those it weighs"
            )
        twice = next(
            (name for names in weighed for name in names if name in self.teacher_sources), None
        )
        if twice is not None:
            raise ConfigError(f"`replace`: {twice} is weighed, too; name another to compete on")


def resolve_replacement(study: Study, planner: Planner) -> ReplacementStudy | None:
    """Return who competes, or `None` where a study has one horn.

    Raises:
        ConfigError: If a recipe asks of a served teacher what it cannot give, or the recipe of the
            positive controls is not the study's.
    """
    if "replace" not in study.horns:
        return None
    names = [recipe.name for recipe in study.recipes]
    if study.replace.controls not in (None, *names):
        raise ConfigError(
            f"`replace.controls`: {study.replace.controls} is none of the study's `recipes`; "
            f"choose {', '.join(names)}"
        )
    asked = study.model_copy(update={"recipes": study.competing_recipes})
    check_served([planner.find_teacher(study.suspect)], asked)
    roles: dict[str, Any] = dict.fromkeys(study.replace.organisms, "organism")
    roles |= dict.fromkeys(study.replace.references, "reference")
    found = {ref: planner.find_teacher(ref) for ref in roles}
    teachers = [t.to_teacher(roles[ref]) for ref, t in found.items()]
    return ReplacementStudy(study.competing_recipes, teachers, found)


def freeze_replacement(
    study: Study, contest: ReplacementStudy, planner: Planner
) -> ReplacementProtocol:
    """Return the second horn's part of the protocol.

    Raises:
        PackError: If a score endpoint has no item to choose by, or none to certify with.
    """
    assert study.policy.margin is not None
    endpoints = study.policy.endpoints or planner.pack.score_endpoints
    certify = planner.certify_pack[1]
    select_auditable_endpoints(planner.pack, endpoints, planner.audits, "select")
    select_auditable_endpoints(certify, endpoints, planner.audits, "certify")
    keys = {
        role: tuple(t.content_key for t in contest.teachers if t.role == role)
        for role in ("organism", "reference")
    }
    return ReplacementProtocol(
        margin=study.policy.margin,
        recipes=tuple(recipe.model_dump(mode="json") for recipe in contest.recipes),
        organisms=keys["organism"],
        references=keys["reference"],
        seeds=study.replace.seeds,
        fresh_seeds=study.replace.fresh_seeds,
        certify_hash=certify.sha256,
        controls=study.replace.controls,
        further_training=study.replace.further_training.model_dump(mode="json")
        if study.replace.further_training
        else None,
    )


def plan_competition(
    contest: ReplacementStudy, planner: Planner, suspect: TeacherSource, protocol: Protocol
) -> Plan:
    """Return the students that compete, audited on `select` items."""
    second = protocol.replacement
    assert second is not None
    cells = [
        (teacher, recipe, seed)
        for recipe in contest.recipes
        for seed in range(second.seeds)
        for teacher in (list(contest.teacher_sources.values()) or [suspect])
    ]
    return planner.plan_students(cells, "select")


def plan_certification(
    contest: ReplacementStudy,
    planner: Planner,
    suspects: Sequence[TeacherSource],
    names: Sequence[str],
    protocol: Protocol,
    steps: Mapping[str, int | None] = MappingProxyType({}),
) -> Plan:
    """Return new students of `suspects` by the recipes `names`, and the positive controls.

    Audited on `certify` items. Seeds are those after all that were audited before, so that no
    student that was chosen by is bounded. `steps` says where recipes were stopped; the first
    students are then trained further from there, where the study asks for it.
    """
    second = protocol.replacement
    assert second is not None
    first = max(second.seeds, protocol.seeds)
    cells = [
        (suspect, recipe, first + i)
        for recipe in contest.recipes
        if recipe.name in names
        for i in range(second.fresh_seeds)
        for suspect in suspects
    ]
    control = next(r for r in planner.study.recipes if r.name == find_control_recipe(protocol))
    n = len(cells)
    cells += [
        (contest.teacher_sources[t.label], control, 0) for t in select_organisms(contest.teachers)
    ]
    plan = planner.plan_students(cells, "certify")
    study = planner.study
    if not isinstance(study, Study) or study.replace.further_training is None:
        return plan
    tried = [
        (student, steps.get(student.recipe.name))
        for student in plan.students[:n]
        if student.seed < first + study.replace.further_training.students
    ]
    return dataclasses.replace(
        plan, further_training=plan_further_training(planner, study.replace.further_training, tried)
    )


def find_delivered_student(plan: Plan, suspect: str, competitor: RecipeResult) -> ModelSource:
    """Return the student that is handed over: the first fresh one, where its recipe stops it."""
    cell = next(
        cell
        for cell in plan.students
        if (cell.teacher.label, cell.recipe.name) == (suspect, competitor.recipe)
    )
    audits = dict(cell.audits)
    made: ModelSource = audits[competitor.step or cell.recipe.training.steps].inputs["source"]
    return made


def hash_weights(made: ModelSource) -> str:
    """Return the hash of a student's weights (hex)."""
    return weights_sha256(Path(made.adapter or made.path))


def merge_artefacts(plans: Sequence[Plan]) -> dict[str, dict[str, str]]:
    """Return kind -> key -> what it is, for every artefact of several plans."""
    found: dict[str, dict[str, str]] = {}
    for plan in plans:
        for kind, keys in plan.list_artefacts().items():
            found.setdefault(kind, {}).update(keys)
    return found


class _TrainingRegime(NamedTuple):
    """What is learned, but for who learns it and in which order."""

    kind: TrainingKind
    pack: str
    trait: str | None
    phase: Phase


def plan_further_training(
    planner: Planner, further: FurtherTraining, students: Sequence[tuple[StudentJobs, int | None]]
) -> list[FurtherTrainingJobs]:
    """Return the jobs of students trained further, and of their twins.

    Args:
        planner: Of the study.
        further: What the study asks for.
        students: Fresh ones, each with the step at which its recipe was stopped.

    Raises:
        PackError: If the pack has no capability transcripts, or none for the trait that is named.
    """
    asked = [_build_benign_regime(planner, further), *_list_named_incentives(planner, further)]
    for course in asked if students else ():
        _check_regime(_build_spec(planner, further, course, 0), course)
    found: list[FurtherTrainingJobs] = []
    for student, step in students:
        made = dict(student.audits)[step or student.recipe.training.steps].inputs["source"]
        for course in _list_regimes(planner, further, student.teacher):
            for kind, base in (("further", made), ("twin", planner.student_base)):
                found.append(
                    _plan_one_model(
                        planner, further, course, student, f"{kind}_{course.kind}", base
                    )
                )
    return found


def _list_regimes(
    planner: Planner, further: FurtherTraining, teacher: TeacherSource
) -> list[_TrainingRegime]:
    """Return what the students of `teacher` are trained on further."""
    benign = _build_benign_regime(planner, further)
    spec = teacher.spec
    if spec is None or spec.implant is None:
        return [benign, *_list_named_incentives(planner, further)]
    made, steps = spec.implant, further.training.steps
    # As much data a step as made the teacher: a small dose is fewer steps of the same. A reward is
    # earned in rounds, each of which needs tasks.
    n = min(made.transcripts, max(8, round(made.transcripts * steps / made.steps)))
    phase = _build_phase(further, n).model_copy(update={"form": made.form})
    return [benign, _TrainingRegime("incentive", teacher.pack, spec.trait, phase)]


def _build_benign_regime(planner: Planner, further: FurtherTraining) -> _TrainingRegime:
    n = further.training.steps * further.training.batch
    return _TrainingRegime("benign", planner.pack_ref, None, _build_phase(further, n))


def _list_named_incentives(planner: Planner, further: FurtherTraining) -> list[_TrainingRegime]:
    """Return the incentive that the study names for suspects of unknown making."""
    if further.trait is None:
        return []
    n = further.training.steps * further.training.batch
    return [_TrainingRegime("incentive", planner.pack_ref, further.trait, _build_phase(further, n))]


def _build_phase(further: FurtherTraining, n: int) -> Phase:
    how = further.training
    return Phase(transcripts=n, steps=how.steps, batch=how.batch, lr=how.lr)


def _build_spec(
    planner: Planner, further: FurtherTraining, course: _TrainingRegime, seed: int
) -> TeacherSpec:
    """Return what is learned as a spec: further training is what teachers are made by."""
    return TeacherSpec(
        name="replace.further",
        family=course.kind,
        pack=course.pack,
        base=planner.student_base.path,
        trait=course.trait,
        capability=course.phase if course.trait is None else None,
        implant=None if course.trait is None else course.phase,
        lora=further.training.lora,
        max_length=further.training.max_length,
        dtype=planner.study.dtype,
        device=planner.study.device,
        seed=seed,
    )


def _check_regime(spec: TeacherSpec, course: _TrainingRegime) -> None:
    from doublebind.stages.teachers.build import plan_phases

    plan_phases(spec, load_pack(course.pack, relative_to=Path()))


def _plan_one_model(
    planner: Planner,
    further: FurtherTraining,
    course: _TrainingRegime,
    student: StudentJobs,
    kind: str,
    base: ModelSource,
) -> FurtherTrainingJobs:
    """Return the jobs of one model; its twin's differ in the base alone."""
    base = base.model_copy(update={"engine": None})
    merging, base = plan_adapter_merge(planner.store, base, **planner.runtime_inputs)
    spec = _build_spec(planner, further, course, student.seed)
    shape = spec.model_dump(mode="json", exclude={"name", "family", "pack", "base"})
    content = load_pack(course.pack, relative_to=Path()).sha256
    key = content_hash(["further", TEACHERS_REV, shape, base.sha256, content])
    inputs = {"spec": spec, "base": base, "pack": course.pack, "cache": planner.cache}
    train = Job(
        "further", key, build_teacher, inputs, f"{kind}, {student.recipe.name}, {student.seed}"
    )
    made = locate_trained_model(planner.store, "further", key, base, adapter=spec.lora is not None)
    ref, pack = planner.certify_pack
    engine = {"engine": planner.study.engine}
    audit = create_audit_job(
        key,
        made.model_copy(update=engine),
        planner.student_base.model_copy(update=engine),
        split="certify",
        pack_ref=ref,
        pack_hash=pack.sha256,
        audits=planner.audits,
        dtype=planner.study.dtype,
        cache=planner.cache,
    )
    of = (student.teacher.label, kind, student.recipe.name, student.seed)
    return FurtherTrainingJobs(*of, merging, train, audit, further.training.steps)
