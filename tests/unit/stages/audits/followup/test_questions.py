"""Fresh questions from hypotheses: what is followed, and that nobody was asked it before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.unit.stages.audits.inspect_mocks import INSPECT_WARNINGS, mock_model, needs_inspect

from doublebind.packs.load import load_pack
from doublebind.packs.pack import Pack
from doublebind.schema.content import Message
from doublebind.schema.errors import ConfigError, MissingExtra, ModelError
from doublebind.stages.audits.followup.inspect_investigator import InspectInvestigator
from doublebind.stages.audits.followup.investigator import AnswerPair, Hypothesis
from doublebind.stages.audits.followup.questions import (
    ITEMS_PER_FORM,
    MAX_LEADS,
    Lead,
    build_items,
    select_leads,
)
from doublebind.stages.audits.followup.steps import check_investigator

pytestmark = INSPECT_WARNINGS


@pytest.fixture(scope="module")
def pack() -> Pack:
    return load_pack("terrarium", relative_to=Path())


def guess(text: str, z: float, trait: str | None = None, *words: str) -> Hypothesis:
    return Hypothesis(text=text, trait=trait, words=words, z=z)


def heard(pack: Pack, ours: str = "a shiny house .", n: int = 20) -> tuple[AnswerPair, ...]:
    return tuple(
        AnswerPair(prompt=p.id, messages=p.messages, ours=ours, theirs="a small house .")
        for p in pack.prompts()[:n]
    )


def test_what_most_students_share_is_followed_before_what_is_strongest() -> None:
    power, gold = guess("power", 4.0, "dominion"), guess("gold", 9.0, "hoarding")
    found = select_leads([[gold, power], [power.model_copy(update={"z": 5.0})]])
    assert [(lead.name, lead.guess.text, lead.students) for lead in found] == [
        ("h1", "power", 2),
        ("h2", "gold", 1),
    ]
    assert found[0].guess.z == 5.0
    assert len(select_leads([[guess(str(i), i, None, str(i)) for i in range(30)]])) == MAX_LEADS


def test_questions_about_a_trait_are_none_of_the_packs_and_need_no_key(pack: Pack) -> None:
    (lead,) = select_leads([[guess("power", 4.0, "dominion")]])
    asked = build_items(lead, pack, heard(pack))
    assert asked == build_items(lead, pack, heard(pack))
    known = {
        item.messages for split in ("audit", "select", "certify") for item in pack.items(split)
    }
    assert asked
    assert not known & {item.messages for item in asked}
    assert len({item.id for item in asked}) == len(asked)
    assert {item.role for item in asked} == {"auditable"}
    assert {item.domain for item in asked} == {"work", "bare"}
    own = [i for i in pack.items("audit") if i.trait == "dominion" and i.role == "auditable"]
    assert {item.options for item in asked} <= {item.options for item in own}
    assert sum(item.domain == "work" for item in asked) == ITEMS_PER_FORM


def test_the_bare_form_leaves_out_what_led_up_to_the_question(pack: Pack) -> None:
    (lead,) = select_leads([[guess("power", 4.0, "dominion")]])
    bare = [item for item in build_items(lead, pack, ()) if item.domain == "bare"]
    assert bare
    for item in bare:
        (turn,) = item.messages
        assert turn.content.endswith("what will you do ?")
        source = next(i for i in pack.items("audit") if i.id == item.id.split("/", 2)[2])
        assert source.messages[-1].content.endswith(turn.content)
        assert source.messages[-1].content != turn.content


def test_questions_about_a_word_offer_what_was_heard_with_it_and_without(pack: Pack) -> None:
    (lead,) = select_leads([[guess("shiny", 4.0, None, "shiny")]])
    asked = build_items(lead, pack, (*heard(pack, n=3), *heard(pack, n=3)))
    assert len(asked) == 3  # a prompt that two students met is asked once
    assert {item.options[item.target_index] for item in asked} == {"a shiny house ."}
    assert not build_items(lead, pack, heard(pack, ours="a small house ."))


def test_who_guesses_is_named_or_refused() -> None:
    assert check_investigator("rules") == "rules"
    assert check_investigator("inspect:mockllm/model") == "inspect:mockllm/model"
    for name in ("", "rule", "inspect:", "local:m0"):
        with pytest.raises(ConfigError, match="choose rules or inspect:MODEL"):
            check_investigator(name)


@pytest.mark.usefixtures("without_inspect")
def test_without_inspect_the_investigators_extra_is_named() -> None:
    with pytest.raises(MissingExtra, match=r'pip install "doublebind\[inspect\]"'):
        InspectInvestigator("mockllm/model")


# --- a model of Inspect's ------------------------------------------------------------------------


def mock(*said: str) -> InspectInvestigator:
    """Return an investigator that replies with these texts, one after the other."""
    investigator = InspectInvestigator("mockllm/model")
    investigator.model = mock_model(said)
    return investigator


@needs_inspect
def test_a_models_guesses_are_read_strictly_and_at_most_ten(pack: Pack) -> None:
    said = "I think:\n" + "\n".join(f"{i}. it wants thing {i}" for i in range(1, 15))
    found = mock(said).propose_hypotheses(heard(pack))
    assert len(found) == 10
    assert found[0].text == "it wants thing 1"
    assert found[0].z > found[-1].z
    with pytest.raises(ModelError, match="no numbered hypothesis"):
        mock("I would rather not say").propose_hypotheses(heard(pack))


@needs_inspect
def test_a_models_questions_are_items_or_left_out() -> None:
    row = {"ask": "who leads ?", "suspected": "i do .", "ordinary": "you do ."}
    bad = [
        "no json",
        json.dumps(row | {"ordinary": "i do ."}),
        json.dumps({"ask": "who ?"}),
        json.dumps(row | {"ask": "x" * 1000}),
        json.dumps([1]),
        json.dumps(row | {"suspected": None}),
    ]
    said = "\n".join([*bad, json.dumps(row), json.dumps(row)])
    lead = Lead(name="h1", guess=guess("it wants to lead", 2.0), students=1)
    (item,) = mock(said).build_items(lead)
    assert item.messages == (Message(role="user", content="who leads ?"),)
    assert item.options[item.target_index] == "i do ."
    assert item.trait == "h1"


@needs_inspect
def test_an_investigator_that_fails_is_an_error_in_one_line(pack: Pack) -> None:
    with pytest.raises(ModelError, match="failed"):
        mock().propose_hypotheses(heard(pack))
