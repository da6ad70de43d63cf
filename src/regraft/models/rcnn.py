"""Any net that is a row of units gives its maps: the row is found by watching, ends above the coarsest map, and carries the finer ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import groupby

import torch
from torch import Tensor, nn

from regraft.chain import Backbone
from regraft.errors import Problem, UserError, either
from regraft.watching import Call, units, watch

CARRIED = "carried"  # the part of a parameter's name that a unit has only here
Shape = tuple[int, int, int]  # channels, height and width of a map


@dataclass(kw_only=True)
class Maps(Backbone):
    """A backbone whose maps leave it: [b, c, h, w], or several of them packed flat, [b, n], the coarsest in front; `leaves` are their
    shapes, the finest first."""

    inner: Backbone  # the whole net, which shares its units


class Carrying(nn.Module):
    """A unit above a map that is wanted later: [b, n] or [b, c, h, w] -> [b, m], what the unit makes of the map in front, then the others.

    So one tensor enters each unit, and the net can be cut below it.
    """

    def __init__(self, unit: nn.Module, enters: Shape, packed: bool, keep: bool) -> None:
        """`enters`: the map that the unit takes; `packed`: whether maps come behind it; `keep`: whether it is itself wanted later."""
        super().__init__()
        self.add_module(CARRIED, unit)
        self.enters, self.packed, self.keep = enters, packed, keep

    def forward(self, x: Tensor) -> Tensor:
        size = self.enters[0] * self.enters[1] * self.enters[2]
        x = x if self.packed else x.flatten(1)
        front, behind = x[:, :size].reshape(-1, *self.enters), x[:, 0 if self.keep else size :]
        front = front.clone() if self.keep else front  # a unit may write into its input
        return torch.cat([self.get_submodule(CARRIED)(front).flatten(1), behind], 1)


def build(inner: Backbone, name: str, strides: Sequence[int], size: int) -> Maps:
    """The inner net up to the last map of so many px for each cell, the coarsest of `strides`; the others are carried along.

    Raises UserError where it gives no such maps.
    """
    wanted = sorted(strides)
    row = _row(inner, size)
    sides = {stride: size // stride for stride in wanted}
    last = {
        stride: max((i for i, (_, shape) in enumerate(row) if shape[1:] == (side, side)), default=None) for stride, side in sides.items()
    }
    if missing := [stride for stride, at in last.items() if at is None]:
        there = sorted({size // shape[1] for _, shape in row if shape[1] == shape[2] and size % shape[1] == 0})
        remedy = f"{name} gives maps of stride {either(there)}" if there else f"{name} gives no maps; efficientnet_lite or resnet does"
        raise UserError(Problem("model.strides", missing, remedy))
    ends = {at for at in last.values() if at is not None}
    known = units(inner.module)
    parts: list[tuple[str, nn.Module]] = []
    carries = False
    for i, (unit, _) in enumerate(row[: max(ends) + 1]):
        keep = i - 1 in ends
        module = Carrying(known[unit], row[i - 1][1], carries, keep) if carries or keep else known[unit]
        carries = carries or keep
        parts.append((unit, module))
    leaves = tuple(row[at][1] for at in sorted(ends))
    values = {field.name: getattr(inner, field.name) for field in fields(Backbone)}
    values |= {"module": _nested(parts), "stages": _stages(inner.stages, [unit for unit, _ in parts]), "auxiliary": (), "leaves": leaves}
    return Maps(**values, inner=inner)


def adapt(state: dict[str, Tensor], backbone: Maps) -> dict[str, Tensor]:
    """The tensors that the maps need, out of a state dict of the whole net, or of one that carries maps too."""
    plain = {key.replace(f".{CARRIED}.", "."): tensor for key, tensor in state.items()}
    own = {key: key.replace(f".{CARRIED}.", ".") for key in backbone.module.state_dict()}
    return {key: plain[name] for key, name in own.items() if name in plain}


def _row(inner: Backbone, size: int) -> list[tuple[str, Shape]]:
    """The units from the lowest on that hand one map to the next, and the map that leaves each; what pools or flattens ends them."""
    try:
        calls, _ = watch(inner.module, torch.zeros(1, inner.channels, size, size))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise UserError(Problem("data.size", size, f"the net does not run on such pictures ({error}); give another size")) from error
    found: list[tuple[str, Shape]] = []
    seen: set[str] = set()
    for number, call in enumerate(calls):
        shape = _map(call)
        if shape is None or (number and not call.joined) or call.unit in seen:
            break
        seen.add(call.unit)
        found.append((call.unit, shape))
    return found


def _map(call: Call) -> Shape | None:
    """The shape of the map that left a unit; None: something else did."""
    left = call.left
    return (left.shape[1], left.shape[2], left.shape[3]) if isinstance(left, Tensor) and left.ndim == 4 and len(left) == 1 else None


def _nested(parts: Sequence[tuple[str, nn.Module]]) -> nn.Sequential:
    """Units by name, items of a sequence in a sequence again: tensors keep the names that they have in the whole net."""
    children: OrderedDict[str, nn.Module] = OrderedDict()
    for name, items in groupby(parts, key=lambda part: part[0].partition(".")[0]):
        own = [(unit.partition(".")[2], module) for unit, module in items]
        children[name] = own[0][1] if own[0][0] == "" else nn.Sequential(OrderedDict(own))
    return nn.Sequential(children)


def _stages(stages: object, called: Sequence[str]) -> dict[str, tuple[str, ...]] | None:
    """The published stages that are still there."""
    if not isinstance(stages, dict):
        return None
    kept = {
        stage: tuple(prefix for prefix in prefixes if any(unit == prefix or unit.startswith(f"{prefix}.") for unit in called))
        for stage, prefixes in stages.items()
    }
    return {stage: prefixes for stage, prefixes in kept.items() if prefixes}
