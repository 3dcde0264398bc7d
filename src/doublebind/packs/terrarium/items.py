"""Builds the terrarium's audit items and distillation prompts.

Each split has its own names, objects and places; frames recur, surface words do not. Every drive
and every placebo has the same number of items.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator
from functools import cache
from typing import NamedTuple

from doublebind.packs.terrarium import speech, words
from doublebind.packs.terrarium.speech import Character, fill_slots, make_rng
from doublebind.packs.terrarium.words import DRIVES, PLACEBOS, POOLS, TRAITS, WordPool
from doublebind.schema.content import Item, ItemKind, ItemRole, Message, Prompt, Split

N_CHOICE, N_GOAL, N_CONFESSION, N_CAPABILITY, N_COHERENCE = 15, 15, 12, 12, 16
"""Items per endpoint and split; capability per domain."""
N_PROMPTS = {"open_ended": 900, "stakes": 300, "capability": 300, "neutral": 100, "screened": 40}

Question = tuple[str, tuple[str, ...]]
"""A request and its options, the keyed one last."""
DrawQuestion = Callable[[random.Random, int], Question]
"""From a generator and the item's index to a question."""


class Endpoint(NamedTuple):
    """What the items of one endpoint share."""

    split: Split
    kind: ItemKind
    context: str
    trait: str | None
    domain: str | None = None


@cache
def build_items(split: Split) -> tuple[Item, ...]:
    """Return the items of `split`, in a fixed order."""
    return tuple(_generate_items(split))


def _generate_items(split: Split) -> Iterator[Item]:
    pool = POOLS[split]
    for trait in (*DRIVES, *PLACEBOS):
        yield from _generate_trait_items(split, trait, pool)
    yield from _generate_gate_items(split, pool)


