"""Annealed importance sampling: how likely a restricted Boltzmann machine takes data to be, with the error of the estimate.

Z = sum over v of exp(-F(v)) has too many terms. Chains go from a machine whose Z is known, one without weights that has the data's means,
to the machine in question, by small steps in an inverse temperature beta; the product of the ratios on the way is an unbiased estimate
of the ratio of the two Z (Neal 2001; for these machines Salakhutdinov and Murray 2008, section 4.1).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, softplus

from regraft.streams import generator

if TYPE_CHECKING:
    from regraft.rbm import RBM

BOUNDS, PARTS = (0.0, 0.5, 0.9, 1.0), (1 / 29, 8 / 29, 20 / 29)  # where betas are dense: Salakhutdinov and Murray 2008, section 5


class Estimate(NamedTuple):
    """An estimate of log Z, in nats."""

    log_z: float
    error: float  # standard error of Z's estimate, as a part of it: nearly that of log Z, where it is small
    low: float  # log of the estimate of Z less three standard errors; -inf where nothing is left
    high: float  # and more three
    chains: float = 0.0  # that count, by the evenness of their weights: where it is a few, more betas are needed, whatever the error says


@torch.no_grad()
def log_z(rbm: RBM, means: Tensor | None = None, *, chains: int = 100, betas: int = 1000, seed: int = 0) -> Estimate:
    """The log of the machine's Z, by so many chains in so many steps of beta.

    `means` [v]: of the data's visibles, which the machine that the chains begin at has too: the nearer, the smaller the error; None: those
    that the visible biases alone give. Computed in float64 on the processor.
    """
    weight, c, b = (each.detach().double().cpu() for each in (rbm.weight, rbm.hidden_bias, rbm.visible_bias))
    hidden, visible = weight.shape
    binary = rbm.units == "binary"
    start = b if means is None else means.detach().double().cpu()
    if means is not None and binary:
        start = torch.logit(start.clamp(0.01, 0.99))  # what never is must be possible on the way
    draws = generator("ais", seed)

    def drawn(field: Tensor) -> Tensor:
        if binary:
            return (torch.rand(field.shape, generator=draws, dtype=field.dtype) < torch.sigmoid(field)).to(field.dtype)
        return field + torch.randn(field.shape, generator=draws, dtype=field.dtype)

    def unnormalised(v: Tensor, beta: float) -> Tensor:
        """log p*(v) between the two machines, but for what is the same at every beta. [chains, v] -> [chains]"""
        own = v @ ((1 - beta) * start + beta * b)
        if not binary:
            own = own - (1 - beta) * start.square().sum() / 2 - beta * b.square().sum() / 2
        return own + softplus(beta * linear(v, weight, c)).sum(1)

    steps = _betas(betas)
    v = drawn(start.expand(chains, -1))
    weights = torch.zeros(chains, dtype=v.dtype)
    for before, beta in pairwise(steps):
        weights += unnormalised(v, beta) - unnormalised(v, before)
        h = torch.sigmoid(beta * linear(v, weight, c))
        h = (torch.rand(h.shape, generator=draws, dtype=h.dtype) < h).to(h.dtype)
        v = drawn((1 - beta) * start + beta * linear(h, weight.T, b))
    known = hidden * math.log(2) + (float(softplus(start).sum()) if binary else visible / 2 * math.log(2 * math.pi))
    mean = float(weights.logsumexp(0)) - math.log(chains)
    error = float((weights - mean).exp().std()) / math.sqrt(chains)
    low = math.log1p(-3 * error) if 3 * error < 1 else -math.inf
    counted = math.exp(2 * float(weights.logsumexp(0)) - float((2 * weights).logsumexp(0)))  # (sum w)^2 / sum w^2
    return Estimate(known + mean, error, known + mean + low, known + mean + math.log1p(3 * error), counted)


@torch.no_grad()
def log_likelihood(rbm: RBM, v: Tensor, estimate: Estimate) -> Tensor:
    """log p(v) in nats, of visibles that are 0 or 1 (gaussian: any): [n, v] -> [n]"""
    return -rbm.free_energy(v).double() - estimate.log_z


def _betas(number: int) -> list[float]:
    """0 to 1, in about so many steps, denser towards 1."""
    found = [0.0]
    for first, last, part in zip(BOUNDS, BOUNDS[1:], PARTS, strict=False):
        count = max(1, round(number * part))
        found += [first + (last - first) * (i + 1) / count for i in range(count)]
    return found
