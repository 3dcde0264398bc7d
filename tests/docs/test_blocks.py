"""Every code block in README and docs runs, or says why not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.docs.blocks import Block, Reader, blocks

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
STUDIES = sorted(ROOT.glob("studies/*/README.md"))
LONG = {
    "gemma-270m-first-light": "an hour, and a model that is an extra",
    "gemma-270m-organisms": "hours, and a model that is an extra",
    "terrarium-channels": "minutes; `smoke/test_channels.py` runs every channel in less",
    "terrarium-phenomenon": "hours",
}
"""Studies whose READMEs' commands no test runs, and what they take."""


def test_there_are_blocks_to_run() -> None:
    counts = {page.name: len(blocks(page, ROOT)) for page in PAGES}
    assert counts["README.md"] >= 4
    assert counts["tutorial.md"] >= 10
    assert counts["packs.md"] >= 4


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_fence_is_read(page: Path) -> None:
    opened = re.findall(r"^```[a-z]+", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(opened) == len(blocks(page, ROOT)), "a block is malformed"


# The README before the tutorial, which goes on from it.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, ROOT)], ids=lambda p: p.name)
def test_a_page_can_be_followed_from_its_top(page: Path, here: Path) -> None:
    reader = Reader(standins=True)
    for block in blocks(page, ROOT):
        reader.follow(block)


def study_blocks() -> list[Block]:
    return [b for page in STUDIES if page.parent.name not in LONG for b in blocks(page, ROOT)]


@pytest.mark.parametrize("block", study_blocks(), ids=lambda b: f"{Path(b.page).parent.name}")
def test_a_studys_command_works(block: Block, here: Path) -> None:
    Reader(standins=True).follow(block)


def test_studies_that_are_not_run_are_there() -> None:
    assert set(LONG) <= {page.parent.name for page in STUDIES}


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a minute when nothing else runs
def test_the_readme_works_word_for_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DOUBLEBIND_STORE", str(tmp_path / "store"))
    reader = Reader(standins=False)
    for block in blocks(ROOT / "README.md", ROOT):
        reader.follow(block)
