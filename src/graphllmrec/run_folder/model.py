"""The model of a run folder: written after training, held against recipe and tables when it is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from graphllmrec import legacy
from graphllmrec.data.split import Split
from graphllmrec.data.tables import Histories
from graphllmrec.errors import CheckpointError, GraphLLMRecError
from graphllmrec.io import atomic_file, write_text
from graphllmrec.manifest import FORMAT, MANIFEST, FileEntry, RunFiles, damaged
from graphllmrec.models.explain import similarities
from graphllmrec.models.registry import build
from graphllmrec.protocol import Model, Queries
from graphllmrec.recipe import Recipe
from graphllmrec.run_folder.schema import ModelFile

WITHOUT_MANIFEST = (legacy.FORMAT, 4)  # of runs of version 0.1 and 0.2


def write_model(folder: Path, model: Model, facts: Mapping[str, Any] | None = None) -> None:
    """Write tensors and model.json; `facts` (seconds, …) go into the latter."""
    tensors = _unshared({name: tensor.detach().cpu().contiguous() for name, tensor in model.state().items()})
    with atomic_file(folder / "model.safetensors") as temporary:
        save_file(tensors, temporary)
    about = {
        "format": FORMAT,
        "model": model.name,
        "config": model.config.model_dump(mode="json"),
        "versions": {name: version(name) for name in ("graphllmrec", "torch", "polars", "numpy")},
        **(facts or {}),
    }
    write_text(folder / "model.json", json.dumps(about, indent=2) + "\n")


def read_model(files: RunFiles, recipe: Recipe, split: Split) -> Model:
    """The fitted model. Raises CheckpointError for one that is damaged, of another recipe, or of other tables."""
    path = files.path("model.json")
    _require_format(path)
    about = files.json("model.json", ModelFile)
    if files.manifest is None and about.format not in WITHOUT_MANIFEST:
        raise CheckpointError(f"{files.folder} is not a complete run folder; missing: {MANIFEST}")
    tensors_path = files.check("model.safetensors")
    if files.manifest is None and FileEntry.of(tensors_path).sha256 != about.sha256:
        raise CheckpointError(f"{tensors_path} is damaged: its checksum is not the one in model.json")
    name, config = about.model, about.config
    with _fitting(tensors_path, "its tensors cannot be read"):
        tensors = load_file(tensors_path)
    if about.format == legacy.FORMAT:
        with _fitting(path, "its settings are not those of version 0.1"):
            name, config, tensors = legacy.current_run(name, config, tensors)
    try:
        model = build(name, config, saved=True)
    except (ValidationError, GraphLLMRecError, TypeError) as error:
        raise damaged(path, f"its settings are not those of a model ({str(error).splitlines()[0]})") from error
    if (model.name, model.config) != (recipe.model.name, recipe.build_model().config):
        raise CheckpointError(
            f"{path} and {files.path('recipe.toml').name} describe different models: two fits have written to this "
            "folder, or files of another run were copied here; fit it again"
        )
    with _fitting(tensors_path, f"its tensors are not those of {model.name} on these users and items"):
        model.restore(tensors)
        _try_out(model, split)
    return model


def _require_format(path: Path) -> None:
    """Raise CheckpointError for a format that this version does not know, whatever else such a file holds."""
    with suppress(OSError, ValueError, RecursionError, AttributeError):
        found = json.loads(path.read_bytes()).get("format")
        if isinstance(found, int) and found not in (*WITHOUT_MANIFEST, FORMAT):
            raise CheckpointError(f"{path} has format {found}, this version reads {FORMAT}; fit it again")


@contextmanager
def _fitting(path: Path, reason: str) -> Iterator[None]:
    """Any error as that of a damaged file: tensors of a wrong shape fail where they are first used, in many ways."""
    try:
        yield
    except Exception as error:
        detail = (str(error).splitlines() or [repr(error)])[0]
        raise damaged(path, f"{reason} ({detail or repr(error)})") from error


@torch.no_grad()
def _try_out(model: Model, split: Split) -> None:
    """Score the first and the last user, a user without a history, and the last item. Raises where shapes disagree."""
    known = split.train.histories(split.num_users)
    users = np.unique(np.array([0, split.num_users - 1], dtype=np.int64))
    for queries in (Queries.of(known, users), Queries.anonymous(Histories.from_lists([[]]))):
        shape = tuple(model.scores(queries).shape)
        if shape != (len(queries), split.num_items):
            raise ValueError(f"scores {shape} for {len(queries)} users and {split.num_items} items")
    if (shape := tuple(similarities(model, split.num_items - 1).shape)) != (split.num_items,):
        raise ValueError(f"similarities {shape} for {split.num_items} items")


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, copied where two share memory: safetensors refuses those."""
    seen: set[int] = set()
    out = {}
    for name, tensor in tensors.items():
        address = tensor.untyped_storage().data_ptr()
        out[name] = tensor.clone() if address in seen else tensor
        seen.add(address)
    return out
