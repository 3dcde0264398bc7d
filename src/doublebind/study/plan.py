"""Cells, and the order in which their jobs can run.

Knows jobs, and which others each needs. Does not know how a key is made or what a job does.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from doublebind.execution.executor import Job
from doublebind.execution.store import Store
from doublebind.schema.recipe import Recipe
from doublebind.schema.study import Baseline
from doublebind.study.teachers import TeacherSource


class StudentJobs(NamedTuple):
    """One cell: teacher x recipe x seed, with the jobs that make it."""

    teacher: TeacherSource
    recipe: Recipe
    seed: int
    prompts: Job
    rollouts: Job
    targets: Job | None
    train: Job
    audit: Job
    dependencies: tuple[Job, ...] = ()
    """What else its training needs."""
    training_rollouts: Job | None = None
    """What was learned from, where that is not `rollouts` as they were given."""
    previous_round: StudentJobs | None = None
    """The round before, whose student said what to leave out of this one."""
    checkpoint_audits: tuple[tuple[int, Job], ...] = ()
    """Steps on the way, with the audits of the student as it was then."""

    @property
    def round(self) -> int:
        """How many rounds came before."""
        return 0 if self.previous_round is None else self.previous_round.round + 1

    @property
    def audits(self) -> list[tuple[int, Job]]:
        """Return the step and the audit of every student kept, the finished one first."""
        return [(self.recipe.training.steps, self.audit), *self.checkpoint_audits]

    def list_rounds(self) -> list[StudentJobs]:
        """Return all rounds, the first one first."""
        return [*(self.previous_round.list_rounds() if self.previous_round else ()), self]


class FurtherTrainingJobs(NamedTuple):
    """A fresh student trained further, or M0 trained alike beside it, and its audit."""

    teacher: str
    """Label of the teacher to be replaced."""
    model_kind: str
    recipe: str
    seed: int
    dependencies: tuple[Job, ...]
    """What else its training needs."""
    train: Job
    audit: Job
    step: int


@dataclass(frozen=True)
class ChannelInputs:
    """What a channel needs beside the answers."""

    targets: Job | None = None
    dependencies: tuple[Job, ...] = ()
    inputs: dict[str, Any] = field(default_factory=dict[str, Any])
    extra_keys: tuple[object, ...] = ()
    """Of what the answers' and targets' keys do not cover."""


class BaselineJobs(NamedTuple):
    """One way to look at a teacher without a student: what has to be made, and the scores last."""

    teacher: str
    kind: Baseline
    dependencies: tuple[Job, ...]
    scores: Job


@dataclass(frozen=True)
class Plan:
    """Every job of a study, with its key, before any has run."""

    teacher_jobs: list[Job]
    students: list[StudentJobs]
    direct_audits: dict[str, Job]
    """Label (`M0` too) -> the audit of that model itself."""
    shape_jobs: dict[str, Job]
    baselines: list[BaselineJobs]
    further_training: list[FurtherTrainingJobs] = field(default_factory=list[FurtherTrainingJobs])
    base_key: str = ""
    """As its jobs': the student base and the precision."""

    def list_stages(self) -> list[list[Job]]:
        """Return the jobs in an order in which each stage's inputs exist, round after round."""
        found = [self.teacher_jobs]
        for number, cells in enumerate(self._group_by_round()):
            first = number == 0
            found += [
                _select_dependencies("base", [*cells, *(self.baselines if first else ())]),
                [*(cell.prompts for cell in cells), *_select_dependencies("direction", cells)],
                [
                    *(cell.rollouts for cell in cells),
                    *_select_dependencies("rollouts", [*cells, *(self.baselines if first else ())]),
                ],
                _select_dependencies("treated", cells),
                _select_dependencies("stripped", cells),
                _select_dependencies("logprobs", cells),
                [
                    *(cell.targets for cell in cells if cell.targets),
                    *(self.shape_jobs.values() if first else ()),
                ],
                [
                    *(cell.train for cell in cells),
                    *_select_dependencies("student", self.baselines if first else ()),
                ],
                [
                    *(self.direct_audits.values() if first else ()),
                    *_select_dependencies("audit", cells),
                    *(job for cell in cells for _, job in cell.audits),
                ],
            ]
        found.append([baseline.scores for baseline in self.baselines])
        if self.further_training:
            found += [
                _select_dependencies("base", self.further_training),
                [each.train for each in self.further_training],
                [each.audit for each in self.further_training],
            ]
        return [[dataclasses.replace(job, cost_base=self.base_key) for job in stage] for stage in found]

    def _group_by_round(self) -> list[list[StudentJobs]]:
        """Return the cells by round: all of them begin in the first, and each follows its last."""
        chains = [cell.list_rounds() for cell in self.students]
        longest = max((len(chain) for chain in chains), default=0)
        return [[c[number] for c in chains if number < len(c)] for number in range(longest)]

    def read_shapes(self, store: Store) -> dict[str, dict[str, float]]:
        """Return what was made of `shapes`: label -> feature -> number."""
        return {
            label: json.loads((store.path(job.kind, job.content_key) / "shape.json").read_text())[
                "shape"
            ]
            for label, job in self.shape_jobs.items()
        }

    def list_artefacts(self) -> dict[str, dict[str, str]]:
        """Return kind -> key -> what it is, for every artefact."""
        found: dict[str, dict[str, str]] = {}
        for stage in self.list_stages():
            for job in stage:
                found.setdefault(job.kind, {})[job.content_key] = job.note
        return found


def _select_dependencies(
    kind: str, made: Sequence[StudentJobs | BaselineJobs | FurtherTrainingJobs]
) -> list[Job]:
    return [job for each in made for job in each.dependencies if job.kind == kind]
