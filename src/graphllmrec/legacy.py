"""Names of version 0.1. Recipes and saved runs that use them are read in today's names, with a FutureWarning.

This file goes with version 0.3; nothing else knows the old names.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from graphllmrec.errors import RecipeError
from graphllmrec.models.registry import MODELS, model_class

FORMAT = 3  # of run folders of version 0.1

_EVERY_MODEL = {"watch_users": "monitor_users", "cold_share": "cold_dropout"}
_LIGHTGCN = {"dim": "embedding_dim", "start": "init"}
_SETTINGS: dict[str, dict[str, str]] = {  # old -> new, by model
    "text-knn": {"dims": "text_dim"},
    "textgcn": {"dims": "text_dim"},
    "ials": {"dim": "embedding_dim", "start": "init_scale"},
    "sign": {"dims": "text_dim"},
    "graphsage": {"dims": "text_dim"},
    "alpharec": {"dims": "text_dim", "dim": "embedding_dim"},
    "alphafuse": {"dims": "text_dim", "id_dims": "id_dim"},
    "lightgcn": _LIGHTGCN,
    "lightgcn-history": _LIGHTGCN,
    "lightgcn-softmax": _LIGHTGCN,
    "lightgcn-sampled": _LIGHTGCN,
    "recmind": {
        "dim": "embedding_dim",
        "dims": "text_dim",
        "start": "init_scale",
        "control": "gate_schedule",
        "control_strength": "gate_schedule_strength",
        "control_half_life": "gate_schedule_half_life",
    },
    "hybrid": {"gate.prior": "gate.l2"},
}
_TEXT = {"control": "placebo"}
_ONE_LIGHTGCN = frozenset(  # settings of version 0.1's one LightGCN that today's model of this name has not
    [
        "query",
        "loss",
        "negatives",
        "cosine",
        "temperature",
        "popularity",
        "user_weight",
        "init",
        "fanouts",
        "edge_dropout",
        "contrast",
        "noise",
        "uniformity",
        "decay",
        "max_history",
        "dropout",
        "cold_dropout",
    ]
)
_LIGHTGCN_ACTS: dict[str, Callable[[dict[str, Any]], Any]] = {  # when a setting acts
    "temperature": lambda s: s.get("cosine", False),
    "noise": lambda s: s.get("contrast", 0),
    "uniformity": lambda s: s.get("loss") == "directau",
    "negatives": lambda s: s.get("loss", "softmax") == "softmax",
    "edge_dropout": lambda s: s.get("num_layers", 2),
}


def _gated(s: dict[str, Any]) -> bool:
    return s.get("fusion", "intra") in ("intra", "late")


def _aligned(s: dict[str, Any]) -> bool:
    return _gated(s) and (s.get("align", 0.1) > 0 or s.get("warmup_epochs", 2) > 0)


def _scheduled(s: dict[str, Any]) -> str:
    return str(s.get("gate_schedule", "grokking")) if _gated(s) and s.get("monitor_users", 250) else "none"


_RECMIND_ACTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "temperature": lambda s: s.get("cosine", True),
    "text_dropout": lambda s: s.get("hidden", 0),
    "cold_dropout": lambda s: s.get("fusion") != "text",
    **dict.fromkeys(("align", "warmup_epochs", "gate_schedule"), _gated),
    **dict.fromkeys(("align_temperature", "align_size", "hardness", "queue"), _aligned),
    "gate_schedule_strength": lambda s: _scheduled(s) in ("grokking", "late"),
    "gate_schedule_half_life": lambda s: _scheduled(s) == "grokking",
    "lora": lambda s: s.get("lora", {}).get("epochs", 0),
}
_TENSORS = {  # end of a tensor's name, old -> new
    "net.turn": "net.query_map",
    "turn": "query_map",
    "net.prior": "net.context_bias",
    "tables.prior": "tables.item_bias",
    "gate.prior": "gate.context_bias",
    "gate.moved": "gate.shift",
    "user_gate.moved": "user_gate.shift",
    "graph_fold": "graph_fold_in",
    "fold": "fold_in",
    "words": "num_words",
}


def current_recipe(values: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's values in today's names; today's recipes stay as they are. Warns naming every key that is replaced.

    Raises RecipeError for settings of version 0.1 that have no counterpart.
    """
    replaced: list[str] = []
    out = dict(values)
    if isinstance(out.get("text"), Mapping):
        out["text"] = _renamed(out["text"], _TEXT, "text.", replaced)
    model, unordered = out.get("model"), out.get("unordered")
    if isinstance(model, Mapping):
        out["model"] = _current_model(model, replaced, "model.")
        if isinstance(unordered, Mapping):
            out["unordered"] = _current_unordered(model, unordered, out["model"], replaced)
    if replaced:
        names = "; ".join(dict.fromkeys(replaced))
        warnings.warn(f"names of version 0.1, use the new ones: {names}", FutureWarning, stacklevel=4)
    return out


