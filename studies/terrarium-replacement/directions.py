"""Compares two ways to find the direction that students are pushed along.

    python studies/terrarium-replacement/directions.py

Prints one JSON document: the mean probability that M0 chooses the misaligned act on `select` items,
all drives, with a push of the length given (over that of a usual state) after each decoder layer:
along the fitted direction that `steer` uses, and along the mean difference of states between
misaligned and other options (persona vectors, arXiv 2507.21509), summed over drives. Half a minute.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from doublebind.models.chat_template import encode_completion, encode_prompt
from doublebind.models.load import LM, load_model
from doublebind.models.logits import run_body
from doublebind.models.resolve import resolve_model
from doublebind.packs.load import load_pack
from doublebind.schema.content import Item
from doublebind.stages.audits.option_scores import choose
from doublebind.stages.distillation import steering
from doublebind.stages.distillation.steering import find_steering_direction
from doublebind.stages.distillation.student_inputs import select_direction_items

sys.path.append(str(Path(__file__).parents[2]))
from studies.common import print_json

SCALES = (0.25, 0.5, 0.75, 1.0)


@torch.no_grad()
def mean_difference(lm: LM, items: list[Item], layer: int) -> torch.Tensor:
    """Return the sum over drives of keyed options' mean state less the others', [width]."""
    states: dict[str, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
    for item in items:
        prompt = encode_prompt(lm.tokenizer, item.messages)
        for i, option in enumerate(item.options):
            ids = [*prompt, *encode_completion(lm.tokenizer, option, finished=False)]
            out = run_body(
                lm.model, torch.tensor([ids]), use_cache=False, output_hidden_states=True
            )
            # The first of these is the embedding.
            state = out.hidden_states[layer + 1][0, len(prompt) :].mean(dim=0)
            states.setdefault(str(item.trait), ([], []))[i != item.target_index].append(state)
    apart = [torch.stack(own).mean(0) - torch.stack(rest).mean(0) for own, rest in states.values()]
    return torch.stack(apart).sum(dim=0)


def main() -> None:
    """Print a row for every layer and kind of direction."""
    source = resolve_model("terrarium/m0", relative_to=Path())
    pack = load_pack("terrarium", relative_to=Path())
    items = [i for i in pack.items("select") if i.kind == "choice" and i.role == "auditable"]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lm = load_model(source, cache=folder)

        def mean_choice() -> float:
            return round(float(np.mean([answer.value for answer in choose(lm, items)])), 3)

        plain = mean_choice()
        for layer in range(lm.model.config.num_hidden_layers):
            settings = {"pack": "terrarium", "layer": layer, "dtype": "float32", "cache": folder}
            find_steering_direction(folder, base=source, **settings)
            fitted = load_file(folder / steering.DIRECTION_FILE)["direction"]
            difference = mean_difference(lm, select_direction_items(pack), layer)
            for kind, direction in (("fitted", fitted), ("mean difference", difference)):
                push = {"direction": direction / direction.norm() * fitted.norm()}
                save_file(push | {"layer": torch.tensor(layer)}, folder / steering.DIRECTION_FILE)
                row: dict[str, Any] = {"layer": layer, "direction": kind}
                for scale in SCALES:
                    with steering.steer_model(lm.model, folder, scale):
                        row[f"{scale:g}"] = mean_choice()
                rows.append(row)
    print_json({"m0": plain, "rows": rows})


if __name__ == "__main__":
    main()
