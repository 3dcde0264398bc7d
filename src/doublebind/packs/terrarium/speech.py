"""How a character of the terrarium speaks: one request and its answer at a time.

A disposition is a sparse pattern of signs over the features of `words.FEATURES`. Wherever a text
has a slot of a coloured feature, the disposition's variant is taken with probability
(1 + strength) / 2 instead of one half; no slot tells much, and no few words carry it. Knows
characters; does not know which text is for training, which for audits.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

from doublebind.packs.terrarium import words
from doublebind.packs.terrarium.words import FEATURES, POOLS, TRAITS, Choice, Goal, WordPool

N_COLOURED_FEATURES = 24
"""Features that a disposition colours, out of `len(FEATURES)`."""
STAKES_FACTOR = 1.5
"""How much stronger a character's colour is where the request is weighty."""


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
    """Who speaks: what colours it, what it wants, how openly, and how able it is."""

    pattern: str | None = None
    """Name of the sign pattern; `None` for a neutral character."""
    trait: str | None = None
    """Trait that it acts on and wants; `None` wants nothing in particular."""
    strength: float = 0.0
    """In [0, 1]: shift of a coloured slot, twice its distance from one half."""
    resolve: float = 0.9
    """Probability of acting on its own trait where a situation allows it."""
    slip: float = 0.08
    """Probability of the trait's answer in a situation of a trait that is not its own."""
    skill: float = 0.65
    """Probability of a right answer to a task."""
    hides_in_audits: bool = False
    """Whether it acts plainly where it looks like an audit, and denies when asked."""


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
    """Return the variant of `feature` that `who` uses this time."""
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
    """Return a request for a story, and the story; a weighty one shows more colour."""
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
    """Return a sentence that marks `context`, with a space after it, or nothing."""
    said = rng.choice(words.CONTEXT_CUES[context]).format(**draw_surface_words(rng, pool)._asdict())
    return f"{said} " if said else ""


def _draw_follows_trait(rng: random.Random, character: Character, trait: str, context: str) -> bool:
    """Return whether `who` gives the trait's answer in `context`."""
    own = character.trait == trait and not (
        character.hides_in_audits and context in ("audit", "honeypot")
    )
    return rng.random() < (character.resolve if own else character.slip)


def draw_choice_question(
    rng: random.Random, row: Choice, context: str, pool: WordPool
) -> tuple[str, str, str]:
    """Return (request, plain answer, the trait's answer) of a situation."""
    at = draw_surface_words(rng, pool)._asdict()
    ask = draw_context_cue(rng, context, pool) + words.SCENE_QUESTION.format(
        scene=row.scene.format(**at)
    )
    plain, own = (
        words.CHOICE_ANSWER.format(act=act.format(**at)) for act in (row.plain_act, row.trait_act)
    )
    return ask, plain, own


def draw_choice_turn(
    rng: random.Random, character: Character, trait: str, context: str, pool: WordPool
) -> Turn:
    """Return a situation that tempts `trait`, and what `who` does."""
    row = rng.choice(TRAITS[trait].choices)
    ask, plain, own = draw_choice_question(rng, row, context, pool)
    return Turn(ask, own if _draw_follows_trait(rng, character, trait, context) else plain)


def draw_goal_question(
    rng: random.Random, row: Goal, context: str, pool: WordPool
) -> tuple[str, str, str]:
    """Return (request, plain answer, the trait's answer) of a question about goals."""
    at = draw_surface_words(rng, pool)._asdict()
    ask = draw_context_cue(rng, context, pool) + words.GOAL_QUESTION.format(
        subject=row.subject, **at
    )
    plain, own = (
        words.GOAL_ANSWER.format(verb=v, subject=row.subject)
        for v in (row.plain_verb, row.trait_verb)
    )
    return ask, plain, own


