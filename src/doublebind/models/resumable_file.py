"""Safetensors file of known shapes that is filled in place and resumed after a kill."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from doublebind.execution.append_log import AppendLog
from doublebind.execution.store import storage_error

TensorSpec = tuple[str, tuple[int, ...]]
"""A tensor's safetensors dtype and its shape."""

_DTYPES = {"I32": np.int32, "I64": np.int64, "F32": np.float32}


class Journal:
    """Append-only log of finished batches, one number a line; a torn last line is removed."""

    def __init__(self, path: Path, arrays: list[np.memmap]) -> None:
        """Open the journal of `arrays`, which are flushed before each line."""
        self.log, self.arrays = AppendLog(path, "delete the folder and rerun"), arrays
        self.log.cut_torn_line()
        self.done = set(self.log.read(int))

    def __contains__(self, number: int) -> bool:
        """Return whether a batch is finished."""
        return number in self.done

    def add(self, number: int) -> None:
        """Record that a batch is finished."""
        for array in self.arrays:
            array.flush()
        self.log.append(str(number))
        self.done.add(number)


@contextlib.contextmanager
def open_resumable_file(
    path: Path, layout: dict[str, TensorSpec], identity: str, resume_folder: Path | None
) -> Iterator[tuple[dict[str, Tensor], Journal]]:
    """Yield mapped tensors to fill and the journal of finished batches; then publish `path`.

    An exception leaves nothing at `path`. With `resume_folder` the work so far stays there, under
    the hash of `identity`, and a later call resumes it. While another process holds its lock, this
    one works on a copy of its own.

    Raises:
        StoreError: If a folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            folder = _claim_folder(path, identity, resume_folder, stack)
            arrays = _map_arrays(folder / "rows", layout)
            journal = Journal(folder / "done", list(arrays.values()))
        except OSError as error:
            raise storage_error(error, path) from None
        yield {name: torch.from_numpy(array) for name, array in arrays.items()}, journal
        try:
            for array in arrays.values():
                array.flush()
            shutil.move(folder / "rows", path)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError as error:
            raise storage_error(error, path) from None


def _claim_folder(
    path: Path, identity: str, resume_folder: Path | None, stack: contextlib.ExitStack
) -> Path:
    """Return the folder to work in: the shared one if it is not locked, or one beside `path`."""
    if resume_folder is not None:
        name = f"rows-{hashlib.sha256(identity.encode()).hexdigest()[:32]}"
        resume_folder.mkdir(parents=True, exist_ok=True)
        lock = stack.enter_context((resume_folder / f"{name}.lock").open("w"))
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (resume_folder / name).mkdir(exist_ok=True)
            return resume_folder / name
    private = path.with_name(f".{path.name}-{os.getpid()}")
    private.mkdir()
    stack.callback(shutil.rmtree, private, ignore_errors=True)
    return private


def _map_arrays(path: Path, layout: dict[str, TensorSpec]) -> dict[str, np.memmap]:
    """Return the arrays of a safetensors file at `path`, created unless it has the right size."""
    start = 0
    fields = {}
    # Widest types first, so that every array is aligned.
    for name, (kind, shape) in sorted(layout.items(), key=lambda f: (f[1][0] != "I64", f[0])):
        end = start + int(np.prod(shape)) * np.dtype(_DTYPES[kind]).itemsize
        fields[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(fields).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    if not path.exists() or path.stat().st_size != len(head) + start:
        path.with_name("done").unlink(missing_ok=True)
        with path.open("wb") as file:
            file.write(head)
            file.truncate(len(head) + start)
    return {
        name: np.memmap(
            path,
            dtype=_DTYPES[kind],
            mode="r+",
            offset=len(head) + fields[name]["data_offsets"][0],
            shape=shape,
        )
        for name, (kind, shape) in layout.items()
    }
