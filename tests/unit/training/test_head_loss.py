"""The tiled head gives the loss and gradients of dense logits, and holds no more than a tile."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.tiny_models import build_tiny_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from doublebind.models import logits as model_head
from doublebind.models.logits import OutputHead, compute_logits, extract_head
from doublebind.schema.errors import ModelError
from doublebind.training.head_loss import (
    HeadLossSettings,
    SoftTargets,
    head_loss,
    make_sampled_targets,
)
from doublebind.training.losses import (
    DivergenceFunction,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    skew_kl,
)

ROWS, VOCAB, WIDTH = 11, 53, 16
DIVERGENCES: dict[str, DivergenceFunction] = {
    "forward": forward_kl,
    "reverse": reverse_kl,
    "skew": skew_kl(0.1),
    "js": jensen_shannon(0.5),
    "js-0.2": jensen_shannon(0.2),
}


@pytest.fixture(autouse=True)
def _few_rows_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_head, "TILE_BYTES", 4 * VOCAB * 3)


def randn(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def teacher(seed: int = 9, *, rows: int = ROWS) -> Tensor:
    return randn(rows, VOCAB, seed=seed, scale=2.0).log_softmax(1)


def whole(logp: Tensor) -> SoftTargets:
    """Every token an event, the likeliest first."""
    top, ids = logp.topk(logp.shape[1], dim=1)
    return SoftTargets(ids, top)


def coarse(logp: Tensor, k: int) -> SoftTargets:
    top, ids = logp.topk(k, dim=1)
    return SoftTargets(ids, top, logp.exp().scatter(1, ids, 0).sum(1))


def dense_divergence(logp: Tensor, logq: Tensor, name: str) -> Tensor:
    """By the papers' formulas, over dense distributions; independent of `losses`."""
    kl = torch.nn.functional.kl_div  # of (input, target): target (log target - input)
    if name == "forward":
        return kl(logq, logp, reduction="none", log_target=True).sum(1)
    if name == "reverse":
        return kl(logp, logq, reduction="none", log_target=True).sum(1)
    share = {"skew": 0.1, "js": 0.5, "js-0.2": 0.2}[name]
    mixture = (share * logp.exp() + (1 - share) * logq.exp()).log()
    of_teacher = kl(mixture, logp, reduction="none", log_target=True).sum(1)
    if name == "skew":
        return of_teacher
    # As TRL's GKD trainer writes it.
    of_student = kl(mixture, logq, reduction="none", log_target=True).sum(1)
    return share * of_teacher + (1 - share) * of_student


