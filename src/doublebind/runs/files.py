"""Reads the files of a run directory, which may come from anybody.

Opens regular files below the directory only: no links, pipes, devices or names that lead out of it,
and nothing larger than a run needs.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from doublebind.schema.errors import RunError

MAX_FILE_BYTES = 2**28
"""Largest file of a run that is read: some hundred times the largest that the studies here made."""

MAX_FILES = 50_000
"""Most files of a run."""


def read_file(run: Path, name: str) -> bytes:
    """Return the bytes of the file `name` of a run.

    Args:
        run: Run directory; may itself be a link.
        name: Path below it, with `/` between folders.

    Raises:
        FileNotFoundError: If there is no such file.
        RunError: If the name leads out of the run, a part of it is a link, the file is not a
            regular one, is too large, or cannot be read.
    """
    with _open_folder(run, name) as (folder, last):
        try:
            # Looked at before it is opened: opening a device may already do something.
            _check_status(run, name, os.stat(last, dir_fd=folder, follow_symlinks=False))
            # O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(last, flags, dir_fd=folder)
        except (FileNotFoundError, RunError):
            raise
        except (OSError, ValueError) as error:
            raise RunError(f"{run / name}: cannot be read ({error}); restore it") from None
        with open(fd, "rb") as file:
            _check_status(run, name, os.fstat(fd))
            content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise RunError(_describe_size(run, name, len(content)))
    return content


def read_text(run: Path, name: str) -> str:
    """Return the text of the file `name` of a run; see `read_file`.

    Raises:
        UnicodeDecodeError: If it is not UTF-8.
    """
    return read_file(run, name).decode("utf-8")


def check_file(run: Path, name: str) -> bool:
    """Check that a file of a run may be opened; return whether there is one.

    Raises:
        RunError: As `read_file`.
    """
    try:
        with _open_folder(run, name) as (folder, last):
            _check_status(run, name, os.stat(last, dir_fd=folder, follow_symlinks=False))
    except FileNotFoundError:
        return False
    except (OSError, UnicodeEncodeError) as error:
        raise RunError(f"{run / name}: cannot be read ({error}); restore it") from None
    return True


def list_files(run: Path, folder: str = "") -> list[str]:
    """Return the names of all entries below a folder of a run that are no folders, sorted.

    A link is an entry, and is not followed. A folder that is missing has none.

    Raises:
        RunError: If a part of the folder's name is a link or no folder, or there are too many.
    """
    top = run / folder
    if folder and not _is_folder(run, folder):
        return []
    names: list[str] = []
    for parent, folders, files in os.walk(top):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        names += [(Path(parent) / name).relative_to(run).as_posix() for name in (*files, *links)]
        if len(names) > MAX_FILES:
            raise RunError(
                f"{top}: more than {MAX_FILES} files, and no run has as many; restore it"
            )
    return sorted(names)


def check_folder(run: Path, folder: str) -> None:
    """Check that a folder of a run, if it exists, is no link, before files are written into it.

    Raises:
        RunError: If it is one, or no folder.
    """
    _is_folder(run, folder)


def _is_folder(run: Path, folder: str) -> bool:
    """Return whether a run has a folder; raise a `RunError` if it is something else."""
    try:
        with _open_folder(run, f"{folder}/any"):
            return True
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _open_folder(run: Path, name: str) -> Iterator[tuple[int, str]]:
    """Yield a descriptor of the folder that `name` is in, and the last part of the name."""
    parts = PurePosixPath(name).parts
    if not parts or "\0" in name or name.startswith("/") or ".." in parts:
        raise RunError(f"{run}: {name!r} is no name of a file in a run; restore the run")
    try:
        fd = os.open(run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise RunError(f"{run}: cannot be read ({error}); name a run directory") from None
    try:
        for part in parts[:-1]:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                inner = os.open(part, flags, dir_fd=fd)
            except FileNotFoundError:
                raise
            except (OSError, ValueError):  # a link is "not a directory", too
                raise RunError(
                    f"{run / name}: {part} is no folder of the run, or a link; restore it"
                ) from None
            os.close(fd)
            fd = inner
        yield fd, parts[-1]
    finally:
        os.close(fd)


def _check_status(run: Path, name: str, status: os.stat_result) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise RunError(_describe_link(run, name))
    if not stat.S_ISREG(status.st_mode):
        raise RunError(f"{run / name}: is no regular file; restore it")
    if status.st_size > MAX_FILE_BYTES:
        raise RunError(_describe_size(run, name, status.st_size))


def _describe_link(run: Path, name: str) -> str:
    return f"{run / name}: is a link, and no file of a run is; replace it by the file"


def _describe_size(run: Path, name: str, size: int) -> str:
    return (
        f"{run / name}: {size} bytes or more, no file of a run is larger than {MAX_FILE_BYTES}; "
        "restore it"
    )
