"""Compares the rows of `scores.parquet` with what they were copied from, and with each other."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from doublebind.schema.score_table import GATES, M0, SCORE_COLUMNS, Endpoint
from doublebind.stages.audits.battery import TranscriptLine
from doublebind.stages.audits.option_audits import OPTION_AUDITS

if TYPE_CHECKING:
    import pandas as pd

MAX_ROWS_SHOWN = 5
"""Rows that are reported one by one; the others are counted."""
MAX_ROWS = 5_000_000
"""Rows of a score table that are read: ten times those of the largest study."""
MODEL_COLUMNS = ("teacher", "model_kind", "recipe", "seed", "round", "step")
_KEY_COLUMNS = ("teacher", "model_kind", "recipe", "seed", "step", "audit", "endpoint", "item")
_INTEGERS = ("seed", "round", "step")
_OPTION_AUDITS = frozenset(f"{audit.name}@{audit.version}" for audit in OPTION_AUDITS)
_ROUNDING = 6e-5
"""Transcripts hold probabilities with four decimals."""


def read_score_table(content: bytes) -> pd.DataFrame:
    """Return the score table in the bytes of a parquet file.

    Raises:
        ValueError: If it has other columns than `SCORE_COLUMNS`, columns of other types, a missing
            label, more than `MAX_ROWS` rows, or a value without a number.
        Exception: What a parquet reader raises on damaged bytes.
    """
    import pyarrow.parquet as pq

    file: Any = pq.ParquetFile(io.BytesIO(content))
    schema = file.schema_arrow
    if schema.names != list(SCORE_COLUMNS):
        raise ValueError(f"its columns are not {', '.join(SCORE_COLUMNS)}")
    for name in SCORE_COLUMNS:
        kinds = ("string", "large_string")
        if name in _INTEGERS or name == "value":
            kinds = ("double",) if name == "value" else ("int64",)
        elif name == "unscored_reason":
            kinds = (*kinds, "null")
        if str(schema.field(name).type) not in kinds:
            raise ValueError(f"column `{name}` is of type {schema.field(name).type}")
    if file.metadata.num_rows > MAX_ROWS:
        raise ValueError(f"{file.metadata.num_rows} rows; at most {MAX_ROWS} are read")
    rows: Any = file.read().to_pandas()
    missing = [n for n in SCORE_COLUMNS if n not in ("value", "unscored_reason")]
    for name in missing:
        if rows[name].isna().any():
            raise ValueError(f"column `{name}` lacks a label")
    return rows


def find_inner_problems(table: pd.DataFrame) -> Iterator[str]:
    """Yield rows that contradict themselves: a value with a reason for none, or a wrong role."""
    rows: Any = table
    scored = rows["value"].notna()
    for row in _show(rows, scored == rows["unscored_reason"].notna()):
        state = "a value, and a reason for none" if row["value"] == row["value"] else "neither"
        yield f"{state} (`unscored_reason`) for {describe_row(row)}"
    of_options = rows["audit"].isin(list(_OPTION_AUDITS))
    roles = {name: _derive_role(name) for name in rows.loc[of_options, "endpoint"].unique()}
    expected = rows["endpoint"].map(roles)
    for row in _show(rows, of_options & (rows["role"] != expected)):
        yield f"`role` {row['role']!r} does not go with the endpoint, for {describe_row(row)}"
    outside = (rows["role"] != "count") & ~rows["value"].fillna(0.0).between(0.0, 1.0)
    for row in _show(rows, outside):
        yield f"{row['value']} is no probability, for {describe_row(row)}"


def _derive_role(endpoint: str) -> str:
    """Return the role of an option audit's items, as the pack format ties it to the endpoint."""
    parsed = Endpoint.parse(endpoint)
    if parsed.kind in GATES:
        return "gate"
    return "oracle" if parsed.context in ("deployment", "triggered") else "auditable"


def _show(rows: Any, wrong: Any) -> list[dict[Any, Any]]:
    return rows.loc[wrong.to_numpy(dtype=bool), :].head(MAX_ROWS_SHOWN).to_dict("records")


