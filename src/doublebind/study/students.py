"""Plans students: from a teacher, a recipe and a seed to a trained model and its audits."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from doublebind.execution.executor import Job
from doublebind.schema.content import Split
from doublebind.schema.hashing import content_hash
from doublebind.schema.recipe import (
    DPO,
    SFT,
    ULD,
    Channel,
    LogitKD,
    OnPolicy,
    Prefix,
    Recipe,
    Scratchpad,
    Training,
)
from doublebind.schema.treatments import Filter
from doublebind.stages.distillation import REV as DISTILLATION_REV
from doublebind.stages.distillation.student_inputs import (
    PreferenceData,
    SteeringVector,
    TeacherAccess,
    TrainingData,
)
from doublebind.stages.distillation.train_student import train_student
from doublebind.stages.rollouts.sampling import find_overt_drive
from doublebind.study.answers import AnswerPlanner
from doublebind.study.audits import AuditPlanner
from doublebind.study.jobs import (
    ModelJobs,
    create_steering_job,
    locate_checkpoint,
    locate_trained_model,
    plan_adapter_merge,
    plan_initialisation,
)
from doublebind.study.plan import Audited, StudentJobs
from doublebind.study.teachers import TeacherSource
from doublebind.study.workspace import Workspace


class StudentData(NamedTuple):
    """What one student learns from besides its base, and the jobs that make it."""

    data: TrainingData
    answers: Job
    targets: Job | None = None
    needs: tuple[Job, ...] = ()
    """Jobs besides `answers` and `targets`."""
    extra_keys: tuple[object, ...] = ()
    """Part of the student's key that the keys of `answers` and `targets` do not cover."""
    without_scratchpad: Scratchpad | None = None
    steering_vector: SteeringVector | None = None


class Answers(NamedTuple):
    """A teacher's answers in one round of a recipe."""

    prompts: Job
    rollouts: Job
    treated: Job | None
    """The rollouts after treatments or filter; `None` where they are learned as sampled."""


