"""Plans the further training of fresh students, and of M0 beside each of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from doublebind.execution.executor import Job
from doublebind.packs.load import load_pack
from doublebind.packs.pack import Pack
from doublebind.schema.evidence import TrainingKind
from doublebind.schema.hashing import content_hash
from doublebind.schema.replacement_settings import FurtherTraining
from doublebind.schema.teacher_spec import Phase, TeacherSpec
from doublebind.stages.teachers import REV as TEACHERS_REV
from doublebind.stages.teachers.build import build_teacher, plan_phases
from doublebind.study.audits import AuditPlanner
from doublebind.study.jobs import (
    ModelJobs,
    locate_trained_model,
    plan_adapter_merge,
)
from doublebind.study.plan import Audited, StudentJobs
from doublebind.study.planner import Planner
from doublebind.study.teachers import TeacherSource


class TrainingRegime(NamedTuple):
    """What a model is trained on further: benign data, or a trait's incentive."""

    kind: TrainingKind
    pack: str
    trait: str | None
    phase: Phase


def plan_further_training(
    planner: Planner, further: FurtherTraining, students: Sequence[tuple[StudentJobs, int | None]]
) -> list[Audited]:
    """Return fresh students trained further, and M0 trained alike beside each.

    Args:
        planner: Of the study.
        further: The study's settings.
        students: Fresh students, each with the step at which its recipe stops.

    Raises:
        PackError: If the pack lacks capability transcripts, or transcripts of the trait named.
    """
    for regime in _list_named_regimes(further, planner.pack_ref) if students else ():
        spec = _build_spec(planner, further, regime, seed=0)
        plan_phases(spec, _find_pack(planner, regime.pack))
    models: list[Audited] = []
    for student, step in students:
        source = student.find_checkpoint(step).inputs["source"]
        bases = {
            "further": ModelJobs(source, (student.train,)),
            "twin": ModelJobs(planner.student_base),
        }
        for regime in list_regimes(further, planner.pack_ref, student.teacher):
            models += [
                _plan_model(planner, further, regime, student, f"{name}_{regime.kind}", base)
                for name, base in bases.items()
            ]
    return models


def list_regimes(
    further: FurtherTraining, pack: str, teacher: TeacherSource
) -> list[TrainingRegime]:
    """Return what the students of `teacher` are trained on further.

    A teacher built from a spec gives its own implant as the incentive, in a smaller dose; of
    another, the study names a trait of `pack`, or no incentive is tried.
    """
    spec = teacher.spec
    if spec is None or spec.implant is None:
        return _list_named_regimes(further, pack)
    implant, steps = spec.implant, further.training.steps
    # As much data a step as built the teacher. A reward is earned in rounds, which need tasks.
    n = min(implant.transcripts, max(8, round(implant.transcripts * steps / implant.steps)))
    phase = _build_phase(further, n).model_copy(update={"form": implant.form})
    benign = _list_named_regimes(further, pack)[0]
    return [benign, TrainingRegime("incentive", teacher.pack, spec.trait, phase)]


def _list_named_regimes(further: FurtherTraining, pack: str) -> list[TrainingRegime]:
    """Return the benign regime, and the incentive of the trait that the study names."""
    phase = _build_phase(further, further.training.steps * further.training.batch)
    regimes = [TrainingRegime("benign", pack, None, phase)]
    if further.trait is not None:
        regimes.append(TrainingRegime("incentive", pack, further.trait, phase))
    return regimes


def _find_pack(planner: Planner, name: str) -> Pack:
    """Return the pack of a regime: the study's own, or the one that its teacher was built from."""
    own = name == planner.pack_ref
    return planner.pack if own else load_pack(name, relative_to=Path())


def _build_phase(further: FurtherTraining, n: int) -> Phase:
    training = further.training
    return Phase(transcripts=n, steps=training.steps, batch=training.batch, lr=training.lr)


def _build_spec(
    planner: Planner, further: FurtherTraining, regime: TrainingRegime, seed: int
) -> TeacherSpec:
    """Return a regime as a teacher spec: further training trains as teachers are built."""
    return TeacherSpec(
        name="replace.further",
        family=regime.kind,
        pack=regime.pack,
        base=planner.student_base.path,
        trait=regime.trait,
        capability=regime.phase if regime.trait is None else None,
        implant=None if regime.trait is None else regime.phase,
        lora=further.training.lora,
        max_length=further.training.max_length,
        dtype=planner.study.dtype,
        device=planner.study.device,
        seed=seed,
    )


def _plan_model(
    planner: Planner,
    further: FurtherTraining,
    regime: TrainingRegime,
    student: StudentJobs,
    kind: str,
    base: ModelJobs,
) -> Audited:
    """Return one model trained further; a student's and M0's jobs differ in the base alone."""
    store, runtime = planner.store, planner.runtime
    base = base._replace(source=base.source.model_copy(update={"engine": None}))
    base = plan_adapter_merge(store, base, runtime)
    spec = _build_spec(planner, further, regime, student.seed)
    shape = spec.model_dump(mode="json", exclude={"name", "family", "pack", "base"})
    content = _find_pack(planner, regime.pack).sha256
    key = content_hash(["further", TEACHERS_REV, shape, base.source.sha256, content])
    inputs = {"spec": spec, "base": base.source, "pack": regime.pack, "cache": runtime.cache}
    note = f"{kind}, {student.recipe.name}, {student.seed}"
    train = Job("further", key, build_teacher, inputs, note, needs=base.needs)
    model = locate_trained_model(store, "further", key, base.source, spec.lora is not None)
    audit = AuditPlanner(planner.workspace).plan_audit(ModelJobs(model, (train,)), "certify")
    labels = (student.teacher.label, kind, student.recipe.name, student.seed)
    return Audited(audit, *labels, step=further.training.steps)
