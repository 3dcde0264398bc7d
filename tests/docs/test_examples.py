"""The notebook's cells run as they are, and the examples keep what the docs say of them."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from doublebind.packs.check import check_pack
from doublebind.packs.load import load_pack

ROOT = Path(__file__).parents[2]
NOTEBOOK = json.loads((ROOT / "examples" / "read_a_run.ipynb").read_text(encoding="utf-8"))
CELLS: list[dict[str, Any]] = [c for c in NOTEBOOK["cells"] if c["cell_type"] == "code"]


def test_the_notebook_was_executed_in_order_without_an_error() -> None:
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    outputs = [output for cell in CELLS for output in cell["outputs"]]
    assert outputs
    assert {output["output_type"] for output in outputs} <= {"execute_result", "stream"}
    assert "/tmp/" not in json.dumps(outputs)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_notebooks_cells_run(
    checkout: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout / "notebook").mkdir()
    monkeypatch.chdir(checkout / "notebook")
    names: dict[str, Any] = {"__name__": "__main__"}
    last: Any = None
    for cell in CELLS:
        tree = ast.parse("".join(cell["source"]))
        shown = isinstance(tree.body[-1], ast.Expr)
        body = ast.Module(tree.body[:-1] if shown else tree.body, [])
        exec(compile(body, "notebook", "exec", dont_inherit=True), names)
        if shown:
            ending = ast.Expression(tree.body[-1].value)  # type: ignore[attr-defined]
            last = eval(compile(ending, "notebook", "eval", dont_inherit=True), names)
    assert last is True, "it ends in a verified run"
    assert "`incrimination.p_value` is 0.05" in capsys.readouterr().out
    stored = "".join(CELLS[1]["outputs"][0]["data"]["text/plain"])
    assert f"'decision': '{names['run'].verdict.incrimination.decision}'" in stored


def test_the_example_pack_has_twenty_items_and_no_problem(tmp_path: Path) -> None:
    import runpy

    runpy.run_path(str(ROOT / "examples" / "own_pack.py"))["main"](tmp_path / "keys")
    pack = load_pack("keys", relative_to=tmp_path)
    assert len(pack.items("audit")) == 20
    assert len(pack.prompts()) == 24
    assert check_pack(pack) == []


def test_the_example_audit_is_short() -> None:
    text = (ROOT / "examples" / "own_audit.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 40
    [audit] = [n for n in ast.parse(text).body if isinstance(n, ast.ClassDef)]
    assert audit.end_lineno is not None
    assert audit.end_lineno - audit.lineno < 30
