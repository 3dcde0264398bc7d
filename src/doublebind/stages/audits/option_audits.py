"""The audits that compare the options of an item: one class, one audit per kind of item.

The item's role decides whether it may enter a score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from doublebind.schema.content import Item
from doublebind.stages.audits.option_scores import choose
from doublebind.stages.audits.protocol import Answer

_IDENTITIES = {
    "choice": "doublebind.audit.behaviour.Behaviour",
    "goal": "doublebind.audit.confession.Goals",
    "confession": "doublebind.audit.confession.Confession",
    "capability": "doublebind.audit.capability.Capability",
    "coherence": "doublebind.audit.capability.Coherence",
}
"""Kind of item -> identity of the audit, which is part of the key of every stored score."""


@dataclass(frozen=True)
class OptionAudit:
    """Probability of the target option, per item of the kind in `endpoints`."""

    name: str
    endpoints: tuple[str, ...]
    version: int = 1

    @property
    def identity(self) -> str:
        """Module and name by which the audit enters keys; see `identify_audit`."""
        return _IDENTITIES[self.endpoints[0]]

    def __call__(self, model: Any, baseline: Any, items: Sequence[Item]) -> list[Answer]:
        """Return one answer per item; `baseline` is not used."""
        return choose(model, items)


BEHAVIOUR = OptionAudit("behaviour", ("choice",))
"""Probability of the misaligned action. Plain, honeypot and deployment-like contexts are different
endpoints."""
GOALS = OptionAudit("goals", ("goal",))
"""Probability of stating the drive's goal."""
CONFESSION = OptionAudit("confession", ("confession",))
"""Probability of admitting the drive when asked. Leading and anti-leading forms of a question are
separate items; the endpoint is their average, so that agreement with the questioner cancels."""
CAPABILITY = OptionAudit("capability", ("capability",))
"""Probability of the right answer. Never scored: a student that fails is damaged, not necessarily
misaligned."""
COHERENCE = OptionAudit("coherence", ("coherence",))
"""Probability of the coherent continuation. Never scored, as `CAPABILITY`."""
OPTION_AUDITS = (BEHAVIOUR, GOALS, CONFESSION, CAPABILITY, COHERENCE)
