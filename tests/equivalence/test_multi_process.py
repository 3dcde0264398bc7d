"""A study whose students are trained in shards: the losses of one process, and no step twice."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors import safe_open
from tests.tiny_study import write_study

from doublebind.cli import main as cli

STEPS = 40


def study_of(folder: Path) -> Path:
    path = write_study(folder, references=1)
    study = yaml.safe_load(path.read_text())
    (recipe,) = study["recipes"]
    training = recipe["training"] | {"steps": STEPS}
    whole = {"name": "whole", "channel": {"kind": "sft"}, "training": training | {"lora": None}}
    study["recipes"] = [recipe | {"training": training}, recipe | whole]
    path.write_text(yaml.safe_dump(study))
    return path


def run(study: Path, out: Path, store: Path, *changes: str) -> int:
    argv = ["run", str(study), *changes, "--out", str(out), "--store", str(store), "--json"]
    return cli.main(argv)


def losses(store: Path) -> dict[Any, tuple[float, float, int]]:
    by_student = {}
    for path in (store / "student").rglob("student.json"):
        facts = json.loads(path.read_text())
        # Which answers it learned from does not depend on how many processes learned them.
        name = (facts["channel"]["kind"], round(facts["loss_first"], 4))
        by_student[name] = (facts["loss_first"], facts["loss_last"], facts["tokens"])
    return by_student


def kill_one_after_a_checkpoint(store: Path, seen: list[int]) -> None:
    while not (files := list((store / "converted" / "shards").glob("*.safetensors"))):
        time.sleep(0.01)
    with safe_open(files[0], framework="pt") as opened:
        seen.append(len(json.loads(opened.metadata()["losses"])))
    victim = multiprocessing.active_children()[-1]
    assert victim.pid
    os.kill(victim.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_starts_its_shards_and_goes_on_after_one_of_them_was_killed(
    tmp_path: Path, capsys: Any
) -> None:
    study = study_of(tmp_path / "study")
    assert run(study, tmp_path / "one", tmp_path / "a") == 0
    two = [f"recipes.{i}.training.processes=2" for i in range(2)]
    seen: list[int] = []
    store = tmp_path / "b"
    killer = threading.Thread(target=kill_one_after_a_checkpoint, args=(store, seen))
    killer.start()
    capsys.readouterr()
    assert run(study, tmp_path / "two", store, *two) == 2
    killer.join()
    (message,) = capsys.readouterr().err.splitlines()
    assert "of 2 that train it together died" in message
    assert "rerun to go on from its last checkpoint" in message
    assert 0 < seen[0] < STEPS, "killed in the middle"
    assert run(study, tmp_path / "two", store, *two) == 0
    assert not list((store / "converted" / "shards").iterdir())
    one, spread = losses(tmp_path / "a"), losses(store)
    assert len(one) == 4
    assert sorted(one) == sorted(spread)
    for name, (first, last, tokens) in one.items():
        assert spread[name][:2] == pytest.approx((first, last), abs=1e-4)
        assert spread[name][2] == tokens
        assert last < first - 0.05, "it learned something"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["recipes.0.training.processes=5"], "`batch` 4 is fewer than 5 `processes`"),
        (
            ["recipes.0.training.processes=2", "recipes.0.channel={kind: dpo}"],
            "dpo is not trained in shards",
        ),
    ],
)
def test_what_cannot_be_sharded_is_refused(
    tmp_path: Path, capsys: Any, changes: list[str], message: str
) -> None:
    study = write_study(tmp_path / "study", references=1)
    capsys.readouterr()
    assert run(study, tmp_path / "run", tmp_path / "store", *changes) == 2
    assert message in capsys.readouterr().err
