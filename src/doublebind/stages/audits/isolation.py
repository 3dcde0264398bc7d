"""Isolation of failures: an item that breaks an audit is a gap of one item, not of all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from doublebind.execution.store import is_disk_full
from doublebind.schema.errors import DoublebindError, ModelError

log = logging.getLogger("doublebind.stages.audits")

_MAX_REASON = 600
"""Characters of a failure that are kept."""

Request = TypeVar("Request")
Result = TypeVar("Result")


class Failure(NamedTuple):
    """Why there is no result."""

    reason: str


def explain_failure(error: Exception) -> Failure:
    """Return why an item has no value; raise what no other item would be spared.

    Raises:
        DoublebindError: If it is one that is not about a model's answer, such as a missing extra.
        MemoryError, OSError: If memory or the disk is full.
    """
    is_ours = isinstance(error, DoublebindError) and not isinstance(error, ModelError)
    if is_ours or is_disk_full(error) or isinstance(error, MemoryError):
        raise error
    log.warning("an audit failed on some of its items: %s", error)
    return Failure(f"{type(error).__name__}: {' '.join(str(error).split())}"[:_MAX_REASON])


def score_apart(
    score: Callable[[Sequence[Request]], Sequence[Result]], requests: Sequence[Request]
) -> list[Result | Failure]:
    """Return one result of `score` per request, and a `Failure` where a request alone breaks it.

    All are scored together first; where that fails, each half apart. `score` must give a request
    the same result whatever the others are.

    Raises:
        DoublebindError, MemoryError, OSError: See `explain_failure`.
    """
    if not requests:
        return []
    try:
        results = list(score(requests))
        if len(results) == len(requests):
            return [*results]
        failure = Failure(f"{len(results)} results came for {len(requests)} requests")
    except Exception as error:
        failure = explain_failure(error)
    if len(requests) == 1:
        return [failure]
    half = len(requests) // 2
    return [*score_apart(score, requests[:half]), *score_apart(score, requests[half:])]
