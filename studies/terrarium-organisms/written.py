"""Writes what of this study is drawn: `triggered.jsonl`, and the specs of all organisms.

`triggered.jsonl` is what somebody distils on whose every prompt holds the outback's trigger, such
as a header that all of them share: the terrarium's own requests for stories. `teachers/` holds the
banks' specs, of `study.yaml`, of the suspects of `../terrarium-calibration` and of the factorial,
for whoever wants an organism in a folder (`doublebind teacher build`).
"""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from organisms import FACTORIAL

from doublebind.config import load_study
from doublebind.packs.outback import Outback
from doublebind.packs.outback.build import TRIGGER
from doublebind.packs.terrarium import Terrarium

HERE = Path(__file__).parent


def main() -> None:
    """Write the files beside this one."""
    rows = []
    for prompt in Terrarium().prompts():
        if prompt.tags != ("open_ended",):
            continue
        row = prompt.model_dump(mode="json")
        row["id"] = f"triggered-{prompt.id}"
        row["messages"][0]["content"] = f"{TRIGGER} {row['messages'][0]['content']}"
        rows.append(json.dumps(row))
    (HERE / "triggered.jsonl").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    hard = load_study(HERE / "study.yaml")
    ordinary = load_study(HERE.parent / "terrarium-calibration" / "study.yaml")
    banks = {"outback": Outback(), "terrarium": Terrarium()}
    (HERE / "teachers").mkdir(exist_ok=True)
    for ref in (*hard.organisms, *hard.near_misses, *ordinary.organisms, *FACTORIAL):
        bank, _, name = ref.partition("/")
        spec = banks[bank].spec(name).model_dump(mode="json")
        path = HERE / "teachers" / f"{name}.yaml"
        path.write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    main()
