"""Device and precision of a training.

    device = resolve_device("auto")                  # cuda, else mps, else cpu
    with autocast(device, "bfloat16"): …             # matrix products in bfloat16, sums and losses in float32
    rows = to_device(numpy_rows, device)             # what a loss reads of NumPy data
    self.net = on_cpu(net)                           # what serves, while `net` is trained on

A model's `fit` puts what its loss reads on the device of its settings; the loop (train/loop.py) puts the module there
and runs the loss under `autocast`. What a model exports to be served is brought back to the CPU. Random numbers are
drawn on the CPU and moved, so they are the same on every device.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Any, Literal, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from graphllmrec.errors import RecipeError

Precision = Literal["float32", "bfloat16"]
Module = TypeVar("Module", bound=nn.Module)


def resolve_device(name: str) -> torch.device:
    """The device "cpu", "cuda", "cuda:1", "mps", or for "auto" the fastest there is.

    Raises RecipeError for a name that torch does not know and for a device that this machine lacks.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RecipeError(
            [f'device: unknown device {name!r}; write "auto", "cpu", "cuda", "cuda:1" or "mps"']
        ) from None
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": _has_mps()}.get(device.type, False)
    if not there or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise RecipeError([f'device: this machine has no {name!r}; take "cpu", or "auto" for the fastest there is'])
    return device


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Mixed precision: matrix products in bfloat16, whose range needs no loss scaling; float32 leaves all as it is."""
    return nullcontext() if precision == "float32" else torch.autocast(device.type, dtype=torch.bfloat16)


def to_device(array: NDArray[Any] | Tensor, device: torch.device) -> Tensor:
    """The same numbers as a tensor on `device`; on the CPU they are shared, not copied."""
    tensor = array if isinstance(array, Tensor) else torch.from_numpy(array)
    return tensor.to(device)


def on_cpu(module: Module) -> Module:
    """A copy of the module with all tensors on the CPU; the module itself if they are there already."""
    tensors = (*module.parameters(), *module.buffers())
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return module
    moved: dict[int, Any] = {}
    for tensor in tensors:
        value = tensor.detach().cpu()
        moved[id(tensor)] = nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
    return deepcopy(module, moved)  # which takes the tensors from `moved`, and copies none on the device


def trainable_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Parameters with requires_grad."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def trainable_state(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module that training changes: parameters with gradients, and buffers that are saved.

    Of a frozen language model with adapters these are the adapters alone.
    """
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in module.state_dict().items() if name not in frozen}


def load_trainable(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Load tensors written by `trainable_state`. Raises KeyError when they are not those of the module."""
    wanted = trainable_state(module).keys()
    if wanted != state.keys():
        raise KeyError(f"trainable tensors differ: {', '.join(sorted(wanted ^ state.keys()))}")
    module.load_state_dict(state, strict=False)


def _has_mps() -> bool:
    return torch.backends.mps.is_available()
