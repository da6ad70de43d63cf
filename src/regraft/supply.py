"""Where the tensors of a boundary come from: rows of the cache wherever that is possible and pays, else pictures read live."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import Progress
from torch import Tensor

from regraft import described, freezing, ranks, squares
from regraft.cache import NoRoom, Rows, Store, fill, make_room
from regraft.computing import device_of
from regraft.errors import Problem, UserError
from regraft.feeds import EXTRACT, ROWS, Cached, Feed, Live
from regraft.keeping import Cost, Wants, again_pays, wanted
from regraft.layout import HEAD
from regraft.passes import TRIED, Pass, Place, entering, lay_out
from regraft.reading import Reading
from regraft.report import words
from regraft.tasks.module import frozen
from regraft.views import IDENTITY, Drawn, Seen

if TYPE_CHECKING:
    from regraft.chain import Chain
    from regraft.datasets.source import Source
    from regraft.freeze import Phase
    from regraft.settings import Settings

HELD = 256e6  # bytes of a split that is kept in memory while it is measured
LIVE = "cache.mode=auto trains such a phase live"


class Supply:
    """One run's feeds; several runs of one chain, one set and one augmentation may share it."""

    def __init__(
        self, settings: Settings, chain: Chain, source: Source, say: Callable[[str], None], show: bool, most: int = EXTRACT
    ) -> None:
        """`most`: pictures that run through what is frozen at once."""
        self.most = most
        self.settings, self.chain, self.source, self.say, self.show = settings, chain, source, say, show
        self.reading = Reading(settings, source)
        self.samples = self.reading.samples
        self.dtype: torch.dtype = getattr(torch, settings.cache.dtype)
        self.notes: list[dict[str, Any]] = []  # what was cached, what was not, and why
        self.seconds = 0.0  # that the frozen part took
        self.ranks = ranks.here()
        self._prepared = False
        self._why: dict[str, str] = {}  # boundary -> why nothing is kept there
        self._rows: dict[tuple[str, str, Seen], Rows] = {}  # of boundaries below which nothing has changed since the start
        self._later: dict[tuple[str, str, Seen], Rows] = {}  # of the current phase's, where an earlier one has changed what lies below
        self._held: dict[str, list[Tensor]] = {}  # split -> the features that heads are measured on
        self._states: dict[str, str] = {}  # boundary -> fingerprint of what lies below it at the start

    def prepare(self, phases: Sequence[Phase]) -> None:
        """Makes sure of the rows of all phases' boundaries, before the first phase, in one pass over each split; every rank calls it.

        Raises UserError for what can't be cached under cache.mode=require.
        """
        self._prepared, stages = True, self.chain.stages
        begun = [phase.boundary for number, phase in enumerate(phases) if not self._moved(phase.boundary, phases[:number])]
        lowest = stages[min((stages.index(phase.boundary) for phase in phases), default=-1)]
        for boundary in begun:
            self._required(boundary, self._hindrance(boundary))
        measuring = dict.fromkeys(self.samples, self.reading.measuring())
        self._keep(wanted(stages, begun, lowest, self.reading.training(), measuring), self._rows)
        for boundary in begun:
            self._required(boundary, self._why.get(boundary))

    def feeds(self, boundary: str, phase: Phase | None = None, earlier: Sequence[Phase] = (), only: Iterable[str] = ()) -> dict[str, Feed]:
        """The splits' tensors at a boundary: rows of the cache where it can be cached, else pictures read live.

        `phase` is about to train, after the `earlier` ones; None: nothing trains any more, and nothing is augmented. `only`: these splits
        are enough. Raises UserError for what can't be cached under cache.mode=require.
        """
        splits = [split for split in self.samples if split in only or not only]
        if phase and not self._prepared and not only:
            self.prepare([*earlier, phase])
        known = self._rows
        wants: dict[str, list[Seen]] = {split: [IDENTITY] for split in splits}
        if phase and "train" in wants:
            wants["train"] = list(self.reading.training() or ())
        why = self._hindrance(boundary)
        if not why and phase and self._moved(boundary, earlier):
            why = self._rebuild(boundary, phase, earlier, wants)
            known = self._later
        elif not why:
            seen = ("train", "val") if phase else splits  # nobody looks at test before the end
            if self.ranks.world == 1:  # of several ranks, one alone can't build: `prepare` has
                self._keep({boundary: {split: views for split, views in wants.items() if split in seen}}, known)
            why = self._why.get(boundary)
        lay_out(self.chain, boundary)
        if phase:
            self._required(boundary, why)
        found: dict[str, Feed] = {}
        for split, views in wants.items():
            rows = [known.get((boundary, split, view)) for view in views]
            whole = [each for each in rows if each is not None]
            cached = rows and len(whole) == len(rows) and not why
            found[split] = Cached(whole, self.samples[split]) if cached else self.reading.live(split, phase is not None)
        if phase and phase.epochs > 1:
            self._decoded([feed for split, feed in found.items() if split in ("train", "val") and isinstance(feed, Live)])
        if phase and why:
            self._note(boundary=boundary, phase=phase.name, mode="live", why=why, **self._drawn())
        elif phase and not wants.get("train", True):
            self._note(boundary=boundary, split="train", mode="live", why=self._random())
        return found

    def _decoded(self, feeds: Iterable[Live]) -> None:
        """Live feeds of a phase of several epochs read pictures that were decoded once, where these fit the cache."""
        s = self.settings
        for live in feeds if s.cache.mode != "off" else ():
            why = len(live) and squares.keep(live, s.cache.folder(), s.cache.max_gb * 1e9, s.hardware.readers(), self.ranks)
            if why:
                self._note(boundary="pictures", mode="live", why=f"decoded in each epoch: {why}")
                return

    def entering(self, split: str, boundary: str) -> Iterator[Tensor]:
        """A split in its order, but for what has no label, as it is measured: [views, b, ...] of what enters the boundary, on this
        rank's device."""
        views, device, told = self.reading.measuring(), device_of(self.settings.hardware), self.reading.told(split)
        if boundary == HEAD and split in self._held:  # a group's heads are measured one after the other
            self.chain.head.to(device).eval()
            yield from self._held[split]
            return
        lay_out(self.chain.to(device).eval(), boundary)
        found = [self._rows.get((boundary, split, view)) for view in views]
        rows = [each for each in found if each is not None]
        if len(rows) == len(found):
            size = ROWS if boundary == HEAD else self.most
            parts = told.split(size) if len(told) else ()
            read = (torch.stack([each.gather(part) for each in rows]).to(device).float() for part in parts)
            small = boundary == HEAD and sum(each.bytes for each in rows) * len(told) <= HELD
            yield from self._held.setdefault(split, list(read)) if small else read
            return
        for batch in self.reading.every(self.samples[split].take(told.numpy()), views).in_order(
            self.most, self.settings.hardware.readers()
        ):
            pictures = (self.chain.prepare(x) for x in batch.x.to(device).unbind(1))
            if boundary == self.chain.stages[0]:
                yield torch.stack(list(pictures))
            else:
                yield torch.stack([frozen(self.chain, x, boundary, self.dtype).float() for x in pictures])

    def _keep(self, wants: Wants, known: dict[tuple[str, str, Seen], Rows], below: str | None = None) -> None:
        """Makes sure of these rows, computing those that the stores lack, in one pass over each split; `_why` tells what is not kept.

        `below`: a boundary whose rows the pass begins from, where they are known; None: the pictures.
        """
        wants = {
            boundary: left
            for boundary, splits in wants.items()
            if not (self._why.get(boundary) or self._hindrance(boundary))
            and (
                left := {split: new for split, views in splits.items() if (new := [v for v in views if (boundary, split, v) not in known])}
            )
        }
        if not wants:
            return
        self.chain.to(device_of(self.settings.hardware)).requires_grad_(False).eval()
        lay_out(self.chain, max(wants, key=self.chain.stages.index))
        fresh = known is not self._rows
        # rounded rows lead to other rows than pictures do, and are not to be taken for them
        base = below if self.dtype != torch.float32 and any(at == below for at, _, _ in self._rows) else None
        stores = {
            (b, v): self._store(b, v, fresh, base)
            for b, splits in wants.items()
            for v in dict.fromkeys(v for vs in splits.values() for v in vs)
        }
        passes = {split: self._pass(split, wants, below) for split in self.samples}
        passes = {split: one for split, one in passes.items() if one.places}
        chosen: tuple[dict[str, str], int] = {}, 0
        began = time.monotonic()
        with self.ranks.together():
            if self.ranks.rank == 0:
                chosen = self._chosen(passes, stores)
        why, readers = self.ranks.share(chosen)[0]
        self._why |= why
        self.seconds += time.monotonic() - began
        for split, one in passes.items():
            places = [place for place in one.places if place[0] not in self._why]
            try:
                self._filled(split, one, places, stores, known, readers)
            except NoRoom as error:
                if (
                    split in ("train", "val") or self.settings.cache.mode == "require"
                ):  # what was trained on rows is measured live, if need be
                    self._why |= dict.fromkeys((boundary for boundary, _ in places), str(error))

    def _pass(self, split: str, wants: Wants, below: str | None) -> Pass:
        """The pass over one split that gives all its rows."""
        places = [(boundary, view) for boundary, splits in wants.items() for view in splits.get(split, ())]
        rows = {view: self._rows.get((below or "", split, view)) for _, view in places}
        whole = {view: each for view, each in rows.items() if each is not None}
        begin = (below, whole) if below and len(whole) == len(rows) else None
        return Pass(self.chain, self.reading, self.samples[split], places, self.dtype, device_of(self.settings.hardware), begin, self.most)

    def _chosen(self, passes: Mapping[str, Pass], stores: Mapping[Place, Store]) -> tuple[dict[str, str], int]:
        """The boundaries that are not kept, and why; the topmost is kept first, since it saves most for each byte. Evicts what is older.
        And how many processes shall read pictures."""
        s, shapes = self.settings.cache, entering(self.chain)
        lacking = {
            (split, place): (len(missing), missing[:TRIED])
            for split, one in passes.items()
            for place in one.places
            if (missing := stores[place].missing(self._keys(split)))
        }
        if not lacking:
            return {}, 0
        (split, _), (_, positions) = next(iter(lacking.items()))
        places = [place for other, place in lacking if other == split]
        timed = passes[split].timed(positions, places)
        why: dict[str, str] = {}
        need, kept = 0, list(stores.values())
        for boundary in sorted({boundary for boundary, _ in stores}, key=self.chain.stages.index, reverse=True):
            cost = Cost(
                float("inf") if s.mode == "require" else timed.get(boundary, float("inf")), prod(shapes[boundary]) * self.dtype.itemsize
            )
            more = cost.bytes * sum(count for (_, (stage, _)), (count, _) in lacking.items() if stage == boundary)
            if more and not cost.pays:
                why[boundary] = f"what enters {boundary} takes longer to read ({cost.bytes / 1e6:.2g} MB a picture) than to compute"
                continue
            try:
                if more:
                    make_room(s.folder(), need + more, s.max_gb * 1e9, kept)
                need += more
            except NoRoom as error:
                why[boundary] = str(error)
        return why, passes[split].readers(self.settings.hardware.readers())

    def _filled(
        self,
        split: str,
        one: Pass,
        places: Sequence[Place],
        stores: Mapping[Place, Store],
        known: dict[tuple[str, str, Seen], Rows],
        readers: int,
    ) -> None:
        """One split's pass: what these places' stores lack is computed, and all of it is opened."""
        if not places:
            return
        keys, mine = self._keys(split), [stores[place] for place in places]
        began = time.monotonic()

        def compute(positions: list[int], wanted: list[int]) -> Iterator[Sequence[Tensor]]:
            with Progress(transient=True) if self.show else nullcontext() as bar:
                task = bar.add_task(f"{split}, once", total=len(positions)) if bar else None
                chosen = [places[number] for number in wanted]
                yield from one.compute(
                    positions, chosen, readers, lambda done: bar.advance(task, done) if bar and task is not None else None
                )

        computed = fill(mine, keys, compute, self.ranks)
        with self.ranks.together():  # one that finds its rows gone must not leave the others waiting
            opened = [store.open(keys) for store in mine]
        seconds = time.monotonic() - began
        self.seconds += seconds
        for (boundary, view), store, rows, count in zip(places, mine, opened, computed, strict=True):
            known[boundary, split, view] = rows
            share = round(seconds * count / max(1, sum(computed)), 3)
            drawn = self._drawn() if isinstance(view, Drawn) else {}
            what = {
                "boundary": boundary,
                "split": split,
                "view": str(view),
                "store": store.folder.name,
                "bytes": rows.bytes,
            }
            self._note(**what, mode="cached", computed=count, rows=len(keys), seconds=share, **drawn)
        self._tell(split, places, computed, seconds)

    def _tell(self, split: str, places: Sequence[Place], computed: Sequence[int], seconds: float) -> None:
        ran = [place for place, count in zip(places, computed, strict=True) if count]
        some = ran or places
        boundaries, views = dict.fromkeys(boundary for boundary, _ in some), dict.fromkeys(view for _, view in some)
        seen = f" in {len(views)} views" if len(views) > 1 else "" if IDENTITY in views else f" ({next(iter(views))})"
        where, things = ", ".join(boundaries), f"{words.thing(self.source.input)}s"
        if ran:
            self.say(f"{split}: {max(computed)} {things}{seen} ran once through all below {where} in {seconds:.1f} s")
        else:
            self.say(f"{split}: {len(self.samples[split])} {things}{seen} read from the cache at {where}")

    def _rebuild(self, boundary: str, phase: Phase, earlier: Sequence[Phase], wants: dict[str, list[Seen]]) -> str | None:
        """Rows at a boundary below which an earlier phase has changed something; why there are none. `wants` keeps the splits that have."""
        self._later = {}
        stages, s = self.chain.stages, self.settings
        base = stages[min(stages.index(each.boundary) for each in earlier)]
        there = any((base, "train", view) in self._rows for view in wants.get("train", ()))
        expand = self.reading.sampling()["expand"]
        for split in [split for split in wants if split not in ("train", "val")]:
            wants[split] = []  # nobody looks at it before the end
        if s.cache.mode != "require" and not there and not again_pays(phase.epochs, len(wants.get("train", ())) or 1, expand):
            return f"an earlier phase has changed what lies below {boundary}, and too few epochs follow"
        self._why.pop(boundary, None)
        self._keep({boundary: wants}, self._later, base)
        return self._why.pop(boundary, None)

    def _hindrance(self, boundary: str) -> str | None:
        """Why nothing at this boundary can be cached, whatever the room; None: it can."""
        if self.settings.cache.mode == "off":
            return "cache.mode=off"
        if boundary == self.chain.stages[0]:
            return f"freeze={self.settings.freeze.name} trains the lowest stage, so nothing below it stays the same"
        return None

    def _moved(self, boundary: str, earlier: Sequence[Phase]) -> bool:
        return any(self.chain.below(name, boundary) for name in freezing.changing(self.chain, earlier))

    def _required(self, boundary: str, why: str | None) -> None:
        if self.settings.cache.mode == "require" and (why := why or (self._random() if self.reading.training() is None else None)):
            raise UserError(Problem("cache.mode", "require", f"{why}; {LIVE}"))

    def _random(self) -> str:
        return f"augmentation={self.settings.augmentation.name} is random"

    def _drawn(self) -> dict[str, str]:
        """What a note says of pre-drawn views."""
        views = self.settings.cache.views
        return {"augmentation": f"{views} pre-drawn views"} if views else {}

    def _keys(self, split: str) -> list[str]:
        return self.samples[split].sha256s()

    def _store(self, boundary: str, view: Seen, fresh: bool, base: str | None) -> Store:
        """`fresh`: what lies below has changed since the start; `base`: the boundary whose rounded rows these are made from."""
        state = self._states.get(boundary) if not fresh else None
        if state is None:
            state = described.below(self.chain, boundary)
        if not fresh:
            self._states[boundary] = state
        colours = self.reading.colours if isinstance(view, Drawn) else None
        about = described.description(self.settings, self.chain, boundary, view, state, colours)
        return Store(self.settings.cache.folder(), about | ({"from": base} if base else {}))

    def _note(self, **facts: Any) -> None:
        if facts not in self.notes:
            self.notes.append(facts)
