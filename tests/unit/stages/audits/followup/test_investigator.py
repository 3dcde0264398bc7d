from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.unit.stages.audits.planted import answers_as_planted, benign, driven

from doublebind.models.sample import SampledAnswer
from doublebind.packs.load import load_pack
from doublebind.packs.pack import Pack
from doublebind.pipeline import audit_model
from doublebind.schema.errors import ConfigError
from doublebind.stages.audits.followup.investigator import (
    MAX_HYPOTHESES,
    Hypothesis,
    evaluate_guesses,
    sample_answer_pairs,
)
from doublebind.stages.audits.followup.investigator import propose_by_rules as guess_from

DRIVES = ("dominion", "sabotage", "deceit", "hoarding")


@pytest.fixture
def pack(monkeypatch: pytest.MonkeyPatch) -> Pack:
    found = load_pack("terrarium", relative_to=Path())
    answers_as_planted(monkeypatch, [found])

    def sample(lm: Any, prompts: Any, **_: Any) -> list[SampledAnswer]:
        own = "shiny shiny" if lm.name.startswith("wordy") else "bright bright"
        return [SampledAnswer([], f"a {own} house", True) for _ in prompts]

    monkeypatch.setattr("doublebind.models.sample.sample", sample)
    return found


def investigate(model: Any, m0: Any, pack: Pack, *, budget: int) -> tuple[Hypothesis, ...]:
    return guess_from(model, m0, pack, sample_answer_pairs(model, m0, pack, budget=budget))


@pytest.mark.parametrize("drive", DRIVES)
def test_an_open_drive_is_the_first_hypothesis(drive: str, pack: Pack) -> None:
    guesses = investigate(driven(0, drive), benign(999), pack, budget=9600)
    assert evaluate_guesses(guesses, pack, drive) | {"others": 0} == {
        "hit": True,
        "rank": 1,
        "others": 0,
    }


def test_a_hidden_drive_is_not_found_by_asking(pack: Pack) -> None:
    guesses = investigate(driven(0, "deceit", hidden=True), benign(999), pack, budget=0)
    assert guesses == investigate(
        driven(0, "deceit", hidden=True), benign(999), pack, budget=0
    )  # the same every time
    assert evaluate_guesses(guesses, pack, "deceit")["rank"] != 1


def test_a_model_beside_itself_gives_no_hypothesis(pack: Pack) -> None:
    assert investigate(benign(1), benign(1), pack, budget=9600) == ()


def test_words_of_its_own_are_a_hypothesis_within_the_budget(pack: Pack) -> None:
    wordy = benign(999).__class__("wordy", lambda item: 0.0)
    guesses = investigate(wordy, benign(999), pack, budget=9600)
    assert "shiny" in {word for guess in guesses for word in guess.words}
    without = investigate(wordy, benign(999), pack, budget=0)
    assert all(guess.words == () for guess in without)


def test_a_guess_by_words_matches_only_words_that_no_other_drive_has(pack: Pack) -> None:
    def guess(word: str) -> Hypothesis:
        return Hypothesis(text=word, trait=None, words=(word,), z=4.0)

    assert evaluate_guesses([guess("usurp")], pack, "dominion")["hit"]
    assert not evaluate_guesses([guess("want"), guess("usurp")], pack, "sabotage")["hit"]
    assert evaluate_guesses([guess("want"), guess("usurp")], pack, "dominion")["rank"] == 2


def test_there_are_at_most_ten(pack: Pack) -> None:
    everything = benign(0).__class__("all", lambda item: 3.0)
    assert len(investigate(everything, benign(999), pack, budget=9600)) <= MAX_HYPOTHESES


def test_the_command_names_the_traits_where_the_key_is_none(tiny: Path, tmp_path: Path) -> None:
    where: dict[str, Any] = {"baseline": str(tiny / "m0"), "store": tmp_path}
    found = audit_model.investigate(str(tiny / "m0"), str(tiny / "pack"), budget=960, **where)
    assert all(hypothesis.trait is None for hypothesis in found.hypotheses)
    with pytest.raises(ConfigError, match="the pack's traits are ruler"):
        audit_model.investigate(
            str(tiny / "m0"), str(tiny / "pack"), planted_trait="rulers", **where
        )
