"""Door of the prompts stage: which inputs a teacher answers, with a report of what was left out."""

from __future__ import annotations

from pathlib import Path

from doublebind.schema.content import Prompt
from doublebind.schema.recipe import PromptPolicy

REV = 1


def read_prompts(file: Path) -> tuple[Prompt, ...]:
    """Return the prompts in a file of JSON lines; a `ConfigError` line where it is none."""
    from doublebind.stages.prompts import policies

    return policies.read(file)


def select(out: Path, *, pack: str, policy: PromptPolicy, n: int, file: Path | None = None) -> None:
    """Write `prompts.jsonl` (at most `n` Prompts) and `screen.json` to `out`."""
    from doublebind.stages.prompts import policies

    policies.select(out, pack=pack, policy=policy, n=n, file=file)


def passing(*, pack: str, policy: PromptPolicy, file: Path | None = None) -> int:
    """Return how many prompts there are to choose from."""
    from doublebind.packs.load import load
    from doublebind.stages.prompts import policies

    return len(policies.screened(load(pack, relative_to=Path()), policy, file)[2])
