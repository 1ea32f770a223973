"""Checkpoints of a training that may be interrupted: one file per stage, written in one step, no pickle."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from graphllmrec.errors import CheckpointError
from graphllmrec.files import atomic_file
from graphllmrec.models.base import prefixed, under


@dataclass
class Progress:
    """Where a stage stands: `epoch` epochs and `step` batches of the next one are done."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    examples: int = 0
    best: float = float("-inf")
    best_epoch: int = 0  # number of epochs done when it was best; 0 = untrained
    done: bool = False
    identity: str = ""  # hash of everything that decides how the stage goes


class Checkpoints:
    """The checkpoints in one folder, by stage name ("graph", "text", …).

    `shared`, a folder of finished stages, is for runs that have a stage in common, like hybrids that differ in their
    gate only: what one of them has trained with the same settings, seed and data is taken over by the next.
    """

    def __init__(self, folder: Path, shared: Path | None = None) -> None:
        self.folder, self.shared = Path(folder), shared

    def find(self, stage: str, identity: str) -> tuple[Progress, dict[str, Tensor]] | None:
        """The checkpoint to go on from; None: start anew. Raises CheckpointError if the run's own one cannot serve."""
        own = self.load(stage)
        if own is not None and own[0].identity != identity:
            raise CheckpointError(f"{self._path(stage)} belongs to other settings or data: delete it to train again")
        if own is not None or self.shared is None:
            return own
        found = Checkpoints(self.shared).load(stage)
        return found if found is not None and found[0].identity == identity and found[0].done else None

    def save(self, stage: str, progress: Progress, tensors: dict[str, Tensor]) -> None:
        """Write a stage's checkpoint; the previous one stays until the new one is complete."""
        with atomic_file(self._path(stage)) as temporary:
            held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(held, temporary, metadata={"progress": json.dumps(vars(progress))})
        if progress.done and self.shared is not None:
            Checkpoints(self.shared).save(stage, progress, tensors)

    def load(self, stage: str) -> tuple[Progress, dict[str, Tensor]] | None:
        """A stage's checkpoint, or None if it never wrote one. Raises CheckpointError for a file that is damaged."""
        path = self._path(stage)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                progress = Progress(**json.loads(file.metadata()["progress"]))
                return progress, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}): delete it to train this stage again") from error

    def _path(self, stage: str) -> Path:
        return self.folder / f"{stage}.safetensors"


def pack(model: nn.Module, best: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights, best weights and optimiser state under one flat set of names."""
    tensors = prefixed("model", model.state_dict()) | prefixed("best", best)
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= prefixed(f"optimizer.{index}", state)
    return tensors


def unpack(tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Undo `pack`: fills the model and the optimiser, returns the best weights."""
    model.load_state_dict(under("model", tensors))
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in under("optimizer", tensors).items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    return under("best", tensors)


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor of any dtype, on any device, row by row."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
