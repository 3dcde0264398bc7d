"""Caps on code lines and parameters; docstrings, comments and blank lines are not counted."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "doublebind"
MODULE_CAP = 500
FUNCTION_CAP = 60
PARAMETER_CAP = 7
_VERB = "a public verb: each parameter is an option of its command"
_JOB = "a job's function: its parameters are the job's inputs by name"
WIDE_FUNCTIONS = {
    **{
        f"cli/main.py:{verb}": _VERB
        for verb in ("audit", "judge", "investigate", "forecast", "verify", "followup")
    },
    **{f"pipeline/audit_model.py:{verb}": _VERB for verb in ("audit", "judge", "investigate")},
    "pipeline/forecast.py:forecast": _VERB,
    "pipeline/followup.py:run_followup": _VERB,
    "stages/audits/battery.py:run_battery": _JOB,
    "stages/audits/followup/steps.py:write_hypotheses": _JOB,
    "stages/distillation/train_student.py:train_student": _JOB,
    "stages/rollouts/treatments/apply.py:apply_treatments": _JOB,
    "stages/rollouts/treatments/apply.py:filter_rollouts": _JOB,
    "stages/evidence/replacement.py:bound_replacement": "a bound's inputs, each a protocol's field",
    "study/protocol.py:freeze_protocol": "everything that a protocol freezes, once",
    "training/head_loss.py:forward": "autograd fixes the signature",
    "training/preference.py:train_dpo": "a loss's settings beside those of every training",
    "training/uld.py:train_uld": "a loss's settings beside those of every training",
}
"""Function over the cap of parameters -> why it stays."""
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


def count_parameters(source: str) -> dict[str, int]:
    """Parameters of each function, without `self` and `cls`."""
    counts: dict[str, int] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            listed = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            n = sum(argument.arg not in ("self", "cls") for argument in listed)
            counts[node.name] = max(n, counts.get(node.name, 0))
    return counts


SOURCES = {
    path.relative_to(SOURCE).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted(SOURCE.rglob("*.py"))
}


def test_modules_stay_within_the_cap() -> None:
    sizes = {name: len(code_lines(source)) for name, source in SOURCES.items()}
    too_long = {name: size for name, size in sizes.items() if size > MODULE_CAP}
    assert not too_long, f"over {MODULE_CAP} code lines, split by responsibility: {too_long}"


def test_functions_stay_within_the_cap() -> None:
    too_long = {
        f"{path}:{name}": size
        for path, source in SOURCES.items()
        for name, size in function_sizes(source).items()
        if size > FUNCTION_CAP
    }
    assert not too_long, f"over {FUNCTION_CAP} code lines: {too_long}"


def test_functions_take_few_parameters_or_are_listed_with_a_reason() -> None:
    wide = {
        f"{path}:{name}": count
        for path, source in SOURCES.items()
        for name, count in count_parameters(source).items()
        if count > PARAMETER_CAP
    }
    assert wide.keys() == WIDE_FUNCTIONS.keys(), wide


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


def test_parameters_are_counted_without_the_instance() -> None:
    assert count_parameters("class A:\n    def f(self, a, /, b, *c, d=1, **e): ...\n") == {"f": 3}


def test_a_function_is_measured_from_its_signature_to_its_end() -> None:
    body = "\n\n    # note\n".join(f"    x{i} = {i}" for i in range(5))
    assert function_sizes(f'def f():\n    """Doc."""\n{body}\n\n\ny = 1\n') == {"f:1": 6}
