"""The images of a comparison of methods: a strip for every prompt and seed, as images or as differences; a player."""

from __future__ import annotations

from forecache.report.html.data import Gallery, ReportData, Strip, Tile
from forecache.report.html.films import player
from forecache.report.html.markup import Html, join, tag


def gallery(data: ReportData) -> Html:
    """The strips, with a switch between images and differences, and a player for videos."""
    if data.gallery is None or not data.gallery.strips:
        return Html("")
    frames = max(tile.image.frames for strip in data.gallery.strips for tile in strip.tiles)
    notes = [tag("p", note, class_="note") for note in data.notes]
    what = "videos" if frames > 1 else "images"
    views = tag(
        "fieldset",
        tag("legend", "Show"),
        _view("images", what, checked=True),
        _view("differences", f"differences to no cache, times {data.gallery.gain}"),
        class_="views",
    )
    controls = [views, *([player(frames)] if frames > 1 else [])]
    strips = [_strip(strip, data.gallery) for strip in data.gallery.strips]
    body = tag("div", tag("div", *controls, class_="controls"), *strips, class_="gallery")
    return tag("section", tag("h2", "Side by side"), body, *notes)


def _view(name: str, words: str, *, checked: bool = False) -> Html:
    value = "checked" if checked else None
    radio = tag("input", type="radio", name_="view", value=name, id=f"view-{name}", checked=value, aria_label=words)
    return tag("label", radio, words)


def _strip(strip: Strip, gallery: Gallery) -> Html:
    tiles = [_tile(tile, strip, gallery) for tile in strip.tiles]
    cells = tag("div", *tiles, class_="strip", tabindex=0, role="group", aria_label=strip.name)
    return join(tag("h3", strip.name), cells)


def _tile(tile: Tile, strip: Strip, gallery: Gallery) -> Html:
    image = tile.image.element(f"{tile.name}: {strip.name}", "image" if tile.difference else "")
    parts = [image]
    if tile.difference is not None:
        words = f"{tile.name}: {strip.name}, difference to no cache times {gallery.gain}"
        parts.append(tile.difference.element(words, "difference"))
    caption = tag("figcaption", tag("span", tile.name), tag("b", tile.caption))
    return tag("figure", tag("div", *parts, class_="picture"), caption, class_="tile")
