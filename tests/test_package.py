"""Wheel and source distribution: what is in them, and that they work where nothing else of ours is."""

import email
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import forecache

ROOT = Path(__file__).parent.parent
BARE = ("torch", "numpy", "safetensors")
MOST = 12 * 2**20
"""Bytes of a file."""
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def run(*command, **how):
    """The output of a command that must succeed."""
    how = {"capture_output": True, "text": True, "timeout": 300, "env": ENVIRONMENT} | how
    done = subprocess.run([*map(str, command)], check=False, **how)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The source distribution, and the wheel that is built from it."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, env=os.environ)
    (source,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return source, wheel


def needs(names):
    """What packages need, themselves included, as it is installed here."""
    found, todo = {}, list(names)
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in found:
            continue
        found[name] = distribution(name)
        required = [Requirement(text) for text in found[name].requires or ()]
        todo += [each.name for each in required if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found.values()


@pytest.fixture(scope="module")
def bare(archives, tmp_path_factory):
    """A Python with the wheel, and of other packages torch, numpy, safetensors and what these need."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    for package in needs(BARE):
        for top in {Path(str(file)).parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(package.locate_file(top))
    options = ["--quiet", "--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check"]
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, archives[1])
    return python


def tracked(*folders):
    """The files of the repository below these folders; its own build rules may leave out none of them."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout")
    return set(run("git", "-C", ROOT, "ls-files", *folders).splitlines())


def test_the_archives_hold_what_they_should_and_no_more(archives):
    source, wheel = archives
    with zipfile.ZipFile(wheel) as file:
        inside = {each.filename: each.file_size for each in file.infolist()}
        (info,) = {name.split("/")[0] for name in inside if ".dist-info/" in name}
        about = email.message_from_bytes(file.read(f"{info}/METADATA"))
    ours = {name for name in inside if not name.startswith(info)}
    assert ours == {name.removeprefix("src/") for name in tracked("src")}
    assert {"forecache/py.typed", "forecache/compare/page.css", "forecache/reproduce/tables/goc-table-3.toml"} <= ours
    assert {f"{info}/licenses/LICENSE", f"{info}/licenses/NOTICE"} <= set(inside)
    assert max(inside.values()) <= MOST
    with tarfile.open(source) as file:
        members = {each.name.split("/", 1)[1]: each.size for each in file.getmembers() if each.isfile()}
    assert tracked("src", "tests", "benchmarks", "examples", "docs", "LICENSE", "NOTICE", "README.md") <= set(members)
    assert set(members) - tracked() <= {"PKG-INFO", ".gitignore"}
    assert max(members.values()) <= MOST
    assert about["Version"] == forecache.__version__
    assert about["Requires-Python"] == ">=3.11"
    assert about["License-Expression"] == "Apache-2.0"
    assert {"all", "cli", "diffusers", "eval", "page", "serve"} <= set(about.get_all("Provides-Extra"))
    always = [Requirement(text) for text in about.get_all("Requires-Dist") if "extra ==" not in text]
    assert {each.name for each in always} == set(BARE)


def test_the_version_stands_in_one_place():
    base = re.match(r"\d+\.\d+\.\d+", forecache.__version__)[0]
    holders = [path for path in (ROOT / "src").rglob("*.py") if f'"{forecache.__version__}"' in path.read_text()]
    assert holders == [ROOT / "src" / "forecache" / "_version.py"]
    assert base not in (ROOT / "pyproject.toml").read_text()
    newest = re.search(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    assert base in newest


ALONE = """
import sys, tempfile
from pathlib import Path
import torch
from torch import nn
import forecache as fc
from forecache import zoo

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = nn.Linear(4, 4)
    def forward(self, x):
        return x + self.mlp(x)

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
    def forward(self, x, timestep):
        for block in self.blocks:
            x = block(x)
        return x

torch.manual_seed(0)
model, x = Model(), torch.ones(1, 2, 4)
plan = fc.goc(fc.fora(2), 0.8).plan(fc.grid(model, 4, sites=["blocks.*.mlp"]))
path = Path(tempfile.mkdtemp()) / "plan.json"
plan.save(path)
assert fc.Plan.load(path) == plan
with torch.no_grad(), fc.apply(model, plan) as session:
    for step in range(4):
        model(x, torch.tensor(900 - 100 * step))
assert (session.stats.computed, session.stats.skipped) == (6, 6)
assert fc.Statistics.load(zoo.record("digits").statistics_path(20)).num_steps == 20
assert fc.Router.load(zoo.record("digits").router_path(22)).num_steps == 20
print(fc.__file__)
"""


def test_the_core_needs_torch_numpy_and_safetensors_alone(bare, tmp_path):
    where = run(bare, "-c", ALONE, cwd=tmp_path).strip()
    assert Path(where).is_relative_to(bare.parent.parent)
    command = [bare.with_name("forecache"), "models"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "pip install 'forecache[cli]'" in done.stderr


BUNDLED = """
from forecache.reproduce import table
from forecache.report import html
assert "goc-table-3" in table.bundled()
html.write("digits", "report.html")
print(html.__file__)
"""


@pytest.mark.slow
def test_the_wheel_samples_with_what_it_brings(bare, tmp_path):
    """Beside the packages that are installed here: bundled models, routers, statistics and tables are in the wheel."""
    site = Path(run(bare, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "others.pth").write_text("\n".join({sysconfig.get_path(name) for name in ("purelib", "platlib")}) + "\n")
    words = ["--labels", "3", "--method", "goc", "--base", "l2c", "--router", "digits-22", "--stats", "digits"]
    run(bare.with_name("forecache"), "sample", *words, "-o", "digits", cwd=tmp_path)
    assert (tmp_path / "digits" / "00000.png").exists()
    assert Path(run(bare, "-c", BUNDLED, cwd=tmp_path).strip()).is_relative_to(site)
    assert (tmp_path / "report.html").stat().st_size > 10_000
