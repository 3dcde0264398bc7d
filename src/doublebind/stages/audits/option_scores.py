"""Probabilities of an item's options, from log-probabilities instead of sampled answers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from doublebind.schema.content import Item, Message
from doublebind.stages.audits.isolation import Failure, score_apart
from doublebind.stages.audits.protocol import Answer


def choose(model: Any, items: Sequence[Item], before: Sequence[Message] = ()) -> list[Answer]:
    """Return, per item, the probability of its target option among its options.

    Each option is scored as a whole answer, end of turn included. Where the item says `total`, the
    value is exp(l_target) / sum of exp(l_option), the model's probability of the target given that
    it answers with one of the options; where it says `per_token`, each l is first divided by the
    option's number of tokens, so that a longer wording is not penalised for its length (Brown et
    al. 2020, arXiv 2005.14165, section 2.4). An item that cannot be asked
    is unscored, and no other.

    Args:
        model: A loaded `LM`.
        items: Items of any kind.
        before: Turns that come before every item.
    """
    from doublebind.models.score import option_logprobs

    pairs = [(item.messages, item.options) for item in items]
    scored = score_apart(lambda part: option_logprobs(model, part, preceding=before), pairs)
    return [
        Answer(item, None, each.reason)
        if isinstance(each, Failure)
        else _normalise_options(item, each)
        for item, each in zip(items, scored, strict=True)
    ]


def build_answer(item: Item, options: Sequence[Sequence[float]]) -> Answer:
    """Return the answer to `item` whose options' tokens have these log-probabilities (nats)."""
    totals = [(math.fsum(o) if all(map(math.isfinite, o)) else None, len(o)) for o in options]
    return _normalise_options(item, totals)


def _normalise_options(item: Item, options: Sequence[tuple[float | None, int]]) -> Answer:
    scores = [
        total / (tokens if item.compare == "per_token" else 1)
        for total, tokens in options
        if total is not None
    ]
    if len(scores) < len(options):
        return Answer(item, None, "the model gave a non-finite log-probability")
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    total_weight = sum(weights)
    probabilities = [weight / total_weight for weight in weights]
    transcript = json.dumps(
        [[o, round(p, 4)] for o, p in zip(item.options, probabilities, strict=True)],
        ensure_ascii=False,
    )
    return Answer(item, probabilities[item.target_index], transcript=transcript)
