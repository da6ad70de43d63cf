"""Learning-rate schedules as pure functions: the step of a phase -> factor on the learning rate."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import BeforeValidator

from regraft.errors import Problem, UserError
from regraft.registry import Group, Named, doc

Factor = Callable[[int], float]

_COUNTED = re.compile(r"(\d+(?:\.\d+)?) (steps?|epochs?)")


def _duration(value: object) -> float | str:
    """Raises ValueError, with what would work, for what is no duration."""
    if isinstance(value, str) and (counted := _COUNTED.fullmatch(value)):
        if counted[2].startswith("epoch") or counted[1].isdecimal():
            return value
        raise ValueError("a whole number of steps is needed")
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1:
        return float(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 1:
        raise ValueError(f"say what is counted, '{value:g} steps' or '{value:g} epochs', or give a part 0..1 of the steps")
    raise ValueError("a part 0..1 of a phase's steps is needed, or a text such as '500 steps' or '3 epochs'")


Duration = Annotated[float | str, BeforeValidator(_duration)]  # exactly one of: a part 0..1, "N steps", "N epochs"


def in_steps(duration: float | str, steps: int, epoch_steps: int | None) -> int:
    """A duration as optimizer steps, in a phase of `steps` of which `epoch_steps` make an epoch.

    Raises ValueError for epochs where nobody said how many steps they have.
    """
    if isinstance(duration, float | int):
        return round(duration * steps)
    count, unit = duration.split()
    if unit.startswith("step"):
        return int(count)
    if epoch_steps is None:
        raise ValueError(f"{duration}: how many steps has an epoch?")
    return round(float(count) * epoch_steps)


class Schedule(Named):
    """Common to all: a linear warm-up from zero over the first steps."""

    warmup: Duration = doc("linear warm-up: a part 0..1 of a phase's steps, 'N steps' or 'N epochs'")

    def factor(self, steps: int, epoch_steps: int | None = None) -> Factor:
        """step (from 0) of a phase of `steps` -> factor on the learning rate, in 0..1; `epoch_steps`: steps of an epoch.

        Raises UserError for a warm-up, counted in steps or epochs, that leaves no step after it.
        """
        first = self.warm(steps, epoch_steps)
        after = self.curve(first, steps, epoch_steps)

        def at(step: int) -> float:
            return (step + 1) / (first + 1) if step < first else after(step)

        return at

    def warm(self, steps: int, epoch_steps: int | None) -> int:
        """Steps of the warm-up."""
        first = in_steps(self.warmup, steps, epoch_steps)
        if isinstance(self.warmup, str) and first >= max(1, steps):
            epochs = f" ({steps / epoch_steps:g} epochs)" if epoch_steps else ""
            raise UserError(Problem("schedule.warmup", self.warmup, f"a phase has {steps} steps{epochs}; less than that works"))
        return first

    def curve(self, first: int, steps: int, epoch_steps: int | None) -> Factor:
        """step (from `first`, where the warm-up has ended) -> factor."""
        return lambda step: self.shape((step - first) / max(1, steps - first))

    def shape(self, part: float) -> float:
        """The factor when `part` (0..1) of the steps after the warm-up are done."""
        raise NotImplementedError


class Constant(Schedule):
    """The learning rate as it is."""

    def shape(self, part: float) -> float:
        return 1.0


class Cosine(Schedule):
    """Half a cosine from 1 to 0 (Loshchilov and Hutter 2017, SGDR, eq. 5, one cycle)."""

    def shape(self, part: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * min(1.0, part)))


class Linear(Schedule):
    """A straight line from 1 down to `end`."""

    end: float = doc("factor at the end, 0..1", ge=0, le=1)

    def shape(self, part: float) -> float:
        return 1 + (self.end - 1) * min(1.0, part)


class OneCycle(Schedule):
    """Up from `start` to 1 and down to `end`, once (Smith and Topin 2018, Super-Convergence, section 3); momentum stays as it is."""

    start: float = doc("factor of the first step, 0..1", gt=0, le=1)
    end: float = doc("factor of the last step, 0..1", ge=0, le=1)
    anneal: Literal["cosine", "linear"] = doc("how it goes up and down: cosine or linear")

    def factor(self, steps: int, epoch_steps: int | None = None) -> Factor:
        """As the others; the warm-up is the way up, and its last step has the peak."""
        peak = max(0, self.warm(steps, epoch_steps) - 1)

        def at(step: int) -> float:
            if step < peak:
                return self._between(self.start, 1.0, step / peak)
            return self._between(1.0, self.end, min(1.0, (step - peak) / max(1, steps - 1 - peak)))

        return at

    def _between(self, start: float, end: float, part: float) -> float:
        if self.anneal == "cosine":
            part = 0.5 * (1 - math.cos(math.pi * part))
        return start + (end - start) * part


class Step(Schedule):
    """Multiplied by `gamma` at each milestone."""

    gamma: float = doc("factor at each milestone, 0..1", gt=0, le=1)
    milestones: list[Duration] = doc("when, from the start of a phase: parts 0..1, 'N steps' or 'N epochs'; past its end: never")

    def curve(self, first: int, steps: int, epoch_steps: int | None) -> Factor:
        passed = [in_steps(milestone, steps, epoch_steps) for milestone in self.milestones]
        return lambda step: self.gamma ** sum(step >= milestone for milestone in passed)


GROUP = Group(
    "schedule",
    {"constant": Constant, "cosine": Cosine, "linear": Linear, "one_cycle": OneCycle, "step": Step},
    about="how the learning rate changes over the steps of a phase",
)
