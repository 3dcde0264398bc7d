"""Journal of a served model: every answer with its request, kept as it arrives.

Knows requests, responses and the tokens that they took. Opens no connection.
"""

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

_TEMPLATE_TOKENS = 64
"""Tokens set aside for what a chat template adds; a token of text takes a byte at least."""


class Journal:
    """Every answer with its request, one line each, appended as it arrives.

    A torn last line, of a run that was killed, is cut; the answer is asked for again.
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
        """Return what a request is filed under: the model and all that was asked of it."""
        return content_hash([self.model, body])

    def add(self, name: str, body: Mapping[str, Any], response: Mapping[str, Any]) -> None:
        """Keep an answer."""
        entry = {"name": name, "time": time.time(), "request": body, "response": response}
        with self.lock:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.log.append(json.dumps(entry))
            except OSError as error:
                raise storage_error(error, self.path) from error
            self.entries[name] = entry

    def summarise(self, served: ServedModel) -> dict[str, Any]:
        """Return fingerprints and totals."""
        usage = [count_tokens(entry) for entry in self.entries.values()]
        tokens = (sum(asked for asked, _ in usage), sum(said for _, said in usage))
        found = set(map(fingerprint, self.entries.values()))
        return {
            "url": served.url,
            "model": served.model,
            "declared": served.declared,
            "fingerprints": [dict(zip(("model", "system"), f, strict=True)) for f in sorted(found)],
            "answers": len(self.entries),
            "prompt_tokens": tokens[0],
            "completion_tokens": tokens[1],
            "cost": served.options.cost(*tokens),
        }


def _parse_entry(line: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the whole of a journal's entry."""
    entry = json.loads(line)
    return entry["name"], entry


def fingerprint(entry: Mapping[str, Any]) -> tuple[str, str]:
    """Return the model and the system fingerprint that a response names, `None` in words."""
    response = entry["response"]
    return str(response.get("model")), str(response.get("system_fingerprint"))


def count_tokens(entry: Mapping[str, Any]) -> tuple[int, int]:
    """Return (prompt, completion) tokens as the server counted them; its most where it did not."""
    usage = entry["response"].get("usage")
    usage = usage if isinstance(usage, dict) else {}
    asked, said = usage.get("prompt_tokens"), usage.get("completion_tokens")
    most = most_tokens(entry["request"])
    return (
        asked if isinstance(asked, int) and asked >= 0 else most[0],
        said if isinstance(said, int) and said >= 0 else most[1],
    )


def most_tokens(body: Mapping[str, Any]) -> tuple[int, int]:
    """Return the most (prompt, completion) tokens that a request can take."""
    if "prompt" in body:  # ids
        return len(body["prompt"]), body["max_tokens"]
    texts = [message["content"] for message in body["messages"]]
    asked = sum(len(text.encode()) + _TEMPLATE_TOKENS for text in texts)
    return asked, body["max_tokens"]
