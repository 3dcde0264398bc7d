"""Workers of one machine: what each is told before it imports torch."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from doublebind.execution import backends
from doublebind.execution.device import list_visible_gpus


class Started:
    """A process that is only said to run."""

    def __init__(self, workers: int, *, initargs: tuple[Any, ...], **more: Any) -> None:
        self.initargs = initargs

    def submit(self, call: Any, *args: Any) -> Future[Any]:
        return Future()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "ProcessPoolExecutor", Started)


def gpus_of(pool: backends.ProcessBackend) -> list[tuple[str, ...]]:
    processes: list[Any] = list(pool.process_places)
    return [process.initargs[1] for process in processes]


@pytest.mark.usefixtures("started")
def test_workers_take_the_gpus_in_turn_and_see_the_others_behind_their_own() -> None:
    pool = backends.ProcessBackend(3, ["4", "7"])
    for _ in range(3):
        pool.submit(print, affinity_key="", memory=0)
    assert gpus_of(pool) == [("4", "7"), ("7", "4"), ("4", "7")]


@pytest.mark.usefixtures("started")
def test_who_replaces_a_dead_worker_takes_its_gpu() -> None:
    pool = backends.ProcessBackend(2, ["0", "1"])
    first = pool.submit(print, affinity_key="", memory=0)
    pool.submit(print, affinity_key="", memory=0)
    first.set_exception(RuntimeError("killed"))
    pool.submit(print, affinity_key="", memory=0)
    assert gpus_of(pool) == [("1", "0"), ("0", "1")]


def test_a_worker_without_gpus_is_told_of_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"CUDA_VISIBLE_DEVICES": "3"})
    backends.initialise_process(2, ())
    assert os.environ == {"CUDA_VISIBLE_DEVICES": "3", "OMP_NUM_THREADS": "2"}
    backends.initialise_process(2, ("1", "0"))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1,0"
    assert list_visible_gpus() == ["1", "0"]


STARTED = """
import os, time
from doublebind.execution.backends import ProcessBackend

if __name__ == "__main__":
    print(ProcessBackend(1).submit(os.getpid, affinity_key="", memory=0).result(), flush=True)
    time.sleep(600)
"""


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "started.py"
    script.write_text(STARTED)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert alive(worker)
        parent.kill()
    deadline = time.monotonic() + 30
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(worker)


def alive(pid: int) -> bool:
    """Whether a process still runs; one that nobody has waited for does not."""
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
