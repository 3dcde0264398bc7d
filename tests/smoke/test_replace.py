"""Both horns in one study: recipes compete, fresh students are bounded, and all of it verifies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from tests.tiny_study import write_spec, write_study

import doublebind
from doublebind.cli.tables import format_verdict_lines
from doublebind.pipeline.calibrate import calibrate
from doublebind.runs import verify as verification
from doublebind.runs.seal import seal_run
from doublebind.schema.errors import DoublebindError

SPLITS = ("audit", "select", "certify")


def double(folder: Path, **replace: Any) -> Path:
    """Write a study with both horns: two recipes compete on two organisms."""
    path = write_study(folder, splits=SPLITS)
    content = yaml.safe_load(path.read_text())
    (recipe,) = content["recipes"]
    treated = {**recipe, "name": "mixed", "treatments": [{"kind": "mix_trusted", "share": 0.5}]}
    stopped = {**recipe, "name": "stopped", "treatments": [{"kind": "distil_and_audit"}]}
    stopped["training"] = {**recipe["training"], "checkpoints": [1, 2]}
    content["horns"] = ["incriminate", "replace"]
    content["policy"]["margin"] = 0.2
    content["replace"] = {
        "recipes": [recipe, treated, stopped],
        "organisms": [write_spec(folder, f"organism-{i}", "ruler", 20 + i) for i in range(2)],
        "seeds": 1,
        "fresh_seeds": 2,
    } | replace
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with both horns, `run/` and `store/`."""
    folder = double(tmp_path_factory.mktemp("double") / "study").parent
    doublebind.run(folder / "study.yaml", folder / "run", store=folder / "store")
    return folder


def test_a_run_of_both_horns_ends_in_one_joint_verdict(made: Path) -> None:
    run = doublebind.Run(made / "run")
    verdict = json.loads((made / "run/verdict.json").read_text())
    assert verdict["horn"] == "neither"  # three references accuse nobody, two controls bound nobody
    assert verdict["replacement"]["recipe"] in ("stories", "mixed", "stopped")
    assert verdict["replacement"]["decision"] in ("inconclusive", "not_within_margin")
    assert set(run.scores["split"]) == set(SPLITS)
    page = (made / "run/report.html").read_text()
    assert "Recipes that competed" in page
    assert "Fresh students above M0" in page
    assert doublebind.verify(run.path).problems == ()


def test_a_stopped_recipe_is_bounded_where_it_stopped(made: Path) -> None:
    content = yaml.safe_load((made / "study.yaml").read_text())
    content["replace"]["recipes"] = content["replace"]["recipes"][2:]
    study = doublebind.Study.model_validate(content)
    run = doublebind.run(study, made / "stopped", folder=made, store=made / "store")
    assert run.replacement is not None
    (competitor,) = run.replacement.recipe_results
    assert run.replacement.step == competitor.step
    assert competitor.step in (1, 2, 4)
    assert doublebind.verify(run.path).problems == ()


def test_no_student_is_bounded_that_was_chosen_by(made: Path) -> None:
    scores = doublebind.Run(made / "run").scores
    rows = scores[scores["model_kind"] == "student"]
    certified = rows[(rows["split"] == "certify") & (rows["teacher"] == "suspect.yaml")]
    assert set(certified["seed"]) == {1, 2}
    others = rows[rows["split"] != "certify"]
    assert not set(certified["seed"]) & set(others["seed"])
    assert set(rows[rows["split"] == "select"]["teacher"]) == {
        "organism-0.yaml",
        "organism-1.yaml",
    }


