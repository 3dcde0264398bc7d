import json
import multiprocessing
import os
import platform
import signal
from pathlib import Path

import pytest

from doublebind.execution.executor import Executor, Job
from doublebind.execution.ledger import Ledger, lock_run, read_ledger
from doublebind.execution.store import Store
from doublebind.schema.errors import ModelError, PackError, RunError, StoreError
from doublebind.schema.executor import LocalOptions


def write(out: Path, *, text: str) -> None:
    (out / "text").write_text(text)


def fail(out: Path, *, kind: str) -> None:
    if kind == "user":
        raise ModelError("model x: broken; use another")
    if kind == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "disk":
        raise OSError(28, "No space left on device")
    raise ZeroDivisionError


def executor(folder: Path, workers: int = 1) -> Executor:
    on = LocalOptions(kind="local", workers=workers)
    return Executor(Store(folder / "store"), Ledger(folder / "ledger.jsonl"), on)


def jobs(n: int) -> list[Job]:
    return [Job("text", f"{i:02d}", write, {"text": str(i)}) for i in range(n)]


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_back_in_order_and_each_cell_is_done_once(
    tmp_path: Path, workers: int
) -> None:
    wanted = [*jobs(5), *jobs(2)]
    paths = executor(tmp_path, workers).map(wanted)
    assert [(p / "text").read_text() for p in paths] == ["0", "1", "2", "3", "4", "0", "1"]
    executor(tmp_path, workers).map(wanted)
    done = [e.artefact_key for e in read_ledger(tmp_path / "ledger.jsonl") if e.status == "done"]
    assert sorted(done) == ["00", "01", "02", "03", "04"]


def test_what_another_run_made_is_noted_as_cached(tmp_path: Path) -> None:
    executor(tmp_path).map(jobs(1))
    (tmp_path / "ledger.jsonl").unlink()
    executor(tmp_path).map(jobs(1))
    entries = read_ledger(tmp_path / "ledger.jsonl")
    assert [(e.status, e.cached) for e in entries] == [("done", True)]


def test_without_a_run_directory_the_store_alone_is_kept(tmp_path: Path) -> None:
    on = LocalOptions(kind="local", workers=1)
    Executor(Store(tmp_path / "store"), Ledger(None), on).map([*jobs(2), *jobs(1)])
    assert executor(tmp_path).store.has("text", "01")
    assert [each.name for each in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failure_stops_no_other_job(tmp_path: Path, workers: int) -> None:
    mixed = [Job("text", "aa", fail, {"kind": "user"}), *jobs(2)]
    with pytest.raises(ModelError, match="model x: broken"):
        executor(tmp_path, workers).map(mixed)
    last = {e.artefact_key: e.status for e in read_ledger(tmp_path / "ledger.jsonl")}
    assert last == {"aa": "failed", "00": "done", "01": "done"}


def test_our_own_bugs_are_not_dressed_up(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        executor(tmp_path).map([Job("text", "aa", fail, {"kind": "bug"}), *jobs(1)])
    assert executor(tmp_path).store.has("text", "00")


def test_a_full_disk_stops_at_once(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="disk full"):
        executor(tmp_path).map([Job("text", "aa", fail, {"kind": "disk"}), *jobs(1)])
    assert not executor(tmp_path).store.has("text", "00")


def die_once(out: Path, *, mark: Path) -> None:
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    (out / "text").write_text("survived")


def test_a_cell_whose_worker_died_is_tried_again_and_the_ledger_says_why(tmp_path: Path) -> None:
    mixed = [Job("text", "aa", die_once, {"mark": tmp_path / "mark"}), *jobs(2)]
    paths = executor(tmp_path, 2).map(mixed)
    assert [(p / "text").read_text() for p in paths] == ["survived", "0", "1"]
    entries = read_ledger(tmp_path / "ledger.jsonl")
    assert sorted(e.artefact_key for e in entries if e.status == "done") == ["00", "01", "aa"]
    lost = [e for e in entries if e.status == "failed" and e.artefact_key == "aa"]
    assert len(lost) == 1
    assert "worker was lost, 1 of 2 times" in (lost[0].error or "")


def test_a_cell_that_kills_every_worker_is_one_line_and_loses_no_other(tmp_path: Path) -> None:
    mixed = [Job("text", "aa", fail, {"kind": "dies"}), *jobs(1)]
    with pytest.raises(RunError, match="text aa: its worker was lost, 2 of 2 times"):
        executor(tmp_path, 2).map(mixed)
    last = {e.artefact_key: e.status for e in read_ledger(tmp_path / "ledger.jsonl")}
    assert last == {"aa": "failed", "00": "done"}


@pytest.mark.parametrize("workers", [1, 2])
def test_the_ledger_names_node_and_process(tmp_path: Path, workers: int) -> None:
    executor(tmp_path, workers).map(jobs(1))
    done = [e for e in read_ledger(tmp_path / "ledger.jsonl") if e.status == "done"]
    assert done[0].node == platform.node()
    assert (done[0].pid == os.getpid()) == (workers == 1)


def test_a_torn_last_line_is_ignored_and_cut(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    executor(tmp_path).map(jobs(1))
    whole = path.read_text()
    path.write_text(whole + '{"cell": "01", "kin')
    assert len(read_ledger(path)) == 2
    executor(tmp_path).map(jobs(2))
    assert all(json.loads(line) for line in path.read_text().splitlines())
    assert path.read_text().startswith(whole)


def test_a_damaged_ledger_is_named_with_its_line(tmp_path: Path) -> None:
    executor(tmp_path).map(jobs(2))
    path = tmp_path / "ledger.jsonl"
    path.write_text("nonsense\n" + path.read_text())
    with pytest.raises(RunError, match=r"ledger\.jsonl:1"):
        Ledger(path)


def hold(folder: Path, held: object, release: object) -> None:
    with lock_run(folder):
        held.set()  # type: ignore[attr-defined]
        release.wait(30)  # type: ignore[attr-defined]


def test_a_second_process_is_told_who_holds_the_run(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    held, release = context.Event(), context.Event()
    holder = context.Process(target=hold, args=(tmp_path, held, release))
    holder.start()
    assert held.wait(30)
    with pytest.raises(RunError, match=f"process {holder.pid}"), lock_run(tmp_path):
        pass
    release.set()
    holder.join()
    with lock_run(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_errors_survive_a_process_boundary() -> None:
    import pickle

    from doublebind.schema.errors import MissingExtra

    for error in (PackError("a", "b"), MissingExtra("Inspect logs", "inspect")):
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert again.problems == error.problems
