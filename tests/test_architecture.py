"""The floors: each module imports only from its own floor or below, and the core stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import forecache

ROOT = Path(forecache.__file__).parent

FLOORS = [
    [
        "_core",
        "_errors",
        "_version",
        "_allocator",
        "_distributed",
        "_files",
        "_archive",
        "_tensorfile",
        "_published",
        "_modelcall",
        "_searchfile",
        "_shardfile",
        "_samplesfile",
    ],
    ["schedules", "patterns", "forecasts", "gates", "tokens", "adapters", "statistics"],
    ["corrections", "_routerfile"],
    ["states", "liveness", "cost", "_constants", "_planfile", "_hub", "plan"],
    ["_smoothcache", "guards", "resample", "ends"],
    ["methods", "selection", "program", "tally", "placed", "choosing", "shelf", "lent", "past", "history", "graphs"],
    ["course", "generations", "steps", "session", "sessions", "applied", "_lesson"],
    [
        "observed",
        "accumulators",
        "bench",
        "calibrate",
        "scores",
        "search",
        "router",
        "_shardrun",
        "shards",
        "subjects",
        "speed",
        "tuning",
    ],
    ["_tablefile", "recipes", "_reproductionfile"],
    [""],  # the package itself: the table of contents
    [
        *("runs", "demo", "grounds", "_reproductionrun", "reproduction", "report", "tuned_pictures"),
        "reports",
        *("choices", "pairs", "page", "cli", "__main__"),
    ],
]
"""From the ground up. The adapters stand below the plan because a plan's cost needs a model's shapes."""

GROUND = ["_errors", "_files", "_archive", "_tensorfile"]
"""What everything may import: errors, and how files are read."""

ALONE = ["sample", "_place", "sources", "evaluate", "zoo"]
"""These import nothing of the library but the ground, and each other."""

WITHOUT_TORCH = [
    "_core", "_errors", "_files", "_version", "schedules", "patterns", "forecasts", "gates", "tokens", "states",
    "liveness", "_planfile"
]  # fmt: skip

FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").removesuffix("."): path
         for path in sorted(ROOT.rglob("*.py"))}  # fmt: skip
"""{"": .../__init__.py, "plan": .../plan.py, "adapters": .../adapters/__init__.py, "adapters.base": ...}"""


def imported(name):
    """Absolute names of everything that a module imports, inside functions as well."""
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            # `from forecache import bench` imports a module, `from forecache.plan import Plan` a name of one
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parts_imported(name):
    """Names of the library's own modules that a module imports, "" for the package itself."""
    for path in imported(name):
        if path.split(".")[0] == "forecache":
            inside = path.split(".")[1:]
            while inside and ".".join(inside) not in FILES:
                inside.pop()
            yield ".".join(inside)


def floor(name):
    """The number of a module's floor, None if it stands alone; a module that no list has is an error."""
    part = name.split(".")[0]
    if part in ALONE:
        return None
    found = [number for number, parts in enumerate(FLOORS) if part in parts]
    assert found, f"{name} stands on no floor: give it one in tests/test_architecture.py and in the architecture"
    return found[0]


@pytest.mark.parametrize("name", FILES)
def test_a_module_imports_only_from_its_floor_or_below(name):
    own, part = floor(name), name.split(".")[0]
    for other in parts_imported(name):
        other_part = other.split(".")[0]
        if own is None:
            assert other_part in (*ALONE, *GROUND), f"{name} stands alone, but imports {other or 'the package'}"
        elif other_part in ALONE:
            assert own > floor("session"), f"{name} is of the core, but imports {other}"
        elif other_part != part:
            assert floor(other) <= own, f"{name} imports {other or 'the package'}, which stands above it"


def test_no_module_stands_on_two_floors():
    everywhere = [part for parts in FLOORS for part in parts] + ALONE
    assert len(set(everywhere)) == len(everywhere)


def test_the_walls_are_seen():
    """The parser finds what is known to be there, so that the tests above can fail."""
    assert {"_planfile", "liveness", "adapters", "_core"} <= set(parts_imported("plan"))
    assert {"adapters.base"} <= set(parts_imported("adapters.modules"))
    assert floor("plan") > floor("_core")


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_arithmetic_on_steps_stays_off_tensors(name):
    """Neither these modules nor those of ours that they import know torch."""
    assert not [path for path in imported(name) if path.split(".")[0] in ("torch", "diffusers")]
    assert set(parts_imported(name)) <= set(WITHOUT_TORCH)


def modules_after(statement):
    """The top-level modules that are loaded in a fresh interpreter after a statement."""
    program = f"{statement}; import sys; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.split()), done


def test_importing_the_library_is_light_and_silent():
    loaded, done = modules_after("import forecache")
    assert {"forecache", "torch"} <= loaded
    heavy = {"diffusers", "transformers", "typer", "rich", "matplotlib", "PIL", "datasets", "accelerate"}
    assert not loaded & heavy
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


def test_importing_the_library_loads_no_command():
    program = "import forecache, sys; print(*[n for n in sys.modules if n.startswith('forecache.')])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    loaded = {name.removeprefix("forecache.").split(".")[0] for name in done.stdout.split()}
    assert "session" in loaded
    assert all(floor(name) is None or floor(name) < floor("") for name in loaded)
