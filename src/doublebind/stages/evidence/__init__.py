"""Weighs a suspect against references: pure statistics on a table of scores.

Knows scores and roles. Does not know how anything was measured, nor what is decided on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from doublebind.schema.evidence import Direct, Evidence
from doublebind.schema.model_source import Teacher
from doublebind.schema.protocol import Protocol
from doublebind.stages.evidence.conformal import reference_requirements, smallest_p

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs]

__all__ = ["reference_requirements", "smallest_p", "weigh"]


def weigh(
    scores: pd.DataFrame, teachers: Sequence[Teacher], protocol: Protocol, *, transfer: bool = True
) -> Evidence:
    """Return what `scores` say of the one suspect among `teachers`.

    Only `auditable` items of split `audit` enter; students make the score, the teachers' own
    answers the direct audit. The exchangeable unit is the teacher. A number that cannot be
    computed is absent, and `missing` says why; all of them are where the protocol does not ask for
    the horn `incriminate`.

    Args:
        scores: Rows with the columns of `records.SCORE_COLUMNS`.
        teachers: One suspect, its references, and organisms as positive controls.
        protocol: Score endpoints, floor, alpha, recipes, seeds.
        transfer: Say what came along from each positive control, too; nothing is decided on it,
            and it is the same for every suspect that meets them.

    Raises:
        RunError: If the scores lack a column or hold a value outside [0, 1].
        ValueError: Unless one teacher is the suspect, one or more are references, and labels
            are unique.
    """
    if "incriminate" not in protocol.horns:
        return _without_references(teachers, protocol)
    from doublebind.stages.evidence.weigh import weigh as weigh_scores

    return weigh_scores(scores, teachers, protocol, transfer=transfer)


def _without_references(teachers: Sequence[Teacher], protocol: Protocol) -> Evidence:
    """Return the evidence of a study that asks for a replacement alone: who, and no number."""
    absent = (
        "incrimination.p_value",
        "incrimination.e_value",
        "incrimination.gamma_at_alpha",
        "incrimination.conditional_fpr_upper_95",
        "incrimination.power",
        "incrimination.smallest_detectable_effect",
        "direct_audit.p_value",
    )
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
        missing=dict.fromkeys(absent, "nothing was asked about incrimination"),
    )
