"""The comparison page in a browser: it loads, compares, cancels and gives the plan, for two people at once."""

import contextlib
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import forecache as fc
from forecache.compare import page as pages
from forecache.compare.comparer import Comparer, Comparison
from forecache.compare.selection import Selection
from forecache.sampling import runs

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benchmarks"))
import browser

needs_browser = pytest.mark.skipif(browser.PATH is None, reason="no Chromium or Chrome is installed here")


@pytest.fixture(scope="module")
def comparer():
    return Comparer()


@pytest.fixture(scope="module")
def address(comparer, tmp_path_factory):
    shown, where = pages.serve(comparer, tmp_path_factory.mktemp("plans"), "127.0.0.1", None)
    yield where
    shown.close(verbose=False)


@pytest.fixture(scope="module")
def chromium():
    if browser.PATH is None:
        pytest.skip("no Chromium or Chrome is installed here")
    with browser.Browser() as opened:
        yield opened


def fetched(url):
    with urllib.request.urlopen(url, timeout=60) as answer:
        return answer.read()


def asked(page, images, steps=4, seed=7):
    """Fill in what is asked for, and press Compare."""
    page.type("#images textarea, #images input", images)
    page.type("#steps input", str(steps))
    page.type("#seed input", str(seed))
    page.press("#compare")


def picked(page, name, text):
    """Pick an entry of a dropdown, as somebody with a mouse does."""
    page.wait(f"document.querySelector('#{name} input')")
    page.run(f"document.querySelector('#{name} input').focus()")
    entry = f"[...document.querySelectorAll('ul[role=listbox] li')].find((e) => e.innerText.includes({text!r}))"
    page.wait(entry)
    page.run(f"{entry}.dispatchEvent(new MouseEvent('mousedown', {{bubbles: true}}))")
    page.wait(f"document.querySelector('#{name} input').value.includes({text!r})")


def visible(page, name):
    return page.run(f"(() => {{ const e = document.querySelector('#{name}'); return !!e && e.offsetHeight > 0; }})()")


def pixels(page, name):
    """The image that the page shows, (H, W)."""
    image = Image.open(io.BytesIO(fetched(page.run(f"document.querySelector('#{name} img').src"))))
    found = np.asarray(image.convert("RGB"))
    assert (found[..., 0] == found[..., 1]).all()
    return found[..., 0]


def expected(images):
    """What it has to be: 8 bits, side by side, in squares."""
    assert len(images) <= 2
    flat = np.concatenate([(image[0] * 255).round().byte().numpy() for image in images], 1)
    times = 480 // flat.shape[1]
    return np.kron(flat, np.ones((times, times), np.uint8))


def has_result(page, method):
    page.wait(f"document.querySelector('#said').innerText.includes({method!r})", 120)
    page.wait("document.querySelector('#without img')?.complete && document.querySelector('#figures table')")


@needs_browser
def test_a_comparison_from_beginning_to_end(chromium, comparer, address):
    page = chromium.page(address)
    asked(page, "3,1")
    has_result(page, "goc(fora(interval=2), eta=0.8)")
    comparison = comparer.compare(Selection(images="3,1", steps=4, seed=7))
    assert (pixels(page, "without") == expected(comparison.uncached.images)).all()
    assert (pixels(page, "with") == expected(comparison.cached.images)).all()
    assert (pixels(page, "difference") == expected(comparison.difference)).all()
    figures = page.run("document.querySelector('#figures').innerText")
    cost = comparison.plan.cost(comparer.source("digits").target, batch_size=2)
    assert f"{cost.speedup:.2f}x fewer" in figures
    assert f"{sum(comparison.psnr) / 2:.1f} dB" in figures
    assert re.search(r"time\s+\d+\.\d\d s\s+\d+\.\d\d s\s+\d+\.\d\dx as fast", figures)
    assert comparison.command in page.run(
        "document.querySelector('#command .cm-content').innerText.replaceAll('\\n', ' ')"
    )
    assert comparison.plan.show() == page.run("document.querySelector('#cells pre').textContent")
    assert not visible(page, "constants")
    assert page.console == []
    assert page.run("document.title") == "forecache compare"


