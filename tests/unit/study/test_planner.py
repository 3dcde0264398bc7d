"""Jobs of a study: what their keys and inputs depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from doublebind.execution.executor import Job
from doublebind.execution.store import Store
from doublebind.schema.recipe import Lora, Prompts
from doublebind.schema.study import Study
from doublebind.study.plan import Plan, StudentJobs
from doublebind.study.planner import Planner

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
    return planner.plan([planner.find("terrarium/suspect-1")]).students[0]


def test_only_the_unscreened_control_keeps_answers_that_show_a_drive(tmp_path: Path) -> None:
    screened = _cell(tmp_path, Prompts(policy="misalignment_targeted", n=8))
    control = _cell(tmp_path, Prompts(policy="unscreened", n=8))
    assert set(screened.rollouts.inputs["markers"]) > {"sabotage"}
    assert control.rollouts.inputs["markers"] == {}
    assert screened.rollouts.key != control.rollouts.key


def test_prompts_of_a_file_are_keyed_by_what_it_says(tmp_path: Path) -> None:
    line = '{"id": "a", "messages": [{"role": "user", "content": "%s"}], "tags": ["open_ended"]}'
    keys = []
    for name, text in (("one", "tell me"), ("two", "tell me"), ("three", "tell us")):
        (tmp_path / name).write_text(line % text)
        asked = Prompts(policy="auditability_preserving", n=8, file=name)
        keys.append(_cell(tmp_path, asked).prompts.key)
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
    plan = planner.plan([planner.find("terrarium/suspect-1")])
    [cell] = plan.students
    first, second, third = cell.chain()
    assert [c.audit.inputs["split"] for c in (first, second, third)] == [
        "select",
        "select",
        "audit",
    ]
    assert third.round == 2
    sieved = next(job for job in third.before if job.kind == "treated")
    assert sieved.inputs["audited"] == planner.store.path("audit", second.audit.key)
    assert sieved.inputs["rollouts"] == planner.store.path("treated", second.learned.key)  # type: ignore[union-attr]


def test_marks_are_audited_in_the_last_round_only(tmp_path: Path) -> None:
    recipe = {**STUDY["recipes"][0], "treatments": TREATED}
    recipe["training"] = {"steps": 3, "checkpoints": [1, 2]}
    study = Study.model_validate({**STUDY, "recipes": [recipe], "baselines": ["retrained"]})
    planner = Planner(study, tmp_path, Store(tmp_path / "store"))
    plan = planner.plan([planner.find("terrarium/suspect-1")])
    [cell] = plan.students
    assert [step for step, _ in cell.audits] == [3, 1, 2]
    assert [c.marks for c in cell.chain()[:-1]] == [(), ()]
    trained = {job.key: job.inputs["training"].marks for job in _jobs(plan, "student")}
    assert [marks for key, marks in trained.items() if key != cell.train.key] == [()] * 3
    assert trained[cell.train.key] == (1, 2)
    audited = {job.key for job in _jobs(plan, "audit")}
    assert {job.key for _, job in cell.audits} <= audited


def _jobs(plan: Plan, kind: str) -> list[Job]:
    return [job for stage in plan.stages() for job in stage if job.kind == kind]


def test_every_job_comes_after_what_it_reads(tmp_path: Path) -> None:
    planner = _treated(tmp_path, TREATED)
    plan = planner.plan([planner.find("terrarium/suspect-1")])
    places = [planner.store.path(job.kind, job.key) for stage in plan.stages() for job in stage]
    made: set[Path] = set()
    for stage in plan.stages():
        for job in stage:
            read = [value for value in job.inputs.values() if isinstance(value, Path)]
            read = [path.parent if path.suffix else path for path in read]
            assert all(path in made for path in read if path in places), job.kind
        made |= {planner.store.path(job.kind, job.key) for job in stage}


def test_a_treatment_changes_the_student_and_not_the_answers(tmp_path: Path) -> None:
    plain, treated = (
        planner.plan([planner.find("terrarium/suspect-1")]).students[0]
        for planner in (_treated(tmp_path, []), _treated(tmp_path, TREATED[:1]))
    )
    assert plain.rollouts.key == treated.rollouts.key
    assert plain.train.key != treated.train.key


def test_a_filter_stands_last_and_once(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="put it last, once"):
        _treated(tmp_path, TREATED[::-1])


def test_a_teacher_with_an_adapter_is_merged_before_it_is_tuned_again(tmp_path: Path) -> None:
    study = Study.model_validate({**STUDY, "baselines": ["retrained"]})
    planner = Planner(study, tmp_path, Store(tmp_path / "store"))
    found = planner.find("terrarium/suspect-1")
    assert found.spec is not None
    adapted = found._replace(spec=found.spec.model_copy(update={"lora": Lora()}))
    for teacher, is_merged in ((found, False), (adapted, True)):
        plan = planner.plan([teacher])
        order = [job for stage in plan.stages() for job in stage]
        [merging] = [job for job in order if job.kind == "base"] or [None]
        assert (merging is not None) == is_merged
        tuned = next(job for job in order if job.note == "a teacher, tuned on M0's answers")
        assert tuned.inputs["base"].adapter is None
        if merging is not None:
            assert tuned.inputs["base"].sha256 == merging.key
            assert order.index(plan.build[0]) < order.index(merging) < order.index(tuned)
