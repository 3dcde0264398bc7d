"""Plans the search for a replacement: recipes compete, then fresh students are bounded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from doublebind.execution.store import Store
from doublebind.schema.errors import ConfigError
from doublebind.schema.evidence import RecipeResult
from doublebind.schema.model_source import ModelSource, Teacher
from doublebind.schema.protocol import ReplacementProtocol, select_organisms
from doublebind.schema.recipe import Recipe
from doublebind.schema.replacement_settings import FurtherTraining
from doublebind.schema.score_table import split_contrast
from doublebind.schema.study import Study
from doublebind.study.access import check_served
from doublebind.study.distinct import NamedModel, check_distinct, name_teacher
from doublebind.study.further_training import plan_further_training
from doublebind.study.plan import Plan, hash_artefact_keys, list_artefacts
from doublebind.study.planner import Planner
from doublebind.study.protocol import select_auditable_endpoints
from doublebind.study.teachers import TeacherSource


class ReplacementStudy(NamedTuple):
    """The part of a study that looks for a replacement."""

    recipes: tuple[Recipe, ...]
    """Those that compete."""
    teachers: list[Teacher]
    """On whose students recipes compete; empty where the suspect's do."""
    teacher_sources: dict[str, TeacherSource]
    """Label -> model or spec of each."""
    protocol: ReplacementProtocol
    control_recipe: Recipe
    """The recipe that makes the positive controls."""
    first_fresh_seed: int
    """Above every seed whose student was audited earlier, so that none is bounded again."""
    further_training: FurtherTraining | None

    def check_teachers(self) -> None:
        """Check that `calibrate` has teachers on whose students recipes compete.

        Raises:
            ConfigError: If recipes compete on no teacher.
        """
        if not self.teacher_sources:
            raise ConfigError(
                "`replace.organisms` is empty; calibrate needs teachers on whose students recipes "
                "compete, besides those it weighs"
            )

    def name_teachers(self, store: Store) -> list[NamedModel]:
        """Return the teachers on whose students recipes compete, as models to tell apart."""
        roles = {t.label: f"replace.{t.role}s" for t in self.teachers}
        sources = self.teacher_sources.values()
        return [name_teacher(roles[source.label], source, store) for source in sources]


def resolve_replacement(study: Study, planner: Planner) -> ReplacementStudy | None:
    """Return the part of a study that looks for a replacement; `None` if it looks for none.

    Raises:
        ConfigError: If a recipe needs of a served teacher what no server gives, the recipe of the
            positive controls is not one of the study's, or recipes compete on one model twice.
        PackError: If a score endpoint has no item of split `select`, or none of `certify`.
    """
    if "replace" not in study.horns:
        return None
    settings = study.replace
    recipes = {recipe.name: recipe for recipe in study.recipes}
    if settings.controls not in (None, *recipes):
        raise ConfigError(
            f"`replace.controls`: {settings.controls} is none of the study's `recipes`; "
            f"choose {', '.join(recipes)}"
        )
    competing = study.model_copy(update={"recipes": study.competing_recipes})
    check_served([planner.find_teacher(study.suspect)], competing)
    roles: dict[str, Any] = dict.fromkeys(settings.organisms, "organism")
    roles |= dict.fromkeys(settings.references, "reference")
    sources = {ref: planner.find_teacher(ref) for ref in roles}
    teachers = [source.to_teacher(roles[ref]) for ref, source in sources.items()]
    replacement = ReplacementStudy(
        recipes=study.competing_recipes,
        teachers=teachers,
        teacher_sources=sources,
        protocol=_freeze_replacement(study, teachers, planner),
        control_recipe=recipes[settings.controls] if settings.controls else study.recipes[0],
        first_fresh_seed=max(settings.seeds, study.seeds),
        further_training=settings.further_training,
    )
    suspect = planner.find_teacher(study.suspect)
    competing_teachers = replacement.name_teachers(planner.store)
    check_distinct([name_teacher("suspect", suspect, planner.store), *competing_teachers])
    names = replacement.protocol.recipe_names
    plans = (
        plan_competition(replacement, planner, suspect),
        plan_certification(replacement, planner, [suspect], names),
    )
    jobs = hash_artefact_keys(list_artefacts(*plans))
    protocol = replacement.protocol.model_copy(update={"jobs": jobs})
    return replacement._replace(protocol=protocol)


