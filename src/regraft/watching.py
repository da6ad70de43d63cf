"""One forward pass of any net, watched: which of its units are called, in which order, and where one hands its tensor to the next.

A *unit* is a top-level child; sequences are opened once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only


class Call(NamedTuple):
    """One call of a unit, as it was watched."""

    unit: str
    joined: bool  # its first argument is the very object that left the call before it
    entered: Tensor | None  # a copy of that argument, as it was before the unit could write into it
    left: Any  # what it gave back, on the meta device: shapes without memory


def units(net: nn.Module) -> dict[str, nn.Module]:
    """The top-level children by name, with the items of a sequence in place of the sequence; a shared module stands once."""
    found: dict[str, nn.Module] = {}
    for name, child in net.named_children():
        opened = child.named_children() if isinstance(child, nn.Sequential | nn.ModuleList) else ()
        items = {f"{name}.{item}": module for item, module in opened} or {name: child}
        found |= {item: module for item, module in items.items() if all(module is not known for known in found.values())}
    return found


def watch(net: nn.Module, x: Tensor) -> tuple[list[Call], Tensor]:
    """The calls of the net's units in order, and the net's answer to x [b, c, h, w]; in eval mode, on any device, meta too."""
    calls: list[Call] = []
    last: Any = None

    def record(unit: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        nonlocal last
        first = args[0] if args and isinstance(args[0], Tensor) else None
        joined, entered = first is not None and first is last, None if first is None else first.clone()
        last = forward(*args, **kwargs)
        calls.append(Call(unit, joined, entered, tree_map_only(Tensor, lambda t: t.to("meta"), last)))
        return last

    with evaluating(net), torch.no_grad(), intercepted(net, record):
        return calls, net(x)


def candidates(calls: list[Call], rows: int) -> list[int]:
    """Where a watched net may be cut: before calls[i] for each i given back; `rows` is the batch size that was watched."""
    times = Counter(call.unit for call in calls)
    return [
        i
        for i, call in enumerate(calls)
        if i and call.joined and times[call.unit] == 1 and call.entered is not None and call.entered.shape[:1] == (rows,)
    ]


@contextmanager
def intercepted(net: nn.Module, call: Callable[[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]) -> Iterator[None]:
    """While it lasts, each call of a unit is `call(unit, its forward, args, kwargs)`; a unit that another unit calls is left alone."""
    inside = False

    def patched(unit: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        if inside:
            return forward(*args, **kwargs)
        inside = True
        try:
            return call(unit, forward, args, kwargs)
        finally:
            inside = False

    known = units(net)
    before = {unit: vars(module).get("forward") for unit, module in known.items()}
    try:
        for unit, module in known.items():
            vars(module)["forward"] = partial(patched, unit, module.forward)
        yield
    finally:
        for unit, module in known.items():
            vars(module).pop("forward", None)
            if before[unit] is not None:
                vars(module)["forward"] = before[unit]


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Eval mode while it lasts; each module's own mode is put back."""
    modes = {module: module.training for module in net.modules()}
    try:
        net.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
