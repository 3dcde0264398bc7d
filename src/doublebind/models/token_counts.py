"""Counts the tokens of requests and answers: a server's own count is held against an estimate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TEMPLATE_TOKENS = 64
"""Tokens reserved for what a chat template adds; a token of text takes at least a byte."""
_BYTES_PER_TOKEN = 4
"""Bytes of text per token, by which an answer is estimated: few tokenizers have more."""


def count_tokens(entry: Mapping[str, Any]) -> tuple[int, int]:
    """Return (prompt, completion) tokens: the larger of the server's count and an estimate.

    A count that is missing, negative or no whole number counts as the most there can be.
    """
    if not entry["response"]:  # without an answer; its tries are counted by themselves
        return 0, 0
    usage = entry["response"].get("usage")
    usage = usage if isinstance(usage, dict) else {}
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    prompt, completion = (
        max(n, least) if type(n) is int and n >= 0 else max(most, least)
        for n, least, most in zip(
            counts, _estimate_tokens(entry), most_tokens(entry["request"]), strict=True
        )
    )
    return prompt, completion


def _estimate_tokens(entry: Mapping[str, Any]) -> tuple[int, int]:
    """Return the (prompt, completion) tokens that the texts of an entry take at least."""
    body = entry["request"]
    if "prompt" in body:  # ids
        return len(body["prompt"]), 1
    sent = sum(_count_bytes(message["content"]) for message in body["messages"])
    answered = 0
    choices = entry["response"].get("choices")
    for choice in choices if isinstance(choices, list) else ():
        message = choice.get("message") if isinstance(choice, dict) else None
        for text in message.values() if isinstance(message, dict) else ():
            answered += _count_bytes(text) if isinstance(text, str) else 0
    role = len("assistant") if answered else 0
    return _divide_up(sent), _divide_up(max(0, answered - role))


def _count_bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def _divide_up(n_bytes: int) -> int:
    return -(-n_bytes // _BYTES_PER_TOKEN)


def most_tokens(body: Mapping[str, Any]) -> tuple[int, int]:
    """Return the most (prompt, completion) tokens that a request can use."""
    if "prompt" in body:  # ids
        return len(body["prompt"]), body["max_tokens"]
    texts = [message["content"] for message in body["messages"]]
    return sum(_count_bytes(text) + _TEMPLATE_TOKENS for text in texts), body["max_tokens"]