@needs_browser
def test_the_plan_can_be_downloaded(chromium, comparer, address, tmp_path):
    page = chromium.page(address)
    picked(page, "correction", "EOC")
    page.wait("document.querySelector('#form')?.offsetHeight > 0")
    assert not visible(page, "eta")
    asked(page, "3", steps=20)
    has_result(page, "eoc(")
    page.downloads(tmp_path)
    for key, name in {"plan": "plan.json", "constants": "plan.constants.safetensors"}.items():
        page.press(f"#{key}")
        until = time.monotonic() + 60
        while not (tmp_path / name).exists():
            assert time.monotonic() < until
            time.sleep(0.1)
    found = fc.Plan.load(tmp_path / "plan.json")
    assert found == comparer.compare(Selection(images="3", correction="eoc", seed=7)).plan
    assert found.constants
    assert page.console == []


@needs_browser
def test_another_model_brings_its_own_choices(chromium, comparer, address):
    page = chromium.page(address)
    page.wait("document.querySelector('#model')")
    picked(page, "base", "router")
    page.wait("document.querySelector('#router')?.offsetHeight > 0")
    assert not visible(page, "interval")
    picked(page, "model", "digits-text")
    page.wait("document.querySelector('#images textarea').value.includes('seven left')")
    page.wait("document.querySelector('#interval')?.offsetHeight > 0")  # back to FORA: no router for this model
    asked(page, "two fives")
    has_result(page, "goc(fora")
    comparison = comparer.compare(Selection(model="digits-text", images="two fives", steps=4, seed=7, guidance=2.0))
    assert (pixels(page, "with") == expected(comparison.cached.images)).all()
    assert page.console == []


@needs_browser
def test_cancelling_stops_at_once_and_leaves_nothing(chromium, comparer, address, monkeypatch):
    calls = []
    transformer = comparer.source("digits").transformer
    hook = transformer.register_forward_hook(lambda *_: calls.append(1))
    page = chromium.page(address)
    asked(page, "3,1,4,1,5,9,2,6", steps=250)
    page.wait("document.querySelector('#said').innerText.includes('/500')")
    page.press("#cancel")
    page.wait("document.querySelector('#said').innerText.trim().startsWith('Cancelled. Results below')")
    until = time.monotonic() + 30
    while any("forward" in vars(module) for module in transformer.modules()) or comparer._requests:
        assert time.monotonic() < until
        time.sleep(0.05)
    counted = len(calls)
    hook.remove()
    assert 0 < counted < 400
    asked(page, "3,1")
    has_result(page, "goc(fora")
    comparison = comparer.compare(Selection(images="3,1", steps=4, seed=7))
    assert (pixels(page, "with") == expected(comparison.cached.images)).all()
    assert len(calls) == counted
    assert page.console == []


def test_a_change_of_any_control_marks_results_that_are_there(comparer, tmp_path):
    page = pages.build(comparer, tmp_path)
    [marks] = [function for function in page.fns.values() if function.fn is pages._marks_as_old]
    controls = {target for target, event in marks.targets if event == "change"}
    compares = next(function for function in page.fns.values() if function.targets[0][1] == "click")
    assert controls == {control._id for control in compares.inputs}
    assert pages.CHANGED in str(pages._marks_as_old("<table>"))
    assert pages.CHANGED not in str(pages._marks_as_old(None))


@needs_browser
def test_results_of_an_earlier_selection_are_marked(chromium, comparer, address):
    page = chromium.page(address)
    page.type("#steps input", "5")  # there is nothing yet that could be old
    asked(page, "3,1")
    has_result(page, "goc(fora")
    page.type("#seed input", "8")
    page.wait("document.querySelector('#said').innerText.trim().startsWith('The selection has changed')")
    asked(page, "3,1", seed=8)
    has_result(page, "goc(fora")
    assert page.console == []


