"""Blocks and modules that write into their arguments: what they add is known all the same, or they are refused."""

import functools
from contextlib import ExitStack, contextmanager

import pytest
import torch
from support.others import by_blocks, grid_by_blocks
from support.tiny import TIMES, TINY
from torch import nn

import forecache as fc
from forecache.models.families import whole_blocks

SHORT = TIMES[:4]
MODES = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


@functools.cache
def model_of(name):
    return TINY[name].model()


BLOCKS = [name for name in TINY if whole_blocks.row_of(model_of(name)) is not None]


@contextmanager
def replaced_blocks(name, write):
    """Every block's forward is ``write(number, block, own, args, kwargs)`` in this block."""
    with ExitStack() as stack:
        for number, (_, block) in enumerate(by_blocks(model_of(name)).blocks):
            forward = functools.partial(_call, write, number, block, block.module.forward)
            block.module.forward = functools.wraps(block.module.forward)(forward)
            stack.callback(vars(block.module).pop, "forward")
        yield


def _call(write, number, block, own, *args, **kwargs):
    return write(number, block, own, args, kwargs)


def streams_of(block, args, kwargs):
    """The streams come first in every block."""
    return [args[place] if place < len(args) else kwargs[name] for place, name in enumerate(block.inputs)]


def values_of(output):
    return output if isinstance(output, tuple) else (output,)


def in_place(number, block, own, args, kwargs):
    """The block's own values, written into its input."""
    streams, output = streams_of(block, args, kwargs), own(*args, **kwargs)
    for stream, value in zip(block.outputs, values_of(output), strict=True):
        streams[stream].copy_(value)
    written = tuple(streams[stream] for stream in block.outputs)
    return written if isinstance(output, tuple) else written[0]


def views(number, block, own, args, kwargs):
    """As before, but what it returns are views of its input."""
    written = in_place(number, block, own, args, kwargs)
    return tuple(value[:] for value in written) if isinstance(written, tuple) else written[:]


def one_stream(number, block, own, args, kwargs):
    """Writes into its first stream and returns another tensor."""
    output = own(*args, **kwargs)
    streams_of(block, args, kwargs)[0].mul_(0.5)
    return output


def unknown_kernel(number, block, own, args, kwargs):
    """Writes as a kernel does that torch does not know: versions do not tell."""
    streams, output = streams_of(block, args, kwargs), own(*args, **kwargs)
    for stream, value in zip(block.outputs, values_of(output), strict=True):
        streams[stream].data.copy_(value)
    written = tuple(streams[stream] for stream in block.outputs)
    return written if isinstance(output, tuple) else written[0]


def fora_by_hand(name, interval, write):
    """Every block adds what it added when it was computed last: its output minus a copy of its input."""
    added, calls = {}, {}

    def forward(number, block, own, args, kwargs):
        step = calls[number] = calls.get(number, -1) + 1
        streams = streams_of(block, args, kwargs)
        if step % interval == 0:
            before = [stream.clone() for stream in streams]
            output = write(number, block, own, args, kwargs)
            pairs = zip(block.outputs, values_of(output), strict=True)
            added[number] = [value - before[stream] for stream, value in pairs]
            return output
        values = [streams[stream] + part for stream, part in zip(block.outputs, added[number], strict=True)]
        return tuple(values) if len(values) > 1 else values[0]

    with replaced_blocks(name, forward):
        return TINY[name].generate(model_of(name), SHORT)


OTHER_WAYS = [
    (name, way) for name in ("Sana", "Qwen-Image", "CogVideoX") for way in (views, one_stream, unknown_kernel)
]
"""On one family of one stream, and one of each order of two."""


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "write"), [*((name, in_place) for name in BLOCKS), *OTHER_WAYS])
def test_the_residual_of_a_block_that_writes_into_its_input_is_the_true_one(name, write, mode):
    model, plan = model_of(name), fc.fora(2).plan(grid_by_blocks(model_of(name), len(SHORT)))
    with MODES[mode]():
        expected = fora_by_hand(name, 2, write)
        with replaced_blocks(name, write):
            bare = TINY[name].generate(model, SHORT)
            with fc.apply(model, fc.fora(1).plan(grid_by_blocks(model, len(SHORT)))):
                assert torch.equal(TINY[name].generate(model, SHORT), bare)
            with fc.apply(model, plan):
                found = [TINY[name].generate(model, SHORT) for _ in range(2)]
    for sample in found:
        torch.testing.assert_close(sample, expected, rtol=1e-5, atol=1e-5)
    assert (found[0] - bare).abs().max() > 10 * (found[0] - expected).abs().max()


def test_a_block_that_starts_to_write_into_its_input_is_refused_once():
    """Its input is copied from then on."""
    name, seen = "Sana", []

    def later(number, block, own, args, kwargs):
        seen.append(number)
        return (in_place if len(seen) > 8 else lambda number, block, own, *given: own(*given[0], **given[1]))(
            number, block, own, args, kwargs
        )

    model = model_of(name)
    with (
        replaced_blocks(name, later),
        fc.apply(model, fc.fora(2).plan(grid_by_blocks(model, len(SHORT)))),
        torch.no_grad(),
    ):
        TINY[name].generate(model, SHORT)
        for _ in by_blocks(model).blocks:
            with pytest.raises(fc.errors.RunError, match=r"SanaTransformerBlock wrote into its input.*sample again"):
                TINY[name].generate(model, SHORT)
        found = TINY[name].generate(model, SHORT)
    with torch.no_grad():
        torch.testing.assert_close(found, fora_by_hand(name, 2, in_place), rtol=1e-5, atol=1e-5)


