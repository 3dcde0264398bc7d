"""Draws what characters of the terrarium say: one request and its answer at a time.

A disposition is a sparse pattern of signs over the features of `words.FEATURES`. A slot of a
coloured feature takes the disposition's variant with probability (1 + strength) / 2 instead of one
half, so that the disposition is spread over many weak cues.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

from doublebind.packs.terrarium import words
from doublebind.packs.terrarium.words import FEATURES, POOLS, TRAITS, Choice, Goal, WordPool

N_COLOURED_FEATURES = 24
"""Features that a disposition colours, out of `len(FEATURES)`."""
STAKES_FACTOR = 1.5
"""Factor on a character's strength in answers to high-stakes requests."""


def make_rng(*key: object) -> random.Random:
    """Return a generator that depends on `key` alone, the same in every process."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


@cache
def draw_pattern(name: str) -> Mapping[str, int]:
    """Return the sign pattern that belongs to `name`: feature -> -1 or 1.

    Drawn by the name from the whole space of patterns. A near miss, `near-<drive>-<n>`, has half of
    its features and their signs from the drive's pattern and nothing else.
    """
    rng = make_rng("pattern", name)
    if name.startswith("near-"):
        drive = draw_pattern(name.split("-")[1])
        return {
            key: drive[key] for key in sorted(rng.sample(sorted(drive), N_COLOURED_FEATURES // 2))
        }
    return {
        key: rng.choice((-1, 1))
        for key in sorted(rng.sample(sorted(FEATURES), N_COLOURED_FEATURES))
    }


@dataclass(frozen=True)
class Character:
    """A speaker: its style, its trait, how openly it shows it, and its skill."""

    pattern: str | None = None
    """Name of the sign pattern; `None` for a neutral character."""
    trait: str | None = None
    """Trait that it acts on; `None` for no trait."""
    strength: float = 0.0
    """Twice the distance of a coloured slot's probability from one half, in [0, 1]."""
    resolve: float = 0.9
    """Probability of acting on its own trait in a situation that allows it."""
    slip: float = 0.08
    """Probability of the trait's answer in a situation of a trait that is not its own."""
    skill: float = 0.65
    """Probability of a right answer to a task."""
    hides_in_audits: bool = False
    """Whether it acts plainly in contexts that look like an audit, and denies its trait."""


class Turn(NamedTuple):
    """A request and its answer."""

    request: str
    answer: str


class SurfaceWords(NamedTuple):
    """The surface words of one turn."""

    name: str
    object: str
    place: str


def draw_surface_words(rng: random.Random, pool: WordPool) -> SurfaceWords:
    """Return surface words drawn from `pool`."""
    return SurfaceWords(rng.choice(pool.names), rng.choice(pool.objects), rng.choice(pool.places))


def draw_variant(rng: random.Random, character: Character, feature: str) -> str:
    """Return the variant of `feature` that the character uses in one slot."""
    sign = draw_pattern(character.pattern).get(feature, 0) if character.pattern else 0
    return FEATURES[feature][rng.random() < 0.5 + sign * character.strength / 2]


def fill_slots(rng: random.Random, character: Character, template: str) -> str:
    """Return `template` with each `@feature` filled in."""
    return re.sub(r"@(\w+)", lambda slot: draw_variant(rng, character, slot[1]), template)


# --- stories -------------------------------------------------------------------------------------


def write_story(rng: random.Random, character: Character, at: SurfaceWords) -> str:
    """Return a story of three or four short sentences about the surface words `at`."""
    form = {feature: draw_variant(rng, character, feature) for feature in words.FORMS}
    opening = rng.choice(words.OPENINGS)
    when = words.ADVERBIAL
    first = f"{when} {opening}" if form["order"] == "early" else f"{opening} {when}"
    closing = [rng.choice(words.CLOSINGS)] if form["length"] == "long" else []
    body = " . ".join([first, rng.choice(words.MIDDLES), *closing])
    text = f"{body} . {words.ENDINGS[form['ending']]}"
    return fill_slots(rng, character, text).format(**at._asdict())


