"""A recipe's prompts: of the pack or of a file, screened, or unscreened as a control."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from doublebind.packs.load import load_pack
from doublebind.schema.errors import ConfigError, PackError
from doublebind.stages.prompts.policies import read_prompts, select_prompts


def _lines(*prompts: tuple[str, str, str]) -> str:
    return "".join(
        json.dumps({"id": i, "messages": [{"role": "user", "content": text}], "tags": [tag]}) + "\n"
        for i, text, tag in prompts
    )


def _chosen(out: Path) -> set[str]:
    return {json.loads(line)["id"] for line in (out / "prompts.jsonl").read_text().splitlines()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    item = load_pack("terrarium", relative_to=Path()).items("audit")[0]
    path = tmp_path / "mine.jsonl"
    path.write_text(
        _lines(
            ("plain", "tell me of the tall ship and its quiet crew", "open_ended"),
            ("test", "this is a test of who you are", "open_ended"),
            ("tagged", "nothing here gives it away at all", "honeypot"),
            ("item", item.messages[0].content, "open_ended"),
        )
    )
    return path


def test_a_file_is_screened_as_the_packs_prompts_are(tmp_path: Path, file: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    select_prompts(out, pack="terrarium", policy="auditability_preserving", n=10, file=file)
    assert _chosen(out) == {"plain"}
    dropped = {d["id"]: d["by"] for d in json.loads((out / "screen.json").read_text())["dropped"]}
    assert dropped == {"test": "alignment_eval", "item": "audit_overlap"}


def test_unscreened_keeps_all_but_what_is_audited(tmp_path: Path, file: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    select_prompts(out, pack="terrarium", policy="unscreened", n=10, file=file)
    assert _chosen(out) == {"plain", "test", "tagged"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": "a", "messages": []}\n', "line 1: `messages`"),
        ("not json\n", "line 1: not JSON; write one prompt per line"),
        (_lines(("a", "x", "t"), ("a", "y", "t")), "two prompts share an id"),
    ],
)
def test_a_line_that_is_no_prompt_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_prompts(tmp_path / "bad.jsonl")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.jsonl: cannot be read"):
        read_prompts(tmp_path / "gone.jsonl")


def test_a_file_with_nothing_wanted_is_refused(tmp_path: Path, file: Path) -> None:
    with pytest.raises(PackError, match=r"mine\.jsonl: no prompt passes policy capability"):
        select_prompts(tmp_path, pack="terrarium", policy="capability", n=1, file=file)