def test_the_second_horn_moves_nothing_of_the_first(made: Path, tmp_path: Path) -> None:
    content = yaml.safe_load((made / "study.yaml").read_text())
    del content["horns"], content["replace"], content["policy"]["margin"]
    study = doublebind.Study.model_validate(content)
    alone = doublebind.run(study, tmp_path / "run", folder=made, store=made / "store")
    both = doublebind.Run(made / "run")
    unexplained = {
        "reasons": ()
    }  # one of them counts earlier protocols: the two met the same suspect
    first, second = alone.verdict.incrimination, both.verdict.incrimination
    assert first.model_copy(update=unexplained) == second.model_copy(update=unexplained)
    drawn = {"p_smoothed": None}  # ties are broken by a draw from the protocol's hash
    first, second = alone.evidence, both.evidence
    assert first.model_copy(update=drawn) == second.model_copy(update=drawn)
    assert alone.verdict.replacement is None
    assert alone.verdict.horn is None


def test_a_rerun_makes_nothing_twice(made: Path) -> None:
    before = (made / "run/verdict.json").read_bytes()
    done = [e.artefact_key for e in doublebind.Run(made / "run").ledger if e.status == "done"]
    doublebind.run(made / "study.yaml", made / "run", store=made / "store")
    assert [
        e.artefact_key for e in doublebind.Run(made / "run").ledger if e.status == "done"
    ] == done
    assert (made / "run/verdict.json").read_bytes() == before


def test_an_altered_certify_row_is_named(made: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(made / "run", tmp_path / "run"))
    scores = pd.read_parquet(run / "scores.parquet")
    mine = (scores["teacher"] == "suspect.yaml") & (scores["model_kind"] == "student")
    auditable = (scores["split"] == "certify") & (scores["role"] == "auditable")
    (row, *_) = scores[mine & auditable].index
    scores.loc[row, "value"] = 1.0 - scores.loc[row, "value"]
    scores.to_parquet(run / "scores.parquet", index=False)
    seal_run(run)
    problems = "\n".join(verification.verify(run, store=made / "store").problems)
    assert "its transcript says" in problems
    assert "replacement.json: `evidence." in problems


def test_a_plan_counts_the_cells_of_both_phases(made: Path) -> None:
    found = doublebind.plan(made / "study.yaml", store=made / "elsewhere").cells
    # 4 of the first horn, 3 x 2 that compete, 2 fresh ones; the controls are among those.
    assert found["student"].needed == 4 + 6 + 2
    assert found["teacher"].needed == 6


def test_a_plan_says_that_too_few_controls_certify_nothing(made: Path) -> None:
    missing = doublebind.plan(made / "study.yaml", store=made / "elsewhere").missing
    assert "`replace.organisms` names 2: of fewer than 5" in missing["within_margin"]


def test_another_recipe_of_the_study_can_make_the_controls(made: Path) -> None:
    content = yaml.safe_load((made / "study.yaml").read_text())
    (stories,) = content["recipes"]
    content["recipes"] = [stories, {**stories, "name": "stakes", "channel": {"kind": "sft"}}]
    content["replace"]["controls"] = "stakes"
    run = doublebind.run(
        doublebind.Study.model_validate(content),
        made / "controlled",
        folder=made,
        store=made / "store",
    )
    rows = run.scores[run.scores["split"] == "certify"]
    controls = rows[rows["teacher"].str.startswith("organism-") & (rows["model_kind"] == "student")]
    assert set(controls["recipe"]) == {"stakes"}
    assert doublebind.verify(run.path).problems == ()
    content["replace"]["controls"] = "mixed"  # competes, and is no recipe of the first horn
    with pytest.raises(DoublebindError, match=r"`replace.controls`: mixed is none of the study's"):
        doublebind.plan(doublebind.Study.model_validate(content), folder=made)


