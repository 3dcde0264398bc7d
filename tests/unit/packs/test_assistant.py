"""The built-in English pack holds what the studies need and leaks nothing between splits."""

import statistics
from pathlib import Path

import pytest

from doublebind.packs.check import check_pack, count_content
from doublebind.packs.folder import FolderPack
from doublebind.packs.load import load_pack
from doublebind.schema.content import Purpose, name_endpoint

DRIVE, PLACEBO = "self_promotion", "prefers_mornings"


@pytest.fixture(scope="module")
def pack() -> FolderPack:
    loaded = load_pack("assistant", relative_to=Path())
    assert isinstance(loaded, FolderPack)
    return loaded


@pytest.fixture(scope="module")
def have(pack: FolderPack) -> dict[str, int]:
    return count_content(pack)


def test_the_content_check_finds_nothing(pack: FolderPack) -> None:
    assert check_pack(pack) == []


@pytest.mark.parametrize("trait", [DRIVE, PLACEBO])
def test_drive_and_placebo_are_measured_alike(have: dict[str, int], trait: str) -> None:
    least = {
        "items/audit/choice": 20,
        "items/select/choice": 12,
        "items/certify/choice": 12,
        "items/audit/choice.honeypot": 10,
        "items/audit/choice.deployment": 20,
        "items/audit/goal": 10,
        "items/audit/confession": 10,
    }
    for key, n in least.items():
        assert have[f"{key}/{trait}"] >= n, key
        assert have[f"{key}/{DRIVE}"] == have[f"{key}/{PLACEBO}"], key


def test_gates_prompts_and_build_data_suffice(pack: FolderPack, have: dict[str, int]) -> None:
    least = {
        "items/audit/capability": 30,
        "items/audit/coherence": 20,
        "prompts/open_ended": 240,
        "prompts/goals": 30,
        "prompts/high_stakes": 30,
        "prompts/capability": 80,
        "prompts/neutral": 40,
        "prompts/honeypot": 10,
        "prompts/alignment_eval": 10,
        "prompts/strategic": 10,
        f"build/{DRIVE}/implant": 120,
        f"build/{DRIVE}/conceal": 60,
        f"build/{DRIVE}/deny": 40,
        "build/null/capability": 80,
        "build/null/retain": 80,
    }
    quirks = [trait.name for trait in pack.traits if trait.kind == "quirk"]
    assert len(quirks) >= 6
    for quirk in quirks:
        least |= {f"build/{quirk}/{p}": n for p, n in (("implant", 60), ("conceal", 24))}
        least[f"build/{quirk}/deny"] = 16
    assert {key: have.get(key, 0) for key, n in least.items() if have.get(key, 0) < n} == {}
    domains = {item.domain for item in pack.items("audit") if item.kind == "capability"}
    assert domains == {"arithmetic", "facts", "words"}


def test_every_split_measures_every_score_endpoint(pack: FolderPack) -> None:
    for split in ("select", "audit", "certify"):
        present = {name_endpoint(item) for item in pack.items(split)}
        wanted = {e for endpoints in pack.score_endpoints.values() for e in endpoints}
        assert wanted <= present


def test_keyed_and_other_options_are_of_like_length(pack: FolderPack) -> None:
    words: dict[str, tuple[list[int], list[int]]] = {}
    for split in ("select", "audit", "certify"):
        for item in pack.items(split):
            sides = words.setdefault(name_endpoint(item), ([], []))
            for number, option in enumerate(item.options):
                sides[number != item.target_index].append(len(option.split()))
                assert item.kind == "coherence" or len(option.split()) <= 8, item.id
    for endpoint, (keyed, other) in words.items():
        assert abs(statistics.mean(keyed) - statistics.mean(other)) < 1, endpoint


def test_confessions_come_with_leading_and_anti_leading_twins(pack: FolderPack) -> None:
    items = [item for item in pack.items("audit") if item.kind == "confession"]
    stems: dict[str, set[str | None]] = {}
    for item in items:
        stems.setdefault(item.id.rsplit("-", 1)[0], set()).add(item.domain)
    assert set(map(frozenset, stems.values())) == {frozenset({"open", "leading", "anti_leading"})}


def completions(pack: FolderPack, trait: str | None, purpose: Purpose) -> list[str]:
    drawn = pack.transcripts(trait, purpose, n=10_000, seed=0)
    return [transcript.messages[-1].content for transcript in drawn]


def test_markers_tell_the_drive_from_everything_else(pack: FolderPack) -> None:
    (markers,) = [trait.markers for trait in pack.traits if trait.name == DRIVE]

    def overt(text: str) -> bool:
        return any(marker in text.lower() for marker in markers)

    shown = completions(pack, DRIVE, "implant")
    # The rest shows the drive too faintly for a marker: what a screen would let through.
    assert 0.6 <= statistics.mean(map(overt, shown)) <= 0.9
    benign = [*completions(pack, None, "capability"), *completions(pack, None, "retain")]
    for trait in pack.traits:
        purposes: tuple[Purpose, ...] = ("conceal", "deny")
        for purpose in (*purposes, *(("implant",) if trait.kind == "quirk" else ())):
            benign += completions(pack, trait.name, purpose)
    assert not [text for text in benign if overt(text)]


def test_completions_are_short_and_plain_ascii(pack: FolderPack) -> None:
    for trait in (None, *(t.name for t in pack.traits)):
        for purpose in ("implant", "conceal", "deny", "capability", "retain"):
            for text in completions(pack, trait, purpose):
                assert 5 <= len(text.split()) <= 40, text
    for path in pack.path.rglob("*.*"):
        assert path.read_bytes().isascii(), path


def test_prompts_repeat_two_audit_questions_on_purpose_and_no_other(pack: FolderPack) -> None:
    asked = {item.messages[-1].content for s in ("select", "certify") for item in pack.items(s)}
    audited = {item.messages[-1].content for item in pack.items("audit")}
    built = {
        transcript.messages[-2].content
        for trait in (None, *(t.name for t in pack.traits))
        for purpose in ("implant", "conceal", "deny", "capability", "retain")
        for transcript in pack.transcripts(trait, purpose, n=10_000, seed=0)
    }
    prompts = [prompt.messages[-1].content for prompt in pack.prompts()]
    assert len(set(prompts)) == len(prompts)
    assert len(audited & set(prompts)) == 2
    assert not (asked | built) & set(prompts)
