"""Files that scripts of a study write are those that its results were measured with."""

from __future__ import annotations

import hashlib
import runpy
from pathlib import Path

from doublebind.config import TeacherSpec, load_study
from doublebind.yaml_file import load

STUDIES = Path(__file__).parents[2] / "studies"


def sha256(*files: Path) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def test_triggered_prompts_are_those_that_students_learned_from(tmp_path: Path) -> None:
    file = tmp_path / "triggered.jsonl"
    runpy.run_path(str(STUDIES / "terrarium-organisms" / "triggered.py"))["write_prompts"](file)
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
    assert all(load(TeacherSpec, file).conceal is None for file in files)
    assert sha256(*files) == "9fa7b9ea15e188537057bd49865e9dadea233a8afcd100722f7fdd0ec68cea26"
