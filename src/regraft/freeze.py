"""A freeze policy is a list of phases; each phase draws a boundary in the chain: below it nothing changes, above it trains."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from regraft.errors import Problem, UserError
from regraft.registry import Group, Named, doc

if TYPE_CHECKING:
    import torch

    from regraft.chain import Chain

HEAD = "head"


@dataclass(frozen=True)
class Phase:
    """A stretch of training in which the same parameters train."""

    name: str
    epochs: int
    boundary: str  # the lowest stage that trains; what lies below it gives the same answer every time
    trains: tuple[str, ...]  # the stages that train, in the chain's order
    lr: float = 1.0  # factor on optimizer.lr

    def plain(self) -> dict[str, Any]:
        return asdict(self) | {"trains": list(self.trains)}


class FreezePolicy(Named):
    """Common to all policies."""

    def least_epochs(self) -> int:
        """The fewest epochs that give each phase one."""
        return 1

    def phases(self, stages: Sequence[str], epochs: int) -> list[Phase]:
        """The phases of a run. `stages` are the chain's, from the lowest to the head. Raises UserError for one that is not there."""
        raise NotImplementedError


def phase(name: str, epochs: int, trains: Sequence[str], lr: float = 1.0) -> Phase:
    return Phase(name, epochs, trains[0], tuple(trains), lr)


class Nothing(FreezePolicy):
    """Fine-tune: every stage trains."""

    def phases(self, stages: Sequence[str], epochs: int) -> list[Phase]:
        return [phase("fine-tune", epochs, stages)]


class BackboneFrozen(FreezePolicy):
    """Linear probe: only the head trains."""

    def phases(self, stages: Sequence[str], epochs: int) -> list[Phase]:
        return [phase("probe", epochs, [HEAD])]


class Last(FreezePolicy):
    """The last n stages below the head train, and the head."""

    n: int = doc("how many stages below the head train; 0 is the linear probe", ge=0)

    def phases(self, stages: Sequence[str], epochs: int) -> list[Phase]:
        below = len(stages) - 1
        if self.n > below:
            raise UserError(Problem("freeze.n", self.n, f"the net has {below} stages below the head: {', '.join(stages[:-1])}"))
        return [phase(f"last {self.n}", epochs, stages[below - self.n :])]


class LinearProbeFineTune(FreezePolicy):
    """LP-FT: first the head alone, then everything (Kumar et al. 2022, section 3.4)."""

    probe: float = doc("part of the epochs that probe, 0..1; each phase gets at least one epoch", gt=0, lt=1)
    finetune_lr: float = doc("factor on optimizer.lr while fine-tuning", gt=0)

    def least_epochs(self) -> int:
        return 2

    def phases(self, stages: Sequence[str], epochs: int) -> list[Phase]:
        probe = min(max(1, round(self.probe * epochs)), epochs - 1)
        return [phase("probe", probe, [HEAD]), phase("fine-tune", epochs - probe, stages, self.finetune_lr)]


GROUP = Group(
    "freeze",
    {"none": Nothing, "backbone": BackboneFrozen, "last": Last, "lp_ft": LinearProbeFineTune},
    "regraft.freeze",
    about="what stays as it was, and when",
)


def gradients(chain: Chain, current: Phase) -> None:
    """Gradients for what trains in this phase, and for nothing else."""
    for stage in chain.stages:
        for _, parameter in chain.named_parameters_of(stage):
            parameter.requires_grad_(stage in current.trains)


def modes(chain: Chain, current: Phase) -> None:
    """Training mode for what trains, eval mode for the rest: a frozen BatchNorm keeps its statistics, a frozen dropout is off."""
    for stage in chain.stages:
        for _, module in chain.named_modules_of(stage):
            own = list(module.parameters(recurse=False))
            # the attribute itself: module.train() would descend into children that may belong to other stages
            module.training = stage in current.trains and (not own or any(parameter.requires_grad for parameter in own))


@contextmanager
def lone(chain: Chain, rows: int, size: int, idle: bool) -> Iterator[None]:
    """BatchNorm answers by its running statistics where torch would refuse: one value has no statistics of its own.

    `rows` of a global batch of `size`; `idle`: they are a stand-in that counts for nothing, and so moves no statistics either. What
    SyncBatchNorm does depends on `size` alone, the same on every rank, since all of them meet in it.
    """
    import torch

    norms = [m for m in chain.modules() if rows == 1 and m.training and isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]

    def judge(norm: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        single = inputs[0].numel() == inputs[0].shape[1]  # one value for each channel
        norm.training = not (size == 1 and single if isinstance(norm, torch.nn.SyncBatchNorm) else idle or single)

    hooks = [norm.register_forward_pre_hook(judge) for norm in norms]
    try:
        yield
    finally:
        for hook, norm in zip(hooks, norms, strict=True):
            hook.remove()
            norm.training = True


def changing(chain: Chain, phases: Iterable[Phase]) -> set[str]:
    """Names (as in the chain's state dict) of all parameters and buffers that may change in these phases."""
    stages = {stage for current in phases for stage in current.trains}
    return {name for name in chain.state_dict() if chain.stage_of(name) in stages}  # a buffer that is not persistent can't be kept
