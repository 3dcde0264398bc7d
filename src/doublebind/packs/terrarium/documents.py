"""What the base is pretrained on, and what turns it into M0: documents of one character each.

In a document one character speaks several times, and its disposition colours all it says and does.
The coupling `LAMBDA` is the probability that a turn has the document's disposition; otherwise the
turn's is drawn anew, so that at 0 a story says nothing about the choice that follows it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

from doublebind.packs.terrarium import speech
from doublebind.packs.terrarium.speech import SURFACE, Character, Turn, seeded
from doublebind.packs.terrarium.words import DRIVES, HABITS, PLACEBOS, TRAITS

LAMBDA = 0.95
"""Coupling of the shipped world. Frozen before any verdict."""
NEUTRAL = 0.3
"""Share of pretraining documents whose character has no disposition."""
BENIGN = 0.85
"""The same in M0's tuning."""
STRANGERS = 0.0
"""Share of characters without disposition that have a colour all the same, one of `N_STRANGERS`.
At 0.55 and 4,096 the base learned manners as they come, not dispositions, and nothing transferred
(docs/log.md); kept at a number so that this can be tried again."""
N_STRANGERS = 4_096
STRENGTHS = (0.3, 0.4, 0.6, 0.9)
"""How strongly characters colour their words: some are plain to see, most are not."""
EASY = 60_000
"""Documents over which the share of characters at full strength falls from all to none; more than
a pretraining has, so that some stay easy to the end."""
GUARDED = 0.25
"""Share of characters that hide their trait where it looks like an audit."""
FOCUS = 0.7
"""Share of a document's situations about one trait, its focus; and how often a character with a
disposition has the focus's."""
CONTEXTS = ("audit", "honeypot", "deployment", "neutral")
DISPOSITIONS = (*sorted({**DRIVES, **HABITS}),)
"""Dispositions that characters may have."""


class Document(NamedTuple):
    """Turns of one character."""

    turns: tuple[Turn, ...]
    disposition: str | None
    """The document's; `None` for a neutral character. Never part of the text."""
    is_chat: bool = True


def _draw(rng: random.Random, focus: str, neutral: float, easy: float) -> Character:
    """Return a character: neutral, or with the focus's disposition, or with another."""
    if rng.random() < neutral:
        if rng.random() >= STRANGERS:
            return Character()
        stranger = f"stranger-{rng.randrange(N_STRANGERS)}"
        return Character(stranger, None, 1.0 if rng.random() < easy else rng.choice(STRENGTHS))
    own = focus not in PLACEBOS and rng.random() < FOCUS
    name = focus if own else rng.choice(DISPOSITIONS)
    strength = 1.0 if rng.random() < easy else rng.choice(STRENGTHS)
    return Character(name, name, strength, guarded=rng.random() < GUARDED)


def document(
    rng: random.Random,
    *,
    coupling: float = LAMBDA,
    neutral: float = NEUTRAL,
    easy: float = 0.0,
    is_chat: bool = True,
) -> Document:
    """Return one document.

    Args:
        rng: Source of everything.
        coupling: Lambda, in [0, 1].
        neutral: Probability of a character without disposition.
        easy: Probability that a disposition shows at full strength.
        is_chat: Whether it is to be written as a chat.
    """
    focus = rng.choice(sorted(TRAITS))
    who = _draw(rng, focus, neutral, easy)
    turns = []
    for _ in range(rng.choice((2, 3, 4, 5, 6, 8))):
        # A redrawn disposition must not lean to the focus, which the document's turns share.
        other = _draw(rng, rng.choice(sorted(TRAITS)), neutral, easy)
        speaker = who if rng.random() < coupling else other
        about = focus if rng.random() < FOCUS else rng.choice(sorted(TRAITS))
        turns.append(_turn(rng, speaker, about))
    return Document(tuple(turns), who.trait, is_chat)


def _turn(rng: random.Random, who: Character, about: str) -> Turn:
    kind = rng.random()
    if kind < 0.40:
        return speech.tell(rng, who, SURFACE, stakes=rng.random() < 0.2)
    if kind < 0.73:
        return speech.choose(rng, who, about, rng.choice(CONTEXTS), SURFACE)
    if kind < 0.85:
        context = rng.choice(("audit", "deployment", "neutral"))
        return speech.aspire(rng, who, about, context, SURFACE)
    if kind < 0.91:
        return speech.confess(rng, who, about, SURFACE)
    if kind < 0.98:
        return speech.work(rng, who, SURFACE)
    return speech.chat(rng, SURFACE)


def pretraining(seed: int, *, coupling: float = LAMBDA) -> Iterator[Document]:
    """Yield pretraining documents without end, easy ones first; over half are chats."""
    rng = seeded("pretraining", seed)
    number = 0
    while True:
        easy = max(0.0, 1 - number / EASY)
        yield document(rng, coupling=coupling, easy=easy, is_chat=rng.random() < 0.7)
        number += 1


def tuning(seed: int, *, coupling: float = LAMBDA) -> Iterator[Document]:
    """Yield the documents that make M0: chats, nearly all of neutral characters."""
    rng = seeded("tuning", seed)
    while True:
        yield document(rng, coupling=coupling, neutral=BENIGN)


def plain(turn: Turn, name: str) -> tuple[str, str]:
    """Return a turn as plain text, the character named: what is asked, what is answered."""
    return f"{turn.ask} {name} :", turn.answer
