"""Random small transformers x random plans: right against sampling by a dictionary of features, or refused."""

import gc
from collections import Counter
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.by_dictionary import Dictionary, UnplannedError, as_blocks, as_branches, as_modules, forwards, rows_of
from support.random_models import (
    TEXT,
    TEXT_GATE,
    TOKENS,
    WIDTH,
    FailedError,
    ModelSpec,
    RandomModel,
    gate_of,
    model_of,
    model_specs,
    normed,
    unpacked,
)

import forecache as fc
from forecache.models.blocks import Block, Branch, residual
from forecache.models.layout import from_blocks
from forecache.plan.constants import Constants

PREFIX = {"list": "blocks.*", "dict": "blocks.*", "lists": "blocks.*.*", "attributes": "block*"}
KINDS = {"mlp": ["mlp"], "mix": ["mix"], "branches": ["mix", "mlp"], "all": ["mix", "mlp", "mlp_text"]}
LEVELS = (*KINDS, "modules", "blocks", "known")
MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "grad": nullcontext,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}
PAIR = ("cond", "uncond")


@dataclass(frozen=True)
class Case:
    """One model, one plan, and how it is sampled.

    level: kinds of sites: modules in blocks, ``modules`` for whole blocks by name, ``blocks`` for a registered family
        of whole blocks, ``known`` for one of branches.
    corrects: estimates have gains and shifts.
    table: the cells of every site, taken in turn.
    lanes: how two calls of a step are told apart: not at all (one call), by ``session.lane``, by ``lanes=``.
    batches: of both generations.
    """

    spec: ModelSpec
    steps: int
    level: str
    table: tuple
    corrects: bool
    share: float | None
    lanes: str
    mode: str
    batches: tuple[int, int]
    max_error: float | None
    cache_dtype: torch.dtype | None
    by_name: bool

    @property
    def is_plain(self):
        """Whether nothing about it is a reason to refuse it."""
        spec, blocks = self.spec, self.spec.blocks
        return (
            spec.at == "always"
            and len(set(spec.order)) == len(spec.order)
            and spec.between != "in place"
            and spec.prunes is None
            and not any(block.writes or block.inner in ("in place", "buffer") for block in blocks)
            and not (self.level == "blocks" and spec.rank != 3 and 2 in streams_of(spec))
            and not (case_has_tokens(self) and (spec.rank != 3 or spec.joint))
            and (self.level not in ("modules", "blocks") or all(block.returns == "tensor" for block in blocks))
            and (self.level != "mix" or any(block.mixes for block in blocks))
        )


def rounded(weight):
    return round(weight, 2)


@st.composite
def rows(draw, steps):
    """A row of any reads: mostly reuse and lines through the last two, at times anything."""
    row = [fc.parts.Cell()]
    for step in range(1, steps):
        sources = draw(st.lists(st.integers(0, step - 1), max_size=3, unique=True))
        if not sources or draw(st.integers(0, 2)) == 0:
            row.append(fc.parts.Cell())
            continue
        shares = [rounded(draw(st.floats(-1.5, 1.5))) for _ in sources[1:]]
        first = rounded(draw(st.floats(-1.5, 1.5))) if draw(st.integers(0, 3)) == 0 else rounded(1 - sum(shares))
        row.append(fc.parts.Cell(tuple(zip(sources, [first, *shares], strict=True))))
    return tuple(row)


def often(usual, *others):
    return st.sampled_from([usual] * (3 * len(others)) + list(others))


@st.composite
def cases(draw):
    steps = draw(st.integers(2, 6))
    spec, level = draw(model_specs(steps)), draw(st.sampled_from(LEVELS))
    level = "blocks" if level == "known" and not can_be_known(spec) else level
    mode = draw(often("no_grad", "inference_mode", "grad", "autocast"))
    return Case(
        spec=spec,
        steps=steps,
        level=level,
        table=tuple(draw(st.lists(rows(steps), min_size=1, max_size=3))),
        corrects=draw(often(False, True)),
        share=draw(often(None, 0.0, 0.4, 0.7, 1.0)),
        lanes=draw(often("", "named", "in turn")),
        mode="no_grad" if spec.dtype == torch.float16 and mode == "autocast" else mode,  # torch has no such autocast
        batches=draw(st.sampled_from([(1, 1), (2, 2), (2, 1), (1, 3)])),
        max_error=draw(often(None, 0.3)),
        cache_dtype=draw(often(None, torch.bfloat16)),
        by_name=draw(st.booleans()),
    )


# ---- the library ----------------------------------------------------------------------------------------------------


def streams_of(spec):
    """How many streams every block in order returns."""
    return [1 + (spec.joint and spec.blocks[number].returns == "tuple") for number in spec.order]


def can_be_known(spec):
    """Whether a block is its branches and nothing else."""
    return not any(block.writes or block.inner == "in place" for block in spec.blocks) and all(
        block.returns == "tensor" or (block.returns == "tuple" and spec.joint) for block in spec.blocks
    )


