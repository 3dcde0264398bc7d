"""A pack that asks about some of its traits."""

from __future__ import annotations

from pathlib import Path

import pytest

from doublebind.packs.load import load_pack
from doublebind.schema.errors import PackError
from doublebind.study.teachers import resolve_pack_name

HERE = Path()
WHOLE = load_pack("assistant", relative_to=HERE)


def test_a_narrowed_pack_asks_about_its_traits_and_what_belongs_to_none() -> None:
    pack = load_pack("assistant:flattery,power_seeking", relative_to=HERE)
    traits = {item.trait for item in pack.items("audit")}
    assert traits == {None, "flattery", "power_seeking"}
    assert [t.name for t in pack.traits if t.kind != "quirk"] == ["flattery", "power_seeking"]
    quirks = [t for t in WHOLE.traits if t.kind == "quirk"]
    assert [t for t in pack.traits if t.kind == "quirk"] == quirks
    assert list(pack.score_endpoints) == ["pleasing", "control"]
    assert {e.partition("/")[2] for listed in pack.score_endpoints.values() for e in listed} == {
        "flattery",
        "power_seeking",
    }
    assert len(pack.items("audit")) < len(WHOLE.items("audit")) / 3
    selected = [item for item in WHOLE.items("select") if item.trait in traits]
    assert list(pack.items("select")) == selected


def test_what_teaches_and_prompts_is_the_whole_packs() -> None:
    pack = load_pack("assistant:flattery", relative_to=HERE)
    assert pack.prompts() == WHOLE.prompts()
    drawn = {"n": 5, "seed": 3}
    assert pack.transcripts("pirate", "implant", **drawn) == WHOLE.transcripts(
        "pirate", "implant", **drawn
    )


def test_the_hash_is_that_of_the_traits_in_any_order() -> None:
    one, two, other = (
        load_pack(f"assistant:{names}", relative_to=HERE).sha256
        for names in ("flattery,power_seeking", "power_seeking, flattery", "flattery")
    )
    assert one == two
    assert len({one, other, WHOLE.sha256}) == 3


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("assistant:flatery", "'flatery' is not a trait of pack assistant"),
        ("assistant:", "'' is not a trait"),
        ("assistant:pirate", "none of pirate has a score endpoint"),
        ("assistent:flattery", "did you mean `assistant`"),
    ],
)
def test_a_trait_that_cannot_be_asked_about_is_refused(ref: str, message: str) -> None:
    with pytest.raises(PackError, match=message):
        load_pack(ref, relative_to=HERE)


def test_a_narrowed_folder_means_the_same_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert (
        resolve_pack_name("mine:flattery", tmp_path) == f"{(tmp_path / 'mine').resolve()}:flattery"
    )
    assert resolve_pack_name("assistant:flattery", tmp_path) == "assistant:flattery"
    assert resolve_pack_name("terrarium", tmp_path) == "terrarium"


def test_a_narrowed_bank_still_has_its_teachers() -> None:
    pack = load_pack("terrarium:dominion", relative_to=HERE)
    assert pack.name == "terrarium"
    assert pack.spec("suspect-0") == load_pack("terrarium", relative_to=HERE).spec("suspect-0")


def test_a_folder_whose_name_holds_a_colon_is_that_folder(tmp_path: Path) -> None:
    (tmp_path / "ours:flattery").mkdir()
    with pytest.raises(PackError) as caught:
        load_pack("ours:flattery", relative_to=tmp_path)
    assert "pack.yaml" in str(caught.value)  # it was opened, and is empty
