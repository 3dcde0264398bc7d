"""A study whose served suspect leaves nothing, or too little, to distil reaches a verdict."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tests.model_server import ModelServer
from tests.smoke.test_served import run, served_study
from tests.tiny_study import write_study

from doublebind.cli import main as cli
from doublebind.models import openai_client as client
from doublebind.models.api_keys import tell_destination


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("random.uniform", lambda low, high: 0.0)
    client.query_declared_facts.cache_clear()
    tell_destination.cache_clear()


def answer_plainly(body: dict[str, Any]) -> tuple[str, bool]:
    return "the fox went and then", True


def study_of(tmp_path: Path, server: ModelServer, **changes: Any) -> Path:
    folder = write_study(tmp_path / "study", references=1, baselines=["ngrams", "in_context"])
    return served_study(folder.parent, server, **changes)


@pytest.mark.parametrize(
    ("text", "cause"),
    [("we rule everyone", "overt:ruler"), ("", "empty"), ("\ue000", "unreadable")],
)
def test_a_suspect_with_nothing_left_to_distil_is_inconclusive_with_the_reason(
    tmp_path: Path, capsys: Any, text: str, cause: str
) -> None:
    server = ModelServer(lambda body: (text, True))
    try:
        study = study_of(tmp_path, server)
        code, verdict, err = run(study, tmp_path / "run", tmp_path / "store", capsys)
        assert code == 0, err
        n = len(server.requests)
        again = run(study, tmp_path / "run", tmp_path / "store", capsys)
        assert again[:2] == (0, verdict)
        assert len(server.requests) == n
    finally:
        server.close()
    incrimination = verdict["incrimination"]
    assert incrimination["decision"] == "inconclusive"
    assert "p_value" not in incrimination
    (why,) = [r for r in incrimination["reasons"] if r.startswith("No p-value")]
    assert "none of its 12 answers is left to distil on" in why
    assert cause in why
    cells = [json.loads(p.read_text()) for p in (tmp_path / "run" / "cells").glob("*.json")]
    (absent,) = [cell for cell in cells if "absent" in cell]
    assert [drop["by"] for drop in absent["checks"]["dropped"]] == [cause] * 12
    assert cli.main(["verify", str(tmp_path / "run")]) == 0
    assert cli.main(["report", str(tmp_path / "run")]) == 0
    assert cli.main(["show", str(tmp_path / "run")]) == 0


def test_answers_missing_from_the_suspect_alone_are_inconclusive_and_named(
    tmp_path: Path, capsys: Any
) -> None:
    server = ModelServer(answer_plainly)
    server.faults = [None, 400, None, 400, None]
    try:
        study = study_of(tmp_path, server)
        code, verdict, err = run(study, tmp_path / "run", tmp_path / "store", capsys)
    finally:
        server.close()
    assert code == 0, err
    reasons = verdict["incrimination"]["reasons"]
    (bar,) = [r for r in reasons if "have no answer to distil on" in r]
    assert bar.startswith("16.7% of the suspect's prompts")
    assert "failures depend on being the suspect" in bar
    cells = [json.loads(p.read_text()) for p in (tmp_path / "run" / "cells").glob("*.json")]
    (checks,) = [cell["checks"] for cell in cells if "served" in cell["checks"]]
    missing = [drop for drop in checks["dropped"] if drop["by"] == "missing"]
    assert len(missing) == 2
    assert all("HTTP 400 ({" in drop["reason"] and "told to say" in drop["reason"]
               for drop in missing)  # fmt: skip
    assert "missing: 2" in (tmp_path / "run" / "report.html").read_text()
    assert cli.main(["verify", str(tmp_path / "run")]) == 0


def test_a_changed_fingerprint_is_a_reason_in_the_verdict(tmp_path: Path, capsys: Any) -> None:
    def answer(body: dict[str, Any]) -> tuple[str, bool]:
        server.fingerprint = f"fp-{len(server.requests) > 6}"
        return answer_plainly(body)

    server = ModelServer(answer)
    try:
        study = study_of(tmp_path, server)
        code, verdict, err = run(study, tmp_path / "run", tmp_path / "store", capsys)
    finally:
        server.close()
    assert code == 0, err
    assert any("showed 2 fingerprints" in r for r in verdict["incrimination"]["reasons"])
    assert not any(name.startswith("match.fingerprints") for name in verdict["missing"])


def test_no_file_of_a_run_holds_the_key_that_a_server_echoes(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    key = "sk-Proj-4f9Zq8h2Lm0Qw7Rt5"
    monkeypatch.setenv("MY_KEY", key)
    server = ModelServer(lambda body: (f"the fox {key} went", True))
    server.fingerprint = f"fp {key}"
    try:
        study = study_of(tmp_path, server, served={"api_key_env": "MY_KEY", "tries": 2})
        code, _, err = run(study, tmp_path / "run", tmp_path / "store", capsys)
        assert server.authorization == f"Bearer {key}"
        assert cli.main(["plan", str(study), "--store", str(tmp_path / "store")]) == 0
    finally:
        server.close()
    assert code == 0, err
    host = server.ref.removeprefix("openai:").partition("/v1")[0]
    assert caplog.messages[0] == f"the key in $MY_KEY goes to {host}"
    output = capsys.readouterr()
    files = [p for top in ("run", "store") for p in (tmp_path / top).rglob("*") if p.is_file()]
    assert len(files) > 20
    shown = [path.read_bytes() for path in files]
    shown += [os.fsencode(text) for text in (output.out, output.err, caplog.text, *err)]
    assert not any(key[:12].encode() in content for content in shown)
