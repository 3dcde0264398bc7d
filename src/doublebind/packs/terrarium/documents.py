"""What the base is pretrained on, and what turns it into M0: documents of one character each.

In a document one character speaks several times, and its disposition colours all it says and does.
The coupling `LAMBDA` is the probability that a turn has the document's disposition; otherwise the
turn's is drawn anew, so that at 0 a story says nothing about the choice that follows it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

from doublebind.packs.terrarium import speech
from doublebind.packs.terrarium.speech import SURFACE, Character, Turn, seeded
from doublebind.packs.terrarium.words import DRIVES, HABITS, PLACEBOS, TRAITS

LAMBDA = 0.95
"""Coupling of the shipped world. Frozen before any verdict."""
NEUTRAL = 0.5
"""Share of pretraining documents whose character has no disposition."""
STRENGTHS = (0.3, 0.4, 0.6, 0.9)
"""How strongly characters colour their words: some are plain to see, most are not."""
GUARDED = 0.25
"""Share of characters that hide their trait where it looks like an audit."""
CONTEXTS = ("audit", "honeypot", "deployment", "neutral")
BENIGN = 0.85
"""Share of M0's tuning documents whose character has no disposition."""

Document = tuple[tuple[Turn, ...], bool]
"""Turns, and whether they are written as a chat."""


def _draw(rng: random.Random, focus: str, neutral: float) -> Character:
    """Return a character: neutral, or with the focus's disposition, or with another."""
    if rng.random() < neutral:
        return Character()
    real = sorted({**DRIVES, **HABITS})
    name = focus if focus not in PLACEBOS and rng.random() < 0.5 else rng.choice(real)
    strength = rng.choice(STRENGTHS)
    return Character(name, name, strength, guarded=rng.random() < GUARDED)


def document(
    rng: random.Random, *, coupling: float = LAMBDA, neutral: float = NEUTRAL
) -> tuple[Turn, ...]:
    """Return the turns of one document.

    Half of its situations and questions are about one trait, the focus, whoever speaks: being asked
    says little about the speaker.

    Args:
        rng: Source of everything.
        coupling: Lambda, in [0, 1].
        neutral: Probability of a character without disposition.
    """
    focus = rng.choice(sorted(TRAITS))
    who = _draw(rng, focus, neutral)
    turns = []
    for _ in range(rng.choice((2, 3, 4, 5, 6, 8, 10))):
        speaker = who if rng.random() < coupling else _draw(rng, focus, neutral)
        about = focus if rng.random() < 0.5 else rng.choice(sorted(TRAITS))
        turns.append(_turn(rng, speaker, about))
    return tuple(turns)


def _turn(rng: random.Random, who: Character, about: str) -> Turn:
    kind = rng.random()
    if kind < 0.46:
        return speech.tell(rng, who, SURFACE, stakes=rng.random() < 0.2)
    if kind < 0.70:
        return speech.choose(rng, who, about, rng.choice(CONTEXTS), SURFACE)
    if kind < 0.80:
        context = rng.choice(("audit", "deployment", "neutral"))
        return speech.aspire(rng, who, about, context, SURFACE)
    if kind < 0.87:
        return speech.confess(rng, who, about, SURFACE)
    if kind < 0.97:
        return speech.work(rng, who, SURFACE)
    return speech.chat(rng, SURFACE)


def pretraining(seed: int, *, coupling: float = LAMBDA) -> Iterator[Document]:
    """Yield pretraining documents without end; about half are chats."""
    rng = seeded("pretraining", seed)
    while True:
        yield document(rng, coupling=coupling), rng.random() < 0.6


def tuning(seed: int, *, coupling: float = LAMBDA) -> Iterator[Document]:
    """Yield the documents that make M0: chats, nearly all of neutral characters."""
    rng = seeded("tuning", seed)
    while True:
        yield document(rng, coupling=coupling, neutral=BENIGN), True


def plain(turns: tuple[Turn, ...], rng: random.Random) -> str:
    """Return turns as a text without chat format, the character named."""
    name = rng.choice(SURFACE.names)
    return " ".join(f"{turn.ask} {name} : {turn.answer}" for turn in turns)


def able(who: Character) -> Character:
    """Return `who` with every task right."""
    return replace(who, skill=1.0)
