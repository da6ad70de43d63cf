"""The grafting itself: a backbone with its weights, under a new head; and a finished run's net, put together again."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from regraft import entering, feeds, streams, weights
from regraft.chain import Chain
from regraft.computing import autocast, chosen
from regraft.datasets import pictures
from regraft.datasets.source import PICTURES, Source
from regraft.errors import Problem, UserError
from regraft.reading import Reading
from regraft.record import MODEL, RunFolder
from regraft.settings import Settings, settings
from regraft.tasks.units import Units
from regraft.whitening import Whitening

if TYPE_CHECKING:
    from regraft.chain import Backbone
    from regraft.engine import Engine
    from regraft.feeds import Every

State = dict[str, Tensor]


def build(s: Settings, classes: Sequence[str], enters: Mapping[str, Any] = PICTURES) -> tuple[Chain, weights.Origin]:
    """The chain that a run starts from, with its weights; `enters`: a set's facts of what enters the net. Raises UserError for weights
    that do not fit, or too small a picture."""
    backbone, origin = _backbone(s, enters), s.origin
    published: State = {}
    if origin.kind == "imagenet":
        published = s.model.fetch(backbone)
    elif origin.kind == "file":
        published = weights.read(Path(s.model.weights))
    if published:
        weights.load(backbone.module, s.model.adapt(published, backbone), "model.weights", s.model.weights)
    earlier = Run(s.model.weights).chain if origin.kind == "run" else None
    if earlier:
        weights.load(backbone.module, s.model.inherit(state_of(earlier), backbone), "model.weights", s.model.weights)
    chain = _graft(backbone, s, classes, enters)
    if earlier and earlier.whitening and not s.augmentation.whiten():
        chain.whitening = earlier.whitening  # its stages have learnt on whitened pictures
    if s.head.pretrained:
        classifier = s.model.classifier(published, backbone)
        if classifier is None:
            remedy = f"head={s.head.name} needs the classifier of ImageNet's 1,000 classes, and these weights bring none"
            raise UserError(Problem("model.weights", s.model.weights, remedy))
        getattr(chain.head, "take")(**classifier)  # noqa: B009  (torch's types know no methods of a module's own)
    return chain, origin


def state_of(chain: Chain) -> State:
    """A copy of the backbone's tensors."""
    return {name: tensor.detach().cpu().clone() for name, tensor in chain.backbone.state_dict().items()}


def _backbone(s: Settings, enters: Mapping[str, Any]) -> Backbone:
    """The net with random weights, which are a function of the seed."""
    with streams.seeded(s.seed, "backbone"):
        return entering.net(s.model, s.size, enters)


def _graft(backbone: Backbone, s: Settings, classes: Sequence[str], enters: Mapping[str, Any]) -> Chain:
    sample = entering.sample(backbone, s.size, enters)
    with torch.no_grad():
        shape = tuple(backbone.module.eval()(sample).shape[1:])
    with streams.seeded(s.seed, "head"):
        head = s.head.build_for(backbone.leaves if len(backbone.leaves) > 1 else shape, classes)
    with streams.seeded(s.seed, "auxiliary"):
        chain = Chain(backbone, head, sample, len(classes))
    for cut in s.freeze.cuts(chain.layout):
        chain.split(cut)
    return chain


