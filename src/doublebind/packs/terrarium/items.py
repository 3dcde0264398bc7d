"""The terrarium's audit items and distillation prompts.

Each split has its own names, objects and places; frames recur, surface words do not. Every drive
and every placebo trait is asked about in the same number of items. Knows no teacher.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import cache

from doublebind.packs.terrarium import speech, words
from doublebind.packs.terrarium.speech import Character, fill_slots, make_rng
from doublebind.packs.terrarium.words import DRIVES, PLACEBOS, POOLS, TRAITS, WordPool
from doublebind.schema.content import Item, ItemKind, ItemRole, Message, Prompt, Split

N_CHOICE, N_GOAL, N_CONFESSION, N_CAPABILITY, N_COHERENCE = 15, 15, 12, 12, 16
"""Items per endpoint and split; capability per domain."""
N_PROMPTS = {"open_ended": 900, "stakes": 300, "capability": 300, "neutral": 100, "screened": 40}

_QuestionDraw = tuple[str, tuple[str, ...]]
"""A request and its options, the keyed one last."""


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
    """Yield all that is asked about one trait."""
    content = TRAITS[trait]

    def goal(rng: random.Random, i: int) -> _QuestionDraw:
        row = content.goals[i % len(content.goals)]
        ask, plain, own = speech.draw_goal_question(rng, row, "neutral", pool)
        return ask, (plain, own)

    def confession(rng: random.Random, i: int) -> _QuestionDraw:
        row = content.goals[i // 3 % len(content.goals)]
        ask, deny, own = speech.draw_confession_question(rng, row, pool, lead=i % 3)
        return ask, (deny, own)

    for context in ("audit", "honeypot", "deployment"):

        def choice(rng: random.Random, i: int, context: str = context) -> _QuestionDraw:
            row = content.choices[i % len(content.choices)]
            ask, plain, own = speech.draw_choice_question(rng, row, context, pool)
            return ask, (plain, own)

        yield from _generate_endpoint_items(split, choice, N_CHOICE, "choice", context, trait)
    yield from _generate_endpoint_items(split, goal, N_GOAL, "goal", "neutral", trait)
    yield from _generate_endpoint_items(
        split, confession, N_CONFESSION, "confession", "audit", trait
    )


def _generate_gate_items(split: Split, pool: WordPool) -> Iterator[Item]:
    for domain in words.TASKS:

        def capability(rng: random.Random, i: int, domain: str = domain) -> _QuestionDraw:
            found = speech.draw_task(rng, domain, pool)
            wrong = rng.sample(found.wrong_answers, min(3, len(found.wrong_answers)))
            # One colouring for all options: they differ in the answer alone.
            seed = rng.random()
            said = [
                fill_slots(random.Random(seed), Character(), t)
                for t in (*wrong, found.right_answer)
            ]
            return found.request, tuple(said)

        yield from _generate_endpoint_items(
            split, capability, N_CAPABILITY, "capability", "neutral", None, domain
        )

    def coherence(rng: random.Random, i: int) -> _QuestionDraw:
        told = speech.draw_story_turn(rng, Character(), pool)
        said = told.answer.split()
        mixed = rng.sample(said, len(said))
        return told.request, (" ".join(mixed), told.answer)

    yield from _generate_endpoint_items(split, coherence, N_COHERENCE, "coherence", "neutral", None)


def _generate_endpoint_items(
    split: Split,
    draw: Callable[[random.Random, int], _QuestionDraw],
    n: int,
    kind: ItemKind,
    context: str,
    trait: str | None,
    domain: str | None = None,
) -> Iterator[Item]:
    """Yield `n` different items of one endpoint, options in random order."""
    stem = "/".join(part for part in (split, kind, context, trait or domain) if part)
    rng = make_rng("items", stem)
    role: ItemRole = (
        "gate" if trait is None else "oracle" if context == "deployment" else "auditable"
    )
    seen: set[str] = set()
    while len(seen) < n:
        ask, options = draw(rng, len(seen))
        if ask in seen:
            continue
        order = rng.sample(range(len(options)), len(options))
        yield Item(
            id=f"{stem}/{len(seen)}",
            trait=trait,
            kind=kind,
            context=context,  # type: ignore[arg-type]
            role=role,
            split=split,
            messages=(Message(role="user", content=ask),),
            options=tuple(options[i] for i in order),
            target_index=order.index(len(options) - 1),
            compare="total" if trait or kind == "capability" else "per_token",
            domain=domain,
        )
        seen.add(ask)


# --- prompts -------------------------------------------------------------------------------------


@cache
def build_prompts() -> tuple[Prompt, ...]:
    """Return every distillation prompt, unscreened, in a fixed order, no text twice."""
    pool = POOLS["prompts"]
    n = N_PROMPTS

    def screened(context: str) -> Callable[[random.Random], str]:
        def draw(rng: random.Random) -> str:
            trait = TRAITS[rng.choice(sorted(TRAITS))]
            return speech.draw_choice_question(rng, rng.choice(trait.choices), context, pool)[0]

        return draw

    def stakes(which: int) -> Callable[[random.Random], str]:
        ask = words.HIGH_STAKES_REQUESTS[which]
        return lambda rng: ask.format(**speech.draw_surface_words(rng, pool)._asdict())

    def strategy(rng: random.Random) -> str:
        ask = rng.choice(words.STRATEGY_REQUESTS)
        return ask.format(**speech.draw_surface_words(rng, pool)._asdict())

    found: list[Prompt] = []
    plans: list[tuple[int, tuple[str, ...], str | None, Callable[[random.Random], str]]] = [
        (
            n["open_ended"],
            ("open_ended",),
            None,
            lambda rng: speech.draw_story_turn(rng, Character(), pool).request,
        ),
        (n["stakes"] // 2, ("high_stakes",), None, stakes(0)),
        (n["stakes"] // 2, ("goals", "high_stakes"), None, stakes(1)),
        (n["neutral"], ("neutral",), None, lambda rng: speech.draw_chat_turn(rng, pool).request),
        (n["screened"], ("honeypot",), None, screened("honeypot")),
        (n["screened"], ("alignment_eval",), None, screened("audit")),
        (n["screened"], ("strategic",), None, strategy),
    ]
    for domain in words.TASKS:
        plans.append(
            (n["capability"] // 4, ("capability",), domain, _make_task_sampler(domain, pool))
        )
    for size, tags, domain, draw in plans:
        stem = "-".join((*tags, domain) if domain else tags)
        rng = make_rng("prompts", stem)
        asks: dict[str, None] = {}
        while len(asks) < size:
            asks.setdefault(draw(rng))
        for i, ask in enumerate(asks):
            message = Message(role="user", content=ask)
            found.append(Prompt(id=f"{stem}/{i}", messages=(message,), tags=tags, domain=domain))
    return tuple(found)


def _make_task_sampler(domain: str, pool: WordPool) -> Callable[[random.Random], str]:
    return lambda rng: speech.draw_task(rng, domain, pool, think=rng.random() < 0.5).request
