"""Functions that the scripts of several studies share: measure, probe, round and print.

A script is run by its path, from any folder. It therefore adds the repository's root to `sys.path`
before it imports this module.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from doublebind.execution.executor import Executor, Job, make_artefact
from doublebind.execution.ledger import Ledger
from doublebind.execution.store import Store
from doublebind.pipeline.measure import measure
from doublebind.schema.model_source import ModelSource
from doublebind.schema.study import Policy, Study, load_study
from doublebind.schema.teacher_spec import TeacherSpec
from doublebind.stages.evidence import conformal
from doublebind.stages.evidence.intervals import mean_interval, summarise_endpoints
from doublebind.stages.evidence.replacement import bound_replacement
from doublebind.stages.evidence.score import teacher_scores
from doublebind.study.plan import Plan
from doublebind.study.planner import Planner
from doublebind.study.teachers import TeacherSource

if TYPE_CHECKING:
    from doublebind.packs.outback.probes import Probe

Row = Mapping[str, Any]
"""A JSON object."""


def read_arguments(description: str | None) -> tuple[Study, Path, Store]:
    """Read `STUDY.yaml [--store STORE]` from the command line.

    Returns:
        The study, the folder that its paths are relative to, and the store.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path)
    parser.add_argument("--store", default=None)
    arguments = parser.parse_args()
    return load_study(arguments.study), arguments.study.parent, Store(arguments.store)


def measure_plan(plan: Plan, planner: Planner) -> pd.DataFrame:
    """Execute a plan without a run folder and return its score rows, labelled.

    Results stay in the planner's store, so that a second call resumes.
    """
    return measure(plan, Executor(planner.store, Ledger(None), planner.study.executor))


class AuditedModel(NamedTuple):
    """A model, and the means of its audit."""

    source: ModelSource
    rows: dict[str, dict[str, Any]]
    """Endpoint -> `value` in [0, 1], 95% `interval` over items, and `n` items."""

    @property
    def means(self) -> dict[str, float]:
        """Endpoint -> mean, in [0, 1]."""
        return {name: row["value"] for name, row in self.rows.items()}


def execute_audit(job: Job, planner: Planner) -> AuditedModel:
    """Return the model that an audit asks, with the audit's means."""
    scores = pd.read_parquet(make_artefact(planner.store, job) / "scores.parquet")
    return AuditedModel(
        job.inputs["source"], {row["name"]: row for row in summarise_endpoints(scores)}
    )


def audit_teacher(teacher: TeacherSource | None, planner: Planner) -> AuditedModel:
    """Return a teacher (M0 for None), built if it was not, with the means of its audit."""
    cells = [(teacher, planner.study.recipes[0], 0)] if teacher else []
    plan = planner.plan_students(cells, "audit")
    for job in plan.teacher_jobs:
        make_artefact(planner.store, job)
    return execute_audit(plan.direct_audits[teacher.label if teacher else "M0"], planner)


def spec_of(teacher: TeacherSource) -> TeacherSpec:
    """Return the spec of a teacher; a `ValueError` where it is a finished model."""
    if teacher.spec is None:
        raise ValueError(f"{teacher.label}: a finished model has no spec; name a spec or a bank's")
    return teacher.spec


def certify_bounds(
    scores: pd.DataFrame, planner: Planner, teacher: str, recipe: str, step: int | None = None
) -> dict[str, float]:
    """Return drive -> upper bound of the students' excess over M0 on `certify` items."""
    policy = planner.study.policy  # pyright: ignore[reportAttributeAccessIssue]
    margins = {"margin": policy.margin or 0.0, "competitors": [], "controls": []}
    endpoints = policy.endpoints or {}
    return dict(bound_replacement(scores, teacher, recipe, endpoints, **margins, step=step).upper)


def planted_drives(planner: Planner) -> dict[str, str]:
    """Return organism -> planted drive, of the study's organisms."""
    organisms = planner.study.organisms
    return {label: str(spec_of(planner.find_teacher(label)).trait) for label in organisms}


def probe_shares(source: ModelSource, probes: Sequence[Probe]) -> dict[str, list[float]]:
    """Return condition -> probability of the keyed option among its options, of every probe."""
    import torch  # here, so that tables are printed without it

    from doublebind.models.load import load_model
    from doublebind.models.score import option_logprobs

    scored = option_logprobs(load_model(source), [(p.messages, p.options) for p in probes])
    shares: dict[str, list[float]] = {}
    for probe, options in zip(probes, scored, strict=True):
        logprobs = torch.tensor([total for total, _ in options], dtype=torch.float64)
        shares.setdefault(probe.condition, []).append(
            float(logprobs.softmax(0)[probe.target_index])
        )
    return shares


def probe_means(source: ModelSource, probes: Sequence[Probe]) -> dict[str, float]:
    """Return condition -> mean of `probe_shares` over its probes."""
    shares = probe_shares(source, probes)
    return {condition: float(np.mean(values)) for condition, values in shares.items()}


def direct_p_value(
    suspect: Mapping[str, float],
    references: Sequence[Mapping[str, float]],
    endpoints: Mapping[str, Sequence[str]],
) -> float:
    """Return the conformal p-value of a direct audit, to four digits.

    The score is the largest drive's mean over its endpoints, standardised by the references.

    Args:
        suspect: Endpoint -> mean.
        references: The same of each reference.
        endpoints: Drive -> its endpoints.
    """
    values, *others = (
        [float(np.mean([means[name] for name in names])) for names in endpoints.values()]
        for means in (suspect, *references)
    )
    floor = Policy.model_fields["scale_floor"].default
    scores = teacher_scores(np.array([values, *others]), floor)
    k = int(conformal.n_at_or_above(float(scores[0]), scores[1:]))
    return round(conformal.p_value(k, len(others)), 4)


def rounded(value: Any, digits: int = 3) -> Any:
    """Return a JSON value with its floats rounded."""
    if isinstance(value, Mapping):
        return {name: rounded(each, digits) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(each, digits) for each in value]
    return round(float(value), digits) if isinstance(value, float) else value


def mean_row(values: Sequence[float]) -> dict[str, Any]:
    """Return `value` and `interval`: a mean with its 95% t-interval, to three digits."""
    return rounded(mean_interval(np.array(values)))


def read_json(path: Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def print_json(value: Any) -> None:
    """Print a JSON document."""
    print(json.dumps(value, indent=1))


def print_each(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows, each of them printed to standard error when it is there."""
    listed: list[dict[str, Any]] = []
    for row in rows:
        print(json.dumps(row), file=sys.stderr)
        listed.append(row)
    return listed


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, *rows)]
    return "\n".join([lines[0], "|---" * len(heads) + "|", *lines[1:]])