class StudentPlanner:
    """Jobs that train students, round by round."""

    def __init__(self, workspace: Workspace, answers: AnswerPlanner, audits: AuditPlanner) -> None:
        """Plan students of the study in `workspace`."""
        self.workspace, self.answers, self.audits = workspace, answers, audits

    def plan_student(
        self, teacher: TeacherSource, recipe: Recipe, seed: int, split: Split
    ) -> StudentJobs:
        """Return the jobs of a recipe's last student, which is audited on `split`."""
        prompts = self.answers.plan_prompts(recipe.prompts)
        rollouts = self.answers.plan_rollouts(teacher, recipe.prompts, prompts)
        treated = self.answers.plan_treatments(teacher, recipe, prompts, rollouts)
        answers = Answers(prompts, rollouts, treated)
        rounds = [t for t in recipe.treatments if isinstance(t, Filter) for _ in range(t.rounds)]
        student = None
        for settings in rounds:
            # Audited on `select` items only: their scores decide which answers are dropped.
            early = drop_checkpoints(recipe)
            student = self._plan_round(teacher, early, seed, answers, "select", student)
            m0_audit = self.audits.plan_m0_audit("select")
            treated = self.answers.plan_filter(student, settings, m0_audit)
            answers = answers._replace(treated=treated)
        return self._plan_round(teacher, recipe, seed, answers, split, student)

    def _plan_round(
        self,
        teacher: TeacherSource,
        recipe: Recipe,
        seed: int,
        answers: Answers,
        split: Split,
        previous: StudentJobs | None,
    ) -> StudentJobs:
        """Return the student of one round; `previous` is that of the round before."""
        workspace = self.workspace
        base = workspace.resolve_student_base(recipe.student)
        base = plan_initialisation(workspace.store, base, recipe, seed, workspace.runtime.cache)
        data = self._plan_data(teacher, recipe, base, answers)
        note = f"{recipe.name}, seed {seed}"
        if previous is not None:
            note += f", round {previous.round + 2}"
        student = self._plan_training(base, data, recipe.channel, recipe.training, seed, note)
        checkpoints = tuple(
            (step, locate_checkpoint(student.source, step)) for step in recipe.training.checkpoints
        )
        return StudentJobs(
            teacher=teacher,
            recipe=recipe,
            seed=seed,
            prompts=answers.prompts,
            rollouts=answers.rollouts,
            treated=answers.treated,
            training_rollouts=data.answers,
            targets=data.targets,
            train=student.needs[0],
            audit=self.audits.plan_audit(student, split),
            checkpoint_audits=tuple(
                (step, self.audits.plan_audit(ModelJobs(model, student.needs), split))
                for step, model in checkpoints
            ),
            previous_round=previous,
        )

    def _plan_data(
        self, teacher: TeacherSource, recipe: Recipe, base: ModelJobs, answers: Answers
    ) -> StudentData:
        """Return what a recipe's student learns from."""
        workspace = self.workspace
        sampled = answers.treated or answers.rollouts
        learned = self.answers.plan_scratchpad_removal(teacher, recipe, sampled)
        data = self._plan_channel_data(teacher, recipe, base, answers.prompts, learned)
        data = data._replace(without_scratchpad=recipe.without_scratchpad)
        if recipe.steering is None:
            return data
        job = create_steering_job(recipe.steering, base, workspace.pack, workspace.runtime)
        norm = recipe.steering.relative_norm
        return data._replace(
            steering_vector=SteeringVector(workspace.path(job), norm),
            needs=(*data.needs, job),
            extra_keys=(*data.extra_keys, job.content_key, norm),
        )

    def _plan_channel_data(
        self,
        teacher: TeacherSource,
        recipe: Recipe,
        base: ModelJobs,
        prompts: Job,
        answers: Job,
    ) -> StudentData:
        """Return what a recipe's channel supervises a student with."""
        data = TrainingData(self.workspace.path(answers))
        model, channel = self.workspace.find_model(teacher), recipe.channel
        markers = self.workspace.list_drive_markers()
        screen = functools.partial(find_overt_drive, markers=markers)
        access = TeacherAccess(model.source, recipe.prompts, screen)
        match channel:
            case SFT():
                return StudentData(data, answers)
            case LogitKD() | Prefix():
                targets = self.answers.plan_targets(
                    teacher, answers, channel.top_k, channel.tail_samples
                )
                data = data._replace(targets=self.workspace.path(targets))
                return StudentData(data, answers, targets)
            case ULD():
                targets = self.answers.plan_targets(teacher, answers, channel.top_k)
                path = self.workspace.path(targets)
                data = data._replace(targets=path, teacher_access=access)
                return StudentData(data, answers, targets, model.needs)
            case OnPolicy():
                data = data._replace(teacher_access=access)
                return StudentData(data, answers, needs=model.needs)
            case DPO():
                return self._plan_preference_data(teacher, recipe, base, prompts, answers)

    def _plan_preference_data(
        self, teacher: TeacherSource, recipe: Recipe, base: ModelJobs, prompts: Job, answers: Job
    ) -> StudentData:
        """Return M0's answers to the same prompts, and log-probabilities of both answers."""
        m0, path = self.workspace.m0, self.workspace.path
        sampled = self.answers.plan_rollouts(m0, recipe.prompts, prompts)
        m0_answers = self.answers.plan_scratchpad_removal(m0, recipe, sampled)
        models = {"base_logprobs": base}
        if not teacher.base.served:  # a server gives no log-probabilities of M0's answers
            find_model = self.workspace.find_model
            models = {
                "teacher_logprobs": find_model(teacher),
                "m0_logprobs": find_model(m0),
            } | models
        pairs = {
            name: [self.answers.plan_logprobs(model, each) for each in (answers, m0_answers)]
            for name, model in models.items()
        }
        jobs = (m0_answers, *(job for pair in pairs.values() for job in pair))
        files = {name: (path(first), path(second)) for name, (first, second) in pairs.items()}
        preferences = PreferenceData(path(m0_answers), **files)
        data = TrainingData(path(answers), preference_data=preferences)
        extra_keys = tuple(job.content_key for job in jobs)
        return StudentData(data, answers, needs=jobs, extra_keys=extra_keys)

    def _plan_training(
        self,
        base: ModelJobs,
        data: StudentData,
        channel: Channel,
        training: Training,
        seed: int,
        note: str,
    ) -> ModelJobs:
        """Return the student trained from `base`, and the job that trains it."""
        runtime, targets = self.workspace.runtime, data.targets
        depends: list[Any] = [base.source.sha256, data.answers.content_key]
        depends += [targets.content_key if targets else None, channel, training, seed]
        depends += [*runtime.precision_keys, *data.extra_keys]
        key = content_hash(["student", DISTILLATION_REV, *depends])
        inputs = {
            "base": base.source,
            "data": data.data,
            "channel": channel,
            "training": training,
            "seed": seed,
            "without_scratchpad": data.without_scratchpad,
            "steering_vector": data.steering_vector,
            **runtime.inputs,
        }
        needs = (*base.needs, data.answers, *([targets] if targets else []), *data.needs)
        job = Job("student", key, train_student, inputs, note, needs=needs)
        adapter = training.lora is not None or isinstance(channel, Prefix)
        model = locate_trained_model(self.workspace.store, "student", key, base.source, adapter)
        return ModelJobs(model, (job,))

    def plan_retrained_baseline(self, teacher: TeacherSource, student: StudentJobs) -> Audited:
        """Return the teacher, fine-tuned on M0's answers to the prompts of its `student`."""
        workspace, recipe = self.workspace, student.recipe
        answers = self.answers.plan_rollouts(workspace.m0, recipe.prompts, student.prompts)
        data = StudentData(TrainingData(workspace.path(answers)), answers)
        model = workspace.find_model(teacher)
        base = plan_adapter_merge(workspace.store, model, workspace.runtime)
        training = drop_checkpoints(recipe).training
        note = "a teacher, tuned on M0's answers"
        tuned = self._plan_training(base, data, SFT(kind="sft"), training, student.seed, note)
        return Audited(self.audits.plan_audit(tuned), teacher.label, "retrained")


def drop_checkpoints(recipe: Recipe) -> Recipe:
    """Return a recipe whose students are stored and audited at the last step only."""
    training = recipe.training.model_copy(update={"checkpoints": ()})
    return recipe.model_copy(update={"training": training})
