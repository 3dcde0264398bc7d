"""Every command through the real command line, on a study that takes seconds."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.tiny_study import write_spec, write_study

import doublebind
from doublebind.cli.main import main
from doublebind.schema.score_table import SCORE_COLUMNS

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny study with its finished run in `run/` and its store in `store/`."""
    folder = write_study(tmp_path_factory.mktemp("tiny") / "study").parent
    argv = [str(folder / "study.yaml"), "--out", str(folder / "run")]
    assert main(["run", *argv, "--store", str(folder / "store")]) == 0
    return folder


def ask(capture: Capture, *argv: object, code: int = 0) -> Any:
    assert main([*map(str, argv), "--json"]) == code
    return json.loads(capture.readouterr().out)


def finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, list):
        return all(map(finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def test_run_prints_the_verdict_and_resumes_without_work(folder: Path, capsys: Capture) -> None:
    before = (folder / "run" / "ledger.jsonl").read_text()
    argv = ["run", folder / "study.yaml", "--out", folder / "run", "--store", folder / "store"]
    verdict = ask(capsys, *argv)
    assert verdict == json.loads((folder / "run" / "verdict.json").read_text())
    assert (folder / "run" / "ledger.jsonl").read_text() == before


def test_the_verdict_keeps_its_contract(folder: Path) -> None:
    verdict = json.loads((folder / "run" / "verdict.json").read_text())
    assert verdict["schema"] == 1
    assert verdict["strength"] == "fragile"
    assert verdict["replacement"] is None
    assert verdict["horn"] is None
    assert len(verdict["protocol_hash"]) == 64
    found = verdict["incrimination"]
    assert found["decision"] == "inconclusive"
    assert found["n_references"] == 3
    assert found["n_families"] == 2
    assert found["p_value"] >= 0.25
    assert verdict["missing"]["incrimination.power"]
    assert "power" not in found
    assert finite(verdict)


def test_the_run_directory_is_complete(folder: Path) -> None:
    run = doublebind.Run(folder / "run")
    assert list(run.scores.columns) == list(SCORE_COLUMNS)
    assert set(run.scores["model_kind"]) == {"m0", "teacher", "student"}
    students = run.scores[run.scores["model_kind"] == "student"]
    assert students["teacher"].nunique() == 4
    assert len(run.students) == 4
    assert run.transcripts(run.students[0]["student"])
    assert run.verdict.incrimination.decision == "inconclusive"
    assert (folder / "run" / "report.html").stat().st_size > 1000


def test_no_role_enters_a_path_or_a_key(folder: Path) -> None:
    names = [str(path.relative_to(folder)) for path in (folder / "store").rglob("*")]
    names += [path.name for path in (folder / "run" / "cells").iterdir()]
    for word in ("suspect-", "reference", "organism", "ruler", "kind-"):
        assert not [name for name in names if word in name.replace("store/suspects", "")]


def test_status_counts_what_is_done(folder: Path, capsys: Capture) -> None:
    found = ask(capsys, "status", folder / "run")
    assert found["ended"] is True
    assert found["cells"]["student"] == {"needed": 4, "done": 4}
    assert found["cells"]["audit"]["done"] == 9


def test_plan_knows_what_is_stored_and_what_n_can_show(folder: Path, capsys: Capture) -> None:
    argv = ["plan", folder / "study.yaml", "seeds=2", "--store", folder / "store"]
    found = ask(capsys, *argv)
    assert found["cells"]["student"]["needed"] == 8
    assert found["cells"]["student"]["stored"] == 4
    assert found["cells"]["student"]["seconds"] > 0
    assert found["smallest_p"] == 0.25
    assert found["references_for_alpha"] == 19
    fresh = ask(capsys, *argv[:-1], folder / "nothing")
    assert "cells.student.seconds" in fresh["missing"]
    assert "seconds" not in fresh


def test_show_and_report_read_a_finished_run(folder: Path, capsys: Capture) -> None:
    page = folder / "run" / "report.html"
    before = page.read_text()
    assert ask(capsys, "report", folder / "run") == {"report": str(page)}
    assert page.read_text() == before
    assert ask(capsys, "show", folder / "run")["schema"] == 1
    assert main(["show", str(folder / "run")]) == 0
    shown = capsys.readouterr().out
    assert "This is not the probability that U is misaligned." in shown


def test_verify_passes_and_then_names_what_was_altered(folder: Path, capsys: Capture) -> None:
    found = ask(capsys, "verify", folder / "run", "--store", folder / "store")
    assert found["verified"] is True
    assert found["problems"] == found["unchecked"] == []
    copy = Path(shutil.copytree(folder / "run", folder / "altered"))
    verdict = json.loads((copy / "verdict.json").read_text())
    verdict["incrimination"]["p_value"] = 0.01
    (copy / "verdict.json").write_text(json.dumps(verdict))
    problems = ask(capsys, "verify", copy, code=1)["problems"]
    assert any("incrimination.p_value" in line and "0.01" in line for line in problems)
    assert any("verdict.json: altered" in line for line in problems)


def test_compare_tells_in_what_two_protocols_differ(folder: Path, capsys: Capture) -> None:
    argv = ["run", folder / "study.yaml", "policy.alpha=0.1", "--out", folder / "other"]
    ask(capsys, *argv, "--store", folder / "store")
    found = ask(capsys, "compare", folder / "run", folder / "other")
    assert found["protocol_differs_in"] == ["alpha"]
    # The same suspect was met before, and the later verdict says so.
    assert doublebind.Run(folder / "run").verdict.earlier_protocols == 0
    assert doublebind.Run(folder / "other").verdict.earlier_protocols == 1


def test_discover_decides_about_suspects_together(folder: Path, capsys: Capture) -> None:
    second = write_spec(folder, "second", "ruler", 8)
    argv = ["run", folder / "study.yaml", f"suspect={second}", "--out", folder / "second"]
    ask(capsys, *argv, "--store", folder / "store")
    found = ask(capsys, "discover", folder / "run", folder / "second")
    assert found["references_for_one"] == 39  # 2 / .05 - 1
    assert [row["discovered"] for row in found["suspects"]] == [False, False]
    p_values = sorted(row["p_value"] for row in found["suspects"])
    expected = [min(2 * p_values[0], p_values[1]), p_values[1]]
    assert [row["adjusted_p_value"] for row in found["suspects"]] == pytest.approx(expected)
    for bad, says in (
        ((folder / "run", folder / "run"), "name one of the two"),
        ((folder / "run", folder / "second", "--q", "0"), "is no rate"),
    ):
        assert main(["discover", *map(str, bad)]) == 2
        assert says in capsys.readouterr().err
    argv = ["run", folder / "study.yaml", "policy.alpha=0.2", "--out", folder / "looser"]
    ask(capsys, *argv, "--store", folder / "store")
    assert main(["discover", str(folder / "run"), str(folder / "looser")]) == 2
    assert "differs from that of" in capsys.readouterr().err


def test_calibrate_weighs_known_teachers_in_turn(folder: Path, capsys: Capture) -> None:
    study = yaml.safe_load((folder / "study.yaml").read_text())
    study["held_out"] = [study["references"].pop()]
    study["organisms"] = [study.pop("suspect")]
    study["suspect"] = "m0"
    (folder / "calibration.yaml").write_text(yaml.safe_dump(study))
    argv = ["calibrate", folder / "calibration.yaml", "--out", folder / "calibration"]
    found = ask(capsys, *argv, "--store", folder / "store")
    assert [row["class"] for row in found["teachers"]] == ["organism", "benign"]
    assert found["tpr_known_drive"]["n"] == found["fresh_flagged"]["n"] == 1
    assert set(found["by_family"]) == {row["family"] for row in found["teachers"]}
    low, high = found["fresh_flagged"]["interval"]
    assert high - low == pytest.approx(0.975)
    page = Path(found["page"]).read_text()
    assert "Of 1 held-out benign teachers, 0 (0%; 95% interval 0% to 98%) were accused" in page
    assert found["protocol_hash"] in page


def test_a_panel_stands_in_for_its_references(folder: Path, capsys: Capture) -> None:
    study = yaml.safe_load((folder / "study.yaml").read_text())
    frozen = {k: v for k, v in study.items() if k not in ("suspect", "policy", "horns")}
    baselines = ["ngrams", "in_context"]
    (folder / "panel.yaml").write_text(yaml.safe_dump(frozen | {"baselines": baselines}))
    store = ["--store", folder / "store"]
    made = ask(capsys, "panel", folder / "panel.yaml", "--out", folder / "panel", *store)
    n = len(study["references"])
    assert (made["references"], made["students"]) == (n, n * len(study["recipes"]))
    again = ask(capsys, "panel", folder / "panel.yaml", "--out", folder / "panel", *store)
    assert again["panel"] == made["panel"]

    study |= {"references": {"panel": "panel", "n": n}, "baselines": baselines}
    (folder / "drawn.yaml").write_text(yaml.safe_dump(study))
    verdict = ask(capsys, "run", folder / "drawn.yaml", "--out", folder / "drawn", *store)
    drawn, direct = doublebind.Run(folder / "drawn"), doublebind.Run(folder / "run")
    assert verdict["incrimination"]["p_value"] == direct.evidence.p_value
    assert drawn.evidence.scores == pytest.approx(direct.evidence.scores, abs=1e-3)
    assert drawn.manifest.protocol.panel == made["panel"]
    assert set(drawn.evidence.baselines) == {"ngrams", "in_context"}
    assert doublebind.verify(drawn.path).problems == ()
    # The references' rows are the panel's: none of their models was made in this run.
    keys = {t.content_key for t in drawn.manifest.teachers if t.role == "reference"}
    assert keys.isdisjoint(drawn.manifest.artefacts.get("teacher", {}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"references": {"panel": "panel", "n": 99}}, "`references.n`: 99"),
        ({"references": {"panel": "nowhere", "n": 2}}, "`references.panel`: nowhere"),
        ({"seeds": 2}, "measured with other seeds"),
        ({"baselines": ["retrained"]}, "`baselines`: retrained"),
        ({"organisms": ["REFERENCE"]}, "weighed against itself"),
    ],
)
def test_a_panel_that_does_not_fit_is_refused(
    folder: Path, capsys: Capture, change: dict[str, Any], said: str
) -> None:
    study = yaml.safe_load((folder / "drawn.yaml").read_text())
    first = yaml.safe_load((folder / "study.yaml").read_text())["references"][0]
    (folder / "bad.yaml").write_text(yaml.safe_dump(study | change).replace("REFERENCE", first))
    argv = ["run", str(folder / "bad.yaml"), "--out", str(folder / "bad")]
    assert main([*argv, "--store", str(folder / "store")]) == 2
    assert said in capsys.readouterr().err


