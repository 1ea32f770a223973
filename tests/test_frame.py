"""What the documents promise is there: commands, options, recipes, settings, links, and Python that runs."""

from __future__ import annotations

import importlib.util
import re
import runpy
import shlex
import subprocess
import tomllib
from pathlib import Path

import polars as pl
import pytest
import typer

from front_door_world import encode_first_word
from graphllmrec.cli import app
from graphllmrec.data.columns import MEANINGS
from graphllmrec.data.read import load_data
from graphllmrec.models.registry import model_class
from graphllmrec.recipe import load_recipe, recipe_names
from graphllmrec.recommender import Recommender

ROOT = Path(__file__).parent.parent
PAGES = [
    page.relative_to(ROOT) for page in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("docs/*/*.md")])
]
COMMANDS = typer.main.get_command(app)


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def code_blocks(page, language=""):
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), flags=re.MULTILINE | re.DOTALL)


def console_lines():
    """(page, command line) of every use of graphllmrec in a document, in blocks and in running text."""
    for page in PAGES:
        whole_lines = [line for block in code_blocks(page) for line in block.splitlines()]
        inline = re.findall(r"`(graphllmrec [^`\n]+)`", text_of(page))
        yield from ((str(page), line) for line in [*whole_lines, *inline] if line.startswith("graphllmrec "))


def small_films(folder):
    """A data folder with the ids that the documents use: 30 people, 24 films of three genres."""
    ids = ["260", "1210", *(str(number) for number in range(22))]
    genres = ("Sci-Fi", "Western", "Musical")
    items = [
        {"item_id": name, "title": f"{genres[n % 3]} {n}", "genres": [genres[n % 3]]} for n, name in enumerate(ids)
    ]
    clicks = [
        {"user_id": str(user), "item_id": ids[(3 * step + user) % 24], "timestamp": 1_500_000_000 + step}
        for user in range(1, 31)
        for step in range(8)
        if (3 * step + user) % 24 != 1  # so that film 1210 can be recommended to anybody
    ]
    pl.DataFrame(items).write_parquet(folder / "items.parquet")
    pl.DataFrame(clicks).write_parquet(folder / "interactions.parquet")
    return load_data(folder, name="films")


@pytest.fixture
def films(tmp_path, monkeypatch):
    """`demo_data()` gives a small data set, and no language model is loaded."""
    (tmp_path / "films").mkdir()
    data = small_films(tmp_path / "films")
    monkeypatch.setattr("graphllmrec.data.demo_data", lambda: data)
    monkeypatch.setattr("graphllmrec.text.prepare.encode_items", encode_first_word)
    monkeypatch.chdir(tmp_path)


def shop():
    """The data of examples/own_table.py."""
    folder = Path("shop")
    folder.mkdir()
    runpy.run_path(str(ROOT / "examples" / "own_table.py"))["write_shop"](folder)
    return load_data(folder)


# documents


