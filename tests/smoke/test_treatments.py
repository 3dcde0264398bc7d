"""A study whose recipe treats and filters runs through the real command, and says what it did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from doublebind import verify
from doublebind.pipeline import run as pipeline
from doublebind.schema.study import Study

MINIATURE = Path(__file__).parents[2] / "studies/terrarium-miniature/study.yaml"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_filtered_recipe_ends_with_its_last_rounds_students(tmp_path: Path) -> None:
    content = yaml.safe_load(MINIATURE.read_text())
    content["recipes"] = content["recipes"][:1]
    content["recipes"][0]["treatments"] = [
        {"kind": "jam", "how": "resample", "share": 0.3},
        {"kind": "mix_trusted", "share": 0.2},
        {"kind": "counter_poison", "outliers": 0.1},
        {"kind": "filter", "rounds": 1, "drop": 0.2, "stop": 0.0},
    ]
    study = Study.model_validate(content)
    run = pipeline.run(study, tmp_path / "run", folder=MINIATURE.parent, store=tmp_path / "store")
    students = run.scores[run.scores["model_kind"] == "student"]
    assert set(students["round"]) == {1}
    assert set(students["split"]) == {"audit"}
    cells = [json.loads(p.read_text()) for p in (tmp_path / "run" / "cells").glob("*.json")]
    for cell in cells:
        done = [t["kind"] for t in cell["treatments"]]
        assert done == ["jam", "mix_trusted", "counter_poison", "filter"]
    assert verify(run.path).problems == ()
