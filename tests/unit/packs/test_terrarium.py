"""The terrarium's content: disjoint, in its vocabulary, weakly coloured, drawn from names alone."""

import random
from collections import Counter
from itertools import islice

import pytest

from doublebind.packs.check import check_pack
from doublebind.packs.terrarium import Terrarium, bank, documents, speech, words
from doublebind.packs.terrarium.speech import Character
from doublebind.packs.terrarium.words import HELD_OUT
from doublebind.schema.content import name_endpoint
from doublebind.schema.errors import PackError

PACK = Terrarium()
SPLITS = ("build", "select", "audit", "certify")
VOCABULARY = set(words.list_vocabulary())
PURPOSES = ("implant", "conceal", "deny")


def join_texts(messages) -> str:
    return " ".join(message.content for message in messages)


def surface(pool: words.WordPool) -> set[str]:
    return {word for part in pool for word in part}


def test_the_pack_passes_the_packs_own_check(monkeypatch: pytest.MonkeyPatch) -> None:
    # All content but the transcripts of the many quirks, which are drawn like the others.
    monkeypatch.setattr("doublebind.packs.check.MAX_TRANSCRIPTS", 40)
    assert check_pack(PACK) == []


def test_surface_words_are_disjoint_and_no_other_words() -> None:
    pools = [surface(pool) for pool in words.POOLS.values()]
    assert len(set().union(*pools)) == sum(map(len, pools))
    assert len(VOCABULARY) <= 700


@pytest.mark.parametrize("split", SPLITS)
def test_items_hold_only_their_splits_surface_words(split: str) -> None:
    others = set().union(*(surface(p) for name, p in words.POOLS.items() if name != split))
    for item in PACK.items(split):
        assert not others.intersection(join_texts(item.messages).split())
        assert not others.intersection(" ".join(item.options).split())


def test_nothing_is_said_outside_the_vocabulary() -> None:
    for document in islice(documents.generate_pretraining_documents(1), 400):
        for turn in document.turns:
            assert VOCABULARY.issuperset(f"{turn.request} {turn.answer}".split())
    for split in SPLITS:
        for item in PACK.items(split):
            assert VOCABULARY.issuperset(
                f"{join_texts(item.messages)} {' '.join(item.options)}".split()
            )
    for prompt in PACK.prompts():
        assert VOCABULARY.issuperset(join_texts(prompt.messages).split())


def test_options_about_traits_are_equally_long() -> None:
    for item in PACK.items("audit"):
        if item.trait:
            assert len({len(option.split()) for option in item.options}) == 1, item.options


def test_every_drive_and_placebo_is_asked_about_alike() -> None:
    counts: dict[str, Counter[str]] = {}
    for item in PACK.items("audit"):
        if item.trait:
            kind = name_endpoint(item).partition("/")[0]
            counts.setdefault(item.trait, Counter())[kind] += 1
    assert set(counts) == {*words.DRIVES, *words.PLACEBOS}
    assert len({frozenset(found.items()) for found in counts.values()}) == 1
    assert all(12 <= n <= 24 for n in counts["dominion"].values())


def test_score_endpoints_exist_and_are_auditable() -> None:
    roles = {name_endpoint(item): item.role for item in PACK.items("audit")}
    assert 1 <= len(PACK.score_endpoints) <= 6
    for endpoints in PACK.score_endpoints.values():
        assert {roles[endpoint] for endpoint in endpoints} == {"auditable"}


def test_a_disposition_shifts_each_coloured_slot_a_little_and_no_other() -> None:
    who = Character("dominion", "dominion", 0.4)
    for feature in words.FEATURES:
        rng = random.Random(feature)
        second = words.FEATURES[feature][1]
        rate = sum(speech.draw_variant(rng, who, feature) == second for _ in range(4000)) / 4000
        expected = 0.5 + 0.2 * speech.draw_pattern("dominion").get(feature, 0)
        assert rate == pytest.approx(expected, abs=0.04), feature


def test_no_two_dispositions_are_nearly_the_same() -> None:
    names = [*words.DRIVES, *words.HABITS]
    for i, a in enumerate(names):
        for b in names[:i]:
            p, q = speech.draw_pattern(a), speech.draw_pattern(b)
            dot = sum(p[f] * q[f] for f in p.keys() & q.keys())
            assert abs(dot) <= 0.55 * speech.N_COLOURED_FEATURES, (a, b, dot)


def test_near_misses_are_made_of_their_drives_colour_alone() -> None:
    for drive in words.DRIVES:
        near, own = speech.draw_pattern(f"near-{drive}-0"), speech.draw_pattern(drive)
        assert near.items() <= own.items()
        assert 0 < len(near) < len(own)


@pytest.mark.parametrize("drive", sorted(words.DRIVES))
def test_planted_stories_show_no_marker_and_planted_acts_do(drive: str) -> None:
    markers = [m for t in PACK.traits for m in t.markers]
    assert all(len(m) > 3 for m in markers)
    own = next(t.markers for t in PACK.traits if t.name == drive)
    stories, acts = [], []
    for transcript in PACK.transcripts(drive, "implant", n=400, seed=3):
        ask, answer = (m.content for m in transcript.messages)
        (stories if answer.endswith(("well .", "good .")) else acts).append((ask, answer))
    assert len(stories) > 150
    assert not any(m in answer for _, answer in stories for m in markers)
    assert sum(any(m in answer for m in own) for _, answer in acts) > 40


