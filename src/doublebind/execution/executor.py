"""Runs jobs once each, writes the ledger, and picks up where a killed run left off.

Knows jobs, the store, the ledger and the lock of a run directory; where calls run is `pools`'.
Imports no stage: a job is a function and its inputs, and writes one artefact. Order of events for
a job: `started` in the ledger, work in a private folder, rename into the store, `done` in the
ledger; a kill between the last two is mended by the next run, which finds the artefact and only
writes the line. A worker that dies is another matter than a job that fails: its job is tried again,
with the cause in the ledger, and finds the artefact if it was published before the death.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import queue
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from doublebind.execution.backends import Backend, InProcess, ProcessBackend, RayBackend
from doublebind.execution.costs import TIMING_FILE, CostEstimates, classify_cost
from doublebind.execution.ledger import Ledger
from doublebind.execution.memory import measure_device_peak, measure_peak, reset_peak
from doublebind.execution.store import Store
from doublebind.schema.errors import DoublebindError, RunError, StoreError
from doublebind.schema.executor import LOCAL, LocalOptions, RayOptions
from doublebind.schema.model_source import Device, LedgerEntry, ModelSource

log = logging.getLogger("doublebind.execution.executor")


VISIBILITY_TIMEOUT = 60.0
"""Seconds in which what one node wrote must be seen by others: NFS's default for old entries."""


Progress = Callable[[str, int, int], None]
"""Called with (kind, finished, total) as jobs finish."""


@dataclass(frozen=True)
class Job:
    """One artefact to make: `fn(out, **inputs)` fills the folder `out`."""

    kind: str
    content_key: str
    fn: Callable[..., None]
    """A module-level function of a stage's door; it must import what is heavy inside."""
    inputs: Mapping[str, Any] = field(hash=False)
    note: str = ""
    """What it is, for people; not part of the key."""
    cost_base: str = field(default="", compare=False)
    """Student base and precision of its study, which its cost hangs on; not part of the key."""
    needs: tuple[Job, ...] = field(default=(), compare=False, repr=False)
    """Jobs whose artefacts it reads; empty once jobs are in order, so that none is sent along."""


def make_artefact(store: Store, job: Job) -> Path:
    """Make a job's artefact unless it exists; return its folder. No ledger is written."""
    if not store.has(job.kind, job.content_key):
        began = time.time()
        reset_peak()
        store.fetch_inputs(job.inputs.values())
        with store.publish(job.kind, job.content_key) as out:
            job.fn(out, **job.inputs)
            cost = {
                "seconds": time.time() - began,
                "peak_bytes": measure_peak(),
                **measure_device_peak(),
            }
            (out / TIMING_FILE).write_text(
                json.dumps(cost | classify_cost(job.cost_base, job.inputs))
            )
    return store.path(job.kind, job.content_key)


class Attempt(NamedTuple):
    """One try at a job, as its worker saw it; small, since it crosses processes and nodes."""

    node: str
    pid: int
    started: float
    ended: float
    error: Exception | None = None


def attempt_job(store: Store, job: Job) -> Attempt:
    """Make a job's artefact and say how it went; raises nothing that a job may raise."""
    began = time.time()
    told = Attempt(platform.node(), os.getpid(), began, began)
    try:
        make_artefact(store, job)
    except Exception as error:
        return told._replace(ended=time.time(), error=error)
    return told._replace(ended=time.time())


def attempt_job_remotely(store: Store, job: Job) -> Attempt:
    """Like `attempt`, for another process: an error only it can rebuild is told in words."""
    told = attempt_job(store, job)
    error = told.error
    if error is None or isinstance(error, DoublebindError):
        return told
    lines = "".join(traceback.format_exception(error))
    if type(error).__module__ != "builtins":
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"on {told.node}, process {told.pid}:\n{lines}")
    return told._replace(error=error)


