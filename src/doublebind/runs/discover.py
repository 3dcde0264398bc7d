"""Decides about several suspects together that were weighed against the same references."""

from __future__ import annotations

from collections.abc import Sequence

from doublebind.runs.run import Run, explain_contradictions
from doublebind.schema.errors import RunError
from doublebind.schema.hashing import Record
from doublebind.stages.evidence.many_suspects import (
    adjust_for_suspects,
    min_references_for_suspects,
)

_SUSPECTS_OWN = ("suspect", "jobs", "shape")
"""Fields of a protocol in which runs on different suspects differ."""


class SuspectResult(Record):
    """One suspect among several."""

    run: str
    suspect: str
    decision: str
    """Its own verdict, at alpha."""
    p_value: float
    adjusted_p_value: float
    """Benjamini and Hochberg's; at most q keeps the false discovery rate at q."""
    discovered: bool
    """Whether that is so, and the suspect's own verdict is `incriminated`."""


class Discovery(Record):
    """Several suspects, and which of them are discovered at a false discovery rate."""

    q: float
    suspects: tuple[SuspectResult, ...]
    """The smallest p-value first."""
    references: int
    references_for_one: int
    """Fewest references with which one suspect alone could be discovered among so many."""


def discover_suspects(runs: Sequence[Run], q: float) -> Discovery:
    """Return which suspects are discovered when all of them are decided about together.

    Args:
        runs: Finished runs whose protocols differ in the suspect alone.
        q: False discovery rate, fixed beforehand.

    Raises:
        RunError: If q is no rate, protocols differ in more than the suspect, a suspect comes twice,
            or a run has no p-value.
    """
    if not 0 < q < 1:
        raise RunError(f"`--q`: {q:g} is no rate; choose one between 0 and 1, such as 0.05")
    for run in runs:
        with explain_contradictions(run.path):
            _check_run(run, runs[0])
    keys = [run.manifest.protocol.suspect for run in runs]
    for i, run in enumerate(runs):
        if keys[i] in keys[:i]:
            first = runs[keys.index(keys[i])].path
            raise RunError(f"{run.path}: its suspect is that of {first}; name one of the two")
    p_values = [run.verdict.incrimination.p_value or 0.0 for run in runs]
    results = [
        SuspectResult(
            run=str(run.path),
            suspect=run.verdict.suspect,
            decision=run.verdict.incrimination.decision,
            p_value=p,
            adjusted_p_value=adjusted,
            discovered=adjusted <= q + 1e-12
            and run.verdict.incrimination.decision == "incriminated",
        )
        for run, p, adjusted in zip(
            runs, p_values, map(float, adjust_for_suspects(p_values)), strict=True
        )
    ]
    return Discovery(
        q=q,
        suspects=tuple(sorted(results, key=lambda result: result.p_value)),
        references=runs[0].verdict.incrimination.n_references,
        references_for_one=min_references_for_suspects(len(runs), q),
    )


def _check_run(run: Run, first: Run) -> None:
    theirs, ours = (each.manifest.protocol.model_dump(mode="json") for each in (first, run))
    for name in {**theirs, **ours}:
        if name not in _SUSPECTS_OWN and theirs.get(name) != ours.get(name):
            raise RunError(
                f"{run.path}: its protocol differs from that of {first.path} in `{name}`; only "
                "runs that differ in the suspect alone are decided about together"
            )
    if run.verdict.incrimination.p_value is None:
        why = run.verdict.missing.get("incrimination.p_value", "no reason was recorded")
        raise RunError(f"{run.path}: no p-value ({why}); leave the run out, and say so")
