"""Errors cross processes, ledgers survive torn writes, and a store is not believed unread."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import pickle
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from doublebind.execution import store as store_module
from doublebind.execution.append_log import AppendLog
from doublebind.execution.executor import Executor, Job, make_artefact
from doublebind.execution.ledger import Ledger, lock_run, read_ledger
from doublebind.execution.store import Store
from doublebind.schema import errors
from doublebind.schema.errors import (
    DoublebindError,
    MissingExtra,
    NothingToDistil,
    RunError,
    StoreError,
)
from doublebind.schema.executor import LocalOptions
from doublebind.schema.model_source import LedgerEntry, ModelSource

ERRORS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, DoublebindError)
]


def build_error(kind: type[DoublebindError], problems: list[str]) -> DoublebindError:
    if kind is MissingExtra:
        return MissingExtra(*(problems * 2)[:2])
    return kind(*problems)


# --- E3 ------------------------------------------------------------------------------------------


@given(
    st.sampled_from(ERRORS),
    st.lists(st.text(max_size=40), min_size=1, max_size=5),
    st.dictionaries(st.sampled_from(["errno", "model", "note"]), st.integers() | st.text()),
)
@settings(max_examples=300, derandomize=True, deadline=None)
def test_every_error_crosses_processes_as_itself(
    kind: type[DoublebindError], problems: list[str], attributes: dict[str, Any]
) -> None:
    error = build_error(kind, problems)
    error.add_note("in a job")
    for name, value in attributes.items():
        if name != "errno":  # of the system's own errors
            setattr(error, name, value)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert again.problems == error.problems
    assert vars(again) == vars(error)
    assert str(again) == str(error)


def raise_error(out: Path, *, kind: str, problems: tuple[str, ...] = ("a: b; c",)) -> None:
    if kind == "exits":
        raise SystemExit(0)
    if kind == "odd":
        raise type("OddError", (Exception,), {})("odd", lambda: None)
    if kind == "unpicklable":
        raise ValueError("odd", lambda: None)
    if kind == "surrogate":
        raise ValueError("\ud800")
    raise build_error(getattr(errors, kind), list(problems))


def make_executor(folder: Path, workers: int) -> Executor:
    on = LocalOptions(kind="local", workers=workers)
    return Executor(Store(folder / "store"), Ledger(folder / "ledger.jsonl"), on)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_error_of_a_worker_comes_back_as_itself(tmp_path: Path, workers: int) -> None:
    with make_executor(tmp_path, workers) as executor:
        # A failure of the store ends all work.
        # Nothing to distil is no failure: the artefact then holds the reason.
        kinds = [kind for kind in ERRORS if kind is not NothingToDistil]
        for number, kind in enumerate(sorted(kinds, key=lambda kind: kind is StoreError)):
            problems = ("first: x; do y", "second: x; do y")
            inputs = {"kind": kind.__name__, "problems": problems}
            jobs = [
                Job("text", f"{number}{letter}", raise_error, inputs) for letter in ("aa", "bb")
            ]
            with pytest.raises(DoublebindError) as caught:
                executor.map(jobs)
            assert type(caught.value) is kind
            assert caught.value.problems == build_error(kind, list(problems)).problems


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", ["odd", "unpicklable", "exits", "surrogate"])
def test_an_unknown_error_names_its_job_and_leaves_its_traceback(
    tmp_path: Path, workers: int, kind: str
) -> None:
    job = Job("text", "aabbccddeeff", raise_error, {"kind": kind})
    with pytest.raises(Exception, match=r"odd|SystemExit|\ud800") as caught:
        make_executor(tmp_path, workers).map([job])
    assert "in text aabbccddeeff, on " in caught.value.__notes__[0]
    (failed,) = [e for e in read_ledger(tmp_path / "ledger.jsonl") if e.status == "failed"]
    assert failed.error
    assert "in raise_error" in (failed.traceback or "")


# --- E4, E10: lines ------------------------------------------------------------------------------


def test_a_ledger_is_split_at_newlines_only(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    text = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\rh"
    for key in (text, "next"):
        Ledger(path).write(
            LedgerEntry(artefact_key=key, kind=text, status="done", started=0, pid=1, error=text)
        )
    assert [entry.artefact_key for entry in read_ledger(path)] == [text, "next"]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 90), st.integers(1, 40), st.sampled_from(["whole", "full", "dies"])
        )
    )
)
@settings(max_examples=200, derandomize=True, deadline=None)
def test_short_writes_and_full_disks_lose_no_line(
    tmp_path_factory: pytest.TempPathFactory, writes: list[tuple[int, int, str]]
) -> None:
    log = AppendLog(tmp_path_factory.mktemp("log") / "log.jsonl", "restore it")
    whole = os.write
    expected = []
    for number, (room, piece, end) in enumerate(writes):
        left = [room if end != "whole" else 10**6]

        def write(fd: int, content: bytes, left: list[int] = left, piece: int = piece) -> int:
            if not left[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            size = whole(fd, bytes(content)[: min(piece, left[0])])
            left[0] -= size
            return size

        os.write = write
        try:
            log.append(json.dumps({"number": number, "text": "\u00e9" * 20}, ensure_ascii=False))
            expected.append(number)
        except OSError:
            pass
        finally:
            os.write = whole
        if end == "dies":
            log.cut_torn_line()
        assert [entry["number"] for entry in log.read(json.loads)] == expected


@pytest.mark.parametrize("torn", ['{"cell": "01", "kin', '{"a": {"b": 1}', '{"a": tru', "{"])
def test_a_torn_line_in_the_middle_is_skipped_and_reported(
    tmp_path: Path, torn: str, caplog: pytest.LogCaptureFixture
) -> None:
    log = AppendLog(tmp_path / "log.jsonl", "restore it")
    log.append('{"a": 1}')
    with log.path.open("a") as file:
        file.write(torn)
    log.append('{"b": 2}')
    assert log.read(json.loads) == [{"a": 1}, {"b": 2}]
    assert "log.jsonl:2: an unfinished line" in caplog.text
    log.path.write_text(f'{{"a": 1}}\n{torn}\n{{"b": 2}}\n')  # as earlier versions left it
    assert log.read(json.loads) == [{"a": 1}, {"b": 2}]


def test_a_torn_number_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    log = AppendLog(tmp_path / "done", "restore it")
    log.append("1")
    with log.path.open("a") as file:
        file.write("23")  # of 234
    log.append("5")
    assert log.read(int) == [1, 5]


# --- E10: private folders ------------------------------------------------------------------------

WRITER = """
import os, platform, sys, time
from doublebind.execution.store import Store

