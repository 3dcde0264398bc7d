"""Executes a plan and returns labelled score rows, blind to roles; lets recipes compete."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from doublebind.execution.executor import Executor
from doublebind.runs.assess import select_recipe
from doublebind.schema.score_table import M0, SCORE_COLUMNS
from doublebind.study.jobs import read_scores
from doublebind.study.plan import Plan
from doublebind.study.replacement import ReplacementStudy, plan_certification, plan_competition
from doublebind.study.resolve import ResolvedStudy
from doublebind.study.teachers import TeacherSource

if TYPE_CHECKING:
    import pandas as pd


def measure(plan: Plan, executor: Executor) -> pd.DataFrame:
    """Make everything in `plan`; return the scores of all its models, labelled."""
    import pandas as pd

    with executor:
        for stage in plan.list_stages():
            executor.map(stage)
    parts = [
        read_scores(executor.store.path(job.kind, job.content_key)).assign(
            teacher=label,
            model_kind="m0" if label == M0 else "teacher",
            recipe="",
            seed=-1,
            round=0,
            step=-1,
        )
        for label, job in plan.direct_audits.items()
    ]
    parts += [
        read_scores(executor.store.path(job.kind, job.content_key)).assign(
            teacher=cell.teacher.label,
            model_kind="student",
            recipe=cell.recipe.name,
            seed=cell.seed,
            round=cell.round,
            step=step,
        )
        for cell in plan.students
        for step, job in cell.audits
    ]
    parts += [
        read_scores(executor.store.path(baseline.scores.kind, baseline.scores.content_key)).assign(
            teacher=baseline.teacher, model_kind=baseline.kind, recipe="", seed=-1, round=0, step=-1
        )
        for baseline in plan.baselines
    ]
    parts += [
        read_scores(executor.store.path(each.audit.kind, each.audit.content_key)).assign(
            teacher=each.teacher,
            model_kind=each.model_kind,
            recipe=each.recipe,
            seed=each.seed,
            round=0,
            step=each.step,
        )
        for each in plan.further_training
    ]
    return pd.concat(parts, ignore_index=True).loc[:, list(SCORE_COLUMNS)]


def compete(
    resolved: ResolvedStudy,
    replacement: ReplacementStudy,
    suspects: Sequence[TeacherSource],
    executor: Executor,
    *,
    all_recipes: bool = False,
) -> tuple[pd.DataFrame, list[Plan]]:
    """Let recipes compete on `select` items, then make fresh students of the winner for `certify`.

    Args:
        setting: The study made concrete.
        contest: Its second horn.
        suspects: Teachers to be replaced; where no others compete, the first one's students do.
        executor: Where cells are made.
        every: Make fresh students by every recipe, not by the winner alone.

    Returns:
        The scores of both phases, and their plans.
    """
    import pandas as pd

    first = plan_competition(replacement, resolved.planner, suspects[0], resolved.protocol)
    scores = measure(first, executor)
    competed, winner = select_recipe(
        scores, suspects[0].label, replacement.teachers, resolved.protocol
    )
    names = (
        resolved.protocol.replacement.recipe_names
        if all_recipes and resolved.protocol.replacement
        else [winner]
    )
    steps = {each.recipe: each.step for each in competed}
    last = plan_certification(
        replacement, resolved.planner, suspects, names, resolved.protocol, steps
    )
    return pd.concat([scores, measure(last, executor)], ignore_index=True), [first, last]
