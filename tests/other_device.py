"""A second device on any machine: tensors that claim to be on "cuda" and refuse to be mixed with those on the CPU.

What a GPU would complain about is found without one: a tensor that was made on the CPU and left there, a `.numpy()` of
one that was not brought back. The numbers are computed on the CPU, so that results can be compared.

Not simulated: sparse matrices, of which there can be no subclass (they stay plain tensors and mix with everything);
gradients within backward passes, which torch hands out as plain tensors; memory, streams, kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda", 0)
_TO_CPU = {torch.Tensor.cpu, torch.Tensor.tolist, torch.Tensor.item}
_CROSSING = {torch.Tensor.copy_, torch.Tensor.__getitem__, torch.Tensor.__setitem__}  # real devices allow these, too
_REFUSED: set[Any] = {torch.Tensor.numpy, torch.Tensor.__array__}
_PROPERTIES: Any = torch.Tensor
_TO = torch.nn.Module.to
_MIXED = "Expected all tensors to be on the same device, found cuda:0 and cpu"
_NO_NUMPY = "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first"


class Remote(torch.Tensor):
    """A tensor on the other device."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch._has_compatible_shallow_copy_type:
            return False  # a module that is moved gets new parameters
        if func == _PROPERTIES.device.__get__:
            return DEVICE
        if func == _PROPERTIES.is_cuda.__get__:
            return True
        if func in _REFUSED:
            raise TypeError(_NO_NUMPY)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        there = [isinstance(tensor, Remote) for tensor in tensors]
        with torch._C.DisableTorchFunctionSubclass():
            if any(there) and func not in _CROSSING and any(map(_left_behind, tensors)) and not _in_backward():
                raise RuntimeError(f"{_MIXED} ({func.__name__})")
            leaves = func in _TO_CPU or (func is torch.Tensor.to and _target(args[1:], kwargs) == "cpu")
            out = func(*_on_cpu(args), **_on_cpu(kwargs))
            return _mapped(_local if leaves or not any(there) else _remote, out)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copy = self.detach().clone()
        return torch.nn.Parameter(copy, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copy


def _left_behind(tensor: torch.Tensor) -> bool:
    """Is it on the CPU? Scalars may be used from there."""
    return not isinstance(tensor, Remote) and tensor.ndim > 0 and tensor.layout is torch.strided


def _in_backward() -> bool:
    return bool(torch._C._current_graph_task_id() != -1)


def _mapped(change: Any, out: Any) -> Any:
    return out if isinstance(out, torch.Size) else tree_map(change, out)


def _local(value: Any) -> Any:
    return value.as_subclass(torch.Tensor) if type(value) is Remote else value


def _remote(value: Any) -> Any:
    dense = isinstance(value, torch.Tensor) and value.layout is torch.strided
    return value.as_subclass(Remote) if dense and type(value) is not Remote else value


def _target(args: Any, kwargs: Any) -> str | None:
    """Type of the device in the arguments of `Tensor.to`; None for those of a type."""
    named = [value for value in (*args[:1], kwargs.get("device")) if isinstance(value, torch.device | str)]
    return torch.device(named[0]).type if named else None


def _on_cpu(arguments: Any) -> Any:
    return tree_map(lambda leaf: torch.device("cpu") if _is_other(leaf) else leaf, arguments)


def _is_other(value: Any) -> bool:
    return isinstance(value, torch.device | str) and str(value) in ("cuda", "cuda:0")


class _Arrivals(TorchFunctionMode):
    """Tensors that are made on the other device or sent there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        sent = func is torch.Tensor.to and _target(args[1:], kwargs) == "cuda"
        made = _is_other(kwargs.get("device"))
        if not sent and not made:
            return func(*args, **kwargs)
        return _mapped(_remote, func(*_on_cpu(args), **_on_cpu(kwargs)))


def _move(module: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
    """`Module.to`, which leaves a module alone that is there already: its parameters may be shared."""
    there = all(isinstance(tensor, Remote) for tensor in (*module.parameters(), *module.buffers()))
    return module if there else _TO(module, *args, **kwargs)


@contextmanager
def other_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, "cuda" is there and is this device."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: torch.empty(0))  # its random numbers: the CPU's
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: None)
    monkeypatch.setattr(torch.nn.Module, "to", _move)
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # parameters become of the other kind
    try:
        with _Arrivals():
            yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
