"""What mkdocs does to the pages besides rendering them (mkdocs.yml names this file).

- README.md is the start page; CONTRIBUTING.md and CHANGELOG.md become pages too.
- A notebook becomes a page: its Markdown, its code, and the text that the code printed.
- A link that leaves docs/ (to source code, a benchmark, the licence) becomes the path in the repository, as code.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

DOCS = Path(__file__).parent
ROOT = DOCS.parent
COPIED = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the copied pages, and put a page in the place of every notebook."""
    for name, page in COPIED.items():
        text = with_links((ROOT / name).read_text(encoding="utf-8"), ROOT, DOCS)
        files.append(File.generated(config, page, content=text))
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(file)
        page = file.src_uri.removesuffix(".ipynb") + ".md"
        files.append(File.generated(config, page, content=notebook_page(DOCS / file.src_uri)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to notebooks lead to their pages; links that leave docs/ become paths."""
    folder = (DOCS / page.file.src_uri).parent
    if page.file.src_uri == "index.md":
        page.meta["hide"] = ["navigation"]  # it has one page
    return with_links(markdown, folder, folder)


def with_links(text: str, written_in: Path, shown_in: Path) -> str:
    """`text` of a file in one folder with the links it needs as a page in another one."""

    def rewritten(link: re.Match[str]) -> str:
        mark, label, target, anchor = link[1], link[2], link[3], link[4] or ""
        if ":" in target:
            return link[0]
        path = Path(os.path.normpath(written_in / target))
        name = path.relative_to(ROOT).as_posix()
        path = DOCS / COPIED[name] if name in COPIED else path
        if path.is_relative_to(DOCS):
            shown = Path(os.path.relpath(path, shown_in)).as_posix().replace(".ipynb", ".md")
            return f"{mark}[{label}]({shown}{anchor})"
        return label if name in label else f"{label} (`{name}`)"

    parts = re.split(r"^(```.*?^```)", text, flags=re.MULTILINE | re.DOTALL)  # code stands at the odd places
    parts[::2] = [LINK.sub(rewritten, part) for part in parts[::2]]
    return "".join(parts)


def notebook_page(path: Path) -> str:
    """A notebook as Markdown."""
    parts = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        else:
            parts.append(f"```python\n{cell.source}\n```")
            printed = "".join(output.get("text", "") for output in cell.outputs).rstrip()
            parts += [f"```text\n{printed}\n```"] if printed else []
    return "\n\n".join([*parts, f"*This page is the notebook `{path.relative_to(ROOT).as_posix()}`; a test runs it.*"])
