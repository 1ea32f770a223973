"""All models by name. A model is imported on first use."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from graphllmrec.errors import RecipeError
from graphllmrec.protocol import Model
from graphllmrec.settings import SAVED

MODELS: dict[str, str] = {
    "popularity": "baselines.popularity:Popularity",
    "item-knn": "baselines.item_knn:ItemKNN",
    "ease": "baselines.ease:EASE",
    "ials": "baselines.ials:IALS",
    "graph-filter": "baselines.graph_filter:GraphFilter",
    "bspm": "baselines.bspm:BSPM",
    "text-knn": "baselines.text_knn:TextKNN",
    "text-ease": "baselines.text_ease:TextEASE",
    "transitions": "baselines.transitions:Transitions",
    "z-sum": "fusion.z_sum:ZSum",
    "lightgcn": "graph.lightgcn:LightGCN",
    "lightgcn-history": "graph.lightgcn_history:LightGCNHistory",
    "lightgcn-softmax": "graph.lightgcn_softmax:LightGCNSoftmax",
    "lightgcn-sampled": "graph.lightgcn_sampled:LightGCNSampled",
    "graphsage": "graph.graphsage:GraphSAGE",
    "sign": "graph.sign:SIGN",
    "textgcn": "graph.textgcn:TextGCN",
    "alpharec": "graph.alpharec:AlphaRec",
    "alphafuse": "graph.alphafuse:AlphaFuse",
    "hybrid": "fusion.hybrid:Hybrid",
    "stack": "fusion.hybrid:Stack",
    "graphllmrec": "fusion.graphllmrec:GraphLLMRec",
    "recmind": "fusion.recmind:RecMind",
}


def model_class(name: str) -> Any:
    """The class of a model, e.g. "item-knn" -> ItemKNN; its settings class is `.config_class`."""
    if name not in MODELS:
        raise RecipeError([f"model.name: unknown model {name!r}; known: {', '.join(MODELS)}"])
    module, cls = MODELS[name].split(":")
    return getattr(import_module(f"graphllmrec.models.{module}"), cls)


def build(name: str, settings: Mapping[str, Any] | None = None, *, saved: bool = False) -> Model:
    """An unfitted model from its name and settings. Raises pydantic's ValidationError for invalid settings.

    saved: the settings are those of a fitted model, which are not refused for having no effect.
    """
    cls = model_class(name)
    model: Model = cls(cls.config_class.model_validate(dict(settings or {}), context=SAVED if saved else None))
    return model
