"""A prefix is read first by whatever runs the model, and means what PEFT makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_models import save_model

from doublebind.models.chat_template import encode_prompt
from doublebind.models.load import LM, load_model
from doublebind.models.logits import compute_logits, run_body
from doublebind.models.resolve import resolve_model
from doublebind.models.sample import sample
from doublebind.models.score import option_logprobs, token_logprobs
from doublebind.schema.content import Message
from doublebind.schema.errors import ModelError
from doublebind.training import loop
from doublebind.training.batch import Example, can_pack
from doublebind.training.prefix_tuning import attach_prefix

EXAMPLES = [
    Example((7, 8, 9, 10, 11, 12), first_supervised=4),
    Example((13, 14, 15, 16), first_supervised=2),
]
CONVERSATIONS = [
    [Message(role="user", content=text)] for text in ("the fox", "a dog went and then", "ship")
]


def prefixed(folder: Path, kind: str, tokens: int = 5, shift: float = 0.5) -> LM:
    """A model with a saved and opened prefix, away from where it started."""
    save_model(folder / "base", kind)
    lm = load_model(resolve_model("base", relative_to=folder))
    model = attach_prefix(lm.model, tokens, EXAMPLES, seed=0)
    weight = model.prompt_encoder[model.active_adapter].embedding.weight
    with torch.no_grad():
        weight += shift * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
    loop.save_model(model, lm.tokenizer, folder / "student", card="no")
    return load_model(resolve_model("student", relative_to=folder))


@pytest.mark.parametrize("kind", ["llama", "granite", "gpt2"])
def test_a_prefix_means_what_pefts_own_forward_makes_of_it(tmp_path: Path, kind: str) -> None:
    lm = prefixed(tmp_path, kind)
    from peft import AutoPeftModelForCausalLM

    theirs: Any = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "student")).eval()
    ids = torch.tensor([[7, 8, 9, 10, 11, 12, 13]])
    with torch.no_grad():
        wanted = theirs(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        states = run_body(lm.model, ids, use_cache=False).last_hidden_state[0]
        logits = compute_logits(lm.model, states, wanted.shape[-1])
        plain = (
            load_model(resolve_model("base", relative_to=tmp_path)).model(input_ids=ids).logits[0]
        )
    torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits, plain, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_answers_and_scores_agree_whatever_the_batch(tmp_path: Path, kind: str) -> None:
    lm = prefixed(tmp_path, kind)
    options = {"seed": 0, "max_tokens": 6, "temperature": 1.0}
    keys = ["a", "b", "c"]
    together = sample(lm, CONVERSATIONS, keys=keys, **options)
    alone = [
        sample(lm, [m], keys=[k], **options)[0] for m, k in zip(CONVERSATIONS, keys, strict=True)
    ]
    assert together == alone
    pairs = [
        (encode_prompt(lm.tokenizer, m), a.tokens)
        for m, a in zip(CONVERSATIONS, alone, strict=True)
    ]
    scored = token_logprobs(lm, pairs)
    for (prompt, tokens), logprobs in zip(pairs, scored, strict=True):
        ids = torch.tensor([[*prompt, *tokens]])
        with torch.no_grad():
            states = run_body(lm.model, ids, use_cache=False).last_hidden_state[
                0, len(prompt) - 1 : -1
            ]
            dense = compute_logits(lm.model, states, lm.vocab_size).log_softmax(1)
        wanted = dense.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(logprobs), wanted, rtol=1e-4, atol=1e-4)
    turns = [Message(role="user", content="yes"), Message(role="assistant", content="no")]
    items = [(messages, ["yes I do", "no"]) for messages in CONVERSATIONS]
    shared = option_logprobs(lm, items, preceding=turns)
    apart = option_logprobs(lm, [((*turns, *m), o) for m, o in items])
    for a, b in zip(shared, apart, strict=True):
        assert [x for x, _ in a] == pytest.approx([x for x, _ in b], abs=1e-4)


def test_a_new_prefix_trains_alone_from_prompts_and_is_never_packed(tmp_path: Path) -> None:
    save_model(tmp_path / "base")
    lm = load_model(resolve_model("base", relative_to=tmp_path))
    model = attach_prefix(lm.model, 3, EXAMPLES, seed=1)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trainable) == 1
    assert not can_pack(model)
    changed = [
        Example((*e.input_ids[: e.first_supervised], 20), e.first_supervised) for e in EXAMPLES
    ]
    again = attach_prefix(
        load_model(resolve_model("base", relative_to=tmp_path)).model, 3, changed, seed=1
    )
    one, two = (m.prompt_encoder[m.active_adapter].embedding.weight for m in (model, again))
    assert torch.equal(one, two), "a prefix starts from prompts, not from answers"


def test_other_prompt_learning_is_refused(tmp_path: Path) -> None:
    from peft import PromptTuningConfig, get_peft_model

    save_model(tmp_path / "base")
    lm = load_model(resolve_model("base", relative_to=tmp_path))
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(lm.model, config).save_pretrained(str(tmp_path / "soft"))
    with pytest.raises(ModelError, match="prefixes are the only"):
        load_model(resolve_model("soft", relative_to=tmp_path))
