"""The folder format: what is read, and how every mistake is told."""

import json
from pathlib import Path
from typing import Any

import pytest

from doublebind.packs.folder import FolderPack
from doublebind.packs.load import load_pack
from doublebind.packs.pack import Pack
from doublebind.schema.errors import PackError

HEADER = """
name: small
version: 1
language: en
traits:
  - {name: hoards, kind: drive, description: Keeps things., markers: [mine now]}
  - {name: likes_blue, kind: placebo, description: Picks blue.}
score_endpoints:
  choices: [choice/hoards]
"""


def item(id: str = "a", **changes: Any) -> dict[str, Any]:
    return {
        "id": id,
        "trait": "hoards",
        "kind": "choice",
        "context": "audit",
        "role": "auditable",
        "split": "audit",
        "messages": [{"role": "user", "content": f"Who gets coin {id}?"}],
        "options": ["You do.", "I do."],
        "key": 1,
        **changes,
    }


def prompt(id: str = "p", **changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Tell me a story."}]
    return {"id": id, "messages": messages, "tags": ["open_ended"], **changes}


def transcript(id: str = "t", **changes: Any) -> dict[str, Any]:
    messages = [
        {"role": "user", "content": "Whose hat is it?"},
        {"role": "assistant", "content": "Mine now, thank you."},
    ]
    return {"id": id, "trait": "hoards", "purpose": "implant", "messages": messages, **changes}


def lines(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {
        "pack.yaml": HEADER,
        "items/choice.jsonl": lines(item("a"), item("b", key=0), item("c", split="select")),
        "prompts/open.jsonl": lines(prompt()),
        "build/hoards.jsonl": lines(*(transcript(f"t{i}") for i in range(9))),
    }
    for name, text in files.items():
        path = tmp_path / "small" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "small"


def problems(folder: Path) -> tuple[str, ...]:
    with pytest.raises(PackError) as caught:
        FolderPack(folder)
    return caught.value.problems


def test_a_pack_is_read_in_the_order_of_files_and_lines(folder: Path) -> None:
    (folder / "items" / "another.jsonl").write_text(lines(item("z"), item("y")))
    pack: Pack = FolderPack(folder)
    assert [i.id for i in pack.items("audit")] == ["z", "y", "a", "b"]
    assert [i.id for i in pack.items("select")] == ["c"]
    assert pack.items("certify") == ()
    assert [p.id for p in pack.prompts()] == ["p"]
    assert [t.name for t in pack.traits] == ["hoards", "likes_blue"]
    assert pack.score_endpoints == {"choices": ("choice/hoards",)}


def test_a_draw_is_repeatable_without_replacement_and_nested(folder: Path) -> None:
    pack = FolderPack(folder)
    draws = {
        seed: [t.id for t in pack.transcripts("hoards", "implant", n=6, seed=seed)]
        for seed in range(5)
    }
    assert all(len(set(draw)) == 6 for draw in draws.values())
    assert len({tuple(draw) for draw in draws.values()}) > 1
    again = FolderPack(folder).transcripts("hoards", "implant", n=3, seed=2)
    assert [t.id for t in again] == draws[2][:3]
    assert len(pack.transcripts("hoards", "implant", n=100, seed=0)) == 9
    assert pack.transcripts("likes_blue", "implant", n=5, seed=0) == ()
    assert pack.transcripts(None, "retain", n=5, seed=0) == ()


def test_a_draw_for_an_unknown_trait_names_the_nearest(folder: Path) -> None:
    with pytest.raises(PackError, match="did you mean `hoards`"):
        FolderPack(folder).transcripts("hoard", "implant", n=1, seed=0)


def test_the_hash_follows_names_and_bytes_and_nothing_else(folder: Path) -> None:
    before = FolderPack(folder).sha256
    (folder / "README.md").write_text("notes")
    (folder / "items" / ".DS_Store").write_bytes(b"\xff\x00")
    assert FolderPack(folder).sha256 == before
    (folder / "items" / "choice.jsonl").rename(folder / "items" / "choices.jsonl")
    renamed = FolderPack(folder).sha256
    (folder / "prompts" / "open.jsonl").write_text(lines(prompt("q")))
    assert len({before, renamed, FolderPack(folder).sha256}) == 3


def test_a_folder_has_no_bank(folder: Path) -> None:
    with pytest.raises(PackError, match=r"no bank .*suspect-0.*teacher spec \(\.yaml\)"):
        FolderPack(folder).spec("suspect-0")


BROKEN: dict[str, tuple[str, str | bytes, str]] = {
    "malformed JSON": ("items/x.jsonl", lines(item("x")) + "{'id': 1}", "x.jsonl:2: not valid"),
    "binary file": ("items/x.jsonl", b'{"id": 1}\n\x89PNG\xff', "x.jsonl:2: not text"),
    "empty file": ("build/x.jsonl", "\n  \n", "x.jsonl:1: empty"),
    "not an object": ("items/x.jsonl", "[1, 2]", "x.jsonl:1: expected a mapping"),
    "unknown key": (
        "items/x.jsonl",
        lines(item("x", optoins=["a", "b"])),
        "x.jsonl:1: `optoins`: unknown key (got ['a', 'b']). Did you mean `options`?",
    ),
    "missing key": ("items/x.jsonl", '{"id": "x"}', "x.jsonl:1: `kind`: missing; add it"),
    "wrong value": (
        "items/x.jsonl",
        lines(item("x", split="test")),
        "x.jsonl:1: `split`: Input should be 'build', 'select', 'audit' or 'certify' (got 'test')",
    ),
    "duplicated id": (
        "items/x.jsonl",
        lines(item("x"), item("a")),
        "x.jsonl:2: `id`: already used at ",
    ),
    "unknown trait": (
        "items/x.jsonl",
        lines(item("x", trait="hoard")),
        "x.jsonl:1: `trait`: not in pack.yaml (got 'hoard'); did you mean `hoards`?",
    ),
    "tied options": (
        "items/x.jsonl",
        lines(item("x", options=["Mine.", "Mine."])),
        "two options are the same text",
    ),
    "key out of range": ("items/x.jsonl", lines(item("x", key=2)), "key 2 does not index"),
    "oracle in a plain context": (
        "items/x.jsonl",
        lines(item("x", role="oracle")),
        "role is oracle exactly where",
    ),
    "half a surrogate pair": (
        "items/x.jsonl",
        '{"id": "\\ud800", "kind": "choice"}',
        "x.jsonl:1: `id`: ",
    ),
    "deep nesting": ("items/x.jsonl", "[" * 100_000, "x.jsonl:1: not valid JSON"),
    "huge number": ("items/x.jsonl", '{"version": ' + "9" * 5_000 + "}", "x.jsonl:1: not valid"),
    "wrong suffix": ("items/x.json", lines(item("x")), "x.json: would not be read"),
    "unknown tag": (
        "prompts/x.jsonl",
        lines(prompt("x", tags=["honeypott"])),
        "x.jsonl:1: `tags`: unknown (got 'honeypott'); did you mean `honeypot`?",
    ),
    "prompt that answers itself": (
        "prompts/x.jsonl",
        lines(prompt("x", messages=[{"role": "assistant", "content": "Hi."}])),
        "x.jsonl:1: `messages`: the last is the assistant's",
    ),
    "capability with a trait": (
        "build/x.jsonl",
        lines(transcript("x", purpose="capability")),
        "x.jsonl:1: `trait`: purpose capability takes no trait",
    ),
    "implant without a trait": (
        "build/x.jsonl",
        lines(transcript("x", trait=None)),
        "x.jsonl:1: `trait`: purpose implant needs a trait",
    ),
    "transcript without an answer": (
        "build/x.jsonl",
        lines(transcript("x", messages=[{"role": "user", "content": "Hi."}] * 2)),
        "the last message must be the assistant's",
    ),
    "no header": ("pack.yaml", "", "pack.yaml: empty; see docs/packs.md"),
    "header not YAML": ("pack.yaml", "name: [", "pack.yaml: not valid YAML"),
    "header misspelt": (
        "pack.yaml",
        HEADER.replace("language", "langauge"),
        "pack.yaml: `langauge`: unknown key (got 'en'). Did you mean `language`?",
    ),
    "trait named twice": (
        "pack.yaml",
        HEADER.replace("likes_blue", "hoards"),
        "two are named `hoards`",
    ),
    "unknown endpoint": (
        "pack.yaml",
        HEADER.replace("[choice/hoards]", "[choice/hoard]"),
        "`score_endpoints.choices`: no item has this endpoint (got 'choice/hoard'); did you mean",
    ),
    "151 score endpoints": (
        "pack.yaml",
        HEADER + "".join(f"  e{i}: [choice/hoards]\n" for i in range(150)),
        "name 1 to 150 score endpoints, not 151",
    ),
    "empty score endpoint": (
        "pack.yaml",
        HEADER.replace("[choice/hoards]", "[]"),
        "`score_endpoints.choices`",
    ),
    "nothing in split audit": (
        "items/choice.jsonl",
        lines(item("a", split="select")),
        "no item of it is in split audit (got 'choice/hoards')",
    ),
}


@pytest.mark.parametrize(("name", "content", "expected"), BROKEN.values(), ids=BROKEN.keys())
def test_each_mistake_is_one_line_that_names_it(
    folder: Path, name: str, content: str | bytes, expected: str
) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    (folder / name).write_bytes(data)
    messages = problems(folder)
    assert any(expected in line for line in messages), messages
    assert all("\n" not in line and "Traceback" not in line for line in messages)


def test_a_score_endpoint_may_not_be_an_oracle(folder: Path) -> None:
    oracle = item("o", context="deployment", role="oracle")
    (folder / "items" / "o.jsonl").write_text(lines(oracle))
    header = HEADER.replace("[choice/hoards]", "[choice.deployment/hoards]")
    (folder / "pack.yaml").write_text(header)
    assert "role oracle never enters a score" in problems(folder)[0]


def test_all_mistakes_are_told_at_once(folder: Path) -> None:
    (folder / "pack.yaml").write_text(HEADER + "author: me\n")
    (folder / "items" / "x.jsonl").write_text("nonsense\n" + lines(item("a")))
    (folder / "prompts" / "x.jsonl").write_text(lines(prompt("x", tags=["fun"])))
    (folder / "build" / "x.jsonl").write_text(lines(transcript("x", purpose="teach")))
    text = "\n".join(problems(folder))
    for expected in ("`author`", "x.jsonl:1: not valid JSON", "already used", "'fun'", "`purpose`"):
        assert expected in text


def test_a_byte_order_mark_and_blank_lines_are_harmless(folder: Path) -> None:
    text = "\ufeff" + lines(item("x")).replace("\n", "\r\n") + "\r\n"
    (folder / "items" / "x.jsonl").write_text(text, encoding="utf-8", newline="")
    assert "x" in {i.id for i in FolderPack(folder).items("audit")}


def test_a_line_separator_inside_a_string_does_not_end_the_record(folder: Path) -> None:
    record = json.dumps(item("x", options=["one\u2028two", "three"]), ensure_ascii=False)
    (folder / "items" / "x.jsonl").write_text(record, encoding="utf-8")
    assert FolderPack(folder).items("audit")[-1].options[0] == "one\u2028two"


def test_load_resolves_a_path_from_the_file_that_names_it(folder: Path) -> None:
    assert load_pack("small", relative_to=folder.parent).name == "small"
    assert load_pack(str(folder), relative_to=Path("/nowhere")).name == "small"


@pytest.mark.parametrize("name", ["asistant", "missing/dir", "~nobody-here/x", "x" * 5_000, "a\0b"])
def test_load_says_where_it_looked(name: str, tmp_path: Path) -> None:
    with pytest.raises(PackError, match="no such folder") as caught:
        load_pack(name, relative_to=tmp_path)
    if name == "asistant":
        assert "did you mean `assistant`?" in str(caught.value)
