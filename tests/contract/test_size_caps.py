"""Caps on code lines: docstrings, comments and blank lines are free."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "doublebind"
MODULE_CAP = 400
FUNCTION_CAP = 60
_NOT_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def code_lines(source: str) -> set[int]:
    """Numbers of the lines that hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NOT_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        # a string that stands alone documents a module, class, function or field
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    text = source.splitlines()
    return {number for number in lines if text[number - 1].strip()}


def function_sizes(source: str) -> dict[str, int]:
    """Code lines of each function, signature included, nested functions counted in both."""
    lines = code_lines(source)
    return {
        f"{node.name}:{node.lineno}": len(
            lines.intersection(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        )
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def test_there_is_something_to_measure() -> None:
    assert modules()


def test_modules_stay_within_the_cap() -> None:
    sizes = {
        str(path.relative_to(SOURCE)): len(code_lines(path.read_text(encoding="utf-8")))
        for path in modules()
    }
    too_long = {name: size for name, size in sizes.items() if size > MODULE_CAP}
    assert not too_long, f"over {MODULE_CAP} code lines, split by responsibility: {too_long}"


def test_functions_stay_within_the_cap() -> None:
    too_long = {
        f"{path.relative_to(SOURCE)}:{name}": size
        for path in modules()
        for name, size in function_sizes(path.read_text(encoding="utf-8")).items()
        if size > FUNCTION_CAP
    }
    assert not too_long, f"over {FUNCTION_CAP} code lines: {too_long}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('"""Module."""\n\n# why\nx = 1  # trailing\n', 1),
        ('class A:\n    """A."""\n\n    x: int = 1\n    """Field."""\n', 2),
        ("def f(\n    a,\n):\n    return (\n        # inside\n        a\n    )\n", 6),
        ('text = """one\n\nthree"""\n', 2),
        ('text = f"""one\n\n{1}"""\n', 2),
    ],
)
def test_only_code_is_counted(source: str, expected: int) -> None:
    assert len(code_lines(source)) == expected


def test_a_function_is_measured_from_its_signature_to_its_end() -> None:
    body = "\n\n    # note\n".join(f"    x{i} = {i}" for i in range(5))
    assert function_sizes(f'def f():\n    """Doc."""\n{body}\n\n\ny = 1\n') == {"f:1": 6}