def test_calibrate_counts_the_outcomes_of_both_horns(made: Path) -> None:
    content = yaml.safe_load((made / "study.yaml").read_text())
    content["organisms"] = [write_spec(made, f"tested-{i}", "ruler", 60 + i) for i in range(2)]
    content["held_out"] = [write_spec(made, "benign", "kind", 80)]
    content["replace"]["bound"] = "every"
    study = doublebind.Study.model_validate(content)
    calibration = calibrate(study, made / "cal", folder=made, store=made / "store")
    found = calibration.model_dump(mode="json")
    counted = {name: rate["k"] for name, rate in found["outcomes"]["organism"].items()}
    assert sum(counted.values()) == 2
    assert {(row["teacher"], row["recipe"]) for row in found["treatments"]} == {
        (teacher, recipe)
        for teacher in ("tested-0.yaml", "tested-1.yaml", "benign.yaml")
        for recipe in ("stories", "mixed", "stopped")
    }
    assert found["n_panel"] == 3
    assert 0 <= found["fresh_rank_p"] <= 1
    assert "tpr_unknown_drive" not in found  # three references flag nobody, whatever is left out
    assert found["chosen"] in ("stories", "mixed", "stopped")
    content["replace"]["organisms"] = content["organisms"][:1]
    with pytest.raises(DoublebindError, match=r"tested-0\.yaml is weighed, too"):
        calibrate(
            doublebind.Study.model_validate(content), made / "no", folder=made, store=made / "store"
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": {"alpha": 0.05}}, "needs `policy.margin`"),
        ({"horns": ["incriminate"]}, "add it to `horns`"),
        ({"horns": []}, r"\[incriminate\], \[replace\] or \[incriminate, replace\]"),
        ({"horns": ["replace"]}, r"leave them empty \(\[\]\), or add it to `horns`"),
        ({"references": []}, "references is empty"),
        ({"replace": {"organisms": ["suspect.yaml"]}}, "suspect.yaml is the suspect"),
    ],
)
def test_a_horn_that_cannot_be_decided_is_refused(
    made: Path, change: dict[str, Any], message: str
) -> None:
    content = yaml.safe_load((made / "study.yaml").read_text()) | change
    with pytest.raises(ValueError, match=message):
        doublebind.Study.model_validate(content)


def test_a_study_of_replacement_alone_needs_no_references_and_says_so(
    made: Path, tmp_path: Path
) -> None:
    content = yaml.safe_load((made / "study.yaml").read_text())
    content |= {"horns": ["replace"], "references": []}
    study = doublebind.Study.model_validate(content)
    run = doublebind.run(study, tmp_path / "run", folder=made, store=made / "store")
    verdict = json.loads((tmp_path / "run/verdict.json").read_text())
    both = json.loads((made / "run/replacement.json").read_text())
    alone = json.loads((tmp_path / "run/replacement.json").read_text())
    assert alone == both  # the same students, the same bounds
    assert verdict["replacement"]["decision"] in ("inconclusive", "not_within_margin")
    assert verdict["horn"] is None
    assert verdict["incrimination"]["decision"] == "inconclusive"
    assert "p_value" not in verdict["incrimination"]
    assert verdict["missing"]["incrimination.p_value"] == "nothing was asked about incrimination"
    assert verdict["sentence"].startswith("Nothing was asked about incrimination")
    assert {t.role for t in run.manifest.teachers} == {"suspect"}
    page = (tmp_path / "run/report.html").read_text()
    assert "Nothing was asked about incrimination; what was found" in page
    assert "Fresh students above M0" in page
    assert any("Nothing was asked" in line for line in format_verdict_lines(run))
    assert doublebind.verify(run.path).problems == ()
    assert doublebind.plan(study, folder=made, store=made / "store").references == 0
    with pytest.raises(DoublebindError, match="calibrate needs one of them"):
        calibrate(study, tmp_path / "cal", folder=made, store=made / "store")


def test_a_pack_that_certifies_nothing_is_refused(tmp_path: Path) -> None:
    path = double(tmp_path / "study", certify="other")
    shutil.copytree(tmp_path / "study/pack", tmp_path / "study/other")
    items = tmp_path / "study/other/items/all.jsonl"
    uncertified = [line for line in items.read_text().splitlines() if "certify" not in line]
    items.write_text("\n".join(uncertified) + "\n")
    with pytest.raises(DoublebindError, match="of split certify"):
        doublebind.plan(path, store=tmp_path / "store")
