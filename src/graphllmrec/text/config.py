"""Settings of the text: which language model reads it, and how. The recipe's section [text]."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from graphllmrec.settings import Condition, Config

NGRAMS = "ngrams"  # the encoder without a language model (text/ngrams.py)
Placebo = Literal["none", "shuffled", "random", "item2vec"]  # text/placebo.py


class TextConfig(Config):
    """Which language model reads the items, and how."""

    encoder: str = Field(
        "minilm",
        min_length=1,
        description='"minilm" (packaged, English), "ngrams" (any script), a Hugging Face name, a local folder, or a '
        "GGUF file",
    )
    revision: str | None = Field(None, description="branch, tag or commit of a Hugging Face name")
    max_tokens: int = Field(96, ge=2, le=1_000_000, description="special tokens included; longer texts are cut")
    columns: list[str] | None = Field(
        None,
        description="which and in what order, attributes too; default: title, brand, categories, description, then all "
        "other columns whose role is text",
    )
    pooling: Literal["auto", "mean", "cls", "last"] = Field(
        "auto", description="auto: what the model says, else mean for encoders and last for decoders"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="auto: bfloat16 in linear layers where the hardware has it, else float32; minilm on a CPU: float32",
    )
    batch_tokens: int | None = Field(
        None,
        ge=1,
        le=1_000_000_000,
        description="tokens per batch, padding included; default: 1,024 per CPU thread, 32,768 on a GPU",
    )
    prompt: str = Field("", description="put before every text, as instruction-tuned embedding models want it")
    suffix: str = Field("", description="put after every text, beyond max_tokens; for decoders with pooling last")
    device: str = Field("auto", description='"auto", "cpu", "cuda", "cuda:1" or "mps"')
    reviews: bool = Field(False, description="add the mean vector of an item's training reviews to that of its text")
    placebo: Placebo = Field(
        "none", description="vectors without the texts' meaning in their place; none: the texts (docs/guides/text.md)"
    )

    def conditions(self) -> Iterator[Condition]:
        """What settings need of each other."""
        local = self.encoder == "minilm" or self.encoder.startswith((".", "/", "~"))
        yield Condition("revision", not local and self.encoder != NGRAMS, "an encoder with a Hugging Face name")
        own = "pooling dtype batch_tokens prompt suffix device"  # of a language model
        yield Condition(own, self.encoder != NGRAMS, f'a language model as encoder, not "{NGRAMS}"')
