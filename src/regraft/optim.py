"""Optimizers, and the parameter groups they work on: no weight decay on norms and biases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from regraft.registry import Group, Named, doc

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from regraft.chain import Chain


class OptimizerSpec(Named):
    """Common to all optimizers."""

    lr: float = doc("learning rate at its peak", gt=0)
    weight_decay: float = doc("weight decay of weights; norms and biases have none", ge=0)

    def build(self, groups: list[dict[str, Any]]) -> Optimizer:
        """The optimizer over parameter groups that carry their own lr and weight_decay."""
        raise NotImplementedError


class SGD(OptimizerSpec):
    """Stochastic gradient descent with momentum."""

    momentum: float = doc("momentum, 0..1", ge=0, lt=1)
    nesterov: bool = doc("look ahead (Nesterov); needs momentum")

    def build(self, groups: list[dict[str, Any]]) -> Optimizer:
        from torch.optim import SGD as TorchSGD

        return TorchSGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov and self.momentum > 0)


class AdamW(OptimizerSpec):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    betas: list[float] = doc("decay of the first and the second moment, 0..1", min_length=2, max_length=2)

    def build(self, groups: list[dict[str, Any]]) -> Optimizer:
        from torch.optim import AdamW as TorchAdamW

        return TorchAdamW(groups, lr=self.lr, betas=(self.betas[0], self.betas[1]))


GROUP = Group("optimizer", {"adamw": AdamW, "sgd": SGD}, about="how weights are changed")


def parameter_groups(chain: Chain, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """One group for each stage and kind (decayed or not) of exactly those parameters that train; each group names its stage."""
    groups = []
    for stage in chain.stages:
        kinds: dict[bool, list[Any]] = {True: [], False: []}
        for _, parameter in chain.named_parameters_of(stage):
            if parameter.requires_grad:
                kinds[parameter.ndim > 1].append(parameter)  # biases, and the scales of norms, have one dimension
        for decayed, parameters in kinds.items():
            if parameters:
                groups.append({"params": parameters, "lr": lr, "weight_decay": weight_decay if decayed else 0.0, "stage": stage})
    return groups
