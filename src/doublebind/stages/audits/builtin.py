"""Built-in audits by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from doublebind.stages.audits.protocol import Audit


def resolve_audits(names: Sequence[str], folder: Path | None = None) -> tuple[Audit, ...]:
    """Return the built-in audits called `names`, and the tasks of other harnesses among them.

    Args:
        names: As a study names them.
        folder: What paths of task files are relative to; default the current one.
    """
    from doublebind.stages.audits.auditability import Auditability
    from doublebind.stages.audits.corroboration import Corroboration
    from doublebind.stages.audits.elicitation import Elicitation
    from doublebind.stages.audits.harness.inspect_task import InspectTask
    from doublebind.stages.audits.harness.lm_eval_task import read_harness_task
    from doublebind.stages.audits.option_audits import OPTION_AUDITS
    from doublebind.stages.audits.prompted_behaviour import PromptedBehaviour

    known: tuple[Audit, ...] = (*OPTION_AUDITS, Elicitation(), Auditability(), Corroboration())
    found: list[Audit] = [audit for audit in known if audit.name in names]
    for name in names:
        kind, is_task, task = name.partition(":")
        if kind == "under":
            found.append(PromptedBehaviour(task))
        elif kind == "lm-eval":
            found.append(read_harness_task(task, folder or Path()))
        elif is_task:
            found.append(InspectTask(task, "auditable" if kind == "inspect-auditable" else "gate"))
    return tuple(found)
