"""A Deep Belief Network: restricted Boltzmann machines, each on the hidden units of the one below it."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Literal

import torch
from torch import Tensor, nn

from regraft.chain import Backbone, Chain
from regraft.rbm import RBM, Units
from regraft.streams import generator

CHANNELS = 3
STANDARD = (0.5, 0.25)  # mean and deviation that pictures are given gaussian units by


class Mean(nn.Module):
    """The mean over the steps that are there. [b, T, h + 1], the last feature the mask -> [b, h]"""

    def forward(self, x: Tensor) -> Tensor:
        there = x[..., -1:]
        return (x[..., :-1] * there).sum(1) / there.sum(1).clamp(min=1)


def build(depth: int, width: int, units: Units, k: int, particles: int, betas: int, gain: float, size: int) -> Backbone:
    """Pictures [b, 3, size, size] -> [b, width], the probabilities of the highest hidden units; with random weights.

    The visibles of the lowest machine are the size * size means over the channels: within 0..1 for binary units, else about standardised.
    """
    mean, std = (0.0, 1.0) if units == "binary" else STANDARD
    machines = _machines(size * size, depth, width, units, k, particles, betas, gain, 1)
    return Backbone(nn.Sequential(machines), _stages(depth), "", (mean,) * CHANNELS, (std,) * CHANNELS, CHANNELS, least=1)


def build_for(
    shape: tuple[int, ...],
    depth: int,
    width: int,
    units: Units,
    k: int,
    particles: int,
    betas: int,
    gain: float,
    window: int,
    pool: Literal["mean", "none"],
) -> Backbone:
    """Sequences [b, *shape] = [b, T, f + 1] -> [b, width] (pool: mean), or for each step: [b, T, width + 1]; with random weights.

    The visibles of the lowest machine at a step are the last `window` frames.
    """
    machines = _machines(window * (shape[-1] - 1), depth, width, units, k, particles, betas, gain, window)
    if pool == "mean":
        machines["pool"] = Mean()
    return Backbone(nn.Sequential(machines), _stages(depth), "", (), (), channels=0, least=0)


def machines(chain: Chain) -> list[RBM]:
    """A chain's machines, the lowest first."""
    return [module for module in chain.backbone.children() if isinstance(module, RBM)]


@torch.no_grad()
def dream(chain: Chain, n: int, steps: int, seed: int) -> Tensor:
    """n samples of the network: so many Gibbs steps between the two highest layers, then once down (Hinton et al. 2006, section 6).

    [n, s, s] of pictures, values in 0..1; of sequences [n, window, f]. What is shown are the lowest machine's means; each sample follows
    from the seed and its number alone.
    """
    *below, top = machines(chain)
    h, v = top.weight.shape
    draws = [generator(seed, "dream", number) for number in range(n)]

    def uniform(size: int) -> Tensor:
        return torch.stack([torch.rand(size, generator=each) for each in draws]).to(top.weight)

    x = uniform(v).round() if top.units == "binary" else uniform(v) - 0.5
    for _ in range(steps - 1):
        x = top.gibbs(x, uniform(h + v))
    x = top.visible((uniform(h) < top.hidden(x)).to(x))
    for machine in reversed(below):
        x = machine.visible((uniform(x.shape[1]) < x).to(x))
    if not len(chain.mean):
        return x.unflatten(1, (machines(chain)[0].window, -1))
    side = math.isqrt(x.shape[1])
    return (x.view(n, 1, side, side) * chain.std + chain.mean).mean(1).clamp(0, 1)


@torch.no_grad()
def next_frame(rbm: RBM, history: Tensor, steps: int = 100, seed: int = 0) -> Tensor:
    """What a machine whose visibles are a window of frames expects next: [b, t, f], t >= 0 frames so far -> [b, f]

    The frames that came are held fast, and Gibbs steps go between the next one and the hidden units. Given are the means of p(frame | h)
    over the last four fifths of them: of binary units probabilities. A row follows from the seed and its number alone.
    """
    f, units = history.shape[-1], sum(rbm.weight.shape)
    empty = history.new_zeros(len(history), max(rbm.window - 1 - history.shape[1], 0), f)
    held = torch.cat([empty, history], 1)[:, history.shape[1] + empty.shape[1] - (rbm.window - 1) :].flatten(1)  # [b, (window - 1) * f]
    draws = [generator(seed, "frame", row) for row in range(len(history))]
    total = history.new_zeros(len(history), f)
    v = torch.cat([held, total], 1)
    for step in range(steps):
        uniform = torch.stack([torch.rand(units, generator=each) for each in draws]).to(v)
        mean, drawn = rbm.step(v, uniform)
        v = torch.cat([held, drawn[:, -f:]], 1)
        total += mean[:, -f:] * (step >= steps // 5)
    return total / (steps - steps // 5)


def _machines(
    visible: int, depth: int, width: int, units: Units, k: int, particles: int, betas: int, gain: float, window: int
) -> OrderedDict[str, nn.Module]:
    """Only the lowest sees data, whose likelihood can be told."""
    lowest = RBM(visible, width, units, k=k, particles=particles, window=window, betas=betas, gain=gain)
    return OrderedDict({"rbm1": lowest} | {f"rbm{i + 1}": RBM(width, width, k=k, particles=particles, gain=gain) for i in range(1, depth)})


def _stages(depth: int) -> dict[str, tuple[str, ...]]:
    """The pool learns nothing, and so belongs to the highest machine's stage."""
    return {f"rbm{i + 1}": (f"rbm{i + 1}",) for i in range(depth)}
