"""Turns the teachers of a study into a plan; keys come from content, never from roles."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from doublebind.execution.store import Store
from doublebind.models.resolve import resolve_model
from doublebind.schema.content import Split
from doublebind.schema.errors import ConfigError
from doublebind.schema.hashing import content_hash
from doublebind.schema.model_source import ModelSource
from doublebind.schema.recipe import Recipe
from doublebind.schema.score_table import M0
from doublebind.schema.study import Baseline, MatchedReferences, PanelSpec, Study
from doublebind.stages.audits.builtin import resolve_audits
from doublebind.stages.audits.protocol import Audit
from doublebind.study.access import (
    attach_server_options,
    check_engine,
    check_served,
    find_server_options,
)
from doublebind.study.answers import AnswerPlanner
from doublebind.study.audits import AuditPlanner
from doublebind.study.jobs import REVISIONS, ModelJobs
from doublebind.study.plan import (
    Audited,
    Plan,
    StudentJobs,
    hash_artefact_keys,
    list_artefacts,
)
from doublebind.study.references import build_matched_reference
from doublebind.study.runtime import Runtime, open_pack
from doublebind.study.students import StudentPlanner, drop_checkpoints
from doublebind.study.teachers import TeacherSource, find_teacher, list_reference_names
from doublebind.study.workspace import Workspace


class Planner:
    """Finds the teachers of a study and plans their students and audits."""

    def __init__(
        self, study: PanelSpec, folder: Path, store: Store, audits: Sequence[Audit] = ()
    ) -> None:
        """Open the packs and find M0; paths in the study are relative to `folder`."""
        self.study, self.folder, self.store = study, folder, store
        self.pack_ref, self.pack = pack = open_pack(study.pack, folder)
        self.certify_pack = pack
        if isinstance(study, Study) and study.replace.certify is not None:
            self.certify_pack = open_pack(study.replace.certify, folder)
        base = resolve_model(study.student, relative_to=folder)
        self.student_base = base.with_device(study.device)
        self.audits = (*resolve_audits(study.audits, folder), *audits)
        cache = store.root / "converted"
        self.runtime = Runtime(study.dtype, cache, study.device, study.engine)
        workspace = Workspace(
            store, folder, self.runtime, pack, self.certify_pack, self.student_base, self.audits
        )
        self._plan_in(workspace)

    @classmethod
    def from_workspace(cls, study: PanelSpec, workspace: Workspace) -> Planner:
        """Return a planner of a study whose packs, audits and M0 are given: opens nothing."""
        planner = cls.__new__(cls)
        planner.study, planner.folder, planner.store = study, workspace.folder, workspace.store
        planner.pack_ref, planner.pack = workspace.pack
        planner.certify_pack = workspace.certify_pack
        planner.student_base, planner.audits = workspace.student_base, workspace.audits
        planner.runtime = workspace.runtime
        planner._plan_in(workspace)
        return planner

    def _plan_in(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._answers = AnswerPlanner(self.workspace)
        self._audits = AuditPlanner(self.workspace)
        self._students = StudentPlanner(self.workspace, self._answers, self._audits)
        self._teachers: dict[str, TeacherSource] = {}

    def find_teacher(self, ref: str) -> TeacherSource:
        """Return what a teacher's name means; each name is looked up once.

        Raises:
            ConfigError: If references are to match a suspect, and there is none; or if the teacher
                is called as the tables call M0.
        """
        if ref == M0:
            raise ConfigError(f"{M0}: the tables call the trusted model so; write ./{M0}")
        if ref not in self._teachers:
            self._teachers[ref] = self._look_up_teacher(ref)
        return self._teachers[ref]

    def _look_up_teacher(self, ref: str) -> TeacherSource:
        references, rev = self.study.references, REVISIONS["teachers"]
        settings = {"folder": self.folder, "rev": rev, "device": self.study.device}
        matched = isinstance(references, MatchedReferences)
        if matched and ref in list_reference_names(self.study, self.pack):
            if not isinstance(self.study, Study):
                raise ConfigError("`references.match`: a panel has no suspect; name references")
            suspect = self.find_teacher(self.study.suspect)
            return build_matched_reference(ref, references, suspect, pack=self.pack, **settings)
        settings["served"] = find_server_options(self.study)
        teacher = find_teacher(ref, pack=self.pack, student=self.study.student, **settings)
        return attach_server_options(teacher, self.study, self.student_base)

    def plan(self, teachers: Sequence[TeacherSource]) -> Plan:
        """Return all jobs for these teachers, interleaved by recipe and seed.

        Raises:
            ConfigError: If a server or an engine cannot give what the study asks of a model.
        """
        check_served(teachers, self.study)
        check_engine(teachers, self.study, self.student_base)
        return self._plan_all(teachers, self.study.recipes, self.study.baselines)

    def identify_recipes(self, recipes: Sequence[Recipe]) -> list[Recipe]:
        """Return recipes with content hashes in place of names."""
        return [self.workspace.identify_recipe(recipe) for recipe in recipes]

    def hash_shared_keys(self) -> str:
        """Return the hash of one teacher's job keys, the teacher left blank.

        It moves with whatever enters a key besides the teacher. Earlier checkpoints change no
        student that is weighed, and baselines are measured apart: all of them are in the hash.
        """
        blank = TeacherSource("", "", "", ModelSource(kind="folder", path="", sha256=""), None)
        recipes = [drop_checkpoints(recipe) for recipe in self.study.recipes]
        plan = self._plan_all([blank], recipes, get_args(Baseline))
        return hash_artefact_keys(list_artefacts(plan))

    def _plan_all(
        self,
        teachers: Sequence[TeacherSource],
        recipes: Sequence[Recipe],
        baselines: Sequence[Baseline],
    ) -> Plan:
        """Return all jobs for these teachers, unchecked."""
        plan = self.plan_students(
            [
                (teacher, recipe, seed)
                for recipe in recipes
                for seed in range(self.study.seeds)
                for teacher in teachers
            ],
            "audit",
        )
        first = {s.teacher.label: s for s in reversed(plan.students)}
        return dataclasses.replace(
            plan,
            shape_jobs={
                t.label: self._audits.plan_shape(t, first[t.label].rollouts) for t in teachers
            },
            baselines=[
                self._plan_baseline(kind, t, first[t.label]) for kind in baselines for t in teachers
            ],
        )

    def plan_students(
        self, students: Sequence[tuple[TeacherSource, Recipe, int]], split: Split
    ) -> Plan:
        """Return the jobs of students (teacher, recipe, seed), their teachers and M0.

        All are audited on the items of `split`.
        """
        teachers = list({teacher.label: teacher for teacher, _, _ in students}.values())
        models = {t.label: self.workspace.find_model(t) for t in teachers}
        models[M0] = ModelJobs(self.student_base)
        return Plan(
            students=[self._students.plan_student(*student, split) for student in students],
            direct_audits={
                label: self._audits.plan_audit(model, split) for label, model in models.items()
            },
            teacher_jobs=[job for model in models.values() for job in model.needs],
            cost_base=content_hash([self.student_base.sha256, *self.runtime.precision_keys]),
        )

    def _plan_baseline(
        self, kind: Baseline, teacher: TeacherSource, student: StudentJobs
    ) -> Audited:
        """Return one baseline, on what the teacher's first student learned from."""
        match kind:
            case "ngrams":
                return self._audits.plan_ngram_baseline(teacher, student.rollouts)
            case "in_context":
                return self._audits.plan_in_context_baseline(teacher, student.rollouts)
            case "retrained":
                return self._students.plan_retrained_baseline(teacher, student)