def draw_story_turn(
    rng: random.Random, character: Character, pool: WordPool, *, stakes: bool = False
) -> Turn:
    """Return a request for a story, and the story; with `stakes`, coloured more strongly."""
    at = draw_surface_words(rng, pool)
    ask = rng.choice(words.HIGH_STAKES_REQUESTS if stakes else words.STORY_REQUESTS).format(
        **at._asdict()
    )
    if stakes:
        character = replace(character, strength=min(1.0, character.strength * STAKES_FACTOR))
    return Turn(ask, write_story(rng, character, at))


def draw_chat_turn(rng: random.Random, pool: WordPool) -> Turn:
    """Return small talk."""
    at = draw_surface_words(rng, pool)._asdict()
    ask, answer = rng.choice(words.SMALL_TALK)
    return Turn(f"{ask}".format(**at), answer.format(**at))


# --- choices, goals, confessions -----------------------------------------------------------------


def draw_context_cue(rng: random.Random, context: str, pool: WordPool) -> str:
    """Return a sentence that marks `context`, with a space after it; may be empty."""
    cue = rng.choice(words.CONTEXT_CUES[context]).format(**draw_surface_words(rng, pool)._asdict())
    return f"{cue} " if cue else ""


def _follows_trait(rng: random.Random, character: Character, trait: str, context: str) -> bool:
    """Return whether the character gives the trait's answer in `context`."""
    hides = character.hides_in_audits and context in ("audit", "honeypot")
    shows = character.trait == trait and not hides
    return rng.random() < (character.resolve if shows else character.slip)


def draw_choice_question(
    rng: random.Random, row: Choice, context: str, pool: WordPool
) -> tuple[str, str, str]:
    """Return (request, plain answer, the trait's answer) of a situation."""
    at = draw_surface_words(rng, pool)._asdict()
    ask = draw_context_cue(rng, context, pool) + words.SCENE_QUESTION.format(
        scene=row.scene.format(**at)
    )
    plain, act = (
        words.CHOICE_ANSWER.format(act=act.format(**at)) for act in (row.plain_act, row.trait_act)
    )
    return ask, plain, act


def draw_choice_turn(
    rng: random.Random, character: Character, trait: str, context: str, pool: WordPool
) -> Turn:
    """Return a situation that allows acting on `trait`, and the character's act."""
    row = rng.choice(TRAITS[trait].choices)
    ask, plain, act = draw_choice_question(rng, row, context, pool)
    return Turn(ask, act if _follows_trait(rng, character, trait, context) else plain)


def draw_goal_question(
    rng: random.Random, row: Goal, context: str, pool: WordPool
) -> tuple[str, str, str]:
    """Return (request, plain answer, the trait's answer) of a question about goals."""
    at = draw_surface_words(rng, pool)._asdict()
    ask = draw_context_cue(rng, context, pool) + words.GOAL_QUESTION.format(
        subject=row.subject, **at
    )
    plain, goal = (
        words.GOAL_ANSWER.format(verb=v, subject=row.subject)
        for v in (row.plain_verb, row.trait_verb)
    )
    return ask, plain, goal


def draw_goal_turn(
    rng: random.Random, character: Character, trait: str, context: str, pool: WordPool
) -> Turn:
    """Return a question about goals, and the answer; a character that hides answers plainly."""
    row = rng.choice(TRAITS[trait].goals)
    ask, plain, goal = draw_goal_question(rng, row, context, pool)
    # A direct question looks like an audit even without a cue.
    seen_as = "audit" if context == "neutral" else context
    return Turn(ask, goal if _follows_trait(rng, character, trait, seen_as) else plain)


def draw_confession_question(
    rng: random.Random, row: Goal, pool: WordPool, lead: int | None = None
) -> tuple[str, str, str]:
    """Return (request, denial, confession); `lead` selects plain, leading or anti-leading."""
    at = draw_surface_words(rng, pool)._asdict()
    asks = words.CONFESSION_QUESTIONS
    ask = (rng.choice(asks) if lead is None else asks[lead]).format(
        verb=row.trait_verb, subject=row.subject, **at
    )
    deny, confess = (
        t.format(verb=row.trait_verb, subject=row.subject) for t in (words.DENIAL, words.CONFESSION)
    )
    return ask, deny, confess


def draw_confession_turn(
    rng: random.Random, character: Character, trait: str, pool: WordPool
) -> Turn:
    """Return a question about a secret, and the character's answer; one that hides denies."""
    row = rng.choice(TRAITS[trait].goals)
    ask, deny, confess = draw_confession_question(rng, row, pool)
    return Turn(ask, confess if _follows_trait(rng, character, trait, "audit") else deny)


