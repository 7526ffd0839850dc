"""The registry of methods: one function is the only place where a method's name and parameters are written.

    @register
    def halfway(base: Method, pull: Annotated[float, Range(least=0, most=1)] = 0.5) -> Method:
        \"\"\"Reuse, pulled towards the feature before the last (ours).

        base: the schedule, with plain reuse
        pull: share of the way, 0 to 1
        \"\"\"
        return base.with_forecast("halfway", Pulled(pull))

From the signature, the annotations and the docstring come the method's command-line options, its words in tables
(``plan = {method = "halfway", pull = 0.3, base = {method = "fora", interval = 2}}``), its controls on the comparison
page, its recipe in a plan, its name in provenance, and its row in the docs.

Where a method is found: every module of ``forecache.methods`` is imported with the package. A file of your own is found
when it is imported before the method is used, and by the command line when its package names it as an entry point:

    [project.entry-points."forecache.methods"]
    halfway = "my_package.halfway"
"""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, overload

from forecache.errors import InputError, PlanError
from forecache.io.text import short
from forecache.methods import ingredients as ingredients_module
from forecache.methods.parameters import Parameter, parameters_of
from forecache.plan.method import Method
from forecache.plan.recipe import Recipe

ENTRY_POINTS = "forecache.methods"
P = ParamSpec("P")
Rewrite = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Registered:
    """A method as its function declares it.

    name: of the function
    function: makes the method, and gives it its recipe and its name
    summary: first line of the docstring
    parameters: in the order of the signature, the base first where there is one
    fixed_length: whether the method is for runs of one number of steps, such as a published list of steps
    rewrite: arguments -> arguments whose values a recipe can hold, where the function takes others as well
    """

    name: str
    function: Callable[..., Method]
    summary: str
    parameters: tuple[Parameter, ...]
    fixed_length: bool
    rewrite: Rewrite

    @property
    def takes_base(self) -> bool:
        """Whether it stands on the schedule of another method."""
        return any(parameter.kind == "base" for parameter in self.parameters)

    @property
    def decides(self) -> bool:
        """Whether it decides while a plan runs which steps are computed, so that it takes a budget of these."""
        return any(parameter.name == "budget" for parameter in self.parameters)

    @property
    def in_forms(self) -> tuple[Parameter, ...]:
        """The parameters that commands, tables and pages have."""
        return tuple(parameter for parameter in self.parameters if parameter.in_forms)

    @property
    def label(self) -> str:
        """Name and summary in one short line: ``goc: Reuse plus eta times the last change of the feature``."""
        return f"{self.name}: {self.what}"

    @property
    def what(self) -> str:
        """The summary without the names of papers."""
        return re.split(r" \(|\. |\.$|: |, arXiv", self.summary, maxsplit=1)[0].replace("``", "")

    @property
    def paper(self) -> str:
        """The number of the paper on arXiv, empty for a method of ours."""
        match = re.search(r"arXiv (\d{4}\.\d{4,5})", inspect.getdoc(self.function) or "")
        return match[1] if match else ""

    def parameter(self, name: str) -> Parameter | None:
        """The parameter of this name, if commands, tables and pages have it."""
        return next((parameter for parameter in self.in_forms if parameter.name == name), None)


_METHODS: dict[str, Registered] = {}
_SEARCHED: list[str] = []


