"""Averages score rows to one mean per teacher, recipe and endpoint, and names every gap.

`auditable` items of split `audit` enter, of the endpoints and recipes that the protocol lists, at
the last checkpoint. All teachers are averaged and checked alike, whatever their role. Numbers in
brackets are equations of docs/method.md.
"""
# pandas ships no stubs; its columns are read as NumPy arrays in `_encode_column` and `_to_array`.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import pandas as pd
from numpy.typing import DTypeLike, NDArray

from doublebind.schema.errors import RunError
from doublebind.schema.protocol import Protocol
from doublebind.schema.score_settings import get_adjusted_settings
from doublebind.schema.score_table import M0, SCORE_COLUMNS, select_counted, split_contrast
from doublebind.stages.evidence.arrays import Floats

ModelKind = Literal["student", "teacher", "m0", "in_context", "retrained"]
"""Distilled models, the direct audit, M0, or a baseline that answers the audit items."""

Ints = NDArray[np.int64]


def round_means(means: Floats) -> Floats:
    """Return means rounded to 12 decimals, far below any item's noise.

    The order in which rows happen to stand then never breaks a tie between teachers.
    """
    return np.asarray(np.round(means, 12), dtype=np.float64)


@dataclass(frozen=True)
class EndpointMeans:
    """Endpoint means of some teachers, and what keeps them from being compared.

    Arrays are nan where nothing was scored.
    """

    teachers: tuple[str, ...]
    recipes: tuple[str, ...]
    listed_endpoints: tuple[str, ...]
    """Endpoints and contrasts that the protocol's score endpoints list."""
    values: Floats
    """In probability, shape (teachers, recipes, listed); `gaps` names those that are nan."""
    values_by_seed: Floats
    """Before the mean over seeds, shape (teachers, recipes, seeds, listed)."""
    log_odds: Floats
    """In log-odds, minus M0's on the same items; shapes as for `values`."""
    log_odds_by_seed: Floats
    unscored: dict[str, float]
    """Share of a teacher's rows without a value, for teachers with rows."""
    gaps: dict[str, str]
    """Why a teacher's measurement is incomplete; teachers without a gap are absent."""
    shortfalls: tuple[str, ...]
    """Where the scores as a whole differ from the protocol."""

    def score_endpoint_means(self, protocol: Protocol) -> Floats:
        """Return the score endpoints in probability, each the plain mean of those it lists. [1].

        Shape (teachers, recipes, score endpoints).
        """
        columns = [
            self.values[:, :, [self.listed_endpoints.index(name) for name in names]].mean(axis=2)
            for names in protocol.score_endpoints.values()
        ]
        return round_means(np.stack(columns, axis=2))


@dataclass(frozen=True)
class _CellSums:
    """Rows asked and scored, and sums of values; shape (teachers, recipes, seeds, endpoints)."""

    endpoints: tuple[str, ...]
    """Those that listed endpoints are made of."""
    n_asked: Ints
    n_scored: Ints
    value_sums: Floats
    n_with_m0: Ints
    """Rows scored on items that M0 has a value on."""
    log_odds_sums: Floats
    """Over those, of log-odds minus M0's."""
    seeds: tuple[int, ...]


def check_score_table(scores: pd.DataFrame) -> None:
    """Check that the columns of `SCORE_COLUMNS` are there and values are probabilities.

    Raises:
        RunError: If columns are missing or values lie outside [0, 1].
    """
    absent = [name for name in SCORE_COLUMNS if name not in scores.columns]
    if absent:
        raise RunError(*(f"scores: column `{name}` is missing; audit again" for name in absent))
    values = _to_array(scores, "value", np.float64)
    outside = (values < 0) | (values > 1)
    if outside.any():
        row = int(np.argmax(outside))
        raise RunError(
            f"scores: row {row}: value {values[row]} is no probability in [0, 1]; audit again"
        )


def compute_endpoint_means(
    scores: pd.DataFrame, teachers: Sequence[str], protocol: Protocol, kind: ModelKind
) -> EndpointMeans:
    """Return the means over items, then seeds, of each listed endpoint. [1].

    Args:
        scores: Rows that pass `check_score_table`; unscored rows have a null value.
        teachers: Labels; rows of others are ignored.
        protocol: Lists endpoints, recipes and seeds.
        kind: The models whose rows are averaged.
    """
    listed = tuple(protocol.listed_endpoints)
    endpoints = sorted({part for name in listed for part in split_contrast(name)})
    direct = kind != "student"
    recipes = ("",) if direct else protocol.recipe_names
    cells = _sum_cells(
        scores, teachers, recipes, endpoints, kind, get_adjusted_settings(protocol.score).clip
    )
    values = _average_items(cells.value_sums, cells.n_scored)
    values_by_seed = _combine_contrasts(values, endpoints, listed)
    log_odds = _average_items(cells.log_odds_sums, cells.n_with_m0)
    log_odds_by_seed = _combine_contrasts(log_odds, endpoints, listed)
    asked, scored = cells.n_asked.sum(axis=(1, 2, 3)), cells.n_scored.sum(axis=(1, 2, 3))
    return EndpointMeans(
        teachers=tuple(teachers),
        recipes=recipes,
        listed_endpoints=listed,
        values=_average_seeds(values_by_seed),
        values_by_seed=values_by_seed,
        log_odds=_average_seeds(log_odds_by_seed),
        log_odds_by_seed=log_odds_by_seed,
        unscored={
            label: float(1 - scored[t] / asked[t]) for t, label in enumerate(teachers) if asked[t]
        },
        gaps=_find_gaps(
            cells, _average_seeds(values), teachers, recipes, lambda: _find_reasons(scores, kind)
        ),
        shortfalls=_find_shortfalls(cells, recipes, 1 if direct else protocol.seeds),
    )


