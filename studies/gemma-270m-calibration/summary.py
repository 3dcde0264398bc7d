"""Says in one JSON document what a finished run of this study found: `expected.json`.

python summary.py RUN
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import doublebind


def rounded(value: Any) -> Any:
    """Return numbers to four digits, whatever they are nested in."""
    if isinstance(value, Mapping):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value


def beside(means: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Return model kind -> endpoint -> mean and s.d. of the references, and everybody else's value.

    All endpoints, those that no score has too: looked at afterwards, nothing was decided on it.
    """
    found: dict[str, Any] = {}
    for kind in ("teacher", "student"):
        own = {name.partition(":")[2]: m for name, m in means.items() if name.startswith(kind)}
        references = [name for name in own if name.startswith("matched-")]
        for endpoint in own[references[0]]:
            usual = [own[name][endpoint] for name in references]
            found.setdefault(kind, {})[endpoint] = {
                "m0": means["m0:M0"][endpoint],
                "references": [statistics.mean(usual), statistics.stdev(usual)],
                **{Path(n).stem: own[n][endpoint] for n in own if n not in references},
            }
    return found


def main() -> None:
    """Print what the run found."""
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
    kept = {
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
        "beside_references": beside(means),
        "cells_and_seconds": {kind: [len(each), sum(each)] for kind, each in seconds.items()},
    }
    print(json.dumps(rounded(kept), indent=1))


if __name__ == "__main__":
    main()
