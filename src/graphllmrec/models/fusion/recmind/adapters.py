"""Training RecMind on with low-rank adapters (LoRA, text/lora.py) in the language model that made its text vectors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from graphllmrec.data.tables import Ints
from graphllmrec.models.fusion.recmind.network import Network
from graphllmrec.nn.vectors import unit
from graphllmrec.protocol import TextVectors
from graphllmrec.rng import At
from graphllmrec.text.lora import AdaptedEncoder, require_texts
from graphllmrec.text.whiten import Whitening
from graphllmrec.train.device import to_device


class AdaptedNetwork(nn.Module):
    """The network together with the adapters of the language model, and the text features that were made last.

    In a step the texts of some of its items are encoded with gradients; the others have the vectors of the last
    refresh. Table and flag are buffers: part of checkpoints, and of the weights that were validated.
    """

    table: Tensor  # (num_items, text_dim) x of all items, as TextFeatures.items
    stale: Tensor  # () bool: have the adapters changed since the last refresh?

    def __init__(self, net: Network, encoder: AdaptedEncoder, whitening: Whitening, text: TextVectors) -> None:
        super().__init__()
        self.net, self.encoder, self.whitening, self.text = net, encoder, whitening, text
        self.register_buffer("table", net.features.items.clone())
        self.register_buffer("stale", torch.tensor(False, device=net.device))  # adapters start as no change

    @torch.no_grad()
    def refresh(self) -> None:
        """Encode all texts with the adapters as they are now. Raises TextError when texts are missing."""
        if bool(self.stale):
            self.table.copy_(unit(self.whitening.apply(self.encoder.encode_all(self.text))))
            self.stale.fill_(False)
        self.net.features = replace(self.net.features, items=self.table)

    def encode(self, items: Ints, at: At) -> None:
        """Encode the texts of some of these items (n,) with gradients; all other items keep their row of the table."""
        if not at.step:
            self.refresh()
        items = items[self.text.present.numpy()[items]]
        limit = self.net.config.lora.texts_per_step
        if len(items) > limit:
            items = np.sort(at.rng("texts").choice(items, limit, replace=False))
        if not len(items):
            return
        vectors = self.encoder(require_texts(self.text, items.tolist()), at)  # (n, dim of the language model)
        some = TextVectors(vectors, torch.ones(len(items), dtype=torch.bool, device=vectors.device))
        whitened = unit(self.whitening.to(vectors.device).apply(some))  # (n, text_dim)
        table = self.table.index_copy(0, to_device(items, vectors.device), whitened)
        self.net.features = replace(self.net.features, items=table)
        self.stale.fill_(True)
