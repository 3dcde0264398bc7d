"""What the library never does: print, unpickle, run a model's own code, call home."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "doublebind"
MAY_PRINT = {"cli/output.py"}
# The client of a model server that the user names; nothing else opens a connection.
MAY_CONNECT = {"models/http_client.py"}

_PICKLE = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
_NETWORK = {"aiohttp", "http", "httpx", "httpx2", "requests", "socket", "urllib", "urllib3"}
_HARMLESS = {"http.HTTPStatus", "urllib.parse"}
_UNSAFE_KEYWORDS = {"allow_pickle", "trust_remote_code"}
_UNSAFE_METHODS = {"read_pickle", "to_pickle"}


def violations(source: str, name: str) -> Iterator[str]:
    """One line per forbidden construct in a module; `name` is its path inside the package."""
    for node in ast.walk(ast.parse(source)):
        for problem in (*_imports(node, name), *_calls(node, name), *_loading_calls(node)):
            yield f"{name}:{getattr(node, 'lineno', 0)}: {problem}"


def _imports(node: ast.AST, name: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        imported = {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
        imported = {f"{node.module}.{alias.name}" for alias in node.names}
    else:
        return
    for module in sorted(imported):
        top = module.partition(".")[0]
        harmless = any(f"{module}.".startswith(f"{prefix}.") for prefix in _HARMLESS)
        if top in _PICKLE or module == "torch.load":
            yield f"imports {module}: loading it can run code; use safetensors or JSON"
        if top in _NETWORK and not harmless and name not in MAY_CONNECT:
            yield f"imports {module}: only {sorted(MAY_CONNECT)} may connect"


def _calls(node: ast.AST, name: str) -> Iterator[str]:
    if isinstance(node, ast.Attribute):
        owner = node.value.id if isinstance(node.value, ast.Name) else ""
        if node.attr in _UNSAFE_METHODS or (owner, node.attr) == ("torch", "load"):
            yield f"{owner}.{node.attr}: loading it can run code; use safetensors or parquet"
    if isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and key.value in _UNSAFE_KEYWORDS:
                yield from _unsafe(str(key.value), value)
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Name) and node.func.id == "print" and name not in MAY_PRINT:
            yield "calls print: return a value, or let cli/output.py write it"
        for keyword in node.keywords:
            if keyword.arg in _UNSAFE_KEYWORDS:
                yield from _unsafe(keyword.arg, keyword.value)


def _loading_calls(node: ast.AST) -> Iterator[str]:
    """Calls that may run a model's own code unless they say `trust_remote_code=False`."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return
    owner = node.func.value
    automatic = isinstance(owner, ast.Name) and owner.id.startswith("Auto")
    if node.func.attr == "from_pretrained" or (automatic and node.func.attr == "from_config"):
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        value = given.get("trust_remote_code")
        if not (isinstance(value, ast.Constant) and value.value is False):
            yield f"{node.func.attr} without trust_remote_code=False: it may ask to run code"


def _unsafe(option: str, value: ast.expr) -> Iterator[str]:
    if not (isinstance(value, ast.Constant) and value.value is False):
        yield f"{option} may be something else than False"


def test_library_does_none_of_it() -> None:
    problems = [
        line
        for path in sorted(SOURCE.rglob("*.py"))
        for line in violations(
            path.read_text(encoding="utf-8"), path.relative_to(SOURCE).as_posix()
        )
    ]
    assert not problems, "\n".join(problems)


def test_no_file_of_the_project_lets_a_model_run_its_code() -> None:
    problems = [
        f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}: {problem}"
        for folder in ("src", "bench", "tools", "studies", "examples")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for problem in _loading_calls(node)
    ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    "source",
    [
        "print('x')",
        "import pickle",
        "from pickle import loads",
        "import urllib.request",
        "from urllib import request",
        "import requests as r",
        "from torch import load",
        "torch.load(path)",
        "load = torch.load",
        "frame.to_pickle(path)",
        "np.load(path, allow_pickle=True)",
        "from_pretrained(name, trust_remote_code=True)",
        "from_pretrained(name, trust_remote_code=flag)",
        "options = {'trust_remote_code': True}",
        "AutoTokenizer.from_pretrained(name)",
        "AutoModelForCausalLM.from_config(config)",
        "transformers.LlamaForCausalLM.from_pretrained(name, **options)",
    ],
)
def test_each_violation_is_seen(source: str) -> None:
    assert list(violations(source, "stages/audits/battery.py"))


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("print('x')", "cli/output.py"),
        ("import urllib.request", "models/http_client.py"),
        ("from urllib.parse import urlsplit", "schema/study.py"),
        ("import urllib.parse", "schema/study.py"),
        ("from_pretrained(name, trust_remote_code=False)", "models/load.py"),
        ("AutoModel.from_config(config, trust_remote_code=False)", "models/load.py"),
        ("json.load(file)", "execution/store.py"),
    ],
)
def test_what_is_allowed_passes(source: str, name: str) -> None:
    assert not list(violations(source, name))
