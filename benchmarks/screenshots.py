"""The pictures of docs/comparing.md and docs/comparing-methods.md: light, dark, and on a phone.

    python benchmarks/screenshots.py                three minutes
    python benchmarks/screenshots.py --only methods

Starts the page, compares in a headless Chromium, and writes docs/images/compare-*.png; runs `compare-methods`, and
writes pictures of its report. The times in the pictures are those of the machine that ran this, with whatever else ran
on it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import common
from browser import Browser, Page
from PIL import Image

from forecache.compare import page
from forecache.compare.comparer import Comparer

DONE = "document.querySelector('#figures table') && document.querySelector('#difference img')?.complete"


def compare(tab: Page, fields: Mapping[str, str]) -> None:
    """Fill in the fields, press Compare, and wait for the figures."""
    tab.wait("document.querySelector('#compare')")
    for selector, text in fields.items():
        tab.type(selector, text)
    tab.press("#compare")
    tab.wait(DONE, 300)
    tab.run("document.activeElement.blur()")
    tab.run("new Promise((done) => setTimeout(done, 800))")  # transitions


def shrink(path: Path) -> None:
    """Reduce a picture of flat colours to a palette."""
    with Image.open(path) as image:
        image.convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
            path, optimize=True
        )
    print(path, path.stat().st_size)


METHODS = ("fora", "goc eta=0.8", "taylorseer interval=3 order=2")


def methods(out: Path) -> None:
    """The report of a comparison of methods on digits."""
    with tempfile.TemporaryDirectory() as folder, Browser() as browser:
        words = ["--labels", "3,8", "--seeds", "0,1", "--batch", "2", "--errors", "--fewer-steps", "10"]
        words += [word for method in METHODS for word in ("--method", method)]
        command = [sys.executable, "-m", "forecache", "compare-methods", *words, "--out", folder, "--quiet"]
        subprocess.run(command, check=True)
        address = (Path(folder) / "report.html").as_uri()
        for name, options in {"light": {}, "dark": {"dark": True}, "narrow": {"width": 390, "height": 844}}.items():
            tab = browser.page(address, **({"width": 1060, "height": 860} | options))
            tab.wait("document.querySelector('footer')")
            if name == "dark":
                tab.run("document.querySelector('[value=differences]').click()")
            tab.picture(out / f"compare-methods-{name}.png")
            shrink(out / f"compare-methods-{name}.png")


def main(words: Sequence[str]) -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--out", type=Path, default=common.IMAGES, help="a folder")
    parser.add_argument("--only", choices=("page", "methods"), help="pictures of one of the two")
    options = parser.parse_args(words)
    if options.only != "page":
        methods(options.out)
    if options.only != "methods":
        page_pictures(options.out)


def page_pictures(out: Path) -> None:
    """The comparison page."""
    comparer = Comparer()
    with tempfile.TemporaryDirectory() as folder:
        shown, address = page.serve(comparer, Path(folder), "127.0.0.1", None)
        with Browser() as browser:
            light = browser.page(address, 1200, 860)
            compare(light, {"#images textarea": "3,1,4,1,5,9"})
            light.picture(out / "compare-light.png")
            dark = browser.page(address, 1200, 860, dark=True)
            compare(dark, {"#images textarea": "0,1,2,3,4,5,6,7,8", "#interval input[type=number]": "3"})
            dark.run("document.querySelector('#cells summary').click()")
            dark.picture(out / "compare-dark.png", whole=True)
            narrow = browser.page(address, 390, 844, touch=True)
            compare(narrow, {"#images textarea": "2,7"})
            narrow.picture(out / "compare-narrow.png", whole=True)
        shown.close(verbose=False)
    for name in ("light", "dark", "narrow"):
        shrink(out / f"compare-{name}.png")


if __name__ == "__main__":
    main(sys.argv[1:])
