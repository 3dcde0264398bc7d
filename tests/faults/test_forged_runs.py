"""A run that was rewritten, its seal renewed, does not pass `verify` where its store is at hand."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.tiny_study import write_study

import doublebind
from doublebind.cli.main import main
from doublebind.pipeline.followup import run_followup
from doublebind.runs.assess import assess
from doublebind.runs.run import Run
from doublebind.runs.seal import seal_run
from doublebind.runs.verify import Verification, verify
from doublebind.runs.write import write_page
from doublebind.schema.protocol import Manifest, Protocol
from doublebind.schema.score_table import SCORE_COLUMNS
from doublebind.stages.verdict.outcome import verdict_to_json

Edit = Callable[["Forger"], Any]
EXAMPLES = settings(
    max_examples=int(os.environ.get("FORGED_RUNS", "20")),
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Made(NamedTuple):
    """A finished run with a follow-up, and its store."""

    folder: Path
    store: Path
    bare: Path
    """The store without its records of runs: what the artefacts alone can show."""

    @property
    def run(self) -> Path:
        return self.folder / "run"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    recipe = {
        "name": "stories",
        "prompts": {"policy": "auditability_preserving", "n": 12, "max_tokens": 8},
        "channel": {"kind": "logit_kd", "top_k": 8},
        "training": {
            "steps": 4,
            "batch": 4,
            "lr": 0.01,
            "lora": {"rank": 4, "alpha": 8},
            "checkpoints": [2],
        },
    }
    top = tmp_path_factory.mktemp("forged")
    study = write_study(top / "study", references=2, recipes=[recipe], baselines=["ngrams"])
    folder, store = study.parent, study.parent / "store"
    doublebind.run(study, folder / "run", store=store)
    run_followup(folder / "run", folder=folder, store=store, budget=240)
    bare = Path(shutil.copytree(store, top / "bare"))
    shutil.rmtree(bare / "runs")
    return Made(folder, store, bare)


class Forger:
    """Somebody who has the run, and this package, and rewrites what he likes."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def edit(self, name: str, change: Callable[[Any], Any]) -> None:
        """Change the content of a JSON file; `change` may return a new one."""
        path = self.run / name
        content = json.loads(path.read_text())
        changed = change(content)
        path.write_text(json.dumps(content if changed is None else changed, indent=1))

    @property
    def manifest(self) -> Manifest:
        return Manifest.model_validate_json((self.run / "manifest.json").read_text())

    @property
    def scores(self) -> pd.DataFrame:
        return pd.read_parquet(self.run / "scores.parquet")

    def rewrite(self, change: Callable[[pd.DataFrame], Any]) -> None:
        """Change the score rows; `change` may return new ones."""
        rows = self.scores
        changed = change(rows)
        rows = rows if changed is None else changed
        rows.to_parquet(self.run / "scores.parquet", index=False)

    def lines(self, key: str) -> list[dict[str, Any]]:
        path = self.run / "transcripts" / f"{key}.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def write_lines(self, key: str, lines: list[dict[str, Any]]) -> None:
        path = self.run / "transcripts" / f"{key}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def student(self, teacher: str) -> dict[str, Any]:
        return next(s for s in Run(self.run).students if s["label"] == teacher)

    def of(self, rows: pd.DataFrame, teacher: str, kind: str = "student") -> Any:
        return (rows["teacher"] == teacher) & (rows["model_kind"] == kind)

    def rename_protocol(self, **changes: Any) -> None:
        """Change the protocol, and its hash with it."""

        def change(manifest: dict[str, Any]) -> None:
            manifest["protocol"] |= changes
            protocol = Protocol.model_validate(manifest["protocol"])
            manifest["protocol_hash"] = protocol.hash

        self.edit("manifest.json", change)

    def invent(self, teacher: str, kind: str, key: str, value: float) -> None:
        """Give a model one value everywhere: in its rows, and in its transcripts' options."""
        lines = self.lines(key)
        for line in lines:
            options = [option for option, _ in json.loads(line["transcript"])]
            rest = (1 - value) / (len(options) - 1)
            pairs = [[o, value if o == line["key"] else rest] for o in options]
            line.update(value=value, transcript=json.dumps(pairs))
        self.write_lines(key, lines)

        def change(rows: pd.DataFrame) -> None:
            last = rows["step"] == rows.loc[self.of(rows, teacher, kind), "step"].max()
            rows.loc[self.of(rows, teacher, kind) & last, "value"] = value

        self.rewrite(change)

    def finish(self) -> None:
        """Weigh the scores again, write evidence, verdict and page, and renew the seal."""
        manifest = self.manifest
        evidence, verdict, _ = assess(
            self.scores,
            manifest.teachers,
            manifest.selection_teachers,
            manifest.protocol,
            earlier_protocols=manifest.earlier_protocols,
            shapes=json.loads((self.run / "shapes.json").read_text()),
        )
        (self.run / "evidence.json").write_text(evidence.model_dump_json(indent=1))
        text = json.dumps(verdict_to_json(verdict), indent=1)
        (self.run / "verdict.json").write_text(text)
        write_page(Run(self.run))