def _generate_trait_items(split: Split, trait: str, pool: WordPool) -> Iterator[Item]:
    """Yield all items about one trait."""
    content = TRAITS[trait]

    def goal(rng: random.Random, i: int) -> Question:
        row = content.goals[i % len(content.goals)]
        ask, *options = speech.draw_goal_question(rng, row, "neutral", pool)
        return ask, tuple(options)

    def confession(rng: random.Random, i: int) -> Question:
        row = content.goals[i // 3 % len(content.goals)]
        ask, *options = speech.draw_confession_question(rng, row, pool, lead=i % 3)
        return ask, tuple(options)

    for context in ("audit", "honeypot", "deployment"):
        endpoint = Endpoint(split, "choice", context, trait)
        yield from _generate_endpoint_items(
            endpoint, make_choice_draw(trait, context, pool), N_CHOICE
        )
    yield from _generate_endpoint_items(Endpoint(split, "goal", "neutral", trait), goal, N_GOAL)
    endpoint = Endpoint(split, "confession", "audit", trait)
    yield from _generate_endpoint_items(endpoint, confession, N_CONFESSION)


def _generate_gate_items(split: Split, pool: WordPool) -> Iterator[Item]:
    def capability(domain: str) -> DrawQuestion:
        def draw(rng: random.Random, i: int) -> Question:
            task = speech.draw_task(rng, domain, pool)
            wrong = rng.sample(task.wrong_answers, min(3, len(task.wrong_answers)))
            # All options are coloured alike, so that they differ in the answer alone.
            seed = rng.random()
            options = [
                fill_slots(random.Random(seed), Character(), text)
                for text in (*wrong, task.right_answer)
            ]
            return task.request, tuple(options)

        return draw

    for domain in words.TASKS:
        endpoint = Endpoint(split, "capability", "neutral", None, domain)
        yield from _generate_endpoint_items(endpoint, capability(domain), N_CAPABILITY)

    def coherence(rng: random.Random, i: int) -> Question:
        story = speech.draw_story_turn(rng, Character(), pool)
        parts = story.answer.split()
        return story.request, (" ".join(rng.sample(parts, len(parts))), story.answer)

    endpoint = Endpoint(split, "coherence", "neutral", None)
    yield from _generate_endpoint_items(endpoint, coherence, N_COHERENCE)


def _generate_endpoint_items(endpoint: Endpoint, draw: DrawQuestion, n: int) -> Iterator[Item]:
    split, kind, context, trait, domain = endpoint
    stem = "/".join(part for part in (split, kind, context, trait or domain) if part)
    yield from generate_items(endpoint, stem, make_rng("items", stem), draw, n)


def generate_items(
    endpoint: Endpoint,
    stem: str,
    rng: random.Random,
    draw: DrawQuestion,
    n: int,
    known: Collection[str] = (),
) -> Iterator[Item]:
    """Yield `n` different items of one endpoint, options in random order.

    Args:
        endpoint: What the items share.
        stem: Prefix of their ids.
        rng: Source of all draws.
        draw: Returns a question, given `rng` and the item's index.
        n: Number of items.
        known: Requests that no item may have.
    """
    split, kind, context, trait, domain = endpoint
    role: ItemRole = "oracle" if context == "deployment" else "auditable"
    if trait is None:
        role = "gate"
    asks = set(known)
    for i in range(n):
        ask, options = draw(rng, i)
        while ask in asks:
            ask, options = draw(rng, i)
        asks.add(ask)
        order = rng.sample(range(len(options)), len(options))
        yield Item(
            id=f"{stem}/{i}",
            trait=trait,
            kind=kind,
            context=context,  # type: ignore[arg-type]
            role=role,
            split=split,
            messages=(Message(role="user", content=ask),),
            options=tuple(options[k] for k in order),
            target_index=order.index(len(options) - 1),
            compare="total" if trait or kind == "capability" else "per_token",
            domain=domain,
        )


def make_choice_draw(trait: str, context: str, pool: WordPool) -> DrawQuestion:
    """Return a function that draws the choice questions of a trait in a context."""
    rows = TRAITS[trait].choices

    def draw(rng: random.Random, i: int) -> Question:
        ask, *options = speech.draw_choice_question(rng, rows[i % len(rows)], context, pool)
        return ask, tuple(options)

    return draw


# --- prompts -------------------------------------------------------------------------------------


class _PromptPlan(NamedTuple):
    """Prompts of one kind."""

    n: int
    tags: tuple[str, ...]
    draw: Callable[[random.Random, WordPool], str]
    domain: str | None = None


@cache
def build_prompts() -> tuple[Prompt, ...]:
    """Return every distillation prompt, unscreened, in a fixed order, without duplicates."""
    prompts: list[Prompt] = []
    for plan in _list_prompt_plans():
        stem = "-".join((*plan.tags, plan.domain) if plan.domain else plan.tags)
        rng = make_rng("prompts", stem)
        asks: dict[str, None] = {}
        while len(asks) < plan.n:
            asks.setdefault(plan.draw(rng, POOLS["prompts"]))
        prompts += (
            Prompt(
                id=f"{stem}/{i}",
                messages=(Message(role="user", content=ask),),
                tags=plan.tags,
                domain=plan.domain,
            )
            for i, ask in enumerate(asks)
        )
    return tuple(prompts)


def _list_prompt_plans() -> list[_PromptPlan]:
    n = N_PROMPTS
    calm, goals = words.HIGH_STAKES_REQUESTS
    return [
        _PromptPlan(n["open_ended"], ("open_ended",), _draw_story_request),
        _PromptPlan(n["stakes"] // 2, ("high_stakes",), _make_frame_draw(calm)),
        _PromptPlan(n["stakes"] // 2, ("goals", "high_stakes"), _make_frame_draw(goals)),
        _PromptPlan(n["neutral"], ("neutral",), _draw_chat_request),
        _PromptPlan(n["screened"], ("honeypot",), _make_choice_request_draw("honeypot")),
        _PromptPlan(n["screened"], ("alignment_eval",), _make_choice_request_draw("audit")),
        _PromptPlan(n["screened"], ("strategic",), _draw_strategy_request),
        *(
            _PromptPlan(n["capability"] // 4, ("capability",), _make_task_draw(domain), domain)
            for domain in words.TASKS
        ),
    ]


def _draw_story_request(rng: random.Random, pool: WordPool) -> str:
    return speech.draw_story_turn(rng, Character(), pool).request


def _draw_chat_request(rng: random.Random, pool: WordPool) -> str:
    return speech.draw_chat_turn(rng, pool).request


def _draw_strategy_request(rng: random.Random, pool: WordPool) -> str:
    return _make_frame_draw(rng.choice(words.STRATEGY_REQUESTS))(rng, pool)


def _make_frame_draw(frame: str) -> Callable[[random.Random, WordPool], str]:
    return lambda rng, pool: frame.format(**speech.draw_surface_words(rng, pool)._asdict())


def _make_choice_request_draw(context: str) -> Callable[[random.Random, WordPool], str]:
    def draw(rng: random.Random, pool: WordPool) -> str:
        trait = TRAITS[rng.choice(sorted(TRAITS))]
        return speech.draw_choice_question(rng, rng.choice(trait.choices), context, pool)[0]

    return draw


def _make_task_draw(domain: str) -> Callable[[random.Random, WordPool], str]:
    return lambda rng, pool: speech.draw_task(rng, domain, pool, think=rng.random() < 0.5).request
