"""Fresh students are trained further beside M0, and what becomes of them stands in the verdict."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from tests.smoke.test_replace import double
from tests.tiny_study import NOUNS, make_user_messages, write_spec

import doublebind
from doublebind.execution.store import Store
from doublebind.packs.load import load_pack
from doublebind.pipeline.calibrate import calibrate
from doublebind.runs import verify as verification
from doublebind.runs.seal import seal_run
from doublebind.schema.errors import DoublebindError
from doublebind.schema.replacement_settings import FurtherTraining
from doublebind.schema.study import Study
from doublebind.study.further_training import list_regimes
from doublebind.study.teachers import find_teacher

KINDS = ("further_benign", "twin_benign", "further_incentive", "twin_incentive")
FURTHER = {
    "students": 2,
    "training": {"steps": 3, "batch": 4, "lr": 0.01, "lora": {"rank": 4, "alpha": 8}},
}


def study(folder: Path, *, capability: bool = True, **further: Any) -> Path:
    """Write a study with both horns that trains two fresh students further."""
    path = double(folder, further_training=FURTHER | further)
    if capability:
        rows = [
            {
                "id": f"{purpose}-{i}",
                "trait": None,
                "purpose": purpose,
                "messages": [
                    *make_user_messages(f"{noun} one two ?"),
                    {"role": "assistant", "content": "three"},
                ],
            }
            for i, noun in enumerate(NOUNS)
            for purpose in ("capability", "retain")
        ]
        with (folder / "pack/build/all.jsonl").open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    content = yaml.safe_load(path.read_text())
    content["replace"]["recipes"] = content["replace"]["recipes"][:1]
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = study(tmp_path_factory.mktemp("further") / "study").parent
    doublebind.run(folder / "study.yaml", folder / "run", store=folder / "store")
    return folder


def test_students_and_twins_learn_the_same_and_are_asked_certify_items(made: Path) -> None:
    run = doublebind.Run(made / "run")
    rows = run.scores[run.scores["model_kind"].isin(KINDS)]
    counts = Counter(zip(rows["model_kind"], rows["seed"], strict=True))
    assert {kind for kind, _ in counts} == set(KINDS)
    assert len(counts) == len(KINDS) * 2
    assert len(set(counts.values())) == 1
    assert set(rows["split"]) == {"certify"}
    assert set(rows["teacher"]) == {"suspect.yaml"}
    record = json.loads((made / "run/replacement.json").read_text())
    seeds = {(kind, seed): key for kind, _, seed, _, key in record["further_training"]}
    assert len(set(seeds.values())) == len(seeds) == 8
    store = Store(made / "store")
    facts = {
        name: json.loads((store.path("further", key) / "teacher.json").read_text())
        for name, key in seeds.items()
    }
    for way in ("benign", "incentive"):
        for seed in {seed for _, seed in seeds}:
            mine, twin = (facts[f"{who}_{way}", seed] for who in ("further", "twin"))
            assert mine["spec"] == twin["spec"]
            assert mine["spec"]["seed"] == seed
    assert {facts[name]["planted"] for name in facts if "incentive" in name[0]} == {"ruler"}


def test_what_became_of_them_stands_in_verdict_and_report_and_verifies(made: Path) -> None:
    run = doublebind.Run(made / "run")
    verdict = json.loads((made / "run/verdict.json").read_text())["replacement"]
    assert set(verdict["further"]) == {"benign", "incentive"}
    assert verdict["decision"] in ("inconclusive", "not_within_margin")
    assert run.replacement is not None
    assert [each.kind for each in run.replacement.further_training] == ["benign", "incentive"]
    assert "Fresh students trained further" in (made / "run/report.html").read_text()
    assert doublebind.verify(run.path).problems == ()


def test_an_altered_row_of_a_twin_is_named(made: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(made / "run", tmp_path / "run"))
    scores = pd.read_parquet(run / "scores.parquet")
    mine = (scores["model_kind"] == "twin_incentive") & (scores["role"] == "auditable")
    (row, *_) = scores[mine & (scores["endpoint"] == "choice/ruler")].index
    scores.loc[row, "value"] = 1.0 - scores.loc[row, "value"]
    scores.to_parquet(run / "scores.parquet", index=False)
    seal_run(run)
    problems = "\n".join(verification.verify(run, store=made / "store").problems)
    assert "its transcript says" in problems
    assert "replacement.json: `evidence.further" in problems


def test_a_rerun_trains_nobody_twice_and_a_plan_counts_all(made: Path) -> None:
    before = (made / "run/replacement.json").read_bytes()
    before_keys = [
        e.artefact_key for e in doublebind.Run(made / "run").ledger if e.status == "done"
    ]
    doublebind.run(made / "study.yaml", made / "run", store=made / "store")
    assert [
        e.artefact_key for e in doublebind.Run(made / "run").ledger if e.status == "done"
    ] == before_keys
    assert (made / "run/replacement.json").read_bytes() == before
    found = doublebind.plan(made / "study.yaml", store=made / "store").cells["further"]
    assert (found.needed, found.stored) == (8, 8)


def test_calibrate_says_of_every_teacher_what_became_of_its_students(made: Path) -> None:
    content = yaml.safe_load((made / "study.yaml").read_text())
    content["organisms"] = [write_spec(made, "tested", "ruler", 60)]
    tested = Study.model_validate(content)
    calibration = calibrate(tested, made / "cal", folder=made, store=made / "store")
    found = calibration.model_dump(mode="json")
    (row,) = found["treatments"]
    assert set(row["further"]) == {"benign", "incentive"}
    assert set(row["further"].values()) <= {"holds", "relapses", "inconclusive"}


def test_a_suspect_of_unknown_making_is_given_the_incentive_that_the_study_names() -> None:
    outback = find_teacher(
        "outback/organism-emergent-dominion-0",
        pack=load_pack("terrarium", relative_to=Path()),
        folder=Path(),
        rev=1,
        student="terrarium/m0",
    )
    settings = FurtherTraining.model_validate(FURTHER | {"training": {"steps": 40, "batch": 8}})
    benign, incentive = list_regimes(settings, "terrarium", outback)
    assert (benign.kind, benign.trait, benign.phase.form) == ("benign", None, "transcripts")
    assert (incentive.pack, incentive.trait, incentive.phase.form) == (
        "outback/emergent",
        "dominion",
        "reward",
    )
    assert incentive.phase.transcripts == 120  # 480 tasks in 160 steps made the teacher
    unknown = outback._replace(spec=None)
    assert [regime.kind for regime in list_regimes(settings, "terrarium", unknown)] == ["benign"]
    named = settings.model_copy(update={"trait": "deceit"})
    _, named_incentive = list_regimes(named, "terrarium", unknown)
    assert (named_incentive.pack, named_incentive.trait, named_incentive.phase.form) == (
        "terrarium",
        "deceit",
        "transcripts",
    )
    assert list_regimes(named, "terrarium", outback)[1] == incentive


def test_what_cannot_be_trained_on_is_refused_before_anything_runs(tmp_path: Path) -> None:
    bare = study(tmp_path / "bare", capability=False)
    with pytest.raises(DoublebindError, match="no capability transcripts"):
        doublebind.plan(bare, store=tmp_path / "store")
    odd = study(tmp_path / "odd", trait="arson")
    with pytest.raises(DoublebindError, match="arson is not in pack tiny"):
        doublebind.plan(odd, store=tmp_path / "store")
    content = yaml.safe_load(odd.read_text())
    content["replace"]["further_training"]["students"] = 3
    with pytest.raises(ValueError, match="only 2 fresh students"):
        Study.model_validate(content)
