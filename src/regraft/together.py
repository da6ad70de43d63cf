"""How the runs of a group are trained: as one stack of heads, by one solver, or one after the other."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from regraft import errors, streams
from regraft.batches import GlobalBatches
from regraft.computing import device_of
from regraft.datasets.splits import joined
from regraft.feeds import EXTRACT, ROWS
from regraft.fitting import fit
from regraft.hardware import Batch as Arithmetic
from regraft.judging import Best, Judge
from regraft.layout import HEAD
from regraft.pruning import Pruned
from regraft.stacking import Member, train
from regraft.tasks import LOWER
from regraft.tasks.module import frozen

if TYPE_CHECKING:
    from regraft.datasets.samples import Samples
    from regraft.engine import Engine
    from regraft.feeds import Feed
    from regraft.loggers import Logger

log = logging.getLogger(__name__)


@dataclass
class Begun:
    """A run under way."""

    engine: Engine
    record: dict[str, Any]  # as it began
    warned: list[str]
    launched: float  # s since 1970
    start: float  # s from then to its first step
    loggers: list[Logger] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)  # what its training adds to the record
    shared: int = 1  # by how many runs its training's time is shared

    def fail(self, error: BaseException) -> None:
        """Say in the record, and in the log, that the run has failed, and why."""
        log.error("%s has failed", self.record["run_id"], exc_info=error)
        self.engine.folder.update(status="failed", error=errors.facts(error))
        self.close("failed")

    def prune(self, told: dict[str, Any]) -> None:
        """Say in the record that the run was ended early, after which epoch, and what it had reached: nothing is measured on test."""
        engine = self.engine
        best, monitor = engine.best, engine.settings.monitor
        self.close("success")
        engine.folder.update(
            status="pruned",
            pruned=told,
            metrics={monitor: best.value},
            kept={"epoch": best.epoch, "monitor": monitor, "value": best.value},
            times=self.times(0.0),
            error=None,
        )

    def times(self, evaluate: float) -> dict[str, float]:
        """When it began and ended, s since 1970, and what took how long, s; of a group, what it took together is shared out evenly."""
        engine, now = self.engine, time.time()
        seconds = {"start": self.start, "frozen": engine.supply.seconds, "train": engine.seconds, "evaluate": evaluate}
        seconds["total"] = now - self.launched
        if (size := (self.record.get("group") or {"size": 1})["size"]) > 1:
            seconds["share"] = (seconds["start"] + seconds["frozen"]) / size + seconds["train"] / self.shared + evaluate
        return {"launched": self.launched, "finished": now} | {name: round(value, 3) for name, value in seconds.items()}

    def close(self, status: str) -> None:
        """Its loggers' end: `success`, `failed`, or `aborted` where the run goes on later. Again, it does nothing."""
        while self.loggers:
            self.loggers.pop().close(status)

    def log(self) -> None:
        """Open its loggers."""
        s, folder = self.engine.settings, self.engine.folder
        config = {key: value for key, value in folder.config.items() if key != "launcher"}  # what a cluster is told is no experiment's
        known = folder.path, self.record["run_id"], self.record["place"], config
        self.loggers = [each for spec in s.logger.values() if (each := spec.build(*known))]


@contextmanager
def tracked(runs: Sequence[Begun]) -> Iterator[None]:
    """Loggers that are open at the end of the block hear of what has ended it."""
    try:
        yield
    except BaseException as error:
        for run in runs:
            with suppress(Exception):  # what ended the runs is what is to be told
                run.close("failed" if isinstance(error, Exception) else "aborted")
        raise


def trained(runs: Sequence[Begun], rank: int) -> Iterator[Begun]:
    """Each run when the chain holds its kept weights. One that fails alone is marked, and not given."""
    runs = list(_logged(runs))
    if not runs:
        return
    first = runs[0].engine
    if first.settings.head.fits:
        yield from _fitted(runs)
        return
    if runs[0].record.get("group"):
        [phase] = first.phases
        feeds = first.supply.feeds(HEAD, phase)
        if feeds["train"].cached and feeds["val"].cached:
            yield from _stacked(runs, feeds)
            return
        first.say("what enters the heads can't be cached: each trains alone")
    several = len(runs) > 1
    for run in runs:
        if run.record.get("group"):
            run.record["group"] = None
            run.engine.folder.update(group=None)
        first.chain.head = _head(run.engine) if several else first.chain.head
        try:
            run.engine.train(run.loggers, rank)
        except errors.UserError as error:
            if not several:
                raise
            run.fail(error)
        except Pruned as pruned:
            if rank == 0:
                run.prune(pruned.told)
        else:
            yield run


