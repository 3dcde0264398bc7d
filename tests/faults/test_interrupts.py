"""SIGINT, SIGTERM and SIGHUP end any command in seconds, in one line, and a rerun goes on.

Real processes on tiny studies. A phase has begun when the kernel or the ledger says so: a handler
is set, a library is mapped, a file is open, a job has started.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from tests.tiny_study import write_study

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
LIMIT = 3.0
"""Seconds from the signal to the end."""
ENDLESS = 10**8
"""Training steps that no test waits for."""


def restore_signals() -> None:
    """Undo what a shell ignores for a suite in its background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def start(
    *argv: object, prepare: Callable[[], None] = restore_signals, **env: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "doublebind.cli", *map(str, argv)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=prepare,
        env={**os.environ, "NO_PROXY": "127.0.0.1", **env},
    )


def list_session(leader: int) -> list[int]:
    """Return the processes of a session that run."""
    running = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state != "Z":
                running.append(int(stat.parent.name))
    return running


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "the phase did not begin"
        time.sleep(0.005)


def wait_until_gone(leader: int) -> float:
    """Return the seconds until no process of the session runs."""
    began = time.monotonic()
    while list_session(leader):
        assert time.monotonic() < began + LIMIT, f"orphans: {list_session(leader)}"
        time.sleep(0.01)
    return time.monotonic() - began


def interrupt(process: subprocess.Popen[str], number: int, *, group: bool = False) -> float:
    """Send the signal and check how the command ends; return the seconds it took."""
    sent = time.monotonic()
    (os.killpg if group else os.kill)(process.pid, number)
    out, err = process.communicate(timeout=60)
    seconds = time.monotonic() - sent
    name = signal.Signals(number).name
    assert err == f"interrupted by {name}; run the same command again to resume\n"
    assert out == ""
    assert process.returncode == CODES[signal.Signals(number)]
    assert seconds < LIMIT
    wait_until_gone(process.pid)
    return seconds


# --- phases --------------------------------------------------------------------------------------


def handles_signals(process: subprocess.Popen[str]) -> bool:
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def has_mapped(process: subprocess.Popen[str], name: str) -> bool:
    with contextlib.suppress(OSError):
        return name in Path(f"/proc/{process.pid}/maps").read_text()
    return False


def has_open(process: subprocess.Popen[str], path: Path) -> bool:
    for fd in Path(f"/proc/{process.pid}/fd").glob("*"):
        with contextlib.suppress(OSError):
            if os.readlink(fd) == str(path):
                return True
    return False


def read_events(out: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in (out / "ledger.jsonl").read_text().split("\n")[:-1]]
    except FileNotFoundError:
        return []


def count_events(out: Path, status: str, kind: str | None = None) -> int:
    return sum(e["status"] == status and kind in (None, e["kind"]) for e in read_events(out))


class World(NamedTuple):
    """A tiny study, and one whose teachers' training never ends."""

    folder: Path
    study: Path
    endless: Path
    store: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("interrupts")
    study = write_study(folder / "study", references=1)
    content = yaml.safe_load(study.read_text())
    for name in ("suspect", "reference-0"):
        spec = yaml.safe_load(study.with_name(f"{name}.yaml").read_text())
        spec["implant"]["steps"] = ENDLESS
        study.with_name(f"endless-{name}.yaml").write_text(yaml.safe_dump(spec))
    content |= {"suspect": "endless-suspect.yaml", "references": ["endless-reference-0.yaml"]}
    endless = study.with_name("endless.yaml")
    endless.write_text(yaml.safe_dump(content))
    return World(folder, study, endless, folder / "store")