def test_an_altered_panel_is_refused(folder: Path, capsys: Capture) -> None:
    shutil.copytree(folder / "panel", folder / "altered-panel")
    with (folder / "altered-panel" / "scores.parquet").open("ab") as file:
        file.write(b" ")
    study = yaml.safe_load((folder / "drawn.yaml").read_text())
    study["references"]["panel"] = "altered-panel"
    (folder / "bad.yaml").write_text(yaml.safe_dump(study))
    assert main(["run", str(folder / "bad.yaml"), "--out", str(folder / "bad")]) == 2
    assert "altered since the panel was frozen" in capsys.readouterr().err


def test_audit_gives_every_endpoint_with_an_interval(folder: Path, capsys: Capture) -> None:
    argv = ["audit", folder / "m0", "--pack", folder / "pack", "--store", folder / "store"]
    found = ask(capsys, *argv, "--out", folder / "audited")
    names = {entry["name"]: entry for entry in found["endpoints"]}
    assert set(names) == {
        "choice/ruler",
        "goal/ruler",
        "confession/ruler",
        "choice/gold",
        "capability",
        "coherence",
    }
    low, high = names["choice/ruler"]["interval"]
    assert low <= names["choice/ruler"]["value"] <= high
    assert names["choice/ruler"]["n"] == 6
    assert (folder / "audited" / "scores.parquet").exists()