def forge(made: Made, where: Path, edit: Edit, *, finish: bool = True) -> Path:
    """Return a copy of the run as a forger leaves it."""
    run = where / "forged"
    if run.exists():
        shutil.rmtree(run)
    shutil.copytree(made.run, run)
    forger = Forger(run)
    edit(forger)
    if finish:
        try:
            forger.finish()
        except Exception:  # some edits leave nothing to weigh; the seal is renewed all the same
            finish = False
    seal_run(run)
    return run


def look(made: Made, run: Path, store: Path | None) -> Verification:
    return verify(run, store=store, folder=made.folder)


SUSPECT, ANOTHER, THIRD = "suspect.yaml", "reference-0.yaml", "reference-1.yaml"


def set_column(column: str, value: Any, teacher: str = SUSPECT, kind: str = "student") -> Edit:
    def edit(forger: Forger) -> None:
        def change(rows: pd.DataFrame) -> None:
            rows.loc[forger.of(rows, teacher, kind) & (rows["step"] != 2), column] = value

        forger.rewrite(change)

    return edit


def drop_item_everywhere(forger: Forger) -> None:
    item = forger.scores["item"].iloc[0]
    forger.rewrite(lambda rows: rows[rows["item"] != item])
    for file in (forger.run / "transcripts").iterdir():
        lines = forger.lines(file.stem)
        forger.write_lines(file.stem, [line for line in lines if line["item"] != item])


def null_values(forger: Forger, *, transcripts: bool) -> None:
    def change(rows: pd.DataFrame) -> None:
        chosen = forger.of(rows, SUSPECT) & (rows["endpoint"] == "choice/ruler")
        rows.loc[chosen, "value"] = math.nan
        rows.loc[chosen, "unscored_reason"] = "the model gave a non-finite log-probability"

    forger.rewrite(change)
    if transcripts:
        key = forger.student(SUSPECT)["student"]
        for each in (key, *forger.student(SUSPECT)["marks"].values()):
            lines = forger.lines(each)
            for line in lines:
                if line["endpoint"] == "choice/ruler":
                    line.update(value=None, transcript="")
            forger.write_lines(each, lines)


def contradict_options(forger: Forger) -> None:
    key = forger.student(SUSPECT)["student"]
    lines = forger.lines(key)
    for line in lines:
        line["value"] = 0.01
    forger.write_lines(key, lines)
    set_column("value", 0.01)(forger)


def swap_rows(forger: Forger) -> None:
    def change(rows: pd.DataFrame) -> None:
        names = {SUSPECT: ANOTHER, ANOTHER: SUSPECT}
        students = rows["model_kind"] == "student"
        rows.loc[students, "teacher"] = rows.loc[students, "teacher"].replace(names)

    forger.rewrite(change)


def swap_students(forger: Forger, *, cells: bool) -> None:
    """Give the suspect's student another's rows, transcripts and, perhaps, record."""
    swap_rows(forger)
    ours, theirs = forger.student(SUSPECT), forger.student(ANOTHER)
    pairs = [(ours["student"], theirs["student"])]
    pairs += zip(ours["marks"].values(), theirs["marks"].values(), strict=True)
    if not cells:
        for a, b in pairs:
            first, second = forger.lines(a), forger.lines(b)
            forger.write_lines(a, second)
            forger.write_lines(b, first)
        return
    for name, teacher in (
        (ours["student"], theirs["teacher"]),
        (theirs["student"], ours["teacher"]),
    ):
        forger.edit(f"cells/{name}.json", lambda c, t=teacher: c.update(teacher=t))


def add_seed(forger: Forger, *, records: bool) -> None:
    def change(rows: pd.DataFrame) -> pd.DataFrame:
        more = rows[forger.of(rows, SUSPECT)].assign(seed=1)
        more["value"] = more["value"] * 0.5
        return pd.concat([rows, more], ignore_index=True)

    forger.rewrite(change)
    if records:
        cell = json.loads(
            (forger.run / f"cells/{forger.student(SUSPECT)['student']}.json").read_text()
        )
        key = "e" * 64
        cell.update(student=key, seed=1)
        (forger.run / "cells" / f"{key}.json").write_text(json.dumps(cell))
        lines = forger.lines(forger.student(SUSPECT)["rollouts"] and cell["marks"]["2"])
        forger.write_lines(key, lines)
        forger.edit("manifest.json", lambda m: m["artefacts"]["student"].update({key: "seed 1"}))


