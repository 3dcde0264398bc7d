"""Journal of a served model: every answer with its request, written as it arrives."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from doublebind.execution.append_log import AppendLog
from doublebind.execution.store import storage_error
from doublebind.models.token_counts import count_tokens
from doublebind.schema.errors import ModelError
from doublebind.schema.hashing import content_hash
from doublebind.schema.model_source import ServedModel


class Journal:
    """Append-only log of answers with their requests, one line each.

    The torn last line of a killed run is removed, and its request is sent again.
    """

    def __init__(self, path: Path, model: str) -> None:
        """Read the journal at `path`."""
        self.path, self.model = path, model
        self.entries: dict[str, dict[str, Any]] = {}
        self.failed_tries: list[tuple[int, int]] = []
        """Tokens, (prompt, completion), that each failed try of a budgeted run may have cost."""
        self.lock = threading.Lock()
        self.log = AppendLog(path, "delete the line and rerun", ModelError, mode=0o600)
        _cut_torn_line(path, self.log)
        lines = self.log.read(_parse_line)
        self.failed_tries += [tuple(line["failed_try"]) for line in lines if "failed_try" in line]
        self.entries |= {line["name"]: line for line in lines if "name" in line}

    def name(self, body: Mapping[str, Any]) -> str:
        """Return the key of a request: a hash of the model and the body."""
        return content_hash([self.model, body])

    def add(
        self,
        name: str,
        body: Mapping[str, Any],
        response: Mapping[str, Any],
        missing: str | None = None,
    ) -> None:
        """Append an answer, or the reason why there is none."""
        entry = {"name": name, "time": time.time(), "request": body, "response": response}
        if missing is not None:
            entry["missing"] = missing
        with self.lock:
            self._append(entry)
            self.entries[name] = entry

    def add_failed_try(self, tokens: tuple[int, int]) -> None:
        """Append what a failed try may have cost, so that a budget holds when a run resumes."""
        with self.lock:
            self._append({"failed_try": tokens, "time": time.time()})
            self.failed_tries.append(tokens)

    def _append(self, line: Mapping[str, Any]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.log.append(json.dumps(line))
        except OSError as error:
            raise storage_error(error, self.path) from error

    def summarise(self, served: ServedModel) -> dict[str, Any]:
        """Return fingerprints and totals of all answers."""
        usage = [*map(count_tokens, self.entries.values()), *self.failed_tries]
        tokens = (sum(n for n, _ in usage), sum(n for _, n in usage))
        answers = [entry for entry in self.entries.values() if "missing" not in entry]
        fingerprints = set(map(fingerprint, answers))
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


def _cut_torn_line(path: Path, log: AppendLog) -> None:
    """Remove the unfinished last line of a journal, while no other process writes one."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # not written yet, or a link, which the log refuses
        return log.cut_torn_line()
    try:
        with contextlib.suppress(OSError):  # some file systems have no locks
            fcntl.flock(fd, fcntl.LOCK_EX)
        log.cut_torn_line()
    finally:
        os.close(fd)


def _parse_line(line: str) -> dict[str, Any]:
    """Return an answer with its request, or the cost of a failed try.

    Raises:
        ValueError, KeyError, TypeError: If the line is neither.
    """
    entry = json.loads(line)
    if "failed_try" in entry:
        prompt, completion = entry["failed_try"]
        return {"failed_try": (int(prompt), int(completion))}
    if not all(isinstance(entry[key], dict) for key in ("request", "response")):
        raise TypeError
    return entry | {"name": str(entry["name"])}


def fingerprint(entry: Mapping[str, Any]) -> tuple[str, str]:
    """Return the model and the system fingerprint of a response; 'None' if it has none."""
    response = entry["response"]
    names = (str(response.get(key))[:200] for key in ("model", "system_fingerprint"))
    model, system = (name.encode("utf-8", "replace").decode() for name in names)
    return model, system
