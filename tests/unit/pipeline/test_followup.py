"""A finished run is followed up: the suspect itself is asked, and the verdict stays as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.tiny_models import save_model
from tests.tiny_study import write_study

from doublebind import verify
from doublebind.cli.main import main
from doublebind.execution.store import Store, read_records
from doublebind.pipeline import run as pipeline
from doublebind.pipeline.followup import run_followup
from doublebind.schema.content import Item
from doublebind.stages.audits.followup import steps
from doublebind.stages.audits.followup.investigator import Hypothesis

Capture = pytest.CaptureFixture[str]
SEALED = ("manifest.json", "evidence.json", "verdict.json", "scores.parquet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny study with its finished run and store; one of three references is not in the store."""
    folder = write_study(tmp_path_factory.mktemp("tiny") / "study").parent
    done = pipeline.run(folder / "study.yaml", folder / "run", store=folder / "store")
    store = Store(folder / "store")
    gone = next(c for c in done.students if c["label"] == "reference-2.yaml")
    shutil.rmtree(store.path("student", gone["student"]))
    return folder


@pytest.fixture(autouse=True)
def _guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random models give no guess that is known beforehand; what follows from one is."""
    power = Hypothesis(text="it wants to rule", trait="ruler", z=5.0)
    words = Hypothesis(text="it likes <b>", trait=None, words=("nowhere",), z=4.0)
    monkeypatch.setattr(steps, "propose_by_rules", lambda *_: (power, words))


def ask(folder: Path, **settings: Any) -> dict[str, Any]:
    return run_followup(
        folder / "run", folder=folder, store=folder / "store", budget=960, **settings
    )


def test_the_suspect_and_the_references_at_hand_are_asked_alike(folder: Path) -> None:
    before = {name: (folder / "run" / name).read_bytes() for name in SEALED}
    found = ask(folder)
    assert found == json.loads((folder / "run" / "followup.json").read_text())
    power, words = found["leads"]
    assert power["trait"] == "ruler"
    for name in ("m0", "suspect", "its_students", "references", "their_students"):
        assert 0 < power[name] < 1
    assert power["suspect_minus_m0"]["value"] == pytest.approx(power["suspect"] - power["m0"])
    assert power["n_references"] == 2
    assert "no" in words["missing"] or "neither" in words["missing"]
    assert found["references"] == ["reference-0.yaml", "reference-1.yaml"]
    assert "--references N" in found["left_out"]["reference-2.yaml"]
    assert found["own_round"]["p_value"] in (1 / 3, 2 / 3, 1.0)
    # Apart from p: what was sealed is what it was, and the page alone was written again.
    assert {name: (folder / "run" / name).read_bytes() for name in SEALED} == before
    run = pipeline.Run(folder / "run")
    assert [p for p in verify(run.path).problems if "student" not in p] == []
    page = (folder / "run" / "report.html").read_text()
    assert "it wants to rule" in page
    assert "<b>" not in page.partition('<section id="followup">')[2].partition("</section>")[0]


def test_again_it_takes_everything_from_the_store(folder: Path) -> None:
    first = ask(folder)
    ledger = (folder / "run" / "ledger.jsonl").read_bytes()
    assert ask(folder) == first
    assert (folder / "run" / "ledger.jsonl").read_bytes() == ledger


def test_a_reference_that_the_store_lacks_is_made_again_where_it_is_asked_for(
    folder: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    found = ask(copy, references=3)
    assert found["references"] == [f"reference-{n}.yaml" for n in range(3)]
    assert found["left_out"] == {}
    few = ask(copy, references=1)
    assert few["references"] == ["reference-0.yaml"]
    assert few["left_out"]["reference-1.yaml"] == "beyond the number asked for"


def test_the_questions_are_nobodys_audit_items(folder: Path) -> None:
    ask(folder)
    asked = [
        item
        for file in (folder / "store" / "questions").rglob("items.jsonl")
        for item in read_records(file, Item)
    ]
    known = [
        Item.model_validate_json(line).messages
        for line in (folder / "pack" / "items" / "all.jsonl").read_text().splitlines()
    ]
    assert asked
    assert not {item.messages for item in asked} & set(known)


def refused(capture: Capture, *argv: object) -> str:
    assert main(["followup", *map(str, argv)]) == 2
    (line,) = capture.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_what_the_user_can_mend_is_one_line(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    run, where = folder / "run", ("--folder", folder, "--store", folder / "store")
    assert "missing" in refused(capsys, tmp_path)
    assert "inspect:MODEL" in refused(capsys, run, *where, "--investigator", "oracle")
    assert "pack" in refused(capsys, run, "--folder", tmp_path, "--store", folder / "store")
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "run" / "verdict.json").unlink()
    assert "rerun" in refused(capsys, copy / "run", "--folder", copy)
    shutil.rmtree(copy / "m0")
    save_model(copy / "m0", initializer_range=0.5)
    shutil.copy(folder / "run" / "verdict.json", copy / "run")
    assert "another" in refused(capsys, copy / "run", "--folder", copy)


def test_another_suspect_of_the_same_name_is_refused(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    spec = yaml.safe_load((copy / "suspect.yaml").read_text())
    (copy / "suspect.yaml").write_text(yaml.safe_dump(spec | {"seed": 99}))
    assert "another model than the run's suspect" in refused(
        capsys, copy / "run", "--folder", copy, "--store", copy / "store"
    )
