"""A run killed at any moment, with all its processes, ends the same when it is started again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.tiny_study import write_study

ROOT = Path(__file__).parents[2]
MINIATURE = ROOT / "studies" / "terrarium-miniature" / "study.yaml"


def start(study: Path, out: Path, store: Path) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "doublebind.cli", "run", str(study), "--out", str(out)]
    return subprocess.Popen(
        [*argv, "--store", str(store), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A suite in the background of a shell ignores SIGINT, and so would its children.
        preexec_fn=restore_sigint,
    )


def restore_sigint() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finish(process: subprocess.Popen[str]) -> dict:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(out)


def numbers(verdict: dict) -> dict:
    return {key: verdict[key] for key in ("direct_audit", "incrimination", "strength", "missing")}


def torment(study: Path, folder: Path, *, kills: int, seed: int) -> None:
    """Run once in peace, then `kills` times with one SIGKILL at a random moment each."""
    rng = random.Random(seed)
    began = time.monotonic()
    expected = numbers(finish(start(study, folder / "peace", folder / "store-peace")))
    duration = time.monotonic() - began
    for number in range(kills):
        out, store = folder / f"run-{number}", folder / f"store-{number}"
        process = start(study, out, store)
        time.sleep(rng.uniform(0.0, duration))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert numbers(finish(start(study, out, store))) == expected
        entries = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
        done = [entry["cell"] for entry in entries if entry["status"] == "done"]
        assert len(done) == len(set(done)), "a cell was done twice"


def test_a_killed_run_resumes_to_the_same_verdict(tmp_path: Path) -> None:
    torment(write_study(tmp_path / "study"), tmp_path, kills=3, seed=0)


@pytest.mark.slow
def test_thirty_killed_runs_of_the_miniature(tmp_path: Path) -> None:
    torment(MINIATURE, tmp_path, kills=30, seed=1)


def test_a_second_process_on_the_same_run_is_turned_away(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study")
    first = start(study, tmp_path / "run", tmp_path / "store")
    lock = tmp_path / "run" / ".lock"
    while not (lock.exists() and lock.read_text()):
        assert first.poll() is None
        time.sleep(0.05)
    second = start(study, tmp_path / "run", tmp_path / "store")
    _, err = second.communicate(timeout=60)
    assert second.returncode == 2
    assert err.count("\n") == 1
    assert str(first.pid) in err
    finish(first)


def test_an_interrupted_run_exits_130(tmp_path: Path) -> None:
    process = start(write_study(tmp_path / "study"), tmp_path / "run", tmp_path / "store")
    while not (tmp_path / "run" / "ledger.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "resume" in err
