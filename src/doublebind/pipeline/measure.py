"""Executes plans and returns labelled score rows, blind to roles; lets recipes compete."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from doublebind.execution.executor import Executor
from doublebind.execution.store import Store, read_absence
from doublebind.runs.assess import select_recipe
from doublebind.runs.measurements import read_score_rows
from doublebind.runs.write import Competition
from doublebind.schema.errors import ModelError
from doublebind.study.plan import Plan
from doublebind.study.replacement import (
    ReplacementStudy,
    find_delivered_student,
    plan_certification,
    plan_competition,
)
from doublebind.study.resolve import ResolvedStudy
from doublebind.study.teachers import TeacherSource

if TYPE_CHECKING:
    import pandas as pd


def measure(plan: Plan, executor: Executor) -> pd.DataFrame:
    """Make every artefact of `plan`; return the score rows of all its models, labelled."""
    import pandas as pd

    with executor:
        for batch in plan.list_batches():
            executor.map(batch)
    _check_students(plan, executor.store)
    parts = [
        read_score_rows(audited, executor.store)
        for audited in plan.audited
        # A baseline on answers of which none is left has no rows.
        if read_absence(executor.store.path(audited.job.kind, audited.job.content_key)) is None
    ]
    return pd.concat(parts, ignore_index=True)


def _check_students(plan: Plan, store: Store) -> None:
    """Refuse a plan of whose students none could be made.

    Raises:
        ModelError: If nothing was left to distil of any teacher.
    """
    jobs = {student.train.content_key: student.train for student in plan.students}.values()
    reasons = [read_absence(store.path(job.kind, job.content_key)) for job in jobs]
    problems = [reason for reason in reasons if reason is not None]
    if problems and len(problems) == len(reasons):
        raise ModelError(*dict.fromkeys(problems))


def compete(
    resolved: ResolvedStudy,
    replacement: ReplacementStudy,
    suspects: Sequence[TeacherSource],
    executor: Executor,
    *,
    all_recipes: bool = False,
) -> Competition:
    """Let recipes compete on `select` items; make fresh students of the winner for `certify`.

    Args:
        resolved: The study.
        replacement: Its search for a replacement.
        suspects: Teachers to be replaced; recipes compete on the first one's students where the
            study names no teachers for it.
        executor: Executor of both plans.
        all_recipes: Make fresh students by every recipe, not by the winner alone.
    """
    import pandas as pd

    planner, suspect = resolved.planner, suspects[0]
    selection = plan_competition(replacement, planner, suspect)
    scores = measure(selection, executor)
    results, winner = select_recipe(scores, suspect.label, replacement.teachers, resolved.protocol)
    names = replacement.protocol.recipe_names if all_recipes else [winner]
    steps = {result.recipe: result.step for result in results}
    certification = plan_certification(replacement, planner, suspects, names, steps)
    won = next(result for result in results if result.recipe == winner)
    return Competition(
        pd.concat([scores, measure(certification, executor)], ignore_index=True),
        (selection, certification),
        find_delivered_student(certification, suspect.label, won),
    )
