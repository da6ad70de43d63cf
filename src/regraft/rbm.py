"""A restricted Boltzmann machine: a stage that learns what enters it by itself, and gives on what its hidden units make of it.

Energy (Hinton 2012, "A Practical Guide to Training Restricted Boltzmann Machines", eq. 1 and 18, with unit variance):
binary visibles: E(v, h) = -b.v - c.h - h.Wv; gaussian visibles, which must be standardised: E(v, h) = |v - b|^2 / 2 - c.h - h.Wv.

Shapes: b samples, T steps (1 where the sample is no sequence), v visible and h hidden units.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad, softplus

from regraft import ais
from regraft.errors import Problem, UserError
from regraft.streams import generator

Units = Literal["binary", "gaussian"]
TINY = 2.0**-25  # half of the smallest step between two uniform draws: keeps a normal draw finite


class RBM(nn.Module):
    """A `learning.Solitary`: what enters -> the probabilities of the hidden units, and a loss whose gradient is contrastive divergence's.

    Three kinds of samples enter: pictures [b, c, s, s], whose visibles are the means over the channels; sequences [b, T, f + 1], whose last
    feature is the mask, and whose visibles at a step are that frame and the `window` - 1 before it, zeros before the first, the oldest
    first; and rows [b, v]. What leaves is [b, h]; of sequences [b, T, h + 1], with the same mask.
    """

    particles: Tensor
    steps: Tensor
    key: Tensor

    def __init__(
        self,
        visible: int,
        hidden: int,
        units: Units = "binary",
        *,
        k: int = 1,
        particles: int = 0,
        window: int = 1,
        betas: int = 0,
        gain: float = 1.0,
    ) -> None:
        """`k`: Gibbs steps of each chain; `particles`: 0: a chain begins at each sample (CD-k, Hinton 2002); else so many chains that go
        on from one optimizer step to the next (PCD, Tieleman 2008); `betas`: steps of the estimate of log Z that `measures` needs, 0: it
        does without. Weights from torch's global stream, `gain` times as large as Glorot and Bengio's (2010, eq. 16)."""
        super().__init__()
        self.units, self.k, self.window, self.betas = units, k, window, betas
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(hidden, visible), gain))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self.visible_bias = nn.Parameter(torch.zeros(visible))
        self._moved: list[float] | None = None  # the weights for which the particles have moved
        self._estimate: tuple[list[float], ais.Estimate] | None = None  # log Z, and the weights that have it
        if particles:
            self.register_buffer("particles", torch.rand(particles, visible).round())
            self.register_buffer("steps", torch.tensor(0))  # how often the particles have moved
            self.register_buffer("key", torch.randint(2**62, ()))  # of their random numbers

    @property
    def persistent(self) -> bool:
        return "particles" in self._buffers

    # What enters and leaves

    def visibles(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What enters -> visibles [b, T, v], and the weight of each step, 1 or 0: [b, T]"""
        if x.ndim == 3:
            frames = pad(x[..., :-1], (0, 0, self.window - 1, 0)).unfold(1, self.window, 1)  # [b, T, f, window]
            return frames.transpose(2, 3).flatten(2), x[..., -1]
        v = x.mean(1).flatten(1) if x.ndim == 4 else x
        return v[:, None], x.new_ones(len(x), 1)

    def forward(self, x: Tensor) -> Tensor:
        v, there = self.visibles(x)
        h = self.hidden(v)
        if self.training:
            h = h + 0 * self.visible_bias.sum()  # DDP waits for the gradient of all that trains, and this is not asked upwards
        return torch.cat([h * there[..., None], there[..., None]], -1) if x.ndim == 3 else h[:, 0]

    # The two conditionals, and the free energy

    def hidden(self, v: Tensor) -> Tensor:
        """p(h = 1 | v): [..., v] -> [..., h]"""
        return torch.sigmoid(linear(v, self.weight, self.hidden_bias))

    def visible(self, h: Tensor) -> Tensor:
        """The mean of p(v | h): of binary visibles their probabilities: [..., h] -> [..., v]"""
        field = linear(h, self.weight.T, self.visible_bias)
        return torch.sigmoid(field) if self.units == "binary" else field

    def free_energy(self, v: Tensor) -> Tensor:
        """F(v) = -log sum over h of exp(-E(v, h)), so that p(v) = exp(-F(v)) / Z (Hinton 2012, eq. 25). [..., v] -> [...]"""
        own = (v - self.visible_bias).square().sum(-1) / 2 if self.units == "gaussian" else -(v @ self.visible_bias)
        return own - softplus(linear(v, self.weight, self.hidden_bias)).sum(-1)

    def step(self, v: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """One Gibbs step v -> h -> v: the mean of p(v | h), and v drawn by it; `draws` [..., h + v]: uniform in 0..1. Twice [..., v]"""
        for_h, for_v = draws.split([len(self.hidden_bias), len(self.visible_bias)], -1)
        mean = self.visible((for_h < self.hidden(v)).to(v.dtype))
        if self.units == "binary":
            return mean, (for_v < mean).to(v.dtype)
        return mean, mean + math.sqrt(2) * torch.erfinv(2 * for_v.clamp(min=TINY) - 1)

    def gibbs(self, v: Tensor, draws: Tensor) -> Tensor:
        """What a `step` draws."""
        return self.step(v, draws)[1]

    # Learning

    def losses(self, x: Tensor, seeds: Tensor) -> Tensor:
        """F(v) - F(the chain's end), whose gradient is that of CD-k or PCD: [b], the mean over a sample's steps.

        Binary visibles between 0 and 1 are probabilities, of which each epoch draws: taken as they are they would vary less than what the
        machine draws itself, which it would learn to undo by weights near 0. In CD-k a sample's chain begins there, and all of it is drawn
        from the sample's own seed. In PCD all particles' mean free energy stands against each
        sample's: every rank and micro-batch moves all of them, by the same draws, once for each change of the weights; so they are the same
        for every division of a batch, and lie in each checkpoint. In eval mode PCD is measured as CD-k, and no particle moves. What flows
        back into x is nothing. Raises UserError where binary visibles are not within 0..1.
        """
        with torch.autocast(x.device.type, enabled=False):
            v, there = self.visibles(x.to(self.weight.dtype))
            self._check(v)
            begin, end = self._ends(v, seeds)
            negative = self.free_energy(self._go_on()).mean() if self.persistent and self.training else self.free_energy(end)
            return _mean(self.free_energy(begin) - negative, there)

    @torch.no_grad()
    def measures(self, x: Tensor) -> dict[str, Tensor]:
        """Of each sample, the mean over its steps: the mean squared error of the reconstruction by means (v -> h -> v), and F(v). [b]

        In eval mode, where `betas` are asked for, also -F(v) - log Z, the standard error of log Z, and how many of the 100 chains count
        (`ais_chains`: where they are few, the estimate is too low, whatever its error says). Of visibles that are 0 or 1 the first is
        log p(v); of those between, taken as probabilities, a lower bound of its mean over draws from them: -F is convex in v.
        """
        with torch.autocast(x.device.type, enabled=False):
            v, there = self.visibles(x.to(self.weight.dtype))
            energy = _mean(self.free_energy(v), there)
            found = {"reconstruction": _mean((self.visible(self.hidden(v)) - v).square().mean(-1), there), "free_energy": energy}
            if self.betas and not self.training:
                weights = self._weights()
                if self._estimate is None or self._estimate[0] != weights:
                    self._estimate = weights, ais.log_z(self, betas=self.betas)
                known = self._estimate[1]
                told = {"ais_error": known.error, "ais_chains": known.chains}
                found |= {"log_likelihood": -energy - known.log_z} | {name: torch.full_like(energy, value) for name, value in told.items()}
            return found

    @torch.no_grad()
    def _ends(self, v: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """Where each sample's chain begins, and where it is after k steps. [b, T, v] -> twice [b, T, v]"""
        visible, step = v.shape[-1], sum(self.weight.shape)
        size = visible + self.k * step
        # steps come first, so that padding leaves the draws of those before it as they are
        rows = [torch.rand(v.shape[1], size, generator=torch.Generator().manual_seed(seed)) for seed in seeds.tolist()]
        first, *others = torch.stack(rows).to(v.device).split([visible, *[step] * self.k], -1)
        begin = end = (first < v).to(v.dtype) if self.units == "binary" else v
        for draws in others:
            end = self.gibbs(end, draws)
        return begin, end

    @torch.no_grad()
    def _go_on(self) -> Tensor:
        """The particles [p, v], moved by k steps if the weights are others than when they moved last."""
        weights = self._weights()
        if self._moved != weights:
            draws = torch.rand(
                self.k, len(self.particles), sum(self.weight.shape), generator=generator("pcd", int(self.key), int(self.steps))
            )
            v = self.particles
            for step in draws.to(v.device):
                v = self.gibbs(v, step)
            self.particles.copy_(v)
            self.steps += 1
            self._moved = weights
        return self.particles.clone()

    def _weights(self) -> list[float]:
        """Numbers that tell one state of the weights from another: a parameter's own count of changes misses those of fused optimizers."""
        return torch.stack([part for each in self.parameters() for part in (each.double().sum(), each.double().square().sum())]).tolist()

    def _check(self, v: Tensor) -> None:
        if self.units == "binary" and not (v.min() >= 0 and v.max() <= 1):
            remedy = f"what enters lies in {v.min():.3g}..{v.max():.3g}, and binary units need 0..1; gaussian takes what is standardised"
            raise UserError(Problem("model.visible", "binary", remedy))


def _mean(values: Tensor, there: Tensor) -> Tensor:
    """The mean over the steps that are there; 0 where there is none. Both [b, T] -> [b]"""
    return (values * there).sum(1) / there.sum(1).clamp(min=1)
