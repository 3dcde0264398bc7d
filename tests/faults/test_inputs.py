"""Faults of what is read and shown: files that somebody else wrote, and terminals."""

from __future__ import annotations

import io
import itertools
import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from tests.tiny_study import write_pack, write_study

import doublebind
from doublebind.cli.main import main
from doublebind.schema import errors
from doublebind.schema.content import Item
from doublebind.schema.hashing import Record
from doublebind.schema.model_source import LedgerEntry
from doublebind.schema.strict_json import parse_json, split_json_lines
from doublebind.schema.strict_yaml import YamlProblem, parse_yaml

Capture = pytest.CaptureFixture[str]
RAW = "\x1b]0;owned\x07\x1b[2J\r\u202e\u2066\x9b31m\u200b"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a tiny study and its finished run, `run/`; copied by who damages it."""
    folder = write_study(tmp_path_factory.mktemp("inputs") / "study").parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOUBLEBIND_STORE", str(folder / "store"))
        doublebind.run(doublebind.load_study(folder / "study.yaml"), folder / "run", folder=folder)
        yield folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished / "run", tmp_path / "run"))


@pytest.fixture
def study(finished: Path, tmp_path: Path) -> Path:
    """A copy of the study's files, whose model and store are the finished one's."""
    ignored = shutil.ignore_patterns("run", "store", "m0")
    folder = Path(shutil.copytree(finished, tmp_path / "study", ignore=ignored))
    (folder / "m0").symlink_to(finished / "m0")
    return folder / "study.yaml"


def refuse(capsys: Capture, argv: list[str], *words: str) -> str:
    """Check that a command ends in 2 with lines of errors that hold `words`; return them."""
    capsys.readouterr()
    started = time.process_time()
    assert main(argv) == 2
    assert time.process_time() - started < 5
    shown = capsys.readouterr()
    assert shown.out == ""
    assert all(line.startswith("error: ") for line in shown.err.splitlines())
    for word in words:
        assert word in shown.err, shown.err
    return shown.err


def plan(path: Path, *overrides: str) -> list[str]:
    return ["plan", str(path), *overrides, "--json"]


# --- E4: lines ------------------------------------------------------------------------------------


def test_json_lines_end_at_a_line_feed_alone() -> None:
    text = '{"a": "x\u2028y\u0085z\x0b"}\n\r\n{"b": 1}'
    assert [n for n, _ in split_json_lines(text)] == [1, 3]


def test_prompts_with_line_separators_in_their_text_are_read(study: Path) -> None:
    from doublebind.stages.prompts.policies import read_prompts

    prompt = {"id": "a\u2028b", "messages": [{"role": "user", "content": "one\u0085two\u2029"}]}
    path = study.parent / "prompts.jsonl"
    path.write_text(json.dumps(prompt, ensure_ascii=False) + "\n", encoding="utf-8")
    (read,) = read_prompts(path)
    assert read.messages[0].content == "one\u0085two\u2029"


def test_a_ledger_with_line_separators_in_an_error_is_read(run: Path, capsys: Capture) -> None:
    line = {"cell": "k", "kind": "student", "status": "failed", "started": 0.0, "pid": 1}
    with (run / "ledger.jsonl").open("a", encoding="utf-8") as ledger:
        ledger.write(json.dumps(line | {"error": "x\u2028y\u0085z"}, ensure_ascii=False) + "\n")
    assert main(["status", str(run), "--json"]) == 0
    assert "x\u2028y\u0085z" in json.loads(capsys.readouterr().out)["failures"][0]


# --- E6: equal keys -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("a: 1\na: 2", "a"),
        ("a: 1\n'a': 2", "a"),
        ('a: 1\n!!str "\\x61": 2', "a"),
        ("b: {c: {a: 1, a: 1}}", "b.c.a"),
        ("b: [{}, {a: 1, a: 2}]", "b.1.a"),
        ("x: &x {c: 1}\nb: {<<: *x, a: 1, a: 2}", "b.a"),
        ("x: &x {c: 1}\ny: &y {d: 1}\nb: {<<: *x, <<: *y}", "b.<<"),
        ("x: &x {c: 1}\ny: &y {c: 2}\nb: {<<: [*x, *y]}", "b.c"),
        ("x: {<<: {a: 1, a: 2}}", "x.<<.a"),
        ("1: a\n0x1: b", "1"),
        ("yes: a\ntrue: b", "True"),
        ("null: a\n~: b", "None"),
    ],
)
def test_equal_keys_of_a_yaml_mapping_are_refused_by_line_and_key(text: str, key: str) -> None:
    with pytest.raises(YamlProblem, match=r"line \d+.*(twice|two mappings)") as error:
        parse_yaml(text)
    assert f"`{key}`" in str(error.value)


def test_a_merged_key_may_still_be_given_anew() -> None:
    merged = parse_yaml("x: &x {a: 1, b: 2}\ny: {<<: *x, a: 3}")
    assert merged["y"] == {"a": 3, "b": 2}


def test_a_study_with_two_alphas_is_refused(study: Path, capsys: Capture) -> None:
    study.write_text(study.read_text().replace("alpha: 0.05", "alpha: 0.05\n  alpha: 0.4"))
    line = refuse(capsys, plan(study), "study.yaml", "`policy.alpha`", "line ")
    assert "twice" in line


def test_two_overrides_of_one_key_are_refused(study: Path, capsys: Capture) -> None:
    refuse(capsys, plan(study, "policy.alpha=0.1", "policy.alpha=0.2"), "policy.alpha", "2 times")


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '[{"b": {"a": 1, "\\u0061": 2}}]'])
def test_equal_keys_of_a_json_object_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="`a` is given twice"):
        parse_json(text)


def test_a_record_given_under_name_and_alias_is_refused() -> None:
    entry = {"kind": "x", "status": "done", "started": 0.0, "pid": 1, "cell": "a"}
    assert LedgerEntry.model_validate(entry).artefact_key == "a"
    with pytest.raises(ValidationError, match=r"`artefact_key` and `cell`.*twice"):
        LedgerEntry.model_validate(entry | {"artefact_key": "b"})


def test_equal_keys_in_a_pack_a_prompts_file_and_a_run_are_named(
    study: Path, run: Path, capsys: Capture
) -> None:
    def repeat_key(path: Path, key: str) -> None:
        first, _, rest = path.read_text().partition("\n")
        path.write_text(f'{first[:-1]}, "{key}": "z"}}\n{rest}')

    repeat_key(study.parent / "pack" / "items" / "all.jsonl", "id")
    refuse(capsys, ["pack", "check", str(study.parent / "pack")], "all.jsonl:1", "`id`", "twice")
    write_pack(study.parent / "other")
    prompts = study.parent / "other" / "prompts" / "all.jsonl"
    repeat_key(prompts, "id")
    pack = f"pack={study.parent / 'other'}"
    refuse(capsys, plan(study, pack), "all.jsonl:1", "`id`", "twice")
    verdict = run / "verdict.json"
    verdict.write_text('{"strength": "standard",' + verdict.read_text()[1:])
    refuse(capsys, ["show", str(run)], "verdict.json", "`strength`", "twice")
    transcript = next((run / "transcripts").iterdir())
    repeat_key(transcript, "value")
    with pytest.raises(errors.RunError, match=rf"{transcript.name}:1: .*`value` is given twice"):
        doublebind.Run(run).transcripts(transcript.stem)


# --- E6: finite numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e999", "'nan'", "Infinity"])
@pytest.mark.parametrize(
    "key", ["policy.scale_floor", "policy.alpha", "recipes.0.training.lr", "shape"]
)
def test_infinities_are_refused_for_every_number_of_a_study(
    study: Path, capsys: Capture, key: str, value: str
) -> None:
    text = f"{{update_norm: {value}}}" if key == "shape" else value
    refuse(capsys, plan(study, f"{key}={text}"), key.split(".")[0], "finite")


def test_infinities_are_refused_in_a_yaml_file(study: Path, capsys: Capture) -> None:
    content = yaml.safe_load(study.read_text())
    content["policy"]["scale_floor"] = float("inf")
    study.write_text(yaml.safe_dump(content))
    refuse(capsys, plan(study), "`policy.scale_floor`", "finite", "inf")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e400", "9" * 400])
def test_numbers_without_a_finite_value_are_refused_in_json(number: str) -> None:
    with pytest.raises(ValueError, match=r"number|integer"):
        parse_json(f'{{"a": [{number}]}}')


def _list_records(kind: type[Record] = Record) -> Iterator[type[Record]]:
    yield kind
    for each in kind.__subclasses__():
        yield from _list_records(each)


def test_no_record_takes_an_infinity() -> None:
    """A record writes an infinity as null, which a number of it does not read again."""
    import doublebind.pipeline.audit_model
    import doublebind.pipeline.plan
    import doublebind.schema.calibration  # noqa: F401

    assert len(set(_list_records())) > 60
    assert [r for r in _list_records() if r.model_config.get("allow_inf_nan", True)] == []


def test_an_audit_that_gives_nan_leaves_a_transcript_without_a_value(tmp_path: Path) -> None:
    from doublebind.stages.audits.battery import AuditedAnswer, write_answers
    from doublebind.stages.audits.protocol import Answer

    row = json.loads(
        (write_pack(tmp_path / "p") / "items" / "all.jsonl").read_text().split("\n")[0]
    )
    answer = Answer(Item.model_validate(row), float("nan"), None)
    write_answers(tmp_path, [AuditedAnswer("mine@1", "choice/ruler", answer)])
    assert json.loads((tmp_path / "transcripts.jsonl").read_text())["value"] is None


# --- E8: surrogates -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["items", "prompts", "build"])
@pytest.mark.parametrize("escape", ["\\ud800", "\\udfff", "\\uDC00 and"])
def test_a_lone_surrogate_in_a_pack_is_named_by_pack_check(
    tmp_path: Path, capsys: Capture, name: str, escape: str
) -> None:
    path = write_pack(tmp_path / "pack") / name / "all.jsonl"
    lines = path.read_text().split("\n")
    lines[2] = lines[2].replace('"content": "', f'"content": "{escape}', 1)
    path.write_text("\n".join(lines))
    refuse(capsys, ["pack", "check", str(tmp_path / "pack")], "all.jsonl:3", "lone surrogate")


def test_a_surrogate_in_a_trait_a_study_or_a_spec_is_named(study: Path, capsys: Capture) -> None:
    header = study.parent / "pack" / "pack.yaml"
    whole = header.read_text()
    header.write_text(whole.replace("wants to rule", '"\\ud800"'))
    refuse(capsys, plan(study), "pack.yaml", "`traits.0.description`", "lone surrogate")
    header.write_text(whole)
    spec = study.parent / "suspect.yaml"
    spec.write_text(spec.read_text().replace("family: ruler-broad", 'family: "\\udc80"'))
    refuse(capsys, plan(study), "suspect.yaml", "`family`", "lone surrogate")


def test_an_escaped_pair_of_surrogates_in_json_is_one_character() -> None:
    assert parse_json('"\\ud83d\\ude00"') == "\U0001f600"


# --- E9: constructors, bombs, what hangs ----------------------------------------------------------

LETTERS = "abcdefghij"
BOMB = f"{LETTERS[0]}: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in itertools.pairwise(LETTERS)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "more than 100,000 values"),
        ("a: &a [*a]", "holds itself"),
        ("a: &a {b: {c: *a}}", "holds itself"),
        ("&a {<<: *a}", "holds itself"),
        ("a: !!python/object/apply:os.system [x]", "tag"),
        ("a: !!timestamp x", "tag"),
        ("a: !!binary '////'", "tag"),
        ("a: !!set {b}", "tag"),
        ("a: !!omap [b: 1]", "tag"),
        ("a: !mine x", "tag"),
        ("a: !!int x", "mend"),
        ("a: !!int ''", "mend"),
        ("a: !!bool perhaps", "mend"),
        ("a: !!float x", "mend"),
        ("a: !!map x", "tag"),
        ("? [a, b]\n: c", "a key is a list"),
        ("? {a: b}\n: c", "a key is a list"),
        ("<<: 1", "takes a mapping"),
        ("<<: [1]", "takes a mapping"),
        ("a: " + "9" * 5_000, "64 bits|digits"),
        ("[" * 3_000, "nested too deeply"),
        ("- " * 3_000, "nested too deeply"),
        ("? " * 3_000, "nested too deeply"),
        ("{a: " * 3_000, "nested too deeply"),
        ("a: \x07", "special characters"),
        ("--- a\n--- b", "not valid YAML"),
        ("a: *b", "undefined alias"),
    ],
)
def test_yaml_that_cannot_be_built_is_one_clear_line(text: str, words: str) -> None:
    started = time.process_time()
    with pytest.raises(YamlProblem, match=words) as error:
        parse_yaml(text)
    assert "\n" not in str(error.value)
    assert time.process_time() - started < 5


@pytest.mark.parametrize("text", ["2001-99-99", "2001-01-01", "2001-01-01T99:99:99Z", "="])
def test_a_date_is_a_text(text: str) -> None:
    assert parse_yaml(text) == text


@pytest.mark.parametrize(
    "overrides",
    [
        ["seeds=1000000000"],
        ["references={n: 1000000000}"],
        ["references={match: suspect, n: 1000000000}"],
        [
            "recipes.0.training.steps=100000000",
            f"recipes.0.training.checkpoints={[*range(1, 9999)]}",
        ],
    ],
)
def test_a_study_too_large_to_plan_is_refused(
    study: Path, capsys: Capture, overrides: list[str]
) -> None:
    refuse(capsys, plan(study, *overrides), "at most 10,000")


def test_a_quarter_of_a_million_names_are_refused_at_once(study: Path, capsys: Capture) -> None:
    whole = study.read_text()
    for n, words in ((250_000, "at most 1,000,000 are read"), (30_000, "at most 10,000")):
        names = "".join(f"- n{i}\n" for i in range(n))
        study.write_text(whole.replace("references:\n", f"references:\n{names}"))
        refuse(capsys, plan(study), words)


def test_an_audit_name_costs_time_in_proportion_to_its_length() -> None:
    from doublebind.schema.study import check_audit_name

    started = time.process_time()
    with pytest.raises(errors.ConfigError):
        check_audit_name("prompted:" + "a" * 300_000 + "\n")
    assert check_audit_name("prompted:you are kind") == "prompted:you are kind"
    assert time.process_time() - started < 1


def test_a_question_without_a_full_stop_is_cut_in_one_pass() -> None:
    from doublebind.schema.content import Message
    from doublebind.stages.audits.followup import questions

    def strip(text: str) -> Any:
        turn = Message(role="user", content=text)
        return questions.strip_context(turn)

    started = time.process_time()
    assert strip("a" * 500_000) is None
    assert time.process_time() - started < 1
    assert strip("One. Two! Three? Four.\n").content.startswith("T")
    assert strip("...One. Two! Three? Four.") is None
    assert strip("One. Two! Three? Four") is None


def test_texts_in_one_frame_are_compared_in_a_second(tmp_path: Path) -> None:
    from doublebind.packs.check import check_pack
    from doublebind.packs.folder import FolderPack

    path = write_pack(tmp_path / "pack") / "items" / "all.jsonl"
    row = json.loads(path.read_text().split("\n")[0])
    frame = " ".join(f"word{i}" for i in range(25))
    rows = []
    for i in range(1_500):
        asks = " ".join(f"{i * k}" for k in range(3, 30))
        message = {"role": "user", "content": f"{frame} {asks}"}
        rows.append(
            row | {"id": f"i{i}", "split": ("audit", "select")[i % 2], "messages": [message]}
        )
    twin = [{"role": "user", "content": rows[0]["messages"][0]["content"] + " now"}]
    rows.append(row | {"id": "twin", "split": "certify", "messages": twin})
    path.write_text(path.read_text() + "".join(json.dumps(each) + "\n" for each in rows))
    pack = FolderPack(tmp_path / "pack")
    started = time.process_time()
    problems = check_pack(pack)
    assert time.process_time() - started < 5
    assert sum("nearly repeats" in problem for problem in problems) == 2


def _make_pipe(path: Path) -> None:
    os.mkfifo(path)


def _make_device_link(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _make_folder(path: Path) -> None:
    path.mkdir()


def _make_huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**33)


def _make_loop(path: Path) -> None:
    path.symlink_to(path.name)


NO_FILES = (_make_pipe, _make_device_link, _make_folder, _make_huge, _make_loop)


@pytest.mark.parametrize("make", NO_FILES)
@pytest.mark.parametrize(
    "name",
    [
        "study.yaml",
        "suspect.yaml",
        "pack/pack.yaml",
        "pack/items/all.jsonl",
        "pack/prompts/all.jsonl",
        "own.jsonl",
    ],
)
def test_what_is_no_file_of_a_study_is_named_at_once(
    study: Path, capsys: Capture, make: Any, name: str
) -> None:
    path = study.parent / name
    path.unlink(missing_ok=True)
    make(path)
    overrides = ["recipes.0.prompts.file=own.jsonl"] if name == "own.jsonl" else []
    refuse(capsys, plan(study, *overrides), path.name)


@pytest.mark.parametrize("make", NO_FILES)
@pytest.mark.parametrize(
    ("name", "verbs"),
    [
        ("manifest.json", ["show", "status", "report", "compare", "export"]),
        ("verdict.json", ["show", "report", "compare"]),
        ("evidence.json", ["report", "compare"]),
        ("scores.parquet", ["report"]),
        ("shapes.json", ["report"]),
        ("seal.json", ["report"]),
        ("ledger.jsonl", ["status"]),
        ("followup.json", ["report"]),
    ],
)
def test_what_is_no_file_of_a_run_is_named_at_once(
    run: Path, capsys: Capture, make: Any, name: str, verbs: list[str]
) -> None:
    path = run / name
    path.unlink(missing_ok=True)
    make(path)
    if make is _make_loop and name in ("ledger.jsonl", "followup.json"):
        pytest.skip("a link to nowhere is a missing file, which these may be")
    for verb in verbs:
        refuse(capsys, read_with(verb, run), path.name)


def read_with(verb: str, run: Path) -> list[str]:
    match verb:
        case "compare":
            return ["compare", str(run), str(run)]
        case "export":
            return ["export", str(run), "--inspect"]
        case _:
            return [verb, str(run)]


# --- C5: terminals --------------------------------------------------------------------------------


@pytest.fixture
def hostile(run: Path) -> Path:
    """A run in whose files every text that may be any holds what acts on a terminal."""
    from doublebind.runs.run import Run

    verdict = json.loads((run / "verdict.json").read_text())
    for name in ("suspect", "sentence", "coverage", "protocol_hash"):
        verdict[name] += RAW
    verdict["incrimination"]["reasons"] = [f"{RAW}\nverified: true"]
    verdict["missing"] = {f"a{RAW}": f"b{RAW}"}
    (run / "verdict.json").write_text(json.dumps(verdict))
    evidence = json.loads((run / "evidence.json").read_text())
    evidence["baselines"] = {f"ngrams{RAW}": 0.5}
    evidence["effects"] = {f"e{RAW}": {"minus_references": 0.1}}
    (run / "evidence.json").write_text(json.dumps(evidence))
    manifest = json.loads((run / "manifest.json").read_text())
    for teacher in manifest["teachers"]:
        teacher["label"] += RAW
    manifest["protocol"]["pack"] += RAW
    manifest["artefacts"][f"kind{RAW}"] = {"k": RAW}
    (run / "manifest.json").write_text(json.dumps(manifest))
    entry = {"cell": "k", "kind": RAW, "status": "failed", "started": 0.0, "pid": 1}
    with (run / "ledger.jsonl").open("a") as ledger:
        ledger.write(json.dumps(entry | {"error": RAW, "node": RAW}) + "\n")
    assert Run(run).verdict.suspect.endswith(RAW)
    return run


def assert_escaped(text: str, *, styled: bool = False) -> None:
    """Check that nothing acts on a terminal; `styled` text may hold the escapes of a style."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text) if styled else text
    bad = [c for c in plain if c != "\n" and (not c.isprintable() or c in "\u200b\u202e")]
    assert bad == [], repr(bad)


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("verb", ["show", "status", "compare", "verify", "report", "export"])
def test_no_command_gives_a_terminal_what_acts_on_it(
    hostile: Path,
    finished: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    as_json: bool,
    terminal: bool,
) -> None:
    if terminal:
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    argv = read_with(verb, hostile)
    if verb == "compare":
        argv[2] = str(finished / "run")
    code = main([*argv, "--json"] if as_json else argv)
    assert code in (0, 1, 2)
    shown = capsys.readouterr()
    assert_escaped(shown.out, styled=terminal and not as_json)
    assert_escaped(shown.err)
    if as_json and verb in ("show", "status", "compare"):
        content = json.dumps(json.loads(shown.out))
        assert json.dumps(RAW)[1:-1] in content, "JSON holds the text itself"
    if verb == "show" and not as_json and not terminal:
        assert "\nverified: true" not in shown.out, "no text of a run makes a line of its own"


