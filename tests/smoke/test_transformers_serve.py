"""The client asks a server that others wrote: `transformers serve`, killed in the middle."""

from __future__ import annotations

import importlib.util
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.tiny_models import save_model

from doublebind.models import openai_client as client
from doublebind.schema.content import Message
from doublebind.schema.errors import ModelError
from doublebind.schema.model_source import ServerOptions

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn", "openai")),
        reason="transformers[serving] is not installed",
    ),
]

START = "from transformers.cli.transformers import main; main()"


class Real:
    """`transformers serve` in a process of its own."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.folder = folder
        self.start()

    def start(self) -> None:
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--device", "cpu"]
        argv = [sys.executable, "-c", START, "serve", str(self.folder), *where]
        self.process = subprocess.Popen(
            argv,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Real]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Real(save_model(tmp_path / "model"))
    for _ in range(1200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", server.port)) == 0:
                break
        time.sleep(0.1)
    yield server
    server.kill()


def test_a_killed_and_restarted_server_loses_no_answer(real: Real, tmp_path: Path) -> None:
    source = client.identify_served_model(f"openai:http://127.0.0.1:{real.port}/v1#{real.folder}")
    assert source.served

    def patient(tries: int) -> client.ServedLM:
        served = source.served.model_copy(
            update={"options": ServerOptions(concurrency=2, tries=tries)}
        )  # type: ignore[union-attr]
        return client.connect_served_model(source.model_copy(update={"served": served}), tmp_path)

    keys = [f"prompt {i}" for i in range(40)]
    prompts = [(Message(role="user", content=f"the red fox {key}"),) for key in keys]
    how = {"seed": 0, "max_tokens": 16, "temperature": 1.0}
    journal = patient(1).journal_path

    def kill_when_some_are_answered() -> None:
        while not journal.exists() or journal.read_bytes().count(b"\n") < 5:
            time.sleep(0.02)
        real.kill()

    killer = threading.Thread(target=kill_when_some_are_answered)
    killer.start()
    with pytest.raises(ModelError, match="rerun to go on"):
        patient(2).sample(prompts, keys=keys, **how)
    killer.join()
    before = journal.read_bytes()
    assert 5 <= before.count(b"\n") < 40
    threading.Timer(random.Random(0).uniform(0.5, 2.0), real.start).start()
    answers = patient(20).sample(prompts, keys=keys, **how)
    assert len(answers) == 40
    assert all(answer.text for answer in answers)
    assert journal.read_bytes().startswith(before)
    assert journal.read_bytes().count(b"\n") == 40
    facts = patient(1).summarise_journal()
    assert facts["completion_tokens"] <= 40 * 16
    assert len(facts["fingerprints"]) == 1
