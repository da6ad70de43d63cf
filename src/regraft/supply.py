"""Where the tensors of a boundary come from: rows of the cache wherever that is possible, else pictures read live."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import track
from torch import Tensor

from regraft import freezing, weights
from regraft.cache import NoRoom, Rows, Store, stored
from regraft.computing import device_of
from regraft.errors import Problem, UserError
from regraft.feeds import Cached, Feed, Live
from regraft.reading import EXTRACT, Reading
from regraft.tasks.module import frozen
from regraft.views import IDENTITY, View

if TYPE_CHECKING:
    from regraft.chain import Chain
    from regraft.datasets.source import Sample, Source
    from regraft.freeze import Phase
    from regraft.settings import Settings

FORMAT = 1  # of stored activations: raised when the same description would give other rows


class Supply:
    """One run's feeds. What lies below a boundary that is cached does not change in a run."""

    def __init__(self, settings: Settings, chain: Chain, source: Source, say: Callable[[str], None], show: bool) -> None:
        self.settings, self.chain, self.source, self.say, self.show = settings, chain, source, say, show
        self.reading = Reading(settings, source)
        self.samples = self.reading.samples
        self.dtype: torch.dtype = getattr(torch, settings.cache.dtype)
        self.notes: list[dict[str, Any]] = []  # what was cached, what was not, and why
        self.seconds = 0.0  # that the frozen part took
        self._full = ""  # why nothing more is stored
        self._stores: dict[tuple[str, View], Store] = {}
        self._rows: dict[tuple[str, str, View], Rows] = {}

    def feeds(self, boundary: str, phase: Phase | None = None, earlier: Sequence[Phase] = ()) -> dict[str, Feed]:
        """Every split's tensors at a boundary: rows of the cache where it can be cached, else pictures read live.

        `phase` is about to train, after the `earlier` ones; None: nothing trains any more, and nothing is augmented. Raises UserError for
        what can't be cached under cache.mode=require.
        """
        s, augmented = self.settings, phase is not None
        hindrance = "cache.mode=off" if s.cache.mode == "off" else self._full or self._hindrance(boundary, earlier)
        random = f"augmentation={s.augmentation.name} is random" if augmented and s.augmentation.finite() is None else ""
        if s.cache.mode == "require" and (hindrance or random):
            raise UserError(Problem("cache.mode", "require", f"{hindrance or random}; cache.mode=auto trains such a phase live"))
        if not hindrance:
            splits = [split for split in self.samples if not (random and split == "train")]
            try:
                self._room(boundary, splits, augmented)
                found: dict[str, Feed] = {split: self._cached(split, boundary, augmented) for split in splits}
                if random:
                    self._note(boundary=boundary, split="train", mode="live", why=random)
                return found | ({"train": self.reading.live("train", augmented)} if random else {})
            except NoRoom as error:
                hindrance = self._full = str(error)
                if s.cache.mode == "require":
                    raise UserError(Problem("cache.mode", "require", f"{hindrance}; cache.mode=auto trains such a phase live")) from None
        if phase:
            self._note(boundary=boundary, phase=phase.name, mode="live", why=hindrance)
        return {split: self.reading.live(split, augmented) for split in self.samples}

    def _room(self, boundary: str, splits: Sequence[str], augmented: bool) -> None:
        """Raises NoRoom where the rows that are missing would not fit `cache.max_gb`, beside all that is stored already."""
        folder, shapes = self.settings.cache.folder(), {stage: shape for stage, _, shape in self.chain.summary()}
        below = self.chain.stages[self.chain.stages.index(boundary) - 1]
        row = math.prod(shapes[below]) * self.dtype.itemsize
        missing = sum(
            self._store(boundary, view).missing([sample.sha256 for sample in self.samples[split]])
            for split in splits
            for view in self._views(split, augmented)
            if (boundary, split, view) not in self._rows
        )
        if missing and (need := row * missing + stored(folder)) > self.settings.cache.max_gb * 1e9:
            raise NoRoom(Problem("cache.max_gb", self.settings.cache.max_gb, f"{need / 1e9:.2g} GB would be stored; raise cache.max_gb"))

    def _views(self, split: str, augmented: bool) -> list[View]:
        return self.settings.augmentation.symmetries() if augmented and split == "train" else [IDENTITY]

    def _cached(self, split: str, boundary: str, augmented: bool) -> Cached:
        samples = self.samples[split]
        known = ((view, self._rows.get((boundary, split, view))) for view in self._views(split, augmented))
        return Cached([rows or self.rows(boundary, split, samples, view) for view, rows in known], samples)

    def _hindrance(self, boundary: str, earlier: Sequence[Phase]) -> str | None:
        """Why what enters this boundary can't be cached; None: it can."""
        if boundary == self.chain.stages[0]:
            return f"freeze={self.settings.freeze.name} trains the lowest stage, so nothing below it stays the same"
        if any(self.chain.below(name, boundary) for name in freezing.changing(self.chain, earlier)):
            return f"an earlier phase has changed what lies below {boundary}"
        return None

    def rows(self, boundary: str, split: str, samples: Sequence[Sample], view: View) -> Rows:
        """What enters `boundary` for each of these pictures in one view; computed for those that the store lacks."""
        s, device = self.settings, device_of(self.settings.hardware)
        store = self._store(boundary, view)
        self.chain.to(device).requires_grad_(False).eval()

        def compute(missing: list[int]) -> Iterable[Tensor]:
            live = _Viewed(self.source, [samples[position] for position in missing], s.size, s.data.fit, s.data.crop, view)
            with torch.inference_mode():
                batches = live.in_order(EXTRACT, s.hardware.readers())
                total = -(-len(missing) // EXTRACT)
                for batch in track(batches, f"{split}, once", total, transient=True, disable=not self.show):
                    yield frozen(self.chain, self.chain.prepare(batch.x.to(device)), boundary, self.dtype).cpu()

        keys = [sample.sha256 for sample in samples]
        began = time.monotonic()
        if int(os.environ.get("RANK", 0)):
            store.await_builder(keys)  # rank 0 builds and records it
        computed = store.ensure(keys, compute)
        seconds = time.monotonic() - began
        self.seconds += seconds
        self._note(
            boundary=boundary, split=split, view=str(view), mode="cached", computed=computed, rows=len(keys), seconds=round(seconds, 3)
        )
        seen = "" if view == IDENTITY else f" ({view})"
        if computed:
            self.say(f"{split}{seen}: {computed} pictures ran once through all below {boundary} in {seconds:.1f} s")
        else:
            self.say(f"{split}{seen}: {len(keys)} pictures read from the cache at {boundary}")
        rows = self._rows[boundary, split, view] = store.open(keys)
        return rows

    def _store(self, boundary: str, view: View) -> Store:
        """Described, and its segments looked at, once: what lies below a boundary that is cached does not change in a run."""
        if (boundary, view) not in self._stores:
            self._stores[boundary, view] = Store(self.settings.cache.folder(), self._description(boundary, view))
        return self._stores[boundary, view]

    def _description(self, boundary: str, view: View) -> dict[str, Any]:
        """All that decides a stored row, beside the picture's bytes."""
        s = self.settings
        own = {name: tensor for name, tensor in self.chain.state_dict().items() if not name.startswith("auxiliary.")}  # lead nowhere up
        state = {name: tensor for name, tensor in own.items() if self.chain.below(name, boundary)}
        return {
            "format": FORMAT,
            "transform": {
                "size": s.size,
                "fit": s.data.fit,
                **({"crop": s.data.crop} if s.data.fit == "crop" and s.data.crop < 1 else {}),
                "mean": self.chain.mean.flatten().tolist(),
                "std": self.chain.std.flatten().tolist(),
            },
            "view": list(view),
            "net": s.model.deciding(),
            "weights": weights.fingerprint(state),
            "boundary": boundary,
            "dtype": s.cache.dtype,
            "computed_by": {package: metadata.version(package) for package in ("torch", "torchvision", "timm", "pillow")}
            | {"on": s.hardware.accelerator()},
        }

    def _note(self, **facts: Any) -> None:
        if facts not in self.notes:
            self.notes.append(facts)


class _Viewed(Live):
    """Pictures in one view, whatever the share says."""

    def __init__(self, source: Source, samples: Sequence[Sample], size: int, how: Any, crop: float, view: View) -> None:
        super().__init__(source, samples, size, how, crop=crop)
        self.views = [view]
