"""Places where calls run: this process, spawned processes, or the nodes of a Ray cluster.

All three take a call and give a future, so that one scheduler serves them. Knows processes,
threads and nodes. Does not know jobs, artefacts or the ledger.
"""

from __future__ import annotations

import importlib.metadata
import logging
import multiprocessing
import os
import platform
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, Protocol

from doublebind.schema.errors import ConfigError, MissingExtra, RunError
from doublebind.schema.executor import RayOptions

log = logging.getLogger("doublebind.execution.backends")

_NUMERICAL_LIBRARIES = ("doublebind", "torch", "transformers", "peft")
"""Libraries whose versions decide numbers, hence must be the same on every node."""
_FORWARDED_VARIABLES = ("HF_HUB_OFFLINE", "OMP_WAIT_POLICY")


class Backend(Protocol):
    """A place where calls run."""

    @property
    def width(self) -> int:
        """How many calls it runs at once; more would wait."""
        ...

    def submit(
        self, call: Callable[..., Any], *args: Any, affinity_key: str, memory: int
    ) -> Future[Any]:
        """Return the future of `call(*args)`.

        A future that ends in an exception says that the call was lost: its process or node died.
        `call` itself is expected to return its own failures.

        Args:
            call: A module-level function.
            args: Small values that can cross processes.
            affinity_key: Calls with the same text read the same files and are best kept together.
            memory: Bytes that the call takes; 0 where that is not known.
        """
        ...

    def close(self, *, cancel: bool) -> None:
        """End; `now` gives up what still runs."""
        ...


class InProcess:
    """Runs each call in this process as it is submitted."""

    width = 1

    def submit(
        self, call: Callable[..., Any], *args: Any, affinity_key: str, memory: int
    ) -> Future[Any]:
        """See `Pool`; `affinity_key` and `memory` mean nothing here."""
        future: Future[Any] = Future()
        future.set_result(call(*args))
        return future

    def close(self, *, cancel: bool) -> None:
        """See `Pool`."""


class ProcessBackend:
    """Runs calls in spawned processes of this machine, each with an equal share of the cores."""

    def __init__(self, workers: int, gpus: Sequence[str] = ()) -> None:
        """Start `workers` processes at most, each when a call first needs it.

        Each sees all `gpus` (as `CUDA_VISIBLE_DEVICES` names them), the n-th first in its place n:
        a process computes on the first that it sees.
        """
        # By workers, not by calls: threads decide the last bits, and a resumed run has fewer.
        self.threads = max(1, (os.cpu_count() or 1) // workers)
        self.width = workers
        self.idle_processes: list[ProcessPoolExecutor] = []
        self.process_places: dict[ProcessPoolExecutor, int] = {}
        """Process -> its place among the workers."""
        self.gpus = tuple(gpus)

    def submit(
        self, call: Callable[..., Any], *args: Any, affinity_key: str, memory: int
    ) -> Future[Any]:
        """See `Pool`. Each process is a pool of its own, so that a death takes one call with it."""
        process = self.idle_processes.pop() if self.idle_processes else self._start_process()
        future = process.submit(call, *args)
        future.add_done_callback(lambda done: self._release_process(process, done))
        return future

    def _start_process(self) -> ProcessPoolExecutor:
        place = min(set(range(self.width)) - set(self.process_places.values()))
        first = place % len(self.gpus) if self.gpus else 0
        process = ProcessPoolExecutor(
            1,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_initialise_process,
            initargs=(self.threads, (*self.gpus[first:], *self.gpus[:first])),
        )
        self.process_places[process] = place
        return process

    def _release_process(self, process: ProcessPoolExecutor, future: Future[Any]) -> None:
        if future.cancelled() or future.exception() is None:
            self.idle_processes.append(process)
        else:
            del self.process_places[process]

    def close(self, *, cancel: bool) -> None:
        """See `Pool`; calls that run are waited for, since they end soon and keep their work."""
        for process in list(self.process_places):
            process.shutdown(cancel_futures=cancel)


def _initialise_process(threads: int, gpus: Sequence[str]) -> None:
    """Say what a fresh process may use, before it imports torch."""
    exit_with_parent()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)


def exit_with_parent() -> None:
    """End this process, if it was started by another, when that one is gone, however it went.

    One whose parent was killed would wait for calls for ever, with the memory of its last ones.
    """
    if parent := multiprocessing.parent_process():
        threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _exit_after(parent: Any) -> None:
    parent.join()
    os._exit(1)


