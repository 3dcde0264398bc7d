"""Content-addressed artefacts on disk, published whole or not at all.

Writers do not wait for each other: each fills a private folder and renames it. The first rename
wins; equal keys hold equal content, so a later writer discards its copy. What is read is compared
with the hashes of its seal. A store at a URL (`remote_store`) has a local folder in front:
artefacts are written to both, and missing ones are fetched whole.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from doublebind.execution.append_log import AppendLog
from doublebind.execution.remote_store import RemoteStore
from doublebind.schema.errors import StoreError
from doublebind.schema.hashing import Record, content_hash
from doublebind.schema.model_source import ModelSource
from doublebind.schema.read_file import read_text
from doublebind.schema.strict_json import parse_json, split_json_lines

R = TypeVar("R", bound=Record)

_SEAL_FILE = "artefact.json"
_ABSENCE_FILE = "absent.json"
ABANDONED_AFTER = 30 * 86400.0
"""Seconds until a private folder counts as abandoned where its writer's life cannot be seen."""

_Signature = tuple[tuple[str, int, int, int], ...]
_intact: dict[Path, _Signature] = {}
"""Folder of an artefact that this process found as sealed -> its files then."""


def default_root() -> str:
    """Return `$DOUBLEBIND_STORE`, or `~/.cache/doublebind`."""
    return os.environ.get("DOUBLEBIND_STORE") or str(Path.home() / ".cache" / "doublebind")


def is_url(name: str) -> bool:
    """Return whether a store's name is a URL of a remote store."""
    return "://" in name and not name.startswith("file://")


def _locate_cache(url: str) -> Path:
    """Return the local folder of the store at `url`, below `$DOUBLEBIND_CACHE`.

    Jobs name files by this path, so that it must be the same on all nodes of a cluster.
    """
    parent = os.environ.get("DOUBLEBIND_CACHE") or Path.home() / ".cache" / "doublebind-remote"
    return Path(parent) / hashlib.sha256(url.encode()).hexdigest()[:16]


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


def write_absence(folder: Path, reason: str) -> None:
    """Write into an artefact's folder why what it should hold cannot be made."""
    (folder / _ABSENCE_FILE).write_text(json.dumps({"reason": reason}), encoding="utf-8")


def read_absence(path: Path) -> str | None:
    """Return why an artefact is empty, or why the model at `path` inside it is; else `None`."""
    for folder in (path, *list(path.parents)[:2]):  # an artefact, its model, or a checkpoint
        is_artefact = folder.parent.name == folder.name[:2] and (folder / _SEAL_FILE).is_file()
        if is_artefact and (folder / _ABSENCE_FILE).is_file():
            return str(json.loads((folder / _ABSENCE_FILE).read_text(encoding="utf-8"))["reason"])
    return None


def find_absence(inputs: Iterable[object]) -> str | None:
    """Return why the first empty artefact among a job's inputs is empty, also inside tuples."""
    for value in inputs:
        reason = None
        if isinstance(value, tuple):
            reason = find_absence(value)
        elif isinstance(value, ModelSource):
            reason = read_absence(Path(value.adapter or value.path))
        elif isinstance(value, Path):
            reason = read_absence(value)
        if reason is not None:
            return reason
    return None


def weights_sha256(folder: Path) -> str:
    """Return the hash (hex) of the `*.safetensors` in a model folder; other files do not count."""
    return content_hash([file_sha256(file) for file in sorted(folder.glob("*.safetensors"))])


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write one JSON line per record."""
    path.write_text("".join(r.model_dump_json() + "\n" for r in records), encoding="utf-8")


def read_records(path: Path, kind: type[R]) -> list[R]:
    """Return the records in a file written by `write_records`."""
    lines = split_json_lines(path.read_text(encoding="utf-8"))
    return [kind.model_validate_json(line) for _, line in lines]


def storage_error(error: OSError, path: Path) -> StoreError:
    """Return a `StoreError` that says in one line what failed and how to mend it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(f"{path}: disk full; free space and rerun, finished cells are kept")
    return StoreError(f"{path}: {error.strerror or error}; make it writable or choose another path")