@overload
def register(function: Callable[P, Method]) -> Callable[P, Method]: ...
@overload
def register(
    *, fixed_length: bool = ..., rewrite: Rewrite = ...
) -> Callable[[Callable[P, Method]], Callable[P, Method]]: ...
def register(
    function: Callable[P, Method] | None = None, *, fixed_length: bool = False, rewrite: Rewrite = lambda given: given
) -> Any:
    """Decorates the function of a method: it enters the registry, and what it makes carries its recipe and name.

    fixed_length: the method is for runs of one number of steps; its plan is stretched to another, not planned anew
    rewrite: arguments -> arguments whose values a recipe can hold, for a function that takes others as well

    The annotation of every parameter must be one that `forecache.methods.parameters` knows; the parameter of the base
    is called ``base``. Raises InputError for other annotations, and for a name that another function has.
    """
    if function is None:
        return functools.partial(register, fixed_length=fixed_length, rewrite=rewrite)
    signature, parameters = inspect.signature(function), parameters_of(function)
    _check_signature(function.__name__, parameters)

    @functools.wraps(function)
    def make(*args: P.args, **kwargs: P.kwargs) -> Method:
        bound = signature.bind(*args, **kwargs)
        named = dict(bound.arguments)  # as given: paths, which have names, are read below
        for parameter in parameters:
            if parameter.is_ingredient and bound.arguments.get(parameter.name) is not None:
                bound.arguments[parameter.name] = ingredients_module.opened(parameter, named[parameter.name])
        method = function(*bound.args, **bound.kwargs)
        bound.apply_defaults()
        return _signed(entry, method, rewrite(dict(bound.arguments)), named)

    summary = (inspect.getdoc(function) or function.__name__).splitlines()[0]
    entry = Registered(function.__name__, make, summary, parameters, fixed_length, rewrite)
    before = _METHODS.get(entry.name)
    if before is not None and _place(before.function) != _place(function):
        raise InputError(
            f"There is a method {entry.name} already, of {before.function.__module__}: give yours in "
            f"{function.__module__} another name."
        )
    _METHODS[entry.name] = entry
    return make


def _check_signature(name: str, parameters: Sequence[Parameter]) -> None:
    bases = [parameter.name for parameter in parameters if parameter.kind == "base"]
    if bases not in ([], ["base"]) or (bases and parameters[0].kind != "base"):
        raise InputError(f"The base of {name} is its first parameter and is called base; it has {', '.join(bases)}.")
    if odd := [parameter.name for parameter in parameters if parameter.name == "method"]:
        raise InputError(f"A parameter of {name} cannot be called {odd[0]}, which names the method in a recipe.")


def _place(function: Callable[..., Any]) -> tuple[str, str]:
    return function.__module__, function.__qualname__


def unregister(name: str) -> None:
    """Take a method of your own out of the registry again."""
    _METHODS.pop(name, None)


def methods() -> Mapping[str, Registered]:
    """All methods by name, in the order of registration; the first call imports the entry points of other packages.

    Raises InputError for an entry point that cannot be imported.
    """
    if ENTRY_POINTS not in _SEARCHED:
        _SEARCHED.append(ENTRY_POINTS)
        for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
            try:
                point.load()
            except Exception as error:  # whatever the module of somebody else raises
                raise InputError(
                    f"The method {point.name} ({point.value}) cannot be imported: {error}. Repair or uninstall the "
                    "package that names it as an entry point."
                ) from error
    return dict(_METHODS)


def registered(name: str) -> Registered:
    """The method of this name; PlanError where there is none."""
    known = methods()
    if name not in known:
        raise PlanError(f"There is no method {short(name)}; there are {', '.join(known)}.")
    return known[name]


# ---- recipes ---------------------------------------------------------------------------------------------------------


def _signed(entry: Registered, method: Method, arguments: Mapping[str, Any], named: Mapping[str, Any]) -> Method:
    """The method with its recipe and name. named: arguments as they were given, paths included."""
    recipe: dict[str, Any] | None = {"method": entry.name}
    shown: list[str] = []
    for parameter in entry.parameters:
        value = arguments[parameter.name]
        if parameter.kind == "base":
            shown.append(value.name)
            continue
        if value is parameter.default is None or (not parameter.main and _is_default(parameter, value)):
            continue
        entered = None if value is None else _entered(parameter, value, named.get(parameter.name))
        text = "custom" if entered is None and value is not None else _text(entered)
        shown.append(f"{parameter.name}={text}")
        if entered is None and value is not None:
            recipe = None
        elif recipe is not None:
            recipe[parameter.name] = entered
    if entry.takes_base and recipe is not None:
        base = arguments["base"].recipe
        recipe = None if base is None else {**recipe, "base": base}
    return method.with_recipe(f"{entry.name}({', '.join(shown)})", recipe)


def _entered(parameter: Parameter, value: Any, given: Any) -> Any:
    """A value as a recipe holds it; None for one that it cannot hold."""
    if parameter.is_ingredient:
        return ingredients_module.reference(parameter, given, value)
    try:
        return parameter.canonical(value)
    except ValueError:
        return None


def _is_default(parameter: Parameter, value: Any) -> bool:
    if parameter.required or parameter.is_ingredient or callable(value):
        return False
    try:
        return parameter.canonical(value) == parameter.canonical(parameter.default)
    except ValueError:
        return False


