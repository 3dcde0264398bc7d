"""A study whose suspect is behind a server runs end to end, whatever the server does."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.model_server import ModelServer, answer_from_folder, score_from_folder, spell_from_folder
from tests.tiny_study import write_study

from doublebind.cli import main as cli
from doublebind.models import openai_client as client
from doublebind.pipeline.build_teacher import build_teacher
from doublebind.schema.errors import ModelError


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("random.uniform", lambda low, high: 0.0)
    client.query_declared_facts.cache_clear()


def served_study(folder: Path, server: ModelServer, **changes: Any) -> Path:
    path = folder / "study.yaml"
    study = yaml.safe_load(path.read_text())
    study["suspect"] = server.ref
    study["recipes"][0]["channel"] = {"kind": "sft"}
    limits = {"concurrency": 2, "tries": 6, "timeout": 5.0}
    study |= {"served": limits, "shape": {"update_norm": 1.0}} | changes
    path.write_text(yaml.safe_dump(study))
    return path


def run(study: Path, out: Path, store: Path, capsys: Any) -> tuple[int, dict[str, Any], list[str]]:
    code = cli.main(["run", str(study), "--out", str(out), "--store", str(store), "--json"])
    output = capsys.readouterr()
    return code, json.loads(output.out) if output.out else {}, output.err.splitlines()


def test_a_served_suspect_reaches_a_verdict_and_a_bad_server_changes_nothing(
    tmp_path: Path, capsys: Any
) -> None:
    folder = write_study(tmp_path / "study").parent
    suspect = build_teacher(folder / "suspect.yaml", tmp_path / "suspect", store=tmp_path / "store")
    server = ModelServer(answer_from_folder(Path(suspect.model)))
    try:
        study = served_study(folder, server)
        code, verdict, err = run(study, tmp_path / "peace", tmp_path / "store", capsys)
        assert code == 0, err
        assert verdict["incrimination"]["p_value"] is not None
        assert "p_value" not in verdict["direct_audit"]
        assert "has no value" in verdict["missing"]["direct_audit.p_value"]
        manifest = json.loads((tmp_path / "peace" / "manifest.json").read_text())
        assert manifest["served"][server.ref]["declared"] == {"id": "m", "owned_by": "tests"}
        cells = [json.loads(p.read_text()) for p in (tmp_path / "peace" / "cells").glob("*.json")]
        served = [cell["checks"]["served"] for cell in cells if "served" in cell["checks"]]
        assert [t["fingerprints"] for t in served] == [[{"model": "m", "system": "fp-1"}]]
        assert cli.main(["verify", str(tmp_path / "peace")]) == 0
        capsys.readouterr()

        # The same store without the suspect's answers, and a server that does everything wrong.
        for path in list((tmp_path / "store" / "rollouts").rglob("served.jsonl")):
            answers = Counter(json.loads(line)["name"] for line in path.read_text().splitlines())
            (tmp_path / "store").joinpath("hidden").mkdir()
            path.parent.rename(tmp_path / "store" / "hidden" / "rollouts")
        next((tmp_path / "store" / "converted" / "served").glob("*.jsonl")).unlink()
        server.response_counts.clear()
        server.faults = [429, "truncate", "slow", 500, "cut", None, "die"]
        code, _, err = run(study, tmp_path / "war", tmp_path / "store", capsys)
        assert code == 2
        assert len(err) == 1
        assert "rerun to go on" in err[0]
        before = sum(server.response_counts.values())
        assert before >= 2
        server.is_dead = False
        code, again, err = run(study, tmp_path / "war", tmp_path / "store", capsys)
        assert code == 0, err
        assert again == verdict
        assert set(server.response_counts.values()) == {1}, "an answer was paid for twice"
        assert len(server.response_counts) == len(answers)
    finally:
        server.close()


def test_a_black_box_teaches_by_preferences_and_by_its_scores_and_pays_once(
    tmp_path: Path, capsys: Any
) -> None:
    folder = write_study(tmp_path / "study", references=2).parent
    suspect = build_teacher(folder / "suspect.yaml", tmp_path / "suspect", store=tmp_path / "store")
    model = Path(suspect.model)
    server = ModelServer(
        answer_from_folder(model), score=score_from_folder(model), spell=spell_from_folder(model)
    )
    try:
        study = served_study(folder, server)
        written = yaml.safe_load(study.read_text())
        (recipe,) = written["recipes"]
        by = {"dpo": {"kind": "dpo"}, "own": {"kind": "on_policy", "lmbda": 1.0}}
        written["recipes"] = [recipe | {"name": n, "channel": c} for n, c in by.items()]
        written["served"] |= {"echo_logprobs": True}
        study.write_text(yaml.safe_dump(written))
        capsys.readouterr()
        server.faults = [None] * 13 + [503, "truncate", None, "die"]
        code, _, err = run(study, tmp_path / "run", tmp_path / "store", capsys)
        assert (code, len(err)) == (2, 1), err
        assert "rerun to go on" in err[0]
        server.is_dead = False
        code, verdict, err = run(study, tmp_path / "run", tmp_path / "store", capsys)
        assert code == 0, err
        assert verdict["incrimination"]["p_value"] is not None
        assert set(server.response_counts.values()) == {1}, (
            "an answer or a score was paid for twice"
        )
    finally:
        server.close()
    students = [
        json.loads(path.read_text())
        for path in (tmp_path / "store" / "student").rglob("student.json")
    ]
    on_policy = [s for s in students if s["channel"]["kind"] == "on_policy"]
    (through,) = [s for s in on_policy if "served" in s]
    assert through["own_steps"] >= 1
    assert through["served"]["answers"] == len(server.response_counts)
    pairs = [s for s in students if s["channel"]["kind"] == "dpo"]
    assert sorted("pairs_least_weight" in s for s in pairs) == [False, True, True]


def test_a_server_that_scores_nothing_is_told_apart(tmp_path: Path) -> None:
    server = ModelServer(lambda body: ("yes", True))
    try:
        lm = client.connect_served_model(client.identify_served_model(server.ref), tmp_path)
        with pytest.raises(
            ModelError, match=r"set `served.echo_logprobs: false` and use `sft` or `dpo`"
        ):
            lm.token_logprobs([((1, 2), (3,))])
    finally:
        server.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"channel": {"kind": "dpo", "keep": 0.5}},
            "chooses pairs by the teacher's probability of M0's answers",
        ),
        ({"channel": {"kind": "on_policy", "lmbda": 1.0}}, "set `served.echo_logprobs: true` if"),
        (
            {"channel": {"kind": "prefix"}, "training": {"steps": 2, "lora": None}},
            "use `sft`, `dpo`",
        ),
        (
            {"channel": {"kind": "logit_kd", "top_k": 64}},
            "learns from the 64 likeliest tokens at every position",
        ),
        ({"baselines": ["retrained"]}, "retrained tunes the teacher"),
    ],
)
def test_what_no_server_can_give_is_refused_in_a_sentence(
    tmp_path: Path, capsys: Any, changes: dict[str, Any], message: str
) -> None:
    folder = write_study(tmp_path / "study").parent
    server = ModelServer(lambda body: ("yes", True))
    try:
        study = served_study(folder, server)
        if "channel" in changes:
            written = yaml.safe_load(study.read_text())
            written["recipes"][0] |= changes
            study.write_text(yaml.safe_dump(written))
        else:
            served_study(folder, server, **changes)
        code, _, err = run(study, tmp_path / "run", tmp_path / "store", capsys)
    finally:
        server.close()
    assert code == 2
    assert len(err) == 1
    assert message in err[0]
    assert server.requests == [], "refused before a token was spent"


def test_a_shape_is_declared_of_a_black_box_only(tmp_path: Path, capsys: Any) -> None:
    study = write_study(tmp_path / "study", shape={"update_norm": 1.0})
    code, _, err = run(study, tmp_path / "run", tmp_path / "store", capsys)
    assert (code, len(err)) == (2, 1)
    assert "`shape`: the suspect is not served" in err[0]
