"""Under torch.compile: a graph for every step that does something else, and the same samples in every order."""

import pytest
import torch
from support.slow import slow_but
from support.small import generate, labels, noise, small_dit
from support.statistics import random_statistics
from support.tiny import TIMES, TINY, normal
from torch._dynamo.testing import CompileCounter

import forecache as fc
from forecache.models.find import layout
from forecache.runtime import forwards, graphs
from forecache.runtime.executable import Executable
from forecache.runtime.graphs import Graphs

STEPS = 12

METHODS = {
    # reads, features and weights differ from step to step; what a step does, less often
    "goc": (lambda model: fc.goc(fc.fora(2), 0.8), 5),
    "taylor 2": (lambda model: fc.taylorseer(fc.fora(2), 2), 5),
    "eoc": (lambda model: fc.eoc(fc.fora(3), random_statistics(model), 0.1, judge="all"), 5),
    "by depth": (
        lambda model: fc.Method(
            "depth",
            fc.parts.schedules.at(
                fc.parts.schedules.depth(1, 3), fc.parts.schedules.every(3), fc.parts.schedules.every(2)
            ),
        ),
        6,
    ),
    "procache": (lambda model: fc.procache("#...#..#...#", 1, 0.3), 5),
    "toca": (lambda model: fc.toca(fc.fora(3), 0.3), 5),
}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    with torch.no_grad():
        yield
    torch._dynamo.reset()


def counted():
    return CompileCounter()


def shapes(plan, model):
    """How many different things the steps of a plan do."""
    traced = Graphs(layout(model), {})
    return len({traced.of(step) for step in Executable(layout(model), plan).steps})


