"""Jobs of a study: what their keys and inputs depend on."""

from __future__ import annotations

from pathlib import Path

from doublebind.cells import Planner, Student
from doublebind.config import Prompts, Study
from doublebind.store import Store

STUDY = {
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


def _cell(tmp_path: Path, prompts: Prompts) -> Student:
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