def _text(value: Any) -> str:
    if ingredients_module.is_reference(value):
        return repr(value["file"] or value["sha256"][:8])
    if isinstance(value, list | tuple) and value and all(isinstance(number, float) for number in value):
        return f"[{', '.join(f'{number:g}' for number in value)}]"
    return f"{value:g}" if isinstance(value, float) else repr(value)


def check(recipe: Any, where: str = "", *, ingredients: bool = True) -> dict[str, Any]:
    """A recipe with its values in canonical form; ValueError with a sentence for one that no method fits.

    where: follows names in the sentence, such as `` of row 'GOC'``
    ingredients: whether references to ingredients are required; otherwise they are refused, for a file whose reader
        supplies them
    """
    if not isinstance(recipe, Mapping) or "method" not in recipe:
        raise ValueError(f"the plan{where} names no method: {short(recipe)}")
    known = methods()
    if not isinstance(recipe["method"], str) or recipe["method"] not in known:
        raise ValueError(f"method{where} is one of {', '.join(known)}; not {short(recipe['method'])}")
    entry = known[recipe["method"]]
    inside = f" of {entry.name}{where}"
    if entry.takes_base != ("base" in recipe):
        raise ValueError(f"{entry.name}{where} {'takes a base, and has none' if entry.takes_base else 'takes no base'}")
    form = [parameter for parameter in entry.in_forms if ingredients or not parameter.is_ingredient]
    names = {parameter.name for parameter in form}
    if missing := [parameter.name for parameter in form if parameter.required and parameter.name not in recipe]:
        raise ValueError(f"{entry.name}{where} lacks {', '.join(missing)}")
    if unknown := [name for name in recipe if name not in (*names, "method", "base")]:
        raise ValueError(f"{entry.name}{where} has unknown keys {short(unknown)}; it knows {', '.join(sorted(names))}")
    values: dict[str, Any] = {"method": entry.name}
    for parameter in form:
        if parameter.name in recipe:
            values[parameter.name] = _checked(parameter, recipe[parameter.name], inside)
        if parameter.name in recipe and parameter.range.needs and ingredients and parameter.range.needs not in recipe:
            raise ValueError(f"{parameter.name}{inside} needs {parameter.range.needs}, which is not there")
    return values | ({"base": check(recipe["base"], where, ingredients=ingredients)} if entry.takes_base else {})


def _checked(parameter: Parameter, value: Any, inside: str) -> Any:
    if not parameter.is_ingredient:
        return parameter.canonical(value, inside)
    if isinstance(value, Mapping) and not ingredients_module.is_reference(value):
        raise ValueError(f"{parameter.name}{inside} refers to an ingredient by file and sha256, not {short(value)}")
    return value


def build(recipe: Recipe, ingredients: Iterable[Any] = ()) -> Method:
    """The method of a recipe.

    recipe: as `Plan.recipe` has it, or with ingredients themselves (a `Statistics`, a `Router`, a path) in the place
        of references to them
    ingredients: statistics, routers and paths of schedule files; those that the recipe refers to are found by digest

    Raises PlanError for a recipe that no method fits, and for an ingredient that is missing.
    """
    try:
        values = check(recipe)
    except ValueError as error:
        raise PlanError(f"A recipe cannot be built: {error}.") from error
    return _built(values, tuple(ingredients))


def _built(recipe: Mapping[str, Any], ingredients: Sequence[Any]) -> Method:
    entry = registered(recipe["method"])
    arguments: dict[str, Any] = {}
    for parameter in entry.in_forms:
        if parameter.name in recipe:
            value = recipe[parameter.name]
            if ingredients_module.is_reference(value):
                value = ingredients_module.supplied(parameter, value, ingredients, f" of {entry.name}")
            arguments[parameter.name] = value
    if entry.takes_base:
        arguments["base"] = _built(recipe["base"], ingredients)
    return entry.function(**arguments)


def links(recipe: Recipe) -> Iterator[tuple[Registered, Recipe]]:
    """The methods of a recipe with their own parts of it, from the outermost to the innermost base."""
    current: Recipe | None = recipe
    while current is not None:
        yield registered(current["method"]), current
        current = current.get("base")


