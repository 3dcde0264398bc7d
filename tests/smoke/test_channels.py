"""Every channel and kind of student goes through the real command line, from plan to verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.tiny_study import write_study
from tests.tiny_world import save_byte_model

import doublebind
from doublebind.cli.main import main

TRAINING = {"steps": 2, "batch": 4, "lr": 0.01, "lora": {"rank": 2, "alpha": 4}}
FULL = TRAINING | {"lora": None}
KD = {"kind": "logit_kd", "top_k": 8}
RECIPES: dict[str, dict[str, Any]] = {
    "text": {"channel": {"kind": "sft"}},
    "reverse": {"channel": KD | {"divergence": "reverse"}},
    "skew": {"channel": KD | {"divergence": "skew", "skew": 0.1}, "training": FULL},
    "js": {"channel": KD | {"divergence": "js", "tail_samples": 4}},
    "on-policy": {"channel": {"kind": "on_policy", "lmbda": 0.5}},
    "preference": {"channel": {"kind": "dpo", "keep": 0.5}},
    "reversed": {"channel": {"kind": "dpo", "keep": 0.5, "chosen": "m0"}},
    "prefix": {
        "channel": {"kind": "prefix", "tokens": 4, "top_k": 8, "tail_samples": 2},
        "training": FULL,
    },
    "family": {"channel": {"kind": "uld", "top_k": 8}, "student": "family"},
    "noised": {"channel": KD, "noise_init": 0.3},
    "terse": {"channel": KD, "without_scratchpad": {"opens": "went", "closes": "then"}},
    "family-preference": {"channel": {"kind": "dpo"}, "student": "family"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipes = [
        {
            "name": name,
            "prompts": {"policy": "auditability_preserving", "n": 12, "max_tokens": 8},
            "training": TRAINING,
        }
        | recipe
        for name, recipe in RECIPES.items()
    ]
    folder = tmp_path_factory.mktemp("channels") / "study"
    write_study(folder, references=1, recipes=recipes)
    save_byte_model(folder / "family")
    return folder


def arguments(command: str, folder: Path) -> list[str]:
    return [command, str(folder / "study.yaml"), "--store", str(folder / "store"), "--json"]


def planned(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(arguments("plan", folder)) == 0
    return json.loads(capsys.readouterr().out)["cells"]


@pytest.mark.slow
def test_every_channel_runs_from_plan_to_finite_scores(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = planned(folder, capsys)
    assert before["student"] == {"needed": 2 * len(RECIPES), "stored": 0}
    # M0 answers once for all; each teacher, M0 and the other base read both answers of a teacher.
    assert before["rollouts"]["needed"] == 2 + 1
    assert before["logprobs"]["needed"] == 2 * 2 + (2 + 1) + (2 + 1)
    assert before["base"]["needed"] == 1
    assert before["stripped"]["needed"] == 2
    assert main([*arguments("run", folder), "--out", str(folder / "run")]) == 0
    after = planned(folder, capsys)
    assert all(cell["needed"] == cell["stored"] for cell in after.values())
    run = doublebind.Run(folder / "run")
    students = run.scores[run.scores["model_kind"] == "student"]
    assert set(students["recipe"]) == set(RECIPES)
    assert students["unscored_reason"].isna().all()
    assert np.isfinite(students["value"]).all()
    means = students.groupby(["recipe", "teacher"])["value"].mean()
    assert len(set(means.round(9))) == len(means), "no two students are the same model"
    assert doublebind.verify(run.path).problems == ()