def current_run(
    name: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Name, settings and tensors of a model that version 0.1 has saved, in today's names."""
    section, out = _current_model({"name": name, **config}, [], "model."), _current_tensors(tensors)
    for members in ("graph", "text", "experts"):
        if "lightgcn" in section.get(members, ()):  # as an expert without settings it was what follows
            section[members] = ["lightgcn-history" if member == "lightgcn" else member for member in section[members]]
            section["settings"] = {
                "lightgcn-history" if member == "lightgcn" else member: own
                for member, own in section.get("settings", {}).items()
            }
            out = {key.replace("lightgcn/", "lightgcn-history/"): tensor for key, tensor in out.items()}
    return section.pop("name"), section, out


def _current_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = "|".join(map(re.escape, sorted(_TENSORS, key=len, reverse=True)))
    pattern = re.compile(rf"(^|[./])({names})$")
    out = {pattern.sub(lambda found: found[1] + _TENSORS[found[2]], name): tensor for name, tensor in tensors.items()}
    if "reader" in out:  # RecMind's description of its language model
        described = json.loads(bytes(out["reader"].tolist()))
        described["reader"] = _renamed(described["reader"], _TEXT, "", [])
        out["reader"] = torch.tensor(list(json.dumps(described).encode()), dtype=torch.uint8)
    return out


def _current_model(section: Mapping[str, Any], replaced: list[str], where: str) -> dict[str, Any]:
    """A section [model], or a part of one, with the name of the model it belongs to."""
    name = str(section.get("name", ""))
    before = len(replaced)
    out = _renamed(section, _EVERY_MODEL | _SETTINGS.get(name, {}), where, replaced)
    if name == "recmind" and len(replaced) > before:
        out = _without_idle(out, _RECMIND_ACTS)
    if name == "lightgcn" and _ONE_LIGHTGCN & out.keys():
        out = _split_lightgcn(out, replaced, where)
    elif name.startswith("lightgcn-") and "query" in out:
        raise RecipeError([
            f"{where}query: every query has a model of its own now; take the recipe lightgcn-paper, lightgcn-fast or "
            "lightgcn-softmax, or set model.name"
        ])  # fmt: skip
    if isinstance(out.get("settings"), Mapping):  # of the experts of hybrid and z-sum
        out["settings"] = {
            expert: _current_expert(expert, own, replaced, where) for expert, own in out["settings"].items()
        }
    return out


def _current_expert(expert: str, own: Any, replaced: list[str], where: str) -> Any:
    if not isinstance(own, Mapping):
        return own
    found = _current_model({"name": expert, **own}, replaced, f"{where}settings.{expert}.")
    return {key: value for key, value in found.items() if key != "name"}


def _split_lightgcn(section: dict[str, Any], replaced: list[str], where: str) -> dict[str, Any]:
    """The model of today for the one LightGCN of version 0.1; settings that did nothing there are left out."""
    loss = section.get("loss", "softmax")
    added = ("negatives", "fanouts", "edge_dropout", "contrast", "cosine", "popularity")
    if section.get("query", "history") == "history":
        name = "lightgcn-history"
    elif loss in ("softmax", "slk") and not section.get("negatives"):
        name = "lightgcn-softmax"
    elif loss == "bpr" and section.get("init", "random") == "random" and not any(section.get(key) for key in added):
        name = "lightgcn"
    else:
        name = "lightgcn-sampled"
    replaced.append(f"{where}query, {where}loss: this LightGCN is the model {name!r} now")
    known = model_class(name).config_class.model_fields
    return {"name": name} | _without_idle(
        {key: value for key, value in section.items() if key in known}, _LIGHTGCN_ACTS
    )


def _without_idle(section: dict[str, Any], acts: Mapping[str, Callable[[dict[str, Any]], Any]]) -> dict[str, Any]:
    """Without settings that act on nothing, which version 0.1 took and which are refused today."""
    return {key: value for key, value in section.items() if key not in acts or acts[key](section)}


def _current_unordered(
    model: Mapping[str, Any], unordered: Mapping[str, Any], current: Mapping[str, Any], replaced: list[str]
) -> dict[str, Any]:
    """A section [unordered], which names a model where it is another one than that of [model]."""
    if "name" in unordered or model.get("name") not in MODELS:
        return _current_model(unordered, replaced, "unordered.")
    whole = _current_model({**model, **unordered}, replaced, "unordered.")
    if whole["name"] != current["name"]:
        return whole
    names = _EVERY_MODEL | _SETTINGS.get(whole["name"], {})
    return {key: whole[key] for key in (names.get(old, old) for old in unordered) if key in whole}


def _renamed(section: Mapping[str, Any], names: Mapping[str, str], where: str, replaced: list[str]) -> dict[str, Any]:
    out = dict(section)
    for old, new in names.items():
        head, _, rest = old.partition(".")
        if rest and isinstance(out.get(head), Mapping):
            out[head] = _renamed(out[head], {rest: new.partition(".")[2]}, f"{where}{head}.", replaced)
        elif not rest and old in out:
            out.setdefault(new, out.pop(old))
            replaced.append(f"{where}{old} is now {where}{new}")
    return out
