"""The documentation site: it builds, loads nothing from elsewhere and names all that is public; its pictures are what
the code draws, and the notebook runs.
"""

import functools
import http.server
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from support.browser import BROWSER, Quiet, browsed

import forecache as fc

ROOT = Path(__file__).parent.parent.parent
NEEDED = ("mkdocs", "material", "mkdocstrings_handlers", "nbclient", "ipykernel")
TOOLS = [name for name in NEEDED if not importlib.util.find_spec(name)]
PUBLIC = ["adapters", "evaluate", "reports", "zoo", "tokens", "reproduction"]
"""Modules with a table of contents of their own; those that `forecache.__all__` names are found by themselves."""

pytestmark = pytest.mark.skipif(bool(TOOLS), reason=f"{TOOLS} not installed: pip install 'forecache[docs]'")


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The site, built as `make docs` builds it: a link, an anchor or a page that leads nowhere is an error."""
    folder = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


class Page(HTMLParser):
    """What a page refers to, and its own anchors."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.ids, self.classes = [], [], set(), set()
        self.feed(text)

    def handle_starttag(self, name, attributes):
        found = dict(attributes)
        self.ids |= {found[key] for key in ("id", "name") if found.get(key)}
        self.classes |= set((found.get("class") or "").split())
        if name == "a" and found.get("href"):
            self.links.append(found["href"])
        self.loads += [found[key] for key in ("src", "data") if found.get(key)]
        if name == "link" and "canonical" not in (found.get("rel") or ""):
            self.loads.append(found["href"])


@pytest.fixture(scope="session")
def pages(site):
    return {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}


def is_local(target):
    return not re.match(r"[a-z]+:|//", target)


def anchor(name):
    """Of a public name. A function with the name of its module (calibrate, search) stands under where it lies."""
    found, module = getattr(fc, name), sys.modules.get(f"forecache.{name}")
    return f"forecache.{name}" if module in (None, found) else f"{found.__module__}.{found.__name__}"


def test_every_public_name_stands_in_the_reference(site, pages):
    known = set().union(*(page.ids for path, page in pages.items() if path.parent.name == "api"))
    wanted = {anchor(name) for name in fc.__all__ if name != "__version__"}
    for name in PUBLIC:
        module = importlib.import_module(f"forecache.{name}")
        wanted |= {f"forecache.{name}.{each}" for each in module.__all__}
    missing = sorted(wanted - known)
    assert not missing, f"add '::: {missing[0]}' to a page of docs/api (and {len(missing) - 1} more: {missing[1:9]})"
    assert "forecache.__version__" in (site / "api/index.html").read_text(encoding="utf-8")


def test_the_reference_says_something_of_every_name(site):
    """A heading of the reference is followed by the first line of what it names."""
    text = re.sub(r"<[^>]+>", "", (site / "api/index.html").read_text(encoding="utf-8"))
    text = re.sub(r"\s+", " ", text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    text = re.sub(r"&#39;|&quot;", "'", text)
    for name in fc.__all__:
        doc = getattr(fc, name).__doc__ if name != "__version__" else None
        if doc and getattr(getattr(fc, name), "__module__", "").startswith("forecache"):
            first = re.sub(r"[`*\"']+", "", doc.strip().splitlines()[0])[:40]
            assert first in re.sub(r"[`*\"']+", "", text), (name, first)


def test_nothing_is_loaded_from_elsewhere(site, pages):
    assert len(pages) > 25
    assert {each for page in pages.values() for each in page.loads if not is_local(each)} == set()
    assert not any("mermaid" in page.classes for page in pages.values()), "mermaid would be fetched when it is seen"
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"url\(['\"]?(?:https?:)?//|@import", sheet.read_text(encoding="utf-8")), sheet


def test_every_reference_inside_the_site_leads_somewhere(site, pages):
    """Also those that strictness does not see: in HTML of ours, and to anchors."""
    for path, page in pages.items():
        if path.name == "404.html":
            continue
        for target in (*page.links, *page.loads):
            place, _, anchor = target.partition("#")
            if not is_local(target):
                continue
            found = path if not place else (path.parent / unquote(place.partition("?")[0])).resolve()
            found = found / "index.html" if found.is_dir() else found
            assert found.exists(), (path.name, target)
            if anchor and found.suffix == ".html":
                assert unquote(anchor) in pages[found].ids, (path.name, target)


def test_lists_and_tables_are_none_by_accident(site):
    """What Markdown does not take for a list or a table stays in a paragraph, with its signs."""
    for path in site.glob("*.html"):
        for paragraph in re.findall(r"<p>(.*?)</p>", path.read_text(encoding="utf-8"), re.DOTALL):
            assert not re.search(r"^\s*(?:- |\|.*\|$|```)", paragraph, re.MULTILINE), (path.name, paragraph[:200])


