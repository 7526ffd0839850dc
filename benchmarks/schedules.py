"""The plans of the methods' pages as pictures: every cell of 24 sites x 20 steps on the bundled digits.

    python benchmarks/schedules.py                a few seconds

Nothing is sampled. Writes docs/images/schedule-<method>.svg; a test compares them with what this draws.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from html import escape

import common

import forecache as fc
from forecache import zoo

STEPS = 20
WIDE, HIGH, LEFT, TOP = 24, 9, 96, 8
SIGNS = {
    "#": ("#4a6fb5", "computed"),
    ".": ("#808794", "reused"),
    "~": ("#e0922b", "forecast"),
    "+": ("#d2577a", "corrected"),
    "o": ("#3f9c84", "some tokens computed"),
}
"""Colour and meaning of each sign; the colours differ on white and on black."""


def methods() -> dict[str, Callable[[], fc.Method]]:
    """The plan of each page, from bundled data."""

    def stats() -> fc.Statistics:
        return fc.Statistics.load(zoo.record("digits").statistics_path(STEPS))

    return {
        "fora": lambda: fc.fora(3),
        "taylorseer": lambda: fc.taylorseer(fc.warmup(fc.fora(3), 3), order=2),
        "goc": lambda: fc.goc(fc.fora(2), eta=0.8, gate=fc.parts.gates.god(stats(), gamma=0.5, threshold=0.45)),
        "eoc": lambda: fc.eoc(fc.methods.fora_paper(75), stats()),
        "l2c": lambda: fc.goc(fc.l2c(fc.Router.load(zoo.record("digits").router_path(22))), eta=1.0),
        "smoothcache": lambda: fc.smoothcache(stats(), 0.5),
        "procache": lambda: fc.procache("#...#...#..#..#..#.#"),
        "toca": lambda: fc.toca(fc.fora(4), share=0.25, importance="attn_norm"),
    }


def draw(plan: fc.Plan) -> str:
    """A plan as SVG: a line for each site, a column for each step, a rectangle for each cell."""
    sites, rows = plan.grid.sites, [[cell.sign for cell in row] for row in plan.rows]
    cells = [_cell(line, step, sign) for line, row in enumerate(rows) for step, sign in enumerate(row)]
    names = [
        f'<text x="{LEFT - 6}" y="{TOP + HIGH * line + HIGH - 1.5}" text-anchor="end">{escape(site.name)}</text>'
        for line, site in enumerate(sites)
    ]
    bottom = TOP + HIGH * len(sites)
    ticks = [
        f'<text x="{LEFT + WIDE * (step + 0.5):g}" y="{bottom + 12}" text-anchor="middle">{step}</text>'
        for step in range(0, plan.num_steps, 2)
    ]
    width, height = LEFT + WIDE * plan.num_steps + 8, bottom + 40
    title = escape(plan.provenance["method"])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" font-family="system-ui, sans-serif" font-size="9" fill="#808794">\n<title>{title}</title>\n'
        + "\n".join([*cells, *names, *ticks, *_legend({sign for row in rows for sign in row}, bottom + 30)])
        + "\n</svg>\n"
    )


def _cell(line: int, step: int, sign: str) -> str:
    x, y = LEFT + WIDE * step + 1, TOP + HIGH * line + 1
    opacity = ' fill-opacity="0.22"' if sign == "." else ""
    return f'<rect x="{x}" y="{y}" width="{WIDE - 2}" height="{HIGH - 2}" fill="{SIGNS[sign][0]}"{opacity}/>'


def _legend(signs: set[str], y: int) -> list[str]:
    parts, x = [], LEFT + 1
    for sign, (colour, meaning) in SIGNS.items():
        if sign in signs:
            opacity = ' fill-opacity="0.22"' if sign == "." else ""
            parts.append(f'<rect x="{x}" y="{y - 8}" width="12" height="9" fill="{colour}"{opacity}/>')
            parts.append(f'<text x="{x + 17}" y="{y}" font-size="11">{meaning}</text>')
            x += 36 + 6 * len(meaning)
    return parts


def pictures() -> dict[str, str]:
    """The pictures by file name."""
    grid = fc.grid(zoo.load_digits(), STEPS)
    return {f"schedule-{name}.svg": draw(make().plan(grid)) for name, make in methods().items()}


def main(words: Sequence[str]) -> None:
    common.parser(__doc__).parse_args(words)
    for name, picture in pictures().items():
        (common.IMAGES / name).write_text(picture, encoding="utf-8")
        print(f"docs/images/{name}")


if __name__ == "__main__":
    main(sys.argv[1:])
