"""The learning-rate range test of what a config would train: its net, its first phase, its own batches; nothing is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from regraft import freezing, lr_finder
from regraft.engine import Engine, quiet
from regraft.errors import Problem, UserError
from regraft.graft import build
from regraft.record import RunFolder

if TYPE_CHECKING:
    from collections.abc import Callable

    from regraft.datasets.source import Source
    from regraft.settings import Settings


def run(s: Settings, source: Source, picture: Path, steps: int, say: Callable[[str], None]) -> lr_finder.Found:
    """The test over `steps` optimizer steps, drawn into `picture` (PNG). Raises UserError where nothing trains, or on several devices."""
    if s.batch.devices > 1:
        raise UserError(Problem("hardware.devices", s.batch.devices, "the range test runs on one device: hardware.devices=1"))
    quiet()
    if unfit := s.fits(source.facts()):
        raise UserError(unfit)
    chain, _ = build(s, source.classes, source.facts()["input"])
    engine = Engine(s, chain, source, RunFolder(picture.parent / ".range-test"), say, False)  # the folder is never written
    engine.whiten()
    if not engine.phases or not any(True for _ in freezing.trained(chain, engine.phases[0])):
        raise UserError(Problem("trainer.max_epochs", s.trainer.max_epochs, "nothing trains, and so there is no rate to find"))
    phase = engine.phases[0]
    feed = engine.supply.feeds(phase.boundary, phase, only=["train"])["train"]
    loader = feed.loader(engine.batches(phase), 0 if feed.cached else s.hardware.readers())
    trainer = s.hardware.trainer() | {"gradient_clip_val": s.trainer.clip}
    found = lr_finder.find(engine.module(phase, 0), loader, base=s.optimizer.lr, steps=steps, trainer=trainer)
    lr_finder.draw(found, picture)
    return found
