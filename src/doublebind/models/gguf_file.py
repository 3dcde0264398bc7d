"""Opens GGUF files as models with dense weights."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import mmap
import os
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from doublebind.execution.store import storage_error
from doublebind.models.coverage import check_all_tensors_used
from doublebind.schema.errors import ModelError, describe_error

log = logging.getLogger("doublebind.models")

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
"""GGUF's numbers of value types -> their `struct` formats."""
_TEXT, _ARRAY = 8, 9
_LINK = "model.gguf"


class GgufHeader(NamedTuple):
    """What stands before the weights in a GGUF file."""

    settings: dict[str, Any]
    """Key -> number or text; arrays are left out."""
    sizes: dict[str, int]
    """Tensor name -> how many numbers it holds."""


def read_gguf_header(path: Path) -> GgufHeader:
    """Return the settings and the tensors that a GGUF file's header lists.

    The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

    Raises:
        ModelError: If it is damaged, or names a tensor twice.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data).read_header()
    except (OSError, ValueError, struct.error, UnicodeDecodeError) as error:
        raise ModelError(
            f"{path}: cannot be opened as a language model (damaged GGUF header: "
            f"{describe_error(error)}); fetch it again"
        ) from None


class _Reader:
    """A position in the bytes of a header."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 4

    def read_number(self, layout: str) -> Any:
        (value,) = struct.unpack_from(f"<{layout}", self.data, self.at)
        self.at += struct.calcsize(f"<{layout}")
        return value

    def read_text(self) -> str:
        length = self.read_number("Q")
        text = self.data[self.at : self.at + length]
        if len(text) < length:
            raise ValueError("a text ends behind the file")
        self.at += length
        return text.decode("utf-8", "replace")

    def read_value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.read_text()
        if kind == _ARRAY:
            return self.skip_array()
        if kind not in _SCALARS:
            raise ValueError(f"value type {kind} is unknown")
        return self.read_number(_SCALARS[kind])

    def skip_array(self) -> None:
        kind, count = self.read_number("I"), self.read_number("Q")
        if kind in _SCALARS:
            self.at += struct.calcsize(f"<{_SCALARS[kind]}") * count
            return
        for _ in range(min(count, len(self.data))):
            if kind == _TEXT:
                length = self.read_number("Q")
                self.at += length
            else:
                self.read_value(kind)

    def read_header(self) -> GgufHeader:
        self.read_number("I")  # version
        n_tensors, n_settings = self.read_number("Q"), self.read_number("Q")
        settings: dict[str, Any] = {}
        for _ in range(n_settings):
            key = self.read_text()
            value = self.read_value(self.read_number("I"))
            if value is not None:
                settings[key] = value
        sizes: dict[str, int] = {}
        for _ in range(n_tensors):
            name = self.read_text()
            shape = [self.read_number("Q") for _ in range(self.read_number("I"))]
            self.at += struct.calcsize("<IQ")  # type and offset
            if name in sizes:
                raise ValueError(f"two tensors are called {name}")
            sizes[name] = math.prod(shape)
        return GgufHeader(settings, sizes)


def open_gguf(path: Path, precision: torch.dtype, converted: Path | None) -> tuple[Any, Any] | Path:
    """Return a GGUF model with dense weights and its tokenizer, or the folder of its conversion.

    Args:
        path: The file.
        precision: Of the dense weights.
        converted: Folder to keep the conversion in, which is made once; `None` keeps none.
    """
    if converted is None:
        return dequantise_gguf(path, precision)
    if not (converted / "config.json").is_file():
        log.info("converting %s once, into %s", path, converted)
        model, tokenizer = dequantise_gguf(path, precision)
        _save_atomically(model, tokenizer, converted)
    return converted


def dequantise_gguf(path: Path, precision: torch.dtype) -> tuple[Any, Any]:
    """Return a GGUF model with dense weights, and its tokenizer.

    The libraries see a folder with a link to the file alone: beside it may lie anything.

    Raises:
        ModelError: If it cannot be opened, is one of several parts, or its tensors are not those of
            the model that its settings describe.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    header = read_gguf_header(path)
    if int(header.settings.get("split.count") or 1) > 1:
        raise ModelError(f"{path}: is one of several parts; merge them with llama-gguf-split")
    if "rope_freqs.weight" in header.sizes:
        raise ModelError(
            f"{path}: rope_freqs.weight has no place in transformers, which would compute other "
            f"positions; use the model's safetensors files"
        )
    try:
        from transformers import GgufConfig
    except ImportError:  # older versions of transformers always return dense weights
        dense: dict[str, Any] = {}
    else:
        dense = {"quantization_config": GgufConfig(dequantize=True)}
    # Its progress bar cannot be turned off.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        try:
            (Path(folder) / _LINK).symlink_to(path.absolute())
            tokenizer = AutoTokenizer.from_pretrained(
                folder, gguf_file=_LINK, local_files_only=True, trust_remote_code=False
            )
            opened: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                gguf_file=_LINK,
                dtype=precision,
                local_files_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # they are refused by name
                output_loading_info=True,
                **dense,
            )
        except Exception as error:
            raise ModelError(describe_load_error(path, error)) from error
    model, info = opened
    check_all_tensors_used(model, header.sizes, info, path)
    # Otherwise saving would declare the dense weights quantised.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, tokenizer


def load_gguf_tokenizer(path: Path) -> Any:
    """Return the tokenizer in a GGUF file.

    Raises:
        ModelError: If it cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / _LINK).symlink_to(path.absolute())
            return AutoTokenizer.from_pretrained(
                folder, gguf_file=_LINK, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:
        raise ModelError(describe_load_error(path, error)) from error


def describe_load_error(path: Path, error: Exception) -> str:
    """Return why a library could not open the model at `path`, in one line."""
    return f"{path}: cannot be opened as a language model ({describe_error(error)})"


def _save_atomically(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save beside `folder`, then rename, so that readers see all of it or nothing."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
    except OSError as error:
        raise storage_error(error, folder.parent) from None
    try:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        os.rename(part, folder)
    except OSError as error:
        if not (folder / "config.json").is_file():  # not: another process was first
            raise storage_error(error, folder) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
