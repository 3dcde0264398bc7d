"""What stands in the evidence where nothing was asked about incrimination.

Knows which numbers are then absent. Computes none.
"""

from __future__ import annotations

from collections.abc import Sequence

from doublebind.evidence.conformal import reference_requirements
from doublebind.records import Direct, Evidence, Protocol, Teacher

WHY = "nothing was asked about incrimination"
_ABSENT = (
    "incrimination.p_value",
    "incrimination.e_value",
    "incrimination.gamma_at_alpha",
    "incrimination.conditional_fpr_upper_95",
    "incrimination.power",
    "incrimination.smallest_detectable_effect",
    "direct_audit.p_value",
)


def unasked(teachers: Sequence[Teacher], protocol: Protocol) -> Evidence:
    """Return the evidence of a study that asks for a replacement alone: who, and no number.

    Args:
        teachers: The suspect.
        protocol: For what alpha would have needed.
    """
    return Evidence(
        scores={},
        direct_scores={},
        endpoints={},
        n_references=0,
        n_families=0,
        n_at_or_above=None,
        n_allowed=-1,
        n_needed=reference_requirements(protocol.alpha),
        n_needed_standard=reference_requirements(protocol.alpha / 2),
        roles={teacher.label: teacher.role for teacher in teachers},
        p_value=None,
        direct=Direct(),
        missing=dict.fromkeys(_ABSENT, WHY),
    )
