"""The architecture: a package imports from those above it in the table, no circles, and a light core."""

import subprocess
import sys

import pytest
from support.architecture import (
    BESIDE,
    MODULES,
    PACKAGES,
    ROOT,
    SOURCE,
    between,
    circles,
    floors,
    graph,
    imported,
    markdown,
    modules_imported,
    package,
    package_graph,
)

ORDER = list(PACKAGES)
MOST_LINES = 500
MOST_FLOORS = 16
MOST_NAMES = 42

WITHOUT_TORCH = [
    "parts.grid", "errors", "_version", "parts.bounds", "parts.schedules", "parts.patterns", "parts.forecasts",
    "parts.gates", "parts.tokens", "plan.ops", "plan.folding", "plan.slots",
]  # fmt: skip
"""Arithmetic on steps."""


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_from_the_packages_above_its_own(name):
    own = package(name)
    if own in ("", "__main__"):
        return
    for other in modules_imported(name):
        above = package(other)
        if own == "cli" and not other:
            continue  # commands use the library as users do
        assert above, f"{name} imports the whole package: import the module that it needs"
        if above not in (own, "_version"):
            assert ORDER.index(above) < ORDER.index(own), f"{name} imports {other}, which stands below it"


def test_every_package_has_a_place_in_the_table():
    folders = {path.name for path in SOURCE.iterdir() if (path / "__init__.py").exists()}
    assert {path.stem for path in SOURCE.glob("*.py")} == BESIDE
    assert folders | BESIDE - {"__init__", "__main__", "_version"} == set(PACKAGES)


def test_no_modules_import_one_another_in_a_circle():
    assert circles(graph()) == []


def test_a_circle_would_be_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert floors({"a": {"b"}, "b": {"c"}, "c": set()}) == {"a": 2, "b": 1, "c": 0}
    assert {"plan.plan", "parts.grid"} <= modules_imported("plan.method")
    assert ORDER.index("parts") < ORDER.index("plan")


def test_the_house_has_few_floors():
    assert circles(package_graph()) == []
    assert 1 + max(floors(package_graph()).values()) <= MOST_FLOORS


@pytest.mark.parametrize("name", MODULES)
def test_a_file_holds_one_idea(name):
    assert len(MODULES[name].read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_the_map_in_contributing_is_that_of_the_table():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert between(page) == markdown(), "python tests/support/architecture.py writes it again"


def test_the_table_of_contents_is_short():
    import forecache

    assert len(forecache.__all__) <= MOST_NAMES
    assert len(set(forecache.__all__)) == len(forecache.__all__)


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_arithmetic_on_steps_stays_off_tensors(name):
    """Neither these modules nor those of ours that they import know torch."""
    assert not [path for path in imported(name) if path.split(".")[0] in ("torch", "diffusers")]
    assert modules_imported(name) <= set(WITHOUT_TORCH)


def loaded_after(statement):
    """The top-level modules that are loaded in a fresh interpreter after a statement."""
    program = f"{statement}; import sys; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.split()), done


def test_importing_the_library_is_light_and_silent():
    loaded, done = loaded_after("import forecache")
    assert {"forecache", "torch"} <= loaded
    heavy = {"diffusers", "transformers", "typer", "rich", "matplotlib", "PIL", "datasets", "accelerate"}
    assert not loaded & heavy
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


def test_importing_the_library_loads_no_command():
    program = "import forecache, sys; print(*[n for n in sys.modules if n.startswith('forecache.')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    loaded = {name.removeprefix("forecache.").split(".")[0] for name in done.stdout.split()}
    assert "runtime" in loaded
    assert not loaded & {"cli", "compare", "report", "reproduce", "bench"}
