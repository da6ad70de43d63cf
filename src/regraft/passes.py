"""One pass over pictures gives all rows that are wanted: each picture is read once, and each view of it goes up the chain once."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from regraft.feeds import EXTRACT
from regraft.views import Seen

if TYPE_CHECKING:
    from regraft.cache import Rows
    from regraft.chain import Chain
    from regraft.datasets.samples import Samples
    from regraft.reading import Reading

Place = tuple[str, Seen]  # a boundary, and a view
HELD = 512e6  # bytes of rows that a batch may hold in memory
TRIED = 16  # pictures of the batch that is timed
WORTH = 0.25  # of the net's time that reading takes, from which on processes of its own are worth their cores


def lay_out(chain: Chain, boundary: str) -> None:
    """Kernels below a boundary lie channels_last in memory, and those above as torch makes them.

    A fixed rule, since the order of a sum hangs on it: what is frozen gives the same rows cached and live, whatever is fastest.
    """
    for name, parameter in chain.named_parameters():
        if parameter.dim() == 4:
            memory_format = torch.channels_last if chain.below(name, boundary) else torch.contiguous_format
            parameter.data = parameter.data.contiguous(memory_format=memory_format)


@torch.inference_mode()
def through(chain: Chain, x: Tensor, boundaries: Iterable[str], dtype: torch.dtype, start: str | None = None) -> Iterator[Tensor]:
    """Prepared pictures, or what enters `start`, [b, ...] -> what enters each boundary, the lowest first, in `dtype`.

    What is handed on is not rounded to `dtype`: the rows of a boundary are the same whatever else is wanted below it.
    """
    for boundary in boundaries:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            x = chain(x, start=start, stop=boundary)
        start = boundary
        yield x.to(dtype)


class Pass:
    """The rows of one split's pictures at some places: (boundary, view)."""

    def __init__(
        self,
        chain: Chain,
        reading: Reading,
        samples: Samples,
        places: Sequence[Place],
        dtype: torch.dtype,
        device: torch.device,
        below: tuple[str, Mapping[Seen, Rows]] | None = None,
        most: int = EXTRACT,
    ) -> None:
        """`below`: a boundary, and rows there of all these pictures in all these views, from which the pass begins; None: the pictures.
        `most`: pictures of a batch."""
        self._most = most
        self.chain, self.reading, self.samples, self.places = chain, reading, samples, list(places)
        self.dtype, self.device, self.below = dtype, device, below
        self._tried: dict[int, dict[Place, Tensor]] = {}  # position -> its rows, computed while they were timed
        self._reading = 1.0  # seconds of reading for one of the net, as they were timed

    def timed(self, positions: Sequence[int], places: Sequence[Place]) -> dict[str, float]:
        """Seconds for one row at each of these places' boundaries, reading the picture included, measured on the first few of these
        positions, whose rows are kept for the pass itself."""
        some, views, rows = list(positions[: min(TRIED, self._batch())]), _views(places), Counter[str]()
        reached: dict[str, float] = defaultdict(float)  # seconds from the begin of a view up to a boundary
        began = time.perf_counter()
        batches = list(self._entering(some, views, 0))
        read, net = time.perf_counter() - began, 0.0
        for at, entering in batches:
            for view, x in zip(views, entering, strict=True):
                began = time.perf_counter()
                for boundary, y in self._up(x, view, places):
                    reached[boundary] += time.perf_counter() - began
                    rows[boundary] += len(at)
                    for position, row in zip(at, y, strict=True):
                        self._tried.setdefault(position, {})[boundary, view] = row
                net += time.perf_counter() - began
        self._reading = read / net
        return {boundary: read / len(some) / len(views) + reached[boundary] / rows[boundary] for boundary in rows}

    def readers(self, most: int) -> int:
        """How many processes shall read. On a processor they take cores from the net: they pay where reading is a good part of the time."""
        return most if self.device.type != "cpu" or self._reading > WORTH else 0

    def compute(
        self, positions: Sequence[int], places: Sequence[Place], workers: int, each: Callable[[int], None]
    ) -> Iterator[list[Tensor]]:
        """Rows [b, ...] of each of these places, batch by batch; `each` is told how many pictures are done."""
        ready = 0
        while ready < len(positions) and all(place in self._tried.get(positions[ready], {}) for place in places):
            ready += 1
        if ready:
            yield [torch.stack([self._tried[position][place] for position in positions[:ready]]) for place in places]
            each(ready)
        self._tried = {}
        views = _views(places)
        for at, entering in self._entering(positions[ready:], views, workers):
            found: dict[Place, Tensor] = {}
            for view, x in zip(views, entering, strict=True):
                found |= {(boundary, view): y for boundary, y in self._up(x, view, places)}
            yield [found[place] for place in places]
            each(len(at))

    def _up(self, x: Tensor, view: Seen, places: Sequence[Place]) -> Iterator[tuple[str, Tensor]]:
        """What enters each boundary of these places in one view, the lowest first, in memory."""
        boundaries = sorted({boundary for boundary, seen in places if seen == view}, key=self.chain.stages.index)
        rows = through(self.chain, x, boundaries, self.dtype, self.below[0] if self.below else None)
        return ((boundary, y.cpu()) for boundary, y in zip(boundaries, rows, strict=True))

    def _entering(self, positions: Sequence[int], views: Sequence[Seen], workers: int) -> Iterator[tuple[list[int], Iterator[Tensor]]]:
        """Positions, and what enters the pass for each view of them: prepared pictures, or rows from below."""
        size, positions = self._batch(), list(positions)
        parts = [positions[at : at + size] for at in range(0, len(positions), size)]
        if self.below:
            rows = self.below[1]
            for part in parts:
                yield part, (rows[view].gather(torch.tensor(part)).to(self.device).float() for view in views)
        elif parts:
            every = self.reading.every(self.samples.take(positions), views)
            for part, batch in zip(parts, every.in_order(size, workers if len(parts) > 1 else 0), strict=True):
                yield part, (self.chain.prepare(x.to(self.device)) for x in batch.x.unbind(1))

    def _batch(self) -> int:
        """Pictures of a batch: as many as are fast, as long as their rows fit in memory."""
        shapes = entering(self.chain)
        held = sum(math.prod(shapes[boundary]) * self.dtype.itemsize for boundary, _ in self.places)
        return max(1, min(self._most, int(HELD // held)))


def _views(places: Iterable[Place]) -> list[Seen]:
    return list(dict.fromkeys(view for _, view in places))


def entering(chain: Chain) -> dict[str, tuple[int, ...]]:
    """The shape of one picture's tensor at each boundary."""
    stages, shapes = chain.stages, [shape for _, _, shape in chain.summary()]
    return dict(zip(stages[1:], shapes, strict=False))