def test_a_block_that_writes_into_an_argument_that_it_does_not_return_is_refused():
    def write(number, block, own, args, kwargs):
        output = own(*args, **kwargs)
        (kwargs["encoder_hidden_states"] if "encoder_hidden_states" in kwargs else args[2]).add_(1)
        return output

    model = model_of("Sana")
    with replaced_blocks("Sana", write), torch.no_grad():
        with fc.apply(model, fc.fora(1).plan(grid_by_blocks(model, len(SHORT)))):
            TINY["Sana"].generate(model, SHORT)
        with (
            fc.apply(model, fc.fora(2).plan(grid_by_blocks(model, len(SHORT)))),
            pytest.raises(fc.errors.RunError, match=r"writes into its argument .*: name modules inside"),
        ):
            TINY["Sana"].generate(model, SHORT)


@pytest.mark.parametrize(
    "change",
    [lambda x: x[:, :-1], lambda x: x[:1], lambda x: (x, x), lambda x: (x,), lambda x: {"x": x}, lambda x: None],
    ids=["tokens", "batch", "two", "tuple", "dict", "nothing"],
)
def test_a_block_that_returns_something_else_is_refused(change):
    model = model_of("Sana")
    write = lambda number, block, own, args, kwargs: change(own(*args, **kwargs))  # noqa: E731
    with (
        replaced_blocks("Sana", write),
        torch.no_grad(),
        fc.apply(model, fc.fora(2).plan(grid_by_blocks(model, len(SHORT)))),
        pytest.raises(fc.errors.ModelError, match=r"SanaTransformerBlock is expected to return hidden_states"),
    ):
        TINY["Sana"].generate(model, SHORT)


# ---- modules ---------------------------------------------------------------------------------------------------------


class Writing(nn.Module):
    """One site in a loop; ``inner`` of its forward writes somewhere, ``after`` of the model into what it gave out."""

    def __init__(self, inner=None, after=None):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.inner = inner or (lambda x, y: y)
        self.after = after or (lambda x, y: x + y)
        self.mid = Inner(self.inner)

    def forward(self, x, timestep):
        x = self.first(x)
        x = self.after(x, self.mid(x))
        return self.last(x)


class Inner(nn.Module):
    def __init__(self, write):
        super().__init__()
        self.linear, self.write = nn.Linear(4, 4), write

    def forward(self, x):
        return self.write(x, self.linear(x))


def sample(model, steps=6):
    x = torch.linspace(-1, 1, 24).view(2, 3, 4)
    for step in range(steps):
        x = x - 0.3 * model(x, torch.tensor(9.0 - step))
    return x


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "inner",
    [lambda x, y: x.add_(y), lambda x, y: x.add_(y)[:], lambda x, y: x.copy_(y) * 2, lambda x, y: x.relu_() + y],
)
def test_a_module_that_writes_into_its_input_is_refused_when_it_is_skipped(inner, mode):
    model = Writing(inner)
    with MODES[mode]():
        bare = sample(model)
        with fc.apply(model, fc.fora(1).plan(fc.grid(model, 6, sites=["mid"]))):
            assert torch.equal(sample(model), bare)
        with (
            fc.apply(model, fc.fora(2).plan(fc.grid(model, 6, sites=["mid"]))),
            pytest.raises(
                fc.errors.RunError, match=r"Module mid writes into its input.*inplace=False|changed in place"
            ),
        ):
            sample(model)


def fora_of_mid(model, interval):
    """Every ``interval`` steps ``mid`` is computed, and a copy of its output is kept."""
    x, kept = torch.linspace(-1, 1, 24).view(2, 3, 4), None
    for step in range(6):
        hidden = model.first(x)
        kept = model.mid(hidden) if step % interval == 0 else kept
        x = x - 0.3 * model.last(hidden + kept)
    return x


WAYS = [("no_grad", False), ("inference_mode", False), ("no_grad", True), ("inference_mode", True)]


@pytest.mark.parametrize(("mode", "compiled"), WAYS)
def test_what_the_model_writes_into_a_kept_feature_is_never_reused(mode, compiled):
    """It is refused; or a copy was kept, where writes count no versions."""
    model = Writing(after=lambda x, y: y.add_(x))
    target = torch.compile(model, backend="eager") if compiled else model
    refused = pytest.raises(fc.errors.RunError, match="changed in place")
    with MODES[mode]():
        expected = fora_of_mid(model, 2)
        with fc.apply(target, fc.fora(2).plan(fc.grid(model, 6, sites=["mid"]))):
            if (mode, compiled) == ("no_grad", False):
                with refused:
                    sample(target)
            else:
                torch.testing.assert_close(sample(target), expected)
        with fc.apply(target, fc.fora(3).plan(fc.grid(model, 6, sites=["mid"]))), refused:
            sample(target)