pid, node = int(sys.argv[2]), sys.argv[3]
os.getpid, platform.node = (lambda: pid), (lambda: node)
with Store(sys.argv[1]).publish("kind", "ab12") as out:
    (out / "file").write_text("work")
    print(out, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def start_writer(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], Path]]]:
    processes = []

    def start(pid: int, node: str) -> tuple[subprocess.Popen[str], Path]:
        argv = [sys.executable, "-c", WRITER, str(tmp_path), str(pid), node]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_a_living_writer_in_another_container_keeps_its_folder(
    tmp_path: Path, start_writer: Callable[..., tuple[subprocess.Popen[str], Path]]
) -> None:
    """Containers of one host name number their processes apart."""
    writer, folder = start_writer(999_999_999, platform.node())
    Store(tmp_path)
    assert (folder / "file").exists()
    writer.kill()
    writer.wait()
    Store(tmp_path)
    assert not folder.exists()


def test_a_dead_writer_whose_number_lives_is_swept(
    tmp_path: Path, start_writer: Callable[..., tuple[subprocess.Popen[str], Path]]
) -> None:
    writer, folder = start_writer(os.getpid(), "another-name-of-this-machine")
    writer.kill()
    writer.wait()
    Store(tmp_path)
    assert not folder.exists()


def test_a_folder_of_another_machine_is_swept_when_it_is_old(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folders = [tmp_path / "tmp" / name for name in ("7-x@elsewhere", ".7-y@elsewhere")]
    for folder in folders:
        folder.mkdir()
    Store(store.root)
    assert all(folder.exists() for folder in folders)
    past = time.time() - store_module.ABANDONED_AFTER - 60
    for folder in folders:
        os.utime(folder, (past, past))
    Store(store.root)
    assert not any(folder.exists() for folder in folders)


def test_a_store_works_where_files_cannot_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    store = Store(tmp_path)
    with store.publish("kind", "ab12") as out:
        (out / "file").touch()
        Store(tmp_path)
        assert (out / "file").exists(), "without locks a living writer looks like a dead one"
    store.add_line("list", "{}")
    assert store.has("kind", "ab12")
    assert store.lines("list") == ["{}"]


# --- B5 ------------------------------------------------------------------------------------------


def record_protocol(store: Store, protocol: Any) -> int:
    from doublebind.runs import manifest

    return manifest.record_protocol(store, protocol)


def meet(root: str, number: int, start: Any, counts: Any) -> None:
    store = Store(root)
    start.wait()
    protocol: Any = SimpleNamespace(suspect="s" * 64, hash=f"{number:064x}")
    counts.put((number, record_protocol(store, protocol)))


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_forty_protocols_at_once_are_forty_meetings(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOUBLEBIND_CACHE", str(tmp_path / "cache"))
    root = str(tmp_path / "store") if kind == "local" else f"local://{tmp_path / 'store'}"
    for suspect in ("other", "s" * 64):  # object stores have no folders
        (tmp_path / "store" / "suspects" / suspect).mkdir(parents=True)
    first: Any = SimpleNamespace(suspect="other", hash="0")
    record_protocol(Store(root), first)  # imports what its writers need, once
    context = multiprocessing.get_context("fork")
    start, counts = context.Barrier(40), context.Queue()
    writers = [context.Process(target=meet, args=(root, n, start, counts)) for n in range(40)]
    for writer in writers:
        writer.start()
    found = dict(counts.get(timeout=120) for _ in writers)
    for writer in writers:
        writer.join()
    assert len(Store(root).lines("suspects/" + "s" * 64)) == 40
    # Of any two that began at once, one at least knows of the other.
    assert sum(found.values()) >= 40 * 39 // 2
    late: Any = SimpleNamespace(suspect="s" * 64, hash="f" * 64)
    assert record_protocol(Store(root), late) == 40


def test_a_protocol_that_was_noted_twice_counts_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for first in ("2026-01-01T00:00:00", "2026-01-02T00:00:00"):
        line = {"protocol_hash": "a" * 64, "first": first}
        store.add_line("suspects/" + "s" * 64, json.dumps(line))
    other: Any = SimpleNamespace(suspect="s" * 64, hash="b" * 64)
    assert record_protocol(store, other) == 1


# --- B6 ------------------------------------------------------------------------------------------


def write_table(out: Path, *, text: str) -> None:
    (out / "sub").mkdir()
    (out / "sub" / "table").write_text(text)
    (out / "weights").write_bytes(bytes(1000))


def copy_table(out: Path, *, table: Path) -> None:
    shutil.copytree(table / "sub", out / "sub")


def flip_bit(folder: Path) -> None:
    content = bytearray((folder / "weights").read_bytes())
    content[500] ^= 1
    times = (folder / "weights").stat()
    (folder / "weights").write_bytes(content)
    os.utime(folder / "weights", ns=(times.st_atime_ns, times.st_mtime_ns))


def truncate(folder: Path) -> None:
    os.truncate(folder / "sub" / "table", 0)


def delete_file(folder: Path) -> None:
    (folder / "sub" / "table").unlink()


def add_file(folder: Path) -> None:
    (folder / "sub" / "more").touch()


def replace_by_folder(folder: Path) -> None:
    (folder / "weights").unlink()
    (folder / "weights").mkdir()


def replace_by_link(folder: Path) -> None:
    (folder / "weights").unlink()
    (folder / "weights").symlink_to(folder / "sub" / "table")


def replace_by_pipe(folder: Path) -> None:
    (folder / "weights").unlink()
    os.mkfifo(folder / "weights")


def empty_seal(folder: Path) -> None:
    (folder / "artefact.json").write_text("")


def swap(folder: Path) -> None:
    other = folder.parents[1] / "cd" / "cd34"
    for source, target in ((folder, "x"), (other, folder), (folder.with_name("x"), other)):
        source.rename(folder.with_name("x") if target == "x" else target)


def swap_files(folder: Path) -> None:
    other = folder.parents[1] / "cd" / "cd34"
    shutil.copy(other / "sub" / "table", folder / "sub" / "table")


DAMAGE = [
    *(flip_bit, truncate, delete_file, add_file, replace_by_folder, replace_by_link),
    *(replace_by_pipe, empty_seal, swap, swap_files),
]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_damaged_input_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], workers: int
) -> None:
    if workers == 2 and damage not in (flip_bit, swap):
        pytest.skip("starting workers takes seconds, and they do the same")
    executor = make_executor(tmp_path, workers)
    inputs = [
        Job("kind", key, write_table, {"text": text})
        for key, text in (("ab12", "1"), ("cd34", "2"))
    ]
    table, _ = executor.map(inputs)
    source = ModelSource(kind="adapter", path="base", adapter=str(table), sha256="0")
    damage(table)
    for number, value in enumerate((table, str(table / "sub"), (table,), source)):
        copy = Job("copy", f"ef5{number}", copy_table, {"table": value})
        with pytest.raises(StoreError, match=r"ab12.*; delete the folder and rerun"):
            executor.map([copy])
        assert not executor.store.has("copy", copy.content_key)
        if workers == 2:
            break
    with pytest.raises(StoreError, match="delete the folder and rerun"):
        make_artefact(executor.store, inputs[0])
    shutil.rmtree(table)
    executor.map(inputs)
    executor.map([Job("copy", "ef50", copy_table, {"table": table})])