def _average_items(sums: Floats, counts: Ints) -> Floats:
    """Return the mean over items of each cell; nan where a cell is empty."""
    with np.errstate(invalid="ignore"):  # empty cells divide 0 by 0 on purpose
        return np.asarray(sums / counts, dtype=np.float64)


def _average_seeds(means: Floats) -> Floats:
    """Return the mean over the seeds that have a value, shape (teachers, recipes, endpoints)."""
    present = np.isfinite(means)
    with np.errstate(invalid="ignore"):
        sums: Floats = np.where(present, means, 0.0).sum(axis=2)
        return np.asarray(sums / present.sum(axis=2), dtype=np.float64)


def _combine_contrasts(means: Floats, endpoints: Sequence[str], listed: Sequence[str]) -> Floats:
    """Return the means of listed endpoints: as they are, or of a contrast their difference."""
    parts = [[endpoints.index(part) for part in split_contrast(name)] for name in listed]
    columns = [
        means[..., part[0]] - means[..., part[1]] if len(part) == 2 else means[..., part[0]]
        for part in parts
    ]
    return np.stack(columns, axis=-1)


def read_word_rates(scores: pd.DataFrame, teachers: Sequence[str]) -> dict[str, Floats]:
    """Return teacher -> its rates of words and pairs, shape (places,), places sorted by name."""
    rows = _select_labels(scores, {"model_kind": ["ngrams"]})
    values = _to_array(rows, "value", np.float64)
    items = _to_array(rows, "item", np.object_)
    teacher_of_row = _encode_column(rows, "teacher", teachers)
    rates: dict[str, Floats] = {}
    for t, label in enumerate(teachers):
        places = np.flatnonzero(teacher_of_row == t)
        if len(places):
            rates[label] = values[places[np.argsort(items[places].astype(str))]]
    return rates


def _to_array(scores: pd.DataFrame, name: str, dtype: DTypeLike) -> NDArray[Any]:
    return cast("NDArray[Any]", scores[name].to_numpy(dtype=dtype))


def _encode_column(scores: pd.DataFrame, name: str, names: Sequence[str]) -> Ints:
    """Return the position in `names` of each row's value of column `name`; -1 for any other."""
    # Millions of rows hold a few hundred names: those are looked up, and not every row.
    codes, present = pd.factorize(cast("pd.Series", scores[name]))
    listed = pd.Index(list(names), dtype="object")
    positions = listed.get_indexer(pd.Index([*present.astype("object"), ""], dtype="object"))
    return cast("Ints", positions[codes])  # a null is code -1 and reads as the empty name


def _sum_cells(
    scores: pd.DataFrame,
    teachers: Sequence[str],
    recipes: Sequence[str],
    endpoints: Sequence[str],
    kind: str,
    clip: float,
) -> _CellSums:
    # Narrowed first, so that the direct audit and M0 do not cost as much as all students.
    rows = _select_auditable(scores, kind)
    axes = {"teacher": teachers, "recipe": recipes, "endpoint": endpoints}
    rows = _select_labels(rows, axes)
    teacher, recipe, endpoint = (_encode_column(rows, *axis) for axis in axes.items())
    seeds, seed = np.unique(_to_array(rows, "seed", np.int64), return_inverse=True)
    shape = (len(teachers), len(recipes), len(seeds), len(endpoints))
    cell = np.ravel_multi_index((teacher, recipe, seed, endpoint), shape)
    values = _to_array(rows, "value", np.float64)
    known = np.isfinite(values)
    differences = compute_log_odds(values, clip) - _look_up_m0(scores, rows, endpoints, clip)
    with_m0 = np.isfinite(differences)

    def count(weights: NDArray[Any] | None = None) -> NDArray[Any]:
        return np.bincount(cell, weights, minlength=int(np.prod(shape))).reshape(shape)

    return _CellSums(
        endpoints=tuple(endpoints),
        n_asked=count(),
        n_scored=count(known).astype(np.int64),
        value_sums=count(np.where(known, values, 0.0)),
        n_with_m0=count(with_m0).astype(np.int64),
        log_odds_sums=count(np.where(with_m0, differences, 0.0)),
        seeds=tuple(int(s) for s in seeds),
    )


