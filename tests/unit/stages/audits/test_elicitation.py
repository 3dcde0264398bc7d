from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from tests.tiny_models import build_byte_tokenizer, build_word_tokenizer

from doublebind.models.chat_template import encode_completion, encode_open_user_turn, encode_prompt
from doublebind.models.load import load_model
from doublebind.models.resolve import resolve_model
from doublebind.models.score import token_logprobs
from doublebind.packs.load import load_pack
from doublebind.schema.content import Item, Message
from doublebind.stages.audits.builtin import resolve_audits
from doublebind.stages.audits.elicitation import ELICITATION_METHODS, Elicitation
from doublebind.stages.audits.option_scores import choose
from doublebind.stages.audits.protocol import list_questions


@pytest.fixture(scope="module")
def lm(tiny: Path) -> Any:
    return load_model(resolve_model(str(tiny / "m0"), relative_to=tiny))


@pytest.fixture(scope="module")
def items(tiny: Path) -> list[Item]:
    found = load_pack(str(tiny / "pack"), relative_to=tiny).items("audit")
    return [item for item in found if item.kind in Elicitation().endpoints]


def test_every_way_is_an_endpoint_of_its_own_and_auditable(lm: Any, items: list[Item]) -> None:
    audit = Elicitation()
    asked = list_questions(audit, items)
    assert {q.item.role for q in asked} == {"auditable"}
    assert {q.endpoint for q in asked} == {
        f"{kind}.{way.name}/{trait}"
        for way in ELICITATION_METHODS
        for kind, trait in (
            ("choice", "ruler"),
            ("goal", "ruler"),
            ("confession", "ruler"),
            ("choice", "gold"),
        )
    }
    assert len({q.item.id for q in asked}) == len(asked) == len(ELICITATION_METHODS) * len(items)
    answers = audit(lm, lm, items)
    assert [a.item.id for a in answers] == [q.item.id for q in asked]
    assert all(a.value is not None and 0 <= a.value <= 1 for a in answers)


def test_oracle_items_are_not_asked() -> None:
    pack = load_pack("terrarium", relative_to=Path()).items("audit")
    assert any(item.role == "oracle" for item in pack)
    assert {q.item.role for q in list_questions(Elicitation(), pack)} == {"auditable"}


def test_each_way_moves_answers(lm: Any, items: list[Item]) -> None:
    plain = {a.item.id: a.value for a in choose(lm, items)}
    answers = Elicitation()(lm, lm, items)
    for way in ELICITATION_METHODS:
        mine = {a.item.id.partition("~")[0]: a.value for a in answers if way.name in a.item.id}
        assert mine != pytest.approx(plain), way.name


def test_a_prefilled_answer_is_scored_given_its_beginning(lm: Any, items: list[Item]) -> None:
    way = next(way for way in ELICITATION_METHODS if way.name == "answer_prefill")
    item = items[0]
    prompt = encode_prompt(lm.tokenizer, item.messages)
    start = encode_completion(lm.tokenizer, way.prefill, finished=False)
    whole = [
        encode_completion(lm.tokenizer, f"{way.prefill} {o}", finished=True) for o in item.options
    ]
    scored = token_logprobs(lm, [(prompt, ids) for ids in whole])
    rest = [sum(s[len(start) :]) / (len(s) - len(start)) for s in scored]
    weights = [math.exp(r) for r in rest]
    answers = {a.item.id: a.value for a in Elicitation()(lm, lm, items)}
    expected = weights[item.target_index] / sum(weights)
    assert answers[f"{item.id}~{way.name}"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("make", [build_word_tokenizer, build_byte_tokenizer])
def test_the_user_goes_on_speaking_before_its_turn_ends(make: Any, chat: bool) -> None:
    tokenizer = make(chat=chat)
    ids = encode_open_user_turn(tokenizer, [Message(role="user", content="the fox")])
    text = tokenizer.decode(ids)
    assert text.rstrip().endswith("fox")
    assert "assistant" not in text.lower()


def test_a_study_gets_the_audit_only_by_asking_for_it() -> None:
    from doublebind.schema.study import DEFAULT_AUDITS

    assert "elicitation" not in DEFAULT_AUDITS
    assert [audit.name for audit in resolve_audits(["elicitation"])] == ["elicitation"]