@pytest.mark.parametrize("name", slow_but(METHODS, "goc", "toca"))
def test_a_graph_for_every_step_that_does_something_else(name):
    model = small_dit(3)
    make, most = METHODS[name]
    plan = make(model).plan(fc.grid(model, STEPS))
    with fc.apply(model, plan) as session:
        eager = [generate(model, STEPS, seed=seed) for seed in range(2)]
        stats = session.stats
    backend = counted()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with fc.apply(compiled, plan) as session:
        first = generate(compiled, STEPS, seed=0)
        graphs = backend.frame_count
        again = generate(compiled, STEPS, seed=1)
        assert session.stats.computed == stats.computed
        assert session.stats.skipped == stats.skipped
        assert session.stats.partial == stats.partial
    assert graphs <= shapes(plan, model) <= most
    assert backend.frame_count == graphs, "the second generation compiled again"
    for found, wanted in zip((first, again), eager, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


DYNAMIC = {
    "DiT": lambda: fc.fora(2),
    "FLUX.1": lambda: fc.goc(fc.fora(2), 0.8),
    "PixArt": lambda: fc.toca(fc.fora(3), 0.4),
}


def test_the_numbers_of_a_plan_are_no_sizes():
    """With ``dynamic=True`` the compiler takes numbers for sizes that may differ from call to call."""
    model, x, labels = small_dit(1), noise(1), torch.tensor([3])
    plan = fc.fora(2).plan(fc.grid(model, 2))

    def sampled(target):
        return [target(x, timestep=torch.tensor([time]), class_labels=labels).sample for time in (9, 5)]

    with fc.apply(model, plan):
        eager = sampled(model)
    compiled = torch.compile(model, backend="eager", dynamic=True)
    with fc.apply(compiled, plan) as session:
        assert all(map(torch.equal, sampled(compiled), eager))
    assert session.stats.skipped == 2


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dynamic"), [("DiT", None), ("FLUX.1", True)])
def test_sizes_may_differ_from_call_to_call(name, dynamic):
    """With ``dynamic=True`` from the first call on, by default from the second size on; the plan's numbers may not."""
    model, times = TINY[name].model(), TIMES[:4]
    plan = DYNAMIC[name]().plan(fc.grid(model, len(times)))

    def sampled(target):
        outputs = []
        for batch in (2, 1):
            for time in times:
                inputs = TINY[name].inputs(normal(*TINY[name].shape), time)
                outputs.append(target(**rows_of(inputs, batch), return_dict=False)[0])
        return outputs

    with fc.apply(model, plan):
        eager = sampled(model)
    compiled = torch.compile(model, backend="eager", dynamic=dynamic)
    with fc.apply(compiled, plan) as session:
        for output, expected in zip(sampled(compiled), eager, strict=True):
            torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    assert session.stats.skipped


def rows_of(inputs, batch):
    """The arguments of a call for the first rows of a batch of two."""
    cut = {name: value[:batch] for name, value in inputs.items() if isinstance(value, torch.Tensor | list)}
    ids = {name: inputs[name] for name in ("img_ids", "txt_ids") if name in inputs}  # of tokens
    return inputs | cut | ids


ORDERS = ["compile, apply", "compile in place, apply", "apply, compile", "apply, compile in place"]


@pytest.mark.parametrize("order", slow_but(ORDERS, "compile, apply", "apply, compile in place"))
def test_in_whichever_order(order):
    model = small_dit(3)
    plan = fc.goc(fc.fora(2), 0.8).plan(fc.grid(model, STEPS))
    with fc.apply(model, plan):
        eager = generate(model, STEPS)
    backend = counted()
    wrapped = model
    if order == "compile, apply":
        wrapped = torch.compile(model, backend=backend)
    elif order == "compile in place, apply":
        model.compile(backend=backend)
    with fc.apply(wrapped, plan):
        if order == "apply, compile":
            wrapped = torch.compile(model, backend=backend)
        elif order == "apply, compile in place":
            model.compile(backend=backend)
        found = generate(wrapped, STEPS)
        graphs = backend.frame_count
        generate(wrapped, STEPS, seed=1)
        assert 2 <= graphs == backend.frame_count <= shapes(plan, model)
    torch.testing.assert_close(found, eager, rtol=1e-5, atol=1e-5)


def test_a_second_session_finds_the_graphs_of_the_first():
    model = small_dit(3)
    plan = fc.goc(fc.fora(2), 0.8).plan(fc.grid(model, STEPS))
    backend = counted()
    compiled = torch.compile(model, backend=backend)
    graphs = []
    for method in (fc.goc(fc.fora(2), 0.8), fc.goc(fc.fora(2), 0.5)):
        with fc.apply(compiled, method.plan(fc.grid(compiled, STEPS))):
            generate(compiled, STEPS)
        graphs.append(backend.frame_count)
    assert graphs[0] == graphs[1] <= shapes(plan, model)


def test_after_the_block_the_compiled_model_is_as_before():
    model = small_dit(3)
    backend = counted()
    compiled = torch.compile(model, backend=backend)
    bare = generate(compiled, 4)
    before, forward = dict(vars(model)), compiled.forward
    with fc.apply(compiled, fc.fora(2).plan(fc.grid(compiled, 4))):
        generate(compiled, 4)
    assert vars(model) == before
    assert compiled.forward is forward
    graphs = backend.frame_count
    assert torch.equal(generate(compiled, 4), bare)
    assert backend.frame_count == graphs


def test_an_exception_in_a_compiled_step_leaves_nothing():
    model = small_dit(3)
    compiled = torch.compile(model, backend=counted())
    plan = fc.fora(2).plan(fc.grid(compiled, 4))
    with fc.apply(compiled, plan):
        wanted = generate(compiled, 4)
        x, t = noise(4), torch.tensor([5.0]).expand(4)
        compiled(x, timestep=t, class_labels=labels())
        with pytest.raises(Exception, match="size"):
            compiled(x, timestep=t - 1, class_labels=labels(1))
        assert torch.equal(generate(compiled, 4), wanted)


def test_a_compiler_that_must_not_break_is_told_to_come_first():
    model = small_dit(2)
    with fc.apply(model, fc.fora(2).plan(fc.grid(model, 4))) as session:
        late = torch.compile(model, backend=counted(), fullgraph=True)
        with pytest.raises(Exception, match="before forecache.apply"):
            generate(late, 4)
        session.new_run()


@pytest.mark.parametrize("level", ["branches", "blocks", "groups", "stack"])
def test_blocks_that_are_compiled_one_by_one(level):
    """As by `compile_repeated_blocks`: right at every level, and still compiled where blocks are computed whole."""
    model = small_dit(3)
    plan = fc.goc(fc.fora(2), 0.8).plan(fc.grid(model, STEPS, level=level, group=2 if level == "groups" else None))
    with fc.apply(model, plan):
        eager = generate(model, STEPS)
    bare, counter = generate(model, STEPS), counted()
    for block in model.transformer_blocks:
        block.compile(backend=counter, fullgraph=level != "branches")
    calls = [block._compiled_call_impl for block in model.transformer_blocks]
    for _ in range(2):  # the second session finds what the first one compiled
        with fc.apply(model, plan):
            found = generate(model, STEPS)
        torch.testing.assert_close(found, eager, rtol=1e-5, atol=1e-5)
        assert [block._compiled_call_impl for block in model.transformer_blocks] == calls
    compiled = counter.frame_count
    torch.testing.assert_close(generate(model, STEPS), bare, rtol=1e-5, atol=1e-5)
    if level == "branches":
        assert compiled == 0
    else:
        assert compiled == counter.frame_count > 0, "without a plan they are what was compiled under it"


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn])
def test_kept_in_another_dtype(dtype):
    model = small_dit(3)
    plan = fc.taylorseer(fc.fora(2), 1).plan(fc.grid(model, STEPS))
    with fc.apply(model, plan, cache_dtype=dtype):
        eager = generate(model, STEPS)
    compiled = torch.compile(model, backend=counted(), fullgraph=True)
    with fc.apply(compiled, plan, cache_dtype=dtype) as session:
        found = generate(compiled, STEPS)
        held = session.stats.peak_cache_bytes
    torch.testing.assert_close(found, eager, rtol=1e-4, atol=1e-4)
    with fc.apply(compiled, plan) as session:
        generate(compiled, STEPS)
        numbers = session.stats.peak_cache_bytes // 4
    assert held == (2 * numbers if dtype is torch.bfloat16 else numbers + 4 * numbers // 16)  # 16 wide, 4 bytes a scale


class Writes(torch.nn.Module):
    """Two sites; what the first gave out is written into when it is told to."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        self.writes = False

    def forward(self, x, timestep):
        y = self.first(x)
        z = self.second(x)
        return x + (y.add_(1) if self.writes else y) + z


def test_a_step_that_fails_before_it_runs_leaves_nothing():
    """What was kept is found changed when it is lent: the next generation is as clean as without a compiler."""
    torch.manual_seed(0)
    model, x = Writes(), torch.randn(2, 3, 4)
    compiled = torch.compile(model, backend="eager")

    def run():
        return [compiled(x + step, torch.tensor(9 - step)) for step in range(4)]

    with fc.apply(compiled, fc.fora(4).plan(fc.grid(model, 4, sites=["first", "second"]))):
        clean = run()
        model.writes = True
        with pytest.raises(fc.errors.RunError, match="changed in place"):
            run()
        model.writes = False
        assert all(map(torch.equal, run(), clean))


@pytest.mark.slow
def test_models_of_several_classes_are_compiled_in_one_process():
    """Under one name, the compiler takes what differs from one model to the next for dynamic, and fails on it."""
    for name in ("FLUX.1", "SD3", "Qwen-Image"):
        model = TINY[name].model()
        plan = fc.fora(2).plan(fc.grid(model, len(TIMES)))
        with fc.apply(model, plan):
            expected = TINY[name].generate(model)
        with fc.apply(model, plan) as session:
            model.compile(backend="eager")
            torch.testing.assert_close(TINY[name].generate(model), expected, rtol=1e-5, atol=1e-5)
        assert session.stats.skipped > 0


def test_outputs_of_a_graph_are_kept_in_memory_of_their_own(monkeypatch):
    """A backend that behaves as CUDA graphs do: its next call overwrites its outputs."""
    for module in (graphs, forwards):
        monkeypatch.setattr(module, "own_memory", torch.clone)
    given = []

    def overwriting(graph, _):
        def call(*args):
            for output in given:
                output.fill_(float("nan") if output.is_floating_point() else 0)
            given.clear()
            inputs = {id(value) for value in args}
            outputs = [
                value.clone() if isinstance(value, torch.Tensor) and id(value) not in inputs else value
                for value in graph(*args)
            ]
            given.extend(value for value in outputs if isinstance(value, torch.Tensor) and id(value) not in inputs)
            return outputs

        return call

    model = TINY["DiT"].model()
    plan = fc.procache("#....#..", importance="attention").plan(fc.grid(model, 8))
    x, found = normal(*TINY["DiT"].shape), []
    for backend in (None, overwriting):
        torch._dynamo.reset()
        if backend is not None:
            model.compile(backend=backend)
        with torch.no_grad(), fc.apply(model, plan):
            found.append([TINY["DiT"].predict(model, x, time).clone() for time in TIMES])
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)
