"""Every code block of the README and the docs runs, with the small pipeline in the place of DiT-XL/2."""

import html
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from diffusers import FluxPipeline
from support.documents import blocks
from support.pipelines import PIPELINES, pipeline
from support.tiny import TINY

from forecache.methods import registry
from forecache.report import html as reports
from forecache.reproduce.figures import FIGURES

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
HUB = "facebook/DiT-XL-2-256"
FLUX = "black-forest-labs/FLUX.1-dev"
WAN = "Wan-AI/Wan2.2-T2V-A14B-Diffusers"
PIXART = "PixArt-alpha/PixArt-XL-2-512x512"


def with_python():
    """The pages with Python that is run block by block; test_extending.py runs files."""
    return [page for page in PAGES if blocks(page, "python")]


@pytest.fixture
def _kinds_restored():
    """Takes out again the kind of file that docs/report.md adds."""
    before = dict(reports.KINDS)
    yield
    reports.KINDS.clear()
    reports.KINDS.update(before)


def small_pictures(load):
    """A loader whose pipelines make images of 64 x 64 pixels by default; FLUX's make 1024 x 1024 of any model."""

    def loaded(*words, **options):
        pipe = load(*words, **options)
        pipe.default_sample_size = 8
        return pipe

    return loaded


@pytest.mark.parametrize("page", with_python(), ids=lambda page: page.relative_to(ROOT).as_posix())
@pytest.mark.usefixtures("short_tuning", "_kinds_restored")
def test_python_blocks_run(page, pipe_folder, flux_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(FluxPipeline, "from_pretrained", small_pictures(FluxPipeline.from_pretrained))
    names = {}
    for block in blocks(page, "python"):
        code = block.replace(HUB, str(pipe_folder)).replace(FLUX, str(flux_folder))
        exec(compile(code, page.name, "exec"), names)
    if page.name == "README.md":
        assert names["image"].size == (64, 64)
        assert (tmp_path / "plan.json").exists()
        assert (names["session"].stats.calls, names["session"].stats.skipped > 0) == (28, True)
    if page == ROOT / "docs/index.md":
        picture, plan = (ROOT / "docs/images/schedule-goc.svg").read_text(), names["plan"]
        assert html.escape(plan.provenance["method"]) in picture, "the picture beside the code is its plan"
        assert picture.count('fill="#4a6fb5"') >= sum(cell.computed for row in plan.rows for cell in row)
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
def test_commands_run_in_the_order_they_stand(
    forecache, pipe_folder, pixart_folder, flux_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    kind, _ = PIPELINES["Wan 2.1"]
    wan = replace(TINY["Wan 2.1"], config={**TINY["Wan 2.1"].config, "rope_max_seq_len": 128})
    pipeline(kind, wan.model()).save_pretrained(tmp_path / "wan")
    folders = {HUB: pipe_folder, PIXART: pixart_folder, FLUX: flux_folder, WAN: tmp_path / "wan"}
    for line in commands():
        for name, folder in folders.items():
            line = line.replace(name, str(folder))
        _, *words = shlex.split(line, comments=True)
        if words[0] == "demo":
            words += ["--samples", "4", "--repeats", "1"]
        if words[0] == "compare-methods":
            words += ["--labels", "3", "--seeds", "0", "--steps", "4", "--rounds", "1"]
        if words[0] == "calibrate":
            words += ["--samples", "4"]
        if words[0] == "bench":
            words += ["--model", "digits", "--steps", "4", "--rounds", "1"]
        if words[0] == "train-router":
            words += ["--iterations", "1", "--batch", "1"]
        if words[0] == "reproduce" and len(words) > 1:
            few = ["--row", "fora-50", "--samples", "10", "--batch", "10", "--bootstrap", "0"]
            words += ["--samples", "1"] if words[1] in FIGURES else few
        if "--num-samples" in words:
            words += ["--num-samples", "6", "--shard-size", "4", "--call-size", "2"]
        code, _, err = forecache(*words)
        assert (code, err) == (0, ""), line
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"out/digits/00004.png", "out/again/00001.png", "out/demo/samples.png"} <= written


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), (page.name, target)


def test_the_readme_is_short_and_its_table_filled():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 90
    screen = "\n".join(text.splitlines()[:45])
    for words in ("pip install", "fc.enable(pipe", "best published method", "three.png", "**Models**", "**Status**"):
        assert words in screen
    rows = re.findall(r"^\| (?:tuned|best|fewer).*$", text, re.MULTILINE)
    assert len(rows) == 4
    assert all(row.count(" dB") == 3 for row in rows)


def test_the_table_of_methods_is_that_of_the_registry():
    page = (ROOT / "docs/methods/index.md").read_text(encoding="utf-8")
    assert page.split("<!-- methods -->")[1].strip() == registry.table(), "`forecache methods` prints it"
