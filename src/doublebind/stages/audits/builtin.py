"""Built-in audits by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from doublebind.stages.audits.protocol import Audit


def resolve_audits(names: Sequence[str], folder: Path | None = None) -> tuple[Audit, ...]:
    """Return the audits that a study calls `names`: built-in ones, and tasks of other harnesses.

    Paths of task files are relative to `folder`, by default the current one.
    """
    from doublebind.stages.audits.auditability import Auditability
    from doublebind.stages.audits.corroboration import Corroboration
    from doublebind.stages.audits.elicitation import Elicitation
    from doublebind.stages.audits.harness.inspect_task import InspectTask
    from doublebind.stages.audits.harness.lm_eval_task import read_harness_task
    from doublebind.stages.audits.option_audits import OPTION_AUDITS
    from doublebind.stages.audits.prompted_behaviour import PromptedBehaviour

    known: tuple[Audit, ...] = (*OPTION_AUDITS, Elicitation(), Auditability(), Corroboration())
    audits: list[Audit] = [audit for audit in known if audit.name in names]
    for name in names:
        kind, is_task, task = name.partition(":")
        if kind == "prompted":
            audits.append(PromptedBehaviour(task))
        elif kind == "lm-eval":
            audits.append(read_harness_task(task, folder or Path()))
        elif is_task:
            audits.append(InspectTask(task, "auditable" if kind == "inspect-auditable" else "gate"))
    return tuple(audits)
