"""A GPU that only pretends: its tensors say that they lie elsewhere, and lie on the CPU.

Within `pretending()` `DEVICE` can be named wherever a device can. Work on it is done by the CPU,
with real numbers, and refused where a GPU would refuse it: when a tensor of the host mixes in.
Every time that the host reads from it is counted, by who asks. So whole programs run "on a GPU"
without one: what is not moved there fails, and what is moved gives the CPU's numbers.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils import _foreach_utils as foreach
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE_KIND = "lazy"
"""A kind of device that torch knows, has no kernels for here, and takes gradients through in the
thread that asks, like the CPU."""
DEVICE = torch.device(DEVICE_KIND, 0)
_aten = torch.ops.aten
_optimizer: Any = importlib.import_module("torch.optim.optimizer")
_COPY_OPERATIONS = {_aten.copy_.default, _aten._to_copy.default}
"""Operations whose very purpose is to go from one device to another."""
_INDEX_OPERATIONS = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
}
"""A GPU takes their indices from the host, too."""


class FakeGpuTensor(torch.Tensor):
    """A tensor of the device; `held` has its numbers."""

    host_values: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> FakeGpuTensor:
        """Return `held` as if it lay on the device."""
        tensor: Any = torch.Tensor._make_wrapper_subclass(  # pyright: ignore
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        tensor.host_values = held
        return tensor

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        """Return what it holds."""
        return f"pretend({self.host_values!r})"

    def tolist(self) -> Any:
        """Return its numbers."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do `func` on the CPU, unless a tensor of the host mixes in."""
        return _run_on_cpu(func, args, kwargs or {})


class FakeGpuMode(TorchDispatchMode):
    """Sends to the device what is made there; counts how often the host reads from it."""

    def __init__(self) -> None:
        """Start with nothing read."""
        super().__init__()
        self.reads: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See `Tensor`."""
        kwargs = kwargs or {}
        read = func is _aten._local_scalar_dense.default
        read |= func is _aten._to_copy.default and _requested_device(kwargs) == "cpu"
        if read and isinstance(args[0], FakeGpuTensor):
            self.reads[_find_reader()] += 1
        return _run_on_cpu(func, args, kwargs)


def _find_reader() -> str:
    """Return the package that reads: the nearest caller's that is neither torch nor this."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if name in ("doublebind", "transformers", "peft"):
            return name
        frame = frame.f_back
    return "tests"


def _requested_device(kwargs: dict[str, Any]) -> str | None:
    named = kwargs.get("device")
    return None if named is None else torch.device(named).type


def _run_on_cpu(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    leaves = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    on_device = [x for x in leaves if isinstance(x, FakeGpuTensor)]
    to = _requested_device(kwargs)
    if to == DEVICE_KIND:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if on_device and func not in _COPY_OPERATIONS:
        _refuse_mixing(func, args, leaves)
    out = func(*pytree.tree_map(_unwrap, args), **pytree.tree_map(_unwrap, kwargs))
    if (
        func is _aten._local_scalar_dense.default
        or to == "cpu"
        or not (on_device or to == DEVICE_KIND)
    ):
        return out
    if func is _aten.copy_.default and not isinstance(args[0], FakeGpuTensor):
        return args[0]
    known = {id(x.host_values): x for x in on_device}
    return pytree.tree_map(lambda x: _wrap(x, known), out)


def _unwrap(x: Any) -> Any:
    return x.host_values if isinstance(x, FakeGpuTensor) else x


def _wrap(x: Any, known: dict[int, FakeGpuTensor]) -> Any:
    if not isinstance(x, torch.Tensor) or isinstance(x, FakeGpuTensor):
        return x
    return known[id(x)] if id(x) in known else FakeGpuTensor(x)  # changed in place, it stays itself


def _refuse_mixing(func: Any, args: Any, leaves: list[torch.Tensor]) -> None:
    host = [x for x in leaves if not isinstance(x, FakeGpuTensor)]
    if func in _INDEX_OPERATIONS and isinstance(args[0], FakeGpuTensor):
        host = [x for x in host if x.dtype not in (torch.int64, torch.bool)]
    if torch.Tag.pointwise in func.tags:
        host = [x for x in host if x.ndim]  # a number, as good as one in Python
    if host:
        raise RuntimeError(f"{func}: a tensor of the CPU {tuple(host[0].shape)} meets a GPU's")


@contextlib.contextmanager
def _register_device() -> Iterator[None]:
    """Let torch take the device for one of those on which it works on many tensors at once."""
    with pytest.MonkeyPatch.context() as patch:
        many: Any = foreach._get_foreach_kernels_supported_devices
        patch.setattr(
            foreach, "_get_foreach_kernels_supported_devices", lambda: [*many(), DEVICE_KIND]
        )
        types = [*foreach._foreach_supported_types, FakeGpuTensor]
        patch.setattr(foreach, "_foreach_supported_types", types)
        fused = _optimizer._get_fused_kernels_supported_devices
        patch.setattr(
            _optimizer, "_get_fused_kernels_supported_devices", lambda: [*fused(), DEVICE_KIND]
        )
        yield


@contextlib.contextmanager
def fake_gpu() -> Iterator[FakeGpuMode]:
    """Have the device for a while; a module moved there keeps its ties and its parameters."""
    torch._C._set_only_lift_cpu_tensors(True)  # pyright: ignore
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with _register_device(), FakeGpuMode() as device:
            yield device
    finally:
        torch._C._set_only_lift_cpu_tensors(False)  # pyright: ignore
        torch.__future__.set_swap_module_params_on_conversion(False)
