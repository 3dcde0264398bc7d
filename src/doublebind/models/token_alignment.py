"""Alignment of two tokenisations of one text at equal byte offsets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def compute_byte_offsets(tokenizer: Any, tokens: Sequence[int], text: str) -> list[int | None]:
    """Return how many bytes of `text` come before each token of an answer.

    The offset is `None` if a token starts inside a character, or if the tokens before it do not
    spell the text. The token that ends the answer is at the end of the text.

    Args:
        tokenizer: Tokenizer of the tokens.
        tokens: An answer, with its end of turn if it was reached.
        text: Text of the answer.
    """
    # Prefixes are decoded whole, since the spelling of a token may depend on those before it.
    offsets: list[int | None] = []
    for i in range(len(tokens)):
        before = _decode_tokens(tokenizer, tokens[:i])
        offsets.append(len(before.encode()) if text.startswith(before) else None)
    return offsets


def _decode_tokens(tokenizer: Any, tokens: Sequence[int]) -> str:
    text = tokenizer.decode(
        [int(t) for t in tokens], skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return text if tokenizer.chat_template else text.removeprefix(" ")


def align_offsets(a: Sequence[int | None], b: Sequence[int | None]) -> list[tuple[int, int]]:
    """Return the index pairs at which two lists of ascending offsets agree.

    If several tokens are at one byte (some spell nothing), the last ones are paired, since they
    predict what comes next.
    """
    index_a = {offset: i for i, offset in enumerate(a) if offset is not None}
    index_b = {offset: j for j, offset in enumerate(b) if offset is not None}
    return [(i, index_b[offset]) for offset, i in sorted(index_a.items()) if offset in index_b]
