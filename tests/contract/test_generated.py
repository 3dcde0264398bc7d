"""What is written twice, in code and for readers, says the same: `python docs/generate.py`."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from pydantic import TypeAdapter

ROOT = Path(__file__).parents[2]


def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGES: dict[Path, str] = generate().pages()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_what_is_generated_is_up_to_date(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == PAGES[path], "run `python docs/generate.py`"


def test_every_command_and_column_is_documented() -> None:
    page = PAGES[ROOT / "docs" / "cli.md"]
    for command in ("demo", "run", "verify", "export", "pack check", "teacher build"):
        assert f"## `doublebind {command}`" in page
    assert "| `unscored_reason` |" in PAGES[ROOT / "docs" / "files.md"]


def test_schemas_know_every_key_that_shipped_studies_use() -> None:
    schemas = {p.stem: json.loads(text) for p, text in PAGES.items() if p.suffix == ".json"}
    study = schemas["study"]["properties"]
    for path in sorted(ROOT.glob("studies/*/study.yaml")):
        assert set(yaml.safe_load(path.read_text())) <= set(study)
    assert schemas["study"]["additionalProperties"] is False
    assert "No default: it is the claim." in study_policy(schemas)["alpha"]["description"]
    assert TypeAdapter(dict).validate_python(schemas["item"]["properties"])["kind"]["enum"]


def study_policy(schemas: dict) -> dict:
    return schemas["study"]["$defs"]["Policy"]["properties"]