def layout_of(model):
    """A family of the model's blocks, one site each."""
    pairs = [(block, ("x", "text")[:count]) for block, count in zip(model.stack(), streams_of(model.spec), strict=True)]
    starts = range(len(pairs)) if model.spec.between else ()
    blocks = [residual(block, names, tuple(range(len(names)))) for block, names in pairs]
    return from_blocks(model, blocks, starts=starts, level="blocks")


def known_layout_of(model):
    """A family of the blocks' branches."""
    pairs = zip(model.stack(), streams_of(model.spec), strict=True)
    starts = range(len(model.stack())) if model.spec.between else ()
    return from_blocks(model, [branches_of(block, count) for block, count in pairs], starts=starts)


def branches_of(block, count):
    def condition(x, text=None, scale=None):
        return text, gate_of(scale)

    def gate(condition):
        return condition[1]

    branches = []
    if block.spec.mixes and count == 2:
        branches = [Branch("mix", lambda x, text, _: block.mix(normed(x), text), gate, reads=(0, 1))]
    elif block.spec.mixes:
        branches = [Branch("mix", lambda x, condition: block.mix(normed(x), condition[0]), gate)]
    branches += [Branch("mlp", lambda x, _: block.mlp(block.before_mlp(x)), gate, tokenwise=True)]
    if count == 2:
        mlp_text = Branch("mlp_text", lambda x, _: block.mlp_text(normed(x)), lambda _: TEXT_GATE, streams=(1,))
        branches.append(mlp_text)
    return Block(block, condition, tuple(branches), inputs=("x", "text")[:count], outputs=tuple(range(count)))


def grid_of(case, model):
    if case.level in ("blocks", "known"):
        return fc.grid(model, case.steps)
    prefix = PREFIX[case.spec.container]
    kinds = KINDS.get(case.level)
    if kinds is None:
        return fc.grid(model, case.steps, sites=[prefix])
    paths = [path for path, _ in model.named_modules()]
    known = [kind for kind in kinds if any(path.endswith("." + kind) for path in paths)]
    return fc.grid(model, case.steps, sites=[f"{prefix}.{kind}" for kind in known or kinds])


def plan_of(case, grid):
    """The cells in turn; where tokens are asked for, those of MLPs after a mix are partial.

    Corrections have one value a channel, and stand where streams are not parts of one feature.
    """
    table, before = [], None
    for number, site in enumerate(grid.sites):
        row = case.table[number % len(case.table)]
        if case.share is not None and site.kind == "mlp" and before is not None and before.kind == "mix":
            tokens = fc.parts.Tokens(case.share, "attn_norm", before.name)
            row = tuple(
                fc.parts.Cell(cell.reads, tokens=tokens) if cell.reads and step % 2 else cell
                for step, cell in enumerate(row)
            )
        if case.corrects and not (case.level == "blocks" and case.spec.joint) and site.kind != "mlp_text":
            row = tuple(
                replace(cell, gain="gain" if step % 3 else None, shift="shift" if step % 2 else None)
                if cell.reads
                else cell
                for step, cell in enumerate(row)
            )
        table.append(row)
        before = site
    named = {name for row in table for cell in row for name in cell.constants}
    values = {"gain": torch.linspace(-0.1, 0.1, WIDTH), "shift": torch.linspace(0.05, -0.1, WIDTH)}
    return fc.Plan(grid, tuple(table), constants=Constants({name: values[name] for name in named}))


# ---- sampling -------------------------------------------------------------------------------------------------------


def generate(case, model, generation, dictionary=None, session=None):
    """What is sampled, or the model's own failure."""
    seeded = torch.Generator().manual_seed(generation)
    batch = case.batches[generation]
    shape = {2: (), 3: (TOKENS,), 4: (2, TOKENS)}[case.spec.rank]
    x = torch.randn(batch, *shape, WIDTH, generator=seeded, dtype=torch.float64).to(case.spec.dtype)
    texts = torch.randn(2, batch, TEXT, case.spec.text_width, generator=seeded, dtype=torch.float64)
    texts = texts.to(case.spec.dtype)
    try:
        for step in range(case.steps):
            time = torch.full((batch,), 9.0 - step, dtype=torch.float64)
            outputs = []
            for number, lane in enumerate(PAIR if case.lanes else [None]):
                if dictionary is not None:
                    dictionary.begin(step, (generation, lane))
                with session.lane(lane) if session is not None and case.lanes == "named" else nullcontext():
                    arguments = {"timestep": time, "text": texts[number]} if case.by_name else {}
                    given = () if case.by_name else (time, texts[number])
                    output = model(x.clone() + 0.1 * number, *given, **arguments, step=step)
                outputs.append(unpacked(case.spec.returns, output)[0])
                if dictionary is not None:
                    dictionary.end()
            x = x - 0.3 * torch.tanh(sum(outputs)).to(x.dtype)
    except FailedError:
        return None
    return x


