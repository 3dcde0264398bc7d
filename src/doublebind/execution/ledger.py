"""Records which jobs of a run started, finished or failed, and locks a run directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from doublebind.execution.append_log import AppendLog, open_regular_file
from doublebind.execution.store import storage_error
from doublebind.schema.errors import RunError
from doublebind.schema.model_source import LedgerEntry


def _ledger_log(path: Path) -> AppendLog:
    return AppendLog(path, remedy="restore the file or use a new --out")


class Ledger:
    """`ledger.jsonl`: one line per event, appended whole; a torn last line is cut on opening."""

    def __init__(self, path: Path | None) -> None:
        """Open the ledger at `path` for appending; the caller holds the run's lock.

        Without a path nothing is written, and the store alone records which artefacts exist.
        """
        self.path = path
        self.done_keys: set[str] = set()
        if path is None:
            return
        try:
            _ledger_log(path).cut_torn_line()
        except OSError as error:
            raise storage_error(error, path) from error
        self.done_keys = {
            entry.artefact_key for entry in read_ledger(path) if entry.status == "done"
        }

    def write(self, entry: LedgerEntry) -> None:
        """Append one line."""
        if self.path is None:
            return
        try:
            _ledger_log(self.path).append(entry.model_dump_json(exclude_none=True))
        except OSError as error:
            raise storage_error(error, self.path) from error
        if entry.status == "done":
            self.done_keys.add(entry.artefact_key)


def read_ledger(path: Path) -> list[LedgerEntry]:
    """Return the entries of a ledger; a torn last line is left out."""
    return _ledger_log(path).read(LedgerEntry.model_validate_json)


@contextlib.contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Hold the one lock of a run directory; freed by the kernel when the process dies.

    Raises:
        RunError: If another process holds it, by its pid; or if the lock is not a regular file.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        fd = open_regular_file(run / ".lock", os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise storage_error(error, run) from error
    with open(fd, "r+", encoding="utf-8", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid = file.read(20).strip() or "unknown"
            raise RunError(
                f"{run}: in use by process {pid}; wait for it or choose another --out"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