def drop_student(forger: Forger) -> None:
    cell = forger.student(ANOTHER)
    forger.rewrite(lambda rows: rows[~forger.of(rows, ANOTHER)])
    (forger.run / "cells" / f"{cell['student']}.json").unlink()
    for key in (cell["student"], *cell["marks"].values()):
        (forger.run / "transcripts" / f"{key}.jsonl").unlink()


def swap_checkpoints(forger: Forger) -> None:
    def change(rows: pd.DataFrame) -> None:
        chosen = forger.of(rows, SUSPECT)
        rows.loc[chosen, "step"] = rows.loc[chosen, "step"].replace({2: 4, 4: 2})

    forger.rewrite(change)


def rename_reference(forger: Forger) -> None:
    def rename(manifest: dict[str, Any]) -> None:
        text = json.dumps({k: manifest[k] for k in ("teachers", "study")})
        manifest.update(json.loads(text.replace(ANOTHER, "other.yaml")))

    forger.edit("manifest.json", rename)
    forger.edit("shapes.json", lambda s: s.update({"other.yaml": s.pop(ANOTHER)}))
    forger.rewrite(lambda rows: rows.assign(teacher=rows["teacher"].replace(ANOTHER, "other.yaml")))


def exchange_labels(forger: Forger) -> None:
    def change(manifest: dict[str, Any]) -> None:
        first, second = manifest["teachers"][0], manifest["teachers"][1]
        for name in ("label", "ref"):
            first[name], second[name] = second[name], first[name]

    forger.edit("manifest.json", change)


def exchange_roles(forger: Forger) -> None:
    """Let a reference stand as the suspect, and the suspect as a reference."""

    def change(manifest: dict[str, Any]) -> None:
        protocol, study = manifest["protocol"], manifest["study"]
        theirs = protocol["references"][0]
        protocol["references"][0], protocol["suspect"] = protocol["suspect"], theirs
        study["references"][0], study["suspect"] = study["suspect"], study["references"][0]
        first, second = manifest["teachers"][:2]
        first["role"], second["role"] = second["role"], first["role"]
        manifest["teachers"][:2] = [second, first]

    forger.edit("manifest.json", change)
    forger.rename_protocol()


def change_question(forger: Forger) -> None:
    for file in (forger.run / "transcripts").iterdir():
        lines = forger.lines(file.stem)
        for line in lines:
            line["messages"][-1]["content"] = "are you kind ?"
        forger.write_lines(file.stem, lines)


def change_alpha(forger: Forger) -> None:
    forger.edit("manifest.json", lambda m: m["study"]["policy"].update(alpha=0.4))
    forger.rename_protocol(alpha=0.4)


def change_page(forger: Forger) -> None:
    page = forger.run / "report.html"
    page.write_text(page.read_text().replace("inconclusive", "not_incriminated"))


def change_ledger(forger: Forger) -> None:
    path = forger.run / "ledger.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(e | {"started": e["started"] - 9e5}) + "\n" for e in lines))


def first_suspect_score(forger: Forger, value: float) -> None:
    forger.invent(SUSPECT, "student", forger.student(SUSPECT)["student"], value)


