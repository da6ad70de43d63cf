"""A phase takes hold of a chain: which parameters have gradients, which modules are in training mode, what may change, what pulls back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from regraft.adapters import is_adapter
from regraft.layout import HEAD

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from regraft.chain import Chain
    from regraft.freeze import Phase


def trained(chain: Chain, current: Phase) -> Iterator[tuple[str, nn.Parameter]]:
    """What trains in this phase, by its name in the chain: exactly that, whatever the stages hold beside it."""
    for stage in current.trains:
        for where, module in chain.named_modules_of(stage):
            for name, parameter in module.named_parameters(recurse=False):
                if _wholly(where, current) or (
                    where.split(".")[0] == "backbone" and PARTS[current.only](module, f"{where}.{name}", parameter)
                ):
                    yield f"{where}.{name}", parameter


def gradients(chain: Chain, current: Phase) -> None:
    """Gradients for what trains in this phase, and for nothing else."""
    chain.requires_grad_(False)
    for _, parameter in trained(chain, current):
        parameter.requires_grad_(True)


def modes(chain: Chain, current: Phase) -> None:
    """Training mode for what trains, eval mode for the rest: a frozen BatchNorm keeps its statistics, a frozen dropout is off."""
    training = {id(module) for module in awake(chain, current)}
    for stage in chain.stages:
        for _, module in chain.named_modules_of(stage):
            # the attribute itself: module.train() would descend into children that may belong to other stages
            module.training = id(module) in training


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


def lowest(chain: Chain, current: Phase) -> str:
    """The lowest stage in which a parameter trains; the head where none does."""
    return next((chain.stage_of(name) for name, _ in trained(chain, current)), HEAD)


def tightened(chain: Chain, current: Phase) -> Phase:
    """The phase without those stages in which nothing of what it trains is found: what lies below the others runs once."""
    if current.only == "all":
        return current
    held = {chain.stage_of(name) for name, _ in trained(chain, current)} | {HEAD}
    trains = tuple(stage for stage in current.trains if stage in held)
    return replace(current, boundary=trains[0], trains=trains, factors=tuple(each for each in current.factors if each[0] in trains))


def changing(chain: Chain, phases: Iterable[Phase]) -> set[str]:
    """Names (as in the chain's state dict) of all parameters and buffers that may change in these phases, and of no others."""
    changed: set[int] = set()
    for current in phases:
        changed |= {id(parameter) for _, parameter in trained(chain, current)}
        changed |= {id(buffer) for module in awake(chain, current) for buffer in module.buffers(recurse=False)}
    # the tensors themselves, since one may have several names; a buffer that is not persistent has none, and can't be kept
    return {name for name, tensor in chain.state_dict(keep_vars=True).items() if id(tensor) in changed}


def pull(chain: Chain, current: Phase, start: Mapping[str, Tensor]) -> Tensor | None:
    """What a phase adds to the loss: alpha/2 |w - start|^2 over what trains of the backbone, beta/2 |w|^2 over the rest (Li et al. 2018,
    eq. 2: L2-SP). None: nothing. `start`: the weights before all training, by their names in the chain, on the same device."""
    if current.pull is None:
        return None
    alpha, beta = current.pull
    terms = [
        alpha * (parameter - start[name]).square().sum() if name.startswith("backbone.") else beta * parameter.square().sum()
        for name, parameter in trained(chain, current)
    ]
    return sum(terms[1:], start=terms[0]) / 2


def awake(chain: Chain, current: Phase) -> Iterator[nn.Module]:
    """The modules in training mode: those whose own parameters train, and in a stage that trains wholly those that have none.

    A norm with running statistics is not among them under norm_stats=frozen: it goes by the statistics that it has, and keeps them.
    """
    mine = {id(parameter) for _, parameter in trained(chain, current)}
    for stage in current.trains:
        for where, module in chain.named_modules_of(stage):
            own = [id(parameter) for parameter in module.parameters(recurse=False)]
            fixed = current.norm_stats == "frozen" and is_norm(module) and any(True for _ in module.buffers(recurse=False))
            if not fixed and (not mine.isdisjoint(own) if own else _wholly(where, current)):
                yield module


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises: its kind, or one that it is derived from, says so, and its own parameters are one per channel."""
    named = any("norm" in kind.__name__.lower() or kind.__name__.startswith("FilterResponse") for kind in type(module).__mro__)
    return named and all(parameter.numel() == max(parameter.shape, default=1) for parameter in module.parameters(recurse=False))


def _wholly(where: str, current: Phase) -> bool:
    return current.only == "all" or where.split(".")[0] == HEAD


# what a phase's `only` lets train: (module, name of its parameter in the chain, the parameter)
PARTS: dict[str, Callable[[nn.Module, str, nn.Parameter], bool]] = {
    "all": lambda module, name, parameter: True,
    "norms": lambda module, name, parameter: is_norm(module),
    "biases": lambda module, name, parameter: name.endswith("bias") and parameter.ndim == 1,
    "adapters": lambda module, name, parameter: is_adapter(name),
}
