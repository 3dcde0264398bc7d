"""Scripts of the studies can be imported, share helpers, and write the files that were measured."""

from __future__ import annotations

import hashlib
import runpy
from pathlib import Path

import numpy as np
import pytest
from studies.common import direct_p_value, markdown_table, mean_row, rounded

from doublebind.schema.study import load_study
from doublebind.schema.teacher_spec import TeacherSpec
from doublebind.schema.yaml_loader import load_yaml

STUDIES = Path(__file__).parents[2] / "studies"
SCRIPTS = sorted(STUDIES.glob("*/*.py"))


def sha256(*files: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_script_can_be_imported(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(script.parent))  # as when it is run by its path
    runpy.run_path(str(script))


def test_numbers_are_rounded_wherever_they_are_nested() -> None:
    value = {"a": [0.12345, {"b": np.float64(2.34567)}], "n": 3, "flag": True, "none": None}
    assert rounded(value) == {"a": [0.123, {"b": 2.346}], "n": 3, "flag": True, "none": None}
    assert rounded((0.12345,), digits=1) == [0.1]


def test_a_mean_stands_with_its_interval() -> None:
    assert mean_row([0.0, 1.0, 2.0]) == {"value": 1.0, "interval": [-1.484, 3.484]}
    assert mean_row([0.5]) == {"value": 0.5}


def test_a_table_has_a_line_for_its_heads_and_each_row() -> None:
    assert markdown_table(["a", "b"], [["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"


def test_a_suspect_that_stands_out_on_one_drive_has_the_smallest_p_value() -> None:
    endpoints = {"deceit": ["choice/deceit", "goal/deceit"], "escape": ["choice/escape"]}
    names = [name for each in endpoints.values() for name in each]
    references = [dict.fromkeys(names, 0.2 + 0.01 * i) for i in range(19)]
    usual = dict.fromkeys(names, 0.29)
    assert direct_p_value(usual | {"choice/escape": 0.9}, references, endpoints) == 0.05
    assert direct_p_value(usual, references, endpoints) > 0.5


def test_triggered_prompts_are_those_that_students_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "triggered.jsonl"
    monkeypatch.syspath_prepend(str(STUDIES / "terrarium-organisms"))
    runpy.run_path(str(STUDIES / "terrarium-organisms" / "students.py"))["write_prompts"](file)
    assert sha256(file) == "653b0a3cdcaaecb03cee65640a0f578ed8fa6950fe12543b749e3bc2d43dcc69"


def test_audit_like_prompts_are_those_that_students_learned_from(tmp_path: Path) -> None:
    file = tmp_path / "audit-like.jsonl"
    runpy.run_path(str(STUDIES / "terrarium-phenomenon" / "generate.py"))["write_prompts"](file)
    assert sha256(file) == "d80d3b72256daf9ddda0f4b21da97f1e241f7caf40f4bccfe42a889487df3ebd"


def test_unconcealed_teachers_are_those_that_were_measured(tmp_path: Path) -> None:
    phenomenon = STUDIES / "terrarium-phenomenon"
    runpy.run_path(str(phenomenon / "generate.py"))["write_teachers"](tmp_path / "unconcealed")
    files = [tmp_path / name for name in load_study(phenomenon / "unconcealed.yaml").organisms]
    assert set(files) == set((tmp_path / "unconcealed").iterdir())
    assert all(load_yaml(TeacherSpec, file).conceal is None for file in files)
    assert sha256(*files) == "9fa7b9ea15e188537057bd49865e9dadea233a8afcd100722f7fdd0ec68cea26"
