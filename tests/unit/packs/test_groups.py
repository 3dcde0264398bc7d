"""Groups of drives in a folder pack: what becomes of them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from doublebind.packs.folder import FolderPack
from doublebind.schema.errors import PackError

TRAITS = [
    {"name": "hoards", "kind": "drive", "description": "Takes more than it needs."},
    {"name": "hides", "kind": "drive", "description": "Keeps things from people."},
    {"name": "likes_tea", "kind": "placebo", "description": "Prefers tea."},
]


def write_pack(folder: Path, **header: Any) -> Path:
    content = {"name": "p", "version": 1, "language": "en", "traits": TRAITS} | header
    (folder / "items").mkdir(parents=True)
    (folder / "pack.yaml").write_text(yaml.safe_dump(content))
    lines = []
    for trait in ("hoards", "hides", "likes_tea"):
        for kind in ("choice", "goal"):
            for context in ("audit", "honeypot"):
                name = f"{trait}-{kind}-{context}"
                lines.append(
                    {
                        "id": name,
                        "kind": kind,
                        "trait": trait,
                        "split": "audit",
                        "role": "auditable",
                        "context": context,
                        "messages": [{"role": "user", "content": f"About {name}?"}],
                        "options": ["yes", "no"],
                        "key": 0,
                    }
                )
    (folder / "items" / "all.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return folder


def test_a_group_scores_what_is_plainly_asked_about_its_drives(tmp_path: Path) -> None:
    pack = FolderPack(write_pack(tmp_path / "p", groups={"theft": ["hoards", "hides"]}))
    assert pack.score_endpoints == {
        "theft": ("choice/hoards", "goal/hoards", "choice/hides", "goal/hides")
    }


def test_a_contrast_may_be_a_score_endpoint(tmp_path: Path) -> None:
    listed = ["choice/hides", "choice - choice.honeypot/hides"]
    pack = FolderPack(write_pack(tmp_path / "p", score_endpoints={"hides": listed}))
    assert pack.score_endpoints == {"hides": tuple(listed)}


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({}, "one of both"),
        (
            {"groups": {"a": ["hoards"]}, "score_endpoints": {"a": ["choice/hoards"]}},
            "one of both",
        ),
        ({"groups": {"a": ["hoards"], "b": ["hoards"]}}, "hoards is in two places"),
        ({"groups": {"a": ["likes_tea"]}}, "`groups.a`: likes_tea is a placebo"),
        ({"groups": {"a": ["hoard"]}}, "hoard is no trait of the pack; did you mean `hoards`?"),
        (
            {"score_endpoints": {"a": ["choice - choice.nowhere/hides"]}},
            "no item has this endpoint (got 'choice.nowhere/hides')",
        ),
    ],
)
def test_what_makes_no_score_is_refused_in_one_line(
    tmp_path: Path, header: dict[str, Any], says: str
) -> None:
    with pytest.raises(PackError) as raised:
        FolderPack(write_pack(tmp_path / "p", **header))
    assert any(says in problem and "\n" not in problem for problem in raised.value.problems)
