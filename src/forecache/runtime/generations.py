"""Generations: which step of which generation a model call is, and when a new generation starts.

Every thread has lanes of its own, and every lane one generation at a time, with a cache that belongs to it alone.
"""

from __future__ import annotations

import logging
from typing import Any

from forecache.errors import RunError, StepCountError
from forecache.models.arguments import Arguments
from forecache.models.layout import Layout
from forecache.runtime import calls
from forecache.runtime.cache import FeatureCache
from forecache.runtime.calls import Call, LastSample
from forecache.runtime.drift import drift_of
from forecache.runtime.executable import Executables
from forecache.runtime.executor import StepExecutor
from forecache.runtime.host import Runs
from forecache.runtime.lanes import UNNAMED, Lane, ThreadState
from forecache.runtime.run import Run, few_steps, too_short
from forecache.runtime.stats import Counters
from forecache.runtime.tokens import TokenChooser

LOGGER = logging.getLogger("forecache")


class Generations:
    """The generations of a session on one model, in the lanes of all its runs.

    layout: layout of the model.
    executables: what a generation runs, by its number of calls.
    runs: what hosts tell of the model's runs.
    names: names of the model calls of one step, in turn, where nothing else names them; () for none.
    counters: counts generations.
    """

    def __init__(
        self, layout: Layout, executables: Executables, runs: Runs, names: tuple[str, ...], counters: Counters
    ) -> None:
        self.runs, self.local = runs, runs.local
        self._layout, self._executables, self._counters = layout, executables, counters
        self._names = names
        self._find_timestep = calls.timestep_finder(layout.model)
        self._said: set[str] = set()

    def begin(self, arguments: Arguments) -> Lane:
        """The lane of this model call, at the step that the call is; a new generation starts with an empty cache."""
        state = self.runs.state()
        value = self._find_timestep(arguments)
        sample = LastSample(arguments, value)
        call = Call(arguments, value, calls.signature_of(arguments, value), sample, told=state.told)
        if calls.fills_kv_cache(arguments.kwargs):
            return self._lane(state, state.lane, call, Run(1, range(1)), is_announced=True)
        if state.run is not None:
            lane = self._requested(state, state.run, call)
            self.local.call = call
            return lane
        name = self._unnamed_lane(state, call.time) if self._names and state.lane == UNNAMED else state.lane
        lane = state.lanes.get(name)
        if lane is None or _is_read(lane, call):
            call = call._replace(timestep=calls.as_number(call.time))
        else:
            call = call._replace(timestep=lane.timestep)
        if lane is not None:
            lane = self._after(state, name, lane, call)
        if lane is None:
            lane = self._new_generation(state, name, call)
        lane.timestep, lane.last_sample = call.timestep, call.sample
        self.local.call = call
        return lane

    # ---- calls of which a host says what they are --------------------------------------------------------------------

    def _requested(self, state: ThreadState, run: Run, call: Call) -> Lane:
        """The lane of a call whose step a host knows.

        Nothing is known of steps that are left out, so the first call after them is computed. So is one whose inputs
        have other shapes than those before.
        """
        name = state.lane
        lane = state.lanes.get(name)
        due = run.indices.start if lane is None else lane.run.indices.start + lane.step
        step, state.step = due if state.step is None else state.step, None
        if not due <= step < run.indices.stop:
            raise StepCountError(
                f"The lane {name!r} of this request goes on with step {due} of {run.indices.stop}, and it was called "
                f"for step {step}: begin a request for every run, and give calls that come twice at a step a lane of "
                "their own."
            )
        if lane is None or step > due or lane.signature != call.signature:
            rest = run.rest(step - run.indices.start)
            new = self._lane(state, name, call._replace(timestep=rest.timestep(0)), rest, is_announced=True)
            if lane is not None:
                lane.clear()
                new.record = lane.record
            self._record(state, name, new, call)
            lane = new
        lane.timestep, lane.last_sample = lane.run.timestep(lane.step), call.sample
        return lane

    # ---- lanes that nothing names -----------------------------------------------------------------------------------

    def _unnamed_lane(self, state: ThreadState, value: Any) -> str:
        """The lane of a call that nothing named: the calls at one timestep take the names in turn."""
        before, turn = state.unnamed_turn
        if state.announced is not None and state.lanes and not calls.is_at_hand(value):  # no GPU is waited for
            turn = (turn + 1) % len(self._names)
            state.unnamed_turn = before, turn
            return self._names[turn]
        timestep = calls.as_number(value)
        turn = turn + 1 if timestep == before else 0
        if turn == len(self._names) and (timestep is None or self._starts_a_step(state, timestep)):
            turn = 0
        if turn == len(self._names) == 2 and _are_first_calls(state):
            turn = self._shift(state)
        state.unnamed_turn = timestep, turn
        if turn >= len(self._names):
            raise RunError(
                f"The model is called {turn + 1} times at timestep {timestep}, and lanes names {len(self._names)} "
                f"calls of a step ({', '.join(self._names)}): give as many names as there are calls."
            )
        return self._names[turn]

    def _shift(self, state: ThreadState) -> int:
        """Give the second name's lane to the first, and return the turn of this call, the second.

        Three calls at the first timestep are the first call of a run that was stopped, and the first two of another.
        """
        first, second = (state.lanes.pop(name) for name in self._names)
        first.clear()
        state.lanes[self._names[0]] = second
        self._stop(1, first.num_steps)
        return 1

    def _starts_a_step(self, state: ThreadState, timestep: float | None) -> bool:
        """Whether a call at the timestep of the last step, all of whose calls were made, starts another step.

        Timesteps that differ when they are announced may be equal when the model is called, rounded to bfloat16.
        """
        if all(lane.is_done for lane in state.lanes.values()):
            return True
        lane = state.lanes.get(self._names[0])
        if lane is None or timestep is None or lane.is_done:
            return False
        announced = lane.run.timestep(lane.step)
        return announced is not None and abs(announced - timestep) <= abs(timestep) / 100

    # ---- a call after others ----------------------------------------------------------------------------------------

    def _after(self, state: ThreadState, name: str, lane: Lane, call: Call) -> Lane | None:
        """The lane of a call after the last one in its lane; None if a new generation starts.

        Raises StepCountError for a call that is one too many.
        """
        if lane.signature == call.signature:
            return self._after_alike(state, name, lane, call)
        if lane.is_complete:
            return self._ended(lane)
        call = call._replace(timestep=calls.as_number(call.time))
        if self._is_again(lane, call) or (lane.is_announced and _repeats_a_step(lane, call)):
            raise self._several_times(state, call)
        if self._goes_on_unlike(state, lane, call):
            changed = ", ".join(lane.signature.changes(call.signature)[:4])
            return self._rest_of_run(state, name, lane, call, changed)
        return self._cut_short(state, name, lane, call)

    def _after_alike(self, state: ThreadState, name: str, lane: Lane, call: Call) -> Lane | None:
        """`_after` of a call with the lane's signature."""
        timestep, before = call.timestep, lane.timestep
        if timestep is None or before is None or lane.first_timestep is None:
            return self._ended(lane) if lane.is_done else lane
        if not lane.is_done and lane.is_announced:
            # a pipeline's calls are of the run that it announced, and some samplers go up on their way
            if _is_read(lane, call) and self._is_again(lane, call):
                raise self._several_times(state, call)
            if self.local.hosted:
                return lane
            if lane.run.expects(lane.step, timestep):
                state.rising = timestep > before or (state.rising and timestep == before)
                return lane
        if state.is_before(timestep, before):
            if lane.is_complete:
                return self._ended(lane)
            if lane.step == lane.doubtful == 1:  # the second time in a row
                state.rising = not state.rising
                return lane
            return self._cut_short(state, name, lane, call)
        if lane.is_done:
            if timestep == lane.first_timestep:
                return self._ended(lane)
            raise self._one_more(lane, call)
        if self._is_again(lane, call):
            raise self._several_times(state, call)
        is_second = lane.step == 1 and not lane.doubtful and _is_read(lane, call)
        if is_second and timestep == before and not call.sample.is_same_tensor(lane.last_sample):
            # the next step, rounded to the same timestep, or the first one of another run
            return self._doubt(state, name, lane, call)
        return lane

    def _ended(self, lane: Lane) -> None:
        """End a generation that is complete. Calls before it were no part of its run if it has made all its own."""
        if lane.is_done and lane.doubtful and not lane.is_announced:
            self._stop(lane.doubtful, lane.num_steps)
        lane.clear()

    def _cut_short(self, state: ThreadState, name: str, lane: Lane, call: Call) -> Lane | None:
        """End a generation in the middle: a new one starts, and is told nothing of it."""
        lane.clear()
        goes_down = (
            call.timestep is not None and lane.timestep is not None and state.is_before(lane.timestep, call.timestep)
        )
        if not lane.doubtful and (lane.step == 1 or (goes_down and not lane.is_announced)):
            return self._doubt(state, name, lane, call)
        if lane.is_announced:
            return None
        self._stop(lane.step, lane.num_steps)
        for other in state.lanes.values():
            other.clear()
        state.lanes.clear()
        return None

    def _doubt(self, state: ThreadState, name: str, lane: Lane, call: Call) -> Lane:
        """The lane of a new generation whose run may have begun with the calls before.

        It is not known yet whether these were stopped, or the time of the loop goes up, or its batch became smaller.
        """
        lane.clear()
        new = self._new_generation(state, name, call)
        new.doubtful = lane.step
        return new

    def _stop(self, count: int, num_steps: int) -> None:
        """Tell of a run that was stopped after ``count`` calls; the run that begins now does not suffer for it."""
        self.runs.stopped = too_short(count, num_steps)
        LOGGER.warning(
            "A run stopped after %d of %d model calls, and another one began: nothing of it is reused. If it was "
            "stopped on purpose, call session.new_run(); else make a plan of as many steps as the run has calls.",
            count,
            num_steps,
        )

    # ---- a call with other inputs -----------------------------------------------------------------------------------

    def _goes_on_unlike(self, state: ThreadState, lane: Lane, call: Call) -> bool:
        """Whether a call with inputs of other shapes belongs to the lane's run.

        In a pipeline it does, as where guidance ends, and half of the batch with it. In a loop of the user's own it
        does where the sample stays as it is, and time goes on.
        """
        if lane.is_announced and self.local.hosted > 0:
            return True
        if call.timestep is None or lane.timestep is None:
            return False
        if lane.is_announced and lane.run.expects(lane.step, call.timestep):
            return True
        is_same_sample = lane.signature.sample == call.signature.sample
        return is_same_sample and state.is_before(lane.timestep, call.timestep)

    def afresh(self, lane: Lane) -> Lane:
        """The lane for the rest of a lane's run, in a call that finds other tokens inside the model than before."""
        state, call = self.runs.state(), self.local.call
        assert call is not None
        name = next(name for name, other in state.lanes.items() if other is lane)
        new = self._rest_of_run(state, name, lane, call, "the tokens inside the model")
        new.timestep, new.last_sample = lane.timestep, lane.last_sample
        return new

    def _rest_of_run(self, state: ThreadState, name: str, lane: Lane, call: Call, changed: str) -> Lane:
        """A lane for the steps of a run that are left. Nothing from before is read, so its first step is computed."""
        lane.clear()
        self._say_once(
            f"The shape of {changed} changed in the middle of a run (step {lane.step} of {lane.num_steps}): features "
            "from before do not fit, so that the step was computed as a whole."
        )
        new = self._lane(state, name, call, lane.run.rest(lane.step), lane.is_announced)
        new.doubtful, new.first_timestep, new.record = lane.doubtful, lane.first_timestep, lane.record
        new.drift = lane.drift
        if new.record is not None:
            new.record.add(name, new, call.arguments)
        state.lanes[name] = new
        return new

    def _say_once(self, sentence: str) -> None:
        """Log a sentence, once a session."""
        if sentence not in self._said:
            self._said.add(sentence)
            LOGGER.warning(sentence)

    # ---- a new generation -------------------------------------------------------------------------------------------

    def _new_generation(self, state: ThreadState, name: str, call: Call) -> Lane:
        if state.announced is None:
            own = self._executables.unannounced_steps()
            run = Run(own, range(own))
        else:
            run = state.announced(call.timestep)
        lane = self._lane(state, name, call, run, state.announced is not None)
        self._record(state, name, lane, call)
        return lane

    def _record(self, state: ThreadState, name: str, lane: Lane, call: Call) -> None:
        """Put a lane in its place, and note that it begins: with a generation, or with another lane of one."""
        state.lanes[name] = lane
        first = next(iter(state.lanes))
        record = lane.record if name == first else state.lanes[first].record
        lane.record = record or self._counters.begin_generation(call.signature.device)
        lane.record.add(name, lane, call.arguments)
        if (sentence := few_steps(lane.executable.plan)) is not None:
            self._say_once(sentence)

    def _lane(self, state: ThreadState, name: str, call: Call, run: Run, is_announced: bool) -> Lane:
        """A lane of this name for a run, with an empty cache.

        Where a plan decides while it runs, the lane that came first decides for those that begin with the same step.
        """
        executable = self._executables.of(run.total, run.indices)
        others = [lane for lane in state.lanes.values() if not lane.is_done]
        cache_bytes = executable.check_budget(call.arguments, beside=sum(lane.cache_bytes for lane in others))
        executable.refresh()
        options = executable.options
        cache = FeatureCache(executable.num_slots, executable.constants, options, state.meter)
        chooser = TokenChooser(self._layout, state.meter, cache.random)
        executor = StepExecutor(self._layout, cache, chooser, executable.gates, options.max_error)
        lane = Lane(executable, executor, cache, call.signature, run, is_announced, cache_bytes, call.timestep)
        first, leader = next(iter(state.lanes.items()), (name, lane))
        follows = first != name and leader.step == 1 and leader.run == run
        lane.deciding = executable.deciding(leader.deciding.shared if follows and leader.deciding else None)
        lane.leader = leader if follows else None
        lane.drift = leader.drift if follows else drift_of(options.drift, run.total, executable.ranks)
        return lane

    # ---- errors -----------------------------------------------------------------------------------------------------

    def _is_again(self, lane: Lane, call: Call) -> bool:
        """Whether a call has the timestep and the very sample of the call before."""
        return call.timestep is not None and call.timestep == lane.timestep and call.sample.is_same(lane.last_sample)

    def _several_times(self, state: ThreadState, call: Call) -> StepCountError:
        state.drop()
        return StepCountError(
            f"The model is called several times a step, at timestep {call.timestep:g} with the same sample again, "
            "as for guidance, and such calls would reuse each other's features: name the calls with "
            "session.lane(name), or with apply(..., lanes=[...])."
        )

    def _one_more(self, lane: Lane, call: Call) -> StepCountError:
        lane.doubtful = 0  # this error tells of it
        if lane.is_announced:
            return StepCountError(
                f"The scheduler announced {lane.num_steps} model calls, and this run makes one more (timestep "
                f"{call.timestep:g}). If the model is called several times a step, name the calls with "
                "session.lane(name), or with apply(..., lanes=[...]); else apply a plan of as many steps as the run "
                "has calls to the transformer itself, forecache.apply(pipe.transformer, plan)."
            )
        return StepCountError(
            f"The plan has {lane.num_steps} steps, and this run makes one more model call (timestep "
            f"{call.timestep:g}): make the plan for this run's number of calls, "
            "method.plan(forecache.grid(model, num_steps=...)). If the model is called several times a step, "
            "name the calls with session.lane(name), or with apply(..., lanes=[...])."
        )


def _is_read(lane: Lane, call: Call) -> bool:
    """Whether the timestep of a call is read as a number.

    Reading it may wait for a GPU. There is no need where a scheduler has announced how long the generation is.
    """
    return not lane.is_announced or lane.is_done or calls.is_at_hand(call.time)


def _are_first_calls(state: ThreadState) -> bool:
    """Whether every lane has made the first of several calls, of a run that nothing announced."""
    return all(lane.step == 1 and not (lane.is_done or lane.is_announced) for lane in state.lanes.values())


def _repeats_a_step(lane: Lane, call: Call) -> bool:
    """Whether a call comes at the timestep of the call before, though the scheduler announced another one."""
    announced, before = lane.run.timestep(lane.step), lane.run.timestep(lane.step - 1)
    if call.timestep is None or call.timestep != lane.timestep or announced is None or before is None:
        return False
    return abs(announced - before) > abs(before) / 256
