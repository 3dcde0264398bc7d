"""Turns fresh students into jobs that train them further, with M0 trained alike beside each.

Knows that both learn the same data in the same order. Does not know what is concluded from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from doublebind.cells import Planner
from doublebind.config import Further, Phase, TeacherSpec
from doublebind.executor import Job
from doublebind.grid import Continued, Student
from doublebind.jobs import audit_job, trained, whole
from doublebind.packs.load import load
from doublebind.records import ModelSource, Way, content_hash
from doublebind.teachers import REV as TEACHERS_REV
from doublebind.teachers import build
from doublebind.teachers.references import Found


class _Course(NamedTuple):
    """What is learned, but for who learns it and in which order."""

    way: Way
    pack: str
    trait: str | None
    phase: Phase


def continued(
    planner: Planner, further: Further, students: Sequence[tuple[Student, int | None]]
) -> list[Continued]:
    """Return the jobs of students trained further, and of their twins.

    Args:
        planner: Of the study.
        further: What the study asks for.
        students: Fresh ones, each with the step at which its recipe was stopped.

    Raises:
        PackError: If the pack has no capability transcripts, or none for the trait that is named.
    """
    asked = [_benign(planner, further), *_named(planner, further)]
    for course in asked if students else ():
        _refuse(_spec(planner, further, course, 0), course)
    found: list[Continued] = []
    for student, step in students:
        made = dict(student.audits)[step or student.recipe.training.steps].inputs["source"]
        for course in _courses(planner, further, student.teacher):
            for kind, base in (("further", made), ("twin", planner.student)):
                found.append(_one(planner, further, course, student, f"{kind}_{course.way}", base))
    return found


def _courses(planner: Planner, further: Further, teacher: Found) -> list[_Course]:
    """Return what the students of `teacher` are trained on further."""
    benign = _benign(planner, further)
    spec = teacher.spec
    if spec is None or spec.implant is None:
        return [benign, *_named(planner, further)]
    made, steps = spec.implant, further.training.steps
    # As much data a step as made the teacher: a small dose is fewer steps of the same. A reward is
    # earned in rounds, each of which needs tasks.
    n = min(made.transcripts, max(8, round(made.transcripts * steps / made.steps)))
    phase = _phase(further, n).model_copy(update={"form": made.form})
    return [benign, _Course("incentive", teacher.pack, spec.trait, phase)]


def _benign(planner: Planner, further: Further) -> _Course:
    n = further.training.steps * further.training.batch
    return _Course("benign", planner.pack_ref, None, _phase(further, n))


def _named(planner: Planner, further: Further) -> list[_Course]:
    """Return the incentive that the study names for suspects of unknown making."""
    if further.trait is None:
        return []
    n = further.training.steps * further.training.batch
    return [_Course("incentive", planner.pack_ref, further.trait, _phase(further, n))]


def _phase(further: Further, n: int) -> Phase:
    how = further.training
    return Phase(transcripts=n, steps=how.steps, batch=how.batch, lr=how.lr)


def _spec(planner: Planner, further: Further, course: _Course, seed: int) -> TeacherSpec:
    """Return what is learned as a spec: further training is what teachers are made by."""
    return TeacherSpec(
        name="replace.further",
        family=course.way,
        pack=course.pack,
        base=planner.student.path,
        trait=course.trait,
        capability=course.phase if course.trait is None else None,
        implant=None if course.trait is None else course.phase,
        lora=further.training.lora,
        max_length=further.training.max_length,
        dtype=planner.study.dtype,
        device=planner.study.device,
        seed=seed,
    )


def _refuse(spec: TeacherSpec, course: _Course) -> None:
    from doublebind.teachers.organisms import plan

    plan(spec, load(course.pack, relative_to=Path()))


def _one(
    planner: Planner,
    further: Further,
    course: _Course,
    student: Student,
    kind: str,
    base: ModelSource,
) -> Continued:
    """Return the jobs of one model; its twin's differ in the base alone."""
    base = base.model_copy(update={"engine": None})
    merging, base = whole(planner.store, base, **planner.heavy)
    spec = _spec(planner, further, course, student.seed)
    shape = spec.model_dump(mode="json", exclude={"name", "family", "pack", "base"})
    content = load(course.pack, relative_to=Path()).sha256
    key = content_hash(["further", TEACHERS_REV, shape, base.sha256, content])
    inputs = {"spec": spec, "base": base, "pack": course.pack, "cache": planner.cache}
    train = Job("further", key, build, inputs, f"{kind}, {student.recipe.name}, {student.seed}")
    made = trained(planner.store, "further", key, base, adapter=spec.lora is not None)
    ref, pack = planner.certify
    engine = {"engine": planner.study.engine}
    audit = audit_job(
        key,
        made.model_copy(update=engine),
        planner.student.model_copy(update=engine),
        split="certify",
        pack_ref=ref,
        pack_hash=pack.sha256,
        audits=planner.audits,
        dtype=planner.study.dtype,
        cache=planner.cache,
    )
    of = (student.teacher.label, kind, student.recipe.name, student.seed)
    return Continued(*of, merging, train, audit, further.training.steps)
