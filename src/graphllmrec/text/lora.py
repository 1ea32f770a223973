"""A frozen language model with LoRA adapters that give gradients to its text vectors.

    W x + (alpha / rank) B A x        A (rank, in), B (out, rank) trained; W frozen; B = 0 at the start

LoRA (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685, eq. 3), through the
package peft, on all linear layers of attention and MLP. They are found by type inside the repeated blocks of the model
(nn.Linear, or GPT-2's Conv1D), so any encoder or decoder works; poolers, heads and embeddings stay as they are.

Only the adapters are parameters of this module: its state_dict, and so a checkpoint or a saved recommender, holds
a few hundred kilobytes, not the language model.

>>> adapted = AdaptedEncoder(TextConfig(), LoRAConfig(rank=8), seed=0)
>>> vectors = adapted(texts, At(seed, "align", epoch, step))  # (len(texts), dim) of length 1, with gradients
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from graphllmrec.errors import TextError
from graphllmrec.protocol import TextVectors
from graphllmrec.rng import At, stream_seed, torch_rng
from graphllmrec.text.config import TextConfig
from graphllmrec.text.encoder import Tokeniser, _pool
from graphllmrec.text.loading import find_source, load_model, load_tokenizer

_TEXTS_PER_BATCH = 32  # encoded together without gradients, after sorting by length


class LoRAConfig(BaseModel):
    """Settings of the adapters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(8, ge=1, le=1_024, description="rank of an adapter")
    alpha: int = Field(16, ge=1, le=10_000, description="adapters count alpha / rank")
    dropout: float = Field(0.05, ge=0, lt=1, description="share of an adapter's inputs dropped in training")
    epochs: int = Field(0, ge=0, le=100_000, description="passes that train the adapters, at most; 0: frozen vectors")
    learning_rate: float = Field(5e-4, gt=0, le=10, description="AdamW step size of those passes")
    texts_per_step: int = Field(32, ge=1, le=1_000_000, description="texts of a batch encoded with gradients, at most")


