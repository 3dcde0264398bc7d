"""Content-addressed artefacts on disk, published whole or not at all.

Knows keys, folders, hashes and atomic renames. Does not know what an artefact means or who made
it. Lock-free: a writer fills a private folder and renames it; the first rename wins and equal keys
hold equal content, so a loser throws its copy away.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from doublebind.errors import StoreError
from doublebind.records import Record

R = TypeVar("R", bound=Record)

_SEAL = "artefact.json"


def default_root() -> Path:
    """Return `$DOUBLEBIND_STORE`, or `~/.cache/doublebind`."""
    return Path(os.environ.get("DOUBLEBIND_STORE") or Path.home() / ".cache" / "doublebind")


def file_sha256(path: Path) -> str:
    """Return the sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, text: str) -> None:
    """Replace the file at `path` by `text` in one step.

    Raises:
        StoreError: If the disk is full or the folder cannot be written.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise storage_error(error, path) from error


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write one JSON line per record."""
    path.write_text("".join(r.model_dump_json() + "\n" for r in records), encoding="utf-8")


def read_records(path: Path, kind: type[R]) -> list[R]:
    """Return the records in a file that `write_records` made."""
    with path.open(encoding="utf-8") as lines:
        return [kind.model_validate_json(line) for line in lines]


def storage_error(error: OSError, path: Path) -> StoreError:
    """Return `error` as one line with its remedy."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(f"{path}: disk full; free space and rerun, finished cells are kept")
    return StoreError(f"{path}: {error.strerror or error}; make it writable or choose another path")


def is_disk_full(error: BaseException) -> bool:
    """Return whether `error` means a full disk, in whichever library's words."""
    return (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or any(
        words in str(error) for words in ("No space left", "os error 28", "enough space")
    )


class Cost(NamedTuple):
    """Mean time and size of an artefact."""

    seconds: float
    bytes: float


class Store:
    """Artefacts under one root, addressed by kind and key."""

    def __init__(self, root: str | Path | None = None, *, write: bool = True) -> None:
        """Open (and create) the store at `root`; `None` takes `default_root()`.

        With `write=False` nothing is created or swept: for looking at a store that may be
        read-only, or another user's.

        Raises:
            StoreError: If `root` cannot be created or is not a folder.
        """
        self.root = root = Path(root) if root else default_root()
        if not write:
            return
        try:
            (root / "tmp").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, root) from error
        if not os.access(root / "tmp", os.W_OK):
            raise StoreError(f"{root}: not writable; choose another with --store")
        self._sweep()

    def _sweep(self) -> None:
        """Remove what writers that died left in `tmp`."""
        for left in (self.root / "tmp").iterdir():
            pid = left.name.partition("-")[0]
            if pid.isdigit() and not _alive(int(pid)):
                shutil.rmtree(left, ignore_errors=True)

    def path(self, kind: str, key: str) -> Path:
        """Return where the artefact is, or would be."""
        return self.root / kind / key[:2] / key

    def has(self, kind: str, key: str) -> bool:
        """Return whether the artefact has been published."""
        return (self.path(kind, key) / _SEAL).exists()

    @contextlib.contextmanager
    def publish(self, kind: str, key: str, **facts: Any) -> Iterator[Path]:
        """Yield an empty folder to fill; on leaving, seal and publish it.

        `facts` (and anything the caller adds to the yielded folder) end up in the artefact; the
        seal lists every file with its sha256. An exception publishes nothing.

        Raises:
            StoreError: If the disk is full or not writable.
        """
        part = self.root / "tmp" / f"{os.getpid()}-{uuid.uuid4().hex}"
        try:
            part.mkdir(parents=True)
            yield part
            files = {
                str(path.relative_to(part)): file_sha256(path)
                for path in sorted(part.rglob("*"))
                if path.is_file()
            }
            seal = {"kind": kind, "key": key, "files": files, **facts}
            (part / _SEAL).write_text(json.dumps(seal, indent=1, sort_keys=True))
            final = self.path(kind, key)
            final.parent.mkdir(parents=True, exist_ok=True)
            try:
                part.rename(final)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY) or not self.has(kind, key):
                    raise
        except StoreError:
            raise
        except Exception as error:
            if is_disk_full(error):
                raise StoreError(
                    f"{self.root}: disk full; free space and rerun, finished cells are kept"
                ) from error
            raise
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def seal(self, kind: str, key: str) -> dict[str, Any]:
        """Return the seal of a published artefact: its files' hashes and the maker's facts."""
        return json.loads((self.path(kind, key) / _SEAL).read_text())

    def cost(self, kind: str) -> Cost | None:
        """Return the mean cost of the artefacts of one kind; `None` where there are none."""
        found = list((self.root / kind).glob("*/*/timing.json"))
        if not found:
            return None
        seconds = [json.loads(path.read_text())["seconds"] for path in found]
        sizes = [sum(f.stat().st_size for f in p.parent.rglob("*") if f.is_file()) for p in found]
        return Cost(sum(seconds) / len(found), sum(sizes) / len(found))

    def problems(self, kind: str, key: str) -> list[str]:
        """Return what is wrong with an artefact, one line each; empty if all is as sealed."""
        folder = self.path(kind, key)
        if not self.has(kind, key):
            return [f"{folder}: missing; rerun the study to rebuild it"]
        try:
            files = dict(self.seal(kind, key)["files"])
        except (ValueError, KeyError, TypeError):
            return [f"{folder / _SEAL}: unreadable seal; delete the folder and rerun"]
        found = [
            f"{path}: added since it was made; delete the folder and rerun"
            for path in sorted(folder.rglob("*"))
            if path.is_file() and str(path.relative_to(folder)) not in (*files, _SEAL)
        ]
        for name, sha256 in files.items():
            path = folder / name
            if not path.exists():
                found.append(f"{path}: missing; delete the folder and rerun")
            elif file_sha256(path) != sha256:
                found.append(f"{path}: altered since it was made; delete the folder and rerun")
        return found


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
