"""A GGUF file of some kilobytes: a Qwen2 of two layers with a byte-level BPE of a few merges, and its plain twin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

MERGES = ["r e", "re d", "l a", "la m", "lam p", "Ġ lamp", "Ġ g", "Ġg l", "a s", "as s", "Ġgl ass", "s t"]
WIDTH, LAYERS = 32, 2
NAMES = {  # of a layer, in transformers and in GGUF
    "input_layernorm.weight": "attn_norm.weight", "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight", "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.weight": "attn_k.weight", "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.weight": "attn_v.weight", "self_attn.v_proj.bias": "attn_v.bias",
    "self_attn.o_proj.weight": "attn_output.weight", "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight", "mlp.down_proj.weight": "ffn_down.weight",
}  # fmt: skip


def vocabulary() -> list[str]:
    """All bytes as GPT-2 writes them, what the merges make of them, and the end of a text."""
    from tokenizers import pre_tokenizers

    return [*sorted(pre_tokenizers.ByteLevel.alphabet()), *(pair.replace(" ", "") for pair in MERGES), "<|endoftext|>"]


def tiny_qwen2() -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=len(vocabulary()), hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=64, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.Qwen2Model(config).eval()
    for name, value in model.named_parameters():  # norms and biases too: a swapped pair would show
        value.data += 0.1 * torch.randn(value.shape) * (1 if "weight" in name else 5)
    return model


def save_plain(model: Any, folder: Path) -> Path:
    """The model as a folder of transformers, with the same tokenizer."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(
        models.BPE({word: at for at, word in enumerate(vocabulary())}, [tuple(pair.split(" ")) for pair in MERGES])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    model.save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|endoftext|>").save_pretrained(folder)
    return folder


def save_gguf(model: Any, path: Path, kind: str = "F32", without: str = "", **entries: int) -> Path:
    """The model as a GGUF file, with weights of type `kind`; `entries`: further ones, such as pooling_type=1."""
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    path.parent.mkdir(parents=True, exist_ok=True)
    words, config = vocabulary(), model.config
    writer = GGUFWriter(path, "qwen2")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(words)
    writer.add_token_types([1] * (len(words) - 1) + [3])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(len(words) - 1)
    writer.add_eos_token_id(len(words) - 1)
    writer.add_pad_token_id(len(words) - 1)
    for name, value in entries.items():
        writer.add_uint32(f"qwen2.{name}", value)
    weights = {"token_embd.weight": model.embed_tokens.weight, "output_norm.weight": model.norm.weight}
    for at, layer in enumerate(model.layers):
        own = dict(layer.named_parameters())
        assert own.keys() == NAMES.keys()
        weights |= {f"blk.{at}.{NAMES[name]}": value for name, value in own.items()}
    for name, value in weights.items():
        if name != without:
            array, plain = value.detach().numpy(), value.dim() == 1 or kind == "F32"
            how = GGMLQuantizationType["F32" if plain else kind]
            writer.add_tensor(name, array if plain else quants.quantize(array, how), raw_dtype=how)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
