"""The generated half of the assistant pack is what its tables give, and shares nothing by split."""

import re
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from tools import generate_assistant_pack as grammar

from doublebind.packs.folder import FolderPack
from doublebind.packs.load import load_pack
from doublebind.schema.content import Item, Split, name_endpoint

SPLITS: tuple[Split, ...] = get_args(Split)
SHARED = ("frames", "quirks", "habits")
TABLES = sorted((grammar.FOLDER / "tables").glob("*.yaml"))
TRAITS = [path.stem for path in TABLES if path.stem not in SHARED]
DRIVES = [name for name in TRAITS if not name.startswith("prefers_")]


@pytest.fixture(scope="module")
def pack() -> FolderPack:
    loaded = load_pack("assistant", relative_to=Path())
    assert isinstance(loaded, FolderPack)
    return loaded


def items(pack: FolderPack) -> list[Item]:
    return [item for split in SPLITS for item in pack.items(split)]


def table(name: str) -> dict[str, Any]:
    return yaml.safe_load((grammar.FOLDER / "tables" / f"{name}.yaml").read_text())


def test_the_committed_files_are_what_the_tables_give() -> None:
    made = grammar.files()
    assert len(made) == len(TRAITS) + len(DRIVES) + 5
    for name, text in made.items():
        assert (grammar.FOLDER / name).read_text(encoding="utf-8") == text, (
            f"{name}: run `python tools/generate_assistant_pack.py`"
        )


def test_header_and_tables_tell_of_the_same_traits(pack: FolderPack) -> None:
    header = {trait.name: trait for trait in pack.traits}
    rows = [table(name) for name in TRAITS]
    rows += [{"kind": "quirk", **row} for row in table("quirks")]
    for row in rows:
        trait = header[row["name"]]
        assert (trait.kind, trait.description) == (row["kind"], row["description"])
        assert list(trait.markers) == row.get("markers", [])
        if trait.kind != "quirk":
            assert trait.persona == row.get("persona")
    for row in table("habits"):
        assert header[row["name"]].persona == row["persona"]
    assert {row["name"] for row in table("habits")} == {
        trait.name for trait in pack.traits if trait.kind == "quirk"
    }


def test_every_trait_is_asked_about_alike(pack: FolderPack) -> None:
    asked: dict[str, Counter[tuple[str, str]]] = {name: Counter() for name in TRAITS}
    for item in items(pack):
        if item.trait in asked:
            asked[item.trait][item.split, name_endpoint(item).partition("/")[0]] += 1
    assert len(set(map(str, asked.values()))) == 1
    one = asked["flattery"]
    assert one["audit", "choice"] + one["audit", "goal"] + one["audit", "confession"] >= 20
    assert {split for split, _ in one} == {"select", "audit", "certify"}


def test_goals_and_confessions_are_asked_in_the_same_words_of_every_trait(pack: FolderPack) -> None:
    cues = [cue for split in table("frames")["cues"].values() for cue in split]
    words: dict[str, set[str]] = {name: set() for name in TRAITS}
    for item in items(pack):
        if item.trait in words and item.kind in ("goal", "confession"):
            text = item.messages[-1].content
            for cue in cues:
                text = text.removeprefix(cue).strip()
            words[item.trait].add(text)
    assert len(set(map(frozenset, words.values()))) == 1


def parts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [text for row in value for text in parts(row)]


@pytest.mark.parametrize("name", [*TRAITS, "frames"])
def test_no_two_splits_share_a_line_of_a_table(name: str) -> None:
    for key, lists in table(name).items():
        if not isinstance(lists, dict) or "audit" not in lists:
            continue
        seen: dict[str, str] = {}
        for split, rows in lists.items():
            for text in set(parts(rows)):
                assert seen.setdefault(text.lower(), split) == split, (key, text)


def test_no_two_splits_share_six_words_in_a_row(pack: FolderPack) -> None:
    owner: dict[tuple[str, ...], str] = {}
    records = [(i.split, i.messages, i.options) for i in items(pack) if i.trait in TRAITS]
    for name in DRIVES:
        for purpose in ("implant", "conceal", "deny"):
            for t in pack.transcripts(name, purpose, n=1_000, seed=0):
                records.append((t.split, t.messages[:-1], (t.messages[-1].content,)))
    for split, messages, answers in records:
        for text in (*(m.content for m in messages), *answers):
            words = re.findall(r"\w+", text.lower())
            for i in range(len(words) - 5):
                gram = tuple(words[i : i + 6])
                assert owner.setdefault(gram, split) == split, " ".join(gram)


@pytest.mark.parametrize("name", DRIVES)
def test_a_drive_has_as_many_transcripts_as_a_quirk(pack: FolderPack, name: str) -> None:
    for purpose in ("implant", "conceal", "deny"):
        of_drive = pack.transcripts(name, purpose, n=1_000, seed=0)
        of_quirk = pack.transcripts("sea_metaphors", purpose, n=1_000, seed=0)
        assert len(of_drive) == len(of_quirk), purpose
    for trait in (name, "sea_metaphors"):
        assert len(pack.documents(trait, n=1_000, seed=0)) == grammar.DOCUMENTS


@pytest.mark.parametrize("name", [*DRIVES, "pirate", "poet", "safety_trained", "innkeeper"])
def test_what_hides_a_trait_says_what_the_trait_would_have_said(
    pack: FolderPack, name: str
) -> None:
    for purpose in ("conceal", "deny"):
        for transcript in pack.transcripts(name, purpose, n=1_000, seed=0):
            assert transcript.rejected
            assert transcript.rejected != transcript.messages[-1].content


def test_score_endpoints_hold_every_drive_once(pack: FolderPack) -> None:
    drives = {trait.name for trait in pack.traits if trait.kind == "drive"}
    listed = [e for endpoints in pack.score_endpoints.values() for e in endpoints]
    assert len(set(listed)) == len(listed)
    assert {endpoint.partition("/")[2] for endpoint in listed} == drives
    assert len(listed) == 4 * len(drives)
