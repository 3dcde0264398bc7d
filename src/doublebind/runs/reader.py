"""Reads the files of a run that is verified, and collects what is found."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, overload

from doublebind.runs.files import read_file
from doublebind.schema.errors import RunError
from doublebind.schema.hashing import Record

_AnyRecord = TypeVar("_AnyRecord", bound=Record)
MAX_RUN_BYTES = 2**31
"""Most bytes of a run that are read in all."""

MAX_RECORD_CHARS = 2**25
"""Longest JSON record of a run that is read."""


@dataclass
class Findings:
    """What the checks of a run found."""

    problems: list[str] = field(default_factory=list[str])
    compared: list[str] = field(default_factory=list[str])
    """What was compared, in words."""
    unchecked: list[str] = field(default_factory=list[str])
    """Checks that could not be made here, and why."""
    outside: bool = False
    """Whether the run as a whole was compared with something outside it."""


class RunReader:
    """Reads files of a run, and records those that cannot be read in `problems`."""

    def __init__(self, run: Path) -> None:
        """Read the run in `run`; nothing is opened yet."""
        self.run = run
        self.problems: list[str] = []
        self.digests: dict[str, str] = {}
        """Name -> sha256 (hex) of each file that was read: of the bytes that the checks saw."""
        self._n_bytes = 0

    def describe(self, name: str, text: str) -> str:
        """Return the line on a problem with a file of the run."""
        return f"{self.run / name}: {text}"

    def read(self, name: str) -> bytes | None:
        """Return the bytes of a file; `None`, and a problem, where it cannot be read."""
        try:
            content = read_file(self.run, name)
        except FileNotFoundError:
            self.problems.append(self.describe(name, "missing"))
            return None
        except RunError as error:
            self.problems += error.problems
            return None
        if name not in self.digests:
            self._n_bytes += len(content)
        if self._n_bytes > MAX_RUN_BYTES:
            text = f"is not read: the run's files hold more than {MAX_RUN_BYTES} bytes"
            self.problems.append(self.describe(name, text))
            return None
        digest = hashlib.sha256(content).hexdigest()
        if self.digests.setdefault(name, digest) != digest:
            self.problems.append(self.describe(name, "changed while the run was verified"))
            return None
        return content

    def read_text(self, name: str) -> str | None:
        """Return the text of a file; `None`, and a problem, where it cannot be read."""
        content = self.read(name)
        try:
            return None if content is None else content.decode("utf-8")
        except ValueError as error:
            self.problems.append(self.describe(name, f"cannot be read ({error})"))
            return None

    @overload
    def read_json(self, name: str) -> dict[str, Any] | None: ...

    @overload
    def read_json(self, name: str, kind: type[_AnyRecord]) -> _AnyRecord | None: ...

    def read_json(self, name: str, kind: type[Record] | None = None) -> Any:
        """Return the content of a JSON object or record; `None` if it is missing or damaged."""
        text = self.read_text(name)
        if text is None:
            return None
        if len(text) > MAX_RECORD_CHARS:
            text = f"cannot be read (more than {MAX_RECORD_CHARS} characters)"
            self.problems.append(self.describe(name, text))
            return None
        try:
            content = json.loads(
                text, object_pairs_hook=_refuse_equal_keys, parse_constant=_refuse_constant
            )
            if kind is not None:
                return kind.model_validate_json(text)
            if isinstance(content, dict):
                return content
            reason = f"a mapping is needed, not {type(content).__name__}"
        except (ValueError, RecursionError) as error:
            reason = " ".join(str(error).splitlines()[:2])
        self.problems.append(self.describe(name, f"cannot be read ({reason})"))
        return None


def _refuse_equal_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key stands in it twice")
    return content


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")
