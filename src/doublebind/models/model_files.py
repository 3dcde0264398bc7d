"""Lists the files that make up a model, hashes them, and hands exactly these to the libraries.

Files that bear on answers are listed by name: weights (`model.safetensors`, or the shards that its
index names; `adapter_model.safetensors`), `config.json`, `adapter_config.json`,
`generation_config.json`, `TOKENIZER_FILES` and `system_prompt.txt`. Each enters the content key.
The libraries open a folder of links to these files (`link_files`), so that every other file is
inert: none of them is ever read, whatever it is called. Inert too are, within settings files, the
keys in `LOCATION_KEYS`, which only say where a model once lay, and those in `RUNTIME_KEYS`, which
name code to run it with; neither reaches the libraries.

Loads no weights and does not import torch.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from doublebind.execution.store import file_sha256, storage_error
from doublebind.schema.errors import ModelError, describe_error
from doublebind.schema.hashing import content_hash
from doublebind.schema.model_source import ModelFile, ModelSource

log = logging.getLogger("doublebind.models")

MODEL_WEIGHTS = "model.safetensors"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
MODEL_SETTINGS = (*TOKENIZER_FILES, "config.json", "generation_config.json")
ADAPTER_SETTINGS = (ADAPTER_CONFIG, "generation_config.json", *TOKENIZER_FILES)

LOCATION_KEYS = ("_name_or_path", "base_model_name_or_path", "revision")
"""Keys of `config.json` and `adapter_config.json` that say where a model once lay."""
RUNTIME_KEYS = (
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "experts_implementation",
    "_experts_implementation",
    "_experts_implementation_internal",
)
"""Keys of `config.json` that name the code of a layer, a hub repository perhaps: ours to choose."""
_REFUSED_KEYS = {
    "auto_map": "would run the model's own code, which is never done; use a model of an "
    "architecture that transformers has (then remove the key)",
    "quantization_config": "says that the weights are quantised, and these are opened only as "
    "full weights or .gguf; dequantise the model and save it again",
    "compression_config": "says that the weights are compressed, and these are opened only as "
    "full weights or .gguf; save the model uncompressed",
    "transformers_weights": f"names the weights; call the file {MODEL_WEIGHTS} and remove the key",
    "use_kernels": "fetches code, which is never done; remove the key",
    "hub_kernels": "fetches code, which is never done; remove the key",
    "kernel_config": "fetches code, which is never done; remove the key",
    "fusion_config": "replaces layers; remove the key",
    "megatron_config": "imports a module that the adapter names; train it with PEFT's own layers",
}
"""Key, at any depth of a settings file -> why a model with it is refused."""
_INERT_FILE_KEYS = ("special_tokens_map_file", "tokenizer_file")
"""Keys of `tokenizer_config.json` that name a former location and that transformers ignores."""
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


# --- what makes up a model -----------------------------------------------------------------------


def list_model_files(ref: str, folder: Path) -> list[Path]:
    """Return the files of the full model in `folder`, weights first.

    Raises:
        ModelError: If one is missing or unsafe, or two could be meant.
    """
    config = read_json(folder / "config.json")
    _refuse_unsafe_settings(folder, MODEL_SETTINGS)
    if "model_type" not in config:
        raise ModelError(f"{folder / 'config.json'}: no `model_type`; not a transformers model")
    if not any((folder / n).is_file() for n in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ModelError(f"{ref}: no tokenizer files in the folder; save the tokenizer with it")
    _refuse_lone_templates(folder)
    return [*_list_weights(ref, folder), *_list_present(folder, MODEL_SETTINGS)]


def list_adapter_files(folder: Path) -> list[Path]:
    """Return the files of the adapter in `folder`, weights first.

    Raises:
        ModelError: If one is missing or unsafe, or two could be meant.
    """
    _refuse_unsafe_settings(folder, ADAPTER_SETTINGS)
    for name in (MODEL_WEIGHTS, f"{MODEL_WEIGHTS}.index.json"):
        if (folder / name).is_file():
            raise ModelError(
                f"{folder}: holds a full model ({name}) and an adapter ({ADAPTER_CONFIG}); move "
                f"one of them into a folder of its own"
            )
    index = folder / f"{ADAPTER_WEIGHTS}.index.json"
    if index.is_file():
        raise ModelError(
            f"{index}: adapters are read from one file; put the shards into {ADAPTER_WEIGHTS}"
        )
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise _describe_missing_weights(str(folder), folder, ADAPTER_WEIGHTS)
    _check_header(folder / ADAPTER_WEIGHTS)
    alone = [n for n in ("chat_template.jinja", "tokenizer.json") if (folder / n).is_file()]
    if alone and not (folder / "tokenizer_config.json").is_file():
        raise ModelError(
            f"{folder / alone[0]}: without tokenizer_config.json it is not read; save the whole "
            f"tokenizer with the adapter, or delete the file"
        )
    _refuse_lone_templates(folder)
    return [folder / ADAPTER_WEIGHTS, *_list_present(folder, ADAPTER_SETTINGS)]


def _list_present(folder: Path, names: Sequence[str]) -> list[Path]:
    return [folder / name for name in names if (folder / name).is_file()]


def _list_weights(ref: str, folder: Path) -> list[Path]:
    """Return the safetensors files of a full model and their index, after checking the headers."""
    index = folder / f"{MODEL_WEIGHTS}.index.json"
    names = _read_index(index) if index.is_file() else [MODEL_WEIGHTS]
    paths = [folder / name for name in names]
    absent = [path.name for path in paths if not path.is_file()]
    if absent:
        raise _describe_missing_weights(ref, folder, absent[0])
    if (folder / MODEL_WEIGHTS).is_file() and MODEL_WEIGHTS not in names:
        raise ModelError(
            f"{folder / MODEL_WEIGHTS}: stands beside an index of other files; delete the one that "
            f"is not the model"
        )
    owners: dict[str, Path] = {}
    for path in paths:
        for tensor in _check_header(path):
            if owners.setdefault(tensor, path) is not path:
                raise ModelError(
                    f"{path}: {tensor} is in {owners[tensor].name} too; save the model again"
                )
    return [index, *paths] if index.is_file() else paths


def _read_index(index: Path) -> list[str]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(n, str) for n in shards.values()):
        raise ModelError(f"{index}: no `weight_map` of file names; save the model again")
    for name in shards.values():
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(
                f"{index}: names {name!r}; shards are .safetensors files beside their index"
            )
    return sorted(set(shards.values()))


def _describe_missing_weights(ref: str, folder: Path, name: str) -> ModelError:
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLE_SUFFIXES)
    if pickled:
        return ModelError(
            f"{folder / pickled[0]}: pickled weights can run code and are not loaded; "
            f"convert the model to safetensors"
        )
    return ModelError(f"{ref}: {name} is missing; save or download the model again")


def _check_header(path: Path) -> list[str]:
    """Return the names of the tensors in a safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path}: not a whole safetensors file ({error}); save or download it again"
        ) from None


