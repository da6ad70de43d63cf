"""Optimizers, and the parameter groups they work on: no weight decay on norms and biases."""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from regraft.errors import Problem, nearest
from regraft.registry import Group, Named, doc

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from regraft.chain import Chain
    from regraft.freeze import Phase


class OptimizerSpec(Named):
    """Common to all optimizers."""

    stacks: ClassVar[bool] = False  # whether `regraft.stack` has it for many heads at once

    lr: float = doc("learning rate at its peak", gt=0)
    weight_decay: float = doc("weight decay of weights; norms and biases have none", ge=0)

    def build(self, groups: list[dict[str, Any]], fused: bool) -> Optimizer:
        """The optimizer over parameter groups that carry their own lr and weight_decay. `fused`: torch's steps in one pass over the
        weights, six times as fast on a processor, where whoever scales the gradients (fp16) does not want to do so himself."""
        raise NotImplementedError


class SGD(OptimizerSpec):
    """Stochastic gradient descent with momentum."""

    stacks = True

    momentum: float = doc("momentum, 0..1", ge=0, lt=1)
    nesterov: bool = doc("look ahead (Nesterov); needs momentum")

    def build(self, groups: list[dict[str, Any]], fused: bool) -> Optimizer:
        from torch.optim import SGD as TorchSGD

        return TorchSGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov and self.momentum > 0, fused=fused)


class Moments(OptimizerSpec):
    """Common to those that scale each step by a gradient's first and second moment."""

    stacks = True

    betas: list[float] = doc("decay of the first and the second moment, 0..1", min_length=2, max_length=2)

    def problems(self) -> list[Problem]:
        return (
            [] if all(0 <= beta < 1 for beta in self.betas) else [Problem("betas", self.betas, "two numbers from 0 to below 1 are needed")]
        )


class Adam(Moments):
    """Adam; its weight decay is a part of the gradient (Kingma and Ba 2015, algorithm 1)."""

    def build(self, groups: list[dict[str, Any]], fused: bool) -> Optimizer:
        from torch.optim import Adam as TorchAdam

        return TorchAdam(groups, lr=self.lr, betas=(self.betas[0], self.betas[1]), fused=fused)


class AdamW(Moments):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    def build(self, groups: list[dict[str, Any]], fused: bool) -> Optimizer:
        from torch.optim import AdamW as TorchAdamW

        return TorchAdamW(groups, lr=self.lr, betas=(self.betas[0], self.betas[1]), fused=fused)


class Timm(OptimizerSpec):
    """Any optimizer of timm's factory; lookahead_NAME puts Lookahead around one (Zhang et al. 2019)."""

    opt: str = doc("timm's name of the optimizer")
    momentum: float | None = doc("momentum, 0..1, of those that have one; null: 0.9", ge=0, lt=1)
    betas: list[float] | None = doc("decay of the moments, 0..1, of those that have them; null: the optimizer's own", min_length=2)

    def problems(self) -> list[Problem]:
        known, name = offered(), self.opt.removeprefix("lookahead_")
        if name not in known:
            hint = nearest(name, known) or f"the {len(known)} names are listed by timm.optim.list_optimizers()"
            return [Problem("opt", self.opt, f"timm has no such optimizer; {hint}")]
        found, facts = [], known[name]
        if facts.package and not find_spec(facts.package):
            found.append(Problem("opt", self.opt, f"needs the package {facts.package}, which is not installed here"))
        if facts.second_order:
            found.append(Problem("opt", self.opt, "needs second derivatives, which are not computed here"))
        if self.momentum is not None and not facts.momentum:
            found.append(Problem("momentum", self.momentum, f"{name} has no momentum; null works"))
        if self.betas is not None and len(self.betas) != facts.betas:
            what = f"a list of {facts.betas} values works" if facts.betas else f"{name} has no betas; null works"
            found.append(Problem("betas", self.betas, what))
        return found

    def build(self, groups: list[dict[str, Any]], fused: bool) -> Optimizer:
        from timm.optim import create_optimizer_v2

        more: dict[str, Any] = {"betas": tuple(self.betas)} if self.betas else {}
        if offered()[self.opt.removeprefix("lookahead_")].draws:
            more["deterministic"] = True  # it would draw from Python's own stream, which no resumed run can go on with
        # the groups' own lr and weight_decay win; what some optimizers take for the peak is the highest among them
        return create_optimizer_v2(
            groups,
            self.opt,
            lr=max(group["lr"] for group in groups),
            weight_decay=self.weight_decay,
            momentum=0.9 if self.momentum is None else self.momentum,
            **more,
        )


GROUP = Group("optimizer", {"adamw": AdamW, "adam": Adam, "sgd": SGD, "timm": Timm}, about="how weights are changed")


class Offer(NamedTuple):
    """What timm's factory says of an optimizer."""

    betas: int  # how many it has
    momentum: bool
    second_order: bool
    package: str | None  # where it comes from, if from elsewhere
    draws: bool  # from a random stream


@cache
def offered() -> dict[str, Offer]:
    """Every optimizer of timm's factory, read from its source: importing timm means importing torch."""
    spec = find_spec("timm")
    roots = (spec.submodule_search_locations if spec else None) or []
    sources = [ast.parse(Path(root, "optim", "_optim_factory.py").read_text("utf-8")) for root in roots]
    calls = [(ast.unparse(node.func), node) for source in sources for node in ast.walk(source) if isinstance(node, ast.Call)]
    infos = (_info(node) for called, node in calls if called == "OptimInfo")
    found = {name: offer for info in infos for name, offer in info.items()}
    aliases = [[getattr(each, "value", "") for each in node.args] for called, node in calls if called.endswith(".register_alias")]
    return found | {alias: found[name] for alias, name in aliases}


def _info(call: ast.Call) -> dict[str, Offer]:
    """`OptimInfo(name, opt_class, description, has_momentum=..., ...)` as an entry of the table."""
    given = dict(zip(("name", "opt_class"), call.args, strict=False)) | {each.arg or "": each.value for each in call.keywords}
    plain: dict[str, Any] = {
        key: getattr(value, "value", None) for key, value in given.items()
    }  # what is no constant, such as a class, is None
    source, of = plain["opt_class"], ast.unparse(given["opt_class"])
    package = source.partition(".")[0] if isinstance(source, str) else None
    betas = plain.get("num_betas", 2) if plain.get("has_betas") else 0
    return {plain["name"]: Offer(betas, bool(plain.get("has_momentum")), bool(plain.get("second_order")), package, of == "Kron")}


def parameter_groups(chain: Chain, lr: float, weight_decay: float, phase: Phase | None = None) -> list[dict[str, Any]]:
    """One group for each stage and kind (decayed or not) of exactly those parameters that train; each group names its stage.

    `phase` gives each stage's factor on `lr`; where it pulls the weights itself, they have no other decay.
    """
    groups = []
    weight_decay = 0.0 if phase and phase.pull else weight_decay
    for stage in chain.stages:
        kinds: dict[bool, list[Any]] = {True: [], False: []}
        for _, parameter in chain.named_parameters_of(stage):
            if parameter.requires_grad:
                kinds[parameter.ndim > 1].append(parameter)  # biases, and the scales of norms, have one dimension
        for decayed, parameters in kinds.items():
            if parameters:
                rate = lr * phase.factor(stage) if phase else lr
                groups.append({"params": parameters, "lr": rate, "weight_decay": weight_decay if decayed else 0.0, "stage": stage})
    return groups