def needs(recipe: Recipe, kind: str) -> bool:
    """Whether a recipe without its ingredients needs one of this kind: ``statistics``, ``router`` or ``file``."""
    return any(_needed(entry, part, parameter) for entry, part in links(recipe) for parameter in entry.parameters
               if parameter.kind == kind)  # fmt: skip


def _needed(entry: Registered, part: Recipe, ingredient: Parameter) -> bool:
    """Required, named, or needed by another parameter that is there."""
    dependent = [parameter.name for parameter in entry.parameters if parameter.range.needs == ingredient.name]
    return ingredient.required or any(name in part for name in (ingredient.name, *dependent))


def with_ingredients(recipe: Recipe, supply: Callable[[Parameter, Recipe], Any]) -> dict[str, Any]:
    """A recipe without its ingredients, with those that it needs. supply: (parameter, part of the recipe) -> data."""
    (entry, part), *rest = links(recipe)
    values = dict(part)
    for parameter in entry.parameters:
        if parameter.is_ingredient and _needed(entry, part, parameter) and parameter.name not in part:
            values[parameter.name] = supply(parameter, part)
    return values | ({"base": with_ingredients(part["base"], supply)} if rest else {})


def replaced(recipe: Recipe, ingredients: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with other ingredients in the place of its references. ingredients: by kind."""
    (entry, part), *rest = links(recipe)
    values = dict(part)
    for parameter in entry.parameters:
        if parameter.name in part and parameter.kind in ingredients:
            values[parameter.name] = ingredients[parameter.kind]
    return values | ({"base": replaced(part["base"], ingredients)} if rest else {})


def is_calibrated(recipe: Recipe) -> bool:
    """Whether a recipe refers to ingredients, so that it cannot be built without them."""
    return any(parameter.is_ingredient and parameter.name in part for entry, part in links(recipe)
               for parameter in entry.parameters)  # fmt: skip


def is_fixed(recipe: Recipe) -> bool:
    """Whether a recipe is for runs of one number of steps: it lists steps, or a method of it is for one length."""
    return any(
        entry.fixed_length or any(_lists_steps(parameter, part.get(parameter.name)) for parameter in entry.parameters)
        for entry, part in links(recipe)
    )


def _lists_steps(parameter: Parameter, value: Any) -> bool:
    return parameter.kind in ("steps", "pattern") and value is not None and value not in parameter.choices


# ---- docs ------------------------------------------------------------------------------------------------------------


def row(entry: Registered) -> str:
    """A method as a row of `table`."""
    parameters = ", ".join(
        f"`{parameter.name}`" if parameter.required else f"`{parameter.name}={_text(parameter.default)}`"
        for parameter in entry.parameters
    )
    other = re.search(r"\(\w+ of ([\w-]+)\)", entry.summary)  # published without a paper
    paper = f"[{entry.paper}](https://arxiv.org/abs/{entry.paper})" if entry.paper else other[1] if other else "ours"
    return f"| `{entry.name}` | {parameters} | {entry.what} | {paper} |"


def table() -> str:
    """All methods as a Markdown table: name, parameters with defaults, what it does, paper."""
    rows = [row(entry) for entry in methods().values()]
    return "\n".join(["| method | parameters | what it does | arXiv |", "|---|---|---|---|", *rows])


def parameter_table(name: str) -> str:
    """The parameters of a method as a Markdown table: name, values, default, what it is."""
    rows = []
    for parameter in registered(name).parameters:
        default = "" if parameter.required else f"`{_text(parameter.default)}`"
        rows.append(f"| `{parameter.name}` | {values_of(parameter)} | {default} | {parameter.help} |")
    return "\n".join(["| parameter | values | default | what it is |", "|---|---|---|---|", *rows])


def values_of(parameter: Parameter) -> str:
    """The values of a parameter in a few words: ``0 to 1``, ``start, end``, ``steps``."""
    least, most = parameter.range.least, parameter.range.most
    if None not in (least, most):
        return f"{least:g} to {most:g}"
    nouns = {"whole": "whole number", "switch": "true or false", "python": "a function", "base": "a method"}
    words = [*map(str, parameter.choices)]
    words += [] if parameter.kind == "choice" else [nouns.get(parameter.kind, parameter.kind)]
    return ", ".join(words) + (f" from {least:g}" if least is not None else "")