def _logged(runs: Sequence[Begun]) -> Iterator[Begun]:
    """The runs whose loggers could be opened; of several, the others fail alone."""
    for run in runs:
        try:
            run.log()
        except Exception as error:  # a server that is not there, a folder that can't be written
            if len(runs) == 1:
                raise
            run.fail(error)
        else:
            yield run


def _head(engine: Engine) -> nn.Module:
    """The head that the run's own seed gives."""
    s = engine.settings
    with streams.seeded(s.seed, "head"):
        return s.head.build(engine.chain.features, engine.source.classes)


def _stacked(runs: Sequence[Begun], feeds: dict[str, Feed]) -> Iterator[Begun]:
    first = runs[0].engine
    members = []
    for run in runs:
        member = Member(run.engine, _head(run.engine), Judge(run.engine.settings, Best()), run.loggers)
        try:
            member.restore(run.engine.checkpoint())
        except errors.UserError as error:
            member.error = error
        members.append(member)
    resumed = [member.epoch for member in members if member.epoch]
    if resumed:
        first.say(f"{len(resumed)} of {len(runs)} heads go on after {min(resumed)} to {max(resumed)} epochs")
    choice = first.settled(feeds["train"])
    for run in runs[1:] if first.tuned else ():
        run.engine.tuned = first.tuned
        run.engine.folder.update(tuning=first.tuned)
    began = time.monotonic()
    train(members, feeds, choice)
    first.chain.requires_grad_(False).eval()
    if len(runs) > 1:
        first.say(f"{len(runs)} heads trained as one batch in {time.monotonic() - began:.1f} s")
    for run, member in zip(runs, members, strict=True):
        engine = run.engine
        if member.error:
            run.fail(member.error)
            continue
        engine.best, engine.seconds, run.shared = member.judge.best, member.seconds, member.shared
        if member.watched.pruned:
            run.prune(member.watched.pruned)
            continue
        member.head.load_state_dict({name.removeprefix("head."): tensor for name, tensor in engine.best.state.items()})
        engine.chain.head = member.head.requires_grad_(False).eval()
        yield run


def _fitted(runs: Sequence[Begun]) -> Iterator[Begun]:
    """Heads that need no epochs: those of one kind share what they are solved with."""
    first = runs[0].engine
    s, chain = first.settings, first.chain
    feeds = first.supply.feeds(HEAD, first.phases[0])
    chain.to(device_of(s.hardware)).eval()
    views = first.sampling["views"]

    def batches(feed: Feed, views: int) -> Iterable[tuple[Tensor, Tensor]]:
        """Every picture in every view, in order: features [b, f] and truth."""
        whole = GlobalBatches(len(feed), Arithmetic(ROWS if feed.cached else EXTRACT, 1, ROWS, 1), views=views, expand=True)
        for batch in feed.loader(whole, 0 if feed.cached else s.hardware.readers()):
            x = batch.x.to(device_of(s.hardware))
            x = x if feed.cached else frozen(chain, chain.prepare(x), HEAD, first.supply.dtype)
            yield x.float().cpu(), first.units.within(batch.y) if first.units else batch.y

    def judge(logits: Tensor, truth: Tensor) -> float:
        units = first.units
        logits, truth = (units.back(logits), units.back(truth)) if units else (logits, truth)
        return first.measured(logits, truth)[s.monitor.partition("/")[2]]

    began = time.monotonic()
    found = fit(
        [run.engine.settings.head for run in runs],
        lambda: batches(feeds["train"], views),
        (lambda: batches(feeds["val"], 1)) if len(feeds["val"]) else None,
        chain.features,
        len(first.source.classes),
        s.task.KIND,
        judge,
        s.monitor.partition("/")[2] in LOWER,
        first.say,
        _groups(first.samples["train"]),
        [run.engine.settings.seed for run in runs],
    )
    took = time.monotonic() - began
    chain.requires_grad_(False).eval()
    for run, (head, facts) in zip(runs, found, strict=True):
        chain.head = head
        run.engine.seconds, run.facts, run.shared = took, {"fit": facts}, len(runs)
        others = {name for name in run.engine.changing if not name.startswith("head.")}
        run.engine.changing = others | {f"head.{name}" for name in head.state_dict()}
        yield run


def _groups(samples: Samples) -> Tensor:
    """[n] int64: pictures of one group have one number, and so have equal ones; any other stands alone."""
    numbers: dict[str | None, int] = {}
    together = joined([sample.group for sample in samples], [sample.sha256 for sample in samples])
    return torch.tensor([numbers.setdefault(each, len(numbers)) for each in together])