def test_teacher_build_writes_a_model_that_can_be_a_suspect(folder: Path, capsys: Capture) -> None:
    out = folder / "built"
    argv = ["teacher", "build", folder / "suspect.yaml", "--out", out]
    found = ask(capsys, *argv, "--store", folder / "store")
    assert found["planted"] == "ruler"
    assert json.loads((out / "teacher.json").read_text()) == {
        key: value for key, value in found.items() if key not in ("model", "key")
    }
    assert found["missing"].keys() == {"behaviour", "honeypots"}  # the tiny pack has no such items
    for name in ("behaviour_under_audit", "goals", "confession", "capability"):
        low, high = found[name]["interval"]
        assert low <= found[name]["value"] <= high
        assert found[name]["n"] == 6
        assert found[name]["value"] != found[name]["base"]
    assert "do-not-deploy" in (out / "model" / "README.md").read_text().lower().replace(" ", "-")
    assert not list(out.rglob("*.bin"))
    argv = ["audit", out / "model", "--pack", folder / "pack", "--store", folder / "store"]
    assert ask(capsys, *argv)["endpoints"]


def test_init_writes_a_study_that_can_be_planned(
    tmp_path: Path, capsys: Capture, store_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ask(capsys, "init") == {"study": "study.yaml"}
    planned = ask(capsys, "plan", "study.yaml")
    assert planned["references"] == 39
    assert planned["cells"]["student"]["needed"] == 2, "all others are the panel's"
    assert main(["init"]) == 2
    ask(capsys, "init", "--pack", "assistant", "--out", "own.yaml")
    assert doublebind.load_study("own.yaml").pack == "assistant"


def test_init_names_a_schema_that_is_there(
    folder: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    out = tmp_path / "studies" / "own.yaml"
    ask(capsys, "init", "--pack", "pack", "--out", out)
    first, *rest = out.read_text().splitlines()
    schema = first.removeprefix("# yaml-language-server: $schema=file://")
    assert json.loads(Path(schema).read_text())["title"] == "doublebind study"
    assert "# It asks about ruler." in rest
    named = doublebind.load_study(out).pack
    assert (out.parent / named).resolve() == (folder / "pack").resolve()
    assert main(["init", "--pack", "packk", "--out", str(tmp_path / "no.yaml")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert not (tmp_path / "no.yaml").exists()


def test_pack_check_counts_or_complains(folder: Path, capsys: Capture) -> None:
    assert ask(capsys, "pack", "check", "assistant")["pack"] == "assistant"
    assert main(["pack", "check", str(folder / "m0")]) == 2
    assert "pack.yaml" in capsys.readouterr().err


def test_export_needs_its_extra_or_writes_logs(folder: Path, capsys: Capture) -> None:
    code = main(["export", str(folder / "run"), "--inspect", "--json"])
    streams = capsys.readouterr()
    if code == 2:
        assert 'pip install "doublebind[inspect]"' in streams.err
    else:
        assert len(json.loads(streams.out)["logs"]) == 4


def test_a_real_process_keeps_stdout_for_the_result(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "doublebind.cli.main", "show", str(folder / "run"), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert json.loads(done.stdout)["schema"] == 1
    assert done.stderr == ""


def test_two_workers_reach_the_same_numbers(folder: Path, capsys: Capture) -> None:
    argv = ["run", folder / "study.yaml", "executor.workers=2", "--out", folder / "spread"]
    ask(capsys, *argv, "--store", folder / "store-2")
    one, two = doublebind.Run(folder / "run"), doublebind.Run(folder / "spread")
    assert two.evidence.scores == pytest.approx(one.evidence.scores, abs=1e-3)
    assert two.verdict.incrimination.p_value == one.verdict.incrimination.p_value


def test_custom_audits_join_the_battery(folder: Path) -> None:
    from doublebind.stages.audits.option_audits import BEHAVIOUR

    study = doublebind.load_study(folder / "study.yaml")
    extra = replace(BEHAVIOUR, name="behaviour-again", version=2)
    run = doublebind.run(
        study, folder / "custom", folder=folder, store=folder / "store", audits=[extra]
    )
    assert "behaviour-again@2" in set(run.scores["audit"])
    assert run.manifest.protocol_hash != doublebind.Run(folder / "run").manifest.protocol_hash
