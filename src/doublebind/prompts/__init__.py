"""Door of the prompts stage: which inputs a teacher answers, with a report of what was left out."""

from __future__ import annotations

from pathlib import Path

from doublebind.config import PromptPolicy

REV = 1


def select(out: Path, *, pack: str, policy: PromptPolicy, n: int) -> None:
    """Write `prompts.jsonl` (at most `n` Prompts) and `screen.json` to `out`."""
    from doublebind.prompts import policies

    policies.select(out, pack=pack, policy=policy, n=n)
