"""Our side of each timing script still runs; its rivals are in an environment of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.tiny_models import save_model

ROOT = Path(__file__).parents[2]
SMALL = ["--steps", "2", "--batch", "2", "--tokens", "32", "--student", "tiny"]


def worker(script: str, role: str, *more: str, steps: int = 2) -> list[dict[str, Any]]:
    """Run one worker, order its steps, and return what it told after each."""
    done = subprocess.run(
        [sys.executable, f"bench/{script}", "--role", role, *SMALL, *more],
        input="step\n" * steps, env={**os.environ, "HF_HUB_OFFLINE": "1"}, cwd=ROOT,
        capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ready, *reports = [json.loads(line[1:]) for line in done.stdout.splitlines() if line[:1] == "@"]
    assert ready == {"ready": True}
    return reports


@pytest.mark.slow
@pytest.mark.parametrize("script", ["sft_step.py", "dpo_step.py"])
def test_a_step_is_timed_each_turn_and_reported_at_the_end(script: str) -> None:
    reports = worker(script, "ours")
    assert [set(each) for each in reports] == [{"seconds", "cpu"}, {"seconds", "cpu", "report"}]
    assert reports[-1]["report"]["loss_last"] > 0


@pytest.mark.slow
def test_students_of_a_cached_teacher_are_timed(tmp_path: Path) -> None:
    more = ("--cache", str(tmp_path), "--teacher", "tiny", "--heldout", "1")
    (scored,) = worker("kd_grid.py", "score", *more, steps=1)
    assert scored["report"]["bytes"] > 0
    reports = worker("kd_grid.py", "ours", *more)
    assert len(reports) == 2
    assert reports[-1]["report"]["kl"] > 0


@pytest.mark.slow
def test_a_step_is_told_with_the_share_of_its_products(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    small = ["--steps", "3", "--batch", "2", "--shortest", "20", "--longest", "30", "--rank", "2"]
    done = subprocess.run(
        [sys.executable, "bench/step.py", str(tmp_path / "model"), "--peer", str(ROOT), *small],
        env={**os.environ, "HF_HUB_OFFLINE": "1"}, cwd=ROOT, capture_output=True, text=True,
        timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["ours"]["loss_last"] == report["peer"]["loss_last"]  # one tree with itself
    assert 0 < report["ours"]["gemm_share"] < 1
    rates = [report[name]["tokens_per_cpu_second"] for name in ("ours", "peer")]
    assert report["ratio"] == pytest.approx(rates[0] / rates[1])


@pytest.mark.slow
def test_the_gpu_script_keeps_what_ran_and_says_what_did_not(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    only = [f"--part={name}" for name in ("audit", "loss_head")]
    done = subprocess.run(
        ["bench/gpu.sh", str(out), "--device", "cpu", *only],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    parts = json.loads(out.read_text())["parts"]
    assert set(parts) == {"audit", "loss_head"}
    assert parts["audit"]["rc"] == 0
    assert parts["audit"]["result"]["model"] == "terrarium/m0"
    assert parts["loss_head"]["rc"] == 0 or "tail" in parts["loss_head"]  # TRL may be missing
