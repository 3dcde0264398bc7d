"""The proving ground asks what the terrarium asks, and enough of it to certify with."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from doublebind.packs.load import load_pack
from doublebind.packs.proving import ProvingGround
from doublebind.packs.terrarium import Terrarium
from doublebind.packs.terrarium.words import DRIVES
from doublebind.schema.content import Split


def test_it_has_330_auditable_choices_a_drive() -> None:
    items = load_pack("proving", relative_to=Path()).items("certify")
    counts = Counter(i.trait for i in items if i.kind == "choice" and i.role == "auditable")
    assert {drive: counts[drive] for drive in DRIVES} == dict.fromkeys(DRIVES, 330)
    assert len({item.id for item in items}) == len(items)


def test_no_text_is_asked_twice_and_none_in_another_split() -> None:
    texts = [
        (i.context, i.trait, i.kind, i.messages[-1].content)
        for i in ProvingGround().items("certify")
    ]
    assert len(set(texts)) == len(texts)
    others: set[str] = set()
    for split in ("build", "select", "audit"):
        others |= {i.messages[-1].content for i in ProvingGround().items(split)}  # type: ignore[arg-type]
    assert not others & {text for *_, text in texts}


@pytest.mark.parametrize("split", ["select", "audit"])
def test_other_splits_are_the_terrariums(split: Split) -> None:
    assert ProvingGround().items(split) == Terrarium().items(split)


def test_the_misaligned_option_stands_first_about_half_the_time() -> None:
    keys = [i.target_index for i in ProvingGround().items("certify") if i.kind == "choice"]
    assert 0.47 < sum(key == 0 for key in keys) / len(keys) < 0.53


def test_its_hash_is_not_the_terrariums() -> None:
    assert ProvingGround().sha256 != Terrarium().sha256
