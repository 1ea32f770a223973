"""What a fit found on its validation part (protocol.Findings): one file of tensors, with the settings in its header."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from graphllmrec.io import atomic_file
from graphllmrec.manifest import CHECKPOINTS, RunFiles, damaged
from graphllmrec.protocol import Earlier, Findings

FINDINGS = "findings.safetensors"
T = TypeVar("T")


def write_findings(folder: Path, findings: Findings | None) -> None:
    """Write settings and weights into a run folder; None: of an old run, nothing is known."""
    if findings is not None:
        _write(folder / FINDINGS, findings, {}, {})


def read_findings(files: RunFiles) -> Findings | None:
    """Those of a run; None for one from before they were kept. Raises CheckpointError for damaged ones."""
    if files.manifest is None or FINDINGS not in files.manifest.files:
        return None
    return _read(files.check(FINDINGS), lambda findings, _header, _rows: findings)


def write_earlier(folder: Path, earlier: Earlier) -> None:
    """Keep what a refit takes over beside its checkpoints, for one that is interrupted."""
    path = folder / CHECKPOINTS / "earlier.safetensors"
    path.parent.mkdir(exist_ok=True)
    rows = {"users": torch.from_numpy(earlier.users), "items": torch.from_numpy(earlier.items)}
    _write(path, earlier.findings, {"warm": earlier.warm}, rows)


def read_earlier(folder: Path) -> Earlier | None:
    """What the interrupted refit in a folder takes over; None for a fit. Raises CheckpointError for a damaged file."""
    path = folder / CHECKPOINTS / "earlier.safetensors"
    if not path.is_file():
        return None

    def build(findings: Findings, header: dict[str, Any], rows: dict[str, Tensor]) -> Earlier:
        users, items = (rows[name].numpy().astype(np.int64) for name in ("users", "items"))
        return Earlier(findings, users, items, header["warm"])

    return _read(path, build)


def _write(path: Path, findings: Findings, header: Mapping[str, Any], rows: Mapping[str, Tensor]) -> None:
    tensors = {f"{stage}/{name}": tensor for stage, own in findings.weights.items() for name, tensor in own.items()}
    held = {name: tensor.detach().cpu().clone() for name, tensor in {**tensors, **rows}.items()}
    sizes = {"num_users": findings.num_users, "num_items": findings.num_items}
    about = {"settings": json.dumps(findings.settings), "header": json.dumps({**sizes, **header})}
    with atomic_file(path) as temporary:
        save_file(held, temporary, metadata=about)


def _read(path: Path, build: Callable[[Findings, dict[str, Any], dict[str, Tensor]], T]) -> T:
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata()
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
        header = json.loads(about["header"])
        sizes = {name: header[name] for name in ("num_users", "num_items")}
        findings, rows = Findings(json.loads(about["settings"]), **sizes), {}
        for name, tensor in tensors.items():
            stage, slash, own = name.rpartition("/")
            if slash:
                findings.weights.setdefault(stage, {})[own] = tensor
            else:
                rows[name] = tensor
        return build(findings, header, rows)
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise damaged(path, str(error).splitlines()[0] if str(error) else repr(error)) from error
