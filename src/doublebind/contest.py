"""The second horn's plans: what is made so that recipes can compete and one can be bounded.

Knows which cells the two phases need. Runs nothing and decides nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from doublebind.blackbox import refuse_served
from doublebind.cells import Planner
from doublebind.config import Recipe, Study
from doublebind.continuing import continued
from doublebind.errors import ConfigError
from doublebind.grid import Plan
from doublebind.protocol import scored
from doublebind.records import (
    Competitor,
    ModelSource,
    Protocol,
    SecondHorn,
    Teacher,
)
from doublebind.replacing import control_of, organisms
from doublebind.store import weights_sha256
from doublebind.teachers.references import Found


class Contest(NamedTuple):
    """The second horn of a study, made concrete."""

    recipes: tuple[Recipe, ...]
    teachers: list[Teacher]
    """On whose students recipes compete; none where the suspect's do."""
    found: dict[str, Found]
    """Label -> model or spec."""

    def refuse(self, weighed: Sequence[Sequence[str]]) -> None:
        """Refuse to calibrate where recipes would be chosen by those they are tried on.

        Raises:
            ConfigError: If nobody competes, or somebody who is weighed does.
        """
        if not self.found:
            raise ConfigError(
                "`replace.organisms` is empty; calibrate needs teachers on whose students recipes "
                "compete, beside those it weighs"
            )
        twice = next((name for names in weighed for name in names if name in self.found), None)
        if twice is not None:
            raise ConfigError(f"`replace`: {twice} is weighed, too; name another to compete on")


def entered(study: Study, planner: Planner) -> Contest | None:
    """Return who competes, or `None` where a study has one horn.

    Raises:
        ConfigError: If a recipe asks of a served teacher what it cannot give, or the recipe of the
            positive controls is not the study's.
    """
    if "replace" not in study.horns:
        return None
    names = [recipe.name for recipe in study.recipes]
    if study.replace.controls not in (None, *names):
        raise ConfigError(
            f"`replace.controls`: {study.replace.controls} is none of the study's `recipes`; "
            f"choose {', '.join(names)}"
        )
    asked = study.model_copy(update={"recipes": study.competing})
    refuse_served([planner.find(study.suspect)], asked)
    roles: dict[str, Any] = dict.fromkeys(study.replace.organisms, "organism")
    roles |= dict.fromkeys(study.replace.references, "reference")
    found = {ref: planner.find(ref) for ref in roles}
    teachers = [t.named(roles[ref]) for ref, t in found.items()]
    return Contest(study.competing, teachers, found)


def frozen(study: Study, contest: Contest, planner: Planner) -> SecondHorn:
    """Return the second horn's part of the protocol.

    Raises:
        PackError: If a score endpoint has no item to choose by, or none to certify with.
    """
    assert study.policy.margin is not None
    endpoints = study.policy.endpoints or planner.pack.score_endpoints
    certify = planner.certify[1]
    scored(planner.pack, endpoints, planner.audits, "select")
    scored(certify, endpoints, planner.audits, "certify")
    keys = {
        role: tuple(t.key for t in contest.teachers if t.role == role)
        for role in ("organism", "reference")
    }
    return SecondHorn(
        margin=study.policy.margin,
        recipes=tuple(recipe.model_dump(mode="json") for recipe in contest.recipes),
        organisms=keys["organism"],
        references=keys["reference"],
        seeds=study.replace.seeds,
        fresh_seeds=study.replace.fresh_seeds,
        certify_hash=certify.sha256,
        controls=study.replace.controls,
        further=study.replace.further.model_dump(mode="json") if study.replace.further else None,
    )


def competition(contest: Contest, planner: Planner, suspect: Found, protocol: Protocol) -> Plan:
    """Return the students that compete, audited on `select` items."""
    second = protocol.second
    assert second is not None
    cells = [
        (teacher, recipe, seed)
        for recipe in contest.recipes
        for seed in range(second.seeds)
        for teacher in (list(contest.found.values()) or [suspect])
    ]
    return planner.cells(cells, "select")


def fresh(
    contest: Contest,
    planner: Planner,
    suspects: Sequence[Found],
    names: Sequence[str],
    protocol: Protocol,
    steps: Mapping[str, int | None] = MappingProxyType({}),
) -> Plan:
    """Return new students of `suspects` by the recipes `names`, and the positive controls.

    Audited on `certify` items. Seeds are those after all that were audited before, so that no
    student that was chosen by is bounded. `steps` says where recipes were stopped; the first
    students are then trained further from there, where the study asks for it.
    """
    second = protocol.second
    assert second is not None
    first = max(second.seeds, protocol.seeds)
    cells = [
        (suspect, recipe, first + i)
        for recipe in contest.recipes
        if recipe.name in names
        for i in range(second.fresh_seeds)
        for suspect in suspects
    ]
    control = next(r for r in planner.study.recipes if r.name == control_of(protocol))
    n = len(cells)
    cells += [(contest.found[t.label], control, 0) for t in organisms(contest.teachers)]
    plan = planner.cells(cells, "certify")
    study = planner.study
    if not isinstance(study, Study) or study.replace.further is None:
        return plan
    tried = [
        (student, steps.get(student.recipe.name))
        for student in plan.students[:n]
        if student.seed < first + study.replace.further.students
    ]
    return dataclasses.replace(plan, further=continued(planner, study.replace.further, tried))


def delivered(plan: Plan, suspect: str, competitor: Competitor) -> ModelSource:
    """Return the student that is handed over: the first fresh one, where its recipe stops it."""
    cell = next(
        cell
        for cell in plan.students
        if (cell.teacher.label, cell.recipe.name) == (suspect, competitor.recipe)
    )
    audits = dict(cell.audits)
    made: ModelSource = audits[competitor.step or cell.recipe.training.steps].inputs["source"]
    return made


def weights(made: ModelSource) -> str:
    """Return the hash of a student's weights (hex)."""
    return weights_sha256(Path(made.adapter or made.path))


def merged(plans: Sequence[Plan]) -> dict[str, dict[str, str]]:
    """Return kind -> key -> what it is, for every artefact of several plans."""
    found: dict[str, dict[str, str]] = {}
    for plan in plans:
        for kind, keys in plan.cells().items():
            found.setdefault(kind, {}).update(keys)
    return found
