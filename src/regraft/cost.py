"""What a net costs: parameters, multiply-adds and memory, counted in one forward pass; pictures a second, measured on this machine."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from regraft.models import ModelSpec

CLASSES = 1000  # ImageNet's, so that the figures are those that papers tell
MOST = 16  # pictures in one timed forward pass


@dataclass(frozen=True)
class Cost:
    """One net with a linear layer for 1,000 classes, on pictures of one size."""

    size: int  # px
    parameters: int
    multiply_adds: int  # of one picture's forward pass; convolutions and matrix products alone, as papers count
    weights: int  # bytes of parameters and buffers
    activation: int  # bytes of the largest tensor that one picture becomes on its way
    rate: float  # pictures a second, forward in eval mode, on the CPU


def measure(spec: ModelSpec, size: int, seconds: float = 0.8) -> Cost:
    """A net's cost for pictures of size x size px, or of its least size if that is more; `seconds`: about how long it is timed.

    Raises UserError for a size that the net does not take.
    """
    side = max(size, spec.least())
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        backbone = spec.build(side)
        backbone.module.eval()
        x = torch.rand(1, backbone.channels, side, side)  # [1, c, h, w]
        counter = FlopCounterMode(display=False)
        with counter, _largest(backbone.module) as largest:
            features = backbone.module(x)
        net = nn.Sequential(backbone.module, nn.Linear(features.shape[-1], CLASSES)).eval()
        rate = _rate(net, x, seconds)
    tensors = [*net.parameters(), *net.buffers()]
    return Cost(
        size=side,
        parameters=sum(parameter.numel() for parameter in net.parameters()),
        multiply_adds=counter.get_total_flops() // 2 + features.shape[-1] * CLASSES,
        weights=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        activation=max(largest),
        rate=rate,
    )


def table(costs: Iterable[tuple[ModelSpec, str, Cost]]) -> Group:
    """The costs as `regraft list model --cost` shows them: each net's spec, its keys and its cost.

    A family's top-5 error stands beside its last net, and where it comes from below.
    """
    rows = list(costs)
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("model", "", "px", "M parameters", "G multiply-adds", "MB weights", "MB largest", "pictures/s", "top-5 error"):
        shown.add_column(heading, justify="right" if len(shown.columns) > 1 else "left", no_wrap=len(shown.columns) < 2)
    last = {spec.name: i for i, (spec, _, _) in enumerate(rows)}
    sources = []
    for i, (spec, keys, cost) in enumerate(rows):
        error = ""
        if spec.reported and last[spec.name] == i:
            value, source = spec.reported
            error = f"{100 * value:.3g} %"
            sources.append(f"{spec.name}: {source}")
        numbers = (cost.parameters / 1e6, cost.multiply_adds / 1e9, cost.weights / 1e6, cost.activation / 1e6)
        figures = [f"{numbers[0]:.1f}", f"{numbers[1]:.2f}", f"{numbers[2]:.1f}", f"{numbers[3]:.2f}"]
        shown.add_row(spec.name, keys, str(cost.size), *figures, f"{cost.rate:.3g}", error)
    about = [
        "Each with a linear layer for 1,000 classes; for one picture, in float32. MB largest: the largest tensor on its way.",
        "Pictures/s: forward passes in eval mode on this machine's CPU, the fastest of a few.",
        "Top-5 error on ImageNet, as published:",
    ]
    return Group(shown, Text("\n".join(["", *about, *(f"  {source}" for source in sources)])))


def _rate(net: nn.Module, x: Tensor, seconds: float) -> float:
    """Pictures a second in the fastest of the forward passes that fit into the time, two at least: other work only slows a pass."""
    alone = _timed(net, x)
    batch = x.expand(max(1, min(MOST, int(seconds / 4 / alone))), *x.shape[1:]).contiguous()  # [b, c, h, w]
    times = [_timed(net, batch), _timed(net, batch)]
    while sum(times) < seconds:
        times.append(_timed(net, batch))
    return len(batch) / min(times)


def _timed(net: nn.Module, x: Tensor) -> float:
    start = perf_counter()
    net(x)
    return perf_counter() - start


@contextmanager
def _largest(net: nn.Module) -> Iterator[list[int]]:
    """The bytes of each tensor that a layer gives back while it lasts."""
    sizes: list[int] = []

    def weigh(layer: nn.Module, args: Any, left: Any) -> None:
        if isinstance(left, Tensor):
            sizes.append(left.numel() * left.element_size())

    hooks = [layer.register_forward_hook(weigh) for layer in net.modules() if not any(True for _ in layer.children())]
    try:
        yield sizes
    finally:
        for hook in hooks:
            hook.remove()
