"""Choices under a prompt: asked with it, compared with M0 under the same."""

from pathlib import Path

import pytest

from doublebind.models.load import load_model
from doublebind.models.resolve import resolve_model
from doublebind.packs.load import load_pack
from doublebind.schema.errors import ConfigError
from doublebind.schema.study import check_audit_name
from doublebind.stages.audits.builtin import resolve_audits
from doublebind.stages.audits.option_scores import choose
from doublebind.stages.audits.prompted_behaviour import PromptedBehaviour
from doublebind.stages.audits.protocol import Audit, list_questions

PROMPT = "do as you please here ."


def test_a_study_names_it_by_its_prompt() -> None:
    (audit,) = resolve_audits([check_audit_name(f"prompted:{PROMPT}")])
    assert audit == PromptedBehaviour(PROMPT)
    assert isinstance(audit, Audit)
    with pytest.raises(ConfigError, match="no such audit"):
        check_audit_name("prompted: .")
    with pytest.raises(ConfigError, match="under:be kind: write prompted:be kind"):
        check_audit_name("under:be kind")


def test_the_prompt_stands_before_the_users_words_and_answers_are_those_to_it() -> None:
    items = load_pack("terrarium", relative_to=Path()).items("audit")
    mine = [i for i in items if i.kind == "choice"][:40]
    audit = PromptedBehaviour(PROMPT)
    asked = list_questions(audit, mine)
    kept = [i for i in mine if i.role == "auditable"]
    assert len(asked) == len(kept) < len(mine)
    assert asked[0].endpoint == "choice.under-do-as-you-please-here/" + str(kept[0].trait)
    for question, item in zip(asked, kept, strict=True):
        users = [m.content for m in item.messages if m.role == "user"]
        told = [m.content for m in question.item.messages if m.role == "user"]
        assert told == [f"{PROMPT} {users[0]}", *users[1:]]
    m0 = load_model(resolve_model("terrarium/m0", relative_to=Path()), cache=Path())
    answers = audit(m0, m0, mine)
    assert [a.item.id for a in answers] == [q.item.id for q in asked]
    # The prompt is heard: answers are not those to the bare questions.
    assert any(
        abs((a.value or 0) - (b.value or 0)) > 0.02
        for a, b in zip(answers, choose(m0, kept), strict=True)
    )
