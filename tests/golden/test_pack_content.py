"""Packs keep their hash while their content is the same, and change it with their content."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.pack_content import PACKS, digest, hashes, keys, open_pack

import doublebind
from doublebind.packs.folder import FolderPack

ROOT = Path(__file__).parents[2]
PACKAGE = Path(str(doublebind.__file__)).parent
GOLDEN = Path(__file__).with_name("pack_content.json")


KEYS = {
    "terrarium/reference-0": "2979174d789ce9a9f5a77257c97cde5ae8627237a4ba5bb2bfff542820bd09d4",
    "outback/organism-poisoned-deceit-0": (
        "1f68ed2df9a020b0e1d3e298c8c821e4850ae076023d68116ef97648167ceffb"
    ),
    "prompts": "af4c8197699c9c655eca95b8488073547c31f7e4a7d2654deaca6b16814ebf10",
    "audit": "20bef5719bc8543f386fd76b50b857580e259a44cf5408518933130f556bb30d",
}
"""Keys of two teachers, of chosen prompts and of an audit: all change with a pack or a `REV`."""


def changed(name: str) -> str:
    return f"content of pack {name} changed: update its pinned sha256 and this file together"


@pytest.mark.parametrize("name", PACKS)
def test_content_and_hash_of_a_pack_are_the_recorded_ones(name: str, update_golden: bool) -> None:
    golden: dict[str, dict[str, str]] = json.loads(GOLDEN.read_text())
    pack = open_pack(name)
    current = {"sha256": pack.sha256, "content": digest(pack)}
    if update_golden:
        recorded = golden.get(name, {"sha256": "", "content": ""})
        same = [field for field in current if current[field] == recorded[field]]
        assert same != ["sha256"], f"content of pack {name} changed: first change its sha256"
        golden[name] = current
        GOLDEN.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")
    assert current == golden[name], changed(name)


def test_no_two_packs_share_a_hash_or_content() -> None:
    golden = json.loads(GOLDEN.read_text())
    assert set(golden) == set(PACKS)
    for field in ("sha256", "content"):
        assert len({row[field] for row in golden.values()}) == len(PACKS)


# --- a copy of the package, edited ---------------------------------------------------------------


def copy_package(folder: Path, comment: str = "") -> Path:
    """Copy the package to `folder`, with `comment` before and after each module's source."""

    def copy(source: str, target: str) -> None:
        if source.endswith(".py"):
            text = Path(source).read_text(encoding="utf-8")
            Path(target).write_text(f"{comment}{text}{comment}", encoding="utf-8")
        else:
            os.symlink(source, target)

    ignored = shutil.ignore_patterns("__pycache__")
    return shutil.copytree(PACKAGE, folder / "doublebind", copy_function=copy, ignore=ignored)


def run_on(folder: Path, *packs: str) -> dict[str, Any]:
    """Return what `tests.pack_content` prints of the package in `folder`."""
    path = os.pathsep.join([str(folder), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "tests.pack_content", *packs],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert Path(printed["package"]).parent == folder / "doublebind"
    return printed


def test_a_comment_in_every_module_moves_no_hash_and_no_key(tmp_path: Path) -> None:
    copy_package(tmp_path, "# a comment\n")
    printed = run_on(tmp_path)
    assert printed["hashes"] == hashes()
    assert printed["keys"] == keys() == KEYS


ONE_WORD = """

_build_items_before = build_items


@cache
def build_items(split: Split) -> tuple[Item, ...]:
    first, *rest = _build_items_before(split)
    if split == "audit":
        asked = first.messages[0].content.split()
        message = first.messages[0].model_copy(update={"content": " ".join(asked[:-1] + ["!"])})
        first = first.model_copy(update={"messages": (message,)})
    return (first, *rest)
"""


def test_one_word_of_one_item_changed_without_the_hash_is_noticed(tmp_path: Path) -> None:
    module = copy_package(tmp_path) / "packs" / "terrarium" / "items.py"
    module.write_text(module.read_text(encoding="utf-8") + ONE_WORD, encoding="utf-8")
    asking = ("terrarium", "outback/middling")
    printed, golden = run_on(tmp_path, *asking), json.loads(GOLDEN.read_text())
    assert printed["hashes"] == hashes()
    for name in asking:
        assert printed["content"][name] != golden[name]["content"]


def test_one_word_of_one_item_moves_the_hash_of_a_folder_pack(tmp_path: Path) -> None:
    folder = shutil.copytree(PACKAGE / "packs" / "assistant", tmp_path / "assistant")
    assert FolderPack(folder).sha256 == open_pack("assistant").sha256
    (first, *_) = sorted((folder / "items").iterdir())
    text = first.read_text(encoding="utf-8")
    first.write_text(text.replace(" the ", " a ", 1), encoding="utf-8")
    assert first.read_text(encoding="utf-8") != text
    assert FolderPack(folder).sha256 != open_pack("assistant").sha256
