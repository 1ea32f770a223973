"""All models by name. A model is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from graphllmrec.errors import RecipeError
from graphllmrec.models.base import Model

MODELS: dict[str, str] = {
    "popularity": "popularity:Popularity",
    "item-knn": "item_knn:ItemKNN",
    "ease": "ease:EASE",
    "ials": "ials:IALS",
    "graph-filter": "graph_filter:GraphFilter",
    "bspm": "bspm:BSPM",
    "text-knn": "text_knn:TextKNN",
    "transitions": "transitions:Transitions",
    "z-sum": "z_sum:ZSum",
    "lightgcn": "lightgcn:LightGCN",
    "graphsage": "graphsage:GraphSAGE",
    "sign": "sign:SIGN",
    "textgcn": "textgcn:TextGCN",
    "alpharec": "alpharec:AlphaRec",
    "alphafuse": "alphafuse:AlphaFuse",
    "hybrid": "hybrid:Hybrid",
    "recmind": "recmind:RecMind",
}


def model_class(name: str) -> Any:
    """The class of a model, e.g. "item-knn" -> ItemKNN; its settings class is `.config_class`."""
    if name not in MODELS:
        raise RecipeError([f"model.name: unknown model {name!r}; known: {', '.join(MODELS)}"])
    module, cls = MODELS[name].split(":")
    return getattr(import_module(f"graphllmrec.models.{module}"), cls)


def build(name: str, settings: Mapping[str, Any] | None = None) -> Model:
    """An unfitted model from its name and settings. Raises pydantic's ValidationError for invalid settings."""
    cls = model_class(name)
    model: Model = cls(cls.config_class(**(settings or {})))
    return model
