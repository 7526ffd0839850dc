"""The documentation site: it builds, loads nothing from elsewhere and documents every public name; its pictures are
those that the code draws, and the notebook runs.
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
PACKAGES = [
    "", "parts", "evaluate", "models", "plan", "methods", "runtime", "sampling", "zoo", "fit", "fit.tuning",
    "reproduce", "report.html", "compare",
]  # fmt: skip
"""The packages whose tables of contents are public."""

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
    """The links, loaded files, anchors and classes of a page."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.ids, self.classes = [], [], set(), set()
        self.feed(text)

    def handle_starttag(self, name, attributes):
        values = dict(attributes)
        self.ids |= {values[key] for key in ("id", "name") if values.get(key)}
        self.classes |= set((values.get("class") or "").split())
        if name == "a" and values.get("href"):
            self.links.append(values["href"])
        self.loads += [values[key] for key in ("src", "data") if values.get(key)]
        if name == "link" and "canonical" not in (values.get("rel") or ""):
            self.loads.append(values["href"])


@pytest.fixture(scope="session")
def pages(site):
    return {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}


def is_local(target):
    return not re.match(r"[a-z]+:|//", target)


def named(path):
    """The object that a path such as ``forecache.parts.gates.god`` names; None where there is none."""
    value, *words = path.split(".")
    value = importlib.import_module(value)
    for word in words:
        module = getattr(value, "__name__", "")
        if not hasattr(value, word) and importlib.util.find_spec(f"{module}.{word}") is not None:
            importlib.import_module(f"{module}.{word}")
        value = getattr(value, word, None)
    return value


def public_names():
    """Path -> object of every public name, without ``__version__`` and the packages themselves."""
    paths = {}
    for package in PACKAGES:
        module = importlib.import_module(".".join(filter(None, ["forecache", package])))
        paths |= {f"{module.__name__}.{name}": getattr(module, name) for name in module.__all__}
    listed = {f"forecache.{package}" for package in PACKAGES}
    return {path: value for path, value in paths.items() if path != "forecache.__version__" and path not in listed}


REFERENCE = re.compile(r"^::: (\S+)", re.MULTILINE)


def documented_names():
    return [name for page in (ROOT / "docs/api").glob("*.md") for name in REFERENCE.findall(page.read_text("utf-8"))]


@pytest.mark.parametrize("name", documented_names())
def test_the_reference_documents_names_that_exist(name):
    assert named(name) is not None


def test_the_reference_documents_every_public_name_once():
    documented = documented_names()
    assert len(set(documented)) == len(documented)
    known = {id(named(name)) for name in documented}
    missing = sorted(path for path, value in public_names().items() if id(value) not in known)
    assert not missing, f"add '::: {missing[0]}' to a page of docs/api (and {len(missing) - 1} more: {missing[1:9]})"


def test_every_documented_name_has_an_anchor(site, pages):
    anchors = set().union(*(page.ids for path, page in pages.items() if path.parent.name == "api"))
    assert not sorted(set(documented_names()) - anchors)
    assert "forecache.__version__" in (site / "api/index.html").read_text(encoding="utf-8")


def test_the_reference_has_the_docstring_of_every_name(site):
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
    assert {target for page in pages.values() for target in page.loads if not is_local(target)} == set()
    assert not any("mermaid" in page.classes for page in pages.values()), "mermaid would be fetched when it is seen"
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"url\(['\"]?(?:https?:)?//|@import", sheet.read_text(encoding="utf-8")), sheet


def test_every_reference_inside_the_site_leads_somewhere(site, pages):
    """Also those that strict mode does not check: in HTML of ours, and to anchors."""
    for path, page in pages.items():
        if path.name == "404.html":
            continue
        for target in (*page.links, *page.loads):
            file, _, anchor = target.partition("#")
            if not is_local(target):
                continue
            page_path = path if not file else (path.parent / unquote(file.partition("?")[0])).resolve()
            page_path = page_path / "index.html" if page_path.is_dir() else page_path
            assert page_path.exists(), (path.name, target)
            if anchor and page_path.suffix == ".html":
                assert unquote(anchor) in pages[page_path].ids, (path.name, target)


def test_no_list_or_table_is_left_as_text(site):
    """A list or a table that Markdown does not recognise stays in a paragraph, with its signs."""
    for path in site.rglob("*.html"):
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
        on_disk = (ROOT / "docs/images" / name).read_text(encoding="utf-8")
        assert on_disk == picture, f"python benchmarks/schedules.py draws {name} again"


def test_a_schedule_is_drawn_cell_by_cell():
    grid = fc.Grid(4, (fc.parts.Site("a", 0, "attn"), fc.parts.Site("b<", 0, "mlp")))
    picture = script("schedules").draw(fc.explicit(pattern="#..#").plan(grid))
    cells = re.findall(r'<rect x="(\d+)" y="(\d+)" width="22" height="7" fill="(#\w+)"', picture)
    assert [colour for *_, colour in cells] == 2 * ["#4a6fb5", "#808794", "#808794", "#4a6fb5"]
    assert len({(x, y) for x, y, _ in cells}) == 8
    assert "b&lt;" in picture
    assert "forecast" not in picture


def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    """In a kernel of its own, in an empty folder; the outputs in the file are those of such a run."""
    notebook = script("notebook")
    run = notebook.run(notebook.NOTEBOOK, tmp_path)
    notebook.tidy(run)
    saved = json.loads(notebook.NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    printed = "".join(output.get("text", "") for cell in run.cells for output in cell.get("outputs", ()))
    assert "#.#~#~#~#~#~#~#~#~#~" in printed
    assert len(re.findall(r"[\d.]+x fewer MACs +[\d.]+ dB", printed)) == 5
    assert (tmp_path / "out/quickstart/plan.html").stat().st_size > 10_000
    for cell, saved_cell in zip(run.cells, saved, strict=True):
        kinds = [sorted(output.get("data", {"text": 0})) for output in cell.get("outputs", ())]
        assert kinds == [sorted(output.get("data", {"text": 0})) for output in saved_cell.get("outputs", ())]
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
        for page in ("index.html", "methods/goc.html", "performance.html", "api/index.html"):
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
    """Code and columns get a fence, described names bold, fields of one a line a list; prose stays as it is."""
    spec = importlib.util.spec_from_file_location("_docstrings", ROOT / "docs/_docstrings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
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
    fields = "a: one\n    and more of it\nb: two"
    assert module.written(fields, {"a", "b"}) == "- **a**: one\n    and more of it\n- **b**: two"
