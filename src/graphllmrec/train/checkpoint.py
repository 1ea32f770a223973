"""Checkpoints of a training that may be interrupted or killed: one file per stage, written atomically, no pickle.

A file carries a SHA-256 over its tensors and its progress. A truncated or corrupted file raises CheckpointError.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from graphllmrec.errors import CheckpointError
from graphllmrec.io import atomic_file, remove_leftovers
from graphllmrec.nn.state import prefixed, under
from graphllmrec.protocol import CheckpointStore
from graphllmrec.train.device import load_trainable, trainable_state

_SAVING = 0.02  # share of the time that checkpoints may take
EVERY = 30.0  # seconds between the checkpoints of a stage
_ABANDONED = 3600.0  # age in seconds at which a temporary file in the shared folder is deleted


@dataclass
class Progress:
    """Where a stage stands: `epoch` epochs and `step` batches of the next one are done."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    examples: int = 0
    best: float = float("-inf")
    best_epoch: int = 0  # epochs completed at the best validation; 0 = untrained
    done: bool = False
    identity: str = ""  # hash of all inputs of the stage
    seconds: float = 0.0  # wall-clock time spent
    log: list[dict[str, Any]] = field(default_factory=list)  # its log lines so far


class Checkpoints:
    """The checkpoints in one folder, by stage name ("graph", "text", …).

    `shared`, a folder of finished stages, is for runs that have a stage in common, like hybrids that differ in their
    gate only: a stage trained with the same settings, seed and data is reused.
    """

    def __init__(self, folder: Path, shared: Path | None = None, every: float = EVERY) -> None:
        """`every`: least seconds between checkpoints (more if saving is slow); 0: after every step."""
        self.folder, self.shared, self.every = Path(folder), shared, every
        self.earlier = 0.0  # training time of reused stages and earlier attempts
        if shared is not None:
            remove_leftovers(shared, older_than=_ABANDONED)

    def find(self, stage: str, identity: str) -> tuple[Progress, dict[str, Tensor]] | None:
        """The checkpoint to resume from, or None. Raises CheckpointError if the run's own one has another identity."""
        own = self.load(stage)
        if own is not None and own[0].identity != identity:
            raise CheckpointError(f"{self._path(stage)} belongs to other settings or data: delete it to train again")
        if own is not None:
            self.earlier += own[0].seconds
        if own is not None or self.shared is None:
            return own
        found = Checkpoints(self.shared).load(_shared_name(stage, identity))
        if found is None or found[0].identity != identity or not found[0].done:
            return None
        self.earlier += found[0].seconds
        Checkpoints(self.folder).save(stage, *found)  # a resumed run may not have the shared folder
        return found

    def save(self, stage: str, progress: Progress, tensors: Mapping[str, Tensor]) -> None:
        """Write a stage's checkpoint; the previous one stays until the new one is complete and on disk."""
        held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        about = json.dumps(vars(progress))
        metadata = {"progress": about, "sha256": _checksum(about, held)}
        with atomic_file(self._path(stage)) as temporary:
            save_file(held, temporary, metadata=metadata)
        if progress.done and self.shared is not None:
            Checkpoints(self.shared).save(_shared_name(stage, progress.identity), progress, held)

    def load(self, stage: str) -> tuple[Progress, dict[str, Tensor]] | None:
        """A stage's checkpoint, or None without a file. Raises CheckpointError for a file that is damaged."""
        path = self._path(stage)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata()
                # get_tensor shows the file itself, which may be replaced while training: hence clones
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
            if _checksum(about["progress"], tensors) != about["sha256"]:
                raise ValueError("its checksum is not the one it was written with")
            return Progress(**json.loads(about["progress"])), tensors
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}): delete it to train this stage again") from error

    def _path(self, stage: str) -> Path:
        return self.folder / f"{stage}.safetensors"


class CheckpointWriter:
    """Writes the checkpoints of one stage, not more often than `checkpoints.every` and `_SAVING` say."""

    def __init__(
        self, checkpoints: CheckpointStore | None, stage: str, module: nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        self.checkpoints, self.stage, self.module, self.optimizer = checkpoints, stage, module, optimizer
        self.began = self.written_at = time.monotonic()
        self.took = 0.0

    def write_if_due(self, progress: Progress, best: dict[str, Tensor]) -> None:
        """Write if the last checkpoint is old enough."""
        if self.checkpoints is None:
            return
        every = self.checkpoints.every
        if time.monotonic() - self.written_at >= (max(every, self.took / _SAVING) if every else 0):
            self.write(progress, best)

    def write(self, progress: Progress, best: dict[str, Tensor]) -> None:
        """Write now."""
        if self.checkpoints is None:
            return
        began = time.monotonic()
        progress.seconds += began - self.began
        self.began = began
        optimizer = None if progress.done else self.optimizer
        self.checkpoints.save(self.stage, progress, pack(self.module, best, optimizer))
        self.written_at = time.monotonic()
        self.took = self.written_at - began


def _shared_name(stage: str, identity: str) -> str:
    """File name with the identity, so stages with other settings do not collide."""
    return f"{stage}-{identity[:16]}"


def pack(model: nn.Module, best: dict[str, Tensor], optimizer: torch.optim.Optimizer | None) -> dict[str, Tensor]:
    """Weights, best weights and optimiser state (None for a finished stage) in one flat dictionary."""
    tensors = prefixed("model", trainable_state(model)) | prefixed("best", best)
    for index, state in optimizer.state_dict()["state"].items() if optimizer is not None else ():
        tensors |= prefixed(f"optimizer.{index}", state)
    return tensors


def unpack(tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Load tensors written by `pack` into model and optimiser; returns the best weights."""
    load_trainable(model, under("model", tensors))
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in under("optimizer", tensors).items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    return under("best", tensors)


def _checksum(about: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over a progress as JSON and over names, kinds, shapes and bytes of tensors."""
    digest = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        digest.update(f"\n{name} {tensors[name].dtype} {tuple(tensors[name].shape)}\n".encode())
        digest.update(raw_bytes(tensors[name]))
    return digest.hexdigest()


def raw_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor of any dtype, on any device, row by row."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
