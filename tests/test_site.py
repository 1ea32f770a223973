"""The documentation: what it says exists, what it leaves out does not, its example model works, its notebooks run."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
import types
from pathlib import Path

import pytest
from pydantic import ValidationError

import test_contract
from graphllmrec import Recommender, compare, evaluate, load_data
from graphllmrec.cli import app
from graphllmrec.data import files
from graphllmrec.evaluation import metrics
from graphllmrec.models.registry import MODELS
from graphllmrec.recipe import load_recipe, recipe_names
from graphllmrec.study import load_study

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SITE_PAGES = [
    page
    for page in (*sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("*/*.md")), *sorted(DOCS.glob("*/*.ipynb")))
    if page.name != "description.md"  # of the package index
]
PROSE = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(DOCS.glob("tutorials/*")),
    *sorted(DOCS.glob("guides/*")),
]
NOTEBOOKS = sorted(DOCS.glob("notebooks/*.ipynb"))


def read(path):
    return path.read_text(encoding="utf-8")


def load_script(name):
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# the site


def test_every_page_has_a_place_in_the_navigation():
    named = set(re.findall(r"([\w/-]+\.md)$", read(ROOT / "mkdocs.yml").split("\nnav:\n")[1], flags=re.MULTILINE))
    pages = {page.relative_to(DOCS).with_suffix(".md").as_posix() for page in SITE_PAGES}
    from_the_root = {"index.md", "contributing.md", "changelog.md"}
    assert named == {page for page in pages if not page.startswith("studies/")} | from_the_root


def test_the_site_loads_nothing_from_elsewhere():
    config = read(ROOT / "mkdocs.yml")
    assert "font: false" in config
    assert "http" not in config
    for path in (*DOCS.glob("*.css"), *DOCS.glob("vendor/*.js")):
        assert not re.search(r"(@import|url\(|src=.?)\s*.?https?:", read(path)), path
    for page in SITE_PAGES:
        assert not re.search(r"<(script|link|iframe)|!\[[^\]]*\]\(http|```mermaid", read(page)), page


def test_the_pictures_are_those_of_the_figures():
    pictures = load_script("pictures")
    assert read(DOCS / "images" / "strata.svg") == pictures.strata(), "run: python docs/pictures.py"
    assert read(DOCS / "images" / "decision.svg") == pictures.decision(), "run: python docs/pictures.py"
    for drawn in DOCS.glob("images/*.svg"):
        assert drawn.stat().st_size < 20_000, drawn
    named = set(re.findall(r'class="bold">([^<]*)<', pictures.decision()))
    words = {word for line in named for word in re.split(r"[, ]+", line)} - {"or", ""}
    assert words <= set(recipe_names())


def test_the_pages_of_the_studies_are_those_of_the_figures():
    studies = load_script("studies")
    assert studies.names() == sorted(path.stem for path in DOCS.glob("studies/*.md"))
    for name in studies.names():
        assert read(DOCS / "studies" / f"{name}.md") == studies.page(name), (
            f"{name}: run python docs/studies.py --write"
        )


# what the documents say


def test_the_readme_is_one_page_and_has_the_figures_of_the_figures_page():
    readme = read(ROOT / "README.md")
    assert len(readme.splitlines()) <= 120
    rows = re.findall(r"^\| \[(amazon-\w+)\]\(.*?\) \|(.*)$", readme, flags=re.MULTILINE)
    assert len(rows) == 4
    assert rows == re.findall(r"^\| \[(amazon-\w+)\]\(.*?\) \|(.*)$", read(DOCS / "figures.md"), flags=re.MULTILINE)


def test_what_the_readme_calls_missing_is_missing():
    said = " ".join(re.search(r"\*\*Not in this release.*?\n\n", read(ROOT / "README.md"), re.DOTALL)[0].split())
    absent = {  # words of the README: names that must then not exist
        "LLMGR": "llmgr", "LLM4REC": "llm4rec",
        "an HTTP server": "serve", "a database for the catalogue": "store",
        "approximate nearest-neighbour search": "faiss",
    }  # fmt: skip
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    modules = {path.stem for path in (ROOT / "src" / "graphllmrec").rglob("*") if path.suffix in ("", ".py")}
    assert "session models" in said
    assert not any(path.startswith("session.") for path in MODELS.values())
    for words, name in absent.items():
        assert words in said
        assert not any(name in known for known in (*MODELS, *recipe_names())), name
        assert name not in commands | modules, name
    for recipe in recipe_names():
        assert f"`{recipe}`" not in said


def test_the_glossary_is_in_order_and_has_every_term_once():
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \|$", read(DOCS / "glossary.md"), flags=re.MULTILINE)
    terms = [row.replace("`", "").replace("_", " ").lower() for row in rows if row not in ("term", "---")]
    assert terms == sorted(terms)
    assert len(set(terms)) == len(terms) > 50


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_prose_uses_the_terms_of_the_field(page):
    found = re.findall(
        r"\b(?:nobody|somebody|anybody|everybody|whoever|people|persons?|plays? cold|asked with|earns?)\b", read(page),
        flags=re.IGNORECASE,
    )  # fmt: skip
    assert found == []


# how to add a model


@pytest.fixture
def example_model(monkeypatch):
    """The model of CONTRIBUTING.md, in the registry as if it were a file of the package."""
    [code] = re.findall(r"^```python\n(.*?)^```", read(ROOT / "CONTRIBUTING.md"), flags=re.MULTILINE | re.DOTALL)
    module = types.ModuleType("graphllmrec.models.baselines.mean_pool")
    exec(compile(code, "CONTRIBUTING.md", "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(MODELS, "mean-pool", "baselines.mean_pool:MeanPool")
    return "mean-pool"


def contract():
    """Every test of the contract, by name, with the arguments it takes besides the model's name."""
    for name, test in inspect.getmembers(test_contract, inspect.isfunction):
        if name.startswith("test_"):
            given = [mark.args for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
            for values in given[0][1] if given else [None]:
                yield name, {} if values is None else {given[0][0]: values}


@pytest.mark.parametrize(("test", "arguments"), list(contract()))
def test_the_example_of_contributing_keeps_the_model_contract(test, arguments, example_model):
    function = getattr(test_contract, test)
    if "name" in inspect.signature(function).parameters:
        function(name=example_model, **arguments)


def test_the_example_of_contributing_refuses_impossible_settings(example_model):
    with pytest.raises(ValidationError, match="embedding_dim"):
        importlib.import_module("graphllmrec.models.registry").build(example_model, {"embedding_dim": 0})


def test_a_file_format_needs_its_ending_and_a_reader(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "FORMATS", (*files.FORMATS, "psv"))  # read by the reader of csv, which knows the bar
    (tmp_path / "interactions.psv").write_text("user_id|item_id|timestamp\na|x|1\na|y|2\n", encoding="utf-8")
    assert load_data(tmp_path).items.ids.ids.to_list() == ["x", "y"]


def test_a_metric_needs_its_function_and_a_line_in_the_table(tmp_path, monkeypatch):
    monkeypatch.setitem(metrics.METRICS, "first", lambda hits, _: hits[:, 0].astype(float))
    assert load_recipe("popularity", {"evaluate": {"metric": "first@20"}}).evaluate.metric == "first@20"
    rows = [f"u{user},{item},{step}" for user in range(9) for step, item in enumerate("abcdefg"[user % 3 :][:4])]
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows), encoding="utf-8")
    fitted = [Recommender.from_recipe(name).fit(tmp_path) for name in ("popularity", "transitions")]
    popular, following = (evaluate(recommender) for recommender in fitted)
    assert "first@20" in popular.overall
    assert compare(following, popular, "first@20").metric == "first@20"
    study = {"metric": "first@20", "models": [{"recipe": "popularity"}]}
    assert load_study(study).metric == "first@20"


def test_the_files_that_contributing_names_are_there():
    named = re.findall(r"`((?:src|docs|tests)/[\w/.-]+)`", read(ROOT / "CONTRIBUTING.md"))
    assert len(named) > 8
    for name in named:
        assert "NAME" in name or "FAMILY" in name or (ROOT / name).exists(), name


# notebooks


def test_the_notebooks_are_small():
    assert len(NOTEBOOKS) == 3
    for path in NOTEBOOKS:
        assert path.stat().st_size < 30_000, path
        assert '"image/png"' not in read(path), path


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    printed = [
        output.text for cell in notebook.cells for output in cell.get("outputs", []) if output.get("name") == "stdout"
    ]
    assert len("".join(printed).splitlines()) > 4
