"""Compiled operations give those of PyTorch, and training goes on where there is no compiler."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from doublebind.training import compiled, elementwise

BF16 = torch.bfloat16
needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    compiled.compile_functions.cache_clear()
    yield
    compiled.compile_functions.cache_clear()


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def apart(wanted: torch.Tensor, got: torch.Tensor) -> float:
    wanted, got = wanted.detach(), got.detach()
    return float((wanted - got).float().norm() / wanted.float().norm())


def run_norm(dtype: torch.dtype) -> list[torch.Tensor]:
    x, grad, weight = draw(3, 7, 37).to(dtype), draw(3, 7, 37, seed=1).to(dtype), draw(37, seed=2)
    out, inverse = elementwise.norm(x[:, :5], weight, 1e-5)  # rows apart
    return [out, inverse, elementwise.norm_backward(grad[:, :5], x[:, :5], weight, inverse)]


def run_gate(activation: str) -> Callable[[torch.dtype], list[torch.Tensor]]:
    def run(dtype: torch.dtype) -> list[torch.Tensor]:
        up_gate, grad = (6 * draw(9, 70)).to(dtype), draw(9, 35, seed=1).to(dtype)
        out, back = torch.empty(9, 40, dtype=dtype), torch.empty(9, 77, dtype=dtype)
        elementwise.gate(up_gate, activation, out[:, :35])
        elementwise.gate_backward(grad, up_gate, activation, back[:, :70])
        return [out[:, :35], back[:, :70]]

    return run


def run_rotate(dtype: torch.dtype) -> list[torch.Tensor]:
    cos, sin = draw(5, 1, 8).cos().to(dtype), draw(5, 1, 8, seed=1).sin().to(dtype)
    there, back = draw(5, 6, 8).to(dtype), draw(5, 6, 8).to(dtype)
    elementwise.rotate_(there[:, :4], cos, sin)  # the last two heads are left
    elementwise.rotate_backward_(back[:, :4], cos, sin)
    return [there, back]


def run_softmax(window: int | None) -> Callable[[torch.dtype], list[torch.Tensor]]:
    def run(dtype: torch.dtype) -> list[torch.Tensor]:
        place = torch.arange(32)
        seen = place[:, None] >= place
        if window is not None:
            seen &= place[:, None] - place < window
        mask = torch.zeros(32, 32, dtype=dtype).masked_fill_(~seen, -torch.inf)
        scores = (4 * draw(6, 32, 32)).to(dtype)
        probabilities = elementwise.softmax(scores, mask, window)
        grad = draw(6, 32, 32, seed=1).to(dtype)
        return [probabilities, elementwise.softmax_backward(grad, probabilities)]

    return run


RUNS = {
    "norm": run_norm,
    "silu": run_gate("silu"),
    "gelu_tanh": run_gate("gelu_tanh"),
    "gelu": run_gate("gelu"),
    "rotate": run_rotate,
    "softmax": run_softmax(None),
    "window": run_softmax(5),
}


@needs_compiler
@pytest.mark.parametrize("name", RUNS)
def test_compiled_operations_are_as_near_to_float32_as_pytorch_s(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compiled.find_compiled(torch.zeros(1, dtype=BF16)) is not None
    ours = RUNS[name](BF16)
    exact = RUNS[name](torch.float32)
    monkeypatch.setattr(elementwise, "find_compiled", lambda x: None)
    plain = RUNS[name](BF16)
    for mine, theirs, true in zip(ours, plain, exact, strict=True):
        assert mine.dtype == theirs.dtype
        assert apart(true, mine) < max(1.05 * apart(true, theirs), 1e-6)


def test_formulas_are_autograd_s() -> None:
    """In float32, against gradients that autograd derives from the plain formulas."""
    x, weight = draw(4, 37).requires_grad_(), draw(37, seed=2)
    wanted = torch.nn.functional.rms_norm(x, (37,), weight, 1e-5)
    wanted.backward(draw(4, 37, seed=1))
    out, inverse = elementwise.norm(x.detach(), weight, 1e-5)
    assert apart(wanted, out) < 1e-6
    got = elementwise.norm_backward(draw(4, 37, seed=1), x.detach(), weight, inverse)
    assert x.grad is not None
    assert apart(x.grad, got) < 1e-5
    x = draw(9, 70).requires_grad_()
    gate, up = x.chunk(2, dim=1)
    wanted = torch.nn.functional.gelu(gate, approximate="tanh") * up
    wanted.backward(draw(9, 35, seed=1))
    back = torch.empty(9, 70)
    elementwise.gate_backward(draw(9, 35, seed=1), x.detach(), "gelu_tanh", back)
    assert x.grad is not None
    assert apart(x.grad, back) < 1e-5


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_pytorch_s_operations_run(
    compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", compiler)
    x: Any = torch.zeros(1, dtype=BF16)
    assert compiled.find_compiled(x) is None
    assert apart(run_norm(torch.float32)[0], run_norm(BF16)[0]) < 0.01


@needs_compiler
def test_loading_leaves_the_process_s_arithmetic_alone() -> None:
    """A library linked with -ffast-math would flush denormals in all that runs afterwards."""
    was = float(torch.tensor(1e-40) * 1.0)
    assert compiled.compile_functions() is not None
    assert float(torch.tensor(1e-40) * 1.0) == was > 0
