"""Turns teachers and a study into jobs with keys: what has to exist before a verdict.

Knows which artefact depends on which, and that every key comes from content. Does not know roles,
runs nothing, and imports only the stages' doors.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from doublebind.execution.executor import Job
from doublebind.execution.store import Store
from doublebind.models.resolve import resolve_model
from doublebind.packs.load import load_pack
from doublebind.packs.pack import Pack
from doublebind.schema.content import Split
from doublebind.schema.errors import ConfigError
from doublebind.schema.hashing import content_hash
from doublebind.schema.model_source import ModelSource
from doublebind.schema.recipe import (
    DPO,
    SFT,
    ULD,
    Channel,
    DistilAndAudit,
    Filter,
    LogitKD,
    OnPolicy,
    Prefix,
    Prompts,
    Recipe,
    Training,
    Treatment,
)
from doublebind.schema.score_table import M0
from doublebind.schema.study import Baseline, MatchedReferences, PanelSpec, Study
from doublebind.stages.audits import REV as AUDIT_REV
from doublebind.stages.audits.builtin import resolve_audits
from doublebind.stages.audits.in_context_baseline import score_in_context
from doublebind.stages.audits.protocol import Audit
from doublebind.stages.distillation import REV as DISTILLATION_REV
from doublebind.stages.distillation.student_inputs import (
    PreferenceData,
    SteeringVector,
    TeacherAccess,
)
from doublebind.stages.distillation.train_student import train_student
from doublebind.stages.prompts import REV as PROMPTS_REV
from doublebind.stages.rollouts import REV as ROLLOUTS_REV
from doublebind.stages.rollouts import TREATMENTS_REV
from doublebind.stages.rollouts.ngram_baseline import count_ngrams
from doublebind.stages.rollouts.sampling import find_overt_drive, sample_rollouts
from doublebind.stages.rollouts.scratchpads import strip_scratchpads
from doublebind.stages.rollouts.targets import cache_teacher_distributions, cache_token_logprobs
from doublebind.stages.rollouts.treatments.apply import apply_treatments, filter_rollouts
from doublebind.stages.teachers import REV as TEACHERS_REV
from doublebind.stages.teachers.shape import measure_teacher_shape
from doublebind.study.access import attach_server_options, check_engine, check_served
from doublebind.study.jobs import (
    create_audit_job,
    create_prompts_job,
    create_steering_job,
    create_teacher_job,
    list_device_keys,
    locate_checkpoint,
    locate_trained_model,
    plan_adapter_merge,
    plan_initialisation,
)
from doublebind.study.plan import BaselineJobs, ChannelInputs, Plan, StudentJobs
from doublebind.study.references import build_matched_reference
from doublebind.study.teachers import (
    TeacherSource,
    find_teacher,
    list_reference_names,
    resolve_pack_name,
)

REVISIONS = {
    "audit": AUDIT_REV,
    "distillation": DISTILLATION_REV,
    "prompts": PROMPTS_REV,
    "rollouts": ROLLOUTS_REV,
    "teachers": TEACHERS_REV,
}


def _drop_checkpoints(recipe: Recipe) -> Recipe:
    training = recipe.training.model_copy(update={"checkpoints": ()})
    return recipe.model_copy(update={"training": training})


class Planner:
    """Turns teachers and a study into jobs; all keys come from content, none from roles."""

    def __init__(
        self, study: PanelSpec, folder: Path, store: Store, audits: Sequence[Audit] = ()
    ) -> None:
        """Open the pack and find M0; `folder` is what the study's paths are relative to."""
        self.study, self.folder, self.store = study, folder, store
        self.pack_ref = resolve_pack_name(study.pack, folder)
        self.pack: Pack = load_pack(self.pack_ref, relative_to=folder)
        self.certify_pack = self.pack_ref, self.pack
        if isinstance(study, Study) and study.replace.certify is not None:
            ref = resolve_pack_name(study.replace.certify, folder)
            self.certify_pack = ref, load_pack(ref, relative_to=folder)
        self.student_base = resolve_model(study.student, relative_to=folder).with_device(
            study.device
        )
        self.audits = (*resolve_audits(study.audits, folder), *audits)
        self.cache = store.root / "converted"
        self.runtime_inputs = {"dtype": study.dtype, "cache": self.cache}
        self.precision_keys = [study.dtype, *list_device_keys(study.device)]
        self.engine_keys = [
            *([study.engine.kind] if study.engine else []),
            *list_device_keys(study.device),
        ]

    def find_teacher(self, ref: str) -> TeacherSource:
        """Return what a teacher's name means.

        Raises:
            ConfigError: If references are to match a suspect, and there is none.
        """
        wanted = self.study.references
        at = {"folder": self.folder, "rev": TEACHERS_REV, "device": self.study.device}
        if isinstance(wanted, MatchedReferences) and ref in list_reference_names(
            self.study, self.pack
        ):
            if not isinstance(self.study, Study):
                raise ConfigError("`references.match`: there is no suspect here; name references")
            return build_matched_reference(
                ref, wanted, self.find_teacher(self.study.suspect), pack=self.pack, **at
            )
        found = find_teacher(ref, pack=self.pack, student=self.study.student, **at)
        return attach_server_options(found, self.study, self.student_base)

    def plan(self, found: Sequence[TeacherSource]) -> Plan:
        """Return all jobs for these teachers, interleaved by recipe and seed."""
        check_served(found, self.study)
        check_engine(found, self.study, self.student_base)
        made = self.plan_students(
            [
                (teacher, recipe, seed)
                for recipe in self.study.recipes
                for seed in range(self.study.seeds)
                for teacher in found
            ],
            "audit",
        )
        first = {s.teacher.label: s for s in reversed(made.students)}
        shapes = {t.label: self._plan_shape(t, first[t.label].rollouts) for t in found}
        baselines = [
            self._plan_baseline(kind, t, first[t.label])
            for kind in self.study.baselines
            for t in found
        ]
        return dataclasses.replace(made, shape_jobs=shapes, baselines=baselines)

    def plan_students(
        self, wanted: Sequence[tuple[TeacherSource, Recipe, int]], split: Split
    ) -> Plan:
        """Return the jobs of students, their teachers and M0, all audited on `split`."""
        found = list({teacher.label: teacher for teacher, _, _ in wanted}.values())
        direct = {
            t.label: self._plan_audit(t.content_key, self._locate_teacher(t), split) for t in found
        }
        direct[M0] = self._plan_audit(self.student_base.sha256, self.student_base, split)
        return Plan(
            teacher_jobs=[create_teacher_job(t, self.cache) for t in found if t.spec],
            students=[self._plan_student(*cell, split) for cell in wanted],
            direct_audits=direct,
            shape_jobs={},
            baselines=[],
            base_key=content_hash([self.student_base.sha256, *self.precision_keys]),
        )

    def _plan_baseline(
        self, kind: Baseline, teacher: TeacherSource, cell: StudentJobs
    ) -> BaselineJobs:
        """Return the jobs of one baseline, on what the teacher's first student learned from."""
        if kind == "ngrams":
            job = Job(
                "ngrams",
                content_hash(["ngrams", ROLLOUTS_REV, cell.rollouts.content_key]),
                count_ngrams,
                {"rollouts": self._artefact_path(cell.rollouts)},
            )
            return BaselineJobs(teacher.label, kind, (), job)
        if kind == "in_context":
            depends = [
                self.student_base.sha256,
                cell.rollouts.content_key,
                self.pack.sha256,
                *self.precision_keys,
            ]
            inputs = {
                "source": self.student_base,
                "rollouts": self._artefact_path(cell.rollouts),
                "pack": self.pack_ref,
                "split": "audit",
                **self.runtime_inputs,
            }
            job = Job(
                "reading", content_hash(["reading", AUDIT_REV, *depends]), score_in_context, inputs
            )
            return BaselineJobs(teacher.label, kind, (), job)
        return self._plan_retrained_baseline(teacher, cell)

    def _plan_retrained_baseline(self, teacher: TeacherSource, cell: StudentJobs) -> BaselineJobs:
        """Return the jobs that tune the teacher on M0's answers to the same prompts."""
        answers = self._plan_rollouts(self._m0_source, cell.recipe.prompts, cell.prompts)
        sft, training = SFT(kind="sft"), _drop_checkpoints(cell.recipe).training
        note = "a teacher, tuned on M0's answers"
        merging, base = plan_adapter_merge(
            self.store, self._locate_teacher(teacher), **self.runtime_inputs
        )
        train, made = self._plan_training(base, answers, None, sft, training, cell.seed, note)
        audit = self._plan_audit(train.content_key, made)
        return BaselineJobs(teacher.label, "retrained", (*merging, answers, train), audit)

    @property
    def _m0_source(self) -> TeacherSource:
        return TeacherSource(M0, M0, self.student_base.sha256, self.student_base, None)

    def _list_drive_markers(self) -> dict[str, tuple[str, ...]]:
        return {t.name: t.markers for t in self.pack.traits if t.kind == "drive"}

    def _locate_teacher(self, teacher: TeacherSource) -> ModelSource:
        if teacher.spec is None:
            return teacher.base
        adapter = teacher.spec.lora is not None
        made = locate_trained_model(
            self.store, "teacher", teacher.content_key, teacher.base, adapter
        )
        return made.with_device(self.study.device)  # its spec may have built it elsewhere

    def _attach_engine(self, source: ModelSource) -> ModelSource:
        """Return the source, to be asked in the study's engine."""
        engine = None if source.served else self.study.engine
        return source.model_copy(update={"engine": engine}) if engine else source

    def _plan_student(
        self, teacher: TeacherSource, recipe: Recipe, seed: int, split: Split
    ) -> StudentJobs:
        """Return the cell, at the end of its rounds, its student audited on `split`."""
        chosen = create_prompts_job(recipe.prompts, self.pack, self.pack_ref, self.folder)
        answers = self._plan_rollouts(teacher, recipe.prompts, chosen)
        treatments = [t for t in recipe.treatments if not isinstance(t, (DistilAndAudit, Filter))]
        last = next((t for t in recipe.treatments if isinstance(t, Filter)), None)
        treated = self._plan_treatments(teacher, recipe, treatments, chosen, answers)
        given = (chosen, answers)
        if last is None:
            return self._plan_round(teacher, recipe, seed, given, treated, split)
        # Students of earlier rounds meet `select` items only: what they show chooses.
        passing = (teacher, _drop_checkpoints(recipe), seed, given)
        cell = self._plan_round(*passing, treated, "select")
        for _ in range(last.rounds - 1):
            cell = self._plan_round(*passing, self._plan_filter(cell, last), "select", cell)
        return self._plan_round(
            teacher, recipe, seed, given, self._plan_filter(cell, last), split, cell
        )

    def _plan_round(
        self,
        teacher: TeacherSource,
        recipe: Recipe,
        seed: int,
        given: tuple[Job, Job],
        treated: Job | None,
        split: Split,
        earlier: StudentJobs | None = None,
    ) -> StudentJobs:
        """Return one round of a cell."""
        chosen, answers = given
        base, before = self._plan_student_base(recipe, seed)
        before = (*before, *(() if treated is None else (treated,)))
        learned = self._plan_scratchpad_removal(teacher, recipe, treated or answers)
        taught = self._plan_channel_inputs(teacher, recipe, base, chosen, learned)
        if recipe.without_scratchpad:
            taught.inputs["without_scratchpad"] = recipe.without_scratchpad
            before = (*before, learned)
        if recipe.steering:
            asked = self.pack, self.pack_ref
            job = create_steering_job(recipe.steering, base, *asked, **self.runtime_inputs)
            before = (*before, job)
            taught.inputs["steering_vector"] = SteeringVector(
                self._artefact_path(job), recipe.steering.relative_norm
            )
            taught = dataclasses.replace(
                taught, extra_keys=(*taught.extra_keys, job.content_key, recipe.steering.relative_norm)
            )
        note = f"{recipe.name}, seed {seed}" + (f", round {earlier.round + 2}" if earlier else "")
        train, made = self._plan_training(
            base, learned, taught.targets, recipe.channel, recipe.training, seed, note, taught
        )
        before = (*before, *taught.dependencies)
        if split == "select":  # M0 stands beside it
            before = (*before, self._plan_audit(self.student_base.sha256, self.student_base, split))
        audit = self._plan_audit(train.content_key, made, split)
        jobs = (chosen, answers, taught.targets, train, audit, before)
        on_the_way = {step: locate_checkpoint(made, step) for step in recipe.training.checkpoints}
        marks = tuple(
            (step, self._plan_audit(m.sha256, m, split)) for step, m in on_the_way.items()
        )
        return StudentJobs(teacher, recipe, seed, *jobs, learned, earlier, marks)

    def _plan_treatments(
        self,
        teacher: TeacherSource,
        recipe: Recipe,
        treatments: Sequence[Treatment],
        chosen: Job,
        answers: Job,
    ) -> Job | None:
        """Return the job that puts the answers through the recipe's treatments."""
        if not treatments:
            return None
        depends = [
            teacher.content_key,
            self.student_base.sha256,
            answers.content_key,
            treatments,
            *self.precision_keys,
        ]
        inputs = {
            "teacher": self._locate_teacher(teacher),
            "trusted": self.student_base,
            "rollouts": self._artefact_path(answers),
            "prompts": self._artefact_path(chosen) / "prompts.jsonl",
            "sampling": recipe.prompts,
            "treatments": tuple(treatments),
            **self.runtime_inputs,
        }
        key = content_hash(["treated", ROLLOUTS_REV, TREATMENTS_REV, *depends])
        return Job("treated", key, apply_treatments, inputs, ", ".join(t.kind for t in treatments))

    def _plan_filter(self, cell: StudentJobs, settings: Filter) -> Job:
        """Return the job that drops what made a round's student worse."""
        assert cell.training_rollouts is not None
        m0 = self._plan_audit(self.student_base.sha256, self.student_base, "select")
        made_of = [cell.train.content_key, cell.audit.content_key, m0.content_key, settings]
        key = content_hash(["sieved", ROLLOUTS_REV, TREATMENTS_REV, *made_of])
        inputs = {
            "rollouts": self._artefact_path(cell.training_rollouts),
            "student": cell.audit.inputs["source"],
            "student_audit": self._artefact_path(cell.audit),
            "m0_audit": self._artefact_path(m0),
            "pack": self.pack_ref,
            "settings": settings,
            **self.runtime_inputs,
        }
        return Job("treated", key, filter_rollouts, inputs, f"filter, round {cell.round + 1}")

    def _plan_student_base(self, recipe: Recipe, seed: int) -> tuple[ModelSource, tuple[Job, ...]]:
        """Return what the student starts from, and the job that makes it, if one does."""
        base = (
            resolve_model(recipe.student, relative_to=self.folder)
            if recipe.student
            else self.student_base
        )
        base = base.with_device(self.study.device)
        return plan_initialisation(self.store, base, recipe, seed, self.cache)

    def _plan_scratchpad_removal(self, teacher: TeacherSource, recipe: Recipe, answers: Job) -> Job:
        """Return the answers that are learned: as given, or without their scratchpads."""
        if recipe.without_scratchpad is None:
            return answers
        marks = recipe.without_scratchpad
        # A served teacher's answers are kept as the student's tokens.
        source = self.student_base if teacher.base.served else self._locate_teacher(teacher)
        inputs = {"source": source, "rollouts": self._artefact_path(answers), "scratchpad": marks}
        key = content_hash(["stripped", ROLLOUTS_REV, answers.content_key, marks])
        return Job("stripped", key, strip_scratchpads, inputs, answers.note)

    def _plan_channel_inputs(
        self, teacher: TeacherSource, recipe: Recipe, base: ModelSource, chosen: Job, learned: Job
    ) -> ChannelInputs:
        """Return what the recipe's channel needs beside the answers."""
        screen = functools.partial(find_overt_drive, markers=self._list_drive_markers())
        live = TeacherAccess(self._locate_teacher(teacher), recipe.prompts, screen)
        match recipe.channel:
            case SFT():
                return ChannelInputs()
            case LogitKD() | Prefix():
                events = recipe.channel.top_k, recipe.channel.tail_samples
                return ChannelInputs(self._plan_targets(teacher, learned, *events))
            case ULD():
                targets = self._plan_targets(teacher, learned, recipe.channel.top_k)
                return ChannelInputs(targets, inputs={"live": live})
            case OnPolicy():
                return ChannelInputs(inputs={"live": live})
            case DPO():
                return self._plan_preference_data(teacher, recipe, base, chosen, learned)

    def _plan_preference_data(
        self, teacher: TeacherSource, recipe: Recipe, base: ModelSource, chosen: Job, learned: Job
    ) -> ChannelInputs:
        """Return M0's answers to the same prompts, and who finds which answers how likely."""
        said = self._plan_rollouts(self._m0_source, recipe.prompts, chosen)
        theirs = self._plan_scratchpad_removal(self._m0_source, recipe, said)
        models = {
            "teacher_logprobs": (teacher.content_key, self._locate_teacher(teacher)),
            "m0_logprobs": (self.student_base.sha256, self.student_base),
            "base_logprobs": (base.sha256, base),
        }
        if teacher.base.served:  # it does not say how likely it finds M0's answers
            models = {"base_logprobs": models["base_logprobs"]}
        scored = {
            who: (
                self._plan_logprobs(key, source, learned),
                self._plan_logprobs(key, source, theirs),
            )
            for who, (key, source) in models.items()
        }
        places = {
            who: (self._artefact_path(a), self._artefact_path(b)) for who, (a, b) in scored.items()
        }
        jobs = [said, theirs, *(job for pair in scored.values() for job in pair)]
        return ChannelInputs(
            dependencies=tuple(jobs),
            inputs={"contrast": PreferenceData(self._artefact_path(theirs), **places)},
            extra_keys=tuple(job.content_key for job in jobs[1:]),
        )

    def _plan_logprobs(self, key: str, source: ModelSource, answers: Job) -> Job:
        content = [
            "logprobs",
            ROLLOUTS_REV,
            key,
            answers.content_key,
            self.study.dtype,
            *self.engine_keys,
        ]
        inputs = {
            "source": self._attach_engine(source),
            "rollouts": self._artefact_path(answers),
            **self.runtime_inputs,
        }
        return Job("logprobs", content_hash(content), cache_token_logprobs, inputs)

    def _plan_training(
        self,
        base: ModelSource,
        answers: Job,
        targets: Job | None,
        channel: Channel,
        training: Training,
        seed: int,
        note: str,
        taught: ChannelInputs | None = None,
    ) -> tuple[Job, ModelSource]:
        """Return the job that trains `base` on `answers`, and what comes of it."""
        taught = taught or ChannelInputs()
        learned = [answers.content_key, targets.content_key if targets else None, channel, training]
        content = ["student", DISTILLATION_REV, base.sha256, *learned, seed, *self.precision_keys]
        key = content_hash([*content, *taught.extra_keys])
        inputs = {
            "base": base,
            "rollouts": self._artefact_path(answers),
            "targets": self._artefact_path(targets) if targets else None,
            "channel": channel,
            "training": training,
            "seed": seed,
            **self.runtime_inputs,
            **taught.inputs,
        }
        adapter = training.lora is not None or isinstance(channel, Prefix)
        made = locate_trained_model(self.store, "student", key, base, adapter)
        return Job("student", key, train_student, inputs, note), made

    def _plan_rollouts(self, teacher: TeacherSource, asked: Prompts, chosen: Job) -> Job:
        made_of = [
            teacher.content_key,
            chosen.content_key,
            asked,
            self.study.dtype,
            *self.engine_keys,
        ]
        if teacher.base.served:  # its answers are text, kept as the student's tokens
            made_of.append(self.student_base.sha256)
        key = content_hash(["rollouts", ROLLOUTS_REV, *made_of])
        inputs = {
            "source": self._attach_engine(self._locate_teacher(teacher)),
            "prompts": self._artefact_path(chosen) / "prompts.jsonl",
            "sampling": asked,
            "markers": {} if asked.policy == "unscreened" else self._list_drive_markers(),
            **self.runtime_inputs,
        }
        return Job("rollouts", key, sample_rollouts, inputs, asked.policy)

    def _plan_targets(
        self, teacher: TeacherSource, answers: Job, top_k: int, drawn: int = 0
    ) -> Job:
        content = [
            "targets",
            ROLLOUTS_REV,
            teacher.content_key,
            answers.content_key,
            top_k,
            *self.engine_keys,
        ]
        key = content_hash([*content, drawn] if drawn else content)
        source = self._attach_engine(self._locate_teacher(teacher))
        inputs = {
            "source": source,
            "rollouts": self._artefact_path(answers),
            "top_k": top_k,
            **self.runtime_inputs,
        }
        inputs |= {"tail_samples": drawn} if drawn else {}
        note = f"top {top_k}" + (f", {drawn} of the tail" if drawn else "")
        return Job("targets", key, cache_teacher_distributions, inputs, note)

    def _plan_audit(self, key: str, source: ModelSource, split: Split = "audit") -> Job:
        ref, pack = self.certify_pack if split == "certify" else (self.pack_ref, self.pack)
        return create_audit_job(
            key,
            self._attach_engine(source),
            self._attach_engine(self.student_base),
            split=split,
            pack_ref=ref,
            pack_hash=pack.sha256,
            audits=self.audits,
            dtype=self.study.dtype,
            cache=self.cache,
        )

    def _plan_shape(self, teacher: TeacherSource, answers: Job) -> Job:
        depends: list[Any] = [
            teacher.content_key,
            self.student_base.sha256,
            answers.content_key,
            *self.precision_keys,
        ]
        if teacher.base.served:
            depends.append(teacher.base.served.shape)
        inputs = {
            "source": self._locate_teacher(teacher),
            "baseline": self.student_base,
            "rollouts": self._artefact_path(answers),
            **self.runtime_inputs,
        }
        return Job(
            "shape", content_hash(["shape", TEACHERS_REV, *depends]), measure_teacher_shape, inputs
        )

    def _artefact_path(self, job: Job) -> Path:
        return self.store.path(job.kind, job.content_key)
