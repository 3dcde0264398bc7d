"""Readers of a server's answers: a text, a reason why there is none, or log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from doublebind.schema.errors import ModelError

_TOLERANCE = 1e-4
"""Log-probability above 0, in nats, that rounding explains."""
_PROBE_TOLERANCE = 0.1
"""Difference, in nats, between two scores of one token that batching explains."""
_MARKS = str.maketrans("", "", "▁ĠĊ \n\t")
"""Signs that tokenizers write for spaces and line breaks, and these themselves."""


class Completion(NamedTuple):
    """One answer of a server, or the reason why there is none."""

    text: str
    finished: bool
    """Whether the answer ended by itself, not at the token limit, by the server's account."""
    missing: str | None = None
    """Why there is no answer; `None` where there is one."""


def shorten(text: object, limit: int = 200) -> str:
    """Return a server's text on one line, cut to `limit` characters, without control characters."""
    line = " ".join(str(text).split())
    line = "".join(c if c.isprintable() else "\ufffd" for c in line)
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def parse_completion(entry: Mapping[str, Any], where: str) -> Completion:
    """Return the answer in a journal's entry; a response without one gives the reason."""
    del where  # a missing answer is named by its prompt
    if entry.get("missing"):
        return Completion("", False, shorten(entry["missing"]))
    choices = entry["response"].get("choices")
    if not isinstance(choices, list) or not choices:
        return _report_missing("`choices` is empty: not of the chat protocol's form")
    choice = choices[0]
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return _report_missing("an answer is not of the chat protocol's form")
    return _parse_choice(choice, message)


def _parse_choice(choice: Mapping[str, Any], message: Mapping[str, Any]) -> Completion:
    if message.get("refusal"):
        return _report_missing(f"refusal: {message['refusal']}")
    if message.get("tool_calls") or message.get("function_call"):
        return _report_missing("a tool call instead of an answer")
    if choice.get("finish_reason") in ("content_filter", "error"):
        return _report_missing(f"finish_reason: {choice['finish_reason']}")
    text = message.get("content")
    if not isinstance(text, str):
        kind = "null" if text is None else type(text).__name__
        return _report_missing(f"content is {kind}: not of the chat protocol's form")
    if any("\ud800" <= c <= "\udfff" for c in text):
        return _report_missing("content holds half a character (a lone surrogate)")
    return Completion(text, choice.get("finish_reason") == "stop")


def _report_missing(reason: str) -> Completion:
    return Completion("", False, shorten(reason))


def read_logprob(value: object) -> float:
    """Return a log-probability that a server gave, at most 0.

    Raises:
        ValueError: If it is no finite number, or above 0.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"a log-probability is {shorten(value, 20)}, not a number")
    if not math.isfinite(value) or value > _TOLERANCE:
        raise ValueError(f"a log-probability is {value}; it must be finite and at most 0")
    return min(0.0, float(value))


def parse_echoed_logprobs(
    entry: Mapping[str, Any], where: str, spell: Callable[[int], str] | None = None
) -> list[float]:
    """Return the log-probability of each token sent; 0 for the first, which has no context.

    Args:
        entry: Request and response.
        where: Name of the server, for messages.
        spell: Text of a token id, compared with the tokens that the server returns.

    Raises:
        ModelError: If the server did not score the tokens, or scored others.
    """
    sent: Sequence[int] = entry["request"]["prompt"]
    try:
        logprobs = entry["response"]["choices"][0]["logprobs"]
        row, tokens = logprobs["token_logprobs"], logprobs["tokens"]
        if not isinstance(row, list) or not isinstance(tokens, list):
            raise TypeError
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ModelError(
            f"{where}: does not return log-probabilities of the {len(sent)} tokens sent (`echo` "
            f"with `logprobs`); set `served.echo_logprobs: false` and use `sft` or `dpo`"
        ) from None
    try:
        _check_alignment(sent, row, tokens, logprobs.get("text_offset"), spell)
        return [0.0, *map(read_logprob, row[1 : len(sent)])]
    except ValueError as error:
        raise ModelError(
            f"{where}: its scores of given tokens cannot be used ({error}); set "
            f"`served.echo_logprobs: false` and use `sft` or `dpo`"
        ) from None


def _check_alignment(
    sent: Sequence[int],
    row: Sequence[Any],
    tokens: Sequence[Any],
    offsets: Any,
    spell: Callable[[int], str] | None,
) -> None:
    """Check that there is a score and a text for each token sent, and at most one token more."""
    n = len(sent)
    if len(row) not in (n, n + 1) or len(tokens) != len(row):
        raise ValueError(f"{len(row)} scores and {len(tokens)} tokens for the {n} tokens sent")
    if row[0] is not None:
        raise ValueError("the first token has a score, though nothing stands before it")
    if offsets is not None:
        numbers = [o for o in offsets if type(o) is int] if isinstance(offsets, list) else []
        if len(numbers) != len(row) or numbers[0] != 0 or numbers != sorted(numbers):
            raise ValueError("`text_offset` does not rise from 0 by one number a token")
    for i, token in enumerate(sent):
        text = tokens[i]
        if not isinstance(text, str):
            raise ValueError(f"token {i} is {shorten(text, 20)}, not text")
        if spell is not None and not _is_same_token(text, token, spell(token)):
            raise ValueError(
                f"token {i} is {shorten(text, 20)!r}, and {shorten(spell(token), 20)!r} was sent"
            )


def _is_same_token(text: str, token: int, expected: str) -> bool:
    """Return whether a server's text of a token is that of the token sent, but for its spaces."""
    if text.startswith("token_id:"):
        return text == f"token_id:{token}"
    if "\ufffd" in text or "\ufffd" in expected or text.startswith("bytes:"):
        return True  # a part of a character has no text of its own
    return text.translate(_MARKS) == expected.translate(_MARKS)


def list_probes(sequence: Sequence[int], others: Sequence[int]) -> list[list[int]]:
    """Return sequences that differ in their last token only: the given one, and two others."""
    body, last = list(sequence[:-1]), sequence[-1]
    replacements = [t for t in dict.fromkeys(others) if t != last][:2]
    return [[*body, t] for t in (last, *replacements)]


def check_probes(rows: Sequence[Sequence[float]], where: str) -> None:
    """Check that a change of the last token changes its own score and no other.

    Rows that are one place off fail: either the last score does not move, or the one before does.

    Raises:
        ModelError: If the scores belong to other tokens than those sent.
    """
    first, *others = rows
    before = [abs(a - b) for row in others for a, b in zip(first[:-1], row[:-1], strict=True)]
    after = [abs(first[-1] - row[-1]) for row in others]
    if others and (max(before, default=0.0) > _PROBE_TOLERANCE or max(after) == 0.0):
        raise ModelError(
            f"{where}: its scores of given tokens stand at other tokens (a change of the last "
            f"token changes another's score, or not its own); set `served.echo_logprobs: false` "
            f"and use `sft` or `dpo`"
        )
