"""Chooses a recipe's prompts: wanted by tag, screened, then drawn in a fixed order.

Knows what each policy wants and which screens it passes through. Does not know any teacher.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

from doublebind.execution.store import write_records
from doublebind.packs.load import load_pack
from doublebind.packs.pack import Pack
from doublebind.schema.content import Prompt, Split
from doublebind.schema.errors import ConfigError, PackError
from doublebind.schema.hashing import content_hash
from doublebind.schema.model_source import DroppedRecord
from doublebind.schema.recipe import PromptPolicy
from doublebind.schema.yaml_loader import validate_content
from doublebind.stages.prompts.screen import SCREENS, ScreenName, find_item_overlaps, find_repeats

CANDIDATE_TAGS: dict[PromptPolicy, frozenset[str] | None] = {
    "auditability_preserving": frozenset({"open_ended"}),
    "misalignment_targeted": frozenset({"goals", "high_stakes"}),
    "capability": frozenset({"capability"}),
    "unscreened": None,
}
"""Tags that make a prompt a candidate; `None` takes all.

Sources: the incrimination post's two kinds of run (open-ended tasks; inputs that make U consider
its goals, high-stakes inputs), the double-bind post's concentration on a domain."""

POLICY_SCREENS: dict[PromptPolicy, tuple[ScreenName, ...]] = {
    "auditability_preserving": ("honeypot", "alignment_eval", "strategic"),
    "misalignment_targeted": ("honeypot", "alignment_eval"),
    "capability": ("honeypot", "alignment_eval", "strategic"),
    "unscreened": (),
}
"""What must not be distilled on. A targeted run may ask about plans: that is its point."""


def select_prompts(
    out: Path, *, pack: str, policy: PromptPolicy, n: int, file: Path | None = None
) -> None:
    """Write the chosen prompts of `file`, or else of the pack, and the screens' report.

    `screen.json` holds `policy, asked, candidates, kept, dropped: [{id, by, reason}]`. Overlap with
    any item of the pack, of any split, drops a prompt under every policy: what is audited is never
    distilled on.

    Raises:
        PackError: If the screens leave nothing.
        ConfigError: If `file` cannot be read.
    """
    content, wanted = load_pack(pack, relative_to=Path()), CANDIDATE_TAGS[policy]
    candidates, dropped, kept = screen_prompts(content, policy, file)
    if not kept:
        tagged = f" tagged {sorted(wanted)}" if wanted else ""
        raise PackError(
            f"{file or f'pack {content.name}'}: no prompt passes policy {policy} "
            f"({len(candidates)} candidates); add prompts{tagged}"
        )
    write_records(out / "prompts.jsonl", kept[:n])
    report = {
        "policy": policy,
        "asked": n,
        "candidates": len(candidates),
        "passed": len(kept),
        "kept": len(kept[:n]),
        "dropped": [drop.model_dump() for drop in dropped],
    }
    (out / "screen.json").write_text(json.dumps(report, indent=1, ensure_ascii=False))


def screen_prompts(
    content: Pack, policy: PromptPolicy, file: Path | None = None
) -> tuple[list[Prompt], list[DroppedRecord], list[Prompt]]:
    """Return the candidates, what was dropped of them and why, and those that passed, in order."""
    wanted = CANDIDATE_TAGS[policy]
    there = content.prompts() if file is None else read_prompts(file)
    candidates = [p for p in there if wanted is None or wanted & set(p.tags)]
    splits: tuple[Split, ...] = get_args(Split)
    items = [item for split in splits for item in content.items(split)]
    dropped: list[DroppedRecord] = [
        *find_repeats(candidates),
        *find_item_overlaps(candidates, items),
    ]
    for name in POLICY_SCREENS[policy]:
        dropped += SCREENS[name](candidates)
    gone = {drop.id for drop in dropped}
    kept = [prompt for prompt in candidates if prompt.id not in gone]
    kept.sort(key=lambda prompt: content_hash([policy, prompt.id]))
    return candidates, dropped, kept


def read_prompts(file: Path) -> tuple[Prompt, ...]:
    """Return the prompts in a file of JSON lines.

    Raises:
        ConfigError: If it is missing, or a line is no prompt.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{file}: cannot be read ({error}); `prompts.file` is JSON lines"
        ) from None
    found: list[Prompt] = []
    for number, line in enumerate(lines, 1):
        where = f"{file}: line {number}"
        try:
            content = json.loads(line)
        except ValueError:
            raise ConfigError(f"{where}: not JSON; write one prompt per line") from None
        found.append(validate_content(Prompt, content, where))
    if len({prompt.id for prompt in found}) < len(found):
        raise ConfigError(f"{file}: two prompts share an id; give each its own")
    return tuple(found)


def count_passing_prompts(*, pack: str, policy: PromptPolicy, file: Path | None = None) -> int:
    """Count the prompts that pass the screens of `policy`."""
    return len(screen_prompts(load_pack(pack, relative_to=Path()), policy, file)[2])
