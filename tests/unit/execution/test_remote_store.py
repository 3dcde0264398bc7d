"""A store at a URL, behind a real S3-compatible server whose connections break."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from doublebind.execution import remote_store as remote
from doublebind.execution.executor import Job, make_artefact
from doublebind.execution.remote_store import RemoteStore
from doublebind.execution.store import Store, is_url
from doublebind.schema.errors import MissingExtra, StoreError
from doublebind.schema.model_source import ModelSource
from doublebind.schema.recipe import Prompts
from doublebind.stages.distillation.student_inputs import PreferenceData, TeacherAccess

ROOT = Path(__file__).parents[3]
PROMPTS = Prompts(policy="capability", n=1)
needs_server = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("s3fs", "moto", "flask")),
    reason="s3fs and moto[server] are not installed",
)
# The S3 client's own: what it leaves open when a connection is cut.
quiet = pytest.mark.filterwarnings(
    "ignore::ResourceWarning",
    "ignore::DeprecationWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)


def fill(out: Path, *, text: str) -> None:
    (out / "sub").mkdir()
    (out / "sub" / "file.txt").write_text(text)
    (out / "other").write_text("the same everywhere")


def publish(store: Store, key: str, text: str) -> Path:
    with store.publish("kind", key) as out:
        fill(out, text=text)
    return store.path("kind", key)


# --- any filesystem: the one in memory -----------------------------------------------------------


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DOUBLEBIND_CACHE", str(tmp_path / "machine"))
    return f"memory://{uuid.uuid4().hex}"


def another_machine(url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("DOUBLEBIND_CACHE", str(folder / uuid.uuid4().hex))
    return Store(url)


def test_inputs_are_brought_from_inside_tuples_too(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Store(url)
    for key in ("ab12", "cd34", "ef56"):
        publish(first, key, key)
    second = another_machine(url, tmp_path, monkeypatch)
    at = {key: second.root / "kind" / key[:2] / key for key in ("ab12", "cd34", "ef56")}
    live = TeacherAccess(
        ModelSource(kind="folder", path=str(at["ab12"] / "model"), sha256="0"), PROMPTS, str
    )
    pair = (at["cd34"], at["ef56"])
    second.open_inputs([live, PreferenceData(at["cd34"], pair, pair, pair)])
    assert all((folder / "other").is_file() for folder in at.values())


def test_what_one_machine_publishes_another_reads(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Store(url)
    publish(first, "ab12", "hello")
    second = another_machine(url, tmp_path, monkeypatch)
    assert second.root != first.root
    assert not second.has("kind", "ffff")
    assert second.has("kind", "ab12")
    assert (second.path("kind", "ab12") / "sub" / "file.txt").read_text() == "hello"
    assert second.read_seal("kind", "ab12") == first.read_seal("kind", "ab12")
    assert second.find_problems("kind", "ab12") == []


def test_two_machines_that_make_one_cell_end_with_one_result(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = Store(url), another_machine(url, tmp_path, monkeypatch)
    with two.publish("kind", "ab12") as out:
        fill(out, text="late")
        publish(one, "ab12", "early")
    for store in (one, two):
        assert (store.path("kind", "ab12") / "sub" / "file.txt").read_text() == "early"
    assert one.read_seal("kind", "ab12") == two.read_seal("kind", "ab12")


def test_an_altered_blob_is_never_read(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "MAX_TRIES", 2)
    first = Store(url)
    publish(first, "ab12", "hello")
    assert first.remote
    sha256 = first.read_seal("kind", "ab12")["files"]["sub/file.txt"]
    first.remote.fs.pipe_file(first.remote.object_path(f"blobs/{sha256[:2]}/{sha256}"), b"hellp")
    second = another_machine(url, tmp_path, monkeypatch)
    assert second.has("kind", "ab12")
    with pytest.raises(StoreError, match="altered, it no longer hashes to its name"):
        second.path("kind", "ab12")
    assert not (second.root / "kind").exists()
    assert len(second.find_problems("kind", "ab12")) == 1


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "sub/../../outside"])
def test_a_manifest_cannot_write_outside_its_folder(
    url: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(url)
    assert store.remote
    monkeypatch.setattr(remote, "MAX_TRIES", 1)
    text = json.dumps({"kind": "kind", "key": "ab12", "files": {name: "0" * 64}})
    store.remote.fs.pipe_file(store.remote.object_path("kind/ab/ab12.json"), text.encode())
    assert store.has("kind", "ab12")
    with pytest.raises(StoreError, match="not a manifest of this artefact"):
        store.path("kind", "ab12")


def test_a_manifest_of_another_artefact_is_refused(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "MAX_TRIES", 1)
    store = Store(url)
    assert store.remote
    text = json.dumps({"kind": "kind", "key": "cd34", "files": {}})
    store.remote.fs.pipe_file(store.remote.object_path("kind/ab/ab12.json"), text.encode())
    with pytest.raises(StoreError, match="not a manifest of this artefact"):
        store.fetch("kind", "ab12")


def test_a_manifest_that_a_cut_connection_tore_is_written_again(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    store = Store(url)
    assert store.remote
    store.remote.fs.pipe_file(store.remote.object_path("kind/ab/ab12.json"), b'{"files": {"a')
    publish(store, "ab12", "hello")
    assert store.remote.has("kind", "ab12")
    assert json.loads(
        store.remote.fs.cat_file(store.remote.object_path("kind/ab/ab12.json"))
    ) == store.read_seal("kind", "ab12")


def combine(out: Path, *, first: Path, source: ModelSource) -> None:
    assert source.adapter
    texts = [(first / "other").read_text(), (Path(source.adapter) / "file.txt").read_text()]
    (out / "both").write_text("+".join(texts))


def test_a_job_finds_its_inputs_wherever_they_were_made(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(Store(url), "ab12", "hello")
    second = another_machine(url, tmp_path, monkeypatch)
    made = second.root / "kind" / "ab" / "ab12"
    source = ModelSource(kind="adapter", path="/m0", adapter=str(made / "sub"), sha256="0")
    job = Job("sum", "cd34", combine, {"first": made, "source": source})
    assert (make_artefact(second, job) / "both").read_text() == "the same everywhere+hello"


def test_lists_are_shared_and_a_line_stands_once(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = Store(url), another_machine(url, tmp_path, monkeypatch)
    assert one.lines("suspects/x") == []
    for store in (one, two, one):
        store.add_line("suspects/x", '{"a":1}')
    two.add_line("suspects/x", '{"b":2}')
    assert sorted(one.lines("suspects/x")) == ['{"a":1}', '{"b":2}']


def test_a_url_that_nothing_opens_is_one_line(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("DOUBLEBIND_CACHE", str(tmp_path))
    with pytest.raises(StoreError, match="nosuch://x: not a store"):
        Store("nosuch://x").has("kind", "ab12")
    if importlib.util.find_spec("s3fs") is None:
        with pytest.raises(MissingExtra, match=r"doublebind\[s3\]"):
            Store("s3://bucket").has("kind", "ab12")


def test_a_file_url_is_a_folder(tmp_path: Path) -> None:
    store = Store(f"file://{tmp_path}/store")
    assert store.remote is None
    assert store.root == tmp_path / "store"
    assert not is_url(str(tmp_path))


# --- a real server -------------------------------------------------------------------------------


class Cutter:
    """A TCP proxy that cuts a share of its connections after a random number of bytes."""

    def __init__(self, port: int, share: float, seed: int) -> None:
        self.target, self.share, self.rng = port, share, random.Random(seed)
        self.cuts = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            left = self.rng.randint(0, 40_000) if self.rng.random() < self.share else None
            upstream = socket.create_connection(("127.0.0.1", self.target))
            for a, b in ((client, upstream), (upstream, client)):
                threading.Thread(target=self._pump, args=(a, b, left), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, left: int | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                if left is not None:
                    if len(data) > left:
                        sink.sendall(data[:left])
                        self.cuts += 1
                        break
                    left -= len(data)
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    """The port of an S3-compatible server in a process of its own, with an empty bucket."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    code = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            break
        assert process.poll() is None
        time.sleep(0.1)
    yield port
    process.terminate()
    process.wait()


