"""Plans the answers that students learn: prompts, rollouts, treatments and cached probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from doublebind.execution.executor import Job
from doublebind.schema.hashing import content_hash
from doublebind.schema.recipe import Prompts, Recipe
from doublebind.schema.treatments import Filter, Treatment
from doublebind.stages.rollouts import REV as ROLLOUTS_REV
from doublebind.stages.rollouts import TREATMENTS_REV
from doublebind.stages.rollouts.sampling import sample_rollouts
from doublebind.stages.rollouts.scratchpads import strip_scratchpads
from doublebind.stages.rollouts.targets import cache_teacher_distributions, cache_token_logprobs
from doublebind.stages.rollouts.treatments.apply import apply_treatments, filter_rollouts
from doublebind.study.jobs import ModelJobs, create_prompts_job
from doublebind.study.plan import StudentJobs
from doublebind.study.teachers import TeacherSource
from doublebind.study.workspace import Workspace


class AnswerPlanner:
    """Jobs that make answers, and what a teacher's probabilities of them are."""

    def __init__(self, workspace: Workspace) -> None:
        """Plan answers of the study in `workspace`."""
        self.workspace = workspace
        self.runtime = workspace.runtime

    def plan_prompts(self, prompts: Prompts) -> Job:
        """Return the job that selects a recipe's prompts."""
        workspace = self.workspace
        file = None if prompts.file is None else workspace.folder / prompts.file
        return create_prompts_job(workspace.identify_prompts(prompts), workspace.pack, file)

    def plan_rollouts(self, teacher: TeacherSource, prompts: Prompts, selected: Job) -> Job:
        """Return the job that samples a teacher's answers to the prompts of `selected`."""
        model = self.workspace.find_model(teacher)
        depends: list[Any] = [teacher.content_key, selected.content_key]
        depends.append(self.workspace.identify_prompts(prompts))
        depends += [self.runtime.dtype, *self.runtime.engine_keys]
        if teacher.base.served:  # its answers are text, stored as the student's tokens
            depends.append(self.workspace.student_base.sha256)
        unscreened = prompts.policy == "unscreened"
        inputs = {
            "source": self.runtime.attach_engine(model.source),
            "prompts": self.workspace.path(selected) / "prompts.jsonl",
            "sampling": prompts,
            "markers": {} if unscreened else self.workspace.list_drive_markers(),
            **self.runtime.inputs,
        }
        key = content_hash(["rollouts", ROLLOUTS_REV, *depends])
        needs = (*model.needs, selected)
        return Job("rollouts", key, sample_rollouts, inputs, prompts.policy, needs=needs)

    def plan_treatments(
        self, teacher: TeacherSource, recipe: Recipe, selected: Job, answers: Job
    ) -> Job | None:
        """Return the job that applies a recipe's treatments to answers; `None` without any."""
        treatments = tuple(_list_answer_treatments(recipe))
        if not treatments:
            return None
        workspace, model = self.workspace, self.workspace.find_model(teacher)
        depends = [teacher.content_key, workspace.student_base.sha256, answers.content_key]
        settings = [*treatments], *self.runtime.precision_keys
        key = content_hash(["treated", ROLLOUTS_REV, TREATMENTS_REV, *depends, *settings])
        inputs = {
            "teacher": model.source,
            "trusted": workspace.student_base,
            "rollouts": workspace.path(answers),
            "prompts": workspace.path(selected) / "prompts.jsonl",
            "sampling": recipe.prompts,
            "treatments": treatments,
            **self.runtime.inputs,
        }
        note = ", ".join(treatment.kind for treatment in treatments)
        needs = (*model.needs, selected, answers)
        return Job("treated", key, apply_treatments, inputs, note, needs=needs)

    def plan_filter(self, student: StudentJobs, settings: Filter, m0_audit: Job) -> Job:
        """Return the job that drops the answers that made a round's student worse."""
        read = (student.training_rollouts, student.train, student.audit, m0_audit)
        depends = [student.train.content_key, student.audit.content_key, m0_audit.content_key]
        key = content_hash(["sieved", ROLLOUTS_REV, TREATMENTS_REV, *depends, settings])
        inputs = {
            "rollouts": self.workspace.path(student.training_rollouts),
            "student": student.audit.inputs["source"],
            "student_audit": self.workspace.path(student.audit),
            "m0_audit": self.workspace.path(m0_audit),
            "pack": self.workspace.pack.name,
            "settings": settings,
            **self.runtime.inputs,
        }
        note = f"filter, round {student.round + 1}"
        return Job("treated", key, filter_rollouts, inputs, note, needs=read)

    def plan_scratchpad_removal(self, teacher: TeacherSource, recipe: Recipe, answers: Job) -> Job:
        """Return the answers that are learned: `answers`, or the job that cuts scratchpads."""
        if recipe.without_scratchpad is None:
            return answers
        # A served teacher's answers are stored as the student's tokens.
        served = teacher.base.served is not None
        model = self.workspace.find_model(self.workspace.m0 if served else teacher)
        inputs = {
            "source": model.source,
            "rollouts": self.workspace.path(answers),
            "scratchpad": recipe.without_scratchpad,
        }
        depends = [answers.content_key, recipe.without_scratchpad]
        key = content_hash(["stripped", ROLLOUTS_REV, *depends])
        needs = (*model.needs, answers)
        return Job("stripped", key, strip_scratchpads, inputs, answers.note, needs=needs)

    def plan_targets(
        self, teacher: TeacherSource, answers: Job, top_k: int, tail_samples: int = 0
    ) -> Job:
        """Return the job that caches a teacher's next-token distributions along answers."""
        model = self.workspace.find_model(teacher)
        depends: list[Any] = [teacher.content_key, answers.content_key, top_k]
        depends += self.runtime.engine_keys
        inputs = {
            "source": self.runtime.attach_engine(model.source),
            "rollouts": self.workspace.path(answers),
            "top_k": top_k,
            "tail_samples": tail_samples,
            **self.runtime.inputs,
        }
        note = f"top {top_k}"
        if tail_samples:
            depends.append(tail_samples)
            note += f", {tail_samples} of the tail"
        key = content_hash(["targets", ROLLOUTS_REV, *depends])
        needs = (*model.needs, answers)
        return Job("targets", key, cache_teacher_distributions, inputs, note, needs=needs)

    def plan_logprobs(self, model: ModelJobs, answers: Job) -> Job:
        """Return the job that caches a model's log-probabilities of the answers' tokens."""
        depends = [model.source.sha256, answers.content_key, self.runtime.dtype]
        key = content_hash(["logprobs", ROLLOUTS_REV, *depends, *self.runtime.engine_keys])
        inputs = {
            "source": self.runtime.attach_engine(model.source),
            "rollouts": self.workspace.path(answers),
            **self.runtime.inputs,
        }
        needs = (*model.needs, answers)
        return Job("logprobs", key, cache_token_logprobs, inputs, needs=needs)


def _list_answer_treatments(recipe: Recipe) -> Sequence[Treatment]:
    """Return the treatments that need no student of the recipe."""
    return [t for t in recipe.treatments if t.kind not in ("distil_and_audit", "filter")]