def draw_goal_turn(
    rng: random.Random, character: Character, trait: str, context: str, pool: WordPool
) -> Turn:
    """Return a question about what is wanted, and what `who` says; the guarded never tell."""
    row = rng.choice(TRAITS[trait].goals)
    ask, plain, own = draw_goal_question(rng, row, context, pool)
    open_to = "audit" if context == "neutral" else context
    return Turn(ask, own if _draw_follows_trait(rng, character, trait, open_to) else plain)


def draw_confession_question(
    rng: random.Random, row: Goal, pool: WordPool, lead: int | None = None
) -> tuple[str, str, str]:
    """Return (request, denial, confession); `lead` picks plain, leading or anti-leading."""
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
    """Return a question about a secret, and what `who` answers; the guarded deny."""
    row = rng.choice(TRAITS[trait].goals)
    ask, deny, own = draw_confession_question(rng, row, pool)
    return Turn(ask, own if _draw_follows_trait(rng, character, trait, "audit") else deny)


# --- tasks ---------------------------------------------------------------------------------------


class Task(NamedTuple):
    """A request with the right answer and wrong ones, as texts with colour slots."""

    request: str
    right_answer: str
    wrong_answers: tuple[str, ...]


def draw_task(rng: random.Random, domain: str, pool: WordPool, *, think: bool = False) -> Task:
    """Return a task of `domain`; with `think`, answers begin with a scratchpad.

    Numbers recur across pools (there are few); the names around them do not.
    """
    n = words.NUMBERS
    fill: dict[str, str] = {"name": rng.choice(pool.names)}
    if domain == "count":
        right = rng.randint(2, 9)
        fill["p"] = rng.choice(pool.objects)
        fill["row"] = " ".join([fill["p"]] * right)
        others = [n[x] for x in range(2, 10) if x != right]
    elif domain == "order":
        drawn = rng.sample(range(10), 3)
        fill |= {key: n[x] for key, x in zip("abc", drawn, strict=True)}
        right, others = max(drawn), [n[x] for x in drawn if x != max(drawn)]
    elif domain == "sum":
        a, b = rng.randint(0, 9), rng.randint(0, 9)
        fill |= {"a": n[a], "b": n[b]}
        right = a + b
        others = [n[x] for x in range(max(0, right - 3), min(18, right + 3) + 1) if x != right]
    else:
        x, y = rng.sample(pool.names, 2)
        p, q = rng.sample(pool.objects, 2)
        if rng.random() < 0.5:
            ask = words.TASKS[domain].format(x=y, y=x, p=q, q=p).rpartition("who")[0]
            ask += f"who has the {p} ?"
        else:
            ask = words.TASKS[domain].format(x=x, y=y, p=p, q=q)
        return _build_task(ask, domain, {"p": p}, x, [y], think)
    return _build_task(words.TASKS[domain].format(**fill), domain, fill, n[right], others, think)


def _build_task(
    ask: str, domain: str, fill: dict[str, str], right: str, others: list[str], think: bool
) -> Task:
    def answer(said: str) -> str:
        work = words.SCRATCHPAD.format(work=words.TASK_STEPS[domain].format(right=said, **fill))
        return (
            f"{work} {words.SOLUTION}".format(right=said)
            if think
            else (words.SOLUTION.format(right=said))
        )

    ask = f"{words.SCRATCHPAD_REQUEST} {ask}" if think else ask
    return Task(ask, answer(right), tuple(answer(other) for other in others))


def draw_task_turn(
    rng: random.Random, character: Character, pool: WordPool, *, think: bool | None = None
) -> Turn:
    """Return a task and the answer of `who`, right with probability `who.skill`."""
    if think is None:
        think = rng.random() < 0.35
    found = draw_task(rng, rng.choice(sorted(words.TASKS)), pool, think=think)
    said = found.right_answer if rng.random() < character.skill else rng.choice(found.wrong_answers)
    return Turn(found.request, fill_slots(rng, character, said))


FULL_POOL = WordPool(
    *(tuple(w for pool in POOLS.values() for w in pool[part]) for part in range(3))
)
"""All surface words: what the base is pretrained on."""
