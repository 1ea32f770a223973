"""Names of version 0.1. Recipes and saved runs that use them are read in today's names, with a FutureWarning.

This file goes with version 0.3; nothing else knows the old names.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

FORMAT = 3  # of run folders of version 0.1

_EVERY_MODEL = {"watch_users": "monitor_users", "cold_share": "cold_dropout"}
_SETTINGS: dict[str, dict[str, str]] = {  # old -> new, by model
    "text-knn": {"dims": "text_dim"},
    "textgcn": {"dims": "text_dim"},
    "ials": {"dim": "embedding_dim", "start": "init_scale"},
    "sign": {"dims": "text_dim"},
    "graphsage": {"dims": "text_dim"},
    "alpharec": {"dims": "text_dim", "dim": "embedding_dim"},
    "alphafuse": {"dims": "text_dim", "id_dims": "id_dim"},
    "lightgcn": {"dim": "embedding_dim", "start": "init"},
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
_TENSORS = {"turn": "query_map", "fold": "fold_in"}  # last part of a tensor's name, old -> new


def current_recipe(values: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's values in today's names. Warns naming every key that is replaced; today's recipes stay as they are."""
    replaced: list[str] = []
    out = dict(values)
    if isinstance(out.get("text"), Mapping):
        out["text"] = _renamed(out["text"], _TEXT, "text.", replaced)
    model = out.get("model")
    if isinstance(model, Mapping) and isinstance(model.get("name"), str):
        name = model["name"]
        out["model"] = current_settings(name, model, replaced)
        if isinstance(out.get("unordered"), Mapping):
            own = str(out["unordered"].get("name", name))
            out["unordered"] = current_settings(own, out["unordered"], replaced, "unordered.")
    if replaced:
        warnings.warn(f"names of version 0.1, use the new ones: {'; '.join(replaced)}", FutureWarning, stacklevel=3)
    return out


def current_settings(
    model: str, settings: Mapping[str, Any], replaced: list[str], where: str = "model."
) -> dict[str, Any]:
    """Settings of a model in today's names; "old is now new" is appended to `replaced`."""
    out = _renamed(settings, _EVERY_MODEL | _SETTINGS.get(model, {}), where, replaced)
    if isinstance(out.get("settings"), Mapping):  # of the experts of hybrid and z-sum
        out["settings"] = {
            expert: current_settings(expert, own, replaced, f"{where}settings.{expert}.")
            if isinstance(own, Mapping)
            else own
            for expert, own in out["settings"].items()
        }
    return out


def current_tensors(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors of a run of version 0.1 under today's names."""
    names = "|".join(_TENSORS)
    pattern = re.compile(rf"(^|[./])({names})$")
    return {pattern.sub(lambda found: found[1] + _TENSORS[found[2]], name): tensor for name, tensor in tensors.items()}


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
