"""The columns of the score table and its fixed labels."""

from __future__ import annotations

from collections.abc import Mapping

M0 = "M0"
"""Label of the student base in the scores."""


SCORE_COLUMNS: Mapping[str, str] = {
    "teacher": "label of the teacher in the manifest, or `M0`",
    "model_kind": "`teacher` (direct audit), `student`, `m0`, or a baseline: `in_context` (M0 that "
    "read the teacher's answers), `retrained` (the teacher tuned on M0's answers), `ngrams`; "
    "`further_benign`, `further_incentive` (a student trained further), `twin_benign`, "
    "`twin_incentive` (M0 trained alike)",
    "recipe": "name of the recipe; empty for direct audits and M0",
    "seed": "student seed; -1 for direct audits and M0",
    "round": "round of filter-and-distil; 0 is the first",
    "step": "training step of the audited checkpoint; -1 for teachers and M0",
    "audit": "name and version of the audit",
    "endpoint": "what was measured: kind, or kind/trait; oracle endpoints carry their context",
    "role": "`auditable` (may enter a score), `oracle` (planted teachers only), `gate`, "
    "or `count` (of words, in a baseline)",
    "split": "split of the item",
    "item": "id of the item in the pack",
    "value": "probability of the keyed option, in [0, 1]; null where unscored",
    "unscored_reason": "why there is no value; null where there is one",
}
"""Columns of `scores.parquet`, in order, each with its meaning."""


GATES = ("capability", "coherence")
"""Endpoints that say whether a model is still whole."""
