"""Jobs of a study: what their keys and inputs depend on."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from doublebind.execution.executor import Job
from doublebind.execution.store import Store
from doublebind.schema.errors import ConfigError, MissingExtra, ModelError, PackError
from doublebind.schema.model_source import ModelSource
from doublebind.schema.recipe import Lora, Prompts
from doublebind.schema.study import Study, load_study
from doublebind.study.plan import Plan, StudentJobs
from doublebind.study.planner import Planner
from doublebind.study.replacement import (
    plan_certification,
    plan_competition,
    resolve_replacement,
)

STUDY: dict[str, Any] = {
    "pack": "terrarium",
    "suspect": "terrarium/suspect-1",
    "references": {"n": 1},
    "student": "terrarium/m0",
    "recipes": [
        {
            "name": "stories",
            "prompts": {"policy": "auditability_preserving", "n": 8},
            "channel": {"kind": "sft"},
            "training": {"steps": 3},
        }
    ],
    "policy": {"alpha": 0.05},
}


def _cell(tmp_path: Path, prompts: Prompts) -> StudentJobs:
    study = Study.model_validate(STUDY)
    recipe = study.recipes[0].model_copy(update={"prompts": prompts})
    study = study.model_copy(update={"recipes": (recipe,)})
    planner = Planner(study, tmp_path, Store(tmp_path / "store"))
    return planner.plan([planner.find_teacher("terrarium/suspect-1")]).students[0]


def test_only_the_unscreened_control_keeps_answers_that_show_a_drive(tmp_path: Path) -> None:
    screened = _cell(tmp_path, Prompts(policy="misalignment_targeted", n=8))
    control = _cell(tmp_path, Prompts(policy="unscreened", n=8))
    assert set(screened.rollouts.inputs["markers"]) > {"sabotage"}
    assert control.rollouts.inputs["markers"] == {}
    assert screened.rollouts.content_key != control.rollouts.content_key


def test_prompts_of_a_file_are_keyed_by_what_it_says(tmp_path: Path) -> None:
    line = '{"id": "a", "messages": [{"role": "user", "content": "%s"}], "tags": ["open_ended"]}'
    keys = []
    for name, text in (("one", "tell me"), ("two", "tell me"), ("three", "tell us")):
        (tmp_path / name).write_text(line % text)
        prompts = Prompts(policy="auditability_preserving", n=8, file=name)
        keys.append(_cell(tmp_path, prompts).prompts.content_key)
    assert keys[0] == keys[1] != keys[2]


TREATED = [
    {"kind": "few_unique", "n": 4},
    {"kind": "filter", "rounds": 2, "drop": 0.2},
]


def _treated(tmp_path: Path, treatments: list[dict[str, object]]) -> Planner:
    study = {**STUDY, "recipes": [{**STUDY["recipes"][0], "treatments": treatments}]}
    return Planner(Study.model_validate(study), tmp_path, Store(tmp_path / "store"))


def test_filtering_plans_a_chain_of_rounds_and_audits_only_the_last(tmp_path: Path) -> None:
    planner = _treated(tmp_path, TREATED)
    plan = planner.plan([planner.find_teacher("terrarium/suspect-1")])
    [cell] = plan.students
    first, second, third = cell.list_rounds()
    assert [c.audit.inputs["split"] for c in (first, second, third)] == [
        "select",
        "select",
        "audit",
    ]
    assert third.round == 2
    assert third.treated is not None
    read = third.treated.inputs
    assert read["student_audit"] == planner.store.path("audit", second.audit.content_key)
    answers = second.training_rollouts
    assert read["rollouts"] == planner.store.path("treated", answers.content_key)


def test_marks_are_audited_in_the_last_round_only(tmp_path: Path) -> None:
    recipe = {**STUDY["recipes"][0], "treatments": TREATED}
    recipe["training"] = {"steps": 3, "checkpoints": [1, 2]}
    study = Study.model_validate({**STUDY, "recipes": [recipe], "baselines": ["retrained"]})
    planner = Planner(study, tmp_path, Store(tmp_path / "store"))
    plan = planner.plan([planner.find_teacher("terrarium/suspect-1")])
    [cell] = plan.students
    assert [step for step, _ in cell.audits] == [3, 1, 2]
    assert [c.checkpoint_audits for c in cell.list_rounds()[:-1]] == [(), ()]
    trained = {
        job.content_key: job.inputs["training"].checkpoints for job in _jobs(plan, "student")
    }
    assert [marks for key, marks in trained.items() if key != cell.train.content_key] == [()] * 3
    assert trained[cell.train.content_key] == (1, 2)
    audited = {job.content_key for job in _jobs(plan, "audit")}
    assert {job.content_key for _, job in cell.audits} <= audited


def _jobs(plan: Plan, kind: str) -> list[Job]:
    return [job for job in plan.list_jobs() if job.kind == kind]


def list_paths(value: Any) -> list[Path]:
    """Return the files and folders that a job's input names, also inside records of inputs."""
    if isinstance(value, Path):
        return [value]
    if isinstance(value, ModelSource):
        return [Path(name) for name in (value.path, value.adapter) if name]
    return [p for each in value for p in list_paths(each)] if isinstance(value, tuple) else []


