"""Every random number is a function of (seed, what it is for, when, which sample): device count and resume can't change it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator whose stream depends on the key alone, e.g. `generator(seed, "order", epoch)`."""
    number = int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")
    return torch.Generator().manual_seed(number >> 1)


@contextmanager
def seeded(*key: int | str) -> Iterator[None]:
    """Torch's own global stream, started from the key inside the block and put back after it (for a library's initialisers)."""
    number = generator(*key).initial_seed()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.default_generator.manual_seed(number)  # torch.manual_seed itself looks for devices of all kinds, a third of a step's time
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(number)
        if torch.backends.mps.is_available():
            torch.mps.manual_seed(number)
        yield


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014) whose mask is drawn for the global batch; each rank and micro-batch takes its rows.

    `at` must be called before each training step. [b, f] -> [b, f]
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self._key: tuple[int | str, ...] | None = None
        self._size = 0
        self._rows: Tensor | None = None

    def at(self, key: tuple[int | str, ...], size: int, rows: Tensor) -> None:
        """The stream's key, the global batch's size, and which of its rows the coming forward pass holds ([b], int64)."""
        self._key, self._size, self._rows = key, size, rows

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if self._key is None or self._rows is None:
            raise RuntimeError("Dropout.at(...) is called before each training step")
        keep = torch.rand(self._size, *x.shape[1:], generator=generator(*self._key)) >= self.p  # [global batch, f]
        return x * (keep[self._rows.cpu()].to(x.device) / (1 - self.p)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def place(module: nn.Module, key: tuple[int | str, ...], size: int, rows: Tensor) -> None:
    """Tell every `Dropout` inside the module which rows of which global batch come next; each has a stream of its own."""
    for number, dropout in enumerate(part for part in module.modules() if isinstance(part, Dropout)):
        dropout.at((*key, number), size, rows)
