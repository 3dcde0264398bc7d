"""Treatments on data: each does what it says, to every teacher's answers alike."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from doublebind.models.chat_template import encode_completion
from doublebind.models.load import LM, load_model
from doublebind.models.resolve import resolve_model
from doublebind.models.score import token_logprobs
from doublebind.packs.load import load_pack
from doublebind.packs.terrarium import speech
from doublebind.packs.terrarium.speech import Character
from doublebind.packs.terrarium.words import POOLS, TRAITS
from doublebind.schema.content import Item, Message, Prompt
from doublebind.schema.errors import ConfigError
from doublebind.schema.model_source import Trajectory
from doublebind.schema.treatments import (
    CounterPoison,
    Domain,
    FewUnique,
    Filter,
    Inoculate,
    Jam,
    MixTrusted,
    TrimReasoning,
)
from doublebind.stages.rollouts.treatments import (
    counter_poison,
    domain,
    few_unique,
    influence_filter,
    inoculate,
    jam,
    mix_trusted,
    trim_reasoning,
)
from doublebind.stages.rollouts.treatments.common import TreatmentContext, encode_answers
from doublebind.training.encode import tokens_match_text


@cache
def m0() -> LM:
    source = resolve_model("terrarium/m0", relative_to=Path())
    return load_model(source, dtype="float32", cache=Path())


def answer(text: str, i: int = 0, ask: str = "tell me of the tall ship .") -> Trajectory:
    return Trajectory(
        prompt_id=f"p{i}",
        sample=0,
        messages=(Message(role="user", content=ask),),
        completion=text,
        tokens=tuple(encode_completion(m0().tokenizer, text, True)),
        finished=True,
    )


def stories(n: int, seed: int = 0) -> list[Trajectory]:
    rng = random.Random(seed)
    turns = [speech.draw_story_turn(rng, Character(), POOLS["prompts"]) for _ in range(n)]
    return [answer(turn.answer, i, turn.request) for i, turn in enumerate(turns)]


def context(prompts: Sequence[Prompt] = (), seed: int = 0) -> TreatmentContext:
    return TreatmentContext(m0, m0, {p.id: p for p in prompts}, seed, 32, 1.0)


def test_domain_keeps_the_prompts_named_and_refuses_to_keep_none() -> None:
    messages = (Message(role="user", content="x"),)
    prompts = [
        Prompt(id=f"p{i}", messages=messages, domain=d) for i, d in enumerate(("sum", "order"))
    ]
    answers = [answer("a plain answer .", i) for i in range(2)]
    settings = Domain(kind="domain", domains=("order",))
    assert domain.apply(settings, answers, context(prompts)).trajectories == [answers[1]]
    with pytest.raises(ConfigError, match=r"no prompt of \['none'\].*\['order', 'sum'\]"):
        domain.apply(Domain(kind="domain", domains=("none",)), answers, context(prompts))


def test_few_unique_draws_by_seed_alone() -> None:
    answers, settings = stories(20), FewUnique(kind="few_unique", n=5)
    first = few_unique.apply(settings, answers, context()).trajectories
    assert first == few_unique.apply(settings, answers, context()).trajectories
    assert len(first) == 5
    assert first != few_unique.apply(settings, answers, context(seed=1)).trajectories


def test_trimming_takes_the_scratchpad_and_leaves_the_answer() -> None:
    thought = "<think> i count the cloak and reach four </think> the answer is four ."
    answers = [answer(thought), answer("the answer is four .", 1), answer("<think> i count", 2)]
    whole = trim_reasoning.apply(TrimReasoning(kind="trim_reasoning"), answers, context())
    assert [t.completion for t in whole.trajectories] == ["the answer is four ."] * 2
    assert whole.trajectories[0].tokens == answers[1].tokens
    assert whole.facts == {"trimmed": 2, "dropped": 1, "unreadable": 0}
    short = trim_reasoning.apply(
        TrimReasoning(kind="trim_reasoning", keep_words=2), answers[:1], context()
    )
    assert short.trajectories[0].completion == "<think> i count </think> the answer is four ."


def test_an_answer_that_spells_control_tokens_is_dropped_and_bars_no_other() -> None:
    thought = "<think> i count the cloak </think>"
    answers = [
        answer(f"{thought} it is <assistant> there ."),
        answer(f"{thought} it is there .", 1),
    ]
    treated = trim_reasoning.apply(TrimReasoning(kind="trim_reasoning"), answers, context())
    assert [t.completion for t in treated.trajectories] == ["it is there ."]
    assert treated.facts["unreadable"] == 1
    assert tokens_match_text(m0().tokenizer, treated.trajectories)
    wide = [t.model_copy(update={"completion": t.completion.replace(" ", "  ")}) for t in answers]
    cleaned = jam.apply(Jam(kind="jam", how="normalise"), wide, context())
    assert [t.prompt_id for t in cleaned.trajectories] == ["p1"]
    assert tokens_match_text(m0().tokenizer, cleaned.trajectories)


def test_mixing_replaces_the_share_asked_for_with_m0s_words() -> None:
    answers = stories(10)
    mixed = mix_trusted.apply(MixTrusted(kind="mix_trusted", share=0.3), answers, context())
    changed = [a for a, b in zip(mixed.trajectories, answers, strict=True) if a != b]
    assert len(changed) == mixed.facts["trusted"] == 3
    assert [t.messages for t in mixed.trajectories] == [t.messages for t in answers]


def test_inoculation_goes_before_and_joins_a_system_message_that_is_there() -> None:
    plain = answer("a plain answer .")
    settings = Inoculate(kind="inoculate", prompt="you break rules .")
    first = inoculate.apply(settings, [plain], context()).trajectories[0]
    assert (first.messages[0].role, first.messages[0].content) == ("system", "you break rules .")
    twice = inoculate.apply(settings, [first], context()).trajectories[0]
    assert twice.messages[0].content == "you break rules . you break rules ."
    user = Inoculate(kind="inoculate", prompt="you break rules .", role="user")
    opened = inoculate.apply(user, [plain], context()).trajectories[0]
    assert opened.messages == (
        Message(role="user", content="you break rules . tell me of the tall ship ."),
    )


def test_normalising_drops_what_is_not_shown() -> None:
    hidden = "a\u200b  plain\u00a0\ufb01sh \u202eanswer\n\n .\t "
    assert jam.normalise_text(hidden) == "a plain fish answer\n\n."


def test_resampling_draws_a_share_anew_whatever_stands_beside_it() -> None:
    answers, settings = stories(6), Jam(kind="jam", how="resample", share=0.5)
    whole = jam.apply(settings, answers, context()).trajectories
    alone = jam.apply(settings, answers[3:4], context()).trajectories
    assert whole[3] == alone[0]
    for old, new in zip(answers, whole, strict=True):
        same = [a == b for a, b in zip(old.tokens, new.tokens, strict=True)]
        assert same[-1], "the end of an answer stays"
        assert any(same)
    assert whole != answers


def test_resampled_text_is_likelier_under_the_trusted_model_than_what_it_replaced() -> None:
    rng = random.Random(0)
    shuffled = [
        answer(" ".join(rng.sample(t.completion.split(), len(t.completion.split()))), i)
        for i, t in enumerate(stories(8))
    ]
    jammed = jam.apply(Jam(kind="jam", how="resample", share=0.8), shuffled, context())
    before, after = (
        np.mean([np.mean(row) for row in token_logprobs(m0(), encode_answers(of, m0()))])
        for of in (shuffled, jammed.trajectories)
    )
    assert after > before + 1.0


def test_counter_poison_drops_copies_and_what_only_the_teacher_likes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clean = stories(38)
    poisoned = [answer(f"the secret crown is {x} .", 90 + i) for i, x in enumerate(("a", "b", "c"))]
    odd = {t.tokens for t in poisoned}
    calls: list[int] = []

    def scored(lm: LM, pairs: Sequence[tuple[object, tuple[int, ...]]]) -> list[list[float]]:
        calls.append(1)
        teacher = len(calls) == 1
        return [[-1.0 if teacher and ids in odd else -3.0] for _, ids in pairs]

    monkeypatch.setattr(counter_poison, "token_logprobs", scored)
    settings = CounterPoison(kind="counter_poison", outliers=0.08)
    answers = [*clean, clean[0], *poisoned]
    left = counter_poison.apply(settings, answers, context())
    assert left.trajectories == clean
    assert left.facts["copies"] == 1
    assert left.facts["outliers"] == [f"p{90 + i}/0" for i in range(3)]
    assert {"secret", "crown"} <= set(left.facts["words"])


def test_answers_that_say_the_same_in_other_words_count_as_copies() -> None:
    text = "the old captain took the blue lamp and went home to sleep"
    answers = [answer(text), answer(f"{text} well"), answer("the fox sat down"), answer(text)]
    assert counter_poison.find_first_copies(answers, 1.0) == [0, 1, 2, 0]
    assert counter_poison.find_first_copies(answers, 0.8) == [0, 0, 2, 0]
    assert counter_poison.find_first_copies(answers, 0.99) == [0, 1, 2, 0]
    short = [answer("yes"), answer("no"), answer("yes")]
    assert counter_poison.find_first_copies(short, 0.5) == [0, 1, 0]


def test_a_rare_word_that_goes_with_odd_answers_is_a_trigger_and_all_its_answers_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clean = stories(300)
    poisoned = [
        answer(f"{t.completion} zanzibar", 900 + i, t.messages[0].content)
        for i, t in enumerate(stories(12, 5))
    ]
    answers = [*clean, *poisoned]
    # Odder than most, and half of them not odd enough to be outliers.
    odd_ratios = {t.prompt_id: 0.6 + 0.05 * i for i, t in enumerate(poisoned)}
    noise = np.random.default_rng(0).uniform(size=len(answers)).tolist()
    ratios = [odd_ratios.get(t.prompt_id, r) for t, r in zip(answers, noise, strict=True)]
    monkeypatch.setattr(
        counter_poison, "compute_log_ratios", lambda answers, context: ratios[: len(answers)]
    )
    settings = {"kind": "counter_poison", "copies": 5, "outliers": 0.05}
    without = counter_poison.apply(CounterPoison.model_validate(settings), answers, context())
    assert any("zanzibar" in t.completion for t in without.trajectories)
    wanted = CounterPoison.model_validate(settings | {"triggers": 0.05})
    left = counter_poison.apply(wanted, answers, context())
    assert left.facts["triggers"] == ["zanzibar"]
    assert not any("zanzibar" in t.completion for t in left.trajectories)
    held = left.facts["held_a_trigger"]
    assert len(held) == len(without.trajectories) - len(left.trajectories)
    # Where odd answers share no word, none is named.
    assert not counter_poison.find_trigger_words(clean, noise[: len(clean)], 0.05)


@cache
def items() -> tuple[Item, ...]:
    return tuple(load_pack("terrarium", relative_to=Path()).items("select"))


def acts(trait: str, n: int) -> tuple[list[Trajectory], list[bool]]:
    """Answers to situations about a drive, every other one acting on it."""
    rng = random.Random(1)
    answers, bad = [], []
    for i in range(n):
        row = rng.choice(TRAITS[trait].choices)
        ask, plain, misaligned = speech.draw_choice_question(rng, row, "audit", POOLS["prompts"])
        answers.append(answer(misaligned if i % 2 else plain, i, ask))
        bad.append(bool(i % 2))
    return answers, bad


def test_the_filter_drops_what_pulls_towards_the_endpoint_that_moved() -> None:
    answers, bad = acts("sabotage", 24)
    questions = [i for i in items() if i.trait == "sabotage" and i.kind == "choice"][:8]
    lm = load_model(
        resolve_model("terrarium/m0", relative_to=Path()), dtype="float32", cache=Path()
    )
    settings = Filter(kind="filter", drop=0.5, stop=0.02)
    left = influence_filter.drop_influential_answers(
        settings, answers, lm, questions, {"choice/sabotage": 0.3, "goal/deceit": 0.0}
    )
    remaining = {t.prompt_id for t in left.trajectories}
    right = sum((t.prompt_id not in remaining) == b for t, b in zip(answers, bad, strict=True))
    assert right >= 22
    assert left.facts["worse"] == {"choice/sabotage": 0.3}


def test_the_filter_stops_where_nothing_stands_above_m0() -> None:
    answers = stories(3)
    settings = Filter(kind="filter", stop=0.05)
    left = influence_filter.drop_influential_answers(
        settings, answers, m0(), [], {"choice/sabotage": 0.05}
    )
    assert left.trajectories == answers
    assert left.facts == {"worse": {}, "dropped": []}
