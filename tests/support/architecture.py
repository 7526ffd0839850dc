"""The table of packages: what each is for, in the order of imports; CONTRIBUTING's map is generated from it."""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "forecache"

PACKAGES = {
    "errors": "the tree of errors",
    "environment": "hardware and versions beside every figure",
    "distributed": "several processes that act as one",
    "io": "bytes to data and back: one atomic writer, one versioned document, strict JSON, safetensors, npz",
    "parts": "pure functions of step and site that methods are made of; measured data as files",
    "evaluate": "features and metrics of any images",
    "models": "what a transformer looks like: its family, sites, blocks, gates, and what they cost",
    "plan": "a filled grid as data: method, plan, file, hub, cost, the folding of features into sums, slots",
    "methods": "one paper, one file; the registry of their names and parameters",
    "runtime": "the only mutable state: sessions, generations, the executor of steps, the cache of features",
    "integrations": "the interfaces of serving engines and other libraries, on the requests of a session",
    "sampling": "images from models: sources, the loop, runs, shards",
    "zoo": "the bundled models, one record each",
    "fit": "what learns from a model: calibration, routers, search, tuning",
    "bench": "timing of plans, and what is timed",
    "reproduce": "the papers' tables as TOML, measured again",
    "report": "figures and HTML pages of results",
    "compare": "the comparison page",
    "cli": "commands, which parse and print",
}
"""Name -> job. A package imports from those above it only; ``forecache`` itself, the table of contents, from all."""

BESIDE = {"__init__", "__main__", "_version", "errors", "environment", "distributed"}
"""The modules that lie beside the packages."""

BEGIN, END = "<!-- packages: python tests/support/architecture.py -->", "<!-- /packages -->"

MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix("__init__").removesuffix("."): path
    for path in sorted(SOURCE.rglob("*.py"))
}
"""{"": .../__init__.py, "plan": .../plan/__init__.py, "plan.cost": .../plan/cost.py, ...}"""


def imported(name: str) -> list[str]:
    """Absolute names of everything that a module imports, inside functions as well."""
    names: list[str] = []
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            # `from forecache import plan` imports a package, `from forecache.plan.plan import Plan` a name of a module
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def modules_imported(name: str) -> set[str]:
    """The library's own modules that a module imports, "" for the package itself."""
    modules = set()
    for path in imported(name):
        if path.split(".")[0] == "forecache":
            inside = path.split(".")[1:]
            while inside and ".".join(inside) not in MODULES:
                inside.pop()
            modules.add(".".join(inside))
    return modules - {name}


def package(name: str) -> str:
    """The package, or the module beside the packages, that a module belongs to."""
    return name.split(".", maxsplit=1)[0]


def graph() -> dict[str, set[str]]:
    """Every module with the modules that it imports."""
    return {name: modules_imported(name) for name in MODULES}


def package_graph() -> dict[str, set[str]]:
    """Every package, and module beside them, with those that it imports."""
    edges: dict[str, set[str]] = {}
    for name, others in graph().items():
        edges.setdefault(package(name), set()).update(package(other) for other in others)
    return {name: others - {name} for name, others in edges.items()}


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import one another in a circle."""
    order: list[str] = []
    seen: set[str] = set()

    def visit(start: str, neighbours: dict[str, set[str]], out: list[str]) -> None:
        stack = [(start, iter(sorted(neighbours[start])))]
        seen.add(start)
        while stack:
            _, rest = stack[-1]
            following = next((other for other in rest if other not in seen), None)
            if following is None:
                out.append(stack.pop()[0])
            else:
                seen.add(following)
                stack.append((following, iter(sorted(neighbours[following]))))

    for name in edges:
        if name not in seen:
            visit(name, edges, order)
    reverse: dict[str, set[str]] = {name: set() for name in edges}
    for name, others in edges.items():
        for other in others:
            reverse[other].add(name)
    seen.clear()
    groups = []
    for name in reversed(order):
        if name not in seen:
            group: list[str] = []
            visit(name, reverse, group)
            if len(group) > 1:
                groups.append(sorted(group))
    return groups


def floors(edges: dict[str, set[str]]) -> dict[str, int]:
    """The floor of every module: one above the highest that it imports. The graph must have no circle."""
    heights: dict[str, int] = {}

    def height(name: str) -> int:
        if name not in heights:
            heights[name] = 1 + max((height(other) for other in edges[name]), default=-1)
        return heights[name]

    for name in edges:
        height(name)
    return heights


def markdown() -> str:
    """CONTRIBUTING's map of the packages."""
    rows = [f"| `{name}` | {job} |" for name, job in PACKAGES.items()]
    return "\n".join([BEGIN, "| package | job |", "|---|---|", *rows, END])


def between(text: str) -> str:
    """The map as it stands in a text, markers included."""
    return text[text.index(BEGIN) : text.index(END) + len(END)]


def main() -> None:
    """CONTRIBUTING.md with the map of today's table."""
    page = ROOT / "CONTRIBUTING.md"
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace(between(text), markdown()), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
