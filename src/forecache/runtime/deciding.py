"""Deciding: the decisions of one generation, made once a step by its first lane and followed by the others.

B batch, N tokens, D width.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from forecache.errors import PlanMismatchError, RunError
from forecache.models.arguments import Arguments, positions
from forecache.models.layout import Layout
from forecache.parts.bounds import Decision
from forecache.parts.decide import Decider, Now, Sees, alone
from forecache.parts.grid import Cell
from forecache.plan.online import Online, Program, fixed_steps, known_decisions
from forecache.plan.ops import Op
from forecache.plan.plan import Plan
from forecache.runtime.executor import StepExecutor
from forecache.runtime.program import Step
from forecache.runtime.ranks import Ranks

STREAM = "hidden_states"
"""The argument of a block that rules look at; where no argument has this name, it is the first tensor."""
ATTENTIONS = ("attn", "attn1", "self_attn", "attention")
"""Names of a block's first attention, whose input is normed and modulated."""


class Decisions:
    """What was decided in one generation, with the state of the rule; all lanes of the generation share it.

    online: the rule, its bounds and its forecast.
    ranks: the processes that sample the request together; None for this one alone.
    rows: of the plan. Where no cell of it is undecided, these are the decisions.
    """

    def __init__(self, online: Online, rows: Sequence[Sequence[Cell]], ranks: Ranks | None = None) -> None:
        is_known = not any(cell.undecided for row in rows for cell in row)
        self.made: list[Decision] = list(known_decisions(rows)) if is_known else []
        self.output: Tensor | None = None
        self._online, self._num_steps, self._fixed = online, len(rows[0]), fixed_steps(rows)
        self._state: Any = online.decider.begin()
        self._ranks = ranks

    @property
    def sees(self) -> Sees:
        """What the rule looks at."""
        return self._online.decider.sees

    def decide(self, **seen: Any) -> Decision:
        """The decision about the next step. seen: what the rule looks at, as in `Now`."""
        step = len(self.made)
        computed = [earlier for earlier, decision in enumerate(self.made) if decision is Decision.COMPUTE]
        forced = self._online.bounds.forced(step, computed, self._num_steps, self._fixed)
        decider: Decider = self._online.decider
        known = {"forecast": self._online.forecast, "output": self.output}
        now = Now(step, self._num_steps, computed, forced, **known, **seen)
        if self._ranks is not None:
            now = replace(now, over=self._ranks.over)
        decision, state = decider.decide(self._state, now)
        if self._ranks is not None and forced is None:
            computes = self._ranks.any(decision is Decision.COMPUTE, _device_of(now))
            if computes and decision is Decision.SKIP:  # a rule that does not look at all of a request
                decision, state = decider.decide(self._state, replace(now, forced=Decision.COMPUTE, over=alone))
        self._state = state
        self.made.append(decision)
        return decision