def is_disk_full(error: BaseException) -> bool:
    """Return whether `error` means a full disk, whichever library raised it."""
    return (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or any(
        words in str(error) for words in ("No space left", "os error 28", "enough space")
    )


class Store:
    """Artefacts under one root, addressed by kind and key."""

    def __init__(self, root: str | Path | None = None, *, writable: bool = True) -> None:
        """Open (and create) the store at `root`; `None` takes `default_root()`.

        Args:
            root: A folder, or a URL that fsspec opens (`s3://bucket/prefix`, `gs://`, `hf://`).
            writable: If false, nothing is created or removed, so that a read-only store can be
                opened.

        Raises:
            StoreError: If `root` cannot be created or is not a folder.
        """
        self.name = str(root) if root else default_root()
        self.remote = RemoteStore(self.name) if is_url(self.name) else None
        self._remote_artefacts: set[tuple[str, str]] = set()
        folder = _locate_cache(self.name) if self.remote else self.name.removeprefix("file://")
        # Absolute: workers on other nodes have other working directories.
        self.root = root = Path(folder).absolute()
        if not writable and not self.remote:
            return
        try:
            (root / "tmp").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, root) from error
        if not os.access(root / "tmp", os.W_OK):
            raise StoreError(f"{root}: not writable; choose another with --store")
        self._remove_stale_folders()

    def _remove_stale_folders(self) -> None:
        """Remove the private folders of dead processes; other machines may share `tmp`.

        A living writer holds a lock on its folder. Containers of one machine see each other's
        locks, and not each other's processes. Another machine may not see a lock, so that its
        folders have to be old.
        """
        for folder in (self.root / "tmp").iterdir():
            here = folder.name.endswith(f"@{_machine_id()}") and not folder.name.startswith(".")
            with contextlib.suppress(OSError):
                if not here and time.time() - folder.stat().st_mtime < ABANDONED_AFTER:
                    continue
                with _lock_folder(folder):
                    shutil.rmtree(folder, ignore_errors=True)

    def path(self, kind: str, key: str) -> Path:
        """Return the artefact's folder, whether it exists or not; fetch one that is only remote."""
        if (kind, key) in self._remote_artefacts:
            self.fetch(kind, key)
        return self._folder(kind, key)

    def _folder(self, kind: str, key: str) -> Path:
        return self.root / kind / key[:2] / key

    def has(self, kind: str, key: str) -> bool:
        """Return whether the artefact has been published."""
        if (self._folder(kind, key) / _SEAL_FILE).exists():
            return True
        if self.remote and (kind, key) not in self._remote_artefacts and self.remote.has(kind, key):
            self._remote_artefacts.add((kind, key))
        return (kind, key) in self._remote_artefacts

    def fetch(self, kind: str, key: str) -> None:
        """Copy an artefact of a remote store to the local folder, verified, unless it is there.

        Raises:
            StoreError: If the artefact does not exist, cannot be reached, or was altered.
        """
        if self.remote is None or (self._folder(kind, key) / _SEAL_FILE).exists():
            return
        try:
            with self._create_scratch_folder() as part:
                (part / _SEAL_FILE).write_bytes(self.remote.pull(kind, key, part))
                self._publish_folder(part, kind, key)
        except OSError as error:
            if isinstance(error, StoreError):
                raise
            raise storage_error(error, self.root) from error
        self._remote_artefacts.discard((kind, key))

    def open_artefact(self, kind: str, key: str) -> Path:
        """Return the folder of a published artefact whose files are those that were sealed.

        Every file is hashed once in a process, and again if it changed on disk.

        Raises:
            StoreError: If a file was altered, added or removed, or if the seal is another's.
        """
        folder = self.path(kind, key)
        signature = _read_signature(folder)
        if _intact.get(folder) != signature:
            if problems := self.find_problems(kind, key):
                raise StoreError(*problems)
            _intact[folder] = signature
        return folder

    def open_inputs(self, inputs: Iterable[object]) -> None:
        """Open the artefacts that a job's inputs name: paths and models, also inside tuples.

        Raises:
            StoreError: As `open_artefact`.
        """
        for value in inputs:
            if isinstance(value, tuple):
                self.open_inputs(value)
            names = [value.path, value.adapter] if isinstance(value, ModelSource) else [value]
            for path in (Path(name) for name in names if isinstance(name, str | Path)):
                if path.is_relative_to(self.root):
                    parts = path.relative_to(self.root).parts
                    if len(parts) >= 3:  # kind, two letters, key
                        self.fetch(parts[0], parts[2])
                        if self.has(parts[0], parts[2]):  # no cache
                            self.open_artefact(parts[0], parts[2])

    @contextlib.contextmanager
    def _create_scratch_folder(self) -> Iterator[Path]:
        """Yield a private folder, locked until it is renamed or removed."""
        name = f"{os.getpid()}-{uuid.uuid4().hex}@{_machine_id()}"
        fresh, part = (self.root / "tmp" / each for each in (f".{name}", name))
        fresh.mkdir(parents=True)
        try:
            with _lock_folder(fresh, required=False):
                # Its name says that it is locked only once it is.
                fresh.rename(part)
                yield part
        finally:
            shutil.rmtree(part, ignore_errors=True)
            shutil.rmtree(fresh, ignore_errors=True)

    def _publish_folder(self, part: Path, kind: str, key: str) -> None:
        final = self._folder(kind, key)
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.rename(final)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            if (final / _SEAL_FILE).exists():
                return
            shutil.rmtree(final)  # half removed, since a seal comes with its folder
            part.rename(final)
        _intact[final] = _read_signature(final)

    @contextlib.contextmanager
    def publish(self, kind: str, key: str, **facts: Any) -> Iterator[Path]:
        """Yield an empty folder to fill; on leaving, seal and publish it.

        The seal lists every file with its sha256, and `facts`. An exception publishes nothing.

        Raises:
            StoreError: If the disk is full or not writable.
        """
        try:
            with self._create_scratch_folder() as part:
                yield part
                seal = _write_seal(part, {"kind": kind, "key": key, **facts})
                # Push first: a local copy counts as done, and other nodes must be able to fetch it.
                if self.remote is None or self.remote.push(kind, key, part, seal) == seal:
                    self._publish_folder(part, kind, key)
                else:
                    self.fetch(kind, key)
        except StoreError:
            raise
        except Exception as error:
            if is_disk_full(error):
                raise StoreError(
                    f"{self.root}: disk full; free space and rerun, finished cells are kept"
                ) from error
            raise

    def read_seal(self, kind: str, key: str) -> dict[str, Any]:
        """Return the seal of a published artefact: the hashes of its files, and its facts."""
        return parse_json(read_text(self.path(kind, key) / _SEAL_FILE))

    def find_problems(self, kind: str, key: str) -> list[str]:
        """Return one line per problem of an artefact; empty if its files are as sealed."""
        folder = self._folder(kind, key)
        try:
            exists = self.has(kind, key)
            self.path(kind, key)
        except StoreError as error:
            return list(error.problems)
        if not exists:
            return [f"{folder}: missing; rerun the study to rebuild it"]
        try:
            seal = self.read_seal(kind, key)
            hashes, sealed = dict(seal["files"]), (seal["kind"], seal["key"])
        except (ValueError, KeyError, TypeError, OSError):
            return [f"{folder / _SEAL_FILE}: unreadable seal; delete the folder and rerun"]
        if sealed != (kind, key):
            return [f"{folder}: holds {' '.join(map(str, sealed))}; delete the folder and rerun"]
        problems = [
            f"{path}: added since it was made; delete the folder and rerun"
            for path in sorted(folder.rglob("*"))
            if path.is_file() and str(path.relative_to(folder)) not in (*hashes, _SEAL_FILE)
        ]
        for name, sha256 in hashes.items():
            path = folder / name
            if not path.is_file():
                problems.append(f"{path}: missing; delete the folder and rerun")
            elif file_sha256(path) != sha256:
                problems.append(f"{path}: altered since it was made; delete the folder and rerun")
        return problems

    def lines(self, name: str) -> list[str]:
        """Return the lines of a list that several runs append to."""
        if self.remote:
            return self.remote.lines(name)
        return self._log(name).read(_check_json)

    def add_line(self, name: str, line: str) -> None:
        """Add a line to a list.

        Raises:
            StoreError: If it cannot be written.
            RunError: If the file of the list is a symbolic link.
        """
        if self.remote:
            self.remote.add_line(name, line)
            return
        log = self._log(name)
        try:
            log.path.parent.mkdir(parents=True, exist_ok=True)
            log.append(line)
        except OSError as error:
            raise storage_error(error, log.path) from error

    def _log(self, name: str) -> AppendLog:
        return AppendLog(self.root / f"{name}.jsonl", "delete the line and rerun", StoreError)


def _write_seal(folder: Path, facts: Mapping[str, Any]) -> bytes:
    """Write the seal of a folder's files, and return its content."""
    hashes = {
        str(path.relative_to(folder)): file_sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    seal = json.dumps({"files": hashes, **facts}, indent=1, sort_keys=True).encode()
    (folder / _SEAL_FILE).write_bytes(seal)
    return seal


def _check_json(line: str) -> str:
    """Return a line if it is JSON; raise a `ValueError` if not."""
    parse_json(line)
    return line


def _machine_id() -> str:
    """Return what all containers of a machine share and no other machine has, until it restarts."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return platform.node()


@contextlib.contextmanager
def _lock_folder(folder: Path, *, required: bool = True) -> Iterator[None]:
    """Hold the lock of a folder, which the kernel frees when the process dies.

    Raises:
        OSError: If another process holds it or the file system has none, and it is `required`.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if required:
                raise
        yield
    finally:
        os.close(fd)


def _read_signature(folder: Path) -> _Signature:
    """Return path, size, inode and time of the last change of every file in a folder."""
    stats = ((str(path), path.lstat()) for path in sorted(folder.rglob("*")))
    return tuple((path, s.st_size, s.st_ino, s.st_ctime_ns) for path, s in stats)
