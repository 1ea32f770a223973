"""What users install: extras that are used, a description that an index can show, a complete archive."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

from graphllmrec.cli.doctor import EXTRAS

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOT_FOR_USERS = {"docs", "dev"}
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "src").rglob("*.py"), ROOT / "Makefile"]


def test_every_extra_that_is_named_exists() -> None:
    named = {
        extra
        for path in DOCUMENTS
        for group in re.findall(r"graphllmrec\[([\w, -]+)\]", path.read_text(encoding="utf-8"))
        for extra in re.split(r"[, ]+", group)
    }
    assert named
    assert named <= PROJECT["optional-dependencies"].keys()


def test_every_extra_for_users_is_used_by_the_code_and_checked_by_the_doctor() -> None:
    assert EXTRAS.keys() == PROJECT["optional-dependencies"].keys() - NOT_FOR_USERS
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    for extra, modules in EXTRAS.items():
        for module in modules:
            uses = rf"(import|from) {module}\b|\"{module}\""
            assert len(re.findall(uses, code)) > 1, f"{extra}: nothing uses {module}"  # the doctor names it, too


def test_the_description_has_no_link_that_an_index_cannot_follow() -> None:
    text = (ROOT / PROJECT["readme"]).read_text(encoding="utf-8")
    assert not [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https://")]
    for extra in PROJECT["optional-dependencies"].keys() - NOT_FOR_USERS:
        assert f"| `{extra}` |" in text


def test_the_oldest_and_the_next_minor_torch_are_not_refused() -> None:
    requirement = next(each for each in PROJECT["dependencies"] if each.startswith("torch"))
    assert requirement == "torch>=2.10,<3"
    assert re.search(r"^torch==2\.\d+\.\d+$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.slow
def test_the_source_archive_has_all_that_the_tests_need(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", "77")
    tracked = _tracked()
    for name in tracked:  # a copy: building writes beside pyproject.toml
        target = tmp_path / "project" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    build = "from setuptools import build_meta; build_meta.build_sdist('out')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path / "project", check=True, capture_output=True)
    (archive,) = (tmp_path / "project" / "out").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        inside = {name.partition("/")[2] for name in tar.getnames()}
    assert [name for name in tracked if name not in inside and not name.startswith(".git")] == []
    assert archive.stat().st_size < 20e6


def _tracked() -> list[str]:
    """Files of the project, without what is only built."""
    found = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if found.returncode:  # not a clone: this is the source archive
        pytest.skip("no git here")
    return [name for name in found.stdout.splitlines() if (ROOT / name).is_file()]