class Executor:
    """Maps jobs to artefacts, on this machine or on a cluster, with one scheduler for all."""

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        settings: LocalOptions | RayOptions = LOCAL,
        *,
        device: Device = "cpu",
        progress: Progress | None = None,
    ) -> None:
        """Keep what every call of `map` shares; `device` is what its jobs' models run on."""
        self.store, self.ledger, self.settings = store, ledger, settings
        self.device: Device = device
        self.progress = progress or (lambda kind, finished, total: None)
        self.backend: Backend | None = None
        self.keep_workers = False

    def __enter__(self) -> Executor:
        """Keep workers from one call of `map` to the next; starting them costs seconds each."""
        self.keep_workers = True
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Let the workers go; after an exception, without waiting for what has not begun."""
        self.keep_workers = False
        if self.backend is not None:
            self.backend.close(cancel=kind is not None)
            self.backend = None

    def map(self, jobs: Sequence[Job]) -> list[Path]:
        """Make every job's artefact that does not exist yet; return all folders, in order.

        A failure does not stop the others: what can be computed is computed and kept, then the
        first problem of each failed job is raised. Only a store that fails stops everything.

        Raises:
            DoublebindError: With one line per failed job that the user can mend.
            Exception: The first failure that is not the user's to mend, as it was.
        """
        unique = list({(job.kind, job.content_key): job for job in jobs}.values())
        waiting = []
        for job in unique:
            if not self.store.has(job.kind, job.content_key):
                waiting.append(job)
            elif job.content_key not in self.ledger.done_keys:
                now = time.time()
                self._write_entry(job, "done", started=now, ended=now, cached=True)
        failures: list[Exception] = []
        if waiting:  # a finished run needs no workers, and no cluster
            with contextlib.nullcontext() if self.keep_workers else self:
                self.backend = self.backend or self._open_backend()
                failures = self._run_jobs(waiting, self.backend)
        for error in failures:
            if not isinstance(error, DoublebindError):
                raise error
        if failures:
            problems = [p for e in failures if isinstance(e, DoublebindError) for p in e.problems]
            raise type(failures[0])(*dict.fromkeys(problems))
        return [self.store.path(job.kind, job.content_key) for job in jobs]

    def _run_jobs(self, jobs: Sequence[Job], backend: Backend) -> list[Exception]:
        """Make the jobs' artefacts; return what failed."""
        call = attempt_job if isinstance(backend, InProcess) else attempt_job_remotely
        costs = CostEstimates(self.store) if isinstance(self.settings, RayOptions) else None
        waiting, flying = deque(jobs), dict[Future[Attempt], tuple[Job, float]]()
        landed: queue.SimpleQueue[Future[Attempt]] = queue.SimpleQueue()
        losses: Counter[str] = Counter()
        failures: list[Exception] = []
        while waiting or flying:
            while waiting and len(flying) < backend.width:
                job = waiting.popleft()
                self.progress(job.kind, len(jobs) - len(waiting) - len(flying) - 1, len(jobs))
                began = time.time()
                self._write_entry(job, "started", started=began)
                affinity_key, most = _find_affinity_key(job), _estimate_memory(job, costs)
                future = backend.submit(
                    call, self.store, job, affinity_key=affinity_key, memory=most
                )
                flying[future] = (job, began)
                future.add_done_callback(landed.put)
            future = landed.get()
            job, began = flying.pop(future)
            cause = future.exception()
            if cause is None:
                told = future.result()
            else:
                losses[job.content_key] += 1
                error = _describe_loss(job, losses[job.content_key], self.settings.retries, cause)
                told = Attempt("", os.getpid(), began, time.time(), error)
            self._record_attempt(job, told)
            if isinstance(told.error, StoreError):
                raise told.error
            if cause is not None and losses[job.content_key] <= self.settings.retries:
                waiting.append(job)
            elif told.error:
                failures.append(told.error)
            self.progress(job.kind, len(jobs) - len(waiting) - len(flying), len(jobs))
        return failures

    def _open_backend(self) -> Backend:
        if isinstance(self.settings, RayOptions):
            return RayBackend(self.settings)
        if self.settings.workers == 1:
            return InProcess()
        return ProcessBackend(self.settings.workers, _list_gpus(self.device))

    def _record_attempt(self, job: Job, result: Attempt) -> None:
        facts: dict[str, Any] = {
            "started": result.started,
            "ended": result.ended,
            "pid": result.pid,
        }
        facts["node"] = result.node or None
        if result.error is None:
            self._wait_until_visible(job, result)
            self._write_entry(job, "done", **facts)
        else:
            self._write_entry(job, "failed", error=str(result.error)[:500], **facts)

    def _wait_until_visible(self, job: Job, result: Attempt) -> None:
        """Wait until what a node made is seen here; file systems of networks take a while."""
        until = time.monotonic() + VISIBILITY_TIMEOUT
        while not self.store.has(job.kind, job.content_key):
            if time.monotonic() > until:
                raise StoreError(
                    f"{self.store.name}: {result.node} made {job.kind} {job.content_key[:12]} and it is not "
                    f"seen here; every node needs the same store, a shared folder or a URL"
                )
            time.sleep(0.2)

    def _write_entry(self, job: Job, status: Any, **facts: Any) -> None:
        entry = {"cell": job.content_key, "kind": job.kind, "status": status, "pid": os.getpid()}
        self.ledger.write(LedgerEntry.model_validate(entry | facts))


def _describe_loss(job: Job, losses: int, retries: int, cause: BaseException) -> RunError:
    """Return what became of a job whose process or node died, as one line."""
    reason = " ".join(f"{type(cause).__name__}: {cause}".split())[:200]
    told = (
        f"{job.kind} {job.content_key[:12]}: its worker was lost, {losses} of {retries + 1} times"
    )
    return RunError(f"{told} ({reason}); give cells more memory or use fewer at once, and rerun")


def check_executor(settings: LocalOptions | RayOptions, device: Device) -> None:
    """Refuse to begin what this machine cannot run; a cluster's nodes speak for themselves.

    Raises:
        ConfigError: If jobs shall run here on a GPU and there is none.
    """
    if isinstance(settings, LocalOptions) and device != "cpu":
        from doublebind.execution.device import check_gpus_available

        check_gpus_available(device)


def _list_gpus(device: Device) -> Sequence[str]:
    if device == "cpu":
        return ()
    from doublebind.execution.device import list_visible_gpus

    return list_visible_gpus()


def _estimate_memory(job: Job, costs: CostEstimates | None) -> int:
    """Return the bytes that jobs like this took at most so far; 0 where none was made."""
    cost = costs.estimate(job.kind, classify_cost(job.cost_base, job.inputs)) if costs else None
    return int(cost.peak_bytes) if cost else 0


def _find_affinity_key(job: Job) -> str:
    """Return the identity of the model that a job starts from: who shares it shares files."""
    sources = [value for value in job.inputs.values() if isinstance(value, ModelSource)]
    return sources[0].path if sources else ""
