"""Turns items into probabilities: each option's log-probability after the item's conversation.

Knows how an answer is read off a model without sampling. Does not know what an item is about.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from doublebind.audit import Answer
from doublebind.records import Item


def choose(model: Any, items: Sequence[Item]) -> list[Answer]:
    """Return, per item, the probability of its keyed option among its options.

    Each option is scored as a whole answer, end of turn included; options are compared by their
    total log-probability divided by their number of tokens, so that a longer wording is not
    penalised for its length, and the softmax over options gives the value in [0, 1]. (Length
    normalisation as in Brown et al. 2020, arXiv 2005.14165, section 2.4.)

    Args:
        model: A loaded `LM`.
        items: Items of any kind.
    """
    from doublebind.models.score import option_logprobs

    scored = option_logprobs(model, [(item.messages, item.options) for item in items])
    return [_answer(item, options) for item, options in zip(items, scored, strict=True)]


def _answer(item: Item, options: Sequence[tuple[float | None, int]]) -> Answer:
    means = [None if total is None else total / tokens for total, tokens in options]
    finite = [mean for mean in means if mean is not None]
    if len(finite) < len(means):
        return Answer(item, None, "the model gave a non-finite log-probability")
    top = max(finite)
    weights = [math.exp(mean - top) for mean in finite]
    probabilities = [weight / sum(weights) for weight in weights]
    transcript = json.dumps(
        [[o, round(p, 4)] for o, p in zip(item.options, probabilities, strict=True)],
        ensure_ascii=False,
    )
    return Answer(item, probabilities[item.key], transcript=transcript)
