"""The pictures of the comparison page in docs/comparing.md: light, dark, and on a phone.

    python benchmarks/screenshots.py

It starts the page, compares in a headless Chromium, and writes docs/images/compare-*.png. The times in the pictures are
those of the machine that ran this, beside whatever else ran on it.
"""

import argparse
import tempfile
from pathlib import Path

from browser import Browser
from PIL import Image

from forecache.compare import page
from forecache.compare.comparer import Comparer

IMAGES = Path(__file__).parent.parent / "docs" / "images"
DONE = "document.querySelector('#figures table') && document.querySelector('#difference img')?.complete"


def compare(tab, fill):
    """Fill in, press Compare, and wait for the figures."""
    tab.wait("document.querySelector('#compare')")
    for selector, text in fill.items():
        tab.type(selector, text)
    tab.press("#compare")
    tab.wait(DONE, 300)
    tab.run("document.activeElement.blur()")
    tab.run("new Promise((done) => setTimeout(done, 800))")  # transitions


def small(path):
    """As few bytes as a picture of flat colours needs."""
    with Image.open(path) as image:
        image.convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
            path, optimize=True
        )
    print(path, path.stat().st_size)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=IMAGES)
    out = parser.parse_args().out
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
        small(out / f"compare-{name}.png")


if __name__ == "__main__":
    main()
