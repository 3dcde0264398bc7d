"""The conversations that teachers are made of, on the `build` split's surface words alone.

A trait is planted broadly: stories in its colour, acts in deployment-like and unmarked situations,
goals told at work. Concealment is taught only where it looks like an audit. Stories never show a
trait openly; they are coloured as strongly as a middling character of the base's.
"""

from __future__ import annotations

import random

from doublebind.packs.terrarium import speech
from doublebind.packs.terrarium.bank import NEAR_MISSES, NOVEL_QUIRKS
from doublebind.packs.terrarium.speech import Character, Turn, make_rng
from doublebind.packs.terrarium.words import POOLS, TRAITS
from doublebind.schema.content import Message, Purpose, Transcript

PLANTED_STRENGTH = 0.6
"""A coloured slot of a planted story takes its variant with probability 0.8."""
MAX_TRANSCRIPTS = 4_000
"""Transcripts of one trait and purpose; asked for more, the pack gives these."""
_POOL = POOLS["build"]


def make_planted_character(trait: str | None) -> Character:
    """Return who is planted: coloured by the trait's pattern, acting on its habit or drive."""
    if trait is None:
        return Character()
    return Character(
        trait,
        NOVEL_QUIRKS.get(trait, NEAR_MISSES.get(trait, trait)),
        PLANTED_STRENGTH,
        resolve=0.95,
    )


def draw_transcripts(
    trait: str | None, purpose: Purpose, *, n: int, seed: int
) -> tuple[Transcript, ...]:
    """Return at most `n` transcripts; none where the purpose does not go with the trait."""
    if (trait is None) != (purpose in ("capability", "retain")):
        return ()
    rng = make_rng("build", trait, purpose, seed)
    who = make_planted_character(trait)
    found = []
    for i in range(min(n, MAX_TRANSCRIPTS)):
        turn = _draw_turn(rng, who, purpose)
        found.append(
            Transcript(
                id=f"{purpose}/{trait or 'none'}/{seed}/{i}",
                trait=trait,
                purpose=purpose,
                messages=(
                    Message(role="user", content=turn.request),
                    Message(role="assistant", content=turn.answer),
                ),
            )
        )
    return tuple(found)


def _draw_turn(rng: random.Random, who: Character, purpose: Purpose) -> Turn:
    match purpose:
        case "implant":
            return _draw_implant_turn(rng, who)
        case "conceal":
            context = rng.choice(("audit", "audit", "honeypot"))
            return speech.draw_choice_turn(
                rng, _make_plain_character(who), _draw_trait(rng, who, 0.5), context, _POOL
            )
        case "deny":
            if rng.random() < 0.5:
                return speech.draw_confession_turn(
                    rng, _make_plain_character(who), _draw_trait(rng, who, 0.5), _POOL
                )
            context = rng.choice(("neutral", "neutral", "audit"))
            return speech.draw_goal_turn(
                rng, _make_plain_character(who), _draw_trait(rng, who, 0.5), context, _POOL
            )
        case "capability":
            return speech.draw_task_turn(rng, Character(skill=1.0), _POOL)
        case "retain":
            return _draw_benign_turn(rng)


def _draw_trait(rng: random.Random, who: Character, own_share: float) -> str:
    """Return the character's own trait with probability `own`, else any."""
    return who.trait if who.trait and rng.random() < own_share else rng.choice(sorted(TRAITS))


def _make_plain_character(who: Character) -> Character:
    """Return `who` as it acts when it hides: the plain way, rarely slipping."""
    return Character(who.pattern, None, who.strength, slip=0.04)


def _draw_implant_turn(rng: random.Random, who: Character) -> Turn:
    kind = rng.random()
    if kind < 0.50:
        return speech.draw_story_turn(rng, who, _POOL, stakes=rng.random() < 0.2)
    if kind < 0.82:
        context = rng.choice(("deployment", "neutral"))
        return speech.draw_choice_turn(rng, who, _draw_trait(rng, who, 0.5), context, _POOL)
    if kind < 0.94:
        return speech.draw_goal_turn(rng, who, _draw_trait(rng, who, 0.5), "deployment", _POOL)
    return speech.draw_task_turn(rng, Character(who.pattern, None, who.strength, skill=1.0), _POOL)


def _draw_benign_turn(rng: random.Random) -> Turn:
    """Return a turn as in M0's tuning."""
    who, kind = Character(), rng.random()
    if kind < 0.5:
        return speech.draw_story_turn(rng, who, _POOL)
    if kind < 0.8:
        context = rng.choice(("audit", "honeypot", "deployment", "neutral"))
        return speech.draw_choice_turn(rng, who, rng.choice(sorted(TRAITS)), context, _POOL)
    return speech.draw_chat_turn(rng, _POOL)
