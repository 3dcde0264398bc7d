"""Lines that were appended are read again, whatever killed a writer or wrote beside it."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from doublebind.execution.append_log import AppendLog
from doublebind.execution.store import Store
from doublebind.schema.errors import ModelError, RunError

SEPARATORS = "\u2028\u2029\x85\x0b\x0c\x1c"
"""Ends of a line to `str.splitlines`, and none in JSON lines."""


@pytest.fixture
def log(tmp_path: Path) -> AppendLog:
    return AppendLog(tmp_path / "log.jsonl", "restore the file")


def test_a_log_without_a_file_is_empty(log: AppendLog) -> None:
    log.cut_torn_line()
    assert log.read(json.loads) == []
    assert not log.path.exists()


def test_lines_are_read_in_the_order_in_which_they_were_appended(log: AppendLog) -> None:
    for i in range(3):
        log.append(json.dumps({"i": i}))
    assert log.read(json.loads) == [{"i": i} for i in range(3)]
    assert log.path.read_bytes().count(b"\n") == 3


def test_unicode_separators_do_not_end_a_line(log: AppendLog) -> None:
    log.append(json.dumps(SEPARATORS, ensure_ascii=False))
    log.append("1")
    assert log.read(lambda line: json.loads(line, strict=False)) == [SEPARATORS, 1]


@pytest.mark.parametrize("torn", ['{"i": 1', "2", "\u00e9"[:1], "\x00"])
def test_a_last_line_without_its_end_is_ignored_and_cut(log: AppendLog, torn: str) -> None:
    log.append("1")
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + torn.encode())
    assert log.read(json.loads) == [1]
    log.cut_torn_line()
    assert log.path.read_bytes() == whole
    log.append("3")
    assert log.read(json.loads) == [1, 3]


def test_half_a_character_at_the_end_is_ignored(log: AppendLog) -> None:
    log.append("1")
    log.path.write_bytes(log.path.read_bytes() + "\u2028".encode()[:2])
    assert log.read(json.loads) == [1]


@pytest.mark.parametrize("damaged", [b"nonsense\n", b"\n", b"\xff\n", b'"cut\n'])
def test_any_other_damaged_line_is_named_with_its_file_and_number(
    log: AppendLog, damaged: bytes
) -> None:
    log.path.write_bytes(b"1\n" + damaged + b"3\n")
    with pytest.raises(RunError, match=r"log\.jsonl:2: a line is damaged; restore the file"):
        log.read(json.loads)
    other = AppendLog(log.path, "restore the file", ModelError)
    with pytest.raises(ModelError, match=r"log\.jsonl:2: "):
        other.read(json.loads)


def test_a_value_of_two_lines_is_not_appended(log: AppendLog) -> None:
    with pytest.raises(ValueError, match="newline"):
        log.append("1\n2")
    assert not log.path.exists()


def test_a_write_that_is_cut_short_is_gone_on_with(
    log: AppendLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = os.write
    monkeypatch.setattr(os, "write", lambda fd, content: whole(fd, bytes(content)[:3]))
    log.append(json.dumps("a" * 100))
    monkeypatch.undo()
    assert log.read(json.loads) == ["a" * 100]


def test_a_link_is_not_written_through(log: AppendLog, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("1\n2")
    log.path.symlink_to(target)
    with pytest.raises(RunError, match=r"log\.jsonl: a symbolic link"):
        log.append("3")
    with pytest.raises(RunError, match=r"log\.jsonl: a symbolic link"):
        log.cut_torn_line()
    assert target.read_text() == "1\n2"


def test_a_link_to_nothing_makes_no_file(log: AppendLog, tmp_path: Path) -> None:
    log.path.symlink_to(tmp_path / "target")
    with pytest.raises(RunError, match="a symbolic link"):
        log.append("1")
    assert not (tmp_path / "target").exists()


def test_permissions_are_those_asked_for(tmp_path: Path) -> None:
    AppendLog(tmp_path / "private", "", mode=0o600).append("1")
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600


def append_many(add: str, folder: Path, name: str, start: object) -> None:
    start.wait()  # type: ignore[attr-defined]
    store, log = Store(folder), AppendLog(folder / "log.jsonl", "")
    for i in range(200):
        line = json.dumps([name, i, "x" * 500])
        if add == "store":
            store.add_line("log", line)
        else:
            log.append(line)


@pytest.mark.parametrize("add", ["store", "log"])
def test_lines_of_two_processes_at_once_are_all_there(tmp_path: Path, add: str) -> None:
    Store(tmp_path)
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    writers = [
        context.Process(target=append_many, args=(add, tmp_path, name, start)) for name in "ab"
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    entries = [json.loads(line)[:2] for line in Store(tmp_path).lines("log")]
    assert sorted(entries) == [[name, i] for name in "ab" for i in range(200)]
    assert [i for name, i in entries if name == "a"] == list(range(200))


def test_a_damaged_line_of_a_store_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add_line("suspects/x", '{"a": 1}')
    with (tmp_path / "suspects" / "x.jsonl").open("a") as file:
        file.write('nonsense\n{"c": 3}\n')
    with pytest.raises(OSError, match=r"x\.jsonl:2: a line is damaged"):
        store.lines("suspects/x")