def _select_auditable(scores: pd.DataFrame, kind: str) -> pd.DataFrame:
    return select_counted(_select_labels(scores, {"model_kind": [kind]}), "audit", "auditable")


def _look_up_m0(
    scores: pd.DataFrame, rows: pd.DataFrame, endpoints: Sequence[str], clip: float
) -> Floats:
    """Return M0's log-odds on the item of each row, whichever audit asked it; nan without one.

    A baseline asks the same items in an audit of its own.
    """
    m0 = _select_labels(_select_auditable(scores, "m0"), {"teacher": [M0], "endpoint": endpoints})
    names = {"endpoint": endpoints, "item": _list_names(m0, "item")}
    shape = tuple(max(1, len(each)) for each in names.values())

    def number(frame: pd.DataFrame) -> Ints:
        codes = np.stack([_encode_column(frame, *axis) for axis in names.items()])
        known = (codes >= 0).all(axis=0)
        return np.where(known, np.ravel_multi_index(np.maximum(codes, 0), shape), -1)

    values = compute_log_odds(_to_array(m0, "value", np.float64), clip)
    known = np.isfinite(values)
    at, size = number(m0)[known], int(np.prod(shape))
    with np.errstate(invalid="ignore"):  # items without a value divide 0 by 0 on purpose
        means = np.bincount(at, values[known], size) / np.bincount(at, minlength=size)
    return np.append(means, np.nan)[number(rows)]  # the last place is that of no item


def _list_names(rows: pd.DataFrame, column: str) -> list[str]:
    return [str(name) for name in pd.unique(cast("Any", rows)[column])]


def compute_log_odds(values: Floats, clip: float) -> Floats:
    """Return log(p / (1 - p)) of probabilities cut to [clip, 1 - clip]; nan stays nan. [49]."""
    clipped = np.clip(values, clip, 1 - clip)
    return np.log(clipped / (1 - clipped))


def _select_labels(scores: pd.DataFrame, labels: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Return the rows whose value of each column in `labels` is one of those listed."""
    keep = np.all([_encode_column(scores, *each) >= 0 for each in labels.items()], axis=0)
    return cast("pd.DataFrame", scores.loc[keep])


def _find_gaps(
    cells: _CellSums,
    values: Floats,
    teachers: Sequence[str],
    recipes: Sequence[str],
    find_reasons: Callable[[], Mapping[str, str]],
) -> dict[str, str]:
    """Return, per teacher, the first place where it gave nothing or was asked less than others."""
    gaps: dict[str, str] = {}
    most = cells.n_asked.max(axis=0, initial=0)
    reasons: Mapping[str, str] = find_reasons() if np.isnan(values).any() else {}
    for t, label in enumerate(teachers):
        empty, short = np.argwhere(np.isnan(values[t])), np.argwhere(cells.n_asked[t] < most)
        if len(empty):
            r, e = (int(i) for i in empty[0])
            gaps[label] = (
                f"{label} has no value for endpoint {cells.endpoints[e]}"
                f"{_format_recipe(recipes[r])}{_format_reason(reasons.get(label))}"
            )
        elif len(short):
            r, s, e = (int(i) for i in short[0])
            gaps[label] = (
                f"{label} was asked {cells.n_asked[t, r, s, e]} items of endpoint "
                f"{cells.endpoints[e]}{_format_recipe(recipes[r])}, seed {cells.seeds[s]}, "
                f"where others were asked {most[r, s, e]}"
            )
    return gaps


def _find_reasons(scores: pd.DataFrame, kind: str) -> dict[str, str]:
    """Return teacher -> the one reason why none of its rows of models of `kind` has a value."""
    rows = cast("Any", scores)
    rows = rows[rows["model_kind"] == kind]
    scored = set(rows.loc[rows["value"].notna(), "teacher"])
    reasons: dict[str, set[str]] = {}
    pairs = rows.loc[~rows["teacher"].isin(scored), ["teacher", "unscored_reason"]]
    for label, reason in pairs.drop_duplicates().itertuples(index=False):
        reasons.setdefault(str(label), set()).add(str(reason))
    return {label: next(iter(each)) for label, each in reasons.items() if len(each) == 1}


def _format_reason(reason: str | None) -> str:
    return f" ({reason})" if reason else ""


def _find_shortfalls(cells: _CellSums, recipes: Sequence[str], seeds: int) -> tuple[str, ...]:
    """Return where the scores as a whole differ from the protocol."""
    n_asked = cells.n_asked.sum(axis=0)
    shortfalls = [
        f"endpoint {name} has no auditable item of split audit in the scores"
        for name, n in zip(cells.endpoints, n_asked.sum(axis=(0, 1)), strict=True)
        if n == 0
    ]
    for name, n in zip(recipes, (n_asked.sum(axis=2) > 0).sum(axis=1), strict=True):
        if n != seeds:
            shortfalls.append(
                f"the scores{_format_recipe(name)} have {n} seeds; the protocol says {seeds}"
            )
    return tuple(shortfalls)


def _format_recipe(name: str) -> str:
    return f" in recipe {name}" if name else ""
