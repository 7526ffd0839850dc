"""Every code block of the README and the docs runs, with the small pipeline in the place of DiT-XL/2."""

import re
import shlex
from pathlib import Path

import pytest
from support.documents import blocks

from forecache.methods import registry
from forecache.report import html

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
HUB = "facebook/DiT-XL-2-256"
PIXART = "PixArt-alpha/PixArt-XL-2-512x512"


def with_python():
    """The pages with Python that is run block by block; test_extending.py runs files."""
    return [page for page in PAGES if blocks(page, "python")]


@pytest.fixture
def _kinds_restored():
    """Takes out again the kind of file that docs/report.md adds."""
    before = dict(html.KINDS)
    yield
    html.KINDS.clear()
    html.KINDS.update(before)


@pytest.mark.parametrize("page", with_python(), ids=lambda page: page.relative_to(ROOT).as_posix())
@pytest.mark.usefixtures("short_tuning", "_kinds_restored")
def test_python_blocks_run(page, pipe_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks(page, "python"):
        exec(compile(block.replace(HUB, str(pipe_folder)), page.name, "exec"), names)
    if page.name == "README.md":
        assert len(names["images"]) == 2
        assert (tmp_path / "plan.json").exists()
        assert names["session"].stats.calls == 20
    if page.name == "models.md":
        assert names["session"].stats.generations == 1
        assert names["x"].isfinite().all()


def commands():
    lines = [line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    return [line for line in lines if line.startswith("forecache ")]


def test_the_readme_has_commands():
    assert len(commands()) >= 4


@pytest.mark.slow
@pytest.mark.usefixtures("short_tuning")
def test_commands_run_in_the_order_they_stand(forecache, pipe_folder, pixart_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for line in commands():
        _, *words = shlex.split(line.replace(HUB, str(pipe_folder)).replace(PIXART, str(pixart_folder)), comments=True)
        if words[0] == "demo":
            words += ["--samples", "4", "--repeats", "1"]
        if words[0] == "compare-methods":
            words += ["--labels", "3", "--seeds", "0", "--steps", "4", "--rounds", "1"]
        if words[0] == "calibrate":
            words += ["--samples", "4"]
        if words[0] == "bench":
            words += ["--steps", "4", "--rounds", "1"]
        if words[0] == "train-router":
            words += ["--iterations", "1", "--batch", "1"]
        if words[0] == "reproduce" and len(words) > 1:
            words += ["--row", "fora-50", "--samples", "10", "--batch", "10", "--bootstrap", "0"]
        if "--num-samples" in words:
            words += ["--num-samples", "6", "--shard-size", "4", "--call-size", "2"]
        code, _, err = forecache(*words)
        assert (code, err) == (0, ""), line
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"out/digits/00004.png", "out/dit/run.json", "out/again/00001.png", "out/demo/samples.png"} <= written


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), (page.name, target)


def test_the_readme_is_short_and_its_table_filled():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 150
    assert "GOC 50 %, 0.8" in text


def test_the_table_of_methods_is_that_of_the_registry():
    page = (ROOT / "docs/methods/index.md").read_text(encoding="utf-8")
    assert page.split("<!-- methods -->")[1].strip() == registry.table(), "`forecache methods` prints it"