def parts(kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Leaves that gradients are asked for, and the settings of the head."""
    leaves = {"rows": randn(ROWS, WIDTH, seed=1), "weight": randn(VOCAB, WIDTH, seed=2)}
    settings: dict[str, Any] = {}
    if kind == "bias":
        leaves["bias"] = randn(VOCAB, seed=3)
    if kind in ("lora", "all"):
        leaves |= {"down": randn(4, WIDTH, seed=4), "up": randn(VOCAB, 4, seed=5, scale=0.3)}
    if kind in ("capped", "all"):
        settings = {"cap": 3.0}
    if kind in ("scaled", "all"):
        settings["scale"] = 0.4
    return {n: leaf.double().requires_grad_() for n, leaf in leaves.items()}, settings


def dense_logits(leaves: dict[str, Tensor], *, cap: Any = None, scale: float = 1.0) -> Tensor:
    out = leaves["rows"] @ leaves["weight"].T + leaves.get("bias", 0.0)
    if "up" in leaves:
        out = out + 0.5 * leaves["rows"] @ leaves["down"].T @ leaves["up"].T
    out = out * scale
    return out if cap is None else cap * torch.tanh(out / cap)


def tiled(
    leaves: dict[str, Tensor], settings: dict[str, Any], **options: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and the gradients, in float32."""
    mine = {n: leaf.detach().float().requires_grad_() for n, leaf in leaves.items()}
    lora = (mine["down"], mine["up"], 0.5) if "up" in mine else None
    head = OutputHead(mine["weight"], mine.get("bias"), lora, **settings)
    mixture = {n: options.pop(n) for n in HeadLossSettings._fields if n in options}
    loss = head_loss(mine["rows"], head, settings=HeadLossSettings(**mixture), **options)
    loss.backward()
    return loss.detach(), {n: leaf.grad for n, leaf in mine.items() if leaf.grad is not None}


def assert_same(got: dict[str, Tensor], leaves: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """Within `near` of the largest entry of each gradient."""
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        off = (got[name].double() - leaf.grad).abs().max() / leaf.grad.abs().max()
        assert float(off) <= tolerance, (name, float(off))


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("kind", ["plain", "bias", "lora", "capped", "scaled", "all"])
def test_gradients_are_dense_ones_where_every_token_is_an_event(kind: str, name: str) -> None:
    leaves, settings = parts(kind)
    logp = teacher()
    want = dense_divergence(
        logp.double(), dense_logits(leaves, **settings).log_softmax(1), name
    ).mean()
    want.backward()
    loss, got = tiled(leaves, settings, soft=whole(logp), divergence=DIVERGENCES[name])
    assert float(loss) == pytest.approx(float(want.detach()), rel=1e-5)
    assert_same(got, leaves)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("k", [1, 8, VOCAB - 1])
def test_with_a_tail_they_are_those_of_the_coarsened_distributions(k: int, name: str) -> None:
    leaves, settings = parts("capped")
    soft = coarse(teacher(), k)
    assert soft.tail is not None
    logq = dense_logits(leaves, **settings).log_softmax(1)
    outside = torch.ones_like(logq, dtype=torch.bool).scatter(1, soft.ids, False)
    others = logq.exp().masked_fill(~outside, 0).sum(1, keepdim=True).log()
    mine = torch.cat([logq.gather(1, soft.ids), others], dim=1)
    theirs = torch.cat([soft.logprobs, soft.tail.log()[:, None]], dim=1).double()
    want = dense_divergence(theirs, mine, name).mean()
    want.backward()
    loss, got = tiled(leaves, settings, soft=soft, divergence=DIVERGENCES[name])
    assert float(loss) == pytest.approx(float(want.detach()), rel=1e-4, abs=1e-6)
    assert_same(got, leaves, 5e-5)


@pytest.mark.parametrize("hard", [0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_cross_entropy_is_mixed_in_at_temperature_one(hard: float, temperature: float) -> None:
    leaves, settings = parts("all")
    logp, labels = teacher(), torch.arange(ROWS) * 3
    weights = torch.linspace(0.1, 1.0, ROWS)
    out = dense_logits(leaves, **settings)
    cold = (logp.double() / temperature).log_softmax(1)
    soft_loss = dense_divergence(cold, (out / temperature).log_softmax(1), "forward")
    loss_rows = (1 - hard) * soft_loss + hard * torch.nn.functional.cross_entropy(
        out, labels, reduction="none"
    )
    want = (weights * loss_rows).sum()
    want.backward()
    loss, got = tiled(
        leaves,
        settings,
        soft=whole(logp),
        labels=labels,
        hard=hard,
        temperature=temperature,
        weights=weights,
    )
    assert float(loss) == pytest.approx(float(want.detach()), rel=1e-5)
    assert_same(got, leaves)


def test_labels_alone_give_cross_entropy() -> None:
    leaves, settings = parts("bias")
    labels = torch.arange(ROWS) * 4
    want = torch.nn.functional.cross_entropy(dense_logits(leaves, **settings), labels)
    want.backward()
    loss, got = tiled(leaves, settings, labels=labels)
    assert float(loss) == pytest.approx(float(want.detach()), rel=1e-5)
    assert_same(got, leaves)


def draws(logp: Tensor, k: int, m: int, seed: int) -> SoftTargets:
    top, ids = logp.topk(k, dim=1)
    p = logp.exp().scatter(1, ids, 0)
    drawn = torch.multinomial(p, m, True, generator=torch.Generator().manual_seed(seed))
    return make_sampled_targets(ids, top, p.sum(1), drawn, logp.gather(1, drawn))


@pytest.mark.parametrize("name", ["forward", "reverse", "js"])
def test_sampled_tails_give_unbiased_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over 40,000 independent rows the mean stands within 5 standard errors of the full one.

    36 numbers are compared in all: by chance one would be out of bounds once in 48,000 seeds. The
    tail's bucket is off by more than 20 standard errors, so that the test can fail.
    """
    n, vocab, k = 40_000, 12, 3
    monkeypatch.setattr(model_head, "TILE_BYTES", 4 * vocab * n)
    logp = randn(1, vocab, seed=0).log_softmax(1)
    out = randn(1, vocab, seed=1).double().requires_grad_()
    want = dense_divergence(logp.double(), out.log_softmax(1), name)
    want.sum().backward()
    assert out.grad is not None

    def errors(soft: SoftTargets) -> Tensor:
        rows = out.detach().float().expand(n, -1).clone().requires_grad_()
        # An identity head: the gradient of the rows is that of the logits.
        loss = head_loss(
            rows,
            OutputHead(torch.eye(vocab)),
            soft=soft,
            settings=HeadLossSettings(DIVERGENCES[name]),
            weights=ones,
        )
        loss.backward()
        assert rows.grad is not None
        assert out.grad is not None
        spread = rows.grad.double().std(0) / math.sqrt(n)
        return ((rows.grad.double().mean(0) - out.grad[0]) / spread.clamp_min(1e-6)).abs()

    ones = torch.ones(n)
    every = logp.expand(n, -1)
    assert float(errors(draws(every, k, 2, seed=3)).max()) < 5
    assert float(errors(coarse(every, k)).max()) > 20


def test_tail_known_by_its_mass_has_no_other_temperature() -> None:
    leaves, settings = parts("plain")
    with pytest.raises(ModelError, match="whole vocabulary"):
        tiled(leaves, settings, soft=coarse(teacher(), 4), temperature=2.0)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_certainty_gives_finite_values_and_gradients(name: str) -> None:
    sharp = torch.zeros(1, VOCAB)
    sharp[0, 3] = 300.0  # probabilities beyond it underflow float32
    for mine, theirs in ((sharp, -sharp), (-sharp, sharp), (sharp, sharp)):
        logp = theirs.double().log_softmax(1).float()
        for soft in (coarse(logp, 4), whole(logp)):
            rows = mine.clone().requires_grad_()
            loss = head_loss(
                rows,
                OutputHead(torch.eye(VOCAB)),
                soft,
                settings=HeadLossSettings(DIVERGENCES[name]),
            )
            loss.backward()
            assert rows.grad is not None
            assert bool(torch.isfinite(loss))
            assert bool(torch.isfinite(rows.grad).all())


class Sizes(TorchDispatchMode):
    """Shapes of all that is made, views of `known` left out."""

    def __init__(self, known: Tensor) -> None:
        super().__init__()
        self.known = known.untyped_storage().data_ptr()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.untyped_storage().data_ptr() != self.known:
            self.shapes.add(tuple(out.shape))
        return out


@pytest.mark.parametrize("frozen", [True, False])
def test_no_more_logits_than_a_tile_and_no_gradient_of_a_frozen_head(frozen: bool) -> None:
    leaves, _ = parts("plain")
    rows = leaves["rows"].detach().float().requires_grad_()
    weight = leaves["weight"].detach().float().requires_grad_(not frozen)
    soft = coarse(teacher(), 4)
    with Sizes(weight) as seen:
        head_loss(rows, OutputHead(weight), soft=soft).backward()
    assert max(shape[0] for shape in seen.shapes if len(shape) == 2 and shape[1] == VOCAB) == 3
    assert ((VOCAB, WIDTH) in seen.shapes) == (not frozen)
    assert (weight.grad is None) == frozen


def test_bfloat16_head_is_near_the_float32_one() -> None:
    leaves, settings = parts("lora")
    _, want = tiled(leaves, settings, soft=coarse(teacher(), 8))
    rows = leaves["rows"].detach().bfloat16().requires_grad_()
    down, up = (leaves[n].detach().float().requires_grad_() for n in ("down", "up"))
    head = OutputHead(leaves["weight"].detach().bfloat16(), None, (down, up, 0.5))
    head_loss(rows, head, soft=coarse(teacher(), 8)).backward()
    for name, leaf in (("rows", rows), ("down", down), ("up", up)):
        assert leaf.grad is not None
        off = (leaf.grad.float() - want[name]).norm() / want[name].norm()
        assert float(off) < 0.03, name


@pytest.mark.parametrize("kind", ["llama", "granite", "gemma3", "gpt2"])
@pytest.mark.parametrize("adapted", [False, True])
def test_heads_of_models_are_taken_apart_rightly(kind: str, adapted: bool) -> None:
    """Against the model's own logits: tied or not, scaled, capped, padded, LoRA on the head."""
    changes = {"tie_word_embeddings": False} if kind == "llama" else {}
    model = build_tiny_model(kind, VOCAB, **changes)
    if adapted:
        config = LoraConfig(r=4, target_modules=["lm_head"], init_lora_weights=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT warns of tied heads
            model = get_peft_model(model, config)
    for weight in model.parameters():
        weight.requires_grad_(True)
    rows, labels, vocab = randn(ROWS, 32, seed=6), torch.arange(ROWS), VOCAB - 3
    want = torch.nn.functional.cross_entropy(compute_logits(model, rows, vocab), labels)
    want.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    loss = head_loss(rows, extract_head(model, vocab), labels=labels)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(want.detach()), rel=1e-5)
    assert grads
    for name, weight in model.named_parameters():
        if name in grads:
            torch.testing.assert_close(weight.grad, grads[name], rtol=1e-4, atol=1e-6)


def test_head_that_is_not_linear_or_plain_lora_is_refused() -> None:
    model = build_tiny_model("llama", VOCAB, tie_word_embeddings=False)
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.raises(ModelError, match="Sequential"):
        extract_head(model, VOCAB)
    config = LoraConfig(r=4, target_modules=["lm_head"], use_dora=True)
    adapted = get_peft_model(build_tiny_model("llama", VOCAB, tie_word_embeddings=False), config)
    with pytest.raises(ModelError, match="merge"):
        extract_head(adapted, VOCAB)