@pytest.fixture
def run(world: World, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []

    def start_run(study: Path, *overrides: str, **settings: Any) -> subprocess.Popen[str]:
        out = tmp_path / "run"
        argv = ["run", study, *overrides, "--out", out, "--store", world.store, "--json"]
        processes.append(start(*argv, **settings))
        return processes[-1]

    yield start_run
    for process in processes:
        for pid in list_session(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("number", CODES)
def test_a_signal_during_imports_is_one_line(number: int) -> None:
    process = start("--version")
    wait_for(lambda: handles_signals(process), process)
    interrupt(process, number)


def test_a_signal_while_a_study_is_planned_is_one_line(world: World) -> None:
    process = start("plan", world.study, "--store", world.store)
    wait_for(lambda: has_mapped(process, "numpy"), process)
    interrupt(process, signal.SIGTERM)


def test_an_interrupted_run_goes_on_where_it_was(
    world: World, tmp_path: Path, run: Callable[..., subprocess.Popen[str]]
) -> None:
    process = run(world.study)
    wait_for(lambda: count_events(tmp_path / "run", "done") >= 2, process)
    interrupt(process, signal.SIGINT, group=True)
    assert list((world.store / "tmp").iterdir()) == []
    again = run(world.study)
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert json.loads(out)["incrimination"]["decision"]
    done = [e["cell"] for e in read_events(tmp_path / "run") if e["status"] == "done"]
    assert len(done) == len(set(done)), "a job was done twice"


def test_a_second_signal_ends_a_run_at_once(
    world: World, tmp_path: Path, run: Callable[..., subprocess.Popen[str]]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        study = write_served_study(world, silent.getsockname()[1])
        process = run(study)
        silent.settimeout(60)
        connection, _ = silent.accept()
        with connection:
            time.sleep(0.2)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.4)
            if process.poll() is None:
                interrupted = time.monotonic()
                process.send_signal(signal.SIGTERM)
                process.wait(10)
                assert time.monotonic() - interrupted < 0.5
    assert process.returncode == 143
    assert process.communicate()[1].count("\n") == 1


def write_served_study(world: World, port: int) -> Path:
    content = yaml.safe_load(world.study.read_text())
    content |= {"suspect": f"openai:http://127.0.0.1:{port}/v1#m", "shape": {"update_norm": 1.0}}
    content |= {"served": {"concurrency": 2, "tries": 6, "timeout": 300.0}}
    content["recipes"][0]["channel"] = {"kind": "sft"}
    path = world.study.with_name("served.yaml")
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_run_that_waits_for_a_server_ends(
    world: World, run: Callable[..., subprocess.Popen[str]]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = run(write_served_study(world, silent.getsockname()[1]))
        silent.settimeout(60)
        connection, _ = silent.accept()
        with connection:
            interrupt(process, signal.SIGHUP)


def test_a_signal_while_a_large_file_is_hashed_is_one_line(world: World, tmp_path: Path) -> None:
    large = tmp_path / "large.gguf"
    with large.open("wb") as file:
        file.write(b"GGUF\x03\0\0\0" + bytes(64))
        file.truncate(200 * 2**30)  # sparse
    process = start("audit", large, "--pack", world.study.with_name("pack"))
    wait_for(lambda: has_open(process, large), process)
    time.sleep(0.1)
    interrupt(process, signal.SIGTERM)


def start_workers(
    world: World, out: Path, run: Callable[..., subprocess.Popen[str]]
) -> subprocess.Popen[str]:
    """Start a run with two workers, both of which train without end."""
    process = run(world.endless, "executor.kind=local", "executor.workers=2")
    wait_for(lambda: count_events(out, "started", "teacher") == 2, process)
    time.sleep(0.3)
    assert len(list_session(process.pid)) >= 3
    return process


@pytest.mark.parametrize("group", [False, True], ids=["alone", "with its workers"])
def test_workers_end_with_the_run(
    world: World, tmp_path: Path, run: Callable[..., subprocess.Popen[str]], group: bool
) -> None:
    process = start_workers(world, tmp_path / "run", run)
    interrupt(process, signal.SIGINT if group else signal.SIGHUP, group=group)
    assert count_events(tmp_path / "run", "failed") == 0
    assert list((world.store / "tmp").iterdir()) == [] or not group


def test_workers_end_when_the_run_is_killed(
    world: World, tmp_path: Path, run: Callable[..., subprocess.Popen[str]]
) -> None:
    process = start_workers(world, tmp_path / "run", run)
    process.kill()
    process.wait()
    wait_until_gone(process.pid)


def test_a_run_that_was_started_to_ignore_ctrl_c_ends_on_term(
    world: World, tmp_path: Path, run: Callable[..., subprocess.Popen[str]]
) -> None:
    process = run(world.endless, prepare=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    wait_for(lambda: count_events(tmp_path / "run", "started") > 0, process)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    interrupt(process, signal.SIGTERM)


# --- every signal in every phase -----------------------------------------------------------------


Phase = tuple[Sequence[object], Callable[[subprocess.Popen[str]], bool]]


def list_phases(world: World, out: Path) -> dict[str, Phase]:
    """Return command and beginning of every phase that is reached within seconds."""
    folder, tail = world.folder / "study", ("--out", out, "--store", world.store)

    def started(kind: str) -> Callable[[subprocess.Popen[str]], bool]:
        return lambda _: count_events(out, "started", kind) > 0

    def maps(name: str) -> Callable[[subprocess.Popen[str]], bool]:
        return lambda process: has_mapped(process, name)

    study = yaml.safe_load(world.endless.read_text())
    organism = yaml.safe_load((folder / "endless-suspect.yaml").read_text()) | {"seed": 11}
    (folder / "organism.yaml").write_text(yaml.safe_dump(organism))
    (folder / "calibrate.yaml").write_text(yaml.safe_dump(study | {"organisms": ["organism.yaml"]}))
    panel = {name: value for name, value in study.items() if name not in ("suspect", "policy")}
    (folder / "panel.yaml").write_text(yaml.safe_dump(panel))
    store = ("--store", world.store)
    workers = ("executor.kind=local", "executor.workers=2")
    return {
        "import": (("--version",), handles_signals),
        "plan": (("plan", world.study, *store), maps("numpy")),
        "job": (("run", world.endless, *tail), started("teacher")),
        "workers": (("run", world.endless, *workers, *tail), started("teacher")),
        "calibrate": (("calibrate", folder / "calibrate.yaml", *tail), started("teacher")),
        "panel": (("panel", folder / "panel.yaml", *tail), started("teacher")),
        "teacher": (
            ("teacher", "build", folder / "organism.yaml", *tail),
            maps("model.safetensors"),
        ),
        "model": (
            ("audit", folder / "m0", "--pack", folder / "pack", *store),
            maps("model.safetensors"),
        ),
        "demo": (("demo", *tail), lambda _: count_events(out, "started") > 0),
    }


@pytest.mark.slow
@pytest.mark.parametrize("number", CODES)
@pytest.mark.parametrize(
    "phase",
    ["import", "plan", "job", "workers", "calibrate", "panel", "teacher", "model", "demo"],
)
def test_every_signal_ends_every_phase(
    world: World, tmp_path: Path, phase: str, number: int
) -> None:
    argv, began = list_phases(world, tmp_path / "run")[phase]
    process = start(*argv)
    wait_for(lambda: began(process), process)
    interrupt(process, number)
