"""`plan --pilot RUN` gives the power of a study, from the references of a finished run."""

import json
from pathlib import Path

import pytest
from tests.tiny_study import write_study

from doublebind.cli.main import main

Capture = pytest.CaptureFixture[str]


def test_plan_takes_power_from_a_pilots_references(tmp_path: Path, capsys: Capture) -> None:
    study, run, store = write_study(tmp_path / "s"), tmp_path / "run", tmp_path / "store"
    assert main(["run", str(study), "--out", str(run), "--store", str(store)]) == 0
    capsys.readouterr()
    argv = ["plan", str(study), "--store", str(store), "--json"]
    assert main(argv) == 0
    assert "--pilot" in json.loads(capsys.readouterr().out)["missing"]["power"]
    assert main([*argv, "--pilot", str(run)]) == 0
    found = json.loads(capsys.readouterr().out)
    power = found["power"]
    assert "power" not in found["missing"]
    assert set(power["planned"].values()) == {0.0}, "three references flag nobody"
    assert power["smallest_effect"] is None
    assert {row["references"] for row in power["others"]} == {19, 39, 59, 99}
    assert power["others"][0]["students"] == 20
    first = next(iter(power["components"].values()))
    assert first["n_teachers"] == 3
    assert "seed" in first["missing"]
    assert "seed" not in first
    assert main([*argv, "--pilot", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
