"""Append-only files of JSON lines that survive a killed writer.

Nothing is rewritten. A killed writer leaves an unfinished last line, which readers ignore.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from doublebind.schema.errors import DoublebindError, RunError
from doublebind.schema.read_file import read_file

T = TypeVar("T")


@dataclass(frozen=True)
class AppendLog:
    """A file of JSON lines; it need not exist before the first append."""

    path: Path
    remedy: str
    """Remedy for a damaged line, which ends the error message."""
    error: type[DoublebindError] = RunError
    """Raised for a damaged line."""
    mode: int = 0o644
    """Permissions of a new file."""

    def append(self, line: str) -> None:
        """Append one JSON value, which must not hold a newline.

        On a local file system, lines that several processes append at once do not mix. A line is
        written without `fsync`.

        Raises:
            RunError: If the path is a symbolic link.
            OSError: If the file cannot be written.
        """
        if "\n" in line:
            raise ValueError(f"{self.path}: a line of the log holds a newline")
        rest = f"{line}\n".encode()
        fd = self._open(os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            while rest:
                rest = rest[os.write(fd, rest) :]
        finally:
            os.close(fd)

    def read(self, parse: Callable[[str], T]) -> list[T]:
        """Return the parsed lines, without an unfinished last one.

        Args:
            parse: Raises a `ValueError`, `KeyError` or `TypeError` for a damaged line.

        Raises:
            DoublebindError: Of type `error`, with the file and line, if a line is damaged.
        """
        if not self.path.exists():
            return []
        *lines, _ = read_file(self.path).split(b"\n")
        parsed = []
        for number, line in enumerate(lines, start=1):
            try:
                parsed.append(parse(line.decode("utf-8")))
            except (ValueError, KeyError, TypeError):
                problem = f"{self.path}:{number}: a line is damaged; {self.remedy}"
                raise self.error(problem) from None
        return parsed

    def cut_torn_line(self) -> None:
        """Remove an unfinished last line; only one process may append meanwhile.

        Raises:
            RunError: If the path is a symbolic link.
            OSError: If the file cannot be written.
        """
        if not self.path.exists():
            return
        whole = read_file(self.path)
        end = whole.rfind(b"\n") + 1
        if end == len(whole):
            return
        fd = self._open(os.O_WRONLY)
        try:
            os.ftruncate(fd, end)
        finally:
            os.close(fd)

    def _open(self, flags: int) -> int:
        try:
            return os.open(self.path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, self.mode)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise RunError(
                    f"{self.path}: a symbolic link, and logs are not written through links; "
                    "replace it by a file or remove it"
                ) from None
            raise