@pytest.fixture
def s3(server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Point the S3 client at a port."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
        "AWS_MAX_ATTEMPTS": "1",
        "DOUBLEBIND_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)

    def point(port: int) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")

    point(server)
    fs = RemoteStore("s3://bucket").fs
    if not fs.exists("bucket"):
        fs.mkdir("bucket")
    return point


@needs_server
@quiet
def test_an_s3_server_keeps_artefacts_and_the_first_of_two_wins(
    s3: Callable[[int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://bucket/{uuid.uuid4().hex}"
    one, two = Store(url), another_machine(url, tmp_path, monkeypatch)
    with two.publish("kind", "ab12") as out:
        fill(out, text="late")
        publish(one, "ab12", "early")
    assert (two.path("kind", "ab12") / "sub" / "file.txt").read_text() == "early"
    one.add_line("suspects/x", "{}")
    assert two.lines("suspects/x") == ["{}"]


@needs_server
@quiet
def test_no_torn_artefact_is_ever_read_though_connections_are_cut(
    server: int, s3: Callable[[int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two writers publish the same cells over cut connections while a reader reads all it sees."""
    url = f"s3://bucket/{uuid.uuid4().hex}"
    cutter = Cutter(server, share=0.6, seed=0)
    s3(cutter.port)
    monkeypatch.setattr(remote, "MAX_TRIES", 40)
    monkeypatch.setattr("time.sleep", lambda _: None)
    writers = [another_machine(url, tmp_path, monkeypatch) for _ in range(2)]
    keys = [f"{i:04d}" for i in range(12)]
    torn: list[str] = []
    seen: set[str] = set()
    over = threading.Event()

    def content(key: str, who: int) -> str:
        return f"{key}{who}" * 4_000  # 20 kB: cuts fall inside

    def write(who: int) -> None:
        for key in keys:
            publish(writers[who], key, content(key, who))

    reader = another_machine(url, tmp_path, monkeypatch)

    def read() -> None:
        while not over.is_set() or len(seen) < len(keys):
            for key in set(keys) - seen:
                if reader.has("kind", key):
                    folder = reader.path("kind", key)
                    text = (folder / "sub" / "file.txt").read_text()
                    if text not in (content(key, 0), content(key, 1)):
                        torn.append(key)
                    seen.add(key)

    threads = [threading.Thread(target=write, args=(who,)) for who in (0, 1)]
    threads.append(threading.Thread(target=read))
    for thread in threads:
        thread.start()
    for thread in threads[:2]:
        thread.join(120)
    over.set()
    threads[2].join(60)
    cutter.close()
    assert not any(thread.is_alive() for thread in threads)
    assert torn == []
    assert seen == set(keys)
    assert cutter.cuts >= 5
    for key in keys:
        stores = (*writers, reader)
        assert len({(s.path("kind", key) / "sub" / "file.txt").read_text() for s in stores}) == 1


@needs_server
@quiet
def test_a_writer_killed_half_way_leaves_nothing_to_be_read(
    s3: Callable[[int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://bucket/{uuid.uuid4().hex}"
    code = (
        "import os\n"
        "from doublebind.execution.remote_store import RemoteStore\n"
        "from doublebind.execution.store import Store\n"
        # Dies where the manifest would be written: all blobs are there by then.
        "RemoteStore.create_object = lambda *a: os.kill(os.getpid(), 9)\n"
        f"with Store({url!r}).publish('kind', 'ab12') as out: (out / 'a').write_text('half')\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], check=False, env=env)
    assert done.returncode == -9
    store = another_machine(url, tmp_path, monkeypatch)
    assert not store.has("kind", "ab12")
    assert store.remote
    assert store.remote.fs.find(store.remote.object_path("blobs")), "it died after its blobs"
    publish(store, "ab12", "whole")
    assert (store.path("kind", "ab12") / "sub" / "file.txt").read_text() == "whole"


@needs_server
@quiet
def test_a_server_out_of_reach_is_one_line(
    s3: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    s3(port)
    monkeypatch.setattr(remote, "MAX_TRIES", 2)
    with pytest.raises(StoreError, match=r"no answer after 2 tries .*; check the connection"):
        Store("s3://bucket/x").has("kind", "ab12")


class Failing:
    """A filesystem whose first requests fail, each with the next of `errors`."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.requests = list(errors), 0

    def _strip_protocol(self, url: str) -> str:
        return url

    def exists(self, _: str) -> bool:
        self.requests += 1
        if self.errors:
            raise self.errors.pop(0)
        return True


def behind(*errors: Exception) -> tuple[remote.RemoteStore, Failing]:
    store, fs = remote.RemoteStore("memory://x"), Failing(*errors)
    store.__dict__["fs"] = fs
    return store, fs


def test_a_request_is_tried_again_after_ever_longer_random_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    windows: list[float] = []
    slept: list[float] = []
    monkeypatch.setattr("random.uniform", lambda low, high: windows.append(high) or high / 2)
    monkeypatch.setattr("time.sleep", slept.append)
    store, fs = behind(*[TimeoutError("late")] * 7)
    assert store.has("kind", "ab12")
    assert fs.requests == 8
    assert windows == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0])
    assert slept == pytest.approx([high / 2 for high in windows])


def test_the_last_failure_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    store, fs = behind(*[TimeoutError("late")] * 8)
    with pytest.raises(StoreError, match=r"no answer after 8 tries \(TimeoutError: late\)"):
        store.has("kind", "ab12")
    assert fs.requests == 8


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (PermissionError("no"), StoreError, "access refused"),
        (FileNotFoundError("x"), FileNotFoundError, "x"),
        (MissingExtra("a store", "s3"), MissingExtra, r"doublebind\[s3\]"),
    ],
)
def test_what_another_try_would_not_change_is_raised_at_once(
    error: Exception, kind: type[Exception], message: str
) -> None:
    store, fs = behind(error)
    with pytest.raises(kind, match=message):
        store.has("kind", "ab12")
    assert fs.requests == 1
