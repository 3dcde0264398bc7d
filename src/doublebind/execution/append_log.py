"""Append-only files of JSON lines that survive a killed writer and a full disk.

Nothing is rewritten. A writer that dies leaves an unfinished line. Readers ignore it at the end of
the file; the next writer marks it as torn, and from then on readers skip it with a warning.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import logging
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from doublebind.schema.errors import DoublebindError, RunError

log = logging.getLogger("doublebind.execution.append_log")

T = TypeVar("T")

_TORN = b"\x18"
"""ASCII "cancel" ends a line that a later writer found unfinished; JSON cannot hold it."""


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

        Lines that several processes append at once do not mix. A line is written without `fsync`.

        Raises:
            RunError: If the path is a link, a pipe or anything else that is not a file.
            OSError: If the file cannot be written.
        """
        if "\n" in line:
            raise ValueError(f"{self.path}: a line of the log holds a newline")
        with self._open(os.O_RDWR | os.O_APPEND | os.O_CREAT) as fd:
            with contextlib.suppress(OSError):  # some file systems have no locks
                fcntl.flock(fd, fcntl.LOCK_EX)
            size = os.fstat(fd).st_size
            torn = size and os.pread(fd, 1, size - 1) != b"\n"
            rest = (_TORN + b"\n" if torn else b"") + f"{line}\n".encode()
            while rest:
                rest = rest[os.write(fd, rest) :]

    def read(self, parse: Callable[[str], T]) -> list[T]:
        """Return the parsed lines, without unfinished ones.

        Args:
            parse: Raises a `ValueError`, `KeyError` or `TypeError` for a damaged line.

        Raises:
            DoublebindError: Of type `error`, with the file and line, if a line is damaged.
            RunError: If the path is a link, a pipe or anything else that is not a file.
        """
        try:
            with self._open(os.O_RDONLY) as fd, open(fd, "rb", closefd=False) as file:
                *lines, _ = file.read().split(b"\n")
        except FileNotFoundError:
            return []
        parsed = []
        for number, line in enumerate(lines, start=1):
            try:
                parsed.append(parse(line.decode("utf-8")))
            except (ValueError, KeyError, TypeError):
                if not _is_torn(line):
                    problem = f"{self.path}:{number}: a line is damaged; {self.remedy}"
                    raise self.error(problem) from None
                _report_torn_line(self.path, number)
        return parsed

    def cut_torn_line(self) -> None:
        """Remove an unfinished last line; only one process may append meanwhile.

        Raises:
            RunError: If the path is a link, a pipe or anything else that is not a file.
            OSError: If the file cannot be written.
        """
        try:
            with self._open(os.O_RDWR) as fd, open(fd, "rb", closefd=False) as file:
                whole = file.read()
                end = whole.rfind(b"\n") + 1
                if end < len(whole):
                    os.ftruncate(fd, end)
        except FileNotFoundError:
            return

    @contextlib.contextmanager
    def _open(self, flags: int) -> Iterator[int]:
        fd = open_regular_file(self.path, flags, self.mode)
        try:
            yield fd
        finally:
            os.close(fd)


def open_regular_file(path: Path, flags: int, mode: int = 0o644) -> int:
    """Return a descriptor of a file that is neither a link nor a pipe or device.

    A run directory may come from somebody else: a link would be written through, and opening a pipe
    would wait without end.

    Raises:
        RunError: If it is not a regular file.
        OSError: If it cannot be opened.
    """
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise RunError(
                f"{path}: a symbolic link, and logs and locks are not opened through links; "
                "replace it by a file or remove it"
            ) from None
        # A pipe without a reader, a socket, a folder.
        if error.errno in (errno.ENXIO, errno.EISDIR, errno.ENODEV, errno.EOPNOTSUPP):
            raise _not_a_file(path) from None
        raise
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise _not_a_file(path)


def _not_a_file(path: Path) -> RunError:
    return RunError(f"{path}: not a regular file; remove it")


def _is_torn(line: bytes) -> bool:
    """Return whether a line is the beginning of a JSON object, or was marked as torn."""
    if line.endswith(_TORN):
        return True
    try:
        json.loads(line)
    except ValueError:
        return line.startswith(b"{")
    return False


@functools.cache
def _report_torn_line(path: Path, number: int) -> None:
    """Warn of a torn line, once."""
    log.warning("%s:%d: an unfinished line of a writer that died is skipped", path, number)
