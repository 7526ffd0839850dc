"""Random small transformers, for hypothesis: what their blocks return, share, write into and when they are called.

B batch, N tokens of the image, M of a text, D width.
"""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import nn

WIDTH, TOKENS, TEXT = 4, 3, 2


@dataclass(frozen=True)
class BlockSpec:
    """One block.

    mixes: it has a site ``mix`` over tokens, before its ``mlp``.
    returns: a tensor, a tuple, a dict or a record of its streams.
    writes: what it writes into: its input, what it returns being a view of it; its text; its condition; or nothing.
    inner: what its MLP does: it writes into what it is given, returns just that, a buffer of its own that the next call
        overwrites, or a view with strides of zero.
    wrapped: its forward is ``(*args, **kwargs)``.
    by_name: it is called by names.
    """

    mixes: bool = True
    returns: str = "tensor"
    writes: str = ""
    inner: str = ""
    wrapped: bool = False
    by_name: bool = False


@dataclass(frozen=True)
class ModelSpec:
    """One model.

    blocks: the block objects.
    order: which of them runs at which depth; one that stands twice is shared.
    joint: blocks have a second stream, the text.
    text_width: width of the text.
    rank: dimensions of the stream: (B, D), (B, N, D) or (B, 2, N, D).
    prunes: the step from which on the blocks see a token less; None for none.
    container: how the blocks are held.
    returns: what the model returns.
    at: how the block at depth 0 is called: always, at even steps, twice, never.
    between: what the model does to the stream between blocks: nothing, add in place, add.
    counts: it has a buffer that counts its calls and takes part.
    gives_nan: the step at which its last block's output is not a number; None for none.
    fails: the call at which its first block fails; None for none.
    dtype: of parameters and tokens.
    wrapped: its forward is ``(*args, **kwargs)``.
    seed: of its weights.
    """

    blocks: tuple[BlockSpec, ...]
    order: tuple[int, ...]
    joint: bool = False
    text_width: int = WIDTH
    rank: int = 3
    prunes: int | None = None
    container: str = "list"
    returns: str = "tensor"
    at: str = "always"
    between: str = ""
    counts: bool = False
    gives_nan: int | None = None
    fails: int | None = None
    dtype: torch.dtype = torch.float64
    wrapped: bool = False
    seed: int = 0


@dataclass
class Record:
    """What models of libraries return."""

    sample: torch.Tensor
    text: torch.Tensor | None = None


class FailedError(Exception):
    """A failure of the model's own."""


def packed(how, sample, text=None):
    if how == "record":
        return Record(sample, text)
    if how == "dict":
        return {"sample": sample, "text": text}
    if how == "tuple":
        return (sample,) if text is None else (sample, text)
    return sample


def unpacked(how, output):
    """The streams of an output of this form."""
    if how == "record":
        return output.sample, output.text
    if how == "dict":
        return output["sample"], output["text"]
    if how == "tuple":
        return output[0], output[1] if len(output) > 1 else None
    return output, None


