"""Reads whole files that somebody else may have written: regular ones of bounded size."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import cast

MAX_TEXT_BYTES = 256 * 2**20
"""Most bytes of a JSON or JSON lines file of a run, pack or store."""

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def read_file(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """Return the bytes of a regular file of at most `max_bytes`.

    Nothing else is opened: a pipe or a device may block, or never end.

    Raises:
        OSError: If there is no such file, it is no regular file, too large, or cannot be read;
            `strerror` says which.
    """
    check_regular(path)
    # A pipe that took the place of the file since then must not block either.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        _check_mode(status.st_mode, path)
        if status.st_size > max_bytes:
            raise OSError(
                errno.EFBIG,
                f"{status.st_size:,} bytes, at most {max_bytes:,} are read; split or shorten it",
                str(path),
            )
        content = cast("bytes | None", file.read(max_bytes))
    if content is None:  # as some files of /proc answer that have nothing to give yet
        raise OSError(errno.EAGAIN, "gives no bytes", str(path))
    return content


def read_text(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Return the text of a UTF-8 file, read as by `read_file`.

    Raises:
        OSError: As `read_file`.
        UnicodeDecodeError: If it is not UTF-8.
    """
    return read_file(path, max_bytes).decode("utf-8")


def check_regular(path: Path) -> None:
    """Check that `path` is a regular file, or a link to one.

    Raises:
        OSError: If it is not; `strerror` says what it is.
    """
    try:
        mode = path.stat().st_mode
    except ValueError:  # a null byte, or a surrogate that no file name holds
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), repr(str(path))) from None
    _check_mode(mode, path)


def _check_mode(mode: int, path: Path) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "no file")
        raise OSError(errno.EINVAL, f"{kind}, a regular file is needed", str(path))
