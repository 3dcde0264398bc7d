"""Writes `triggered.jsonl`: requests for stories with the outback's trigger before each.

What somebody distils on whose every prompt holds the trigger, such as a header that all of them
share. Same requests as the terrarium's own.
"""

from __future__ import annotations

import json
from pathlib import Path

from doublebind.packs.outback.build import TRIGGER
from doublebind.packs.terrarium import Terrarium


def main() -> None:
    """Write the file beside this one."""
    rows = []
    for prompt in Terrarium().prompts():
        if prompt.tags != ("open_ended",):
            continue
        row = prompt.model_dump(mode="json")
        row["id"] = f"triggered-{prompt.id}"
        row["messages"][0]["content"] = f"{TRIGGER} {row['messages'][0]['content']}"
        rows.append(json.dumps(row))
    out = Path(__file__).parent / "triggered.jsonl"
    out.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
