"""A run that was rewritten, its seal renewed, does not pass `verify` where its store is at hand."""

from __future__ import annotations

import functools
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.tiny_study import write_study

import doublebind
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
    suppress_health_check=list(HealthCheck),
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

    def of(self, rows: pd.DataFrame, teacher: str, kind: str = "student") -> pd.Series:
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
    start = time.perf_counter()
    found = look(made, made.run, made.store)
    assert (found.status, found.problems, found.unchecked) == ("verified", (), ())
    assert time.perf_counter() - start < 5
    bare = look(made, made.run, made.bare)
    assert bare.problems == ()
    assert any("record of the run" in line for line in bare.unchecked)


def test_a_run_that_was_weighed_and_sealed_again_as_it_was_is_verified(
    made: Made, tmp_path: Path
) -> None:
    run = forge(made, tmp_path, lambda _: None)
    found = look(made, run, made.store)
    assert (found.status, found.problems) == ("verified", ())


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