class RayBackend:
    """Runs calls as tasks of a Ray cluster (Moritz et al. 2018, arXiv 1712.05889).

    Only arguments and outcomes pass through Ray, a few kilobytes each. Ray's own retries are off:
    the scheduler retries, and the ledger says why.
    """

    def __init__(self, settings: RayOptions) -> None:
        """Join the cluster at `settings.address`.

        Raises:
            MissingExtra: If Ray is not installed.
            RunError: If there is no cluster at the address.
            ConfigError: If no node has what a cell asks for.
        """
        try:
            import ray  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise MissingExtra("`executor: {kind: ray}`", "ray") from None
        self.ray: Any = ray
        self.settings = settings
        if not ray.is_initialized():
            try:
                ray.init(address=settings.address, log_to_driver=False, logging_level="WARNING")
            except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise RunError(
                    f"`executor.address`: {settings.address}: no Ray cluster to join ({reason}); "
                    f"start one with `ray start --head`"
                ) from None
        env = {name: os.environ[name] for name in _FORWARDED_VARIABLES if name in os.environ}
        task = ray.remote(
            num_cpus=settings.cpus,
            num_gpus=settings.gpus,
            max_retries=0,
            # As `Processes` does: threads decide the last bits.
            runtime_env={"env_vars": {**env, "OMP_NUM_THREADS": str(settings.cpus)}},
        )
        self.remote_task = task(_run_on_node)
        self.versions = _read_versions()
        self.object_refs: dict[Future[Any], Any] = {}
        self.node_load: Counter[str] = Counter()
        self.nodes_by_affinity: dict[str, set[str]] = {}
        self.width = sum(self._count_slots().values())
        if not self.width:
            asked = f"{settings.cpus} CPUs and {settings.gpus:g} GPUs"
            raise ConfigError(f"`executor`: no node of the cluster has {asked}; ask for less")

    def submit(
        self, call: Callable[..., Any], *args: Any, affinity_key: str, memory: int
    ) -> Future[Any]:
        """See `Pool`."""
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
            # Soft: where the node is gone by then, any other will do.
            strategy = strategies.NodeAffinitySchedulingStrategy(node, soft=True)
            options["scheduling_strategy"] = strategy
        ref = self.remote_task.options(**options).remote(self.versions, call, *args)
        future: Future[Any] = ref.future()
        self.object_refs[future] = ref
        self.node_load[node] += 1
        future.add_done_callback(lambda done: self._release_slot(done, node))
        return future

    def close(self, *, cancel: bool) -> None:
        """See `Pool`; the connection stays, for the next stage."""
        for ref in list(self.object_refs.values()) if cancel else ():
            self.ray.cancel(ref, force=True)

    def _release_slot(self, future: Future[Any], node: str) -> None:
        self.object_refs.pop(future, None)
        self.node_load[node] -= 1

    def _count_slots(self) -> dict[str, int]:
        """Return node -> calls that fit on it, of the nodes alive."""
        found = {}
        for node in self.ray.nodes():
            if node["Alive"]:
                has = node["Resources"]
                fits = int(has.get("CPU", 0) // self.settings.cpus)
                if self.settings.gpus:
                    fits = min(fits, int(has.get("GPU", 0) // self.settings.gpus))
                found[node["NodeID"]] = fits
        return found

    def _choose_node(self, affinity_key: str, slots: dict[str, int]) -> str:
        """Return the node to prefer: free, one that holds the files already, least busy."""
        homes = self.nodes_by_affinity.setdefault(affinity_key, set())
        free = [node for node, fits in slots.items() if self.node_load[node] < fits]
        if not free:
            return ""
        chosen = min(free, key=lambda node: (node not in homes, self.node_load[node] / slots[node]))
        homes.add(chosen)
        return chosen


def _read_versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _NUMERICAL_LIBRARIES}


def _run_on_node(versions: dict[str, str], call: Callable[..., Any], *args: Any) -> Any:
    """Run on a node: refuse to compute with other versions than the driver's."""
    mine = _read_versions()
    for name, version in versions.items():
        if mine[name] != version:
            raise RunError(
                f"node {platform.node()} has {name} {mine[name]} and the driver {version}; "
                f"install the same versions on every node"
            )
    return call(*args)
