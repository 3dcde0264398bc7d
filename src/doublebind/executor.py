"""Runs jobs once each, writes the ledger, and picks up where a killed run left off.

Knows jobs, the store, processes and the lock of a run directory. Imports no stage: a job is a
function and its inputs, and writes one artefact. Order of events for a job: `started` in the
ledger, work in a private folder, rename into the store, `done` in the ledger; a kill between the
last two is mended by the next run, which finds the artefact and only writes the line.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import json
import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from doublebind.errors import DoublebindError, RunError, StoreError
from doublebind.records import LedgerEntry
from doublebind.store import Store, storage_error

log = logging.getLogger("doublebind.executor")

Progress = Callable[[str, int, int], None]
"""Called with (kind, finished, total) as jobs finish."""


@dataclass(frozen=True)
class Job:
    """One artefact to make: `fn(out, **inputs)` fills the folder `out`."""

    kind: str
    key: str
    fn: Callable[..., None]
    """A module-level function of a stage's door; it must import what is heavy inside."""
    inputs: Mapping[str, Any] = field(hash=False)
    note: str = ""
    """What it is, for people; not part of the key."""


class Ledger:
    """`ledger.jsonl`: one line per event, appended whole; a torn last line is cut on opening."""

    def __init__(self, path: Path) -> None:
        """Open the ledger at `path` for appending; the caller holds the run's lock."""
        self.path = path
        if path.exists():
            whole = path.read_bytes()
            end = whole.rfind(b"\n") + 1
            if end < len(whole):
                with path.open("r+b") as file:
                    file.truncate(end)
        self.done = {entry.cell for entry in read_ledger(path) if entry.status == "done"}

    def write(self, entry: LedgerEntry) -> None:
        """Append one line."""
        line = entry.model_dump_json(exclude_none=True) + "\n"
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(fd, line.encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise storage_error(error, self.path) from error
        if entry.status == "done":
            self.done.add(entry.cell)


def read_ledger(path: Path) -> list[LedgerEntry]:
    """Return the entries of a ledger; a torn last line is left out."""
    if not path.exists():
        return []
    entries = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines):
        try:
            entries.append(LedgerEntry.model_validate_json(line))
        except ValueError:
            if number < len(lines) - 1:
                raise RunError(
                    f"{path}:{number + 1}: not a ledger line; restore the file or use a new --out"
                ) from None
    return entries


@contextlib.contextmanager
def lock(run: Path) -> Iterator[None]:
    """Hold the one lock of a run directory; freed by the kernel when the process dies.

    Raises:
        RunError: If another process holds it; the message names its pid.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = (run / ".lock").open("a+")
    except OSError as error:
        raise storage_error(error, run) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            pid = file.read().strip() or "unknown"
            raise RunError(
                f"{run}: in use by process {pid}; wait for it or choose another --out"
            ) from None
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield


def make(store: Store, job: Job) -> Path:
    """Make a job's artefact unless it exists; return its folder. No ledger is written."""
    if not store.has(job.kind, job.key):
        began = time.time()
        with store.publish(job.kind, job.key) as out:
            job.fn(out, **job.inputs)
            (out / "timing.json").write_text(json.dumps({"seconds": time.time() - began}))
    return store.path(job.kind, job.key)


class Executor:
    """Maps jobs to artefacts on this machine."""

    def __init__(
        self, store: Store, ledger: Ledger, *, workers: int = 1, progress: Progress | None = None
    ) -> None:
        """Keep what every call of `map` shares."""
        self.store, self.ledger, self.workers = store, ledger, workers
        self.progress = progress or (lambda kind, finished, total: None)

    def map(self, jobs: Sequence[Job]) -> list[Path]:
        """Make every job's artefact that does not exist yet; return all folders, in order.

        A failure does not stop the others: what can be computed is computed and kept, then the
        first problem of each failed job is raised.

        Raises:
            DoublebindError: With one line per failed job that the user can mend.
            Exception: The first failure that is not the user's to mend, as it was.
        """
        unique = list({(job.kind, job.key): job for job in jobs}.values())
        waiting = []
        for job in unique:
            if not self.store.has(job.kind, job.key):
                waiting.append(job)
            elif job.key not in self.ledger.done:
                now = time.time()
                self._note(job, "done", started=now, ended=now, cached=True)
        failures = self._here(waiting) if self.workers == 1 else self._spread(waiting)
        for _, error in failures:
            if not isinstance(error, DoublebindError):
                raise error
        if failures:
            problems = [
                p for _, e in failures if isinstance(e, DoublebindError) for p in e.problems
            ]
            raise type(failures[0][1])(*dict.fromkeys(problems))
        return [self.store.path(job.kind, job.key) for job in jobs]

    def _here(self, jobs: Sequence[Job]) -> list[tuple[Job, Exception]]:
        failures: list[tuple[Job, Exception]] = []
        for number, job in enumerate(jobs):
            self.progress(job.kind, number, len(jobs))
            began = time.time()
            self._note(job, "started", started=began)
            try:
                make(self.store, job)
            except StoreError:
                raise
            except Exception as error:
                self._note(job, "failed", started=began, ended=time.time(), error=str(error)[:500])
                failures.append((job, error))
            else:
                self._note(job, "done", started=began, ended=time.time())
            self.progress(job.kind, number + 1, len(jobs))
        return failures

    def _spread(self, jobs: Sequence[Job]) -> list[tuple[Job, Exception]]:
        """Like `_here`, over spawned processes; each gets an equal share of the cores."""
        if not jobs:
            return []
        failures: list[tuple[Job, Exception]] = []
        # By workers, not by jobs left: threads decide the last bits, and a resumed run has fewer.
        threads = max(1, (os.cpu_count() or 1) // self.workers)
        n = min(self.workers, len(jobs))
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(
            n, mp_context=context, initializer=_set_threads, initargs=(threads,)
        ) as pool:
            began = {job.key: time.time() for job in jobs}
            for job in jobs:
                self._note(job, "started", started=began[job.key])
            futures = {pool.submit(make, self.store, job): job for job in jobs}
            for number, future in enumerate(concurrent.futures.as_completed(futures)):
                job = futures[future]
                error = future.exception()
                ended = time.time()
                if error is None:
                    self._note(job, "done", started=began[job.key], ended=ended)
                elif isinstance(error, Exception):
                    self._note(
                        job, "failed", started=began[job.key], ended=ended, error=str(error)[:500]
                    )
                    failures.append((job, error))
                else:
                    raise error
                self.progress(job.kind, number + 1, len(jobs))
        return failures

    def _note(self, job: Job, status: Any, **facts: Any) -> None:
        self.ledger.write(
            LedgerEntry(cell=job.key, kind=job.kind, status=status, pid=os.getpid(), **facts)
        )


def _set_threads(threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)
