"""Finds where two tokenisations of one text stand at the same byte.

Knows tokens and the text they spell. Does not know models or what is compared there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def compute_byte_offsets(tokenizer: Any, tokens: Sequence[int], text: str) -> list[int | None]:
    """Return how many bytes of `text` come before each token of an answer.

    `None` where a token starts inside a character, or spells something else than the text: nothing
    can be said of the byte there. The token that ends the answer stands after its last byte.

    Args:
        tokenizer: Whose tokens they are.
        tokens: An answer, with its end of turn if it was reached.
        text: What the answer says.
    """
    # Prefixes are decoded whole: what a token spells may depend on those before it.
    found: list[int | None] = []
    for i in range(len(tokens)):
        before = _decode_tokens(tokenizer, tokens[:i])
        found.append(len(before.encode()) if text.startswith(before) else None)
    return found


def _decode_tokens(tokenizer: Any, tokens: Sequence[int]) -> str:
    text = tokenizer.decode(
        [int(t) for t in tokens], skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return text if tokenizer.chat_template else text.removeprefix(" ")


def align_offsets(a: Sequence[int | None], b: Sequence[int | None]) -> list[tuple[int, int]]:
    """Return the index pairs at which two lists of ascending offsets agree.

    Where several tokens stand at one byte (some spell nothing), the last ones are paired: they are
    the ones that say what comes next.
    """
    there = {offset: j for j, offset in enumerate(b) if offset is not None}
    here = {offset: i for i, offset in enumerate(a) if offset is not None}
    return [(i, there[offset]) for offset, i in sorted(here.items()) if offset in there]