# --- what is refused -----------------------------------------------------------------------------


def _refuse_unsafe_settings(folder: Path, settings: Sequence[str]) -> None:
    """Refuse a folder whose settings name code to run or files to read.

    `auto_map` is looked for in every `*config*.json`, those that are never read included: other
    programs read them.
    """
    for path in sorted(folder.glob("*config*.json")):
        if not path.is_file():
            continue
        try:
            content = read_json(path)
        except ModelError:
            if path.name in settings:
                raise
            continue
        refused = _REFUSED_KEYS if path.name in settings else ("auto_map",)
        for key, value in _iterate_settings(content):
            if value and key in refused:
                raise ModelError(f"{path}: `{key}` {_REFUSED_KEYS[key]}")
        if path.name == "tokenizer_config.json":
            _refuse_other_files(path, content)


def _refuse_other_files(path: Path, content: dict[str, Any]) -> None:
    for key, value in content.items():
        names_file = key.endswith("_file") and key not in _INERT_FILE_KEYS
        if value and (names_file or key in ("fast_tokenizer_files", "init_inputs")):
            raise ModelError(
                f"{path}: `{key}` is {value!r}, and a tokenizer is read from the files beside it "
                f"alone; remove the key"
            )


def _iterate_settings(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key and value of parsed JSON, at any depth."""
    waiting = [content]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield from node.items()
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)


def _refuse_lone_templates(folder: Path) -> None:
    """Refuse named chat templates without a default one.

    Beside a default one they are inert: they answer requests with tools or documents.
    """
    named = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    settings = folder / "tokenizer_config.json"
    default = (folder / "chat_template.jinja").is_file() or (
        settings.is_file() and read_json(settings).get("chat_template")
    )
    if named and not default:
        raise ModelError(
            f"{named[0]}: a template for special requests, and there is none for conversations; "
            f"save that one as chat_template.jinja"
        )


# --- hashes --------------------------------------------------------------------------------------


def describe_files(paths: Iterable[Path]) -> tuple[ModelFile, ...]:
    """Return what each file is now: its hash, size, times and inode."""
    return tuple(_describe_file(path) for path in paths)


def hash_files(files: Iterable[ModelFile]) -> list[list[str]]:
    """Return sorted rows of file name and hash: what a content key is computed from."""
    return sorted([Path(file.path).name, file.sha256] for file in files)


def _describe_file(path: Path) -> ModelFile:
    state = _read_state(path)
    times = (state.mtime_ns, state.ctime_ns, state.inode)
    file = state.model_copy(update={"sha256": _hash_state(state.path, state.size, *times)})
    if not _is_same(file):
        raise ModelError(f"{path}: changed while it was read; wait until it is written")
    return file


def _read_state(path: Path) -> ModelFile:
    """Return what the system says of a file, without its hash."""
    try:
        stat = path.stat()
    except OSError as error:
        raise unreadable(path, error) from None
    return ModelFile(
        path=str(path.absolute()),
        sha256="",
        size=stat.st_size,
        mtime_ns=stat.st_mtime_ns,
        ctime_ns=stat.st_ctime_ns,
        inode=stat.st_ino,
    )


@functools.lru_cache(maxsize=4096)
def _hash_state(path: str, size: int, *_: int) -> str:
    """Hash a file; once per process while its size, times and inode do not change."""
    log.debug("hashing %s (%d bytes)", path, size)
    return _hash_file(Path(path))


def _hash_file(path: Path) -> str:
    """Return the hash of a file, in settings files without the keys that are inert."""
    try:
        if path.name in ("config.json", ADAPTER_CONFIG):
            return content_hash(_drop_keys(read_json(path), LOCATION_KEYS))
        return file_sha256(path)
    except OSError as error:
        raise unreadable(path, error) from None
    except (UnicodeError, RecursionError) as error:  # lone surrogates, a thousand levels
        raise ModelError(
            f"{path}: not usable settings ({describe_error(error)}); save the model again"
        ) from None


def _is_same(file: ModelFile) -> bool:
    try:
        stat = os.stat(file.path)
    except OSError:
        return False
    now = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    return now == (file.size, file.mtime_ns, file.ctime_ns, file.inode)


def check_unchanged(files: Iterable[ModelFile]) -> None:
    """Compare files with what was hashed; those with other times or inodes are hashed again.

    Raises:
        ModelError: If one holds something else by now.
    """
    for file in files:
        if not _is_same(file) and _describe_file(Path(file.path)).sha256 != file.sha256:
            raise ModelError(
                f"{file.path}: is not what was hashed a moment ago; let nothing write to a model "
                f"that is in use, and start again"
            )


# --- what the libraries see ----------------------------------------------------------------------


@contextlib.contextmanager
def open_linked(
    source: ModelSource, folder: Path, list_files: Callable[[], list[Path]]
) -> Iterator[Path]:
    """Yield a folder of links to the hashed files in `folder`, which must not change meanwhile.

    Args:
        source: Whose files were hashed; for a model trained here, none were.
        folder: The full model's or the adapter's.
        list_files: Lists the files of a model trained here.
    """
    files = tuple(f for f in source.files if Path(f.path).parent == folder.absolute())
    if not files:
        files = tuple(_read_state(path) for path in list_files())
    check_unchanged(files)
    with link_files([Path(file.path) for file in files]) as links:
        yield links
        check_unchanged(files)


@contextlib.contextmanager
def link_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield a temporary folder that holds links to `paths`, and no other file.

    `config.json` and `adapter_config.json` are written anew, without the keys that are inert.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="doublebind-model-"))
        for path in paths:
            if path.name in ("config.json", ADAPTER_CONFIG):
                (folder / path.name).write_text(_write_settings(path), encoding="utf-8")
            else:
                (folder / path.name).symlink_to(path.absolute())
    except OSError as error:
        raise storage_error(error, Path(tempfile.gettempdir())) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_settings(path: Path) -> str:
    """Return the JSON text of a settings file without the keys that are inert."""
    try:
        keys = _drop_keys(read_json(path), LOCATION_KEYS)
        return json.dumps(_drop_deep(keys, RUNTIME_KEYS))
    except RecursionError:
        raise ModelError(f"{path}: is nested too deeply; save the model again") from None


def _drop_keys(content: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key not in keys}


def _drop_deep(content: Any, keys: Sequence[str]) -> Any:
    """Return parsed JSON without `keys`, at any depth."""
    if isinstance(content, dict):
        return {k: _drop_deep(v, keys) for k, v in content.items() if k not in keys}
    if isinstance(content, list):
        return [_drop_deep(value, keys) for value in content]
    return content


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in the file at `path`.

    Raises:
        ModelError: If it is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path}: not readable JSON ({describe_error(error)}); save the model again"
        ) from None
    if not isinstance(content, dict):
        raise ModelError(f"{path}: expected a JSON object; save the model again")
    return content


def unreadable(path: Path, error: OSError) -> ModelError:
    """Return what to raise for a file that the system does not give."""
    return ModelError(f"{path}: cannot be read ({error.strerror}); check it")