class Mix(nn.Module):
    """Every token gets a projection of the mean of all; a text of the same width joins them."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(WIDTH, WIDTH)

    def forward(self, x, text=None):
        whole = x.reshape(len(x), -1, WIDTH)
        if text is not None and text.shape[-1] == WIDTH:
            whole = torch.cat([whole, text], 1)
        mean = whole.mean(1).view(len(x), *[1] * (x.ndim - 2), WIDTH)
        return torch.tanh(self.project(mean + 0.5 * x))


class Mlp(nn.Module):
    def __init__(self, how, width=WIDTH):
        super().__init__()
        self.up, self.down, self.how = nn.Linear(width, 2 * width), nn.Linear(2 * width, width), how
        self.own = None

    def forward(self, x):
        if self.how == "given":
            return x
        x = x.tanh_() if self.how == "in place" else x
        y = self.down(torch.nn.functional.gelu(self.up(x)))
        if self.how == "buffer":
            if self.own is None or self.own.shape != y.shape or self.own.dtype != y.dtype or torch.is_grad_enabled():
                self.own = torch.empty_like(y)
            return self.own.copy_(y)
        if self.how == "expanded" and y.ndim > 2:
            return y.mean(-2, keepdim=True).expand_as(y)
        return y


def normed(x):
    return x / (1 + x.abs().mean(-1, keepdim=True))


def gate_of(scale):
    return 0.5 + 0.1 * torch.tanh(scale)


TEXT_GATE = 0.3


class RandomBlock(nn.Module):
    def __init__(self, spec, joint, text_width):
        super().__init__()
        self.spec, self.joint = spec, joint
        if spec.mixes:
            self.mix = Mix()
        self.mlp = Mlp(spec.inner)
        if joint:
            self.mlp_text = Mlp("", text_width)

    def before_mlp(self, x):
        return x if self.spec.inner == "given" else normed(x)

    def run(self, x, text=None, scale=None):
        spec, given, given_text = self.spec, x, text
        gate, y = gate_of(scale), x
        if spec.mixes:
            y = y + gate * self.mix(normed(y), text)
        y = y + gate * self.mlp(self.before_mlp(y))
        if self.joint:
            text = text + TEXT_GATE * self.mlp_text(normed(text))
        if spec.writes == "condition":
            scale.add_(0.01)
        if spec.writes == "text" and given_text is not None:
            text = given_text.copy_(text)
        if spec.writes == "input":
            y = given.copy_(y)
        elif spec.writes == "view":
            y = given.copy_(y)[:]
        if spec.returns == "tensor":
            return y
        return packed(spec.returns, y, text if self.joint else None)


class NamedBlock(RandomBlock):
    def forward(self, x, text=None, scale=None):
        return self.run(x, text, scale)


class WrappedBlock(RandomBlock):
    """A block decorated by a library that says nothing of what it wraps."""

    def forward(self, *args, **kwargs):
        return self.run(*args, **kwargs)


CONTAINERS = ("list", "lists", "dict", "attributes")


class RandomModel(nn.Module):
    """(B, N, D) to (B, N, D), at a timestep, with a text (B, M, D)."""

    def __init__(self, spec):
        super().__init__()
        torch.manual_seed(spec.seed)
        self.spec = spec
        kinds = [WrappedBlock if block.wrapped else NamedBlock for block in spec.blocks]
        objects = [kind(block, spec.joint, spec.text_width) for kind, block in zip(kinds, spec.blocks, strict=True)]
        blocks = [objects[number] for number in spec.order]
        if spec.container == "list":
            self.blocks = nn.ModuleList(blocks)
        elif spec.container == "dict":
            self.blocks = nn.ModuleDict({f"layer{depth}": block for depth, block in enumerate(blocks)})
        elif spec.container == "lists":
            half = (len(blocks) + 1) // 2
            self.blocks = nn.ModuleList([nn.ModuleList(blocks[:half]), nn.ModuleList(blocks[half:])])
        else:
            for depth, block in enumerate(blocks):
                self.add_module(f"block{depth}", block)
        self.last = nn.Linear(WIDTH, WIDTH)
        self.calls = 0
        self.register_buffer("count", torch.zeros(()))
        self.to(spec.dtype)

    def stack(self):
        """The blocks in order of execution."""
        if self.spec.container == "lists":
            return [block for part in self.blocks for block in part]
        if self.spec.container == "dict":
            return list(self.blocks.values())
        if self.spec.container == "attributes":
            return [getattr(self, f"block{depth}") for depth in range(len(self.spec.order))]
        return list(self.blocks)

    def run(self, x, timestep, text=None, step=0):
        spec, first = self.spec, x
        self.calls += 1
        if spec.counts:
            self.count += 1
            x = x + 0.01 * self.count
        alone = [1] * (spec.rank - 1)
        x = x + 0.01 * torch.cos(timestep).to(x.dtype).view(-1, *alone)
        scale = torch.sin(timestep).to(x.dtype).view(-1, *alone).repeat(1, *alone)
        text = text if spec.joint else None
        is_pruned = spec.prunes is not None and step >= spec.prunes and spec.rank > 2
        if is_pruned:
            x = x[..., :-1, :]
        for depth, block in enumerate(self.stack()):
            times = {"even": 1 - step % 2, "twice": 2, "never": 0}.get(spec.at, 1) if depth == 0 else 1
            for _ in range(times):
                if spec.fails == self.calls and depth == 0:
                    raise FailedError
                x, text = self.through(block, x, text, scale)
            if spec.between == "in place":
                x += 0.1 * torch.tanh(scale)
            elif spec.between == "new":
                x = x + 0.1 * torch.tanh(scale)
        if spec.gives_nan == step:
            x = x + float("nan")
        if is_pruned:
            x = torch.cat([x, x[..., -1:, :]], -2)
        return packed(spec.returns, self.last(x) + 0.1 * first)

    def through(self, block, x, text, scale):
        if block.spec.by_name:
            output = block(x=x, scale=scale) if text is None else block(x=x, text=text, scale=scale)
        else:
            output = block(x, text, scale)
        y, returned = unpacked(block.spec.returns, output)
        return y, text if returned is None else returned


class NamedModel(RandomModel):
    def forward(self, x, timestep, text=None, step=0):
        return self.run(x, timestep, text, step)


class WrappedModel(RandomModel):
    def forward(self, *args, **kwargs):
        return self.run(*args, **kwargs)


def model_of(spec):
    return (WrappedModel if spec.wrapped else NamedModel)(spec).eval()


def often(usual, *others):
    """Mostly the usual value, so that most models have few oddities."""
    return st.sampled_from([usual] * (8 * len(others)) + list(others))


block_specs = st.builds(
    BlockSpec,
    mixes=st.booleans(),
    returns=often("tensor", "tuple", "dict", "record"),
    writes=often("", "input", "view", "text", "condition"),
    inner=often("", "in place", "given", "buffer", "expanded"),
    wrapped=often(False, True),
    by_name=st.booleans(),
)


@st.composite
def model_specs(draw, steps):
    """Any model that samples ``steps`` steps."""
    joint = draw(st.booleans())
    blocks = tuple(draw(st.lists(block_specs, min_size=1, max_size=3)))
    order = list(range(len(blocks)))
    if draw(often(False, True)):
        order.append(draw(st.sampled_from(order)))
    return ModelSpec(
        blocks=blocks,
        order=tuple(order),
        joint=joint,
        text_width=draw(st.sampled_from([WIDTH, WIDTH, 2, 6])),
        rank=draw(often(3, 2, 4)),
        prunes=draw(often(None, draw(st.integers(1, steps - 1)))),
        container=draw(st.sampled_from(CONTAINERS)),
        returns=draw(st.sampled_from(["tensor", "tuple", "dict", "record"])),
        at=draw(often("always", "even", "twice", "never")),
        between=draw(often("", "in place", "new")),
        counts=draw(often(False, True)),
        gives_nan=draw(often(None, draw(st.integers(0, steps - 1)))),
        fails=draw(often(None, draw(st.integers(1, 2 * steps)))),
        dtype=draw(often(torch.float64, torch.float32, torch.bfloat16, torch.float16)),
        wrapped=draw(often(False, True)),
        seed=draw(st.integers(0, 9)),
    )
