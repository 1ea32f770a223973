"""Take a picture of an HTML page with Chromium: python docs/screenshots.py PAGE OUT.png [WIDTH] [HEIGHT].

The picture in the README (ndcg@20 of six recipes on amazon-industrial, all with their default settings):

    for recipe in popularity ease text-knn z-sum sign hybrid; do
      graphllmrec fit $recipe --data data/amazon-industrial --out runs/$recipe
    done
    graphllmrec report runs/popularity runs/ease runs/text-knn runs/z-sum runs/sign runs/hybrid --out report.html
    python docs/screenshots.py report.html docs/images/report.png 1120 1260 --small
"""

from __future__ import annotations

import argparse
import html
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

_FRAME = """<!doctype html>
<style>body {{ margin: 0 }} iframe {{ border: 0; width: {width}px; height: {height}px }}</style>
<iframe src="{page}"></iframe>"""


def take(page: Path, out: Path, width: int, height: int, *, dark: bool = False) -> None:
    """Write the upper left `width` × `height` pixels of `page` to `out`.

    The page is shown in a frame, because Chromium's window is never narrower than 500 pixels. Raises CalledProcessError
    where Chromium fails, OSError where there is none.
    """
    with tempfile.TemporaryDirectory() as folder:
        frame = Path(folder) / "frame.html"
        source = html.escape(page.resolve().as_uri())
        frame.write_text(_FRAME.format(page=source, width=width, height=height), encoding="utf-8")
        settings = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-lcd-text"]
        settings += ["--blink-settings=preferredColorScheme=0"] if dark else []
        size = [f"--window-size={width},{height}", f"--screenshot={out.resolve()}"]
        command = ["chromium", *settings, *size, f"--user-data-dir={folder}/profile", frame.as_uri()]
        subprocess.run(command, check=True, capture_output=True)


def reduce(path: Path) -> None:
    """Keep the 256 most frequent colours: a third of the bytes. Rare colours change, so look at the result."""
    picture = Image.open(path).convert("RGB")
    colours = sorted(picture.getcolors(2**24), reverse=True)[:256]
    palette = Image.new("P", (1, 1))
    palette.putpalette([value for _, colour in colours for value in colour])
    picture.quantize(palette=palette, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    """Read the arguments and take the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("width", type=int, nargs="?", default=1120)
    parser.add_argument("height", type=int, nargs="?", default=1260)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--small", action="store_true", help="256 colours")
    found = parser.parse_args()
    take(found.page, found.out, found.width, found.height, dark=found.dark)
    if found.small:
        reduce(found.out)


if __name__ == "__main__":
    main()