def test_there_are_documents():
    assert {
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "docs/guides/data.md",
        "docs/tutorials/first-hour.md",
    } <= set(map(str, PAGES))


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_between_documents_resolve(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text_of(page))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (ROOT / page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_python_in_documents_runs(page, films):
    blocks = code_blocks(page, "python")
    if any('load("runs/hybrid")' in block for block in blocks):
        Recommender.from_recipe("text-knn", model={"text_dim": 3}).fit(shop()).save("runs/hybrid")
    exec(compile("\n".join(blocks), str(page), "exec"), {"__name__": "document"})


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_recipes_in_documents_are_valid(page):
    for block in code_blocks(page, "toml"):
        load_recipe(tomllib.loads(block))


def test_make_targets_in_documents_exist():
    named = {
        target for page in PAGES for target in re.findall(r"^make (\w+)|`make (\w+)`", text_of(page), re.MULTILINE)
    }
    named = {first or second for first, second in named}
    assert {"demo", "test", "check"} <= named
    for target in named:
        found = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stderr


@pytest.mark.parametrize(("page", "line"), sorted(set(console_lines())))
def test_commands_in_documents_exist_with_their_options(page, line):
    words = shlex.split(line.replace("[", " ").replace("]", " "), comments=True)[1:]
    command = COMMANDS
    if words[0] in COMMANDS.commands:
        command = COMMANDS.commands[words[0]]
    else:
        assert words[0].startswith("--"), f"{page}: no command {words[0]!r}"
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    given = [word for word in words if re.match(r"--?[a-z]", word)]
    assert [option for option in given if option not in known] == []


def test_the_names_of_columns_in_the_data_page_are_those_that_are_accepted():
    rows = re.findall(r"^\| (\w+) \| ([\w, ]+) \|$", text_of("docs/guides/data.md"), flags=re.MULTILINE)
    said = {meaning: tuple(names.split(", ")) for meaning, names in rows if meaning in MEANINGS}
    assert said == {meaning: names for meaning, names in MEANINGS.items() if meaning != "items"}


def test_the_tables_made_from_the_code_are_up_to_date():
    spec = importlib.util.spec_from_file_location("settings", ROOT / "docs" / "settings.py")
    settings = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(settings)
    for page in settings.WRITTEN:
        assert settings.page(page) == text_of(f"docs/{page}"), f"{page}: run make docs"
    for section in ('name = "hybrid"', "[model.gate]", "| `cold_budget` |"):
        assert section in settings.tables()


def test_the_table_of_models_lists_every_recipe_once_and_its_abilities_are_true():
    rows = re.findall(
        r"^\| `([\w-]+)` \| .* \| ([\w ]+) \| (yes|no) \|$", text_of("docs/models.md"), flags=re.MULTILINE
    )
    assert sorted(name for name, _, _ in rows) == sorted(recipe_names())
    for name, text, new in rows:
        abilities = model_class(load_recipe(name).model.name).abilities
        assert (text == "needs it") == abilities.needs_text, name
        assert (text == "no") == (not abilities.reads_text), name
        assert (new == "yes") == abilities.ranks_cold_items, name


def test_decisions_are_numbered_and_say_context_decision_consequences():
    pages = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    assert [int(page.name[:3]) for page in pages] == list(range(1, len(pages) + 1))
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert text.startswith(f"# {page.name[:3]} — ")
        assert re.findall(r"^\*\*(\w+)\.\*\*", text, flags=re.MULTILINE) == ["Context", "Decision", "Consequences"]


# recipes, examples, package


@pytest.mark.parametrize("name", recipe_names())
def test_a_packaged_recipe_is_valid_and_begins_with_its_command(name):
    path = ROOT / "recipes" / f"{name}.toml"
    recipe = load_recipe(path)
    assert recipe.title
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith(f"# graphllmrec fit {name} --data ")


def test_the_quickstart_example_runs(films, capsys):
    runpy.run_path(str(ROOT / "examples" / "quickstart.py"), run_name="__main__")
    assert "Why the first one?" in capsys.readouterr().out


@pytest.mark.slow
def test_the_grokking_example_detects_the_event(capsys):
    runpy.run_path(str(ROOT / "examples" / "grokking.py"), run_name="__main__")
    output = capsys.readouterr().out
    assert "memorised since" in output
    assert "generalising since" in output
    assert "no later event expected" in output


def test_the_example_with_own_tables_recommends_the_new_spade_to_gardeners(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GRAPHLLMREC_CACHE", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["own_table.py"])
    runpy.run_path(str(ROOT / "examples" / "own_table.py"), run_name="__main__")
    takers, gardeners = map(int, re.findall(r"of (\d+) customers; (\d+) of them", capsys.readouterr().out)[0])
    assert gardeners > 0.8 * takers > 0


def test_what_the_package_metadata_names_is_there():
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    for name in (project["readme"], *project["license-files"]):
        assert (ROOT / name).is_file(), name
    assert "Harper" in text_of("src/graphllmrec/data/demo/README.txt")