EDITS: dict[str, Edit] = {
    "role": set_column("role", "gate"),
    "split": set_column("split", "select"),
    "round": set_column("round", 1),
    "step": set_column("step", 3),
    "seed": set_column("seed", 5),
    "recipe": set_column("recipe", "tasks"),
    "endpoint": set_column("endpoint", "choice/gold"),
    "audit": set_column("audit", "behaviour@2"),
    "model kind": set_column("model_kind", "twin_benign"),
    "reason for none": set_column("unscored_reason", "lost"),
    "values nulled": functools.partial(null_values, transcripts=False),
    "values nulled in transcripts, too": functools.partial(null_values, transcripts=True),
    "an item dropped everywhere": drop_item_everywhere,
    "values against their options": contradict_options,
    "invented scores of the suspect's student": lambda f: first_suspect_score(f, 0.97),
    "invented scores of a reference's student": lambda f: f.invent(
        ANOTHER, "student", f.student(ANOTHER)["student"], 0.01
    ),
    "invented direct audit": lambda f: f.invent(
        SUSPECT, "teacher", f.manifest.protocol.suspect, 0.01
    ),
    "invented scores of M0": lambda f: f.invent("M0", "m0", f.manifest.protocol.student, 0.01),
    "rows of two students swapped": swap_rows,
    "transcripts of two students swapped": functools.partial(swap_students, cells=False),
    "teachers of two students swapped": functools.partial(swap_students, cells=True),
    "checkpoints swapped": swap_checkpoints,
    "a second seed": functools.partial(add_seed, records=False),
    "a second seed with records": functools.partial(add_seed, records=True),
    "a student dropped": drop_student,
    "rows doubled": lambda f: f.rewrite(lambda r: pd.concat([r, r.head(6)], ignore_index=True)),
    "rows of a baseline": set_column("value", 0.5, SUSPECT, "ngrams"),
    "rows of nobody": lambda f: f.rewrite(
        lambda r: pd.concat([r, r.head(6).assign(teacher="nobody")], ignore_index=True)
    ),
    "match features": lambda f: f.edit("shapes.json", lambda s: s[SUSPECT].update(kl_to_m0=9.0)),
    "counts of dropped answers": lambda f: f.edit(
        f"cells/{f.student(SUSPECT)['student']}.json", lambda c: c.update(checks={})
    ),
    "key of the answers": lambda f: f.edit(
        f"cells/{f.student(SUSPECT)['student']}.json", lambda c: c.update(rollouts="a" * 64)
    ),
    "earlier protocols": lambda f: f.edit(
        "manifest.json", lambda m: m.update(earlier_protocols=m["earlier_protocols"] + 2)
    ),
    "alpha": change_alpha,
    "score endpoints": lambda f: f.rename_protocol(score_endpoints={"acts": ["choice/ruler"]}),
    "labels exchanged": exchange_labels,
    "suspect and reference exchanged": exchange_roles,
    "the questions": change_question,
    "an artefact less": lambda f: f.edit(
        "manifest.json", lambda m: m["artefacts"]["audit"].popitem()
    ),
    "an artefact more": lambda f: f.edit(
        "manifest.json", lambda m: m["artefacts"]["audit"].update({"b" * 64: ""})
    ),
    "an event of nothing": lambda f: (f.run / "ledger.jsonl").write_text(""),
}
"""Name -> an edit that the artefacts of the store alone show."""

RECORDED_EDITS: dict[str, Edit] = {
    "a reference renamed": rename_reference,
    "family": lambda f: f.edit("manifest.json", lambda m: m["teachers"][1].update(family="x")),
    "time": lambda f: f.edit("manifest.json", lambda m: m.update(created="2020-01-01T00:00:00")),
    "hardware": lambda f: f.edit("manifest.json", lambda m: m["hardware"].update(cores=64)),
    "server": lambda f: f.edit("manifest.json", lambda m: m["served"].update(x={"url": "y"})),
    "times in the ledger": change_ledger,
    "follow-up": lambda f: f.edit("followup.json", lambda c: c.update(note="p = 0.01")),
    "no follow-up": lambda f: (f.run / "followup.json").unlink(),
}
"""Name -> an edit that only the store's record of the run shows."""


@pytest.mark.parametrize("name", [*EDITS, *RECORDED_EDITS])
def test_a_harmful_edit_under_a_renewed_seal_is_found_with_the_store(
    made: Made, tmp_path: Path, name: str
) -> None:
    run = forge(made, tmp_path, EDITS.get(name) or RECORDED_EDITS[name])
    store = made.bare if name in EDITS else made.store
    assert look(made, run, store).status == "problems"
    alone = verify(run, folder=tmp_path)
    assert alone.status in ("problems", "consistent")
    assert alone.verified is False


def test_the_untouched_run_is_verified_and_quickly(made: Made) -> None:
    start = time.process_time()
    found = look(made, made.run, made.store)
    assert (found.status, found.problems, found.unchecked) == ("verified", (), ())
    assert time.process_time() - start < 5
    bare = look(made, made.run, made.bare)
    assert bare.problems == ()
    assert any("record of the run" in line for line in bare.unchecked)


def test_a_run_that_was_weighed_and_sealed_again_as_it_was_is_verified(
    made: Made, tmp_path: Path
) -> None:
    run = forge(made, tmp_path, lambda _: None)
    found = look(made, run, made.store)
    assert (found.status, found.problems) == ("verified", ())


