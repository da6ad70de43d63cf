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
from torch.nn.utils.rnn import pad_sequence

from regraft import adapters, entering, streams, weights
from regraft.chain import Chain
from regraft.computing import autocast, chosen
from regraft.datasets import given, pictures
from regraft.datasets.given import Given, Known
from regraft.datasets.source import PICTURES, Source
from regraft.errors import Problem, UserError
from regraft.reading import Reading
from regraft.record import MODEL, RunFolder
from regraft.settings import Settings, settings
from regraft.tasks.spec import HALF
from regraft.tasks.units import Units
from regraft.whitening import Whitening

if TYPE_CHECKING:
    from regraft.chain import Backbone
    from regraft.engine import Engine
    from regraft.feeds import Every

State = dict[str, Tensor]
NOTHING = np.zeros(0)  # of a picture, which is read when its batch is asked for


def build(s: Settings, classes: Sequence[str], enters: Mapping[str, Any] = PICTURES) -> tuple[Chain, weights.Origin]:
    """The chain that a run starts from, with its weights; `enters`: a set's facts of what enters the net. Raises UserError for weights
    that do not fit, or too small a picture."""
    backbone, origin = _backbone(s, enters), s.origin
    drawn = {f"backbone.{name}": tensor.clone() for name, tensor in backbone.module.state_dict().items()}
    published: State = {}
    if origin.kind == "imagenet":
        published = s.model.fetch(backbone)
    elif origin.kind == "file":
        published = weights.read(Path(s.model.weights))
    if published:
        weights.load(backbone.module, s.model.adapt(published, backbone), "model.weights", s.model.weights)
    earlier = Run(s.model.weights).chain if origin.kind == "run" else None
    if earlier:
        weights.load(backbone.module, s.model.inherit(adapters.merged(earlier.backbone), backbone), "model.weights", s.model.weights)
    chain = _graft(backbone, s, classes, enters)
    for stage in s.freeze.redrawn(chain.layout):
        for name, tensor in (*chain.named_parameters_of(stage), *chain.named_buffers_of(stage)):
            if name in drawn:  # the head is random anyway
                tensor.data.copy_(drawn[name])
    if earlier and getattr(s.head, "kept", False):
        weights.load(chain.head, earlier.head.state_dict(), "head.kept", s.model.weights)
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
    """A copy of the backbone's tensors, its adapters left out."""
    return {name: tensor.detach().cpu().clone() for name, tensor in adapters.bare(chain.backbone.state_dict()).items()}


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
    with streams.seeded(s.seed, "adapters"):
        s.freeze.adapt(chain, sample)
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
    def thresholds(self) -> list[float]:
        """From which score on each class is said, where several may be: as it was chosen on val."""
        return list(self.record.get("thresholds") or [HALF] * len(self.classes))

    @property
    def enters(self) -> Mapping[str, Any]:
        """The record's facts of what enters the net (`Source.facts`)."""
        return self.record["data"].get("input") or PICTURES

    @cached_property
    def chain(self) -> Chain:
        """The trained net, in eval mode. Raises UserError where the weights that it started from are not to be had."""
        backbone, trained = _backbone(self.settings, self.enters), weights.read(self.folder / MODEL)
        if any(f"backbone.{name}" not in trained for name in backbone.module.state_dict()):
            weights.load(backbone.module, self._start(), str(self.folder.path), None)
        chain = _graft(backbone, self.settings, self.classes, self.enters)
        if whitening := {name.removeprefix("whitening."): tensor for name, tensor in trained.items() if name.startswith("whitening.")}:
            chain.whitening = Whitening.of(whitening)
        weights.load(chain, chain.state_dict() | trained, str(self.folder / MODEL), None)
        return chain.eval().requires_grad_(False)

    @cached_property
    def source(self) -> Source:
        """The data that the run was trained on. Raises UserError where it is not what it was."""
        memos = self.settings.cache.model_copy(update={"dir": None})  # the reader's own: a stranger's run names no folder to write to
        source = self.settings.dataset.opened(memos.folder())
        same_data(source, self.record)
        return source

    def evaluate(self) -> dict[str, float]:
        """The metrics, measured again from weights and data; live, so that nothing is read from the cache."""
        from regraft.engine import Engine  # and Lightning with it, which predict can do without

        live = replace(self.settings, cache=self.settings.cache.model_copy(update={"mode": "off"}))
        engine = Engine(live, self.chain, self.source, self.folder, lambda text: None, False)
        return {name: value for split in engine.samples for name, value in measure(engine, split, self.thresholds)[0].items()}

    @torch.inference_mode()
    def scores(self, batch: np.ndarray) -> Tensor:
        """uint8 [b, c, size, size] -> probabilities, or numbers, [b, classes]"""
        return self.settings.task.scores(self._logits(torch.from_numpy(batch)))

    def predict(self, files: Iterable[str | os.PathLike[str]], size: int = 32) -> Iterator[tuple[Path, Tensor]]:
        """Each picture with its probabilities [classes], read in batches of `size`; with evaluate.views they are the means over the views.
        Of a set that is none of pictures each case of each file (`datasets.given`). Raises UserError for a file that can't be read."""
        for each, scores in self.ask(map(Path, files), size):
            yield each.file, scores

    def ask(self, files: Iterable[Path], size: int = 32) -> Iterator[tuple[Given, Tensor]]:
        """The same, with the line of the file where it holds several cases."""
        task = self.settings.task
        for some in _batches(self._given(files), size):
            if self.enters["kind"] == "pictures":
                views = torch.stack([self.views(each.file) for each in some], 1)  # [views, b, c, size, size]
            else:
                views = pad_sequence([torch.from_numpy(each.values) for each in some], batch_first=True)[None]
            logits = torch.stack([self._logits(x) for x in views])
            yield from zip(some, task.scores(task.averaged(logits) if len(logits) > 1 else logits[0]), strict=True)

    def answer(self, scores: Tensor) -> str:
        """What `ask` gives for one case, in the words of predictions.parquet."""
        [said] = self.settings.task.answers(scores[None], self.classes, self.thresholds)
        return str(said)

    def _given(self, files: Iterable[Path]) -> Iterator[Given]:
        """What there is to ask about, one after the other."""
        if self.enters["kind"] == "pictures":
            yield from (Given(path, None, NOTHING) for path in files)
            return
        spec = self.settings.dataset
        reader = given.reader(spec, str(self.folder.path))
        for path in files:
            yield from reader.read(Known(spec, self.record["data"], self.folder.path), path)

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

    def views(self, path: Path) -> Tensor:
        """A picture as the net is fed it, uint8 [views, c, size, size]. Raises UserError for one that can't be read."""
        data = pictures.content(path)
        return self._views.seen(pictures.decode(data, str(path)), hashlib.sha256(data).hexdigest())

    def _start(self) -> State:
        """The backbone that the run started from: kept on this disk, else built again from the same source or seed, and compared."""
        expected, s = self.record["weights"]["sha256"], self.settings
        state = weights.Kept(s.cache.folder()).get(expected)
        if state is None:
            state = state_of(build(s, self.classes, self.enters)[0])
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


def measure(
    engine: Engine, split: str, thresholds: Sequence[float] | None, logits: Tensor | None = None
) -> tuple[dict[str, float], Tensor]:
    """A split's metrics over all its pictures, and the logits [n, classes], which may be there already; no metrics where the split is
    empty. `thresholds`: those that val has chosen."""
    logits = engine.answers(split) if logits is None else logits
    truth = engine.truth(split)  # [n] or [n, k]
    if not len(truth):
        return {}, logits
    found = engine.measured(logits, truth, thresholds)
    return {f"{split}/{name}": value for name, value in found.items() if math.isfinite(value)}, logits


def _batches(every: Iterator[Given], size: int) -> Iterator[list[Given]]:
    while some := list(islice(every, size)):
        yield some
