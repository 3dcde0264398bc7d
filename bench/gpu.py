"""Runs what a GPU has to show, each part under its own time limit, and writes one JSON document.

`bench/gpu.sh OUT.json` starts it. `--device cpu` tries the script itself where there is no GPU: the
same parts, smaller, and no speed in them means anything.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
LIMIT_S = 530
"""For all parts together."""


class Part(NamedTuple):
    """One command, and the seconds that it may take."""

    name: str
    seconds: int
    command: list[str]
    json_output: bool = True


def list_parts(device: str, scratch: Path) -> list[Part]:
    """Return the parts, the most telling first: what time runs out for is said to be missing."""
    python = sys.executable
    rivals = ROOT / ".venv-bench" / "bin" / "python"
    bench = str(rivals) if rivals.exists() else python
    on = ["--device", device]
    cli = [python, "-m", "doublebind.cli"]
    miniature = ["studies/terrarium-miniature/study.yaml", f"device={device}"]
    small = device == "cpu"
    tests = ["tests/gpu", "tests/unit/training/test_triton_kernels.py"]
    steps = ["--steps", "2"] if small else []
    head = ["--rows", "32", "--reps", "1", "--vocab", "1024"] if small else []

    def run(name: str, workers: int, seeds: int) -> list[str]:
        where = ["--out", str(scratch / name), "--store", str(scratch / f"store-{name}")]
        return [*cli, "run", *miniature, f"executor.workers={workers}", f"seeds={seeds}", *where]

    return [
        Part("tests", 150, [python, "-m", "pytest", "-q", *tests], json_output=False),
        Part("miniature", 120, [*run("one", 1, 4), "--json"]),
        Part("eight_students", 120, [*run("eight", 8, 4), "--json"]),
        Part("audit", 60, [*cli, "audit", "terrarium/m0", "--pack", "terrarium", *on, "--json"]),
        Part("loss_head", 90, [bench, "bench/loss_head.py", "--json", *on, *head]),
        Part("sft_step", 120, [bench, "bench/sft_step.py", "--json", *on, *steps]),
        Part("kd_grid", 180, [bench, "bench/kd_grid.py", "--json", *on, *steps]),
    ]


def run_part(part: Part, limit: float) -> dict[str, Any]:
    """Return exit code, seconds and result of a part; of one that fails, the end of its output."""
    started = time.perf_counter()
    try:
        done = subprocess.run(
            part.command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=min(part.seconds, limit),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        seconds = round(time.perf_counter() - started, 1)
        tail = error.stdout if isinstance(error.stdout, str) else ""
        return {"seconds": seconds, "missing": "ran out of time", "tail": tail[-500:]}
    row: dict[str, Any] = {
        "rc": done.returncode,
        "seconds": round(time.perf_counter() - started, 1),
    }
    lines = done.stdout.strip().splitlines()
    if done.returncode:
        return row | {"tail": (done.stdout + done.stderr)[-1500:]}
    if not part.json_output:
        return row | {"result": lines[-1] if lines else ""}
    try:
        return row | {"result": json.loads(done.stdout)}
    except ValueError:
        return row | {"result": lines[-3:]}


def describe_machine(device: str) -> dict[str, Any]:
    """Return processor, cores and, where there is one, the GPU."""
    import torch

    facts = {
        "device": device,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name(0)
        facts["gpu_gib"] = round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)
    return facts


def main() -> None:
    """Run the parts and write the document, after each part anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--part", action="append", help="only these parts")
    arguments = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    started = time.perf_counter()
    report: dict[str, Any] = {"machine": describe_machine(arguments.device), "parts": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for part in list_parts(arguments.device, Path(scratch)):
            if arguments.part and part.name not in arguments.part:
                continue
            left = LIMIT_S - (time.perf_counter() - started)
            row = run_part(part, left) if left > 5 else {"missing": "no time was left"}
            report["parts"][part.name] = row
            report["seconds"] = round(time.perf_counter() - started, 1)
            arguments.out.write_text(json.dumps(report, indent=1), encoding="utf-8")
            print(part.name, row.get("rc", row.get("missing")), row.get("seconds"))


if __name__ == "__main__":
    main()
