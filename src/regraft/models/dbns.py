"""What a Deep Belief Network takes, and what it can learn from: the spec of model=dbn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from regraft.errors import Problem
from regraft.models.recurrents import pooled
from regraft.models.spec import ModelSpec
from regraft.registry import doc

if TYPE_CHECKING:
    from regraft.chain import Backbone


class DBN(ModelSpec):
    """Deep Belief Network (Hinton et al. 2006): stacked restricted Boltzmann machines, which freeze=greedy trains one by one."""

    alone: ClassVar[bool] = True

    depth: int = doc("number of machines, 1 or more", ge=1)
    width: int = doc("hidden units of each machine", ge=1)
    visible: Literal["binary", "gaussian"] = doc("units that see the data: binary (values within 0..1) or gaussian (standardised)")
    k: int = doc("Gibbs steps of each chain between two changes of the weights", ge=1)
    particles: int = doc("chains that go on from step to step (PCD); 0: a new one begins at each sample (CD-k)", ge=0)
    betas: int = doc("steps of the annealed estimate of the lowest machine's log-likelihood after each of its epochs; 0: none", ge=0)
    gain: float = doc("factor on Glorot's random weights: 1 suits greedy learning, 4 sigmoids that train all at once", gt=0)
    window: int = doc("of sequences: frames that the lowest machine sees at a step, that step's the last", ge=1)
    pool: Literal["mean", "none"] = doc("of sequences: mean over the steps, or none: an answer for each step")

    takes: ClassVar[tuple[str, ...]] = ("pictures", "sequence")

    def unfit(self, kind: str) -> list[Problem]:
        return pooled(self.pool, "mean", kind)

    def build(self, size: int) -> Backbone:
        from regraft.models import dbn

        return dbn.build(self.depth, self.width, self.visible, self.k, self.particles, self.betas, self.gain, size)

    def build_for(self, enters: Mapping[str, Any]) -> Backbone:
        from regraft.models import dbn

        own = (self.depth, self.width, self.visible, self.k, self.particles, self.betas, self.gain)
        return dbn.build_for(tuple(enters["shape"]), *own, self.window, self.pool)
