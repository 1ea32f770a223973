"""The tables of the documentation that are made from the code: settings, models, file formats.

    python docs/settings.py --write    # or: make docs; a test fails when a table and the code differ

They stand between marker lines; everything else in the pages is written by hand. A model, a setting or a format that is
added to the code so needs no line here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from graphllmrec.data.files import FORMATS
from graphllmrec.models.registry import MODELS, model_class
from graphllmrec.recipe import DataConfig, EvaluateConfig, Recipe, load_recipe, recipe_names
from graphllmrec.text.config import TextConfig

DOCS = Path(__file__).parent


def tables() -> str:
    """All tables of settings as Markdown."""
    lines = ["### Top level", "", *_table(Recipe)]
    for name, section in (("data", DataConfig), ("text", TextConfig), ("evaluate", EvaluateConfig)):
        lines += ["", f"### [{name}]", "", *_table(section)]
    for name in MODELS:
        kind = model_class(name).config_class
        lines += ["", f'### [model] name = "{name}"', "", *_table(kind)]
        for key, part in _parts(kind):
            lines += ["", f"**[model.{key}]** of {name}", "", *_part(part)]
    return "\n".join(lines)


def models() -> str:
    """A table of all recipes, by what their models need and can do."""
    rows = []
    recipes = {name: load_recipe(name) for name in recipe_names()}
    for name, recipe in sorted(recipes.items(), key=lambda entry: list(MODELS).index(entry[1].model.name)):
        abilities = model_class(recipe.model.name).abilities
        text = "needs it" if abilities.needs_text else "uses it" if abilities.reads_text else "no"
        cold = "yes" if abilities.ranks_cold_items else "no"
        rows.append(f"| `{name}` | `{recipe.model.name}` | {recipe.title} | {text} | {cold} |")
    return "\n".join(["| recipe | model | what it is | text | new items |", "|---|---|---|---|---|", *rows])


def formats() -> str:
    """The file formats, as one line."""
    return f"File names end in {', '.join(f'`.{name}`' for name in FORMATS)}; text formats also with `.gz` or `.zst`."


WRITTEN = {  # page: the name in its marker lines, and what stands between them
    "reference/recipes.md": ("settings", tables),
    "models.md": ("models", models),
    "guides/data.md": ("formats", formats),
}


def page(name: str) -> str:
    """The text of a page with its table made anew."""
    marker, made = WRITTEN[name]
    begin, end = f"<!-- {marker}: begin (written by docs/settings.py) -->", f"<!-- {marker}: end -->"
    before, rest = (DOCS / name).read_text(encoding="utf-8").split(begin)
    return f"{before}{begin}\n\n{made()}\n\n{end}{rest.split(end)[1]}"


def _parts(kind: type[BaseModel]) -> Iterator[tuple[str, BaseModel]]:
    """Settings that are a section of their own, such as the branches of the hybrid, with their defaults there."""
    for key, field in kind.model_fields.items():
        default = field.get_default(call_default_factory=True, validated_data={})
        if isinstance(default, BaseModel):
            yield key, default


def _part(part: BaseModel) -> list[str]:
    """The table of a section within a model; where it is a model's own settings, only what differs is listed."""
    kind, here = type(part), part.model_dump(mode="json")
    for name in MODELS:
        if model_class(name).config_class is kind:
            usual = kind().model_dump(mode="json")
            changed = [f"`{key} = {json.dumps(here[key])}`" for key in here if here[key] != usual[key]]
            return [f"The settings of {name}, with " + (", ".join(changed) if changed else "the same defaults") + "."]
    return _table(kind, here)


def _table(kind: type[BaseModel], defaults: dict[str, Any] | None = None) -> list[str]:
    schema = kind.model_json_schema()
    own = {key: about for key, about in schema.get("properties", {}).items() if not _is_section(about)}
    if not own:
        return ["No settings."]
    for key, value in (defaults or {}).items():
        own[key] = {**own[key], "default": value}
    rows = [f"| `{key}` | {_default(about)} | {_values(about)} | {_meaning(about)} |" for key, about in own.items()]
    return ["| setting | default | values | meaning |", "|---|---|---|---|", *rows]


def _is_section(about: dict[str, Any]) -> bool:
    return "$ref" in about or any("$ref" in option for option in about.get("allOf", []))


def _default(about: dict[str, Any]) -> str:
    if about.get("default") is None:
        return "{}" if about.get("type") == "object" else "none"
    return f"`{json.dumps(about['default'])}`"


def _meaning(about: dict[str, Any]) -> str:
    text: str = about["description"]
    return text.replace("|", "\\|")


def _values(about: dict[str, Any]) -> str:
    """What a setting may be, e.g. "whole number, 1 to 100,000"."""
    if "anyOf" in about:
        return " or ".join(_values(option) for option in about["anyOf"] if option.get("type") != "null")
    if "const" in about or "enum" in about:
        return " or ".join(f"`{json.dumps(value)}`" for value in about.get("enum", [about.get("const")]))
    if about["type"] == "array":
        return f"list of {_values(about['items']).replace('number', 'numbers')}"
    if about["type"] == "boolean":
        return "`true` or `false`"
    kind = {"integer": "whole number", "number": "number", "string": "text", "object": "table"}[about["type"]]
    return kind + _limits(about)


def _limits(about: dict[str, Any]) -> str:
    bounds = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    if "minimum" in about and "maximum" in about:
        return f", {_number(about['minimum'])} to {_number(about['maximum'])}"
    said = [f"{word} {_number(about[bound])}" for bound, word in bounds.items() if bound in about]
    return f", {' and '.join(said)}" if said else ""


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        for written in WRITTEN:
            (DOCS / written).write_text(page(written), encoding="utf-8")
    else:
        print(tables())
