"""Reports: every kind of result as one HTML file, what is in it, that nothing of a file becomes HTML, and a browser."""

import functools
import html
import http.server
import json
import math
import re
import threading
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.browser import BROWSER, Quiet, browsed
from support.files import figures_file, search_file
from support.statistics import GRID, measured

import forecache as fc
from forecache.bench.comparison import quality, result
from forecache.bench.comparison.columns import Request
from forecache.bench.comparison.rounds import Rounds
from forecache.environment import environment
from forecache.fit.tuning import trials
from forecache.fit.tuning.forecasts import ForecastSpec
from forecache.report import html as html_module
from forecache.report.html import charts, data, films, markup, sections
from forecache.sampling import runs, samples_file, shard_file, timing
from forecache.zoo import load_digits

VOID = {"input", "meta", "img"}
PLAN = fc.goc(fc.fora(2), 1.2).plan(GRID)
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&<b>"


class Page(HTMLParser):
    """Every element in order, with its attributes and text; a tag that is closed wrongly, or not, is an error."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, name, attributes):
        assert len(dict(attributes)) == len(attributes)
        self.elements.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open
        assert self.open.pop() == name

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, name, looks=None):
        return [
            each for found, each in self.elements if found == name and (looks is None or looks in each.get("class", ""))
        ]

    def words(self, name):
        return [text for found, text in self.texts if found == name]

    @property
    def cells(self):
        """{site: what every step does} of the first picture."""
        return self.pictures[0]

    @property
    def pictures(self):
        documents = [json.loads(each["data-cells"]) for _, each in self.elements if "data-cells" in each]
        rows = [[[data["known"][place] for place in row] for row in data["words"]] for data in documents]
        return [dict(zip(data["names"], row, strict=True)) for data, row in zip(documents, rows, strict=True)]


def run_folder(folder, *, prompt=None, compare=True, plan=PLAN):
    settings = runs.Settings((prompt,) * 3 if prompt else (3, 1, 4), GRID.num_steps, 1.5, 7, 4)
    pictures = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    made = runs.Run(pictures, 2.0, None)
    bare = runs.Run((pictures + 0.02).clamp(max=1), 3.0, None) if compare else None
    runs.write(folder, made, settings, model="digits", plan=plan, uncached=bare, command="forecache sample --seed 7")
    return folder / "run.json"


def comparison(names=("no cache", "fora-50", "ours: goc-50", "peer: x"), **more):
    rows = [
        {
            "name": name,
            "method": f"m({name})",
            "picture": "#.#~+o",
            "macs_ratio": 1.0 + place,
            "time_ratio": {"median": 1.0 + 0.5 * place, "low": 1, "high": 2, "count": 3},
            "cache_bytes": 2**20 * place,
            **more,
        }
        for place, name in enumerate(names)
    ]
    settings = {"command": "forecache bench --model tiny", "steps": 6}
    return {"settings": settings, "model": {"name": "tiny"}, "environment": environment(), "rows": rows}


def written(path, document):
    path.write_text(json.dumps(document))
    return path


def samples_folder(folder):
    folder.mkdir()
    images = np.arange(5 * 27, dtype=np.uint8).reshape(5, 3, 3, 3)
    samples_file.write(folder / "samples.npz", 5, [images], np.arange(5))
    settings = shard_file.Settings("digits", {}, "s", "float32", {}, 4, 1.5, 7, "c", 5, 4, None)
    record = {
        "run": settings.run,
        "settings": vars(settings),
        "sha256": "a" * 64,
        "seconds": 3.5,
        "made_on": {"cpu": 2},
    }
    return written(folder / "run.json", record)


def plan_file(path):
    PLAN.save(path)
    return path


def statistics_file(path):
    measured().save(path)
    return path


def made(make, path):
    make(path)
    return path


def tuning_file(path):
    """Three trials of a tuning, one of them on the noise that only judges."""
    settings = {"model": "Small", "fingerprint": "abc:def", "scheduler": "{}", "num_steps": 4, "conditions": [1, 2]}
    reuse = ForecastSpec.parse("reuse")
    made = [
        *(trials.Trial(pattern, reuse, psnr, own=psnr) for pattern, psnr in (("#..#", 31.0), ("#.#.", 33.5))),
        trials.Trial("#.#.", reuse, 30.0, 1, 30.0),
    ]
    trials.write(path, settings, {trial.key: trial for trial in made})


def methods_folder(folder):
    """Two columns of two images, and a plan with the errors of its estimates; the images of the second are lighter."""
    digits = load_digits()
    request = Request.of(("fora",), (), 4)
    rounds = Rounds(digits, request.columns(digits), runs.Settings((3, 1), 4, 1.5, 0, 2), (7,), folder)
    turns = rounds.run(1)
    sites = ["blocks.0.attn", "blocks.0.mlp"]
    errors = {"fora": {"sites": sites, "relative_l2": [[0.0, 0.25, 0.0, None], [0.0, 0.125, 0.0, 0.5]]}}
    judges = quality.Judges(("psnr", "ssim"), notes=("LPIPS is left out: it is not here.",))
    command = "forecache compare-methods --method fora"
    document = result.document(rounds, judges, turns, model="digits", command=command, errors=errors)
    return written(folder / "comparison.json", document)


MAKE = {
    "methods": lambda folder: methods_folder(folder / "methods"),
    "run": lambda folder: run_folder(folder / "run"),
    "samples": lambda folder: samples_folder(folder / "many"),
    "comparison": lambda folder: written(folder / "timing.json", comparison()),
    "search": lambda folder: made(search_file, folder / "search.json"),
    "tuning": lambda folder: made(tuning_file, folder / "tune.json"),
    "evaluation": lambda folder: made(figures_file, folder / "fid.json"),
    "plan": lambda folder: plan_file(folder / "plan.json"),
    "statistics": lambda folder: statistics_file(folder / "statistics.safetensors"),
}
BY_KIND = pytest.mark.parametrize("kind", MAKE)


def reported(source, **options):
    """The data and the page."""
    out = source.parent / "report.html"
    found = html_module.write(source, out, **options)
    return found, Page(out.read_text(encoding="utf-8")), out


# ---- every kind -----------------------------------------------------------------------------------------------------


def test_there_is_a_file_of_every_kind_here():
    assert set(MAKE) == {*html_module.KINDS, "statistics"}


@BY_KIND
def test_a_report_is_one_well_formed_file_that_fetches_nothing(tmp_path, kind):
    found, page, out = reported(MAKE[kind](tmp_path), command="forecache report x")
    text = out.read_text(encoding="utf-8")
    assert found.kind == kind
    assert [name for name, _ in page.elements].count("script") == 1
    fetching = {"src", "href", "srcset", "data", "action", "poster", "xlink:href"}
    for name, attributes in page.elements:
        for key, value in attributes.items():
            is_picture = re.match(r"data:image/(png|jpeg);base64,", value or "")
            assert key not in fetching or is_picture, (name, key)
    assert not page.all("link")
    assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttp", text)
    policy = next(each["content"] for each in page.all("meta") if each.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "'unsafe-inline'" not in policy.partition("script-src")[2]
    assert all(each.get("alt") for each in page.all("img"))
    assert all(each.get("aria-label") for each in page.all("input"))
    assert "forecache report x" in page.words("code")
    assert page.words("h1") == [found.title]


@BY_KIND
def test_a_report_says_where_its_result_comes_from(tmp_path, kind):
    _, page, _ = reported(MAKE[kind](tmp_path))
    assert "Provenance" in page.words("h2")
    commands = {"run": "forecache sample --seed 7", "comparison": "forecache bench --model tiny"}
    assert commands.get(kind, "") in page.words("pre") or kind not in commands
    if kind in ("run", "comparison"):
        assert torch.__version__ in page.words("dd")


def test_every_cell_says_what_it_does(tmp_path):
    """By hand: eta 1.2, so 2.2 of the last feature less 1.2 of what was given out before, reused features included."""
    _, page, _ = reported(MAKE["run"](tmp_path))
    assert set(page.cells) == {site.name for site in GRID.sites}
    assert page.cells["blocks.1.mlp"] == [
        "step 0: computed",
        "step 1: reused: step 0",
        "step 2: computed",
        "step 3: forecast: 2.2 x step 2 - 1.2 x step 0",
        "step 4: computed",
        "step 5: forecast: 2.2 x step 4 - 1.2 x step 3",
    ]
    drawn = sum(float(each["width"]) for each in page.all("rect", "cell"))
    assert drawn == GRID.num_steps * len(GRID.sites)
    computed = sum(float(each["width"]) for each in page.all("rect", "cell computed"))
    assert computed == PLAN.computed_share * drawn


def test_corrected_and_partial_cells_are_told(tmp_path):
    fc.eoc(fc.fora(2), measured(), theta=0.5, judge="all").plan(GRID).save(tmp_path / "eoc.json")
    _, page, _ = reported(tmp_path / "eoc.json")
    assert any("corrected by blocks.0.attn/1/gain" in word for word in page.cells["blocks.0.attn"])
    fc.toca(fc.fora(3), 0.25, "attn_norm").plan(GRID).save(tmp_path / "partial.json")
    _, page, _ = reported(tmp_path / "partial.json")
    assert any("25% of the tokens computed, by attn_norm of" in word for row in page.cells.values() for word in row)


def test_a_very_large_plan_is_drawn_by_lines_that_are_equal(tmp_path):
    sites = tuple(fc.parts.Site(f"blocks.{i}.mlp", i, "mlp") for i in range(400))
    fc.fora(2).plan(fc.Grid(200, sites)).save(tmp_path / "large.json")
    _, page, _ = reported(tmp_path / "large.json")
    assert list(page.cells) == ["blocks.0.mlp and 399 more"]


def test_images_stand_beside_the_uncached_ones(tmp_path):
    source = MAKE["run"](tmp_path)
    found, page, _ = reported(source)
    record = json.loads(source.read_text())
    assert [each.psnr for each in found.images] == [each["psnr"] for each in record["images"]]
    assert len(page.all("img", "without")) == len(page.all("img", "with ")) + 3 == 3
    assert len(page.all("input", "slider")) == 4
    shown = np.asarray(Image.open(source.parent / "00000.png"))
    for image in found.images[:1]:
        (source.parent / "x.png").write_bytes(image.png)
        (source.parent / "y.png").write_bytes(image.uncached)
        assert np.array_equal(np.asarray(Image.open(source.parent / "x.png")), shown)
        lighter = np.asarray(Image.open(source.parent / "y.png")).astype(int) - shown
        assert 4 <= np.median(lighter) <= 6  # 0.02 of 255


def test_methods_stand_side_by_side_with_their_differences(tmp_path):
    """By hand: the difference of the files, times eight."""
    source = MAKE["methods"](tmp_path)
    found, page, out = reported(source)
    assert [strip.name for strip in found.gallery.strips] == ["class 3, seed 7", "class 1, seed 7"]
    assert len(page.all("img")) == 2 * 3
    folder = source.parent / "columns"
    bare, fora = (
        np.asarray(Image.open(folder / name / "seed-7/00001.png")).astype(int) for name in ("no-cache", "fora")
    )
    tile = found.gallery.strips[1].tiles[1]
    (tmp_path / "d.png").write_bytes(tile.difference.data)
    drawn = np.asarray(Image.open(tmp_path / "d.png"))
    assert np.array_equal(drawn[..., 0], np.minimum(8 * np.abs(fora - bare), 255))
    assert "differences to no cache, times 8" in page.words("label")
    entry = json.loads(source.read_text())["columns"][1]["images"][1]["quality"]
    assert tile.caption == f"{entry['psnr']:.1f} dB, SSIM {entry['ssim']:.3f}"
    assert [row.more["calls"] for row in found.rows] == ["4 of 4", "2 of 4"]
    assert {"LPIPS is left out: it is not here.", found.notes[-1]} <= set(page.words("p"))
    assert "1 round of a batch of 2" in found.notes[-1]
    assert page.pictures[-1] == {
        "blocks.0.attn": ["step 0: computed", "step 1: error of 25.00%", "step 2: computed",
                          "step 3: its error is not known"],
        "blocks.0.mlp": ["step 0: computed", "step 1: error of 12.50%", "step 2: computed", "step 3: error of 50.00%"],
    }  # fmt: skip
    assert out.stat().st_size < 100_000


@pytest.mark.parametrize("file", ["../x.png", "/etc/passwd", 7, "seed-7/nothing.png"])
def test_a_comparison_shows_images_of_its_own_folder_only(tmp_path, file):
    source = MAKE["methods"](tmp_path)
    document = json.loads(source.read_text())
    document["columns"][1]["images"][0]["file"] = file
    source.write_text(json.dumps(document))
    with pytest.raises(fc.errors.ForecacheError):
        reported(source)


def test_videos_are_played_together(tmp_path):
    """The frames of a video are the cells of one picture, and the run without a cache has its own."""
    frames = torch.rand(2, 5, 3, 16, 18, generator=torch.Generator().manual_seed(0))
    run, other = runs.Run(frames, 1.0, None), runs.Run((frames + 0.1).clamp(max=1), 1.0, None)
    settings = runs.Settings(("a cat", "a dog"), GRID.num_steps, 1.5, 7, 4)
    runs.write(tmp_path, run, settings, model="wan", plan=PLAN, uncached=other)
    found, page, _ = reported(tmp_path / "run.json")
    film = found.images[1].film
    assert (film.frames, film.columns, film.size) == (5, 3, (18, 16))
    (tmp_path / "sheet.png").write_bytes(film.data)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    expected = (frames[1, 4] * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(sheet[16:32, 18:36], expected)
    assert len(page.all("div", "film")) == 4
    assert len(page.all("div", "player")) == 1
    assert page.all("input", "frame")[0]["max"] == "4"


def test_a_long_or_large_video_is_thinned_and_made_smaller_for_the_page():
    assert films.chosen_frames(5) == [0, 1, 2, 3, 4]
    chosen = films.chosen_frames(121)
    assert (chosen[0], chosen[-1], len(set(chosen))) == (0, 120, films.MAX_FRAMES)
    sheet = films.sheet([np.zeros((480, 832, 3), np.uint8)] * 4)
    assert (sheet.size, sheet.kind) == ((320, 185), "image/jpeg")


def test_a_tuning_has_its_pareto_front(tmp_path):
    """Of 2 and 3 computed steps, the best of each; the third one is beaten."""
    path = tmp_path / "tune.json"
    reuse = ForecastSpec.parse("reuse")
    made = [
        trials.Trial(*row, 0, row[-1]) for row in (("#..#", reuse, 31.0), ("#.#.", reuse, 33.5), ("##.#", reuse, 36.0))
    ]
    settings = {"model": "Small", "fingerprint": "abc:def", "scheduler": "{}", "num_steps": 4, "conditions": [1, 2]}
    trials.write(path, settings, {trial.key: trial for trial in made})
    _, page, _ = reported(path)
    assert "Pareto front" in page.words("h2")
    assert len(page.all("g", "dot f1")) == 2
    assert len(page.all("g", "dot f0")) == 1


def test_a_run_without_timed_rounds_shows_no_speed(tmp_path):
    found, _, _ = reported(MAKE["run"](tmp_path))
    assert "less time" not in found.costs
    assert found.costs["duration of the run, first calls and all"] == "2.00 s"
    turns = timing.Turns(3, {"no cache": (3.0, 3.0, 6.0), "with the plan": (1.0, 2.0, 2.0)})
    pictures = torch.rand(3, 1, 8, 8)
    run = runs.Run(pictures, 2.0, None)
    settings = runs.Settings((3, 1, 4), GRID.num_steps, 1.5, 7, 4)
    runs.write(tmp_path, run, settings, model="m", plan=PLAN, uncached=run, timing=turns)
    found, _, _ = reported(tmp_path / "run.json")
    assert found.costs["less time"] == "3.00x"
    assert found.costs["time, median of 3 rounds in turn"] == "2.00 s"


def test_without_a_comparison_there_is_no_slider(tmp_path):
    _, page, _ = reported(run_folder(tmp_path / "run", compare=False, plan=None))
    assert len(page.all("img")) == 3
    assert not page.all("input")
    assert "Schedule" not in page.words("h2")


def test_a_comparison_is_drawn_by_what_its_rows_have(tmp_path):
    _, page, _ = reported(written(tmp_path / "a.json", comparison()))
    assert page.words("h3")[0] == "Less time against fewer MACs; on the line, time falls as MACs do"
    assert len(page.all("g", "disc")) == 4
    _, page, _ = reported(written(tmp_path / "b.json", comparison(psnr=30.0, frechet=7.0)))
    assert page.words("h3")[:2] == [
        "PSNR, dB against speed; to the right and up is better",
        "Fréchet distance against speed; to the right and down is better",
    ]
    assert "peer: x: times less time 2.5, PSNR, dB 30" in [each.get("aria-label") for each in page.all("g")]
    assert "2.50x" in page.words("td")


def test_a_reproduction_is_a_comparison_by_its_figures(tmp_path):
    figures = {"fid": {"metric": "fid", "value": 10.5, "count": 9, "seed": 0}, "nonsense": {"value": 1}}
    document = comparison(figures=figures) | {"table": {"name": "goc-table-3"}, "protocol": {"steps": 20}}
    _, page, _ = reported(written(tmp_path / "r.json", document))
    assert "FID against speed; to the right and down is better" in page.words("h3")
    assert "10.5" in page.words("td")


def test_a_reproduction_names_what_it_was_measured_on_and_has_the_published_figures(tmp_path):
    document = comparison(published={"fid": "6.857", "speed": "2.0000"}, realised=0.97)
    document |= {"on": "digits", "table": {"name": "goc-table-3", "model": "facebook/DiT-XL-2-256"}, "model": {}}
    _, page, _ = reported(written(tmp_path / "r.json", document))
    assert page.words("h1")[0].startswith("digits: ")
    head = page.words("th")
    assert {"FID, published", "speed, published", "realised"} <= set(head)
    assert {"6.857", "2.0000", "97%"} <= set(page.words("td"))
    assert head.index("schedule") > head.index("FID, published"), "a narrow screen shows the figures first"


@pytest.mark.parametrize(("title", "values"), [("class accuracy", (1.0, 0.9)), ("Recall", (1.0, 0.5))])
def test_the_axis_of_a_share_ends_at_one(title, values):
    points = [charts.Point("p", x, value, "a", 0) for x, value in zip((10, 20), values, strict=True)]
    drawn = Page(str(charts.scatter(points, "l", "x", title, most=sections._most(title))))
    ticks = [text for text in drawn.words("text") if re.fullmatch(r"[\d.]+", text) and len(text) > 1]
    assert max(float(tick) for tick in ticks if float(tick) < 9) <= 1  # the others are of the axis across
    without = Page(str(charts.scatter(points, "l", "x", title)))
    assert without.all("circle") != drawn.all("circle")
    assert sections._most("PSNR, dB") == math.inf


def test_points_keep_the_numbers_of_their_rows():
    points = [charts.Point("p", 1, 1, "a", 0, 2), charts.Point("q", 2, 2, "a", 0, 4)]
    page = Page(str(charts.scatter(points, "l", "x", "y")))
    assert [text for text in page.words("i") if text] == ["2", "4"]


def test_a_search_of_one_budget_is_drawn_by_rank(tmp_path):
    rows = [{"name": str(rank), "picture": "#.", "macs_ratio": 2.0, "psnr": 40.0 - rank} for rank in range(1, 4)]
    document = comparison() | {"rows": rows}
    _, page, _ = reported(written(tmp_path / "s.json", document))
    assert "PSNR, dB by rank; up is better" in page.words("h3")


def test_a_scheduler_is_a_sentence_also_with_infinities():
    from diffusers import DPMSolverMultistepScheduler

    from forecache.models.fingerprint import describe_scheduler
    from forecache.report.html.kinds import _settings_of

    described = describe_scheduler(DPMSolverMultistepScheduler())
    assert "Infinity" in described
    facts = _settings_of(described)
    assert facts["in short"] == (
        "DPMSolverMultistepScheduler, dpmsolver++, of order 2, prediction of epsilon, linear betas, "
        "linspace timesteps, 1000 training steps"
    )
    assert "described as" not in facts
    assert all("{" not in value for value in facts.values())
    assert _settings_of("no JSON") == {"described as": "no JSON"}


def test_the_best_of_a_group_are_joined():
    """Of four points one is beaten in both: the line goes through the other three, from left to right."""
    points = [charts.Point(name, x, y, "a", 0) for name, x, y in [("p", 3, 1), ("q", 1, 3), ("r", 2, 2), ("s", 1, 1)]]
    drawn = Page(str(charts.scatter(points, "l", "x", "y"))).all("path")[0]["d"]
    assert [float(pair.split(",")[0]) for pair in re.findall(r"[ML]([^ ML]+)", drawn)] == sorted(
        {float(x) for x in re.findall(r"[ML]([\d.]+),", drawn)}
    )
    assert drawn.count("L") == 2
    down = Page(str(charts.scatter(points, "l", "x", "y", sign=-1))).all("path")[0]["d"]
    assert down.count("L") <= 1


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 900), (1e-9, 2e-9), (41.2, 41.3), (-1e15, 1e15)])
def test_ticks_are_few_round_and_inside(low, high):
    ticks = charts._ticks(low, high)
    assert 3 <= len(ticks) <= 11
    assert all(low <= tick <= high for tick in ticks)
    assert all(float(f"{tick:.6g}") == pytest.approx(tick) for tick in ticks)


def test_statistics_can_be_drawn_beside_a_run(tmp_path):
    stats = statistics_file(tmp_path / "s.safetensors")
    _, page, _ = reported(MAKE["run"](tmp_path), statistics=stats)
    assert {"Schedule", "How features change"} <= set(page.words("h2"))
    expected = measured().changes[2, 0, 0].item()
    assert page.pictures[1]["blocks.0.attn"][2] == f"step 2: changes by {expected:.2%}"


# ---- files that are none, or mean harm ------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ['{"hello": 1}', "[]", "{", '{"rows": NaN}', '{"format": "forecache-shards"}'])
def test_what_is_no_result_is_refused_with_the_kinds_that_there_are(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(fc.errors.InputError, match=r"x\.json .*statistics .*bench\.json, demo\.json") as caught:
        html_module.write(tmp_path / "x.json", tmp_path / "out.html")
    assert all(name in str(caught.value) for name in html_module.KINDS)
    assert not (tmp_path / "out.html").exists()
    with pytest.raises(fc.errors.InputError, match=r"no run\.json, bench\.json, demo\.json"):
        html_module.write(tmp_path, tmp_path / "out.html")


def poisoned(value):
    """The same document with every text, and every name that is no key of ours, followed by markup."""
    if isinstance(value, dict):
        return {key: poisoned(each) for key, each in value.items()} | {EVIL: EVIL}
    if isinstance(value, list):
        return [poisoned(each) for each in value]
    return value + EVIL if isinstance(value, str) else value


@pytest.mark.parametrize("kind", ["run", "samples", "comparison", "evaluation"])
def test_no_text_of_a_file_becomes_an_element(tmp_path, kind):
    source = MAKE[kind](tmp_path)
    document = json.loads(source.read_text())
    keep = {each["file"] for each in document.get("images", ())}
    document = poisoned(document)
    for entry in document.get("images", ()):
        entry["file"] = next(name for name in keep if entry["file"].startswith(name))
        entry["prompt"] = EVIL
    source.write_text(json.dumps(document))
    _, page, out = reported(source, command=EVIL)
    assert [name for name, _ in page.elements].count("script") == 1
    assert "onerror" not in {key for _, each in page.elements for key in each}
    assert EVIL not in out.read_text(encoding="utf-8")
    assert any(EVIL in text for _, text in page.texts), "it is there, as text"


def test_names_of_sites_and_provenance_are_text(tmp_path):
    grid = fc.Grid(4, (fc.parts.Site(EVIL, 0, EVIL), fc.parts.Site("b", 1, "mlp")), EVIL)
    plan = fc.fora(2).plan(grid)
    fc.Plan(grid, plan.rows, {"method": EVIL, EVIL: EVIL}).save(tmp_path / "plan.json")
    _, page, _ = reported(tmp_path / "plan.json")
    assert EVIL in page.cells
    assert not page.all("b")
    assert page.words("h1") == [EVIL]


@pytest.mark.parametrize("value", [None, 3, "x", [], {}, [[1]], {"a": [1]}, 1e300, -1, True])
@pytest.mark.parametrize(
    "key", ["settings", "model", "environment", "rows", "plan", "images", "cost_per_batch", "figures"]
)
def test_values_of_another_kind_are_left_out_or_refused(tmp_path, key, value):
    for kind in ("run", "comparison", "evaluation"):
        folder = tmp_path / kind
        folder.mkdir()
        source = MAKE[kind](folder)
        source.write_text(json.dumps(json.loads(source.read_text()) | {key: value}))
        refusal = ""
        try:
            reported(source)
        except fc.ForecacheError as error:
            refusal = str(error)
        assert not refusal or str(folder) in refusal
    rows = comparison()
    for row in rows["rows"]:
        row |= dict.fromkeys(("name", "picture", "macs_ratio", "time_ratio", "psnr", "cache_bytes"), value)
    reported(written(tmp_path / "rows.json", rows))


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/passwd", "a/../../x.png", "..", "plan.json", 3, None, "x\\y.png"]
)
def test_a_run_shows_no_file_but_pngs_beside_it(tmp_path, name):
    source = MAKE["run"](tmp_path)
    (tmp_path / "secret.png").write_bytes((source.parent / "00000.png").read_bytes())
    document = json.loads(source.read_text())
    document["images"][1]["file"] = name
    source.write_text(json.dumps(document))
    with pytest.raises(fc.errors.InputError, match="must name PNGs in its own folder"):
        reported(source)


def test_a_file_that_only_says_it_is_a_png_is_not_shown(tmp_path):
    source = MAKE["run"](tmp_path)
    (source.parent / "00001.png").write_text("<svg onload=alert(1)>")
    with pytest.raises(fc.errors.InputError, match=r"00001\.png is not a PNG"):
        reported(source)


def test_elements_escape_what_is_not_html():
    assert markup.tag("p", "<b>", markup.tag("i", "&"), title='"') == '<p title="&quot;">&lt;b&gt;<i>&amp;</i></p>'
    assert markup.join("<", markup.Html("<br>")) == "&lt;<br>"
    assert data.text("x" * 10**6).endswith("x…")
    assert data.number(True) is data.number(10**400) is data.number("1") is None


# ---- the command ----------------------------------------------------------------------------------------------------


def test_the_command_writes_beside_the_file_and_says_so(forecache, tmp_path):
    source = MAKE["run"](tmp_path)
    code, out, err = forecache("report", source.parent)
    assert (code, err) == (0, "")
    assert re.search(r"Wrote .*report\.html \(\d+ KiB\): digits: goc\(fora\(interval=2\), eta=1\.2\)\.", out)
    page = (source.parent / "report.html").read_text(encoding="utf-8")
    assert html.escape(f"forecache report {source.parent}") in page
    code, _, err = forecache("report", tmp_path / "nowhere.json")
    assert code == 1
    assert "nowhere.json cannot be read" in err


# ---- a browser ------------------------------------------------------------------------------------------------------

HARNESS = """<!doctype html><iframe id="f" src="/report.html" width="390" height="800"></iframe><script>
const f = document.getElementById("f"), out = {};
f.onload = () => {
  const w = f.contentWindow, d = w.document, one = (s) => d.querySelector(s);
  const wide = d.documentElement;
  out.width = [wide.scrollWidth, wide.clientWidth];
  const area = one(".cells"), svg = area.querySelector("svg"), said = area.closest("figure").querySelector(".said");
  const box = svg.getBoundingClientRect();
  const event = (x, y) => new w.PointerEvent("pointermove", {bubbles: true,
    clientX: box.left + box.width * x, clientY: box.top + box.height * y});
  svg.dispatchEvent(event(3.5 / 6, 0.1)); out.hover = said.textContent;
  area.dispatchEvent(new w.KeyboardEvent("keydown", {key: "ArrowRight", bubbles: true})); out.right = said.textContent;
  area.dispatchEvent(new w.KeyboardEvent("keydown", {key: "ArrowDown", bubbles: true})); out.down = said.textContent;
  area.dispatchEvent(new w.KeyboardEvent("keydown", {key: "Home", bubbles: true})); out.home = said.textContent;
  const sliders = [...d.querySelectorAll(".slider:not(.all)")], all = one(".slider.all");
  const shown = (place) => w.getComputedStyle(d.querySelectorAll(".without")[place]).clipPath;
  out.before = shown(0);
  const slide = (slider, value) => { slider.value = value; slider.dispatchEvent(new w.Event("input")); };
  slide(sliders[0], 20); out.one = [shown(0), shown(1)];
  slide(all, 80); out.all = [shown(0), shown(1), sliders[1].value];
  const page = () => w.getComputedStyle(d.body).backgroundColor;
  out.light = page(); one("#theme").click(); out.dark = page(); one("#theme").click(); out.again = page();
  d.querySelectorAll("details").forEach((each) => { each.open = true; });
  const reach = [...d.querySelectorAll("button, input, [tabindex='0'], summary")];
  out.reach = reach.length && reach.every((each) => { each.focus(); return d.activeElement === each; });
  const probe = d.createElement("script"); probe.textContent = "window.injected = 1"; d.body.append(probe);
  out.injected = w.injected === 1;
  const pre = document.createElement("pre");
  pre.id = "out"; pre.textContent = JSON.stringify(out); document.body.append(pre);
};
</script>"""


@pytest.fixture
def serving(tmp_path):
    """A folder on the loopback: pages of one origin may look into each other."""
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed here")
def test_in_a_browser_hover_keys_sliders_and_themes_work(tmp_path, serving):
    source = MAKE["run"](tmp_path)
    html_module.write(source, tmp_path / "report.html")
    (tmp_path / "harness.html").write_text(HARNESS)
    dom, console = browsed(f"{serving}/harness.html")
    out = json.loads(html.unescape(re.search(r'<pre id="out">(.*?)</pre>', dom, re.DOTALL)[1]))
    assert out["width"][0] <= out["width"][1], "a phone does not scroll sideways"
    assert 360 <= out["width"][1] <= 390
    assert out["hover"] == "blocks.0.attn, " + Page((tmp_path / "report.html").read_text()).cells["blocks.0.attn"][3]
    assert out["right"].startswith("blocks.0.attn, step 4: computed")
    assert out["down"].startswith("blocks.0.mlp, step 4")
    assert out["home"].startswith("blocks.0.mlp, step 0")
    assert out["before"] == "inset(0px 50% 0px 0px)"
    assert out["one"] == ["inset(0px 80% 0px 0px)", "inset(0px 50% 0px 0px)"]
    assert out["all"] == ["inset(0px 20% 0px 0px)", "inset(0px 20% 0px 0px)", "80"]
    assert out["light"] == out["again"] != out["dark"]
    assert out["reach"] is True
    assert out["injected"] is False, "the page's policy runs no script but its own"
    assert len(console) == 1, console  # the one that the policy stopped
    assert "Content Security Policy" in console[0]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed here")
def test_in_a_browser_no_kind_of_report_writes_to_the_console(tmp_path):
    for kind, make in MAKE.items():
        folder = tmp_path / kind
        folder.mkdir()
        source = make(folder)
        html_module.write(source, folder / "report.html")
        dom, console = browsed(Path(folder / "report.html").as_uri())
        assert "Provenance" in dom
        assert not console


GALLERY = """<iframe id="f" src="report.html" style="width:390px;height:800px"></iframe><pre id="out"></pre><script>
onload = () => setTimeout(async () => {
  const page = f.contentDocument, view = f.contentWindow, out = {};
  const shown = (looks) => view.getComputedStyle(page.querySelector(looks)).display;
  const wait = (time) => new Promise((done) => setTimeout(done, time));
  const films = [...page.querySelectorAll(".film")];
  const frames = () => films.map((film) => film.style.getPropertyValue("--x") + film.style.getPropertyValue("--y"));
  out.width = [page.documentElement.scrollWidth, view.innerWidth];
  out.images = [shown(".film.image"), shown(".film.difference")];
  page.querySelector("[value=differences]").click();
  out.differences = [shown(".film.image"), shown(".film.difference")];
  const slider = page.querySelector(".frame");
  slider.value = 4;
  slider.dispatchEvent(new Event("input"));
  out.frames = frames();
  out.at = page.querySelector(".at").textContent;
  page.querySelector(".play").click();
  await wait(200);
  out.played = page.querySelector(".at").textContent;
  page.querySelector(".play").click();
  document.getElementById("out").textContent = JSON.stringify(out);
}, 200);
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed here")
def test_in_a_browser_all_videos_are_played_together(tmp_path, serving):
    """The fifth of five frames is the second of the second row of a sheet with three columns."""
    videos = torch.rand(2, 5, 3, 16, 18, generator=torch.Generator().manual_seed(0))
    sheets = [films.sheet(films_of(video)) for video in videos]
    tiles = (data.Tile("no cache", sheets[0], None, ""), data.Tile("fora", sheets[1], sheets[0], "30.0 dB"))
    found = data.ReportData("methods", "videos", gallery=data.Gallery((data.Strip("a cat", tiles),), 8))
    (tmp_path / "report.html").write_text(html_module.page(found), encoding="utf-8")
    (tmp_path / "gallery.html").write_text(GALLERY)
    dom, console = browsed(f"{serving}/gallery.html")
    out = json.loads(html.unescape(re.search(r'<pre id="out">(.*?)</pre>', dom, re.DOTALL)[1]))
    assert not console
    assert out["width"][0] <= out["width"][1], "a phone does not scroll sideways"
    assert (out["images"], out["differences"]) == (["block", "none"], ["none", "block"])
    assert (out["frames"], out["at"]) == (["11"] * 3, "5 of 5")
    assert out["played"] != "5 of 5"


def films_of(video):
    return [(frame * 255).byte().permute(1, 2, 0).numpy() for frame in video]


def test_a_tuning_is_reported_from_its_folder(tmp_path):
    tuning_file(tmp_path / "tune.json")
    data, *_ = reported(tmp_path / "tune.json")
    assert data == html_module.read(tmp_path)
    assert (data.kind, data.title) == ("tuning", "Small: 2 schedules tried")
    assert [row.picture for row in data.rows] == ["#.#.", "#..#"]  # the better one first; judging noise is left out
    assert data.rows[0].quality == {"PSNR, dB": 33.5}
