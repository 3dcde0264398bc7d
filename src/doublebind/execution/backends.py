"""Backends that run calls: in this process, in spawned processes, or on the nodes of a Ray cluster.

All three take a call and return a future, so that one scheduler serves them.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import multiprocessing
import os
import platform
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from doublebind.schema.errors import ConfigError, MissingExtra, RunError
from doublebind.schema.executor import RayOptions

_NUMERICAL_LIBRARIES = ("doublebind", "torch", "transformers", "peft")
"""Libraries whose versions change numbers, so that every node needs the same ones."""
_FORWARDED_VARIABLES = ("HF_HUB_OFFLINE", "OMP_WAIT_POLICY")


class Backend(Protocol):
    """Runs calls and returns their futures."""

    @property
    def width(self) -> int:
        """Number of calls that run at once; more would wait."""
        ...

    def submit(
        self, call: Callable[..., Any], *args: Any, affinity_key: str, memory: int
    ) -> Future[Any]:
        """Return the future of `call(*args)`.

        An exception in the future means that the call was lost, because its process or node died.
        `call` returns its own failures.

        Args:
            call: A module-level function.
            args: Small values that can be pickled.
            affinity_key: Calls with the same key read the same files and should share a node.
            memory: Expected peak memory in bytes; 0 if it is not known.
        """
        ...

    def close(self, *, cancel: bool, kill: bool = False) -> None:
        """Free the workers; with `cancel`, drop the calls that have not begun.

        With `kill`, end the calls that run, too.
        """
        ...


class InProcess:
    """Runs each call in this process as it is submitted."""

    width = 1

    def submit(
        self, call: Callable[..., Any], *args: Any, affinity_key: str, memory: int
    ) -> Future[Any]:
        """Run the call and return its finished future; `affinity_key` and `memory` are unused."""
        future: Future[Any] = Future()
        future.set_result(call(*args))
        return future

    def close(self, *, cancel: bool, kill: bool = False) -> None:
        """Do nothing: every call has ended."""


class ProcessBackend:
    """Runs calls in spawned processes of this machine, each with an equal share of the cores."""

    def __init__(self, workers: int, gpus: Sequence[str] = ()) -> None:
        """Prepare for at most `workers` processes; each starts when a call first needs it.

        Each process sees all `gpus` (names as in `CUDA_VISIBLE_DEVICES`), rotated so that
        processes take the first place in turn: a process computes on the first GPU it sees.
        """
        # The number of threads changes the last bits of sums. It depends on the number of workers
        # and not on that of calls, because a resumed run has fewer calls.
        self.threads = max(1, (os.cpu_count() or 1) // workers)
        self.width = workers
        self.idle_processes: list[ProcessPoolExecutor] = []
        self.process_places: dict[ProcessPoolExecutor, int] = {}
        """Process -> its index among the workers, in [0, width)."""
        self.children: dict[ProcessPoolExecutor, list[BaseProcess]] = {}
        self.gpus = tuple(gpus)

    def submit(
        self, call: Callable[..., Any], *args: Any, affinity_key: str, memory: int
    ) -> Future[Any]:
        """Submit to an idle process. Each is a pool of one, so that a death loses one call."""
        if self.idle_processes:
            process = self.idle_processes.pop()
            future = process.submit(call, *args)
        else:
            process = self._start_process()
            before = multiprocessing.active_children()
            with block_sigint():
                future = process.submit(call, *args)
            self.children[process] = [
                child for child in multiprocessing.active_children() if child not in before
            ]
        future.add_done_callback(lambda done: self._release_process(process, done))
        return future

    def _start_process(self) -> ProcessPoolExecutor:
        place = min(set(range(self.width)) - set(self.process_places.values()))
        first = place % len(self.gpus) if self.gpus else 0
        process = ProcessPoolExecutor(
            1,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=initialise_process,
            initargs=(self.threads, (*self.gpus[first:], *self.gpus[:first])),
        )
        self.process_places[process] = place
        return process

    def _release_process(self, process: ProcessPoolExecutor, future: Future[Any]) -> None:
        if future.cancelled() or future.exception() is None:
            self.idle_processes.append(process)
        else:
            del self.process_places[process], self.children[process]

    def close(self, *, cancel: bool, kill: bool = False) -> None:
        """Shut the processes down; without `kill`, wait for the calls that run."""
        processes = list(self.process_places)
        if kill:
            for child in (child for process in processes for child in self.children[process]):
                child.kill()
        for process in processes:
            process.shutdown(cancel_futures=cancel)


def initialise_process(threads: int, gpus: Sequence[str]) -> None:
    """Set a new process's threads and GPUs, before it imports torch."""
    exit_with_parent()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)