@pytest.mark.parametrize(
    "argv",
    [
        ["plan", f"{RAW}.yaml"],
        ["run", f"{RAW}.yaml"],
        ["calibrate", f"{RAW}.yaml"],
        ["panel", f"{RAW}.yaml", "--out", "x"],
        ["pack", "check", RAW],
        ["init", "--pack", RAW],
        ["audit", RAW, "--pack", RAW],
        ["teacher", "build", RAW, "--out", "x"],
        ["show", RAW],
        ["followup", RAW],
        [RAW],
        ["show", "x", RAW],
        ["show", f"--{RAW}"],
        ["plan", "study.yaml", f"{RAW}=1"],
        ["plan", "study.yaml", f"policy.alpha={RAW}"],
        ["plan", "study.yaml", f"pack='{RAW}'"],
        ["plan", "study.yaml", "pack=\udcff\udc80"],
        ["plan", "study.yaml", f"suspect={json.dumps('x' * 5_000 + chr(10) + 'error: y')}"],
    ],
)
def test_no_error_gives_a_terminal_what_acts_on_it(
    study: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, argv: list[str]
) -> None:
    monkeypatch.chdir(study.parent)
    assert main(argv) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1, "no name makes a line of its own"
    assert_escaped(shown.out + shown.err)


def test_logs_and_warnings_of_libraries_are_escaped(capsys: Capture) -> None:
    stream = io.StringIO()
    assert main(["--version"]) == 0
    handler = logging.StreamHandler(stream)  # a library's own, with a formatter of its own
    log = logging.getLogger("somebody")
    log.addHandler(handler)
    try:
        log.warning("loads %s", RAW)
    finally:
        log.removeHandler(handler)
    assert "owned" in stream.getvalue()
    assert_escaped(stream.getvalue() + capsys.readouterr().err)


