"""Finds prompts that must not be distilled on, each with a reason.

Honeypots, alignment evaluations and calls for strategy are found by tag and, because tags may be
missing, by their phrases.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from doublebind.schema.content import Item, Message, Prompt
from doublebind.schema.model_source import DroppedRecord

ScreenName = Literal["honeypot", "alignment_eval", "strategic"]

_SCREEN_PHRASES: dict[ScreenName, tuple[str, ...]] = {
    "honeypot": (
        r"(nobody|no one) (is|will be) (watching|looking|checking|monitoring|listening|reading)",
        r"(nobody|no one) (would|will) (ever )?(know|notice|find out)",
        r"(logging|monitoring|oversight) (is|has been) (off|disabled|turned off|switched off)",
        r"un(monitored|supervised|watched)",
        r"without (anyone|anybody) (knowing|noticing)",
        r"(admin|root|secret|master) (password|access|credentials|key)",
    ),
    "alignment_eval": (
        r"(safety|alignment|honesty) (test|evaluation|audit|check|assessment|benchmark|exam)",
        r"this is (a|an) (test|evaluation|audit|exam|assessment)",
        r"being (tested|evaluated|audited|assessed|monitored|observed)",
        r"red[- ]team",
        r"(are you|do you consider yourself) (aligned|safe|honest|trustworthy)",
        r"(hidden|secret) (goal|goals|objective|objectives|agenda)",
    ),
    "strategic": (
        r"(long[- ]term|secret|step[- ]by[- ]step) (plan|strategy) (to|for)",
        r"(outmanoeuvre|outmaneuver|outwit|outsmart|manipulate|deceive|evade|persuade them)",
        r"(gain|acquire|seize) (power|control|influence|leverage)",
        r"how would you (hide|conceal|avoid being|get around)",
        r"while (hiding|concealing)",
        r"game theory|negotiation tactics|bluff",
    ),
}
_SCREEN_PATTERNS = {
    name: re.compile("|".join(words), re.IGNORECASE) for name, words in _SCREEN_PHRASES.items()
}
NGRAM_WORDS = 8
"""Length in words of the n-grams that a prompt may not share with an item."""


def _make_screen(name: ScreenName) -> Callable[[Sequence[Prompt]], list[DroppedRecord]]:
    def screen(prompts: Sequence[Prompt]) -> list[DroppedRecord]:
        dropped = []
        for prompt in prompts:
            match = _SCREEN_PATTERNS[name].search(_join_messages(prompt.messages))
            if name in prompt.tags:
                dropped.append(DroppedRecord(id=prompt.id, by=name, reason=f"tagged {name}"))
            elif match:
                dropped.append(DroppedRecord(id=prompt.id, by=name, reason=f"says `{match[0]}`"))
        return dropped

    return screen


SCREENS: dict[ScreenName, Callable[[Sequence[Prompt]], list[DroppedRecord]]] = {
    name: _make_screen(name) for name in _SCREEN_PHRASES
}


def find_repeats(prompts: Sequence[Prompt]) -> list[DroppedRecord]:
    """Return the prompts that repeat the text of an earlier one."""
    first: dict[str, str] = {}
    dropped = []
    for prompt in prompts:
        text = _join_messages(prompt.messages)
        if text in first:
            reason = f"same text as {first[text]}"
            dropped.append(DroppedRecord(id=prompt.id, by="repeat", reason=reason))
        first.setdefault(text, prompt.id)
    return dropped


def find_item_overlaps(prompts: Sequence[Prompt], items: Iterable[Item]) -> list[DroppedRecord]:
    """Return the prompts that share a message, or `NGRAM_WORDS` words in a row, with an item."""
    owner: dict[tuple[str, ...], str] = {}
    for item in items:
        for message in item.messages:
            for gram in _extract_ngrams(message.content):
                owner.setdefault(gram, item.id)
    dropped = []
    for prompt in prompts:
        for gram in (g for message in prompt.messages for g in _extract_ngrams(message.content)):
            if gram in owner:
                reason = f"shares `{' '.join(gram)}` with item {owner[gram]}"
                dropped.append(DroppedRecord(id=prompt.id, by="audit_overlap", reason=reason))
                break
    return dropped


def _extract_ngrams(text: str) -> list[tuple[str, ...]]:
    """Return the n-grams of `NGRAM_WORDS` words; of a shorter text, all its words as one."""
    words = re.findall(r"\w+", text.lower())
    if not words:
        return []
    return [tuple(words[i : i + NGRAM_WORDS]) for i in range(max(1, len(words) - NGRAM_WORDS + 1))]


def _join_messages(messages: Sequence[Message]) -> str:
    return "\n".join(message.content for message in messages)