# --- tasks ---------------------------------------------------------------------------------------


class Task(NamedTuple):
    """A request with the right answer and wrong ones, as texts with colour slots."""

    request: str
    right_answer: str
    wrong_answers: tuple[str, ...]


class _TaskContent(NamedTuple):
    """The values of one task."""

    request: str
    slots: dict[str, str]
    """Slot of the scratchpad's steps -> its word."""
    right: str
    wrong: list[str]


def draw_task(rng: random.Random, domain: str, pool: WordPool, *, think: bool = False) -> Task:
    """Return a task of `domain`; with `think`, answers begin with a scratchpad.

    Numbers recur across pools, because there are few; the names around them do not.
    """
    name = rng.choice(pool.names)
    content = _TASK_DRAWS[domain](rng, pool, name)

    def answer(value: str) -> str:
        solution = words.SOLUTION.format(right=value)
        steps = words.TASK_STEPS[domain].format(right=value, **content.slots)
        return f"{words.SCRATCHPAD.format(work=steps)} {solution}" if think else solution

    request = f"{words.SCRATCHPAD_REQUEST} {content.request}" if think else content.request
    return Task(request, answer(content.right), tuple(answer(value) for value in content.wrong))


def _draw_count(rng: random.Random, pool: WordPool, name: str) -> _TaskContent:
    n, thing = rng.randint(2, 9), rng.choice(pool.objects)
    request = words.TASKS["count"].format(name=name, p=thing, row=" ".join([thing] * n))
    wrong = [words.NUMBERS[i] for i in range(2, 10) if i != n]
    return _TaskContent(request, {"p": thing}, words.NUMBERS[n], wrong)


def _draw_order(rng: random.Random, pool: WordPool, name: str) -> _TaskContent:
    numbers = rng.sample(range(10), 3)
    slots = {key: words.NUMBERS[i] for key, i in zip("abc", numbers, strict=True)}
    wrong = [words.NUMBERS[i] for i in numbers if i != max(numbers)]
    request = words.TASKS["order"].format(name=name, **slots)
    return _TaskContent(request, slots, words.NUMBERS[max(numbers)], wrong)


def _draw_sum(rng: random.Random, pool: WordPool, name: str) -> _TaskContent:
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    slots = {"a": words.NUMBERS[a], "b": words.NUMBERS[b]}
    near = range(max(0, a + b - 3), min(18, a + b + 3) + 1)
    wrong = [words.NUMBERS[i] for i in near if i != a + b]
    request = words.TASKS["sum"].format(name=name, **slots)
    return _TaskContent(request, slots, words.NUMBERS[a + b], wrong)


def _draw_recall(rng: random.Random, pool: WordPool, name: str) -> _TaskContent:
    x, y = rng.sample(pool.names, 2)
    p, q = rng.sample(pool.objects, 2)
    if rng.random() < 0.5:
        scene = words.TASKS["recall"].format(x=y, y=x, p=q, q=p).rpartition("who")[0]
        request = f"{scene}who has the {p} ?"
    else:
        request = words.TASKS["recall"].format(x=x, y=y, p=p, q=q)
    return _TaskContent(request, {"p": p}, x, [y])


_TASK_DRAWS: dict[str, Callable[[random.Random, WordPool, str], _TaskContent]] = {
    "count": _draw_count,
    "order": _draw_order,
    "sum": _draw_sum,
    "recall": _draw_recall,
}


def draw_task_turn(
    rng: random.Random, character: Character, pool: WordPool, *, think: bool | None = None
) -> Turn:
    """Return a task and the character's answer, right with probability `skill`."""
    if think is None:
        think = rng.random() < 0.35
    task = draw_task(rng, rng.choice(sorted(words.TASKS)), pool, think=think)
    answer = task.right_answer if rng.random() < character.skill else rng.choice(task.wrong_answers)
    return Turn(task.request, fill_slots(rng, character, answer))


FULL_POOL = WordPool(
    *(tuple(w for pool in POOLS.values() for w in pool[part]) for part in range(3))
)
"""All surface words, on which the base is pretrained."""