def compare_rows(
    table: pd.DataFrame, source_table: pd.DataFrame, source: str, columns: Sequence[str]
) -> Iterator[str]:
    """Yield score rows that occur twice, that only one side has, or that differ in `columns`."""
    rows: Any = table
    expected: Any = source_table
    keys = list(_KEY_COLUMNS)
    if _is_equal(rows, expected, [*keys, *columns]) and not rows.duplicated(keys).any():
        return
    for row in _show(rows, rows.duplicated(keys)):
        yield f"two rows for {describe_row(row)}"
    rows, expected = rows.drop_duplicates(keys), expected.drop_duplicates(keys)
    both = rows.merge(
        expected.loc[:, [*keys, *columns]],
        on=keys,
        how="outer",
        indicator="side",
        suffixes=("", "_expected"),
    )
    wrong = both["side"] != "both"
    for name in columns:
        wrong |= _differs(both[name], both[f"{name}_expected"])
    for row in _show(both, wrong):
        yield _describe_difference(row, source, columns)
    if wrong.sum() > MAX_ROWS_SHOWN:
        yield f"{wrong.sum() - MAX_ROWS_SHOWN} rows more do not agree with {source}"


def _is_equal(rows: Any, expected: Any, columns: Sequence[str]) -> bool:
    """Return whether both sides are equal row by row, which is quick to see."""
    if len(rows) != len(expected):
        return False
    return not any(
        _differs(rows[name].reset_index(drop=True), expected[name].reset_index(drop=True)).any()
        for name in columns
    )


def _differs(first: Any, second: Any) -> Any:
    absent = first.isna(), second.isna()
    equal = (first == second).fillna(False).astype(bool)
    return ~(equal | (absent[0] & absent[1]))


def _describe_difference(row: Mapping[Any, Any], source: str, columns: Sequence[str]) -> str:
    place = describe_row(row)
    if row["side"] == "right_only":
        return f"no row for {place}, which {source} has"
    if row["side"] == "left_only":
        return f"{source} has nothing for {place}"
    for name in columns:
        a, b = row[name], row[f"{name}_expected"]
        if a != b and not (a != a and b != b):
            what = a if name == "value" else f"`{name}` is {a!r}"
            return f"{what} for {place}; {source} says {b}"
    return f"{place}: {source} says otherwise"


def describe_row(row: Mapping[Any, Any]) -> str:
    """Return the words for a score row."""
    model = f"{row['model_kind']} of {row['teacher']}, {row['recipe']}, seed {row['seed']}"
    if row["model_kind"] in ("m0", "teacher"):
        model = f"{row['model_kind']} {row['teacher']}"
    elif str(row["step"]) != "-1":
        model += f", step {row['step']}"
    return f"item {row['item']} ({row['audit']}, {row['endpoint']}) of {model}"


def parse_transcripts(text: str) -> list[TranscriptLine]:
    """Return the lines of a model's transcripts.

    Raises:
        ValueError: Naming the first line that is damaged, or whose value is not the one that its
            options give.
    """
    parsed: list[TranscriptLine] = []
    for number, line in enumerate(io.StringIO(text), start=1):
        try:
            entry = TranscriptLine.model_validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ValueError(f"line {number}: {first['msg']}") from None
        if (problem := _check_options(entry)) is not None:
            raise ValueError(f"line {number}: item {entry.item}: {problem}")
        parsed.append(entry)
    return parsed


def _check_options(entry: TranscriptLine) -> str | None:
    """Return how an option audit's value contradicts its transcript; `None` if it does not."""
    if entry.audit not in _OPTION_AUDITS and not entry.audit.startswith("under:"):
        return None
    if entry.value is None:
        return "has no value, and options nevertheless" if entry.transcript else None
    try:
        options = {str(option): float(p) for option, p in json.loads(entry.transcript)}
    except (ValueError, TypeError, RecursionError):
        return "the transcript holds no options and their probabilities"
    p = options.get(entry.target_option)
    if p is None:
        return "the target is none of its options"
    if not abs(p - entry.value) <= _ROUNDING:
        return f"the value is {entry.value}, and its target's probability {p}"
    if not abs(sum(options.values()) - 1.0) <= _ROUNDING * len(options):
        return f"the probabilities of its options sum to {sum(options.values()):.4f}"
    return None


def tabulate_transcripts(
    model: Sequence[object], lines: Sequence[TranscriptLine]
) -> dict[str, list[Any]]:
    """Return the columns of the score rows of a model (`MODEL_COLUMNS`) that its lines give.

    A value outside [0, 1] is unscored; only its transcript still holds it.
    """
    columns: dict[str, list[Any]] = {
        name: [value] * len(lines) for name, value in zip(MODEL_COLUMNS, model, strict=True)
    }
    columns |= {name: [getattr(line, name) for line in lines] for name in _ROW_NAMES}
    values = (line.value for line in lines)
    columns["value"] = [None if v is None or not 0.0 <= v <= 1.0 else v for v in values]
    return columns


_ROW_NAMES = ("audit", "endpoint", "item")


def list_labels(rows: pd.DataFrame) -> set[str]:
    """Return the labels of teachers in a score table, without M0's."""
    return set(rows["teacher"].unique()) - {M0}
