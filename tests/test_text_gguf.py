"""Language models in GGUF files: the vectors of the same weights as a plain model; refused when they cannot be read."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from graphllmrec.errors import TextError
from graphllmrec.text import loading
from graphllmrec.text.config import TextConfig
from graphllmrec.text.encoder import encode_texts
from graphllmrec.text.gguf import gguf_pooling, read_header
from graphllmrec.text.loading import find_source, load_model, load_tokenizer
from graphllmrec.text.lora import AdaptedEncoder, LoRAConfig
from tiny_gguf import MERGES, save_gguf, save_plain, tiny_qwen2, vocabulary

pytest.importorskip("transformers")
pytest.importorskip("gguf", reason="reading GGUF files needs the package gguf")

TEXTS = ["red lamp", "a red glass lamp, of steel!", "Größe 12", "lamp"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return save_gguf(tiny_qwen2(), tmp_path / "model" / "tiny.gguf")


@pytest.mark.parametrize("pooling", ["auto", "mean", "last", "cls"])
def test_vectors_are_those_of_the_plain_model(file: Path, tmp_path: Path, pooling: str) -> None:
    plain = save_plain(tiny_qwen2(), tmp_path / "plain")
    found, expected = (
        encode_texts(TEXTS, TextConfig(encoder=str(path), pooling=pooling), cache=tmp_path / "c")  # type: ignore[arg-type]
        for path in (file, plain)
    )
    assert found.shape == (len(TEXTS), 32)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("kind", "closest"), [("F16", 0.99999), ("Q8_0", 0.999)])
def test_quantised_weights_are_unpacked(tmp_path: Path, kind: str, closest: float) -> None:
    plain = save_plain(tiny_qwen2(), tmp_path / "plain")
    packed = save_gguf(tiny_qwen2(), tmp_path / "packed.gguf", kind)
    found, expected = (encode_texts(TEXTS, TextConfig(encoder=str(path)), cache=tmp_path) for path in (packed, plain))
    assert not torch.equal(found, expected)
    assert float((found * expected).sum(1).min()) > closest
    model = load_model(find_source(str(packed)), torch.float32)
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert isinstance(model.layers[0].mlp.up_proj, torch.nn.Linear)  # which adapters and bfloat16 need


def test_the_tokens_are_those_of_the_file_alone(file: Path) -> None:
    source = find_source(str(file))
    before = load_tokenizer(source)(TEXTS)["input_ids"]
    assert [vocabulary()[token] for token in before[0]] == ["red", "Ġlamp"]
    words = {word: at for at, word in enumerate(reversed(vocabulary()))}
    (file.parent / "vocab.json").write_text(json.dumps(words))
    (file.parent / "merges.txt").write_text("\n".join(["#version", *MERGES[:1]]))
    (file.parent / "tokenizer_config.json").write_text('{"add_prefix_space": true}')
    assert load_tokenizer(source)(TEXTS)["input_ids"] == before
    assert find_source(str(file)) == source


def test_changed_weights_are_another_model(file: Path, tmp_path: Path) -> None:
    before, model = find_source(str(file)).identity, tiny_qwen2()
    config = TextConfig(encoder=str(file))
    vectors = encode_texts(["red lamp"], config, cache=tmp_path / "c")
    model.norm.weight.data[:16] *= -1
    save_gguf(model, file)
    assert find_source(str(file)).identity != before
    assert not torch.allclose(encode_texts(["red lamp"], config, cache=tmp_path / "c"), vectors)


def test_known_vectors_need_neither_the_model_nor_the_package(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TextConfig(encoder=str(file))
    vectors = encode_texts(TEXTS, config, cache=tmp_path / "c")
    without_gguf(monkeypatch)
    assert torch.equal(encode_texts(TEXTS, config, cache=tmp_path / "c"), vectors)
    with pytest.raises(TextError, match=r"'tiny.gguf' needs the package 'gguf': pip install 'graphllmrec\[llm,gguf\]'"):
        encode_texts(["new"], config, cache=tmp_path / "c")


def without_gguf(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None if name == "gguf" else found(name))


@pytest.mark.parametrize(("said", "used"), [(0, "last"), (1, "mean"), (2, "cls"), (3, "last"), (4, "last")])
def test_pooling_is_read_from_the_file(tmp_path: Path, said: int, used: str) -> None:
    file = save_gguf(tiny_qwen2(), tmp_path / "tiny.gguf", pooling_type=said)
    assert find_source(str(file)).pooling == gguf_pooling(file) == used
    assert find_source(str(file), pooling="cls").pooling == "cls"


def test_the_header_without_arrays(file: Path) -> None:
    header = read_header(file)
    assert header["general.architecture"] == "qwen2"
    assert header["qwen2.block_count"] == 2
    assert header["qwen2.rope.freq_base"] == 10_000.0
    assert header["tokenizer.ggml.padding_token_id"] == len(vocabulary()) - 1  # after the arrays
    assert not any("tokens" in key or "merges" in key for key in header)


def test_adapters_train_on_a_gguf_file(file: Path) -> None:
    adapted = AdaptedEncoder(TextConfig(encoder=str(file)), LoRAConfig(rank=2), seed=0)
    adapted(TEXTS).sum().backward()
    assert len(adapted.adapters) == 2 * 2 * 7  # A and B, layers, linear layers of one
    assert any(value.grad is not None and value.grad.any() for value in adapted.adapters.values())


def test_a_file_of_a_hugging_face_repository(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def cached(repository: str, name: str, revision: str) -> str:
        asked.append((repository, name, revision))
        return str(file)

    monkeypatch.setattr("transformers.utils.cached_file", cached)
    assert find_source("org/repo/folder/tiny.gguf") == find_source(str(file))
    find_source("org/repo/tiny.gguf", "v2")
    assert asked == [("org/repo", "folder/tiny.gguf", "main"), ("org/repo", "tiny.gguf", "v2")]


@pytest.mark.parametrize("name", ["./no/such/file.gguf", "/none.gguf", "none.gguf", "folder/none.gguf"])
def test_a_missing_file(name: str) -> None:
    with pytest.raises(TextError, match=rf"there is no file '{name}'(.|\n)*org/repo/FILE.gguf"):
        find_source(name)


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


DAMAGES: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda content: b"version https://git-lfs", r"is not a GGUF file(.|\n)*pointer of Git LFS"),
    (lambda content: b"", r"is not a GGUF file"),
    (lambda content: content[:10], r"its header is damaged(.|\n)*download it again"),
    (lambda content: content[:300], r"its header is damaged"),
    (lambda content: content[:4] + struct.pack("<I", 9) + content[8:], r"version 9, and versions 2 and 3 can be read"),
    (lambda content: content.replace(b"general.architecture", b"general.Architecture"), r"its header is damaged"),
    (cut, r"cannot load .*tiny.gguf(.|\n)*download the file again if it may be cut short"),
    (lambda content: content.replace(b"qwen2", b"qwenX"), r"architecture qwenX is not supported(.|\n)*safetensors"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_files_that_cannot_be_read(file: Path, tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(TextError, match=message):
        encode_texts(TEXTS, TextConfig(encoder=str(file)), cache=tmp_path / "c")


def test_a_file_without_some_weights_is_refused(tmp_path: Path) -> None:
    """transformers draws them at random."""
    file = save_gguf(tiny_qwen2(), tmp_path / "tiny.gguf", without="blk.1.ffn_up.weight")
    with pytest.raises(TextError, match=r"'tiny.gguf' lacks 1 of the weights that Qwen2Model has: layers.1.mlp.up"):
        encode_texts(TEXTS, TextConfig(encoder=str(file)), cache=tmp_path / "c")