def test_every_command_stands_on_its_page_with_its_options(site, pages, forecache):
    _, out, _ = forecache("--help")
    commands = re.findall(r"^│ ([a-z][a-z-]+)  ", out, re.MULTILINE)
    assert {"demo", "plan", "sample", "report"} <= set(commands)
    assert {f"forecache-{name}" for name in commands} <= pages[site / "commands.html"].ids
    text = (site / "commands.html").read_text(encoding="utf-8")
    assert "--router-threshold" in text
    assert "Share of the last change" in text or "share of the last change" in text


def test_a_page_that_lies_elsewhere_links_as_the_site_does(site):
    service = (site / "service.html").read_text(encoding="utf-8")
    assert 'href="serving.html"' in service
    assert 'href="service.html"' in (site / "serving.html").read_text(encoding="utf-8")
    assert "0.1.0 (not released yet)" in (site / "changelog.html").read_text(encoding="utf-8")


def script(name):
    """A script of benchmarks/ as a module."""
    folder = str(ROOT / "benchmarks")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


def test_the_pictures_of_schedules_are_what_the_code_draws():
    for name, picture in script("schedules").pictures().items():
        kept = (ROOT / "docs/images" / name).read_text(encoding="utf-8")
        assert kept == picture, f"python benchmarks/schedules.py draws {name} again"


def test_a_schedule_is_drawn_cell_by_cell():
    grid = fc.Grid(4, (fc.parts.Site("a", 0, "attn"), fc.parts.Site("b<", 0, "mlp")))
    picture = script("schedules").draw(fc.explicit(pattern="#..#").plan(grid))
    cells = re.findall(r'<rect x="(\d+)" y="(\d+)" width="22" height="7" fill="(#\w+)"', picture)
    assert [colour for *_, colour in cells] == 2 * ["#4a6fb5", "#808794", "#808794", "#4a6fb5"]
    assert len({(x, y) for x, y, _ in cells}) == 8
    assert "b&lt;" in picture
    assert "forecast" not in picture


def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    """In a kernel of its own, in an empty folder; what stands in the file are outputs of such a run."""
    notebook = script("notebook")
    made = notebook.run(notebook.NOTEBOOK, tmp_path)
    notebook.tidy(made)
    kept = json.loads(notebook.NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    printed = "".join(output.get("text", "") for cell in made.cells for output in cell.get("outputs", ()))
    assert "#.#~#~#~#~#~#~#~#~#~" in printed
    assert len(re.findall(r"[\d.]+x fewer MACs +[\d.]+ dB", printed)) == 5
    assert (tmp_path / "out/quickstart/plan.html").stat().st_size > 10_000
    for mine, theirs in zip(made.cells, kept, strict=True):
        kinds = [sorted(output.get("data", {"text": 0})) for output in mine.get("outputs", ())]
        assert kinds == [sorted(output.get("data", {"text": 0})) for output in theirs.get("outputs", ())]
    assert notebook.NOTEBOOK.stat().st_size < 200_000


HARNESS = """<!doctype html><iframe id="f" src="/PAGE" width="390" height="800"></iframe><script>
document.getElementById("f").onload = () => {
  const wide = document.getElementById("f").contentWindow.document.documentElement, pre = document.createElement("pre");
  pre.id = "out"; pre.textContent = wide.scrollWidth + "," + wide.clientWidth; document.body.append(pre);
};
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed here")
def test_in_a_browser_pages_fit_a_phone_and_ask_for_nothing(site):
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        for page in ("index.html", "goc.html", "performance.html", "api/index.html"):
            (site / "harness.html").write_text(HARNESS.replace("PAGE", page))
            rules = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
            dom, console = browsed(f"http://127.0.0.1:{server.server_port}/harness.html", rules)
            wide, window = map(int, re.search(r'<pre id="out">(\d+),(\d+)</pre>', dom).groups())
            assert wide <= window, f"{page} scrolls sideways on a phone"
            assert not console, (page, console)
        (site / "harness.html").unlink()
        server.shutdown()
        thread.join()


def test_docstrings_are_written_as_markdown():
    """Code and columns get a fence, described names bold; prose stays as it is."""
    place = importlib.util.spec_from_file_location("_docstrings", ROOT / "docs/_docstrings.py")
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    prose = "Say it. This is prose (not code), as here: a, b.\nwith more of it"
    columns, code = "every(3)      one in three\nfirst(2)      two", "plan = goc(fora(2), 0.8).plan(grid)"
    text = f"{prose}\n\n{code}\n\n{columns}\n\nb, a: x. c: y."
    assert module.written(text, {"a", "b"}).split("\n\n") == [
        prose,
        f"```python\n{code}\n```",
        f"```text\n{columns}\n```",
        "**b**, **a**: x. c: y.",
    ]
    assert module.written("word", {"word"}) == "word"
