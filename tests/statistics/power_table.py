"""Writes `power_table.json`: the power of the rule, simulated without this project's code.

`python tests/statistics/power_table.py` takes some minutes. Own formulas, from
docs/method.md alone: sorting instead of NumPy's median, a loop over studies, a rank by position;
only the table is shared with the tests, which hold the library to it within two points.
"""

import json
import random
from pathlib import Path

ALPHA_INVERSE = 20
STUDIES = 20_000
TABLE = Path(__file__).with_name("power_table.json")


def middle(values: list[float]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def flagged(teachers: list[list[float]], floor: float) -> bool:
    """Whether the first of `teachers` (rows of endpoint means) is accused."""
    best = [-1e300] * len(teachers)
    for column in zip(*teachers, strict=True):
        centre = middle(list(column))
        spread = 1.48 * middle([abs(x - centre) for x in column])
        unit = spread if spread > floor else floor
        for t, x in enumerate(column):
            best[t] = max(best[t], (x - centre) / unit)
    position = 1 + sum(other >= best[0] for other in best[1:])
    return position * ALPHA_INVERSE <= len(teachers)


def rate(
    n: int, endpoints: int, rho: float, shift: float, moved: int, items: int, rng: random.Random
) -> float:
    """Teachers differ by s.d. 0.03 around 0.2; `items` answers each, 0 for the exact rate."""
    hits = 0
    for _ in range(STUDIES):
        rows: list[list[float]] = []
        for t in range(n + 1):
            common = rng.gauss(0, 1)
            row = []
            for e in range(endpoints):
                z = rho**0.5 * common + (1 - rho) ** 0.5 * rng.gauss(0, 1)
                level = 0.2 + 0.03 * z + (shift if t == 0 and e < moved else 0.0)
                level = min(1.0, max(0.0, level))
                if items:
                    level = sum(rng.random() < level for _ in range(items)) / items
                row.append(level)
            rows.append(row)
        hits += flagged(rows, 0.01)
    return hits / STUDIES


# n, endpoints, correlation, shift, endpoints moved, items
SETTINGS = [
    (19, 1, 0.0, 0.06, 1, 0),
    (19, 1, 0.0, 0.12, 1, 0),
    (39, 1, 0.0, 0.09, 1, 0),
    (59, 1, 0.0, 0.09, 1, 0),
    (99, 1, 0.0, 0.09, 1, 0),
    (19, 6, 0.0, 0.09, 6, 0),
    (19, 6, 0.0, 0.12, 1, 0),
    (39, 6, 0.5, 0.09, 6, 0),
    (39, 6, 0.8, 0.12, 2, 0),
    (59, 3, 0.3, 0.09, 3, 0),
    (19, 3, 0.3, 0.12, 3, 40),
    (39, 3, 0.3, 0.12, 1, 40),
]

if __name__ == "__main__":
    rows = [[*setting, rate(*setting, random.Random(i))] for i, setting in enumerate(SETTINGS)]
    TABLE.write_text(
        "[\n" + ",\n".join(" " + json.dumps(row) for row in rows) + "\n]\n", encoding="utf-8"
    )