def test_an_artefact_without_its_seal_is_made_again(tmp_path: Path) -> None:
    job = Job("kind", "ab12", write_table, {"text": "1"})
    table = make_executor(tmp_path, 1).map([job])[0]
    (table / "artefact.json").unlink()
    (table / "sub" / "table").write_text("2")
    make_executor(tmp_path, 1).map([job])
    assert (table / "sub" / "table").read_text() == "1"
    assert Store(tmp_path / "store").find_problems("kind", "ab12") == []


def test_an_artefact_is_hashed_once_in_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    make_artefact(store, Job("kind", "ab12", write_table, {"text": "1"}))
    store_module._intact.clear()
    hashed = []
    once = store_module.file_sha256
    monkeypatch.setattr(store_module, "file_sha256", lambda p: hashed.append(p) or once(p))
    for _ in range(5):
        Store(tmp_path).open_artefact("kind", "ab12")
    assert len(hashed) == len(set(hashed)) > 0


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Not above: worker processes import this module, too.
    from tests.tiny_study import write_study

    from doublebind.pipeline import run as pipeline

    folder = write_study(tmp_path_factory.mktemp("tiny") / "study", references=1).parent
    pipeline.run(folder / "study.yaml", folder / "run", store=folder / "store")
    return folder


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("audit", "scores.parquet"), ("audit", "transcripts.jsonl"), ("prompts", "screen.json")),
        *(("rollouts", "checks.json"), ("shape", "shape.json")),
    ],
)
def test_a_run_believes_no_damaged_store(
    finished: Path, tmp_path: Path, kind: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from doublebind.cli.main import main

    store = Path(shutil.copytree(finished / "store", tmp_path / "store"))
    file = sorted((store / kind).rglob(name))[0]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    argv = ["run", str(finished / "study.yaml"), "--out", str(tmp_path / "run")]
    assert main([*argv, "--store", str(store)]) == 2
    error = capsys.readouterr().err
    assert str(file) in error
    assert "altered since it was made; delete the folder and rerun" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run" / "verdict.json").exists()


# --- C3: links and pipes in a run directory ------------------------------------------------------


def make_link(path: Path) -> None:
    target = path.parent.with_name("precious")
    target.write_text("precious")
    path.symlink_to(target)


def make_dangling_link(path: Path) -> None:
    path.symlink_to(path.parent.with_name("nothing"))


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("make", [make_link, make_dangling_link, make_pipe, Path.mkdir])
@pytest.mark.parametrize("name", [".lock", "ledger.jsonl"])
def test_a_lock_or_ledger_that_is_no_file_is_refused(
    tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    make(run / name)

    def open_run() -> None:
        with lock_run(run):
            Ledger(run / "ledger.jsonl")

    with pytest.raises(RunError, match=rf"{name}: (a symbolic link|not a regular file)"):
        open_run()
    if name == "ledger.jsonl":
        with pytest.raises(RunError, match=r"a symbolic link|not a regular file"):
            read_ledger(run / name)
    precious = tmp_path / "precious"
    assert not precious.exists() or precious.read_text() == "precious"
    assert not (tmp_path / "nothing").exists()


# --- E5: interrupts of the library ---------------------------------------------------------------


def wait_for_ever(out: Path) -> None:
    time.sleep(600)


def test_an_interrupted_executor_ends_its_workers(tmp_path: Path) -> None:
    def interrupt(kind: str, finished: int, total: int) -> None:
        if multiprocessing.active_children():
            signal.raise_signal(signal.SIGINT)

    executor = make_executor(tmp_path, 2)
    executor.progress = interrupt
    jobs = [Job("wait", key, wait_for_ever, {}) for key in ("aa", "bb")]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            executor.map(jobs)
    finally:
        signal.signal(signal.SIGINT, before)
    assert multiprocessing.active_children() == []