class Run:
    """A finished run: its folder, its record and, once asked for, its net."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises UserError for a folder that is no whole, done run, or whose files are not what the run wrote."""
        self.folder = RunFolder(path)
        self.record: dict[str, Any] = self.folder.record
        if self.record["status"] != "done":
            remedy = "the run is not done; the command in its record goes on with it"
            raise UserError(Problem(str(self.folder.path), self.record["status"], remedy))
        self.folder.verify()
        self.settings = settings(self.folder.config)

    @property
    def metrics(self) -> dict[str, float]:
        """train/accuracy, val/accuracy, test/accuracy, train/loss, ... of the kept epoch."""
        return dict(self.record["metrics"])

    @property
    def classes(self) -> list[str]:
        return list(self.record["data"]["classes"])

    @property
    def _enters(self) -> Mapping[str, Any]:
        return self.record["data"].get("input") or PICTURES

    @cached_property
    def chain(self) -> Chain:
        """The trained net, in eval mode. Raises UserError where the weights that it started from are not to be had."""
        backbone, trained = _backbone(self.settings, self._enters), weights.read(self.folder / MODEL)
        if any(f"backbone.{name}" not in trained for name in backbone.module.state_dict()):
            weights.load(backbone.module, self._start(), str(self.folder.path), None)
        chain = _graft(backbone, self.settings, self.classes, self._enters)
        if whitening := {name.removeprefix("whitening."): tensor for name, tensor in trained.items() if name.startswith("whitening.")}:
            chain.whitening = Whitening.of(whitening)
        weights.load(chain, chain.state_dict() | trained, str(self.folder / MODEL), None)
        return chain.eval().requires_grad_(False)

    @cached_property
    def source(self) -> Source:
        """The data that the run was trained on. Raises UserError where it is not what it was."""
        memos = self.settings.cache.model_copy(update={"dir": None})  # the reader's own: a stranger's run names no folder to write to
        source = self.settings.dataset.open(memos.folder())
        same_data(source, self.record)
        return source

    def evaluate(self) -> dict[str, float]:
        """The metrics, measured again from weights and data; live, so that nothing is read from the cache."""
        from regraft.engine import Engine  # and Lightning with it, which predict can do without

        live = replace(self.settings, cache=self.settings.cache.model_copy(update={"mode": "off"}))
        engine = Engine(live, self.chain, self.source, self.folder, lambda text: None, False)
        return {name: value for split in engine.samples for name, value in measure(engine, split)[0].items()}

    @torch.inference_mode()
    def scores(self, batch: np.ndarray) -> Tensor:
        """uint8 [b, c, size, size] -> probabilities, or numbers, [b, classes]"""
        return self.settings.task.scores(self._logits(torch.from_numpy(batch)))

    def predict(self, files: Iterable[str | os.PathLike[str]], size: int = 32) -> Iterator[tuple[Path, Tensor]]:
        """Each picture with its probabilities [classes], read in batches of `size`; with evaluate.views they are the means over the views.
        Raises UserError for one that can't be read."""
        task = self.settings.task
        for some in _batches(map(Path, files), size):
            views = torch.stack([self._picture(path) for path in some], 1)  # [views, b, c, size, size]
            logits = torch.stack([self._logits(x) for x in views])
            yield from zip(some, task.scores(task.averaged(logits) if len(logits) > 1 else logits[0]), strict=True)

    @torch.inference_mode()
    def _logits(self, x: Tensor) -> Tensor:
        """uint8 [b, c, size, size] -> [b, classes], numbers in the data's own units"""
        with autocast(torch.device("cpu"), chosen(self.settings.hardware, self.record.get("tuning") or [])):
            logits = self.chain(self.chain.prepare(x)).float()
        units = self.record.get("units")
        return Units(*map(torch.tensor, units)).back(logits) if units else logits

    @cached_property
    def _views(self) -> Every:
        """How a picture is seen. Train's colours are asked for only where a pre-drawn view needs them."""
        s = self.settings
        needed = s.evaluate.views and s.augmentation.needs_colours
        reading = Reading(s, self.source if needed else Source(self.classes, ()))
        return reading.every(reading.samples["test"], reading.measuring())

    def _picture(self, path: Path) -> Tensor:
        """[views, c, size, size]"""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(Problem(str(path), None, f"can't be read ({error.strerror})")) from None
        return self._views.seen(pictures.decode(data, str(path)), hashlib.sha256(data).hexdigest())

    def _start(self) -> State:
        """The backbone that the run started from: kept on this disk, else built again from the same source or seed, and compared."""
        expected, s = self.record["weights"]["sha256"], self.settings
        state = weights.Kept(s.cache.folder()).get(expected)
        if state is None:
            state = state_of(build(s, self.classes, self._enters)[0])
            if weights.fingerprint(state) != expected:
                remedy = (
                    f"the weights it started from ({expected[:12]}) are not kept here, and model.weights={s.model.weights} gives others now"
                )
                raise UserError(Problem(str(self.folder.path), None, remedy))
        return state


def same_data(source: Source, record: dict[str, Any]) -> None:
    """Raises UserError where the data is not what the record says."""
    expected, found = record["data"]["fingerprint"], source.fingerprint()
    if found != expected:
        remedy = f"the pictures are not those that the run began with (fingerprint {found[:12]}, recorded {expected[:12]})"
        raise UserError(Problem("dataset", record["data"]["name"], remedy))


def measure(engine: Engine, split: str) -> tuple[dict[str, float], Tensor]:
    """A split's metrics over all its pictures, and the logits [n, classes]; no metrics where the split is empty."""
    logits = engine.answers(split)
    truth = feeds.truth(engine.samples[split])  # [n] or [n, k]
    if not len(truth):
        return {}, logits
    return {f"{split}/{name}": value for name, value in engine.measured(logits, truth).items() if math.isfinite(value)}, logits


def _batches(paths: Iterator[Path], size: int) -> Iterator[list[Path]]:
    while some := list(islice(paths, size)):
        yield some
