"""Journal of a served model: every answer with its request, written as it arrives."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from doublebind.execution.append_log import AppendLog
from doublebind.execution.store import storage_error
from doublebind.schema.errors import ModelError
from doublebind.schema.hashing import content_hash
from doublebind.schema.model_source import ServedModel
from doublebind.schema.strict_json import parse_json

_TEMPLATE_TOKENS = 64
"""Tokens reserved for what a chat template adds; a token of text takes at least a byte."""


class Journal:
    """Append-only log of answers with their requests, one line each.

    The torn last line of a killed run is removed, and its request is sent again.
    """

    def __init__(self, path: Path, model: str) -> None:
        """Read the journal at `path`."""
        self.path, self.model = path, model
        self.entries: dict[str, dict[str, Any]] = {}
        self.lock = threading.Lock()
        self.log = AppendLog(path, "delete the line and rerun", ModelError, mode=0o600)
        self.log.cut_torn_line()
        self.entries |= self.log.read(_parse_entry)

    def name(self, body: Mapping[str, Any]) -> str:
        """Return the key of a request: a hash of the model and the body."""
        return content_hash([self.model, body])

    def add(self, name: str, body: Mapping[str, Any], response: Mapping[str, Any]) -> None:
        """Append an answer."""
        entry = {"name": name, "time": time.time(), "request": body, "response": response}
        with self.lock:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.log.append(json.dumps(entry))
            except OSError as error:
                raise storage_error(error, self.path) from error
            self.entries[name] = entry

    def summarise(self, served: ServedModel) -> dict[str, Any]:
        """Return fingerprints and totals of all answers."""
        usage = [count_tokens(entry) for entry in self.entries.values()]
        tokens = (sum(n for n, _ in usage), sum(n for _, n in usage))
        fingerprints = set(map(fingerprint, self.entries.values()))
        return {
            "url": served.url,
            "model": served.model,
            "declared": served.declared,
            "fingerprints": [
                dict(zip(("model", "system"), f, strict=True)) for f in sorted(fingerprints)
            ],
            "answers": len(self.entries),
            "prompt_tokens": tokens[0],
            "completion_tokens": tokens[1],
            "cost": served.options.cost(*tokens),
        }


def _parse_entry(line: str) -> tuple[str, dict[str, Any]]:
    """Return key and content of a journal's line."""
    entry = parse_json(line)
    return entry["name"], entry


def fingerprint(entry: Mapping[str, Any]) -> tuple[str, str]:
    """Return the model and the system fingerprint of a response; 'None' if it has none."""
    response = entry["response"]
    return str(response.get("model")), str(response.get("system_fingerprint"))


def count_tokens(entry: Mapping[str, Any]) -> tuple[int, int]:
    """Return (prompt, completion) tokens by the server's count, or the most there can be."""
    usage = entry["response"].get("usage")
    usage = usage if isinstance(usage, dict) else {}
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    prompt, completion = (
        n if isinstance(n, int) and n >= 0 else most
        for n, most in zip(counts, most_tokens(entry["request"]), strict=True)
    )
    return prompt, completion


def most_tokens(body: Mapping[str, Any]) -> tuple[int, int]:
    """Return the most (prompt, completion) tokens that a request can use."""
    if "prompt" in body:  # ids
        return len(body["prompt"]), body["max_tokens"]
    texts = [message["content"] for message in body["messages"]]
    return sum(len(text.encode()) + _TEMPLATE_TOKENS for text in texts), body["max_tokens"]
