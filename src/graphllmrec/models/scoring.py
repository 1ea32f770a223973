"""What the models that score from a history share: the recency decay and its tuning, click and item–item matrices.

A history h_1 … h_n (oldest first) becomes the weights decay^(n-1), …, decay, 1: decay 1 forgets nothing, decay 0 looks
at the last item only. The best value differs between data sets and takes a few rankings of validation users to find; so
it is tuned unless a number is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import scipy.sparse as sp
import torch
from pydantic import Field
from torch import Tensor

from graphllmrec.nn.histories import history_matrix, recency_weights
from graphllmrec.protocol import Queries, Task
from graphllmrec.train.validation import settle, tune_setting

Decay = Annotated[float, Field(ge=0, le=1)] | Literal["tune"]
Sparse: TypeAlias = "sp.csr_array[Any, tuple[int, int]]"
DECAYS = (1.0, 0.85, 0.7, 0.55, 0.4, 0.25)  # tried when tuning; 1.0 first, so a tie keeps the simplest
UNTUNED_DECAY = 0.7  # for ordered data without a validation part to tune on


def settle_decay(model: Any, task: Task) -> None:
    """Set `model.decay` from its config: the number given there, or the best of DECAYS by validation NDCG@20.

    Call it in `fit` when the model can score. Histories without an order have decay 1, whatever the config says.
    """
    wanted = model.config.decay
    if not task.split.ordered:
        model.decay = 1.0
        if wanted not in ("tune", 1.0):
            task.logger.log("decay-ignored", model=model.name, reason="the interactions have no order")
    elif wanted != "tune":
        model.decay = float(wanted)
    else:
        tuned = partial(tune_setting, model, task, "decay", DECAYS, partial(setattr, model, "decay"))
        model.decay = settle(task, f"{model.name}/decay", tuned, UNTUNED_DECAY)


def history_state(model: Any) -> dict[str, Tensor]:
    """Decay and size of the catalogue of a model that has both."""
    return {"decay": torch.tensor(model.decay, dtype=torch.float64), "num_items": torch.tensor(model.num_items)}


def load_history_state(model: Any, state: Mapping[str, Tensor]) -> None:
    """Load tensors written by `history_state`."""
    model.decay, model.num_items = float(state["decay"]), int(state["num_items"])


def empty_csr(rows: int = 0, columns: int = 0) -> Sparse:
    """A sparse float32 matrix (rows, columns) without entries."""
    return sp.csr_array(sp.coo_array((rows, columns), dtype=np.float32))


def sparse_scores(queries: Queries, weights: Sparse, num_items: int, decay: float) -> Tensor:
    """Scores (B, num_items) = recency-weighted history @ weights (n, n); items from n on are new and score 0."""
    known = weights.shape[0]
    histories = history_matrix(queries.histories, num_items, decay)[:, :known]  # (B, n)
    scores = np.zeros((len(queries), num_items), dtype=np.float32)
    scores[:, :known] = (histories @ weights).toarray()
    return torch.from_numpy(scores)  # (B, num_items)


def dense_scores(queries: Queries, weights: Tensor, num_items: int, decay: float) -> Tensor:
    """Scores (B, num_items) = recency-weighted history @ weights (n, n); items from n on are new and score 0."""
    histories, known = queries.histories, len(weights)
    faded = recency_weights(histories, decay) * (histories.items < known)  # (nnz,); new items say nothing
    scores = torch.nn.functional.embedding_bag(  # sums rows of weights without making a (nnz, num_items) copy of them
        torch.from_numpy(np.minimum(histories.items, known - 1)),
        weights,
        torch.from_numpy(histories.indptr),
        mode="sum",
        per_sample_weights=torch.from_numpy(faded),
        include_last_offset=True,
    )
    return torch.nn.functional.pad(scores, (0, num_items - known))  # (B, num_items)


def weight_state(model: Any) -> dict[str, Tensor]:
    """Item–item weights, decay and size of the catalogue of a model that has all three."""
    return sparse_state(model.weights) | history_state(model)


def load_weights(model: Any, state: Mapping[str, Tensor]) -> None:
    """Load tensors written by `weight_state`."""
    model.weights = sparse_restore(state)
    load_history_state(model, state)


def sparse_state(weights: Sparse) -> dict[str, Tensor]:
    """The three arrays of a sparse matrix as tensors."""
    return {
        "indptr": torch.from_numpy(weights.indptr.astype(np.int64)),
        "indices": torch.from_numpy(weights.indices.astype(np.int32)),
        "values": torch.from_numpy(weights.data.astype(np.float32)),
    }


def sparse_restore(state: Mapping[str, Tensor]) -> Sparse:
    """A square float32 matrix from tensors written by `sparse_state`. Raises ValueError for impossible columns."""
    size = len(state["indptr"]) - 1
    arrays = (state["values"].numpy(), state["indices"].numpy(), state["indptr"].numpy())
    matrix: Sparse = sp.csr_array(arrays, shape=(size, size))
    matrix.check_format(full_check=True)  # SciPy reads other memory for a column that does not exist
    return matrix