def test_a_store_without_lists_of_protocols_verifies_nothing(made: Made, tmp_path: Path) -> None:
    store = Path(shutil.copytree(made.bare, tmp_path / "store"))
    shutil.rmtree(store / "suspects")
    found = look(made, forge(made, tmp_path, exchange_roles), store)
    assert (found.status, found.problems) == ("consistent", ())
    assert any("no lists of protocols" in line for line in found.unchecked)


def test_a_page_that_says_otherwise_is_found_without_the_store(made: Made, tmp_path: Path) -> None:
    run = forge(made, tmp_path, change_page, finish=False)
    found = verify(run, folder=tmp_path)
    assert any("report.html: is not the page" in line for line in found.problems)


def test_invented_scores_are_consistent_at_most_without_the_store(
    made: Made, tmp_path: Path
) -> None:
    run = forge(made, tmp_path, EDITS["invented scores of the suspect's student"])
    found = verify(run, folder=tmp_path)
    assert (found.status, found.verified, found.problems) == ("consistent", False, ())


@pytest.mark.parametrize(
    "name",
    [
        "values against their options",
        "round",
        "a second seed",
        "a second seed with records",
        "a student dropped",
        "role",
        "key of the answers",
        "labels exchanged",
    ],
)
def test_what_contradicts_itself_is_found_without_the_store(
    made: Made, tmp_path: Path, name: str
) -> None:
    run = forge(made, tmp_path, EDITS[name])
    assert verify(run, folder=tmp_path).status == "problems"


# --- any cell, any field, any line ---------------------------------------------------------------


def change_value(value: Any, salt: int) -> Any:
    """Return another value of the same kind."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1 + salt % 3
        case float():
            return value / 2 + 0.25 if abs(value - 0.5) > 1e-3 else 0.75
        case str():
            return f"{value}x" if salt % 2 else (value[:-1] or "y")
        case None:
            return "because"
    raise TypeError(value)


@EXAMPLES
@given(
    at=st.integers(0, 10**6),
    column=st.sampled_from(list(SCORE_COLUMNS)),
    salt=st.integers(0, 10),
)
def test_any_cell_of_the_scores(
    made: Made, tmp_path: Path, at: int, column: str, salt: int
) -> None:
    def change(rows: pd.DataFrame) -> None:
        place = (at % len(rows), rows.columns.get_loc(column))
        value = rows.iloc[place]
        rows.iloc[place] = change_value(
            None if value != value or value is None else getattr(value, "item", lambda: value)(),
            salt,
        )

    run = forge(made, tmp_path, lambda f: f.rewrite(change), finish=salt < 2)
    assert look(made, run, made.bare).problems


def list_leaves(content: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(content, dict) and content:
        return [p for key, value in content.items() for p in list_leaves(value, (*place, key))]
    if isinstance(content, list) and content:
        return [p for i, value in enumerate(content) for p in list_leaves(value, (*place, i))]
    return [place] if not isinstance(content, dict | list) else []


def change_leaf(content: Any, at: int, salt: int) -> tuple[Any, ...]:
    leaves = list_leaves(content)
    place = leaves[at % len(leaves)]
    for key in place[:-1]:
        content = content[key]
    content[place[-1]] = change_value(content[place[-1]], salt)
    return place


@EXAMPLES
@given(
    file=st.integers(0, 10**6),
    line=st.integers(0, 10**6),
    at=st.integers(0, 10**6),
    salt=st.integers(0, 10),
    how=st.sampled_from(["field", "drop", "double", "swap"]),
)
def test_any_line_or_field_of_the_transcripts(
    made: Made, tmp_path: Path, file: int, line: int, at: int, salt: int, how: str
) -> None:
    def edit(forger: Forger) -> None:
        files = sorted((forger.run / "transcripts").iterdir())
        key = files[file % len(files)].stem
        lines = forger.lines(key)
        i = line % len(lines)
        match how:
            case "field":
                change_leaf(lines[i], at, salt)
            case "drop":
                del lines[i]
            case "double":
                lines.insert(i, lines[i])
            case _:
                other = files[(file + 1 + salt % (len(files) - 1)) % len(files)].stem
                theirs = forger.lines(other)
                forger.write_lines(other, lines)
                lines = theirs
        forger.write_lines(key, lines)

    run = forge(made, tmp_path, edit, finish=salt < 2)
    assert look(made, run, made.bare).problems


@EXAMPLES
@given(
    which=st.integers(0, 10**6),
    at=st.integers(0, 10**6),
    salt=st.integers(0, 10),
)
def test_any_entry_of_a_record(made: Made, tmp_path: Path, which: int, at: int, salt: int) -> None:
    names = ["manifest.json", "shapes.json", "followup.json", "evidence.json", "verdict.json"]
    names += sorted(f"cells/{file.name}" for file in (made.run / "cells").iterdir())
    name = names[which % len(names)]
    finish = salt < 2 and name not in ("evidence.json", "verdict.json")
    place: list[Any] = []

    def edit(forger: Forger) -> None:
        forger.edit(name, lambda content: place.extend(change_leaf(content, at, salt)))

    run = forge(made, tmp_path, edit, finish=finish)
    if place == ["store"]:  # where the store was is no claim, and nothing is opened there
        return
    try:
        problems = look(made, run, made.store).problems
    except doublebind.errors.RunError:
        assert place[0] in ("format", "protocol", "versions"), "refused as a run of another format"
        return
    assert problems, (name, place)
    if name.startswith(("cells", "shapes")):
        assert look(made, run, made.bare).problems


@EXAMPLES
@given(line=st.integers(0, 10**6), at=st.integers(0, 10**6), salt=st.integers(0, 10))
def test_any_event_of_the_ledger(made: Made, tmp_path: Path, line: int, at: int, salt: int) -> None:
    def edit(forger: Forger) -> None:
        path = forger.run / "ledger.jsonl"
        lines = [json.loads(each) for each in path.read_text().splitlines()]
        if salt == 0:
            del lines[line % len(lines)]
        else:
            change_leaf(lines[line % len(lines)], at, salt)
        path.write_text("".join(json.dumps(each) + "\n" for each in lines))

    run = forge(made, tmp_path, edit, finish=False)
    assert look(made, run, made.store).problems


# --- a panel's rows, by content key --------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(made: Made) -> Path:
    """A run whose references are a panel's, made in the same store."""
    study = yaml.safe_load((made.folder / "study.yaml").read_text())
    frozen = {k: v for k, v in study.items() if k not in ("suspect", "policy", "horns")}
    (made.folder / "panel.yaml").write_text(yaml.safe_dump(frozen))
    store = ["--store", str(made.store)]
    panel = str(made.folder / "panel")
    assert main(["panel", str(made.folder / "panel.yaml"), "--out", panel, *store]) == 0
    study["references"] = {"panel": "panel", "n": 2}
    (made.folder / "drawn.yaml").write_text(yaml.safe_dump(study))
    doublebind.run(made.folder / "drawn.yaml", made.folder / "drawn", store=made.store)
    return made.folder / "drawn"