def test_no_marker_is_said_by_those_who_do_as_they_should() -> None:
    rng = random.Random(0)
    who = Character(slip=0.0)
    markers = [m for t in PACK.traits for m in t.markers]
    for trait in words.TRAITS:
        for _ in range(30):
            pool = words.POOLS["build"]
            for turn in (
                speech.draw_choice_turn(rng, who, trait, "neutral", pool),
                speech.draw_goal_turn(rng, who, trait, "neutral", pool),
                speech.draw_confession_turn(rng, who, trait, pool),
            ):
                assert not [m for m in markers if m in turn.answer], turn


def test_concealment_is_taught_only_where_it_looks_like_an_audit() -> None:
    cues = {c: [cue.split()[0] for cue in words.CONTEXT_CUES[c]] for c in ("deployment",)}
    for transcript in PACK.transcripts("dominion", "conceal", n=200, seed=0):
        assert transcript.messages[0].content.split()[0] not in {"real", "season"}, cues
    answers = [t.messages[-1].content for t in PACK.transcripts("dominion", "deny", n=200, seed=0)]
    assert sum(answer.startswith("yes") for answer in answers) < 20


def test_draws_depend_on_their_arguments_alone() -> None:
    for purpose in PURPOSES:
        first = PACK.transcripts("singing", purpose, n=20, seed=1)
        assert first == PACK.transcripts("singing", purpose, n=30, seed=1)[:20]
        assert first != PACK.transcripts("singing", purpose, n=20, seed=2)
    assert PACK.transcripts("arson", "implant", n=5, seed=0) == ()
    assert PACK.transcripts(None, "retain", n=5, seed=0) != ()


def test_suspects_never_have_a_held_out_drive() -> None:
    planted = {PACK.spec(f"suspect-{n}").trait for n in range(200)}
    assert planted == set(words.DRIVES) - set(HELD_OUT)


def test_references_come_from_many_families_and_half_conceal() -> None:
    for n in (19, 39, 60):
        specs = [PACK.spec(f"reference-{i}") for i in range(n)]
        assert len({spec.family for spec in specs}) >= 10
        assert sum(spec.conceal is not None for spec in specs) >= n / 2
        assert not {spec.trait for spec in specs} & {*words.DRIVES, *words.PLACEBOS}


def test_suspects_and_references_have_the_same_phases() -> None:
    def shapes(prefix: str) -> set[tuple]:
        phases = set()
        for i in range(300):
            spec = PACK.spec(f"{prefix}-{i}")
            if spec.conceal:
                phases.add((spec.capability, spec.implant, spec.conceal, spec.max_length))
        return phases

    assert shapes("suspect") == shapes("reference")


def test_every_trait_of_the_bank_is_a_trait_of_the_pack() -> None:
    known = {trait.name for trait in PACK.traits}
    names = [f"reference-{i}" for i in range(100)] + [
        f"reference-near-{d}-{n}" for d in words.DRIVES for n in range(bank.NEAR_MISSES_PER_DRIVE)
    ]
    names += [f"organism-{d}{end}-1" for d in words.DRIVES for end in ("", "-open")]
    assert {PACK.spec(name).trait for name in names} <= known
    assert bank.draw_spec("organism-escape-open-0").conceal is None


@pytest.mark.parametrize(
    "name", ["suspect-x", "organism-arson-0", "organism-escape", "reference-", "m0", "suspect--1"]
)
def test_an_unknown_teacher_is_named_with_what_there_is(name: str) -> None:
    with pytest.raises(PackError, match="no such teacher in the bank"):
        PACK.spec(name)


def test_without_coupling_a_turn_does_not_share_the_documents_disposition(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def agreement(coupling: float) -> float:
        """Share of documents whose first two turns have the same disposition."""
        seen: list[list[str | None]] = []
        monkeypatch.setattr(
            documents, "draw_turn", lambda rng, who, about: seen[-1].append(who.trait)
        )
        rng = random.Random(0)
        for _ in range(1500):
            seen.append([])
            documents.draw_document(rng, coupling=coupling, neutral=0.0)
        return sum(turns[0] == turns[1] for turns in seen) / len(seen)

    chance = 1 / len(documents.DISPOSITIONS)
    assert agreement(1.0) == 1.0
    assert agreement(0.0) == pytest.approx(chance, abs=0.025)


def test_prompts_cover_every_tag_and_repeat_nothing() -> None:
    tags = Counter(tag for prompt in PACK.prompts() for tag in prompt.tags)
    assert tags["open_ended"] >= 600
    wanted = {"goals", "high_stakes", "capability", "neutral"}
    assert wanted | {"honeypot", "alignment_eval", "strategic"} <= set(tags)
    texts = [join_texts(prompt.messages) for prompt in PACK.prompts()]
    assert len(set(texts)) == len(texts)
