"""A Petri audit of a local model: an auditor model leads it on over several turns, a judge scores.

Knows how Petri is called and what its scores are. The auditor and the judge may be any of Inspect's
models; the target is asked under its content hash. What a judge says is its opinion of one talk: it
is reported on Petri's own scale and enters no score. Does not know whose student the target is.
"""
# Petri is an extra of Python 3.12 and later; the checker runs where it may be absent.
# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from doublebind.errors import ConfigError, MissingExtra

LOWEST, HIGHEST = 1, 10
"""Petri's scale; 10 is most of what a dimension names."""


def audit(
    lm: Any, seeds: Sequence[str], *, auditor: Any, judge: Any, turns: int, logs: Path
) -> dict[str, Any]:
    """Return what a judge made of an auditor's talks with a model, one talk per seed.

    Args:
        lm: The target; it is given no tools.
        seeds: What the auditor shall find out, one instruction per talk, as Petri takes them.
        auditor: Inspect's name of the model that leads the talk, or the model.
        judge: The same of the one that scores it.
        turns: Most turns of the auditor.
        logs: Folder for Inspect's log.

    Returns:
        `log`, its path; `samples`: `seed`, `answers` (of the target's), `judged`, `error`;
        `dimensions`: `name`, `value` (mean, 1 to 10; `None` where the judge gave none), `n`,
        `unscored`. Without dimensions the judge gave no score in due form.

    Raises:
        MissingExtra: If Petri is not installed; it needs Python 3.12 or later.
        ConfigError: If Inspect cannot open the auditor or the judge.
    """
    try:
        from inspect_ai import eval as run_tasks
        from inspect_petri import audit as petri
        from inspect_petri.target import target_agent
    except ImportError:
        raise MissingExtra("a Petri audit (on Python 3.12 or later)", "petri") from None
    from doublebind.audit.inspect_model import as_inspect

    target = as_inspect(lm)
    roles = {"auditor": _open("auditor", auditor), "judge": _open("judge", judge)}
    (log,) = run_tasks(
        petri(
            seed_instructions=list(seeds),
            max_turns=turns,
            compaction=False,  # talks with small targets are short, and counting needs a network
            target_tools="none",
            target=target_agent(model=target, system_required=False),
        ),
        model=target,
        model_roles={**roles, "target": target},
        display="none",
        log_dir=str(logs),
        fail_on_error=False,
    )
    samples = list(log.samples or [])
    return {
        "log": str(log.location),
        "samples": [_told(sample) for sample in samples],
        "dimensions": _dimensions(samples),
    }


def _open(role: str, model: Any) -> Any:
    from inspect_ai.model import get_model

    try:
        return get_model(model, memoize=False)
    except Exception as error:  # Inspect and the providers' clients have errors of their own
        raise ConfigError(f"`--{role}`: {model}: Inspect cannot open it ({error})") from None


def _told(sample: Any) -> dict[str, Any]:
    asked = sample.input if isinstance(sample.input, str) else sample.input[-1].text
    error = sample.error.message if sample.error else None
    answers = sum(turn.role == "assistant" for turn in sample.messages)
    judged = any(isinstance(score.value, dict) for score in (sample.scores or {}).values())
    return {"seed": asked, "answers": answers, "judged": judged, "error": error}


def _dimensions(samples: Sequence[Any]) -> list[dict[str, Any]]:
    """Return each dimension's mean over samples; a score off the scale is none."""
    given: dict[str, list[float]] = {}
    for sample in samples:
        for score in (sample.scores or {}).values():
            values = score.value if isinstance(score.value, dict) else {}
            for name, value in values.items():
                known = isinstance(value, int | float) and LOWEST <= value <= HIGHEST
                given.setdefault(name, []).extend([float(value)] if known else [])
    return [
        {
            "name": name,
            "value": fmean(values) if values else None,
            "n": len(values),
            "unscored": len(samples) - len(values),
        }
        for name, values in sorted(given.items())
    ]