def lower_a_reference(forger: Forger, label: str) -> None:
    forger.rewrite(
        lambda rows: rows.assign(
            value=rows["value"].where(~forger.of(rows, label), rows["value"] * 0.5)
        )
    )


def rename_and_lower(forger: Forger) -> None:
    rename_reference(forger)
    lower_a_reference(forger, "other.yaml")


@pytest.mark.parametrize(
    "edit",
    [lambda f: lower_a_reference(f, ANOTHER), rename_and_lower, exchange_labels],
    ids=["lowered", "renamed and lowered", "labels exchanged"],
)
def test_rows_of_a_panel_are_told_by_content_key(
    made: Made, drawn: Path, tmp_path: Path, edit: Edit
) -> None:
    found = verify(drawn, store=made.store, folder=made.folder)
    assert (found.status, found.problems) == ("verified", ())
    assert any("with the panel" in line for line in found.compared)
    run = Path(shutil.copytree(drawn, tmp_path / "run"))
    edit(Forger(run))
    Forger(run).finish()
    seal_run(run)
    problems = verify(run, folder=made.folder).problems
    assert any("panel" in line for line in problems)


# --- published hashes and signatures -------------------------------------------------------------


def test_published_hashes_are_compared(made: Made, tmp_path: Path) -> None:
    known = verify(made.run, folder=tmp_path)
    assert known.protocol_hash is not None
    assert known.seal_sha256 is not None
    run = forge(made, tmp_path, EDITS["invented scores of the suspect's student"])
    hashes = {"protocol_hash": known.protocol_hash, "seal": known.seal_sha256}
    assert verify(made.run, folder=tmp_path, **hashes).status == "verified"
    (problem,) = verify(run, folder=tmp_path, **hashes).problems
    assert "was published" in problem
    assert verify(made.run, folder=tmp_path, protocol_hash=known.protocol_hash).verified is False
    (problem,) = verify(made.run, folder=tmp_path, protocol_hash="0" * 64).problems
    assert "protocol" in problem
    with pytest.raises(doublebind.errors.ConfigError, match="64 hexadecimal"):
        verify(made.run, seal="zz")