def _freeze_replacement(
    study: Study, teachers: Sequence[Teacher], planner: Planner
) -> ReplacementProtocol:
    """Return the replacement's part of the protocol."""
    if study.policy.margin is None:
        raise ConfigError("`policy.margin`: missing; `horns: [replace]` needs it")
    endpoints = study.policy.endpoints or planner.pack.score_endpoints
    _check_plain_endpoints(endpoints)
    certify = planner.certify_pack.pack
    select_auditable_endpoints(planner.pack, endpoints, planner.audits, "select")
    select_auditable_endpoints(certify, endpoints, planner.audits, "certify")
    keys = {
        role: tuple(t.content_key for t in teachers if t.role == role)
        for role in ("organism", "reference")
    }
    further = study.replace.further_training
    return ReplacementProtocol(
        margin=study.policy.margin,
        recipes=tuple(
            recipe.model_dump(mode="json")
            for recipe in planner.identify_recipes(study.competing_recipes)
        ),
        organisms=keys["organism"],
        references=keys["reference"],
        seeds=study.replace.seeds,
        fresh_seeds=study.replace.fresh_seeds,
        certify_hash=certify.sha256,
        controls=study.replace.controls,
        further_training=further.model_dump(mode="json") if further else None,
    )


def plan_competition(
    replacement: ReplacementStudy, planner: Planner, suspect: TeacherSource
) -> Plan:
    """Return the students by which recipes compete, audited on `select` items."""
    students = [
        (teacher, recipe, seed)
        for recipe in replacement.recipes
        for seed in range(replacement.protocol.seeds)
        for teacher in (list(replacement.teacher_sources.values()) or [suspect])
    ]
    return planner.plan_students(students, "select")


def plan_certification(
    replacement: ReplacementStudy,
    planner: Planner,
    suspects: Sequence[TeacherSource],
    recipe_names: Sequence[str],
    stopping_steps: Mapping[str, int | None] = MappingProxyType({}),
) -> Plan:
    """Return fresh students of the suspects and the positive controls, on `certify` items.

    Args:
        replacement: Of the study.
        planner: Of the study.
        suspects: Teachers to be replaced.
        recipe_names: Recipes of the fresh students.
        stopping_steps: Recipe -> the checkpoint at which it stops. Where the study asks for it,
            the first fresh students are trained further from there.
    """
    first = replacement.first_fresh_seed
    fresh = [
        (suspect, recipe, first + i)
        for recipe in replacement.recipes
        if recipe.name in recipe_names
        for i in range(replacement.protocol.fresh_seeds)
        for suspect in suspects
    ]
    controls = [
        (replacement.teacher_sources[t.label], replacement.control_recipe, 0)
        for t in select_organisms(replacement.teachers)
    ]
    plan = planner.plan_students([*fresh, *controls], "certify")
    further = replacement.further_training
    if further is None:
        return plan
    continued = [
        (student, stopping_steps.get(student.recipe.name))
        for student in plan.students[: len(fresh)]
        if student.seed < first + further.students
    ]
    models = plan_further_training(planner, further, continued)
    return dataclasses.replace(plan, further_training=models)


def find_delivered_student(plan: Plan, suspect: str, result: RecipeResult) -> ModelSource:
    """Return the delivered student: the first fresh one by a recipe, where the recipe stops."""
    student = next(
        student
        for student in plan.students
        if (student.teacher.label, student.recipe.name) == (suspect, result.recipe)
    )
    return student.find_checkpoint(result.step).inputs["source"]


def _check_plain_endpoints(endpoints: Mapping[str, Sequence[str]]) -> None:
    """Check that no score endpoint is a contrast: a certificate bounds endpoints one by one.

    Raises:
        ConfigError: If one is.
    """
    for name, listed in endpoints.items():
        contrasts = [entry for entry in listed if len(split_contrast(entry)) > 1]
        if contrasts:
            raise ConfigError(
                f"`policy.endpoints.{name}`: {contrasts[0]} is a contrast, which no certificate "
                "bounds; name its two endpoints in a study of the horn `replace`"
            )