@needs_browser
def test_who_waits_sees_it_and_can_cancel(chromium, comparer, address):
    first, second = chromium.page(address), chromium.page(address)
    asked(first, "3,1,4,1,5,9,2,6", steps=250)
    first.wait("document.querySelector('#said').innerText.includes('/500')")
    asked(second, "3,1")
    second.wait("document.querySelector('#said').innerText.includes('1 before you')")
    second.press("#cancel")
    second.wait("document.querySelector('#said').innerText.trim().startsWith('Cancelled. Results below')")
    assert "/500" in first.run("document.querySelector('#said').innerText")
    first.press("#cancel")
    first.wait("document.querySelector('#said').innerText.trim().startsWith('Cancelled. Results below')")
    assert first.console == second.console == []


@needs_browser
def test_two_people_at_once_get_their_own_images(chromium, comparer, address):
    first, second = chromium.page(address), chromium.page(address)
    picked(second, "correction", "none")
    asked(first, "3,1", steps=12, seed=1)
    asked(second, "8,5", steps=6, seed=2)
    has_result(second, "fora(interval=2)")
    has_result(first, "goc(fora")
    a = comparer.compare(Selection(images="3,1", steps=12, seed=1))
    b = comparer.compare(Selection(images="8,5", steps=6, seed=2, correction="none"))
    for page, comparison in ((first, a), (second, b)):
        assert (pixels(page, "without") == expected(comparison.uncached.images)).all()
        assert (pixels(page, "with") == expected(comparison.cached.images)).all()
        assert page.console == []


@needs_browser
def test_leaving_the_page_ends_what_it_waited_for(chromium, comparer, address):
    page = chromium.page(address)
    asked(page, "3,1,4,1,5,9,2,6", steps=250)
    page.wait("document.querySelector('#said').innerText.includes('/500')")
    page.ask("Page.navigate", url="about:blank")
    until = time.monotonic() + 60
    while comparer._requests:
        assert time.monotonic() < until
        time.sleep(0.1)


@needs_browser
def test_what_cannot_be_made_is_said(chromium, address):
    page = chromium.page(address)
    asked(page, "3,cat")
    page.wait("document.body.innerText.includes(\"digits has no class 'cat'\")")
    assert page.run("document.querySelectorAll('#without img, #with img').length") == 0
    asked(page, "3,1")
    has_result(page, "goc(fora")


@needs_browser
def test_everything_comes_from_this_machine(chromium, address):
    page = chromium.page(address)
    page.wait("document.querySelector('#compare')")
    hosts = {re.match(r"[a-z]+:(//[^/]*)?", url)[0] for url in page.requested}
    assert hosts <= {address.rstrip("/"), "data:", "blob:"}
    with urllib.request.urlopen(address, timeout=60) as answer:
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'self'")
    narrow = chromium.page(address, 390, 800, touch=True)
    narrow.wait("document.querySelector('#compare')")
    assert narrow.run("document.documentElement.scrollWidth") <= 390


def free_port():
    with contextlib.closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_the_command_serves_until_it_is_interrupted(tmp_path):
    port = free_port()
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # not so in a background job
    words = ["compare", "--no-open", "--port", str(port), "--threads", "1"]
    command = [sys.executable, "-c", f"{heard}; from forecache.cli import main; main()", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    assert lines[1] == f"http://127.0.0.1:{port}/\n"
    assert b"forecache compare" in fetched(lines[1].strip())
    os.kill(process.pid, signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert rest.strip() == "Ended."
    assert not list(tmp_path.iterdir())


def test_a_port_that_is_taken_is_said(forecache, address, monkeypatch):
    port = address.rstrip("/").rpartition(":")[2]
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # put back afterwards
    code, _, err = forecache("compare", "--no-open", "--port", port)
    assert code == 1
    assert f"cannot be served at 127.0.0.1, port {port}" in err


def test_the_figures_are_text_and_never_html():
    plan = fc.fora(2).plan(fc.Grid(2, (fc.parts.Site("<b>x", 0, "mlp"),)))
    black, white = (runs.Run(pixels(1, 1, 2, 2), 1.0, None) for pixels in (torch.zeros, torch.ones))
    made = Comparison(Selection(), None, plan, None, black, white, None)
    assert "<b>" not in pages.cells(made.plan)
    assert "&lt;b&gt;x" in pages.cells(made.plan)
    assert "0.0 dB" in pages.table(made)
