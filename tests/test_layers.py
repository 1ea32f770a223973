"""How the code is laid out: who may import whom, no circles, abilities declared, functions that fit on a screen."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "src" / "graphllmrec"

# Lowest first. A module belongs to the longest prefix that fits; it may import from its own layer and those below.
LAYERS = [
    ("errors", "rng", "io", "lock", "manifest", "settings", "arguments", "terminal", "toml"),
    ("screen",),
    ("report.format", "report.elements", "report.render", "report.notebook"),  # plain data to text and HTML
    ("progress", "text.config"),  # the screen and two files; settings alone. So `data` and `protocol` may use them
    ("data",),
    ("protocol",),  # agrees on Split, Histories and TextConfig; computes nothing, so that all below `models` may use it
    ("graph",),
    ("nn",),
    ("text",),  # all but text.config: reads TextVectors and Logger of the protocol
    ("evaluation",),
    ("grokking.detector", "grokking.gate_schedule", "grokking.callback"),  # used in training; the lab is far above
    ("train",),
    ("models",),
    ("recipe", "run_folder", "legacy"),
    ("report.card",),  # of the parts of a recommender, so that it can have a method `card`
    ("recommendation", "fitted", "fitting", "lists_file", "recommender", "proposal"),
    ("evaluate",),  # the import path of version 0.1; nothing imports it
    ("report",),
    ("study", "grokking.lab"),  # both run many trainings, and draw with `report`
    ("cli",),
    ("__main__",),
]
FREE = {
    "": "the public API: imports every name on its first use",
    "grokking": "a package of two layers; its __init__ is empty",
}

# Modules that may call getattr or hasattr, and for what. Never for an ability of a model: protocol.py declares those.
LOOKUPS = {
    "": "a public name of the module that holds it",
    "settings": "the value of a setting by its name",
    "models.registry": "the class of a model in the module that the registry names",
    "grokking.lab.fusion": "figures of a run by their names",
    "text.loading": "the commit of a downloaded model, which transformers keeps in a private attribute",
}


def module_name(path: Path) -> str:
    """ "data.read"; packages without ".__init__"; "" for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def imports(name: str) -> Iterator[tuple[str, int]]:
    """(module of the package, line) of every import, wherever it stands: in functions, under TYPE_CHECKING."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == "graphllmrec":
            base = (node.module or "").removeprefix("graphllmrec").lstrip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".lstrip(".")
                yield (inner if inner in FILES else base), node.lineno
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "graphllmrec":
                    yield alias.name.removeprefix("graphllmrec").lstrip("."), node.lineno


def layer(name: str) -> int:
    """Place of a module's layer in LAYERS."""
    fitting = [
        (len(prefix), place)
        for place, prefixes in enumerate(LAYERS)
        for prefix in prefixes
        if name == prefix or name.startswith(f"{prefix}.")
    ]
    assert fitting, f"{name} is in no layer: give it one in LAYERS"
    return max(fitting)[1]


def test_nothing_imports_from_above():
    wrong = [
        f"{name}:{line} imports {other}"
        for name in FILES
        if name not in FREE
        for other, line in imports(name)
        if other not in FREE and layer(other) > layer(name)
    ]
    assert wrong == []


def test_no_module_reaches_itself_by_imports():
    below = {name: {other for other, _ in imports(name) if other not in ("", name)} for name in FILES if name}
    for middle in below:  # Warshall's algorithm: whatever is reached by way of `middle`
        for reached in below.values():
            if middle in reached:
                reached |= below[middle]
    assert [name for name, reached in below.items() if name in reached] == []


def test_imports_are_absolute():
    relative = [
        f"{name}:{node.lineno}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


def test_no_ability_is_looked_up_by_name():
    """What a model can do is declared in protocol.py and checked with isinstance."""
    found = [
        f"{name}:{node.lineno} {node.func.id}"
        for name, tree in TREES.items()
        if name not in LOOKUPS
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr")
    ]
    assert found == []


def functions() -> dict[str, int]:
    """Number of lines of every function, its docstring and decorators not counted."""
    lengths = {}
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                doc = node.body[0] if ast.get_docstring(node) else None
                documented = 0 if doc is None else doc.end_lineno - doc.lineno + 1
                lengths[f"{name}:{node.lineno} {node.name}"] = node.end_lineno - node.lineno + 1 - documented
    return lengths


def test_functions_fit_on_a_screen():
    lengths = functions()
    assert [f"{name}: {lines} lines" for name, lines in lengths.items() if lines > 60] == []
    assert statistics.median(lengths.values()) <= 8