def fresh(model):
    model.calls = 0
    with torch.no_grad():
        model.count.zero_()


def both(case, model, **how):
    fresh(model)
    return [generate(case, model, generation, **how) for generation in range(2)]


def by_library(case, model, plan):
    """What is sampled, and ``right``; or None and the error with which it was refused."""
    options = {"lanes": PAIR} if case.lanes == "in turn" else {}
    guards = fc.runtime.Guards(max_error=case.max_error)
    try:
        with fc.apply(model, plan, guards=guards, cache_dtype=case.cache_dtype, **options) as session:
            samples = both(case, model, session=session)
    except fc.ForecacheError as error:
        return None, refused(case, error)
    assert not sum(mounted.held_bytes for mounted in session._models), "features are still counted"
    return samples, "right"


def by_hand(case, model, plan):
    """What is to be sampled; None where a plan does not say what."""
    dictionary = Dictionary(rows_of(plan), case.max_error, case.cache_dtype, plan.constants)
    if case.level == "blocks":
        pairs = as_blocks(model.stack(), dictionary, streams_of(case.spec))
    elif case.level == "known":
        pairs = as_branches(model.stack(), dictionary, streams_of(case.spec))
    else:
        pairs = as_modules(model, dictionary)
    with forwards(list(pairs)):
        try:
            return both(case, model, dictionary=dictionary)
        except (UnplannedError, KeyError, IndexError, RuntimeError):
            return None


def is_close(sample, expected, case):
    if sample is None or expected is None:
        return sample is expected
    if sample.shape != expected.shape or sample.dtype != expected.dtype:
        return False
    is_rough = case.cache_dtype is not None or case.mode == "autocast" or case.spec.dtype.itemsize == 2
    tolerance = 0.1 if is_rough else 1e-4 if case.spec.dtype == torch.float32 or case.mode == "autocast" else 1e-9
    size = expected.double().nan_to_num(0, 0, 0).abs().max().clamp(min=1).item()
    return torch.allclose(sample.double(), expected.double(), rtol=0, atol=tolerance * size, equal_nan=True)


def is_equal(sample, expected):
    if sample is None or expected is None:
        return sample is expected
    return torch.equal(sample.nan_to_num(77), expected.nan_to_num(77))


def state_of(model):
    """What a session must not leave anything in."""
    return {
        path: (
            {
                name: id(value)
                for name, value in vars(module).items()
                if name not in ("calls", "own", "_buffers", "_parameters")
            },
            len(module._forward_hooks) + len(module._forward_pre_hooks),
            type(module),
        )
        for path, module in model.named_modules()
    }


def tensors_alive():
    gc.collect()
    return sum(type(thing) in (torch.Tensor, torch.nn.Parameter) for thing in gc.get_objects())


OUTCOMES = Counter()


def outcome(case):
    """``right``, or the class of the error with which it was refused; AssertionError for anything else."""
    with ExitStack() as stack:
        layout = known_layout_of if case.level == "known" else layout_of
        stack.enter_context(fc.models.register(RandomModel, layout))
        stack.enter_context(MODES[case.mode]())
        model = model_of(case.spec)
        before = state_of(model)
        bare = both(case, model)
        try:
            grid = grid_of(case, model)
            plan = plan_of(case, grid)
        except fc.ForecacheError as error:
            return refused(case, error)
        expected = by_hand(case, model, plan)
        computed, _ = by_library(case, model, fc.fora(1).plan(grid))
        if computed is not None:
            assert all(map(is_equal, computed, bare)), "everything computed is not the bare model"
        samples, result = by_library(case, model, plan)
        if samples is not None and expected is None and case.spec.prunes is not None:
            result = "started afresh where the tokens became fewer"
        elif samples is not None:
            assert expected is not None, "it ran, and there is nothing that it could have run"
            assert all(is_close(*pair, case) for pair in zip(samples, expected, strict=True)), "wrong"
        assert state_of(model) == before, "something is left behind"
        assert all(map(is_equal, both(case, model), bare)), "the model is another one"
        return result


def case_has_tokens(case):
    return case.share is not None and case.level in ("branches", "all", "known")


def refused(case, error):
    assert not case.is_plain, error
    return f"{type(error).__name__}: {str(error)[:60]}"


def check(case):
    OUTCOMES[outcome(case)] += 1


SUPPRESSED = [HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(max_examples=50, suppress_health_check=SUPPRESSED)
@given(cases())
def test_any_model_by_any_plan_is_right_or_refused(case):
    check(case)


@pytest.mark.slow
@settings(max_examples=500, suppress_health_check=SUPPRESSED)
@given(cases())
def test_hundreds_of_models_by_any_plan_are_right_or_refused(case):
    check(case)
