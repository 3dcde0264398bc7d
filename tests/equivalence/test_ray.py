"""A study on the nodes of a Ray cluster gives the numbers of one machine, whoever dies."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.tiny_study import write_study

from doublebind import verify
from doublebind.execution.executor import Executor, Job
from doublebind.execution.ledger import Ledger, read_ledger
from doublebind.execution.store import Store
from doublebind.pipeline import run as pipeline
from doublebind.runs.run import Run
from doublebind.schema.errors import ConfigError, ModelError, RunError
from doublebind.schema.executor import RayOptions
from doublebind.schema.study import load_study

ROOT = Path(__file__).parents[2]
MINIATURE = ROOT / "studies" / "terrarium-miniature" / "study.yaml"
WORKERS = 2
THREADS = max(1, (os.cpu_count() or 1) // WORKERS)
"""What a local worker gets: Ray's must compute with as many to give the same bits."""

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed"),
    # Ray's own: files it leaves open, and options whose defaults it announces to change.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes with room for one cell each; processes of this machine, as Ray tests itself."""
    import ray
    from ray.cluster_utils import Cluster

    before = dict(os.environ)
    # Workers inherit it, and find the library and these tests.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    room = {"num_cpus": THREADS, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=room)
    nodes.add_node(num_cpus=THREADS, object_store_memory=80 * 2**20)
    os.environ["RAY_ADDRESS"] = nodes.address
    yield nodes
    ray.shutdown()
    nodes.shutdown()
    os.environ.clear()
    os.environ.update(before)


def write(out: Path, *, text: str) -> None:
    (out / "text").write_text(text)


def refuse(out: Path) -> None:
    raise ModelError("model x: broken; use another")


def die_once(out: Path, *, mark: Path) -> None:
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    (out / "text").write_text("survived")


def die(out: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def executor(folder: Path, **changes: Any) -> Executor:
    on = RayOptions(kind="ray", cpus=THREADS, **changes)
    return Executor(Store(folder / "store"), Ledger(folder / "ledger.jsonl"), on)


def numbers(run: Run) -> dict[str, Any]:
    return json.loads((run.path / "verdict.json").read_text())


def test_cells_run_on_the_cluster_and_what_died_is_tried_again(
    cluster: Any, tmp_path: Path
) -> None:
    jobs = [Job("text", f"{i:02d}", write, {"text": str(i)}) for i in range(6)]
    jobs.append(Job("text", "aa", die_once, {"mark": tmp_path / "mark"}))
    paths = executor(tmp_path).map(jobs)
    assert [(p / "text").read_text() for p in paths] == [*"012345", "survived"]
    entries = read_ledger(tmp_path / "ledger.jsonl")
    assert Counter(e.artefact_key for e in entries if e.status == "done") == dict.fromkeys(
        [job.content_key for job in jobs], 1
    )
    assert ["worker was lost, 1 of 4 times" in (e.error or "") for e in entries if e.error] == [
        True
    ]


def test_failures_keep_their_kind_and_stop_no_other(cluster: Any, tmp_path: Path) -> None:
    jobs = [Job("text", "aa", refuse, {}), Job("text", "00", write, {"text": "0"})]
    with pytest.raises(ModelError, match="model x: broken"):
        executor(tmp_path).map(jobs)
    with pytest.raises(RunError, match="worker was lost, 2 of 2 times"):
        executor(tmp_path, retries=1).map([Job("text", "bb", die, {})])
    last = {e.artefact_key: e.status for e in read_ledger(tmp_path / "ledger.jsonl")}
    assert last == {"aa": "failed", "00": "done", "bb": "failed"}


def test_what_no_node_has_is_refused(cluster: Any, tmp_path: Path) -> None:
    job = Job("text", "00", write, {"text": "0"})
    with pytest.raises(ConfigError, match="no node of the cluster has"):
        executor(tmp_path, gpus=1).map([job])


def both(study: Path, folder: Path, *changes: str) -> tuple[Run, Run]:
    """Run a study on local processes and on the cluster, each from an empty store."""
    runs = []
    for name, on in (
        ("local", (f"executor.workers={WORKERS}",)),
        ("ray", (f"executor={{kind: ray, cpus: {THREADS}}}", *changes)),
    ):
        loaded = load_study(study, *on)
        runs.append(
            pipeline.run(loaded, folder / name, folder=study.parent, store=folder / f"store-{name}")
        )
    return runs[0], runs[1]


def finished_once(run: Run) -> None:
    needed = {key for keys in run.manifest.artefacts.values() for key in keys}
    done = Counter(e.artefact_key for e in run.ledger if e.status == "done")
    assert set(done) == needed, "a cell was lost"
    assert set(done.values()) == {1}, "a cell was done twice"


def test_a_study_gives_the_same_verdict_as_on_one_machine(cluster: Any, tmp_path: Path) -> None:
    local, ray = both(write_study(tmp_path / "study"), tmp_path)
    assert numbers(ray) == numbers(local)
    finished_once(ray)
    assert verify(ray.path).problems == ()
    assert sum(ray.status().nodes[os.uname().nodename].values()) == len(
        {e.artefact_key for e in ray.ledger}
    )


def busy_workers() -> list[Any]:
    """Processes of Ray that run a cell now: it writes the task's name into their titles."""
    import psutil

    busy = []
    for process in psutil.process_iter(["cmdline"]):
        title = " ".join(process.info["cmdline"] or [])
        if title.startswith("ray::_remote"):
            busy.append(process)
    return busy


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_miniature_survives_twenty_murders(cluster: Any, tmp_path: Path) -> None:
    kills: list[int] = []
    over = threading.Event()
    rng = random.Random(0)

    def murder() -> None:
        while len(kills) < 20 and not over.wait(rng.uniform(0.5, 4.0)):
            victims = busy_workers()
            if victims:
                victim = rng.choice(victims)
                victim.kill()
                kills.append(victim.pid)

    murderer = threading.Thread(target=murder)
    study = load_study(MINIATURE, f"executor.workers={WORKERS}")
    local = pipeline.run(
        study, tmp_path / "local", folder=MINIATURE.parent, store=tmp_path / "store-local"
    )
    murderer.start()
    try:
        on = load_study(MINIATURE, f"executor={{kind: ray, cpus: {THREADS}, retries: 20}}")
        ray = pipeline.run(
            on, tmp_path / "ray", folder=MINIATURE.parent, store=tmp_path / "store-ray"
        )
    finally:
        over.set()
        murderer.join()
    assert numbers(ray) == numbers(local)
    finished_once(ray)
    lost = [e for e in ray.ledger if e.status == "failed"]
    assert len(kills) == 20
    assert 10 <= len(lost) <= 20, "most met a cell at work; each left its cause in the ledger"
