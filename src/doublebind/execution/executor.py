"""Runs each job once, writes the ledger, and resumes a killed run.

For a job, in this order: `started` in the ledger, work in a private folder, rename into the store,
`done` in the ledger. A kill between the last two costs nothing: the next run finds the artefact and
writes the line. If a worker dies, its job is tried again, with the cause in the ledger; it finds
the artefact if that was published before the death.
"""

from __future__ import annotations

import contextlib
import json
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
from doublebind.execution.store import Store, find_absence, write_absence
from doublebind.schema.errors import (
    DoublebindError,
    NothingToDistil,
    RunError,
    StoreError,
    rebuild_error,
)
from doublebind.schema.executor import LOCAL, LocalOptions, RayOptions
from doublebind.schema.model_source import Device, LedgerEntry, ModelSource

VISIBILITY_TIMEOUT = 60.0
"""Seconds until other nodes must see what a node wrote: NFS caches directory entries this long."""
MAX_TRACEBACK = 2000
"""Characters of a traceback that the ledger keeps, its last ones."""
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
    """Make a job's artefact unless it exists, and return its folder. Writes no ledger.

    Where nothing is left to distil, and in all that needs it but audits, the artefact holds the
    reason alone: an audit then leaves its items unscored, for that reason.

    Raises:
        StoreError: If the artefact or one that the job reads was altered since it was made.
    """
    if not store.has(job.kind, job.content_key):
        began = time.time()
        reset_peak()
        store.open_inputs(job.inputs.values())
        with store.publish(job.kind, job.content_key) as out:
            reason = None if job.kind == "audit" else find_absence(job.inputs.values())
            try:
                if reason is None:
                    job.fn(out, **job.inputs)
            except NothingToDistil as nothing:
                reason = str(nothing)
            if reason is not None:
                write_absence(out, reason)
            cost = {
                "seconds": time.time() - began,
                "peak_bytes": measure_peak(),
                **measure_device_peak(),
            }
            (out / TIMING_FILE).write_text(
                json.dumps(cost | classify_cost(job.cost_base, job.inputs))
            )
    return store.open_artefact(job.kind, job.content_key)


class Attempt(NamedTuple):
    """Node, process, times and error of one try at a job; small, since it crosses processes."""

    node: str
    pid: int
    started: float
    ended: float
    error: Exception | None = None
    traceback: str | None = None
    """Last lines of the traceback of an error that the user cannot mend."""


def attempt_job(store: Store, job: Job) -> Attempt:
    """Make a job's artefact and return the attempt, with the job's exception if it raised one."""
    node, started = platform.node(), time.time()
    error: Exception | None = None
    lines: str | None = None
    try:
        make_artefact(store, job)
    except DoublebindError as raised:
        error = raised
    except (Exception, SystemExit) as raised:  # a library may try to end the process
        lines = "".join(traceback.format_exception(raised))[-MAX_TRACEBACK:]
        error = raised if isinstance(raised, Exception) else RuntimeError(repr(raised))
        error.add_note(f"in {job.kind} {job.content_key[:12]}, on {node}, process {os.getpid()}")
    return Attempt(node, os.getpid(), started, time.time(), error, lines)


def attempt_job_remotely(store: Store, job: Job) -> Attempt:
    """Run `attempt_job`, and replace an error that another process may be unable to unpickle.

    Built-in exceptions keep their type; others become a `RuntimeError` with the same message.
    """
    attempt = attempt_job(store, job)
    error = attempt.error
    if error is None or isinstance(error, DoublebindError):
        return attempt
    notes = [*error.__notes__, attempt.traceback or ""]
    if not _is_plain(error):
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.__notes__ = notes
    return attempt._replace(error=error)


def _is_plain(error: Exception) -> bool:
    """Return whether an exception is built in and holds nothing but texts and numbers."""
    plain = (str, bytes, int, float, type(None))
    return (
        type(error).__module__ == "builtins"
        and vars(error).keys() <= {"__notes__"}
        and all(isinstance(argument, plain) for argument in error.args)
    )


@dataclass
class _MapState:
    """State of one call of `Executor.map`."""

    backend: Backend
    n_jobs: int
    waiting: deque[Job]
    running: dict[Future[Attempt], tuple[Job, float]] = field(default_factory=dict)
    """Future -> job and the time of its submission."""
    ended: queue.SimpleQueue[Future[Attempt]] = field(default_factory=queue.SimpleQueue)
    losses: Counter[str] = field(default_factory=Counter)
    """Key of a job -> number of workers that died with it."""
    failures: list[Exception] = field(default_factory=list)

    @property
    def n_finished(self) -> int:
        return self.n_jobs - len(self.waiting) - len(self.running)


