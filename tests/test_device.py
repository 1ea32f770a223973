"""Device, precision, accumulation, clipping, and checkpoints that hold only what is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from graphllmrec.errors import RecipeError
from graphllmrec.protocol import Task
from graphllmrec.rng import At
from graphllmrec.train.checkpoint import Checkpoints
from graphllmrec.train.device import autocast, load_trainable, resolve_device, to_device, trainable_state
from graphllmrec.train.loop import TrainedConfig, TrainingStage, train
from tiny import SPLIT

EXAMPLES = 12
INPUT = torch.randn(EXAMPLES, 3, generator=torch.Generator().manual_seed(0))
OUTPUT = INPUT @ torch.tensor([1.0, -2.0, 0.5])


class Adapted(nn.Module):
    """A frozen layer, as of a language model, below an adapter that is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(3, 3)
        self.frozen.requires_grad_(False)
        self.adapter = nn.Parameter(torch.zeros(3))
        self.register_buffer("seen", torch.zeros(()))
        self.dtypes: set[torch.dtype] = set()

    def loss(self, rows: np.ndarray, _: At) -> torch.Tensor:
        hidden = self.frozen(INPUT[rows])
        self.dtypes.add(hidden.dtype)
        return ((hidden.float() @ self.adapter - OUTPUT[rows]) ** 2).mean()


def fitted(folder: Path | None = None, **settings: object) -> Adapted:
    torch.manual_seed(1)
    module = Adapted()
    config = TrainedConfig.model_validate({"epochs": 3, "batch_size": 5, "learning_rate": 0.1} | settings)
    checkpoints = Checkpoints(folder, every=0) if folder is not None else None
    train(TrainingStage("adapted", module, EXAMPLES, module.loss, None, config), Task(SPLIT, checkpoints=checkpoints))
    return module


@pytest.mark.parametrize("parts", [2, 3, 100])
def test_a_batch_in_parts_is_the_same_step(parts: int) -> None:
    whole, parted = fitted(), fitted(accumulate=parts)
    torch.testing.assert_close(parted.adapter, whole.adapter, atol=1e-6, rtol=1e-5)


def test_one_step_with_a_clipped_gradient() -> None:
    """AdamW hides the size of a single gradient, so the gradient itself is looked at."""
    torch.manual_seed(1)
    free = Adapted()
    free.loss(np.arange(EXAMPLES), At(0, "adapted", 0, 0)).backward()
    assert free.adapter.grad is not None
    assert float(free.adapter.grad.norm()) > 0.01
    clipped = fitted(epochs=1, batch_size=EXAMPLES, clip_norm=0.01)
    assert clipped.adapter.grad is not None
    torch.testing.assert_close(clipped.adapter.grad, free.adapter.grad * (0.01 / free.adapter.grad.norm()))


def test_bfloat16_is_used_in_matrix_products_only() -> None:
    module = fitted(precision="bfloat16")
    assert module.dtypes == {torch.bfloat16}
    assert module.adapter.dtype == module.frozen.weight.dtype == torch.float32
    assert fitted().dtypes == {torch.float32}
    torch.testing.assert_close(module.adapter, fitted().adapter, atol=0.05, rtol=0.05)


def test_a_checkpoint_holds_what_is_trained_and_nothing_frozen(tmp_path: Path) -> None:
    module = fitted(tmp_path)
    with safe_open(tmp_path / "adapted.safetensors", framework="pt") as file:
        names = {name.removeprefix("model.").removeprefix("best.") for name in file.keys()}  # noqa: SIM118
    assert names == {"adapter", "seen"}
    assert trainable_state(module).keys() == {"adapter", "seen"}


def test_resuming_loads_the_trained_tensors_into_a_new_module(tmp_path: Path) -> None:
    first = fitted(tmp_path)
    torch.testing.assert_close(fitted(tmp_path).adapter, first.adapter, rtol=0, atol=0)


def test_tensors_of_another_module_are_refused() -> None:
    with pytest.raises(KeyError, match=r"trainable tensors differ: adapter, other"):
        load_trainable(Adapted(), {"other": torch.zeros(3), "seen": torch.zeros(())})


def test_devices_by_name() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(RecipeError, match=r'unknown device \'gpu\'; write "auto"'):
        resolve_device("gpu")


@pytest.mark.parametrize("name", ["cuda", "cuda:7", "mps"])
def test_a_device_that_is_not_there_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(RecipeError, match=rf"this machine has no '{name}'; take \"cpu\""):
        resolve_device(name)


def test_arrays_are_shared_on_the_cpu() -> None:
    array = np.arange(4.0)
    tensor = to_device(array, torch.device("cpu"))
    array[0] = 9
    assert tensor[0] == 9
    assert torch.is_autocast_enabled("cpu") is False
    with autocast(torch.device("cpu"), "bfloat16"):
        assert torch.is_autocast_enabled("cpu") is True
