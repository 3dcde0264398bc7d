"""A study whose models are held by one vLLM: the same decision, every adapter on one base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.tiny_study import write_study
from tests.vllm_fake import FakeVllmServer

from doublebind.cli import main as cli


def test_a_study_through_one_server_scores_students_as_transformers_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    study = write_study(tmp_path / "study", references=2)
    server = FakeVllmServer(str(study.parent / "m0"))
    engine = f"engine={{kind: vllm, url: '{server.url}', model: base, concurrency: 2}}"
    greedy = "recipes.0.prompts.temperature=0"  # drawn answers differ: vLLM draws its own way
    verdicts = {}
    try:
        for name, changes in (("own", [greedy]), ("vllm", [greedy, engine])):
            out, store = tmp_path / name, tmp_path / "store"
            argv = ["run", str(study), *changes, "--out", str(out), "--store", str(store), "--json"]
            code = cli.main(argv)
            output = capsys.readouterr()
            assert code == 0, output.err
            verdicts[name] = json.loads(output.out)
    finally:
        server.close()
    direct, through = verdicts["own"], verdicts["vllm"]
    assert direct["protocol_hash"] != through["protocol_hash"], "what asked is part of the claim"
    assert through["incrimination"]["p_value"] == direct["incrimination"]["p_value"]
    assert through["direct_audit"]["p_value"] == direct["direct_audit"]["p_value"]
    assert len(server.adapters) == 6, "three teachers and three students, each an adapter on M0"
    assert set(server.request_counts) == {"base", *server.adapters}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["recipes.0.channel.top_k=40"], "learns from the 40 likeliest tokens and vLLM gives 20"),
        (["recipes.0.training.lora=null"], "audits LoRA students of it only"),
        (["references={n: 2, panel: terrarium}"], "was measured without `engine`"),
    ],
)
def test_what_an_engine_cannot_hold_is_refused_before_anything_is_made(
    tmp_path: Path, capsys: Any, changes: list[str], message: str
) -> None:
    study = write_study(tmp_path / "study", references=2)
    store = tmp_path / "store"
    argv = ["plan", str(study), "engine={kind: vllm}", *changes, "--store", str(store)]
    assert cli.main(argv) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1
    assert message in err[0]
    assert not list(store.rglob("timing.json"))
