"""All text vectors of one fit: those of the items and users, or those of a placebo in their place."""

from __future__ import annotations

from dataclasses import replace

import torch

from graphllmrec.data.split import Split
from graphllmrec.data.tables import Dataset, Items
from graphllmrec.protocol import Abilities, Logger, TextVectors
from graphllmrec.text.config import TextConfig
from graphllmrec.text.encoder import encode_items
from graphllmrec.text.language import check_language
from graphllmrec.text.ngrams import encoder_of, with_encoder
from graphllmrec.text.placebo import READS_TEXT, TextPlacebo, without_encoder
from graphllmrec.text.reviews import user_text, with_reviews


def prepare_text(
    abilities: Abilities, dataset: Dataset, split: Split, config: TextConfig, seed: int, logger: Logger
) -> tuple[TextVectors | None, TextVectors | None]:
    """Vectors of the catalogue (num_items rows) and of the users (num_users rows); None where the model reads none.

    Raises TextError where the model needs text and no item has any.
    """
    placebo, items, users = TextPlacebo(config.placebo, seed, split), None, None
    ngrams = encoder_of(dataset.items) if dataset.items.encoder else None
    if _reads_item_text(abilities, dataset.items, config):
        items = _encode(dataset.items, config, placebo, logger)
        if placebo.reads_text:
            check_language(dataset.items, config, logger)
        if config.reviews:
            items = with_reviews(items, split, config, ngrams=ngrams, logger=logger)
        items = placebo.items(items, dataset.items.ids)
    if abilities.uses_user_text:
        users = user_text(split, config, read=placebo.reads_text, ngrams=ngrams, logger=logger)
        users = None if users is None else placebo.users(users, dataset.users)
    return items, users


def prepare_encoder(abilities: Abilities, dataset: Dataset, config: TextConfig) -> Dataset:
    """The dataset with an encoder fitted on its catalogue, where settings and model want one (text/ngrams.py)."""
    items = replace(dataset.items, encoder={})  # not that of another fit
    wanted = abilities.reads_text and config.placebo in READS_TEXT and bool(config.columns or items.text_columns)
    return replace(dataset, items=with_encoder(items, config) if wanted else items)


def prepare_new_text(
    abilities: Abilities, new: Items, catalogue: Items, split: Split, config: TextConfig, seed: int, logger: Logger
) -> TextVectors:
    """Vectors (len(new) rows) of items that are added to the catalogue; no dimensions where the model reads none."""
    if not _reads_item_text(abilities, new, config):
        return TextVectors(torch.zeros(len(new), 0), torch.zeros(len(new), dtype=torch.bool))
    placebo = TextPlacebo(config.placebo, seed, split)
    if placebo.kind == "shuffled":
        new = placebo.donors(new, catalogue, config)
    return placebo.new_items(_encode(new, config, placebo, logger), new.ids)


def _reads_item_text(abilities: Abilities, items: Items, config: TextConfig) -> bool:
    """Does the model need item text, or use it where there are columns of text?"""
    return abilities.needs_text or bool(abilities.uses_text and (config.columns or items.text_columns))


def _encode(items: Items, config: TextConfig, placebo: TextPlacebo, logger: Logger) -> TextVectors:
    """Text vectors of items; of no dimensions where the placebo does not need them."""
    return encode_items(items, config, logger=logger) if placebo.reads_text else without_encoder(items, config)
