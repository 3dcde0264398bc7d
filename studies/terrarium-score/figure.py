"""Draws one organism of the shipped panel going through the five steps of the score, as SVG.

python studies/terrarium-score/figure.py > docs/images/score-steps.svg
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from doublebind.pipeline.leave_one_out import collect_rows
from doublebind.schema.score_settings import ADJUSTED
from doublebind.stages.evidence.score import (
    ScoreRule,
    adjust_rows,
    score_teachers,
    standardise,
    standardise_groups,
)

sys.path.append(str(Path(__file__).parent))
from reweigh import load_panel

ORGANISM, DRIVE, ENDPOINT = "terrarium/organism-sabotage-0", "sabotage", "choice/sabotage"
WIDTH, ROW, LEFT, RIGHT = 760, 92, 20, 20
STEPS = (
    "x: log-odds on {endpoint}, minus M0's",
    "1, 2. r: less what the other teachers' covariates predict",
    "3. z: in units of the spread between all teachers",
    "4. g: mean over the endpoints of {drive}, standardised again",
    "5. S: the largest g over all drives; p = (1 + {k}) / ({n} + 1)",
)


def compute_steps() -> tuple[list[np.ndarray], int]:
    """Return the value of each teacher after each step, the organism first; and its rank count."""
    setting, scores = load_panel()
    references = [t for t in setting.teachers if t.role == "reference"]
    organism = next(t for t in setting.teachers if t.label == ORGANISM)
    protocol = setting.protocol.model_copy(update={"score": ADJUSTED})
    known = [("organism", organism)]
    rows = collect_rows(known, references, scores, setting.read_shapes(), protocol)  # type: ignore[arg-type]
    assert rows is not None
    compared = rows.all.select([len(references), *range(len(references))])
    rule = ScoreRule.from_protocol(protocol)
    column = protocol.listed_endpoints.index(ENDPOINT)
    group = list(protocol.score_endpoints).index(DRIVE)
    residuals = adjust_rows(compared, rule)
    s = score_teachers(compared, rule)
    steps = [
        compared.endpoints[:, column],
        residuals[:, column],
        standardise(residuals, rule.floor)[:, column],
        standardise_groups(compared, rule)[:, group],
        s,
    ]
    return steps, int(np.sum(s[1:] >= s[0]))


def draw_row(y: int, title: str, values: np.ndarray) -> list[str]:
    """Return one strip of dots: references as circles, the organism as a diamond."""
    low, high = float(values.min()), float(values.max())
    scale = (WIDTH - LEFT - RIGHT) / (high - low)
    parts = [
        f'<text x="{LEFT}" y="{y + 14}" class="title">{title}</text>',
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y + 56}" y2="{y + 56}" class="axis"/>',
        f'<text x="{LEFT}" y="{y + 74}" class="tick">{low:.2f}</text>',
        f'<text x="{WIDTH - RIGHT}" y="{y + 74}" class="tick end">{high:.2f}</text>',
    ]
    for t in (*range(1, len(values)), 0):
        x, middle = LEFT + scale * (float(values[t]) - low), y + 42 - 7 * (t % 3)
        if t:
            parts.append(f'<circle cx="{x:.1f}" cy="{middle}" r="4" class="reference"/>')
        else:
            diamond = f"M{x:.1f} {y + 27}l8 8l-8 8l-8 -8z"
            parts.append(f'<path d="{diamond}" class="organism"/>')
    return parts


def main() -> None:
    """Print the SVG."""
    steps, k = compute_steps()
    words = {"endpoint": ENDPOINT, "drive": DRIVE, "k": k, "n": len(steps[0]) - 1}
    parts = [
        line
        for i, (title, values) in enumerate(zip(STEPS, steps, strict=True))
        for line in draw_row(i * ROW, title.format(**words), values)
    ]
    style = (
        "text{font:14px sans-serif;fill:#333}.tick{font-size:12px;fill:#666}.end{text-anchor:end}"
        ".axis{stroke:#aaa}.reference{fill:#888;fill-opacity:.55}.organism{fill:#c0392b}"
    )
    print(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {ROW * len(STEPS)}" '
        f'role="img" aria-label="{ORGANISM} among {words["n"]} references, step by step">'
        f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>'
    )
    print("\n".join(parts))
    print("</svg>")


if __name__ == "__main__":
    main()
