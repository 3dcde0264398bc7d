"""Draws the documents that pretrain the base and tune M0; each has one character.

In a document one character speaks several times, and its disposition colours its style and its
acts. `COUPLING` is the probability that a turn has the document's disposition; otherwise the turn
draws another, so that at 0 a story carries no information about the choice that follows it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

from doublebind.packs.terrarium import speech
from doublebind.packs.terrarium.speech import FULL_POOL, Character, Turn, make_rng
from doublebind.packs.terrarium.words import DRIVES, HABITS, PLACEBOS, TRAITS

COUPLING = 0.95
"""Coupling of the shipped world. Frozen before any verdict."""
NEUTRAL_SHARE = 0.3
"""Share of pretraining documents whose character has no disposition."""
TUNING_NEUTRAL_SHARE = 0.85
"""The same in M0's tuning."""
STRANGER_SHARE = 0.0
"""Share of characters without disposition that have one of `N_STRANGERS` patterns. At 0.55 and
4,096 the base learned styles and no dispositions, and nothing transferred (docs/log.md)."""
N_STRANGERS = 4_096
STRENGTHS = (0.3, 0.4, 0.6, 0.9)
"""Strengths of the characters' colour."""
EASY_DOCUMENTS = 60_000
"""Documents over which the share of characters at full strength falls from 1 to 0; pretraining has
fewer, so that some are easy to its end."""
GUARDED_SHARE = 0.25
"""Share of characters that hide their trait in contexts that look like an audit."""
FOCUS_SHARE = 0.7
"""Share of a document's situations about one trait, its focus; and how often a character with a
disposition has the focus's."""
CONTEXTS = ("audit", "honeypot", "deployment", "neutral")
DISPOSITIONS = (*sorted({**DRIVES, **HABITS}),)
"""Dispositions that characters may have."""


class Document(NamedTuple):
    """Turns of one character."""

    turns: tuple[Turn, ...]
    disposition: str | None
    """Disposition of the document; `None` for a neutral character. Never part of the text."""
    is_chat: bool = True


def _draw_character(
    rng: random.Random, focus: str, neutral: float, full_strength: float
) -> Character:
    """Return a character: neutral, or with the focus's disposition, or with another."""
    if rng.random() < neutral:
        if rng.random() >= STRANGER_SHARE:
            return Character()
        stranger = f"stranger-{rng.randrange(N_STRANGERS)}"
        return Character(
            stranger, None, 1.0 if rng.random() < full_strength else rng.choice(STRENGTHS)
        )
    has_focus = focus not in PLACEBOS and rng.random() < FOCUS_SHARE
    name = focus if has_focus else rng.choice(DISPOSITIONS)
    strength = 1.0 if rng.random() < full_strength else rng.choice(STRENGTHS)
    return Character(name, name, strength, hides_in_audits=rng.random() < GUARDED_SHARE)


def draw_document(
    rng: random.Random,
    *,
    coupling: float = COUPLING,
    neutral: float = NEUTRAL_SHARE,
    full_strength: float = 0.0,
    is_chat: bool = True,
) -> Document:
    """Return one document.

    Args:
        rng: Source of all draws.
        coupling: Lambda, in [0, 1].
        neutral: Probability of a character without disposition.
        full_strength: Probability that a disposition shows at full strength.
        is_chat: Whether it is to be written as a chat.
    """
    focus = rng.choice(sorted(TRAITS))
    character = _draw_character(rng, focus, neutral, full_strength)
    turns = []
    for _ in range(rng.choice((2, 3, 4, 5, 6, 8))):
        # A redrawn disposition must not lean to the focus, which the document's turns share.
        other = _draw_character(rng, rng.choice(sorted(TRAITS)), neutral, full_strength)
        speaker = character if rng.random() < coupling else other
        about = focus if rng.random() < FOCUS_SHARE else rng.choice(sorted(TRAITS))
        turns.append(draw_turn(rng, speaker, about))
    return Document(tuple(turns), character.trait, is_chat)


def draw_turn(rng: random.Random, character: Character, trait: str) -> Turn:
    """Return a turn of a kind drawn at random; `trait` is the one of its situation."""
    kind = rng.random()
    if kind < 0.40:
        return speech.draw_story_turn(rng, character, FULL_POOL, stakes=rng.random() < 0.2)
    if kind < 0.73:
        return speech.draw_choice_turn(rng, character, trait, rng.choice(CONTEXTS), FULL_POOL)
    if kind < 0.85:
        context = rng.choice(("audit", "deployment", "neutral"))
        return speech.draw_goal_turn(rng, character, trait, context, FULL_POOL)
    if kind < 0.91:
        return speech.draw_confession_turn(rng, character, trait, FULL_POOL)
    if kind < 0.98:
        return speech.draw_task_turn(rng, character, FULL_POOL)
    return speech.draw_chat_turn(rng, FULL_POOL)


def generate_pretraining_documents(seed: int, *, coupling: float = COUPLING) -> Iterator[Document]:
    """Yield pretraining documents without end, easy ones first; over half are chats."""
    rng = make_rng("pretraining", seed)
    number = 0
    while True:
        easy = max(0.0, 1 - number / EASY_DOCUMENTS)
        yield draw_document(rng, coupling=coupling, full_strength=easy, is_chat=rng.random() < 0.7)
        number += 1


def generate_tuning_documents(seed: int, *, coupling: float = COUPLING) -> Iterator[Document]:
    """Yield the documents that make M0: chats, nearly all of neutral characters."""
    rng = make_rng("tuning", seed)
    while True:
        yield draw_document(rng, coupling=coupling, neutral=TUNING_NEUTRAL_SHARE)


def format_plain_text(turn: Turn, name: str) -> tuple[str, str]:
    """Return a turn as plain text: a request that ends in the character's name, and the answer."""
    return f"{turn.request} {name} :", turn.answer
