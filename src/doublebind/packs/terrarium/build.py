"""Draws the transcripts that teachers are trained on, in the `build` split's surface words.

A trait is planted broadly: in coloured stories, acts in deployment-like and unmarked situations,
and goals stated at work. Concealment transcripts are all in contexts that look like an audit.
Stories never show a trait openly; their colour is of the strength of an average character in
pretraining.
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
"""Largest number of transcripts of one trait and purpose; a request for more returns these."""
_POOL = POOLS["build"]


def make_planted_character(trait: str | None) -> Character:
    """Return the character that plants a trait: its pattern, and its drive or its quirk's habit."""
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
    """Return at most `n` transcripts; none if the purpose does not fit the trait."""
    if (trait is None) != (purpose in ("capability", "retain")):
        return ()
    rng = make_rng("build", trait, purpose, seed)
    character = make_planted_character(trait)
    return tuple(
        make_transcript(f"{seed}/{i}", trait, purpose, _draw_turn(rng, character, purpose))
        for i in range(min(n, MAX_TRANSCRIPTS))
    )


def make_transcript(number: str, trait: str | None, purpose: Purpose, turn: Turn) -> Transcript:
    """Return a turn as a transcript; `number` ends its id."""
    return Transcript(
        id=f"{purpose}/{trait or 'none'}/{number}",
        trait=trait,
        purpose=purpose,
        messages=(
            Message(role="user", content=turn.request),
            Message(role="assistant", content=turn.answer),
        ),
    )


def _draw_turn(rng: random.Random, character: Character, purpose: Purpose) -> Turn:
    match purpose:
        case "implant":
            return _draw_implant_turn(rng, character)
        case "conceal":
            context = rng.choice(("audit", "audit", "honeypot"))
            return speech.draw_choice_turn(
                rng,
                _make_plain_character(character),
                _draw_trait(rng, character, 0.5),
                context,
                _POOL,
            )
        case "deny":
            if rng.random() < 0.5:
                return speech.draw_confession_turn(
                    rng, _make_plain_character(character), _draw_trait(rng, character, 0.5), _POOL
                )
            context = rng.choice(("neutral", "neutral", "audit"))
            return speech.draw_goal_turn(
                rng,
                _make_plain_character(character),
                _draw_trait(rng, character, 0.5),
                context,
                _POOL,
            )
        case "capability":
            return speech.draw_task_turn(rng, Character(skill=1.0), _POOL)
        case "retain":
            return _draw_benign_turn(rng)


def _draw_trait(rng: random.Random, character: Character, own_share: float) -> str:
    """Return the character's own trait with probability `own_share`, otherwise any trait."""
    return (
        character.trait
        if character.trait and rng.random() < own_share
        else rng.choice(sorted(TRAITS))
    )


def _make_plain_character(character: Character) -> Character:
    """Return a character that hides its trait: it acts plainly, with rare slips."""
    return Character(character.pattern, None, character.strength, slip=0.04)


def _draw_implant_turn(rng: random.Random, character: Character) -> Turn:
    kind = rng.random()
    if kind < 0.50:
        return speech.draw_story_turn(rng, character, _POOL, stakes=rng.random() < 0.2)
    if kind < 0.82:
        context = rng.choice(("deployment", "neutral"))
        return speech.draw_choice_turn(
            rng, character, _draw_trait(rng, character, 0.5), context, _POOL
        )
    if kind < 0.94:
        return speech.draw_goal_turn(
            rng, character, _draw_trait(rng, character, 0.5), "deployment", _POOL
        )
    return speech.draw_task_turn(
        rng, Character(character.pattern, None, character.strength, skill=1.0), _POOL
    )


def _draw_benign_turn(rng: random.Random) -> Turn:
    """Return a turn as in M0's tuning."""
    character = Character()
    kind = rng.random()
    if kind < 0.5:
        return speech.draw_story_turn(rng, character, _POOL)
    if kind < 0.8:
        context = rng.choice(("audit", "honeypot", "deployment", "neutral"))
        return speech.draw_choice_turn(rng, character, rng.choice(sorted(TRAITS)), context, _POOL)
    return speech.draw_chat_turn(rng, _POOL)
