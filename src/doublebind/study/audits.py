"""Plans what is measured: audits of models, match features of teachers, and baselines."""

from __future__ import annotations

from typing import Any

from doublebind.execution.executor import Job
from doublebind.schema.content import Split
from doublebind.schema.hashing import content_hash
from doublebind.schema.model_source import ModelSource
from doublebind.schema.score_table import SERVED_FACTS
from doublebind.stages.audits import REV as AUDIT_REV
from doublebind.stages.audits.in_context_baseline import score_in_context
from doublebind.stages.rollouts import REV as ROLLOUTS_REV
from doublebind.stages.rollouts.ngram_baseline import count_ngrams
from doublebind.stages.teachers import REV as TEACHERS_REV
from doublebind.stages.teachers.shape import measure_teacher_shape
from doublebind.study.jobs import ModelJobs, create_audit_job
from doublebind.study.plan import Audited
from doublebind.study.teachers import TeacherSource
from doublebind.study.workspace import Workspace


class AuditPlanner:
    """Jobs that measure models, and the answers that students learn."""

    def __init__(self, workspace: Workspace) -> None:
        """Plan audits of the study in `workspace`."""
        self.workspace = workspace
        self.runtime = workspace.runtime

    def plan_audit(self, model: ModelJobs, split: Split = "audit") -> Job:
        """Return the job that audits a model on the items of `split`."""
        workspace, attach_engine = self.workspace, self.runtime.attach_engine
        return create_audit_job(
            model._replace(source=attach_engine(model.source)),
            attach_engine(workspace.student_base),
            workspace.certify_pack if split == "certify" else workspace.pack,
            workspace.audits,
            self.runtime,
            split,
        )

    def plan_m0_audit(self, split: Split) -> Job:
        """Return the job that audits M0 on the items of `split`."""
        return self.plan_audit(ModelJobs(self.workspace.student_base), split)

    def plan_shape(self, teacher: TeacherSource, rollouts: Job) -> Job:
        """Return the job that measures a teacher's match features."""
        workspace, model = self.workspace, self.workspace.find_model(teacher)
        depends: list[Any] = [teacher.content_key, workspace.student_base.sha256]
        depends += [rollouts.content_key, *self.runtime.precision_keys]
        if teacher.base.served:
            depends += [teacher.base.served.shape, *SERVED_FACTS]
        inputs = {
            "source": model.source,
            "baseline": workspace.student_base,
            "rollouts": workspace.path(rollouts),
            **self.runtime.inputs,
        }
        key = content_hash(["shape", TEACHERS_REV, *depends])
        needs = (*model.needs, rollouts)
        return Job("shape", key, measure_teacher_shape, inputs, needs=needs)

    def plan_ngram_baseline(self, teacher: TeacherSource, rollouts: Job) -> Audited:
        """Return the rates of words and bigrams in a teacher's answers."""
        key = content_hash(["ngrams", ROLLOUTS_REV, rollouts.content_key])
        inputs = {"rollouts": self.workspace.path(rollouts)}
        job = Job("ngrams", key, count_ngrams, inputs, needs=(rollouts,))
        return Audited(job, teacher.label, "ngrams")

    def plan_in_context_baseline(self, teacher: TeacherSource, rollouts: Job) -> Audited:
        """Return M0, audited after reading a teacher's answers."""
        workspace = self.workspace
        depends = [workspace.student_base.sha256, rollouts.content_key, workspace.pack.pack.sha256]
        key = content_hash(["reading", AUDIT_REV, *depends, *self.runtime.precision_keys])
        inputs = {
            "source": workspace.student_base,
            "rollouts": workspace.path(rollouts),
            "pack": workspace.pack.name,
            "split": "audit",
            **self.runtime.inputs,
        }
        job = Job("reading", key, score_in_context, inputs, needs=(rollouts,))
        return Audited(job, teacher.label, "in_context")


def find_audited_model(audit: Job) -> ModelSource:
    """Return the model that an audit scores."""
    return audit.inputs["source"]
