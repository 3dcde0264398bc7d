"""What a person sees in a terminal, and what a pipe gets instead."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from tests.tiny_study import write_study

import doublebind
from doublebind.cli.main import main

Capture = pytest.CaptureFixture[str]
HOSTILE = "ref[bold]erence\x1b[31m\u202e.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs, `run/` and `other/`, with a teacher whose name attacks a terminal."""
    path = write_study(tmp_path_factory.mktemp("terminal") / "study")
    folder = path.parent
    study = yaml.safe_load(path.read_text())
    (folder / study["references"][0]).rename(folder / HOSTILE)
    study["references"][0] = HOSTILE
    path.write_text(yaml.safe_dump(study))
    for name, alpha in (("run", 0.05), ("other", 0.3)):
        study = doublebind.load_study(path, f"policy.alpha={alpha}")
        doublebind.run(study, folder / name, folder=folder, store=folder / "store")
    return folder


def ask_on_a_terminal(argv: list[str], patch: pytest.MonkeyPatch) -> int:
    """Run a command whose stdout says that it is a terminal of 100 columns."""
    patch.setenv("COLUMNS", "100")
    patch.setenv("TERM", "xterm-256color")
    patch.delenv("NO_COLOR", raising=False)
    patch.setattr(sys.stdout, "isatty", lambda: True)
    return main(argv)


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (["show", "run"], ["inconclusive", "strength: fragile", "This is not the probability"]),
        (["status", "run"], ["ended", "rollouts", "student", "M0"]),
        (["verify", "run"], ["consistent: the run agrees with itself", "seal sha256"]),
        (["verify", "run", "--store", "store"], ["verified: every hash", "seal sha256"]),
        (["compare", "run", "other"], ["p values", "alpha", "0.05", "0.3", "effect on acts"]),
        (["compare", "run", "run"], ["The same protocol."]),
    ],
)
def test_a_terminal_gets_tables(
    folder: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    wanted: list[str],
) -> None:
    monkeypatch.chdir(folder)
    assert ask_on_a_terminal(argv, monkeypatch) == 0
    shown = capsys.readouterr().out
    for text in wanted:
        assert text in shown
    assert "\x1b[1m" in shown, "styles are for terminals"


@pytest.mark.parametrize("argv", [["status", "run"], ["show", "run"], ["compare", "run", "other"]])
def test_a_pipe_gets_plain_text_and_json_on_request(
    folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, argv: list[str]
) -> None:
    monkeypatch.chdir(folder)
    assert main(argv) == 0
    assert "\x1b" not in capsys.readouterr().out
    assert main([*argv, "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict)


def test_hostile_names_reach_no_terminal(
    folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert ask_on_a_terminal(["status", "run"], monkeypatch) == 0
    shown = capsys.readouterr().out
    assert "ref[bold]erence\\x1b[31m\\x202e" in shown, "markup stays text, escapes are written out"
    assert "\x1b[31m" not in shown
    assert "\u202e" not in shown


def test_show_names_the_direct_audit(folder: Path, capsys: Capture) -> None:
    assert main(["show", str(folder / "run")]) == 0
    assert "direct audit: p = " in capsys.readouterr().out


def test_failures_and_progress_of_an_unfinished_run_are_shown(
    folder: Path, capsys: Capture, tmp_path: Path
) -> None:
    for name in ("manifest.json", "ledger.jsonl"):
        (tmp_path / name).write_bytes((folder / "run" / name).read_bytes())
    key = next(iter(doublebind.Run(tmp_path).manifest.artefacts["student"]))
    line = {"cell": key, "kind": "student", "status": "failed", "started": 0.0, "pid": 1}
    with (tmp_path / "ledger.jsonl").open("a") as ledger:
        ledger.write(json.dumps(line | {"error": "out of luck"}) + "\n")
    assert main(["status", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ended"] is False
    assert found["cells"]["student"] == {"needed": 4, "done": 3, "failed": 1}
    assert found["failures"] == [f"student {key[:12]}: out of luck"]
    assert found["models"] == []
    assert main(["show", str(tmp_path)]) == 2
    assert "has not ended" in capsys.readouterr().err


def test_status_names_models_by_which_transcripts_are_found(folder: Path, capsys: Capture) -> None:
    run = doublebind.Run(folder / "run")
    models = run.status().models
    assert [m.kind for m in models] == ["m0"] + ["teacher"] * 4 + ["student"] * 4
    for model in models:
        assert run.transcripts(model.content_key[:12]) == run.transcripts(model.content_key)
    assert run.transcripts("M0") == run.transcripts(models[0].content_key)
    assert run.transcripts(HOSTILE) == run.transcripts(models[2].content_key)
    for wrong in ("", "zz", "../../etc/passwd"):
        with pytest.raises(doublebind.errors.RunError, match="doublebind status"):
            run.transcripts(wrong)


def test_cells_say_whose_they_are(folder: Path) -> None:
    run = doublebind.Run(folder / "run")
    assert [cell["label"] for cell in run.students] == [t.label for t in run.manifest.teachers]
    assert run.students[0]["role"] == "suspect"
    assert run.students[0]["checks"]["sampled"] > 0
    assert set(run.columns) == set(run.scores.columns)
    assert "inconclusive" in repr(run)


def test_version_names_the_method_too(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("doublebind 0.")


def test_a_wrong_command_line_says_where_help_is(capsys: Capture) -> None:
    for argv, said in ((["show"], "show --help"), (["shwo"], "--help")):
        assert main(argv) == 2
        assert said in capsys.readouterr().err


def test_a_direct_audit_is_a_table_on_a_terminal(
    folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    argv = ["audit", "m0", "--pack", "pack", "--store", "store"]
    assert ask_on_a_terminal(argv, monkeypatch) == 0
    shown = capsys.readouterr().out
    assert "choice/ruler" in shown
    assert "auditable" in shown


def test_a_plan_is_a_table_of_times_and_sizes_on_a_terminal(
    folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert ask_on_a_terminal(["plan", "study.yaml", "--store", "store"], monkeypatch) == 0
    shown = capsys.readouterr().out
    assert "3 references of 2 families" in shown
    assert "smallest p: 0.25" in shown
    assert "0 s" in shown
    assert "MiB" in shown
    assert ask_on_a_terminal(["plan", "study.yaml", "--store", "none"], monkeypatch) == 0
    assert "not known" in capsys.readouterr().out, "nothing was timed in that store"
