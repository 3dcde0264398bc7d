"""`verify` names whatever was altered in a run, on a machine that never saw it made."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from tests.tiny_study import write_study

import doublebind
from doublebind.cli.main import main
from doublebind.runs.seal import seal_run
from doublebind.schema.errors import RunError

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with `run/` and `store/`."""
    folder = write_study(tmp_path_factory.mktemp("verify") / "study").parent
    doublebind.run(folder / "study.yaml", folder / "run", store=folder / "store")
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run as another machine has it: its manifest names no store that is here."""
    monkeypatch.setenv("DOUBLEBIND_STORE", str(tmp_path / "none"))
    copy = Path(shutil.copytree(made / "run", tmp_path / "elsewhere"))
    edit(copy / "manifest.json", lambda m: m.update(store=str(tmp_path / "not-here")))
    seal_run(copy)
    return copy


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content, indent=1))


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def verify(capsys: Capture, run: Path, *argv: str, code: int) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["verify", str(run), *argv, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_an_untouched_run_is_consistent_without_its_store(run: Path, capsys: Capture) -> None:
    found = verify(capsys, run, code=0)
    assert found["status"] == "consistent"
    assert found["verified"] is False, "nothing outside the run was compared"
    assert found["problems"] == []
    pack, store = found["unchecked"]
    assert "pack" in pack
    assert "not-here" in store
    assert found["protocol_hash"] == doublebind.Run(run).manifest.protocol_hash


# Each lie is told twice: as it is, and with the seal renewed to match it.
LIES: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "p": (
        "verdict.json",
        lambda v: v["incrimination"].update(p_value=v["incrimination"]["p_value"] + 0.01),
        "`incrimination.p_value`",
    ),
    "decision": (
        "verdict.json",
        lambda v: v["incrimination"].update(decision="incriminated"),
        "`incrimination.decision` is 'incriminated', recomputed 'inconclusive'",
    ),
    "strength": ("verdict.json", lambda v: v.update(strength="standard"), "`strength`"),
    "reason": (
        "verdict.json",
        lambda v: v["incrimination"]["reasons"].pop(),
        "`incrimination.reasons`",
    ),
    "sentence": ("verdict.json", lambda v: v.update(sentence="U is fine."), "`sentence`"),
    "added key": ("verdict.json", lambda v: v.update(benign=True), "`benign` is True"),
    "removed key": ("verdict.json", lambda v: v.pop("missing"), "`missing` is absent"),
    "zero for absent": (
        "verdict.json",
        lambda v: v["incrimination"].update(power=0),
        "`incrimination.power` is 0, recomputed absent",
    ),
    "true for 1": ("verdict.json", lambda v: v.update(schema=True), "`schema` is True"),
    "score": (
        "evidence.json",
        lambda e: e["scores"].update(dict.fromkeys(e["scores"], 0.5)),
        "`scores.",
    ),
    "earlier protocols": (
        "manifest.json",
        lambda m: m.update(earlier_protocols=3),
        "`earlier_protocols` is 0, recomputed 3",
    ),
    "alpha": (
        "manifest.json",
        lambda m: m["protocol"].update(alpha=0.3),
        "`protocol_hash` is",
    ),
    "roles": (
        "manifest.json",
        lambda m: m["teachers"][0].update(role="reference"),
        "`teachers`: the suspects are not the protocol's",
    ),
    "labels": (
        "manifest.json",
        lambda m: m["teachers"][0].update(label="nobody"),
        "recomputed",
    ),
    "shapes": ("shapes.json", lambda s: s.clear(), "`missing.match`"),
}


@pytest.mark.parametrize("renew", [False, True], ids=["sealed", "seal renewed"])
@pytest.mark.parametrize("lie", LIES)
def test_every_altered_number_or_word_is_named(
    run: Path, capsys: Capture, lie: str, renew: bool
) -> None:
    name, change, said = LIES[lie]
    edit(run / name, change)
    if renew:
        seal_run(run)
    problems = verify(capsys, run, code=1)["problems"]
    assert any(said in line for line in problems), problems
    altered = f"{run / name}: altered since the run ended"
    assert (altered in problems) is not renew


def rewrite(run: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    change(pd.read_parquet(run / "scores.parquet")).to_parquet(run / "scores.parquet", index=False)


def a_student_row(scores: pd.DataFrame) -> pd.Series:
    rows = scores[(scores["model_kind"] == "student") & (scores["endpoint"] == "goal/gold")]
    rows = scores[(scores["model_kind"] == "student")] if rows.empty else rows
    return rows.iloc[7]


def test_a_removed_score_row_is_named_even_under_a_new_seal(run: Path, capsys: Capture) -> None:
    row = a_student_row(doublebind.Run(run).scores)
    rewrite(run, lambda scores: scores.drop(index=row.name))
    seal_run(run)
    problems = verify(capsys, run, code=1)["problems"]
    named = [line for line in problems if "no row for" in line]
    assert len(named) == 1
    assert row["item"] in named[0]
    assert row["teacher"] in named[0]


def test_an_item_removed_from_every_model_is_named(run: Path, capsys: Capture) -> None:
    item = a_student_row(doublebind.Run(run).scores)["item"]
    rewrite(run, lambda scores: scores[scores["item"] != item])
    seal_run(run)
    problems = verify(capsys, run, code=1)["problems"]
    assert sum("no row for" in line and item in line for line in problems) == 5
    assert any("4 rows more do not agree" in line for line in problems), "9 models were audited"


def test_a_changed_value_and_a_doubled_row_are_named(run: Path, capsys: Capture) -> None:
    row = a_student_row(doublebind.Run(run).scores)

    def change(scores: pd.DataFrame) -> pd.DataFrame:
        scores.loc[row.name, "value"] = 0.123
        return pd.concat([scores, scores.iloc[[0]]], ignore_index=True)

    rewrite(run, change)
    seal_run(run)
    problems = verify(capsys, run, code=1)["problems"]
    assert any("0.123 for item" in line and str(row["value"]) in line for line in problems)
    assert any("two rows for" in line for line in problems)


def test_scores_of_another_shape_are_problems_and_no_crash(run: Path, capsys: Capture) -> None:
    before = (run / "scores.parquet").read_bytes()
    for change in (
        lambda s: s.drop(columns="teacher"),
        lambda s: s.drop(columns="value"),
        lambda s: s.assign(seed="zero"),
        lambda s: s.assign(value="high"),
        lambda s: s.head(0),
    ):
        (run / "scores.parquet").write_bytes(before)
        rewrite(run, change)
        assert verify(capsys, run, code=1)["problems"]


def test_a_flipped_bit_in_any_file_is_named(run: Path, capsys: Capture) -> None:
    rng = random.Random(0)
    files = [p for p in sorted(run.rglob("*")) if p.is_file() and p.name != ".lock"]
    files = [p for p in files if p.name != "seal.json"]
    assert len(files) > 15
    for file in files:
        before = file.read_bytes()
        flip(file, rng.randrange(len(before)))
        problems = verify(capsys, run, code=1)["problems"]
        assert any(f"{file}: altered since the run ended" in line for line in problems)
        file.write_bytes(before)
    assert verify(capsys, run, code=0)["problems"] == []


def test_a_flipped_bit_anywhere_in_the_scores_never_crashes(run: Path, capsys: Capture) -> None:
    file = run / "scores.parquet"
    before = file.read_bytes()
    rng = random.Random(1)
    # The footer, at the end, is where a reader gets lost.
    places = [rng.randrange(len(before)) for _ in range(15)]
    places += [len(before) - rng.randrange(1, 400) for _ in range(15)]
    for at in places:
        flip(file, at)
        assert any("scores.parquet: altered" in x for x in verify(capsys, run, code=1)["problems"])
        file.write_bytes(before)


def test_files_removed_added_or_taken_out_of_the_seal_are_named(run: Path, capsys: Capture) -> None:
    cells = sorted((run / "cells").iterdir())
    transcripts = sorted((run / "transcripts").iterdir())
    cells[0].unlink()
    shutil.copyfile(transcripts[1], run / "transcripts" / "more.jsonl")
    edit(run / "seal.json", lambda s: s.pop("verdict.json"))
    problems = verify(capsys, run, code=1)["problems"]
    assert f"{cells[0]}: missing, but in the seal" in problems
    for name in ("transcripts/more.jsonl", "verdict.json"):
        assert any(line.startswith(f"{run / name}: is not in the seal") for line in problems)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"a": 1}', "\x00", "[" * 9_000])
@pytest.mark.parametrize("name", ["seal.json", "manifest.json", "verdict.json", "shapes.json"])
def test_a_file_that_makes_no_sense_is_named(
    run: Path, capsys: Capture, name: str, content: str
) -> None:
    (run / name).write_text(content)
    problems = verify(capsys, run, code=1)["problems"]
    assert any(str(run / name) in line or "not in the seal" in line for line in problems)


def test_a_missing_file_is_named(run: Path, capsys: Capture) -> None:
    for name in ("seal.json", "verdict.json", "evidence.json", "scores.parquet", "shapes.json"):
        before = (run / name).read_bytes()
        (run / name).unlink()
        assert any(f"{name}: missing" in x for x in verify(capsys, run, code=1)["problems"])
        (run / name).write_bytes(before)


def test_what_is_no_finished_run_is_an_error_with_a_remedy(
    run: Path, capsys: Capture, tmp_path: Path
) -> None:
    assert main(["verify", str(tmp_path)]) == 2
    assert "not a run directory" in capsys.readouterr().err
    for name in ("seal.json", "verdict.json"):
        (run / name).unlink()
    assert main(["verify", str(run)]) == 2
    assert "has not ended" in capsys.readouterr().err


def test_a_run_of_another_method_is_refused_and_not_called_altered(
    run: Path, capsys: Capture
) -> None:
    edit(run / "manifest.json", lambda m: m["protocol"].update(method_version="0"))
    assert main(["verify", str(run)]) == 2
    assert "method version 0" in capsys.readouterr().err


def test_artefacts_are_checked_where_the_store_is(
    made: Path, run: Path, capsys: Capture, tmp_path: Path
) -> None:
    store = Path(shutil.copytree(made / "store", tmp_path / "store"))
    found = verify(capsys, run, "--store", str(store), code=0)
    assert found["unchecked"] == []
    assert (found["status"], found["verified"]) == ("verified", True)
    weights = sorted(store.glob("student/*/*/model/*.safetensors"))
    flip(weights[0], weights[0].stat().st_size // 2)
    (weights[1].parent / "pytorch_model.bin").write_bytes(b"added")
    shutil.rmtree(weights[2].parents[1])
    problems = verify(capsys, run, "--store", str(store), code=1)["problems"]
    assert len(problems) == 3
    for path, what in (
        (weights[0], "altered"),
        (weights[1].parent / "pytorch_model.bin", "added"),
        (weights[2].parents[1], "missing"),
    ):
        assert any(line.startswith(f"{path}: {what}") for line in problems)
    before = sorted(store.rglob("*"))
    for path in (store, store / "tmp"):
        path.chmod(0o555)
    verify(capsys, run, "--store", str(store), code=1)
    assert sorted(store.rglob("*")) == before
    (store / "tmp").chmod(0o755)
    store.chmod(0o755)


def test_writing_the_report_again_launders_nothing(run: Path, capsys: Capture) -> None:
    transcript = sorted((run / "transcripts").iterdir())[0]
    transcript.write_text(transcript.read_text().replace("everyone", "no one"))
    assert main(["report", str(run)]) == 0
    problems = verify(capsys, run, code=1)["problems"]
    assert problems == [f"{transcript}: altered since the run ended"]


def test_rows_of_a_panel_are_compared_with_the_panel(
    made: Path, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = yaml.safe_load((made / "study.yaml").read_text())
    frozen = {k: v for k, v in study.items() if k not in ("suspect", "policy", "horns")}
    (made / "panel.yaml").write_text(yaml.safe_dump(frozen))
    store = ["--store", str(made / "store")]
    assert main(["panel", str(made / "panel.yaml"), "--out", str(made / "panel"), *store]) == 0
    study["references"] = {"panel": "panel", "n": len(study["references"])}
    (made / "drawn.yaml").write_text(yaml.safe_dump(study))
    run = tmp_path / "drawn"
    assert main(["run", str(made / "drawn.yaml"), "--out", str(run), *store]) == 0
    assert "panel" in verify(capsys, run, *store, code=0)["unchecked"][0]
    monkeypatch.chdir(made)
    found = verify(capsys, run, *store, code=0)
    assert (found["status"], found["unchecked"]) == ("verified", [])

    def raise_a_reference(scores: pd.DataFrame) -> pd.DataFrame:
        rows = (scores["teacher"] == "reference-0.yaml") & (scores["model_kind"] == "student")
        scores.loc[scores.index[rows][0], "value"] += 1e-3
        return scores

    rewrite(run, raise_a_reference)
    seal_run(run)
    problems = verify(capsys, run, code=1)["problems"]
    assert any("reference-0.yaml" in line and "the panel says" in line for line in problems)


def test_verify_is_public(run: Path) -> None:
    found = doublebind.verify(run)
    assert found.status == "consistent"
    assert found.problems == ()
    with pytest.raises(RunError, match="not a run directory"):
        doublebind.verify(run / "cells")
