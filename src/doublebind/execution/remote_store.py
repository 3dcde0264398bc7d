"""Artefacts at a URL that fsspec opens: blobs named by their hash, and a manifest written last.

A manifest exists only if all its blobs do, and every blob is hashed as it is read. Of two writers
of one key the first manifest stays, and the second writer uses it too.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_not_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

from doublebind.schema.errors import MissingExtra, StoreError
from doublebind.schema.strict_json import parse_json

log = logging.getLogger("doublebind.execution.remote_store")

T = TypeVar("T")

MAX_TRIES = 8
"""Tries of a request until the store counts as unreachable; they take about half a minute."""
_PERMANENT_ERRORS = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    NotImplementedError,
    MissingExtra,
)
"""Errors that another try would not change."""
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
_SHA256 = re.compile(r"[0-9a-f]{64}")


class RemoteStore:
    """Objects below one URL."""

    def __init__(self, url: str) -> None:
        """Open nothing yet."""
        self.url = url.rstrip("/")

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to pickle: the URL, without the connection."""
        return {"url": self.url}

    @functools.cached_property
    def fs(self) -> Any:
        """The filesystem, without a cache of listings, because other machines write too."""
        import fsspec

        scheme = self.url.partition("://")[0]
        try:
            return fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)
        except ImportError:
            extra = _EXTRAS.get(scheme)
            if extra:
                raise MissingExtra(f"a store at {self.url}", extra) from None
            raise StoreError(f"{self.url}: fsspec has nothing installed for {scheme}://") from None
        except ValueError as error:
            raise StoreError(
                f"{self.url}: not a store ({error}); use s3://, gs:// or hf://"
            ) from None

    def object_path(self, name: str) -> str:
        """Return an object's path in the form that the filesystem expects."""
        return f"{self.fs._strip_protocol(self.url)}/{name}"

    # --- artefacts ---

    def has(self, kind: str, key: str) -> bool:
        """Return whether the artefact has a manifest."""
        return bool(
            self._retry(lambda: self.fs.exists(self.object_path(_manifest_path(kind, key))))
        )

    def push(self, kind: str, key: str, folder: Path, manifest: bytes) -> bytes:
        """Upload the files that `manifest` lists; return the store's manifest of the artefact.

        It differs from `manifest` if another writer was first.

        Args:
            kind: Kind of the artefact.
            key: Key of the artefact.
            folder: Folder of its files.
            manifest: JSON with `files`: path in the folder -> sha256.

        Raises:
            StoreError: If the store cannot be reached, or denies access.
        """
        for name, sha256 in _parse_files(manifest, self.url, kind, key).items():
            self._upload(folder / name, _blob_path(sha256))
        return self.create_object(_manifest_path(kind, key), manifest)

    def pull(self, kind: str, key: str, folder: Path) -> bytes:
        """Write the artefact's files to `folder`, hash each, and return the manifest.

        Raises:
            StoreError: If the artefact is absent or cannot be reached, or a blob was altered.
        """
        manifest_object = self.object_path(_manifest_path(kind, key))

        def read() -> tuple[bytes, dict[str, str]]:
            manifest = self.fs.cat_file(manifest_object)
            return manifest, _parse_files(manifest, self.url, kind, key)

        try:
            manifest, files = self._retry(read)
        except FileNotFoundError:
            raise StoreError(f"{self.url}: has no {kind} {key}; rerun the study") from None
        for name, sha256 in files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._retry(lambda t=target, s=sha256: self._download(t, s))
            except FileNotFoundError:
                raise StoreError(
                    f"{self.url}/{_blob_path(sha256)}: missing, and {kind} {key} needs it; delete "
                    f"{_manifest_path(kind, key)} and rerun"
                ) from None
        return manifest

    def _upload(self, file: Path, name: str) -> None:
        """Store a file under its hash unless it exists; objects appear whole or not at all."""

        def put() -> None:
            try:
                if self.fs.info(self.object_path(name))["size"] == file.stat().st_size:
                    return
            except FileNotFoundError:
                pass
            self.fs.put_file(str(file), self.object_path(name))

        self._retry(put)

    def _download(self, target: Path, sha256: str) -> None:
        self.fs.get_file(self.object_path(_blob_path(sha256)), str(target))
        with target.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise StoreError(
                    f"{self.url}/{_blob_path(sha256)}: altered, it no longer hashes to its name; "
                    f"delete the object and the artefact's manifest, and rerun"
                )

    def create_object(self, name: str, content: bytes) -> bytes:
        """Write a JSON object unless it exists, and return its content in the store."""

        def create() -> bytes:
            try:
                self.fs.pipe_file(self.object_path(name), content, mode="create")
            except FileExistsError:
                log.debug("%s: written by another", name)
            except (NotImplementedError, TypeError, ValueError):  # no conditional writes
                if not self.fs.exists(self.object_path(name)):
                    self.fs.pipe_file(self.object_path(name), content)
            stored = self.fs.cat_file(self.object_path(name))
            if not _is_json(stored):
                # Some servers keep the first part of an interrupted upload. Every reader fails on
                # it, so that replacing it is safe.
                self.fs.pipe_file(self.object_path(name), content)
                raise StoreError(f"{self.url}/{name}: is truncated; delete it and rerun")
            return stored

        return self._retry(create)

    # --- lists that several runs add to ---

    def lines(self, name: str) -> list[str]:
        """Return the lines of a list, in no particular order."""
        try:
            paths = self._retry(lambda: self.fs.find(self.object_path(name)))
        except FileNotFoundError:
            return []
        return [self._read_line(path) for path in paths]

    def _read_line(self, path: str) -> str:
        """Return a line of a list once it is whole: it is called by its hash.

        Raises:
            StoreError: If it stays another line than its name says.
        """
        for _ in range(MAX_TRIES):
            content = self._retry(lambda: self.fs.cat_file(path))
            if path.endswith(f"/{hashlib.sha256(content).hexdigest()[:32]}.json"):
                return content.decode()
            time.sleep(0.1)  # another process may be writing it, where writes are not atomic
        raise StoreError(f"{self.url}: {path} is damaged; restore it")

    def add_line(self, name: str, line: str) -> None:
        """Add a line to a list, unless the list has it."""
        digest = hashlib.sha256(line.encode()).hexdigest()
        self.create_object(f"{name}/{digest[:32]}.json", line.encode())

    # --- connections that break ---

    def _retry(self, request: Callable[[], T]) -> T:
        """Return the result of `request`, tried at most `MAX_TRIES` times."""
        retrying = Retrying(
            stop=stop_after_attempt(MAX_TRIES),
            # Full jitter, so that nodes disconnected at once do not all reconnect at once.
            wait=wait_random_exponential(multiplier=0.2, max=10.0),
            retry=retry_if_not_exception_type(_PERMANENT_ERRORS),
            before_sleep=self._log_failure,
            reraise=True,
        )
        try:
            return retrying(request)
        except PermissionError:
            raise StoreError(f"{self.url}: access refused; check the credentials") from None
        except (*_PERMANENT_ERRORS, StoreError):
            raise
        except Exception as error:  # each filesystem has errors of its own
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise StoreError(
                f"{self.url}: no answer after {MAX_TRIES} tries ({reason}); check the "
                f"connection and rerun, finished cells are kept"
            ) from error

    def _log_failure(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        log.info("%s: try %d failed (%s)", self.url, state.attempt_number, error)


def _manifest_path(kind: str, key: str) -> str:
    return f"{kind}/{key[:2]}/{key}.json"


def _is_json(content: bytes) -> bool:
    try:
        parse_json(content)
    except ValueError:
        return False
    return True


def _blob_path(sha256: str) -> str:
    return f"blobs/{sha256[:2]}/{sha256}"


def _parse_files(manifest: bytes, url: str, kind: str, key: str) -> dict[str, str]:
    """Return path -> sha256 of a manifest; checks it, because anybody may have written it."""
    try:
        content = parse_json(manifest)
        files = dict(content["files"])
        if (content["kind"], content["key"]) != (kind, key):
            raise ValueError
        for name, sha256 in files.items():
            parts = PurePosixPath(name).parts
            outside = PurePosixPath(name).is_absolute() or ".." in parts or not parts
            if outside or not _SHA256.fullmatch(sha256):
                raise ValueError
    except (ValueError, KeyError, TypeError):
        raise StoreError(
            f"{url}/{_manifest_path(kind, key)}: not a manifest of this artefact; delete it and "
            f"rerun"
        ) from None
    return files
