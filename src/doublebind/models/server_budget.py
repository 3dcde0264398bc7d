"""Budget of a served model: tokens and money of all tries, answered, failed and in flight."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from doublebind.models.answer_journal import Journal
from doublebind.models.http_client import HttpClient, NoAnswer, RequestRefused, Temporary
from doublebind.models.token_counts import count_tokens, most_tokens


class Budget:
    """Limits of tokens and money, for tries answered, failed and in flight together."""

    def __init__(self, client: HttpClient, journal: Journal) -> None:
        """Count from what is in the journal."""
        self.client, self.journal, self.lock = client, journal, threading.Lock()
        self.in_flight: list[tuple[int, int]] = []

    @property
    def is_limited(self) -> bool:
        """Whether there is a limit."""
        return self.client.limits.max_tokens is not None or self.client.limits.max_cost is not None

    @contextlib.contextmanager
    def open(self) -> Iterator[Callable[[Mapping[str, Any]], AbstractContextManager[None]]]:
        """Yield the context of the tries of one request; release what they reserve at the end."""
        reserved: list[tuple[int, int]] = []

        @contextlib.contextmanager
        def attempt(body: Mapping[str, Any]) -> Iterator[None]:
            most = most_tokens(body)
            with self.lock, self.journal.lock:
                self._check(most)
                self.in_flight.append(most)
            reserved.append(most)
            try:
                yield
            except (Temporary, NoAnswer) as error:
                if self.is_limited and (tokens := _count_failed_try(error, most)) != (0, 0):
                    self.journal.add_failed_try(tokens)
                self._release(reserved)
                raise

        try:
            yield attempt
        finally:
            self._release(reserved)

    def _release(self, reserved: list[tuple[int, int]]) -> None:
        with self.lock:
            for most in reserved:
                self.in_flight.remove(most)
        reserved.clear()

    def _check(self, most: tuple[int, int]) -> None:
        """Refuse a try whose most is more than is left.

        Raises:
            RequestRefused: If it is.
        """
        limits, journal = self.client.limits, self.journal
        spent = [count_tokens(entry) for entry in journal.entries.values()]
        parts = [*spent, *journal.failed_tries, *self.in_flight, most]
        tokens = (sum(p[0] for p in parts), sum(p[1] for p in parts))
        over = None
        if limits.max_tokens is not None and sum(tokens) > limits.max_tokens:
            over = f"`served.max_tokens`: {limits.max_tokens}"
        cost = limits.cost(*tokens)
        if limits.max_cost is not None and cost is not None and cost > limits.max_cost:
            over = f"`served.max_cost`: {limits.max_cost:g}"
        if over:
            failed = len(journal.failed_tries)
            tries = f" and {failed} tries without one" if failed else ""
            raise RequestRefused(
                f"{self.client.where}: {over} is spent after {len(spent)} answers{tries}, which "
                f"are kept; raise it and rerun to go on",
                200,
            )


def _count_failed_try(error: Temporary | NoAnswer, most: tuple[int, int]) -> tuple[int, int]:
    """Return the (prompt, completion) tokens that a failed try may have cost.

    Nothing where no server was reached; the prompt alone where the server refused by its status;
    else, as after a timeout, all.
    """
    if isinstance(error, Temporary) and not error.was_sent:
        return 0, 0
    return (most[0], 0) if 400 <= error.status < 500 else most
