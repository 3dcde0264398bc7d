"""Append-only files of JSON lines that survive a killed writer.

One JSON value a line, and nothing is rewritten. A writer that is killed leaves a last line without
its end, which readers ignore. Knows lines and files. Does not know what a line means.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from doublebind.schema.errors import DoublebindError, RunError

T = TypeVar("T")


@dataclass(frozen=True)
class AppendLog:
    """A file of JSON lines, which need not exist before the first is appended."""

    path: Path
    remedy: str
    """What to do about a damaged line: the end of the error's sentence."""
    error: type[DoublebindError] = RunError
    """Raised for a damaged line."""
    mode: int = 0o644
    """Permissions of a new file."""

    def append(self, line: str) -> None:
        """Append one JSON value, which must not hold a newline.

        Lines of several processes that append at once do not mix, on a local file system. A line
        is handed to the operating system and not forced to the disk.

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
        """Return what `parse` makes of each line, without a torn last one.

        Args:
            parse: Raises a `ValueError`, `KeyError` or `TypeError` for a damaged line.

        Raises:
            DoublebindError: Of type `error`, with the file and line, if a line is damaged.
        """
        if not self.path.exists():
            return []
        *lines, _ = self.path.read_bytes().split(b"\n")
        parsed = []
        for number, line in enumerate(lines, start=1):
            try:
                parsed.append(parse(line.decode("utf-8")))
            except (ValueError, KeyError, TypeError):
                problem = f"{self.path}:{number}: a line is damaged; {self.remedy}"
                raise self.error(problem) from None
        return parsed

    def cut_torn_line(self) -> None:
        """Remove a torn last line; only for the one process that appends.

        Raises:
            RunError: If the path is a symbolic link.
            OSError: If the file cannot be written.
        """
        if not self.path.exists():
            return
        whole = self.path.read_bytes()
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