class Deciding:
    """The steps of one lane whose plan decides while it runs.

    plan: the plan of the lane.
    program: the operations of its steps.
    layout: of the model.
    make: the step of the layout's model with these operations, one a kind of site.
    shared: the decisions of the generation; None for those of its own.
    ranks: the processes that sample the request together; None, the default, for this one alone.
    keeps: whether what the rule is shown at the first step is kept; False by default.
    seen: what the rule was shown at the first step, where that is kept; else nothing.
    leads: whether this lane makes the decisions, and the others follow it.
    """

    def __init__(
        self,
        plan: Plan,
        program: Program,
        layout: Layout,
        make: Callable[[tuple[Op, ...]], Step],
        shared: Decisions | None,
        ranks: Ranks | None = None,
        keeps: bool = False,
    ) -> None:
        assert plan.online is not None
        self.leads = shared is None
        self.shared = Decisions(plan.online, plan.rows, ranks) if shared is None else shared
        self._own, self._program, self._layout, self._make = plan, program, layout, make
        self._kept = program.start
        self.seen: dict[str, Any] = {}
        self._keeps = keeps
        self._ops: list[tuple[Op, ...]] = []

    @property
    def plan(self) -> Plan:
        """The plan with what was decided so far."""
        made = self.shared.made[: len(self._ops)]
        if not self._own.is_undecided:
            return self._own
        provenance = {**self._own.provenance, "decided": "".join(decision.value for decision in made)}
        return replace(self._own, rows=self._own.decided_rows(made), provenance=provenance)

    @property
    def rows(self) -> list[tuple[Op, ...]]:
        """The operations of the steps so far, [site][step]."""
        return [tuple(ops) for ops in zip(*map(self._program.of_sites, self._ops), strict=True)]

    @property
    def last(self) -> tuple[Op, ...]:
        """The operations of the last step, one a site."""
        return self._program.of_sites(self._ops[-1])

    @property
    def number(self) -> int:
        """The number of the next step."""
        return len(self._ops)

    def begin(self, arguments: Arguments, value: Any, sigma: Callable[[], float | None]) -> Step | None:
        """The step of a model call; None if it is decided inside of the call, see `Inside`.

        value: the timestep among the arguments. sigma: gives the noise level, where the rule asks for it.
        """
        if len(self.shared.made) > self.number:
            return self._step(self.shared.made[self.number])
        if not self.leads:
            raise RunError(
                f"The model calls of step {self.number} come in another order than those before: the first call of a "
                "step decides for the others, so make the calls in one order at every step."
            )
        sees = self.shared.sees
        if sees.inside:
            return None
        seen: dict[str, Any] = {}
        if sees.sample:
            seen["sample"] = _own(sample_of(arguments, value))
        if sees.sigma:
            seen["sigma"] = sigma()
        return self.decide(**seen)

    @property
    def is_open(self) -> bool:
        """Whether the plan has undecided cells; else it repeats a run that was decided."""
        return self._own.is_undecided

    def follow(self) -> Step:
        """The step that another has decided about."""
        return self._step(self.shared.made[self.number])

    def compute(self) -> Step:
        """The step of a model call that is computed, whatever the rule and its bounds say."""
        self.shared.made[self.number :] = [Decision.COMPUTE]
        return self._step(Decision.COMPUTE)

    def decide(self, **seen: Any) -> Step:
        """The step of a model call in which the rule has seen something."""
        if self._keeps and self.number == 0:
            self.seen = seen
        return self._step(self.shared.decide(**seen))

    def inside(self, executor: StepExecutor, first: int) -> Inside:
        """What decides in the middle of a model call. first: number of the first undecided block."""
        return Inside(self.decide, executor, self._layout, self.shared.sees, first)

    def end(self, output: Any) -> None:
        """Note the output of a model call that this lane decided about."""
        is_computed = self.shared.made[self.number - 1] is Decision.COMPUTE
        if self.leads and is_computed and self.shared.sees.output:
            self.shared.output = _own(output_of(output))

    def _step(self, decision: Decision) -> Step:
        ops, self._kept = self._program.step(self._kept, self.number, decision)
        self._ops.append(ops)
        return self._make(ops)


