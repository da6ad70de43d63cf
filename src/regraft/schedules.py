"""Learning-rate schedules as pure functions: how far the training is (0..1 of its steps) -> factor on the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable

from regraft.registry import Group, Named, doc

Factor = Callable[[int], float]


class Schedule(Named):
    """Common to all: a linear warm-up from zero over the first part of the steps."""

    warmup: float = doc("part of the steps that warms up linearly, 0..1", ge=0, lt=1)

    def factor(self, steps: int) -> Factor:
        """step (from 0) of `steps` -> factor on the learning rate, in 0..1."""
        first = round(self.warmup * steps)

        def at(step: int) -> float:
            if step < first:
                return (step + 1) / (first + 1)
            return self.shape((step - first) / max(1, steps - first))

        return at

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


GROUP = Group("schedule", {"constant": Constant, "cosine": Cosine}, about="how the learning rate changes over the steps of a phase")