@contextlib.contextmanager
def block_sigint() -> Iterator[None]:
    """Let processes that are started here never see Ctrl-C, which a terminal sends to all.

    They end with their parent, which reports it; their own tracebacks would say nothing.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def exit_with_parent() -> None:
    """End this process when its parent has ended; does nothing in a process without a parent.

    Otherwise a worker whose parent was killed would wait for calls forever and keep its memory.
    """
    if parent := multiprocessing.parent_process():
        if sys.platform == "linux":
            # The kernel does not wait until a library lets go of the interpreter.
            pr_set_pdeathsig = 1
            ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _exit_after(parent: Any) -> None:
    parent.join()
    os._exit(1)


class RayBackend:
    """Runs calls as tasks of a Ray cluster (Moritz et al. 2018, arXiv 1712.05889).

    Only arguments and results pass through Ray, a few kilobytes each. Ray's own retries are off:
    the executor retries, and the ledger records the cause.
    """

    def __init__(self, settings: RayOptions) -> None:
        """Join the cluster at `settings.address`.

        Raises:
            MissingExtra: If Ray is not installed.
            RunError: If there is no cluster at the address.
            ConfigError: If no node has the CPUs and GPUs that a call needs.
        """
        self.ray = _join_ray_cluster(settings.address)
        self.settings = settings
        env = {name: os.environ[name] for name in _FORWARDED_VARIABLES if name in os.environ}
        task = self.ray.remote(
            num_cpus=settings.cpus,
            num_gpus=settings.gpus,
            max_retries=0,
            # As in `ProcessBackend`: the number of threads changes the last bits of sums.
            runtime_env={"env_vars": {**env, "OMP_NUM_THREADS": str(settings.cpus)}},
        )
        self.remote_task = task(_run_on_node)
        self.versions = _read_versions()
        self.object_refs: dict[Future[Any], Any] = {}
        self.node_load: Counter[str] = Counter()
        self.nodes_by_affinity: dict[str, set[str]] = {}
        self.width = sum(self._count_slots().values())
        if not self.width:
            raise ConfigError(
                f"`executor`: no node of the cluster has {settings.cpus} CPUs and "
                f"{settings.gpus:g} GPUs; lower `executor.cpus` or `executor.gpus`"
            )

    def submit(
        self, call: Callable[..., Any], *args: Any, affinity_key: str, memory: int
    ) -> Future[Any]:
        """Submit to a node that has room, preferably one that has the files already."""
        slots = self._count_slots()
        self.width = max(1, sum(slots.values()))
        node = self._choose_node(affinity_key, slots)
        options: dict[str, Any] = {}
        if self.settings.memory_gib is not None:
            options["memory"] = int(self.settings.memory_gib * 2**30)
        elif memory:
            options["memory"] = memory
        if node:
            strategies = self.ray.util.scheduling_strategies
            # Soft: another node takes the call if this one has left the cluster.
            strategy = strategies.NodeAffinitySchedulingStrategy(node, soft=True)
            options["scheduling_strategy"] = strategy
        ref = self.remote_task.options(**options).remote(self.versions, call, *args)
        future: Future[Any] = ref.future()
        self.object_refs[future] = ref
        self.node_load[node] += 1
        future.add_done_callback(lambda done: self._release_slot(done, node))
        return future

    def close(self, *, cancel: bool, kill: bool = False) -> None:
        """Cancel all calls if asked; the connection to the cluster stays open."""
        for ref in list(self.object_refs.values()) if cancel else ():
            self.ray.cancel(ref, force=True)

    def _release_slot(self, future: Future[Any], node: str) -> None:
        self.object_refs.pop(future, None)
        self.node_load[node] -= 1

    def _count_slots(self) -> dict[str, int]:
        """Return live node -> number of calls that fit on it."""
        slots: dict[str, int] = {}
        for node in self.ray.nodes():
            if node["Alive"]:
                resources = node["Resources"]
                n = int(resources.get("CPU", 0) // self.settings.cpus)
                if self.settings.gpus:
                    n = min(n, int(resources.get("GPU", 0) // self.settings.gpus))
                slots[node["NodeID"]] = n
        return slots

    def _choose_node(self, affinity_key: str, slots: dict[str, int]) -> str:
        """Return a free node: one that has the files already, then the least busy; "" if none."""
        nodes = self.nodes_by_affinity.setdefault(affinity_key, set())
        free = [node for node, n in slots.items() if self.node_load[node] < n]
        if not free:
            return ""
        chosen = min(free, key=lambda node: (node not in nodes, self.node_load[node] / slots[node]))
        nodes.add(chosen)
        return chosen


def _join_ray_cluster(address: str) -> Any:
    """Return the module `ray`, connected to the cluster at `address`."""
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtra("`executor: {kind: ray}`", "ray") from None
    if not ray.is_initialized():
        on_term = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address=address, log_to_driver=False, logging_level="WARNING")
        except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RunError(
                f"`executor.address`: {address}: no Ray cluster to join ({reason}); "
                f"start one with `ray start --head`"
            ) from None
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_term)  # Ray sets one of its own
    return ray


def _read_versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _NUMERICAL_LIBRARIES}


def _run_on_node(versions: dict[str, str], call: Callable[..., Any], *args: Any) -> Any:
    """Return `call(*args)` on a node; raise if its libraries differ from the driver's."""
    node_versions = _read_versions()
    for name, version in versions.items():
        if node_versions[name] != version:
            raise RunError(
                f"node {platform.node()} has {name} {node_versions[name]} and the driver "
                f"{version}; install the same versions on every node"
            )
    return call(*args)