class Executor:
    """Makes the artefacts of jobs, on this machine or on a cluster."""

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        settings: LocalOptions | RayOptions = LOCAL,
        *,
        device: Device = "cpu",
        progress: Progress | None = None,
    ) -> None:
        """Start no worker yet; `device` is the one that the jobs' models run on."""
        self.store, self.ledger, self.settings = store, ledger, settings
        self.device: Device = device
        self.progress = progress or (lambda kind, finished, total: None)
        self.backend: Backend | None = None
        self.keep_workers = False

    def __enter__(self) -> Executor:
        """Keep workers from one call of `map` to the next; starting them costs seconds each."""
        self.keep_workers = True
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Free the workers; after an exception, drop the calls that have not begun.

        Calls that run are waited for, because their work counts, unless the user interrupts.
        """
        self.keep_workers = False
        if self.backend is not None:
            interrupted = kind is not None and not issubclass(kind, Exception)
            self.backend.close(cancel=kind is not None, kill=interrupted)
            self.backend = None

    def map(self, jobs: Sequence[Job]) -> list[Path]:
        """Make the artefacts that do not exist yet, and return the folders of all, in order.

        A failed job does not stop the others: they are computed and stored, and then the errors of
        the failed ones are raised. Only a failure of the store stops everything.

        Raises:
            DoublebindError: With one line per failed job, if the user can mend all of them.
            Exception: The first failure that the user cannot mend, unchanged.
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
            known = [error for error in failures if isinstance(error, DoublebindError)]
            problems = dict.fromkeys(problem for error in known for problem in error.problems)
            raise rebuild_error(type(known[0]), tuple(problems))
        return [self.store.path(job.kind, job.content_key) for job in jobs]

    def _run_jobs(self, jobs: Sequence[Job], backend: Backend) -> list[Exception]:
        """Make the jobs' artefacts; return the failures."""
        remote = isinstance(self.settings, RayOptions)
        costs = CostEstimates(self.store) if remote else None
        state = _MapState(backend, len(jobs), deque(jobs))
        while state.waiting or state.running:
            while state.waiting and len(state.running) < backend.width:
                self._submit_next(state, costs)
            self._collect_next(state)
        return state.failures

    def _submit_next(self, state: _MapState, costs: CostEstimates | None) -> None:
        job = state.waiting.popleft()
        self.progress(job.kind, state.n_finished - 1, state.n_jobs)
        started = time.time()
        self._write_entry(job, "started", started=started)
        in_process = isinstance(state.backend, InProcess)
        future = state.backend.submit(
            attempt_job if in_process else attempt_job_remotely,
            self.store,
            job,
            affinity_key=_find_affinity_key(job),
            memory=_estimate_memory(job, costs),
        )
        state.running[future] = (job, started)
        future.add_done_callback(state.ended.put)

    def _collect_next(self, state: _MapState) -> None:
        """Wait for one call to end and record it; queue its job again if its worker was lost."""
        future = state.ended.get()
        job, started = state.running.pop(future)
        cause = future.exception()
        if cause is None:
            attempt = future.result()
        else:
            state.losses[job.content_key] += 1
            n_losses = state.losses[job.content_key]
            error = _describe_loss(job, n_losses, self.settings.retries, cause)
            attempt = Attempt("", os.getpid(), started, time.time(), error)
        self._record_attempt(job, attempt)
        if isinstance(attempt.error, StoreError):
            raise attempt.error
        if cause is not None and state.losses[job.content_key] <= self.settings.retries:
            state.waiting.append(job)
        elif attempt.error:
            state.failures.append(attempt.error)
        self.progress(job.kind, state.n_finished, state.n_jobs)

    def _open_backend(self) -> Backend:
        if isinstance(self.settings, RayOptions):
            return RayBackend(self.settings)
        if self.settings.workers == 1:
            return InProcess()
        return ProcessBackend(self.settings.workers, _list_gpus(self.device))

    def _record_attempt(self, job: Job, attempt: Attempt) -> None:
        facts = {
            "started": attempt.started,
            "ended": attempt.ended,
            "pid": attempt.pid,
            "node": attempt.node or None,
        }
        if attempt.error is None:
            self._wait_until_visible(job, attempt)
            self._write_entry(job, "done", **facts)
        else:
            error = str(attempt.error)
            if not isinstance(attempt.error, DoublebindError):
                error = f"{type(attempt.error).__name__}: {error}"
            if attempt.traceback:
                facts["traceback"] = _escape_surrogates(attempt.traceback)
            self._write_entry(job, "failed", error=_escape_surrogates(error)[:500], **facts)

    def _wait_until_visible(self, job: Job, attempt: Attempt) -> None:
        """Wait until this node sees the artefact; network file systems may show it late."""
        deadline = time.monotonic() + VISIBILITY_TIMEOUT
        while not self.store.has(job.kind, job.content_key):
            if time.monotonic() > deadline:
                raise StoreError(
                    f"{self.store.name}: {attempt.node} made {job.kind} {job.content_key[:12]} and "
                    f"it is not visible here; every node needs the same store, a shared folder or "
                    f"a URL"
                )
            time.sleep(0.2)

    def _write_entry(self, job: Job, status: Any, **facts: Any) -> None:
        entry = {"cell": job.content_key, "kind": job.kind, "status": status, "pid": os.getpid()}
        self.ledger.write(LedgerEntry.model_validate(entry | facts))


def _escape_surrogates(text: str) -> str:
    """Return a text that UTF-8 can hold: messages may quote what a model or a file said."""
    return text.encode("utf-8", "backslashreplace").decode()


def _describe_loss(job: Job, losses: int, retries: int, cause: BaseException) -> RunError:
    """Return the error of a job whose process or node died, in one line."""
    reason = " ".join(f"{type(cause).__name__}: {cause}".split())[:200]
    return RunError(
        f"{job.kind} {job.content_key[:12]}: its worker was lost, {losses} of {retries + 1} times "
        f"({reason}); give jobs more memory or run fewer at once, and rerun"
    )


def check_executor(settings: LocalOptions | RayOptions, device: Device) -> None:
    """Check that this machine has the device; the nodes of a cluster check for themselves.

    Raises:
        ConfigError: If jobs need a GPU of this machine and it has none.
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
    """Return the largest peak memory, in bytes, of similar jobs so far; 0 if there was none."""
    cost = costs.estimate(job.kind, classify_cost(job.cost_base, job.inputs)) if costs else None
    return int(cost.peak_bytes) if cost else 0


def _find_affinity_key(job: Job) -> str:
    """Return the path of the first model among the inputs: jobs that share it share files."""
    sources = [value for value in job.inputs.values() if isinstance(value, ModelSource)]
    return sources[0].path if sources else ""
