"""The header of a GGUF file: which architecture the language model in it has, and how its states are pooled.

    file = "GGUF" · version · number of tensors · number of entries · entries (key, type, value) · tensors

One file holds weights, mostly quantised, settings and tokenizer, as llama.cpp uses them. transformers unpacks them with
the package `gguf` (text/loading.py). That takes half a minute for a vocabulary of 150,000 tokens; what has to be known
to find vectors in the cache is read here in a fraction of a second.

Source: the format's specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from graphllmrec.errors import TextError

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # kinds
_STRING, _ARRAY = 8, 9
_ENCODERS = ("t5", "umt5", "t5encoder")  # of the architectures that transformers reads; all others are decoders

Value = str | int | float | bool

_POOLING: dict[Value, str] = {1: "mean", 2: "cls", 3: "last"}  # of the entry ARCHITECTURE.pooling_type


def gguf_pooling(path: Path) -> str:
    """What the file says, else mean for encoders and last for decoders. Raises TextError as `read_header`."""
    header = read_header(path)
    architecture = header["general.architecture"]
    said = _POOLING.get(header.get(f"{architecture}.pooling_type", 0))
    return said or ("mean" if architecture in _ENCODERS else "last")


def read_header(path: Path) -> dict[str, Value]:
    """All entries but arrays, such as {"general.architecture": "qwen2", "qwen2.block_count": 24}.

    Raises TextError when the file is no GGUF of version 2 or 3, or its header is damaged.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise TextError(
                f"text.encoder: {str(path)!r} is not a GGUF file: it does not begin with 'GGUF'\n"
                "  hint: download it again; a file of a few hundred bytes is often a pointer of Git LFS"
            )
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                header = _entries(content)
                architecture = header["general.architecture"]
        except (struct.error, ValueError, KeyError, IndexError) as error:
            raise TextError(
                f"text.encoder: {str(path)!r} begins as a GGUF file, and its header is damaged ({error})\n"
                "  hint: download it again"
            ) from error
    if not isinstance(architecture, str):
        raise TextError(f"text.encoder: {str(path)!r}: general.architecture is not text but {architecture!r}")
    return header


def _entries(content: mmap.mmap) -> dict[str, Value]:
    version, _, count = _integers(content, 4, "IQQ")
    if version not in (2, 3):
        raise ValueError(f"version {version}, and versions 2 and 3 can be read")
    found: dict[str, Value] = {}
    at = 24
    for _ in range(count):
        key, at = _string(content, at)
        (kind,) = _integers(content, at, "I")
        at += 4
        if kind == _ARRAY:
            at = _after_array(content, at)
        elif kind == _STRING:
            found[key], at = _string(content, at)
        else:
            (found[key],) = struct.unpack_from(f"<{_code(kind)}", content, at)
            at += struct.calcsize(_code(kind))
    return found


def _after_array(content: mmap.mmap, at: int) -> int:
    """Where an array ends whose type begins at `at`."""
    kind, count = _integers(content, at, "IQ")
    at += 12
    if kind not in (_STRING, _ARRAY):
        return at + count * struct.calcsize(_code(kind))
    for _ in range(count):
        at = _after_array(content, at) if kind == _ARRAY else at + 8 + _integers(content, at, "Q")[0]
    return at


def _integers(content: mmap.mmap, at: int, codes: str) -> tuple[int, ...]:
    return struct.unpack_from(f"<{codes}", content, at)


def _string(content: mmap.mmap, at: int) -> tuple[str, int]:
    (length,) = _integers(content, at, "Q")
    end = at + 8 + length
    if end > len(content):
        raise ValueError("it ends too early")
    return content[at + 8 : end].decode("utf-8"), end


def _code(kind: int) -> str:
    if kind not in _NUMBERS:
        raise ValueError(f"a value of the unknown type {kind}")
    return _NUMBERS[kind]