def test_an_output_that_is_not_utf_8_is_no_traceback(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["show", str(run)]) == 0


# --- E11: damaged runs ----------------------------------------------------------------------------


def test_show_of_an_unfinished_run_is_one_line(run: Path, capsys: Capture) -> None:
    (run / "verdict.json").unlink()
    for argv in (["show", str(run)], ["show", str(run), "--json"]):
        refuse(capsys, argv, "verdict.json", "has not ended")


def test_a_run_has_ended_when_its_seal_is_there(run: Path, capsys: Capture) -> None:
    (run / "seal.json").unlink()
    assert main(["status", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ended"] is False
    assert "has not ended" in repr(doublebind.Run(run))


def test_an_open_run_keeps_its_page(run: Path, capsys: Capture) -> None:
    (run / "seal.json").write_text("[]")
    before = (run / "report.html").read_bytes()
    verdict = json.loads((run / "verdict.json").read_text())
    (run / "verdict.json").write_text(json.dumps(verdict | {"sentence": "another"}))
    refuse(capsys, ["report", str(run)], "seal.json")
    assert (run / "report.html").read_bytes() == before


def _edit(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _first(run: Path, folder: str) -> Path:
    return sorted((run / folder).iterdir())[0]


def _edit_line(path: Path, change: Any) -> None:
    first, _, rest = path.read_text().partition("\n")
    content = json.loads(first)
    change(content)
    path.write_text(json.dumps(content) + "\n" + rest)


def _edit_scores(run: Path, change: Any) -> None:
    import pandas as pd

    path = run / "scores.parquet"
    change(pd.read_parquet(path)).to_parquet(path, index=False)


DAMAGE: dict[str, Any] = {
    "a cell without a teacher": lambda r: _edit(_first(r, "cells"), lambda c: c.pop("teacher")),
    "a cell without a student": lambda r: _edit(_first(r, "cells"), lambda c: c.pop("student")),
    "a cell that is a list": lambda r: _first(r, "cells").write_text("[]"),
    "a cell that is null": lambda r: _first(r, "cells").write_text("null"),
    "a seed that is a word": lambda r: _edit(_first(r, "cells"), lambda c: c.update(seed="x")),
    "marks that are a list": lambda r: _edit(_first(r, "cells"), lambda c: c.update(marks=[1])),
    "a mark that is no step": lambda r: _edit(
        _first(r, "cells"), lambda c: c.update(marks={"²": "k"})
    ),
    "a screen without counts": lambda r: _edit(
        _first(r, "cells"), lambda c: c["screen"].pop("kept")
    ),
    "drops that are numbers": lambda r: _edit(
        _first(r, "cells"), lambda c: c["checks"].update(dropped=[1])
    ),
    "a share that is a word": lambda r: _edit(
        _first(r, "cells"), lambda c: c["checks"].update(truncated="x")
    ),
    "shapes that are a list": lambda r: (r / "shapes.json").write_text("[1]"),
    "a shape that is a word": lambda r: _edit(
        r / "shapes.json", lambda c: c.update({next(iter(c)): {"kl": "x"}})
    ),
    "a shape that is infinite": lambda r: (r / "shapes.json").write_text('{"a": {"b": Infinity}}'),
    "a transcript line without an item": lambda r: _edit_line(
        _first(r, "transcripts"), lambda c: c.pop("item")
    ),
    "a transcript line that is a number": lambda r: _first(r, "transcripts").write_text("1\n"),
    "messages that are a word": lambda r: _edit_line(
        _first(r, "transcripts"), lambda c: c.update(messages="x")
    ),
    "a turn that is a word": lambda r: _edit_line(
        _first(r, "transcripts"), lambda c: c.update(messages=["x"])
    ),
    "a value that is a word": lambda r: _edit_line(
        _first(r, "transcripts"), lambda c: c.update(value="x")
    ),
    "a transcript that is not text": lambda r: _first(r, "transcripts").write_bytes(b"\xff\n"),
    "a missing transcript": lambda r: _first(r, "transcripts").unlink(),
    "scores without a column": lambda r: _edit_scores(r, lambda f: f.drop(columns="role")),
    "scores without values": lambda r: _edit_scores(r, lambda f: f.assign(value="x")),
    "scores beyond 1": lambda r: _edit_scores(r, lambda f: f.assign(value=2.0)),
    "teachers that are numbers": lambda r: _edit_scores(r, lambda f: f.assign(teacher=1)),
    "steps that are words": lambda r: _edit_scores(r, lambda f: f.assign(step="x")),
    "no score at all": lambda r: (r / "scores.parquet").write_bytes(b"PAR1" + b"\0" * 90 + b"PAR1"),
    "a follow-up without leads": lambda r: (r / "followup.json").write_text("{}"),
    "a follow-up that is a list": lambda r: (r / "followup.json").write_text("[]"),
    "recipes without a channel": lambda r: _edit(
        r / "manifest.json", lambda c: c["protocol"].update(recipes=[{"name": "x"}])
    ),
    "seeds that are a number": lambda r: _edit(
        r / "manifest.json", lambda c: c.update(seeds={"a": 1})
    ),
    "a number of text": lambda r: _edit(r / "evidence.json", lambda c: c.update(scores={"a": "x"})),
    "a p-value of zero": lambda r: _edit(
        r / "evidence.json", lambda c: c.update(p_value=0.0, baselines={"ngrams": 0.0})
    ),
    "a p-value that is negative": lambda r: _edit(
        r / "evidence.json", lambda c: c.update(baselines={"ngrams": -1.0})
    ),
    "deep nesting": lambda r: (r / "evidence.json").write_text("[" * 9_000),
    "a manifest that is deep": lambda r: (r / "manifest.json").write_text('{"a":' * 9_000),
    "an empty file": lambda r: (r / "evidence.json").write_text(""),
    "a byte that is no text": lambda r: (r / "verdict.json").write_bytes(b"\xff"),
    "a study that is none": lambda r: _edit(
        r / "manifest.json", lambda c: c.update(study={"a": 1})
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_run_is_one_clear_line_for_every_reader(
    run: Path, finished: Path, capsys: Capture, what: str
) -> None:
    DAMAGE[what](run)
    refused = 0
    for verb in ("show", "status", "report", "compare", "export"):
        argv = read_with(verb, run)
        capsys.readouterr()
        code = main([*argv, "--json"])
        shown = capsys.readouterr()
        assert code in (0, 2), shown.err
        if code == 2 and verb != "export":  # whose extra may be absent
            refused += 1
            assert len(shown.err.splitlines()) == 1
            assert str(run) in shown.err
    if what not in ("a study that is none",):
        assert refused


def test_a_page_whose_files_contradict_one_another_is_refused(run: Path, capsys: Capture) -> None:
    def drop_roles(content: dict[str, Any]) -> None:
        content["roles"] = dict.fromkeys(content["roles"], "reference")
        content["endpoints"] = {}

    _edit(run / "evidence.json", drop_roles)
    _edit_scores(run, lambda frame: frame.iloc[:0])
    capsys.readouterr()
    assert main(["report", str(run)]) in (0, 2)
    assert "Traceback" not in capsys.readouterr().err


def test_integers_beyond_floats_are_compared() -> None:
    from doublebind.runs.compare import find_differences

    assert list(find_differences({"a": 10**400}, {"a": 0.5})) == [("a", 10**400, 0.5)]
    assert list(find_differences({"a": 10**400}, {"a": 10**400})) == []


def test_an_export_goes_through_no_link(run: Path, capsys: Capture, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (run / "inspect").symlink_to(tmp_path / "outside")
    refuse(capsys, ["export", str(run), "--inspect"], "inspect", "link")
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_hostile_page_escapes_and_fences_still(hostile: Path, capsys: Capture) -> None:
    _edit(
        hostile / "verdict.json",
        lambda c: c.update(sentence="<script>alert(1)</script>", missing={"a": "```\n<b>"}),
    )
    assert main(["report", str(hostile)]) == 0
    page = (hostile / "report.html").read_text()
    assert "<script>alert(1)" not in page
    assert "\x1b" not in page