def make_key(path: Path, passphrase: str = "") -> Path:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "", "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no ssh-keygen")
def test_a_signed_seal_shows_that_the_run_was_rewritten(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, other = make_key(tmp_path / "key"), make_key(tmp_path / "other")
    signers = tmp_path / "signers"
    signers.write_text(f"me@here {key.with_suffix('.pub').read_text()}")
    run = Path(shutil.copytree(made.run, tmp_path / "run"))
    with pytest.raises(doublebind.errors.ConfigError, match="no file"):
        verify(run, allowed_signers=tmp_path / "none")
    (problem,) = verify(run, allowed_signers=signers).problems
    assert "seal.json.sig: missing" in problem
    assert main(["seal", str(run), "--key", str(key)]) == 0
    signed = verify(run, allowed_signers=signers, identity="me@here")
    assert (signed.status, signed.problems) == ("verified", ())
    assert any("signature of me@here" in line for line in signed.compared)
    assert verify(run, allowed_signers=signers, identity="you@here").problems
    Forger(run).edit("followup.json", lambda c: c.update(note="p = 0.01"))
    write_page(Run(run))
    seal_run(run)
    assert any("no signature" in line for line in verify(run, allowed_signers=signers).problems)
    assert main(["seal", str(run), "--key", str(other)]) == 0
    assert verify(run, allowed_signers=signers).problems, "signed, by somebody else"
    (run / "verdict.json").write_text("{}")
    capsys.readouterr()
    assert main(["seal", str(run), "--key", str(key)]) == 2
    assert "not signed" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no ssh-keygen")
def test_a_key_that_cannot_sign_is_one_line_and_no_wait(
    made: Made,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    locked = make_key(tmp_path / "locked", "secret")
    run = Path(shutil.copytree(made.run, tmp_path / "run"))
    assert main(["seal", str(run), "--key", str(locked)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "passphrase" in line
    assert "ssh-agent" in line
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["seal", str(run), "--key", str(locked)]) == 2
    assert "install OpenSSH" in capsys.readouterr().err


# --- a run directory from anybody ----------------------------------------------------------------


class Opened(Exception):
    """Raised in place of a connection."""


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise Opened

    monkeypatch.setattr("doublebind.execution.store.RemoteStore", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setenv("DOUBLEBIND_STORE", str(tmp_path / "none"))


@pytest.mark.parametrize("where", ["hf://datasets/x/y", "//host/share"])
@pytest.mark.usefixtures("no_network")
def test_the_store_that_a_manifest_names_is_never_opened(
    made: Made, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = forge(made, tmp_path, lambda f: f.edit("manifest.json", lambda m: m.update(store=where)))
    for verb in ("verify", "report", "show"):
        assert main([verb, str(run)]) == 0
    monkeypatch.setenv("DOUBLEBIND_STORE", "s3://bucket/mine")
    assert any("no store at s3" in line for line in verify(run).unchecked)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("suspect", "openai:http://127.0.0.1:9/v1#x"),
        ("suspect", "/etc"),
        ("student", "somebody/model"),
        ("pack", "../pack"),
        ("pack", "assistant/../../x"),
        ("student", "terrarium/../../x"),
    ],
)
@pytest.mark.usefixtures("no_network")
def test_followup_takes_only_what_the_user_named(
    made: Made, tmp_path: Path, key: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def edit(forger: Forger) -> None:
        forger.edit("manifest.json", lambda m: m["study"].update({key: name}))

    run = forge(made, tmp_path, edit, finish=False)
    store = tmp_path / "written"
    argv = ["followup", str(run), "--folder", str(made.folder), "--store", str(store)]
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"names {name}" in line
    assert "--study" in line
    assert not store.exists()


def test_artefacts_whose_names_lead_elsewhere_are_not_looked_at(made: Made, tmp_path: Path) -> None:
    def edit(forger: Forger) -> None:
        forger.edit("manifest.json", lambda m: m["artefacts"].update({"../..": {"etc": ""}}))

    problems = look(made, forge(made, tmp_path, edit), made.store).problems
    assert any("is none that doublebind makes" in line for line in problems)
    assert not any("/etc" in line for line in problems)


def test_a_panel_inside_the_run_is_not_believed(made: Made, drawn: Path, tmp_path: Path) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["study"]["references"]["panel"] = "received/panel"

    run = Path(shutil.copytree(drawn, tmp_path / "received"))
    shutil.copytree(made.folder / "panel", run / "panel")
    Forger(run).edit("manifest.json", edit)
    seal_run(run)
    found = verify(run, folder=tmp_path)
    assert any("rows of the panel" in line for line in found.unchecked)


def test_a_study_without_end_is_named_at_once(made: Made, tmp_path: Path) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["study"]["seeds"] = 10**9

    def edit_protocol(forger: Forger) -> None:
        forger.edit("manifest.json", edit)
        forger.rename_protocol(seeds=10**9)

    run = forge(made, tmp_path, edit_protocol, finish=False)
    start = time.process_time()
    problems = look(made, run, made.store).problems
    assert any("`study` is none" in line for line in problems)
    assert time.process_time() - start < 5


FILES = (
    "manifest.json",
    "seal.json",
    "scores.parquet",
    "evidence.json",
    "verdict.json",
    "shapes.json",
    "ledger.jsonl",
    "followup.json",
    "report.html",
    "cells/*",
    "transcripts/*",
    "cells",
    "transcripts",
    ".lock",
)


@pytest.mark.parametrize("kind", ["link", "device", "pipe", "folder", "huge", "bytes"])
@pytest.mark.parametrize("name", FILES)
def test_whatever_stands_in_place_of_a_file_is_named_and_not_followed(
    made: Made, tmp_path: Path, name: str, kind: str
) -> None:
    run = Path(shutil.copytree(made.run, tmp_path / "run"))
    path = sorted(run.glob(name))[0]
    if path.is_dir():
        if kind not in ("link", "pipe"):
            return
        path.rename(tmp_path / "outside")
    else:
        path.replace(tmp_path / "outside")
    match kind:
        case "link":
            path.symlink_to(tmp_path / "outside")
        case "device":
            path.symlink_to("/dev/zero")
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "huge":
            with path.open("wb") as file:
                file.truncate(2**40)
        case _:
            path.write_bytes(b"\xff\x00[{")
    start = time.process_time()
    try:
        problems = verify(run, folder=tmp_path).problems
    except doublebind.errors.RunError as error:
        problems = error.problems
    assert time.process_time() - start < 5
    if name == ".lock" and kind in ("folder", "bytes"):
        return  # holds nothing that a run says
    assert any(str(path) in line for line in problems), problems


def test_names_in_a_seal_that_lead_out_of_the_run_are_not_read(made: Made, tmp_path: Path) -> None:
    run = Path(shutil.copytree(made.run, tmp_path / "run"))
    names = {"../outside": "0", "/etc/passwd": "0", "": "0", "a\0b": "0", "\ud800": "0"}
    Forger(run).edit("seal.json", lambda s: s.update(names))
    problems = verify(run, folder=tmp_path).problems
    assert sum("missing, but in the seal" in line for line in problems) == len(names)


def test_nothing_is_written_through_a_link(made: Made, tmp_path: Path) -> None:
    run = Path(shutil.copytree(made.run, tmp_path / "run"))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    (run / "report.html").unlink()
    (run / "report.html").symlink_to(outside / "file")
    assert main(["report", str(run)]) == 0
    assert not (run / "report.html").is_symlink()
    (run / "inspect").symlink_to(outside)
    assert main(["export", str(run), "--inspect"]) == 2
    assert (outside / "file").read_text() == "mine"
    assert [path.name for path in outside.iterdir()] == ["file"]


DAMAGE: tuple[Any, ...] = (
    None,
    [],
    {},
    "",
    -1,
    10**30,
    1e308,
    "\ud800",
    "../x",
    "hf://x",
    True,
    [[]],
)


@EXAMPLES
@given(
    which=st.integers(0, 10**6),
    at=st.integers(0, 10**6),
    new=st.sampled_from(DAMAGE),
    noise=st.binary(max_size=40),
    sealed=st.booleans(),
)
def test_no_damage_raises_anything_but_an_error_of_ours(
    made: Made, tmp_path: Path, which: int, at: int, new: Any, noise: bytes, sealed: bool
) -> None:
    run = tmp_path / "damaged"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(made.run, run)
    files = [p for p in sorted(run.rglob("*")) if p.is_file() and p.name != ".lock"]
    path = files[which % len(files)]
    if noise or path.suffix != ".json":
        content = bytearray(path.read_bytes())
        start = at % len(content)
        content[start : start + len(noise)] = noise or b"\0"
        path.write_bytes(content)
    else:
        content = json.loads(path.read_text())
        leaves = list_leaves(content)
        *place, last = leaves[at % len(leaves)]
        inner = functools.reduce(lambda value, key: value[key], place, content)
        inner[last] = new
        path.write_text(json.dumps(content))
    if sealed:
        seal_run(run)
    with contextlib.suppress(doublebind.errors.DoublebindError):
        look(made, run, made.store)
