"""Generated pages and schemas are up to date: `python docs/generate.py`."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGES: dict[Path, str] = load_generator().pages()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_generated_file_is_up_to_date(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == PAGES[path], "run `python docs/generate.py`"


def test_every_command_and_column_is_documented() -> None:
    page = PAGES[ROOT / "docs" / "cli.md"]
    for command in ("demo", "run", "verify", "export", "pack check", "teacher build"):
        assert f"## `doublebind {command}`" in page
    assert "| `unscored_reason` |" in PAGES[ROOT / "docs" / "files.md"]


def test_schemas_know_every_key_that_shipped_studies_use() -> None:
    schemas: dict[str, Any] = {
        path.stem: json.loads(text) for path, text in PAGES.items() if path.suffix == ".json"
    }
    study = schemas["study"]["properties"]
    for path in sorted(ROOT.glob("studies/*/study.yaml")):
        assert set(yaml.safe_load(path.read_text())) <= set(study)
    assert schemas["study"]["additionalProperties"] is False
    alpha = schemas["study"]["$defs"]["Policy"]["properties"]["alpha"]
    assert "No default: it is the claim." in alpha["description"]
    assert schemas["item"]["properties"]["kind"]["enum"]