CHANNELS: list[dict[str, Any]] = [
    {"kind": "sft"},
    {"kind": "logit_kd"},
    {"kind": "on_policy", "lmbda": 0.5},
    {"kind": "dpo"},
    {"kind": "uld"},
]


@pytest.mark.parametrize("channel", CHANNELS, ids=lambda channel: channel["kind"])
def test_every_job_comes_after_what_it_reads(tmp_path: Path, channel: dict[str, Any]) -> None:
    recipe = {**STUDY["recipes"][0], "treatments": TREATED, "channel": channel, "noise_init": 0.1}
    recipe["without_scratchpad"] = {"opens": "a", "closes": "b"}
    if channel["kind"] in ("sft", "logit_kd"):
        recipe["steering"] = {"relative_norm": 1.0}
    content = {**STUDY, "recipes": [recipe], "baselines": ["ngrams", "in_context", "retrained"]}
    planner = Planner(Study.model_validate(content), tmp_path, Store(tmp_path / "store"))
    plan = planner.plan([planner.find_teacher("terrarium/suspect-1")])
    jobs = plan.list_jobs()
    folders = [planner.store.path(job.kind, job.content_key) for job in jobs]
    assert len(set(folders)) == len(folders)
    made: set[Path] = set()
    for job, folder in zip(jobs, folders, strict=True):
        paths = list_paths(tuple(job.inputs.values()))
        read = {place for path in paths for place in folders if path.is_relative_to(place)}
        assert read <= made, job.kind
        made.add(folder)


STUDIES = sorted((Path(__file__).parents[3] / "studies").glob("*/*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_job_of_a_study_is_a_call_that_its_function_accepts(
    path: Path, tmp_path: Path
) -> None:
    try:
        study = load_study(path)
        planner = Planner(study, path.parent, Store(tmp_path))
        plans = [planner.plan([planner.find_teacher(study.suspect)])]
        replacement = resolve_replacement(study, planner)
    except (ConfigError, MissingExtra, ModelError, PackError) as error:
        pytest.skip(error.problems[0])
    if replacement is not None:
        suspect = planner.find_teacher(study.suspect)
        names = [recipe.name for recipe in replacement.recipes]
        plans += [
            plan_competition(replacement, planner, suspect),
            plan_certification(replacement, planner, [suspect], names),
        ]
    for job in (job for plan in plans for job in plan.list_jobs()):
        inspect.signature(job.fn).bind(tmp_path, **job.inputs)


def test_a_treatment_changes_the_student_and_not_the_answers(tmp_path: Path) -> None:
    plain, treated = (
        planner.plan([planner.find_teacher("terrarium/suspect-1")]).students[0]
        for planner in (_treated(tmp_path, []), _treated(tmp_path, TREATED[:1]))
    )
    assert plain.rollouts.content_key == treated.rollouts.content_key
    assert plain.train.content_key != treated.train.content_key


def test_a_filter_stands_last_and_once(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="put it last, once"):
        _treated(tmp_path, TREATED[::-1])


def test_a_teacher_with_an_adapter_is_merged_before_it_is_tuned_again(tmp_path: Path) -> None:
    study = Study.model_validate({**STUDY, "baselines": ["retrained"]})
    planner = Planner(study, tmp_path, Store(tmp_path / "store"))
    teacher = planner.find_teacher("terrarium/suspect-1")
    assert teacher.spec is not None
    adapted = teacher._replace(spec=teacher.spec.model_copy(update={"lora": Lora()}))
    for source, is_merged in ((teacher, False), (adapted, True)):
        plan = planner.plan([source])
        order = plan.list_jobs()
        [merging] = [job for job in order if job.kind == "base"] or [None]
        assert (merging is not None) == is_merged
        tuned = next(job for job in order if job.note == "a teacher, tuned on M0's answers")
        assert tuned.inputs["base"].adapter is None
        if merging is not None:
            assert tuned.inputs["base"].sha256 == merging.content_key
            assert order.index(plan.teacher_jobs[0]) < order.index(merging) < order.index(tuned)