class AdaptedEncoder(nn.Module):
    """Texts -> pooled vectors of length 1, as text/encoder.py makes them, through adapters that can be trained."""

    def __init__(
        self, text: TextConfig, lora: LoRAConfig, seed: int, device: torch.device = torch.device("cpu")
    ) -> None:
        """Load the language model onto `device` and add the adapters. Raises TextError when either is missing."""
        super().__init__()
        source = find_source(text.encoder, text.revision, text.pooling)
        self.text, self.pooling, self.identity, self.device = text, source.pooling, source.identity, device
        tokenizer = load_tokenizer(source)
        model = _with_adapters(load_model(source, torch.float32), lora).to(device)
        self._kept: list[Any] = [model]  # in a list, so that the frozen weights are not part of this module
        self._tokens: dict[str, list[int]] = {}
        self._tokenise = Tokeniser(tokenizer, text)
        self.adapters = nn.ParameterDict()
        for name, value in model.named_parameters():
            value.requires_grad_("lora_" in name)
            if "lora_" in name:
                _start(value, name, seed)
                self.adapters[name.replace(".", "/")] = value

    @property
    def model(self) -> nn.Module:
        """The language model with its adapters."""
        found: nn.Module = self._kept[0]
        return found

    def forward(self, texts: Sequence[str], at: At | None = None) -> Tensor:
        """Vectors (len(texts), dim) of length 1 with gradients by the adapters.

        `at` decides what dropout drops, in model and adapters; None drops nothing.
        """
        tokens = [self._tokenised(text) for text in texts]
        lengths = torch.tensor([len(ids) for ids in tokens])
        width = max(int(lengths.max()), 1)
        ids = torch.tensor([row + [0] * (width - len(row)) for row in tokens], dtype=torch.long)  # (B, T)
        ids, real = ids.to(self.device), (torch.arange(width) < lengths[:, None]).to(self.device)  # (B, T)
        self.model.train(at is not None)
        with _drawing(at, self.device):
            states = self.model(input_ids=ids, attention_mask=real.long()).last_hidden_state  # (B, T, dim)
        self.model.eval()
        return F.normalize(_pool(states, real, self.pooling), dim=1)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Vectors (len(texts), dim) without gradients, of any number of texts; on the CPU."""
        order = sorted(range(len(texts)), key=lambda row: -len(self._tokenised(texts[row])))
        parts = [order[start : start + _TEXTS_PER_BATCH] for start in range(0, len(order), _TEXTS_PER_BATCH)]
        vectors = torch.cat([self([texts[row] for row in part]).cpu() for part in parts])  # in `order`
        return vectors.index_select(0, torch.argsort(torch.tensor(order)))

    def encode_all(self, text: TextVectors) -> TextVectors:
        """The same items or users with vectors of the adapted model. Raises TextError when their texts are missing."""
        rows = torch.nonzero(text.present)[:, 0]
        texts = require_texts(text, rows.tolist())
        vectors = torch.zeros_like(text.vectors)
        if texts:
            vectors[rows] = self.encode(texts)
        return TextVectors(vectors, text.present, text.texts)

    def _tokenised(self, text: str) -> list[int]:
        if text not in self._tokens:
            (self._tokens[text],) = self._tokenise([text])
        return self._tokens[text]


def require_texts(text: TextVectors, rows: Sequence[int]) -> list[str]:
    """The texts of these rows. Raises TextError where one is missing: its adapted vector cannot be computed."""
    if text.texts is None:
        raise TextError(
            "adapting the language model (LoRA) needs the texts themselves, and there are vectors only\n"
            "  hint: give TextVectors its `texts`, as text.encoder.encode_items does"
        )
    found = [text.texts[row] for row in rows]
    if missing := [row for row, entry in zip(rows, found, strict=True) if not entry]:
        raise TextError(f"{len(missing)} rows are marked as having text, but their texts are missing: {missing[:5]}")
    return [entry for entry in found if entry]


def adaptable(model: nn.Module) -> list[str]:
    """Names of the linear layers inside the repeated blocks of a model: those of attention and MLP."""
    kinds: tuple[type, ...] = (nn.Linear, _conv1d())
    blocks = [name for name, part in model.named_modules() if isinstance(part, nn.ModuleList)]
    inside = tuple(f"{name}." for name in blocks)
    return [name for name, part in model.named_modules() if isinstance(part, kinds) and name.startswith(inside)]


def _with_adapters(model: nn.Module, lora: LoRAConfig) -> nn.Module:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise TextError(
            "adapting the language model needs the package 'peft': pip install 'graphllmrec[llm]'"
        ) from error
    names = adaptable(model)
    if not names:
        raise TextError(f"{type(model).__name__} has no linear layers inside blocks that adapters could be put on")
    conv = any(isinstance(model.get_submodule(name), _conv1d()) for name in names)
    settings = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=names, fan_in_fan_out=conv
    )
    adapted: nn.Module = inject_adapter_in_model(settings, model)
    return adapted.eval()


def _conv1d() -> type:
    from transformers.pytorch_utils import Conv1D

    kind: type = Conv1D
    return kind


@torch.no_grad()
def _start(value: nn.Parameter, name: str, seed: int) -> None:
    """A uniform as peft draws it, but a function of (seed, name); B zero."""
    if "lora_B" in name:
        value.zero_()
        return
    bound = 1 / math.sqrt(value.shape[1])
    value.copy_((torch.rand(value.shape, generator=torch_rng(seed, f"lora/{name}")) * 2 - 1) * bound)


@contextmanager
def _drawing(at: At | None, device: torch.device) -> Iterator[None]:
    """Inside, torch's own random numbers (dropout within the model) are a function of `at`; outside, as if never."""
    if at is None:
        yield
        return
    seed, purpose, epoch, step = at
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(stream_seed(seed, f"{purpose}/lora", epoch, step))
        yield
