"""The plan of a study: its students and audited models, and their jobs in dependency order."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import NamedTuple

from doublebind.execution.executor import Job
from doublebind.execution.store import Store, read_absence
from doublebind.schema.hashing import content_hash
from doublebind.schema.read_file import read_text
from doublebind.schema.recipe import Recipe
from doublebind.schema.score_table import M0
from doublebind.schema.strict_json import parse_json
from doublebind.study.teachers import TeacherSource

Artefacts = dict[str, dict[str, str]]
"""Kind -> content key -> description."""


class Audited(NamedTuple):
    """An audited model: the job that scores it, and the labels of its rows (`SCORE_COLUMNS`)."""

    job: Job
    teacher: str
    model_kind: str
    recipe: str = ""
    seed: int = -1
    round: int = 0
    step: int = -1


class StudentJobs(NamedTuple):
    """One student, teacher x recipe x seed, with the jobs that make it."""

    teacher: TeacherSource
    recipe: Recipe
    seed: int
    prompts: Job
    rollouts: Job
    treated: Job | None
    """The answers after the recipe's treatments, or after the filter of this round."""
    training_rollouts: Job
    """The answers that are learned."""
    targets: Job | None
    train: Job
    audit: Job
    checkpoint_audits: tuple[tuple[int, Job], ...] = ()
    """Step and audit of each earlier checkpoint."""
    previous_round: StudentJobs | None = None
    """The round whose student decides which answers this one leaves out."""

    @property
    def round(self) -> int:
        """Number of earlier rounds."""
        return 0 if self.previous_round is None else self.previous_round.round + 1

    @property
    def audits(self) -> list[tuple[int, Job]]:
        """Step and audit of every checkpoint, the last one first."""
        return [(self.recipe.training.steps, self.audit), *self.checkpoint_audits]

    @property
    def audited(self) -> list[Audited]:
        """Every checkpoint with its labels, the last one first."""
        labels = (self.teacher.label, "student", self.recipe.name, self.seed, self.round)
        return [Audited(job, *labels, step) for step, job in self.audits]

    def find_checkpoint(self, step: int | None) -> Job:
        """Return the audit of the checkpoint at `step`, or of the last one."""
        return dict(self.audits)[step or self.recipe.training.steps]

    def list_rounds(self) -> list[StudentJobs]:
        """Return all rounds, the first one first."""
        return [*(self.previous_round.list_rounds() if self.previous_round else ()), self]


@dataclass(frozen=True)
class Plan:
    """Students and audited models of a study, with the keys of all jobs, before any has run."""

    students: list[StudentJobs]
    direct_audits: dict[str, Job]
    """Label of a teacher, or `M0` -> the audit of that model itself."""
    teacher_jobs: list[Job] = field(default_factory=list[Job])
    """Jobs that build teachers from their specs."""
    shape_jobs: dict[str, Job] = field(default_factory=dict[str, Job])
    """Label of a teacher -> the job that measures its match features."""
    baselines: list[Audited] = field(default_factory=list[Audited])
    further_training: list[Audited] = field(default_factory=list[Audited])
    """Fresh students trained further, and M0 trained alike beside each."""
    cost_base: str = ""
    """Student base and precision, as in `Job.cost_base`."""

    @property
    def audited(self) -> list[Audited]:
        """Every model that is audited, in the order of its score rows."""
        return [
            *(
                Audited(job, label, "m0" if label == M0 else "teacher")
                for label, job in self.direct_audits.items()
            ),
            *(audited for student in self.students for audited in student.audited),
            *self.baselines,
            *self.further_training,
        ]

    def list_batches(self) -> list[list[Job]]:
        """Return all jobs in batches, each of which needs only artefacts of earlier ones."""
        ends = [*self.teacher_jobs, *(each.job for each in self.audited), *self.shape_jobs.values()]
        return [
            [dataclasses.replace(job, cost_base=self.cost_base, needs=()) for job in batch]
            for batch in sort_jobs(ends)
        ]

    def list_jobs(self) -> list[Job]:
        """Return all jobs, each after those that it needs."""
        return [job for batch in self.list_batches() for job in batch]

    def read_shapes(self, store: Store) -> dict[str, dict[str, float]]:
        """Return the measured match features: label -> feature -> value."""
        shapes: dict[str, dict[str, float]] = {}
        for label, job in self.shape_jobs.items():
            folder = store.open_artefact(job.kind, job.content_key)
            absent = read_absence(folder) is not None  # no answers, nothing to measure
            shapes[label] = {} if absent else parse_json(read_text(folder / "shape.json"))["shape"]
        return shapes


def list_artefacts(*plans: Plan) -> Artefacts:
    """Return every artefact of the plans, with its description."""
    artefacts: Artefacts = {}
    for job in (job for plan in plans for job in plan.list_jobs()):
        artefacts.setdefault(job.kind, {})[job.content_key] = job.note
    return artefacts


def hash_artefact_keys(artefacts: Artefacts) -> str:
    """Return the hash of the keys of artefacts: kind -> sorted keys, descriptions left out."""
    return content_hash({kind: sorted(keys) for kind, keys in artefacts.items()})


def sort_jobs(jobs: Iterable[Job]) -> list[list[Job]]:
    """Return `jobs` and all that they need, each once, in batches in dependency order."""
    waiting, unique = deque(jobs), dict[tuple[str, str], Job]()
    sorter: TopologicalSorter[tuple[str, str]] = TopologicalSorter()
    while waiting:
        job = waiting.popleft()
        place = job.kind, job.content_key
        if place not in unique:
            unique[place] = job
            sorter.add(place, *((need.kind, need.content_key) for need in job.needs))
            waiting.extend(job.needs)
    sorter.prepare()
    batches: list[list[Job]] = []
    while sorter.is_active():
        ready = sorter.get_ready()
        batches.append([unique[place] for place in ready])
        sorter.done(*ready)
    return batches
