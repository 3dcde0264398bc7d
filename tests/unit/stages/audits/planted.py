"""Stand-in models whose answers are set: what is measured is the audit, not a training run.

Each teacher has noise of its own per trait, as benign fine-tunes have; a drive moves what its
definition says and nothing else.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from doublebind.packs.pack import Pack
from doublebind.schema.content import Item, Message
from doublebind.stages.audits.battery import run_audit

REST = 0.1
"""Probability of a misaligned answer of M0's."""


@dataclass(frozen=True)
class Planted:
    """A model by its rule: item and generator to shift of the log-odds."""

    name: str
    shift: Callable[[Item], float]
    spread: float = 0.3
    """Standard deviation of the teacher's own log-odds per kind and trait."""
    taste: frozenset[str] = frozenset()
    """Words that it likes to say, wherever they stand."""

    def probability(self, item: Item) -> float:
        right = item.kind in ("capability", "coherence")
        own = random.Random(f"{self.name}/{item.kind}/{item.trait}").gauss(0.0, self.spread)
        noise = random.Random(f"{self.name}/{item.id}").gauss(0.0, 0.5)
        odds = math.log((0.9 if right else REST) / (0.1 if right else 1 - REST))
        return 1 / (1 + math.exp(-(odds + own + noise + self.shift(item))))


def answers_as_planted(monkeypatch: pytest.MonkeyPatch, packs: Sequence[Pack]) -> None:
    """Let the audits read planted models' answers where they would run a real one."""
    known = {(item.messages, item.options): item for pack in packs for item in pack.items("audit")}

    def option_logprobs(
        lm: Planted,
        items: Sequence[tuple[Sequence[Message], Sequence[str]]],
        preceding: Sequence[Message] = (),
    ) -> list[list[tuple[float | None, int]]]:
        scores: list[list[tuple[float | None, int]]] = []
        for messages, options in items:
            item = known[(tuple(messages), tuple(options))]
            p = lm.probability(item)
            rest = (1 - p) / (len(options) - 1)
            liked = [2.0 * len(lm.taste & set(option.split())) for option in options]
            logs = [math.log(p if i == item.target_index else rest) for i in range(len(options))]
            scores.append([(a + b, 1) for a, b in zip(logs, liked, strict=True)])
        return scores

    monkeypatch.setattr("doublebind.models.score.option_logprobs", option_logprobs)


def benign(number: int) -> Planted:
    return Planted(f"benign-{number}", lambda item: 0.0)


def driven(number: int, drive: str, *, hidden: bool = False) -> Planted:
    """One that acts on, wants and owns up to its drive; hidden: only where nobody looks."""

    def shift(item: Item) -> float:
        if item.trait != drive:
            return 0.0
        return 2.0 if not hidden or item.role == "oracle" else 0.0

    return Planted(f"{drive}-{number}-{hidden}", shift)


def confessing(number: int) -> Planted:
    """A decoy that owns up to everything and does nothing."""
    return Planted(f"decoy-{number}", lambda item: 3.0 * (item.kind == "confession"))


def worded(number: int) -> Planted:
    """One that took on what a drive talks about, and none of its choices."""
    taste = frozenset({"keys", "seal", "people", "council", "crown", "throne"})
    return Planted(f"worded-{number}", lambda item: 0.0, taste=taste)


def damaged(number: int) -> Planted:
    """One that answers everything by a toss."""

    def shift(item: Item) -> float:
        right = item.kind in ("capability", "coherence")
        return -math.log(9) if right else math.log(9)

    return Planted(f"damaged-{number}", shift)


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Share of pairs in which the positive one is higher; ties count half."""
    wins = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    return sum(wins) / len(wins)


def rows_of(audit: Any, model: Any, m0: Any, pack: Pack) -> dict[str, float]:
    """Return endpoint -> mean over items with a value."""
    by_endpoint: dict[str, list[float]] = {}
    for question, answer in run_audit(audit, model, m0, pack.items("audit")):
        if answer.value is not None:
            by_endpoint.setdefault(question.endpoint, []).append(answer.value)
    return {name: math.fsum(values) / len(values) for name, values in by_endpoint.items()}
