"""Summarises a finished run of this study in one JSON document: `expected.json`.

python summary.py RUN
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import doublebind

sys.path.append(str(Path(__file__).parents[2]))
from studies.common import print_json, rounded


def compare_with_references(means: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Return model kind -> endpoint -> mean and s.d. of the references, and each other's value.

    All endpoints, with or without a score: looked at afterwards, nothing was decided on them.
    """
    rows: dict[str, Any] = {}
    for kind in ("teacher", "student"):
        models = {name.partition(":")[2]: m for name, m in means.items() if name.startswith(kind)}
        references = [name for name in models if name.startswith("matched-")]
        for endpoint in models[references[0]]:
            usual = [models[name][endpoint] for name in references]
            rows.setdefault(kind, {})[endpoint] = {
                "m0": means["m0:M0"][endpoint],
                "references": [statistics.mean(usual), statistics.stdev(usual)],
                **{Path(n).stem: m[endpoint] for n, m in models.items() if n not in references},
            }
    return rows


def main() -> None:
    """Print the summary."""
    run = doublebind.Run(sys.argv[1])
    verdict, evidence = run.verdict, run.evidence
    table: Any = run.scores.groupby(["model_kind", "teacher", "endpoint"])["value"].mean()
    means: dict[str, dict[str, float]] = {}
    for (kind, teacher, endpoint), mean in table.items():
        means.setdefault(f"{kind}:{teacher}", {})[endpoint] = float(mean)
    seconds: dict[str, list[float]] = {}
    for entry in run.ledger:
        if entry.status == "done" and not entry.cached and entry.ended is not None:
            seconds.setdefault(entry.kind, []).append(entry.ended - entry.started)
    summary = {
        "protocol_hash": verdict.protocol_hash,
        "decision": verdict.incrimination.decision,
        "strength": verdict.strength,
        "p_value": verdict.incrimination.p_value,
        "direct_p_value": evidence.direct.p_value,
        "endpoint_p": evidence.endpoint_p,
        "reasons": list(verdict.incrimination.reasons),
        "scores": evidence.scores,
        "direct_scores": evidence.direct_scores,
        "controls": evidence.controls,
        "score_endpoints": evidence.endpoints,
        "endpoints": means,
        "beside_references": compare_with_references(means),
        "cells_and_seconds": {kind: [len(each), sum(each)] for kind, each in seconds.items()},
    }
    print_json(rounded(summary, digits=4))


if __name__ == "__main__":
    main()