class Inside:
    """A decision in the middle of a model call, at the first block that may be skipped.

    decide: gives the step of the call from what is seen.
    executor: which is given the step.
    layout: of the model.
    sees: what the rule looks at.
    first: number of the first block that may be skipped.
    """

    def __init__(
        self, decide: Callable[..., Step], executor: StepExecutor, layout: Layout, sees: Sees, first: int
    ) -> None:
        self._decide, self._executor, self._layout, self._sees, self._first = decide, executor, layout, sees, first
        self._before: Tensor | None = None
        self._looks = False

    def __call__(self, block: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Look at what a block is given; True where it is to run as it is, because the rule looks at what it does."""
        if self._looks:
            return True
        module = self._layout.blocks[block][1].module
        if block == 0 and self._sees.head:
            self._before = _own(stream_of(module, args, kwargs))
        if block != self._first:
            return False
        seen: dict[str, Any] = {}
        if self._sees.head:
            seen = {"before": self._before, "after": _own(stream_of(module, args, kwargs))}
        if self._sees.modulated:
            self._looks = True
            try:
                seen["modulated"] = modulated_input(module, args, kwargs)
            finally:
                self._looks = False
                self._executor.open_spans.clear()
        self._executor.deferred = None
        self._executor.step = self._decide(**seen)
        return False


_LOCK = threading.RLock()


class _ReachedError(Exception):
    """Ends a block's forward where its attention is called, with what the attention is given."""

    def __init__(self, given: Tensor) -> None:
        self.given = given


def modulated_input(block: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """The input (B, N, D) of a block's first attention: the stream, normed and modulated.

    The block's forward is run up to the attention, which costs one norm. Raises RunError for a block in which no
    attention is found.
    """
    attention, thread = first_attention(block), threading.get_ident()
    with _LOCK:
        own, forward = vars(attention).get("forward"), attention.forward

        def reached(*inner: Any, **named: Any) -> Any:
            if threading.get_ident() != thread:
                return forward(*inner, **named)
            raise _ReachedError(first_tensor((named[STREAM], *inner) if STREAM in named else (*inner, *named.values())))

        attention.forward = reached
        try:
            block.forward(*args, **kwargs)
        except _ReachedError as end:
            return end.given.detach()
        finally:
            if own is None:
                del attention.forward
            else:
                attention.forward = own
    raise RunError(
        f"The attention of a {type(block).__name__} was not called, so its modulated input is not seen: take a rule "
        "that looks at something else, such as easycache or fbcache."
    )


def first_attention(block: nn.Module) -> nn.Module:
    """The module of a block's first attention; RunError where none is found."""
    parts = dict(block.named_modules())
    named = [parts[name] for name in ATTENTIONS if name in parts]
    classes = [part for name, part in parts.items() if name and "attention" in type(part).__name__.lower()]
    if not (named or classes):
        raise RunError(
            f"A {type(block).__name__} has no attention that is known by its name ({', '.join(ATTENTIONS)}), so its "
            "modulated input is not seen: take a rule that looks at something else, such as easycache or fbcache."
        )
    return (named or classes)[0]


def first_undecided(layout: Layout, plan: Plan, sees: Sees) -> int:
    """The number of the first block that may be skipped; PlanMismatchError where the rule cannot look there."""
    undecided = [any(cell.undecided for cell in row) for row in plan.rows]
    blocks = [number for number, span in enumerate(layout.spans) if any(undecided[site] for site in span)]
    if not blocks:
        raise PlanMismatchError(
            f"This plan looks at the blocks of a {type(layout.model).__name__}, and its sites are {layout.level}: make "
            'it on forecache.grid(model, num_steps, level="blocks"), or take a rule that looks at the model\'s input, '
            "such as easycache."
        )
    behind = [layout.blocks[number][1].modules for number in range(blocks[-1] + 1, len(layout.blocks))]
    tail = sum(map(len, behind))
    if sees.tail and tail != sees.tail:
        raise PlanMismatchError(
            f"This plan computes {tail} last blocks of a {type(layout.model).__name__} at every step, and its rule "
            f'says {sees.tail}: make the grid with level="stack", ends=({sees.head}, {sees.tail}).'
        )
    return blocks[0]


def _device_of(now: Now) -> torch.device | None:
    """The device of what a rule has seen; None where it has seen nothing."""
    seen = now.sample, now.output, now.modulated, now.after
    return next((tensor.device for tensor in seen if tensor is not None), None)


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def sample_of(arguments: Arguments, timestep: Any) -> Tensor:
    """The first tensor of a model call besides the timestep; a list of samples as one batch."""
    values = [value for value in (*arguments.args, *arguments.kwargs.values()) if value is not timestep]
    return first_tensor(values)


def output_of(output: Any) -> Tensor:
    """The sample that a model gives out."""
    if isinstance(output, Tensor):
        return output
    values = [output] if isinstance(output, list) else list(output.values() if isinstance(output, Mapping) else output)
    return first_tensor(values)


def first_tensor(values: Sequence[Any]) -> Tensor:
    """The first tensor among values; a list of tensors counts as a batch."""
    for value in values:
        if isinstance(value, Tensor):
            return value
        if isinstance(value, list) and value and all(isinstance(part, Tensor) for part in value):
            if len({part.shape for part in value}) == 1:
                return torch.stack(value)
            return torch.cat([part.flatten() for part in value])[None]
    kinds = ", ".join(type(value).__name__ for value in values)
    raise RunError(
        f"A rule that decides while the plan runs reads a tensor, and there is none among {kinds or 'no values'}: take "
        "a rule that looks at something else, or a static plan."
    )


def stream_of(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """The first stream (B, N, D) that a block is given."""
    place = (positions(module, [STREAM]) or {}).get(STREAM)
    if place is not None:
        return args[place] if place < len(args) else kwargs[STREAM]
    return first_tensor((*args, *kwargs.values()))
