"""LoRA adapters on small random language models, and once on the packaged one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load, save
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from graphllmrec.errors import TextError
from graphllmrec.models.registry import build
from graphllmrec.protocol import Queries, Task, TextVectors
from graphllmrec.text.config import TextConfig
from graphllmrec.text.encoder import encode_texts
from graphllmrec.text.lora import AdaptedEncoder, LoRAConfig, adaptable
from other_device import Remote, other_device
from tiny import ITEMS, QUERIES, SPLIT

WORDS = ["pump", "valve", "gear", "poem", "novel", "sonnet", "tulip", "spade", "drum", "guitar"]
TEXTS = ["pump valve", "poem novel sonnet", "tulip spade", "drum", "guitar drum gear pump valve"]
AT = (3, "test", 1, 2)


def small(kind: str) -> transformers.PreTrainedModel:
    torch.manual_seed(1)
    if kind == "bert":
        config: Any = transformers.BertConfig(
            vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
        )
        return transformers.BertModel(config)
    if kind == "gpt2":
        return transformers.GPT2Model(transformers.GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2))
    config = transformers.Qwen2Config(
        vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=24,
    )  # fmt: skip
    return transformers.Qwen2Model(config)


def saved(folder: Path, kind: str = "bert") -> TextConfig:
    """A small random model and a tokenizer of ten words, as text.encoder may name them."""
    small(kind).save_pretrained(folder)
    vocabulary = {word: row for row, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    return TextConfig(encoder=str(folder), dtype="float32", device="cpu")


@pytest.mark.parametrize(
    ("kind", "per_block"), [("bert", 6), ("gpt2", 4), ("qwen2", 7)]
)  # q k v o in out; c_attn c_proj c_fc c_proj; q k v o gate up down
def test_adapters_sit_on_attention_and_mlp_of_every_block_and_nowhere_else(kind: str, per_block: int) -> None:
    names = adaptable(small(kind))
    assert len(names) == 2 * per_block
    assert not any("pooler" in name or "embed" in name for name in names)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "qwen2"])
def test_untrained_adapters_change_nothing(tmp_path: Path, kind: str) -> None:
    config = saved(tmp_path / "model", kind)
    plain = encode_texts(TEXTS, config, cache=tmp_path / "cache")
    adapted = AdaptedEncoder(config, LoRAConfig(rank=2), seed=0)
    torch.testing.assert_close(adapted.encode(TEXTS), plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(adapted(TEXTS).detach(), plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "qwen2"])
def test_an_adapter_adds_alpha_over_rank_times_b_a(tmp_path: Path, kind: str) -> None:
    config = saved(tmp_path, kind)
    adapted = AdaptedEncoder(config, LoRAConfig(rank=2, alpha=6, dropout=0.0), seed=0)
    with torch.no_grad():
        for name, value in adapted.adapters.items():
            if "lora_B" in name:
                value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name))))
    merged = small(kind).eval()
    merged.load_state_dict(transformers.AutoModel.from_pretrained(tmp_path).state_dict())
    for name in adaptable(merged):
        key = name.replace(".", "/")
        update = (
            3.0 * adapted.adapters[f"{key}/lora_B/default/weight"] @ adapted.adapters[f"{key}/lora_A/default/weight"]
        )
        weight = merged.get_submodule(name).weight
        weight.data += update.detach().T if kind == "gpt2" else update.detach()  # Conv1D keeps (in, out)
    merged.save_pretrained(tmp_path / "merged")
    saved_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    saved_tokenizer.save_pretrained(tmp_path / "merged")
    other = AdaptedEncoder(config.model_copy(update={"encoder": str(tmp_path / "merged")}), LoRAConfig(rank=1), seed=0)
    torch.testing.assert_close(adapted.encode(TEXTS), other.encode(TEXTS), rtol=1e-4, atol=1e-5)


def test_only_the_adapters_are_trained_and_saved(tmp_path: Path) -> None:
    adapted = AdaptedEncoder(saved(tmp_path), LoRAConfig(rank=2), seed=0)
    assert all("lora_" in name for name in adapted.state_dict())
    (adapted(TEXTS, AT) * torch.arange(16.0)).sum().backward()
    assert all(value.grad is not None for value in adapted.parameters())
    frozen = [value for name, value in adapted.model.named_parameters() if "lora_" not in name]
    assert frozen
    assert not any(value.requires_grad or value.grad is not None for value in frozen)
    optimizer = torch.optim.SGD(adapted.parameters(), lr=1.0)
    before = adapted.encode(TEXTS)
    optimizer.step()
    assert not torch.allclose(adapted.encode(TEXTS), before, atol=1e-4)


def test_state_brings_the_vectors_back(tmp_path: Path) -> None:
    config = saved(tmp_path)
    adapted, other = (AdaptedEncoder(config, LoRAConfig(rank=2), seed=seed) for seed in (0, 1))
    with torch.no_grad():
        for value in adapted.parameters():
            value.add_(0.1)
    other.load_state_dict(load(save(adapted.state_dict())))
    assert torch.equal(adapted.encode(TEXTS), other.encode(TEXTS))


def test_dropout_and_start_are_functions_of_the_seed(tmp_path: Path) -> None:
    config = saved(tmp_path)
    first, second, third = (AdaptedEncoder(config, LoRAConfig(rank=2, dropout=0.5), seed=seed) for seed in (0, 0, 1))
    assert save(first.state_dict()) == save(second.state_dict()) != save(third.state_dict())
    with torch.no_grad():
        for value in first.parameters():
            value.add_(0.3)
    torch.manual_seed(5)
    drawn = first(TEXTS, AT)
    torch.manual_seed(6)
    expected = torch.rand(3)
    torch.manual_seed(6)
    assert torch.equal(first(TEXTS, AT), drawn)
    assert torch.equal(torch.rand(3), expected)  # torch's own stream goes on as if nothing had been drawn
    assert not torch.equal(first(TEXTS, (3, "test", 1, 3)), drawn)
    assert torch.equal(first(TEXTS), first(TEXTS))


def test_order_and_batching_do_not_matter(tmp_path: Path) -> None:
    adapted = AdaptedEncoder(saved(tmp_path), LoRAConfig(rank=2), seed=0)
    many = TEXTS * 20
    torch.testing.assert_close(adapted.encode(many), adapted.encode(TEXTS).repeat(20, 1), rtol=1e-5, atol=1e-6)


def test_texts_that_are_missing_are_an_error(tmp_path: Path) -> None:
    adapted = AdaptedEncoder(saved(tmp_path), LoRAConfig(rank=2), seed=0)
    vectors, present = torch.ones(3, 16), torch.tensor([True, False, True])
    with pytest.raises(TextError, match="needs the texts themselves"):
        adapted.encode_all(TextVectors(vectors, present))
    with pytest.raises(TextError, match=r"texts are missing: \[2\]"):
        adapted.encode_all(TextVectors(vectors, present, ("pump", None, None)))
    found = adapted.encode_all(TextVectors(vectors, present, ("pump", None, "poem")))
    assert torch.equal(found.vectors[1], torch.zeros(16))
    torch.testing.assert_close(found.vectors[[0, 2]], adapted.encode(["pump", "poem"]))


def test_a_model_without_blocks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = saved(tmp_path)
    monkeypatch.setattr("graphllmrec.text.lora.load_model", lambda *_: torch.nn.Linear(3, 3))
    with pytest.raises(TextError, match="Linear has no linear layers inside blocks"):
        AdaptedEncoder(config, LoRAConfig(), seed=0)


def test_the_packaged_model_learns_to_tell_two_texts_apart() -> None:
    texts = ["steel water pump", "iron water pump", "brass water pump"]
    adapted = AdaptedEncoder(TextConfig(max_tokens=8), LoRAConfig(rank=2, dropout=0.0), seed=0)
    optimizer = torch.optim.Adam(adapted.parameters(), lr=0.01)

    def likeness() -> torch.Tensor:
        vectors = adapted(texts, AT)
        return vectors[0] @ vectors[1]

    before = float(likeness().detach())
    for _ in range(3):
        optimizer.zero_grad()
        likeness().backward()
        optimizer.step()
    assert float(likeness().detach()) < before - 0.05


# in RecMind


def words_of(item: int) -> str | None:
    return None if item == 6 else f"{WORDS[item]} {WORDS[(item * 3 + 1) % 10]}"


def small_task(folder: Path, **changes: Any) -> Task:
    config = saved(folder)
    texts = tuple(words_of(item) for item in range(ITEMS))
    present = torch.tensor([text is not None for text in texts])
    vectors = torch.zeros(ITEMS, 16)
    vectors[present] = encode_texts([text for text in texts if text], config, cache=folder / "cache")
    return replace(Task(SPLIT, TextVectors(vectors, present, texts), seed=2, encoder=config), **changes)


SMALL: dict[str, Any] = {
    "embedding_dim": 8, "text_dim": 6, "epochs": 1, "warmup_epochs": 1, "batch_size": 8, "learning_rate": 0.05,
    "lora": {"epochs": 2, "rank": 2, "learning_rate": 0.05, "texts_per_step": 4},
}  # fmt: skip


def adapted_model(task: Task) -> Any:
    model = build("recmind", SMALL)
    model.fit(task)
    return model


def test_recmind_serves_what_the_adapters_read(tmp_path: Path) -> None:
    task = small_task(tmp_path)
    task = replace(task, split=replace(task.split, valid=task.split.valid.where(task.split.valid.user < 0)))
    model = adapted_model(task)  # without validation the last epoch's adapters are kept
    assert task.text is not None
    assert any(bool(value.any()) for name, value in model.adapters.items() if "lora_B" in name)
    again = model.project_text(task.text)
    present = task.text.present
    torch.testing.assert_close(model.tables["text"][present], again[present], rtol=1e-4, atol=1e-5)


def test_recmind_with_adapters_reads_new_items_after_loading(tmp_path: Path) -> None:
    task = small_task(tmp_path)
    model = adapted_model(task)
    loaded = build("recmind", SMALL)
    loaded.restore(load(save(model.state())))
    assert torch.equal(model.scores(QUERIES), loaded.scores(QUERIES))
    assert save(model.state()) == save(loaded.state())
    new = TextVectors(torch.ones(1, 16), torch.ones(1, dtype=torch.bool), ("gear tulip",))
    model, loaded = model.with_items(new), loaded.with_items(new)
    assert torch.equal(model.scores(QUERIES), loaded.scores(QUERIES))
    assert model.scores(QUERIES).shape[1] == ITEMS + 1
    with pytest.raises(TextError, match="needs the texts themselves"):
        loaded.with_items(replace(new, texts=None))
    unheard = TextVectors(torch.zeros(1, 16), torch.zeros(1, dtype=torch.bool), (None,))
    loaded = loaded.with_items(unheard)
    assert torch.isfinite(loaded.scores(QUERIES)).all()


def test_recmind_with_adapters_is_a_function_of_the_seed(tmp_path: Path) -> None:
    task = small_task(tmp_path)
    assert save(adapted_model(task).state()) == save(adapted_model(task).state())


def test_adapters_of_another_model_are_refused(tmp_path: Path) -> None:
    model = adapted_model(small_task(tmp_path / "one"))
    loaded = build("recmind", SMALL)
    loaded.restore(load(save(model.state())))
    config = tmp_path / "one" / "config.json"
    config.write_text(config.read_text() + "\n")  # the folder's hash is another one now
    with pytest.raises(TextError, match="fit again"):
        loaded.with_items(TextVectors(torch.ones(1, 16), torch.ones(1, dtype=torch.bool), ("gear",)))


def test_without_texts_or_model_there_is_nothing_to_adapt(tmp_path: Path) -> None:
    task = small_task(tmp_path)
    with pytest.raises(TextError, match="needs to know which one"):
        adapted_model(replace(task, encoder=None))
    assert task.text is not None
    with pytest.raises(TextError, match="needs the texts themselves"):
        adapted_model(replace(task, text=replace(task.text, texts=None)))


def test_queries_of_known_users_work_too(tmp_path: Path) -> None:
    task = small_task(tmp_path)
    model = adapted_model(task)
    queries = Queries.of(SPLIT.known("test"), torch.arange(3).numpy())
    assert torch.isfinite(model.scores(queries)).all()


def test_adapters_on_another_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = saved(tmp_path)
    here = AdaptedEncoder(config, LoRAConfig(rank=2, dropout=0.0), seed=0)
    with other_device(monkeypatch):
        there = AdaptedEncoder(config, LoRAConfig(rank=2, dropout=0.0), seed=0, device=torch.device("cuda"))
        assert all(isinstance(value, Remote) for value in there.state_dict().values())
        assert isinstance(there(TEXTS), Remote)
        vectors = there.encode(TEXTS)
    assert type(vectors) is torch.Tensor
    torch.testing.assert_close(vectors, here.encode(TEXTS), rtol=1e-5, atol=1e-6)


def test_recmind_trains_adapters_on_another_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, dropped = small_task(tmp_path), SMALL["lora"] | {"dropout": 0.0}  # torch drops differently on every device
    here = build("recmind", SMALL | {"lora": dropped})
    here.fit(task)
    with other_device(monkeypatch):
        there = build("recmind", SMALL | {"lora": dropped, "device": "cuda"})
        there.fit(task)
    assert any(bool(value.any()) for name, value in there.adapters.items() if "lora_B" in name)
    assert all(type(value) is torch.Tensor for value in there.state().values())
    torch.testing.assert_close(there.scores(QUERIES), here.scores(QUERIES), rtol=1e-3, atol=1e-3)
