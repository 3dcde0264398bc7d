"""The kernels for GPUs give what PyTorch gives, run by Triton's interpreter on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from doublebind.models.logits import OutputHead
from doublebind.training.head_loss import SoftTargets, head_loss

ROOT = Path(__file__).parents[3]
PYTEST = [sys.executable, "-m", "pytest", "-q"]
# Triton reads it once, at import, so that each test needs another process.
INTERPRETED = {**os.environ, "TRITON_INTERPRET": "1"}

WORKER = """
import json, sys
import torch
from doublebind.models import logits as model_head
from doublebind.models.logits import OutputHead
from doublebind.training import head_loss, triton_kernels
from doublebind.training.losses import forward_kl, jensen_shannon, reverse_kl

ROWS, WIDTH, K = 5, 8, 6
calls = {"logsumexp": 0, "scaled_softmax_": 0}
for name in calls:
    def counted(*given, real=getattr(triton_kernels, name), name=name):
        calls[name] += 1
        return real(*given)
    setattr(triton_kernels, name, counted)

def compare(vocab, kind, divergence, hard):
    generator = torch.Generator().manual_seed(vocab)
    weight = torch.randn(vocab, WIDTH, generator=generator)
    rows = 2 * torch.randn(ROWS, WIDTH, generator=generator)
    logp = (rows @ weight.T + torch.randn(ROWS, vocab, generator=generator)).log_softmax(1)
    top, ids = logp.topk(K, dim=1)
    p = logp.exp().scatter(1, ids, 0)
    if kind == "tail":
        soft = head_loss.SoftTargets(ids, top, p.sum(1))
    elif kind == "sample":
        drawn = torch.multinomial(p, 4, True, generator=generator)  # some tokens twice
        soft = head_loss.make_sampled_targets(ids, top, p.sum(1), drawn, logp.gather(1, drawn))
    else:
        soft = None
    labels = torch.arange(ROWS) * 7
    results = []
    for kernels in (None, triton_kernels):
        head_loss.find_kernels = lambda z: kernels
        leaf = rows.clone().requires_grad_()
        whole = weight.clone().requires_grad_()
        loss = head_loss.head_loss(leaf, OutputHead(whole, cap=30.0), soft=soft, labels=labels,
                              settings=head_loss.HeadLossSettings(divergence, hard))
        loss.backward()
        results.append((loss.detach(), leaf.grad, whole.grad))
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(*results))

model_head.TILE_BYTES = 4 * 10000 * 2  # tiles of two rows of the larger vocabulary
errors = {}
for vocab in (50, 10000):  # below a block, and two blocks and a bit
    for kind in ("tail", "sample", "labels"):
        for name, divergence in (("forward", forward_kl), ("reverse", reverse_kl),
                                 ("js", jensen_shannon(0.5))):
            for hard in (0.0, 0.3):
                if kind == "labels" and (name, hard) != ("forward", 0.0):
                    continue
                errors[f"{vocab} {kind} {name} {hard}"] = compare(vocab, kind, divergence, hard)
z = torch.randn(4, 9000)
z[1] = -torch.inf
z[2, 5000:] = -torch.inf
z[3, 7] = 1e4
off = float((triton_kernels.logsumexp(z) - z.logsumexp(1)).nan_to_num().abs().max())
print(json.dumps({"off": errors, "calls": calls, "logsumexp": off,
                  "nothing": float(triton_kernels.logsumexp(z)[1])}))
"""


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from doublebind.training import triton_kernels as kernels

rest = {"columns": "i32", "stride": "i32", "BLOCK": "constexpr"}
for kernel, first in (
    (kernels.part_logsumexp_kernel, {"z": "*fp32", "out": "*fp32", "parts": "i32"}),
    (kernels.scaled_softmax_kernel, {"z": "*fp32", "lse": "*fp32", "factor": "*fp32"}),
):
    types = first | rest
    types = {name: types[name] for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=types, constexprs={"BLOCK": kernels.BLOCK})
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert len(compiled.asm["cubin"]) > 1000
"""


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    pytest.importorskip("triton", reason="the `gpu` extra is not installed")
    done = subprocess.run(
        [sys.executable, "-c", WORKER], env=INTERPRETED, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_kernels_give_the_losses_and_gradients_of_the_cpu_path(report: dict[str, Any]) -> None:
    assert len(report["off"]) == 2 * (2 * 3 * 2 + 1)
    assert max(report["off"].values()) < 1e-5, report["off"]
    assert min(report["calls"].values()) >= len(report["off"]), "the kernels did run"


def test_a_sum_of_nothing_is_minus_infinity_and_large_numbers_do_not_overflow(
    report: dict[str, Any],
) -> None:
    assert report["nothing"] == -float("inf")
    assert report["logsumexp"] < 1e-3  # of 1e4


@pytest.mark.slow
def test_kernels_pass_the_tests_of_the_head() -> None:
    """Those of dense gradients, certainty and mixtures; not the one over 40,000 rows."""
    pytest.importorskip("triton", reason="the `gpu` extra is not installed")
    chosen = "dense_ones or coarsened or mixed or labels_alone or certainty"
    done = subprocess.run(
        [*PYTEST, "-k", chosen, "tests/unit/training/test_head_loss.py"],
        env=INTERPRETED, cwd=ROOT, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_kernels_compile_for_a_gpu_that_is_not_here(tmp_path: Path) -> None:
    """To machine code of compute capability 9.0 (H100, H200), by Triton's own assembler."""
    pytest.importorskip("triton", reason="the `gpu` extra is not installed")
    plain = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=plain | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_the_head_gives_what_it_gives_on_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, rows = (torch.randn(n, 64, generator=generator) for n in (20_000, 300))
    logp = (rows @ weight.T / 4).log_softmax(1)
    top, ids = logp.topk(16, dim=1)
    soft = SoftTargets(ids, top, logp.exp().scatter(1, ids, 0).sum(1))
    results = []
    for device in ("cpu", "cuda"):
        leaf = rows.to(device).requires_grad_()
        targets = SoftTargets(*(part if part is None else part.to(device) for part in soft))
        loss = head_loss(leaf, OutputHead(weight.to(device), scale=0.2), soft=targets)
        loss.backward()
        assert leaf.grad is not None
        results.append((loss.detach().cpu(), leaf.grad.cpu()))
    (loss, grad), (gpu_loss, gpu_grad) = results
    torch.testing.assert_close(gpu_loss, loss, rtol=1e-4, atol=1e-5)
    assert float((gpu_grad - grad).abs().max() / grad.abs().max()) < 1e-3
