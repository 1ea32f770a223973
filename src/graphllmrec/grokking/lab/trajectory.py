"""A training run as its curves: the input of detection rules and of the ground truth."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from graphllmrec.errors import CheckpointError
from graphllmrec.io import atomic_file

Curve = NDArray[np.float64]
CURVES = ("train_loss", "valid_loss", "train_metric", "valid_metric", "weight_norm", "effective_rank", "gradient_norm")


@dataclass(frozen=True)
class Trajectory:
    """The curves of one run, n points each."""

    task: str  # "modular"
    seed: int
    settings: Mapping[str, Any]  # of the task and the training
    step: NDArray[np.int64]  # (n,) rising
    curves: Mapping[str, Curve]  # (n,) each of CURVES
    chance_loss: float  # loss at chance level
    chance_metric: float  # metric at chance level; the best value is 1

    @property
    def name(self) -> str:
        """Task, settings and seed, for display."""
        varied = " ".join(f"{key}={value}" for key, value in self.settings.items())
        return f"{self.task} {varied} seed={self.seed}".replace("  ", " ")

    def points(self) -> Iterator[tuple[int, dict[str, float], dict[str, float], dict[str, float]]]:
        """(step, training, validation, progress measures) of every point, as a training loop would report them."""
        curves = self.curves
        for place, step in enumerate(self.step.tolist()):
            train = {"loss": float(curves["train_loss"][place]), "metric": float(curves["train_metric"][place])}
            valid = {"loss": float(curves["valid_loss"][place]), "metric": float(curves["valid_metric"][place])}
            yield step, train, valid, {name: float(curves[name][place]) for name in CURVES[4:]}


def write_trajectories(path: Path, runs: Sequence[Trajectory]) -> None:
    """Write all runs into one parquet file, curves in single precision."""
    rows = [
        {
            "task": run.task,
            "seed": run.seed,
            "settings": json.dumps(dict(run.settings)),
            "chance_loss": run.chance_loss,
            "chance_metric": run.chance_metric,
            "step": run.step.tolist(),
        }
        | {name: run.curves[name].astype(np.float32).tolist() for name in CURVES}
        for run in runs
    ]
    shape = {name: pl.List(pl.Float32) for name in CURVES} | {"step": pl.List(pl.Int64)}
    table = pl.DataFrame(rows, schema_overrides=shape)
    with atomic_file(Path(path)) as temporary:
        table.write_parquet(temporary.absolute(), compression="zstd", compression_level=19)


def read_trajectories(path: Path) -> list[Trajectory]:
    """Read the file of `write_trajectories`. Raises CheckpointError for any other file."""
    try:
        rows = pl.read_parquet(Path(path).absolute(), glob=False).to_dicts()
        return [
            Trajectory(
                row["task"],
                row["seed"],
                json.loads(row["settings"]),
                np.array(row["step"], dtype=np.int64),
                {name: np.array(row[name], dtype=np.float64) for name in CURVES},
                row["chance_loss"],
                row["chance_metric"],
            )
            for row in rows
        ]
    except (OSError, KeyError, ValueError, pl.exceptions.PolarsError) as error:
        raise CheckpointError(f"{path} holds no trajectories of the grokking lab ({error})") from error
