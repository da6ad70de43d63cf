"""Many runs that differ in their heads' numbers alone, trained as one stack in one fit: each at its own epoch, in its own order.

What a run alone would see, a head of a stack sees too: the same batches, the same dropout masks, the same steps of its schedule; the sums
are the same up to rounding. Shapes: h heads, d different inputs among them, b rows of a batch, f features, k outputs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from regraft import checkpoints, stopping
from regraft.batches import GlobalBatches
from regraft.computing import autocast, device_of
from regraft.errors import UserError
from regraft.feeds import ROWS
from regraft.hardware import Batch as Arithmetic
from regraft.hardware import Choice
from regraft.judging import Judge
from regraft.pruning import Watched
from regraft.record import METRICS, Metrics
from regraft.stack import Stack, StackedOptimizer, clip
from regraft.streams import Dropout, generator
from regraft.tally import Tally

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger
    from torch import nn
    from torch.optim import Optimizer

    from regraft.engine import Engine
    from regraft.feeds import Feed


@dataclass
class Member:
    """One run of a stack."""

    engine: Engine
    head: nn.Module  # as it starts
    judge: Judge
    loggers: Sequence[Logger] = ()
    epoch: int = 0  # done so far
    step: int = 0  # of the next one, done so far
    error: UserError | None = None  # why it failed alone
    seconds: float = 0.0  # that the stack trained while it was in it
    shared: int = 1  # by how many
    resumed: dict[str, Any] = field(default_factory=dict)  # the moments of its optimizer, and what it had measured of the next epoch

    def __post_init__(self) -> None:
        self.watched = Watched(self.engine.folder, self.engine.settings)

    @property
    def seed(self) -> int:
        return self.engine.settings.seed

    @property
    def ended(self) -> bool:
        """Whether it has nothing left to train."""
        return self.error is not None or self.over or self.watched.pruned is not None

    @property
    def over(self) -> bool:
        """Whether it has made all of its epochs."""
        return self.epoch >= self.engine.epochs

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Go on where an interrupted stack has left this head; any other checkpoint, and none, is the begin. Raises UserError for a
        warm-up that the run has no room for."""
        s, steps = self.engine.settings, self.engine.batch_steps
        s.schedule.factor(steps * self.engine.epochs, steps)
        if "stacked" in checkpoint:
            mine, own = checkpoint["regraft"], checkpoint["stacked"]
            self.epoch = self.engine.epochs if mine["over"] else mine["epochs"]
            self.step = mine["step"]
            self.head.load_state_dict(own["head"])
            self.resumed = {name: own[name] for name in ("optimizer", "measures")}
            self.judge.resume(mine)
            self.watched.pruned = mine.get("pruned") if self.watched.active else None
        Metrics(self.engine.folder / METRICS).start(self.epoch)


class Step(NamedTuple):
    """What every head of a stack gets for one optimizer step."""

    x: Tensor  # [d, b, f]
    y: Tensor  # [d, b] int64 classes, or [d, b, k] labels or numbers
    which: Tensor  # [h] int64: which of the d inputs is a head's
    number: int  # of the epoch


class Rounds(IterableDataset[Step]):
    """One epoch of every member, step by step. Heads of the same seed at the same epoch share their input."""

    def __init__(self, feed: Feed, members: Sequence[Member], sampling: dict[str, Any]) -> None:
        """All members have done the same number of their epoch's steps."""
        self.feed, self.members, self.sampling = feed, list(members), sampling
        self.size = members[0].engine.settings.batch.size

    def inputs(self) -> tuple[list[tuple[int, int]], Tensor]:
        """The different (seed, epoch) pairs, and which of them is each member's."""
        own = [(member.seed, member.epoch) for member in self.members]
        pairs = {pair: number for number, pair in enumerate(dict.fromkeys(own))}
        return list(pairs), torch.tensor([pairs[pair] for pair in own])

    def batches(self, seed: int, epoch: int) -> GlobalBatches:
        """A whole global batch at a time: features are small."""
        whole = Arithmetic(self.size, 1, self.size, 1)
        begun = (epoch, self.members[0].step)
        return GlobalBatches(len(self.feed), whole, **{**self.sampling, "seed": seed}, first_epoch=epoch, begun=begun)

    def __iter__(self) -> Iterator[Step]:
        pairs, which = self.inputs()
        for shares in zip(*(self.batches(*pair) for pair in pairs), strict=True):
            x = torch.stack([self.feed.tensors(share.picture, share.view, share.epoch) for share in shares])
            yield Step(x, torch.stack([self.feed.truth[share.picture] for share in shares]), which, shares[0].step)


class StackModule(pl.LightningModule):
    """The stack as Lightning trains it. The loss is the sum of the heads' own, each the mean over its batch."""

    def __init__(self, stack: Stack, members: Sequence[Member], rounds: Rounds, val: Feed, choice: Choice, first_dropout: int) -> None:
        """`first_dropout`: how many dropouts a chain holds below its head, each with a stream of its own."""
        super().__init__()
        self.stack, self.members, self.rounds, self.val, self.choice = stack, list(members), rounds, val, choice
        self.first_dropout = first_dropout
        first = members[0].engine
        self.epoch_steps = first.batch_steps
        self.rate = first.phases[0].lr * first.phases[0].factor("head")
        self.due = checkpoints.Due(first.settings.trainer.checkpoint_seconds)
        self._began = time.monotonic()
        self._arrange()

    def configure_optimizers(self) -> Optimizer:
        specs = [member.engine.settings.optimizer for member in self.members]
        decays = torch.tensor([spec.weight_decay for spec in specs])
        self.optimizer = StackedOptimizer(self.stack, specs[0], torch.zeros(len(specs)), decays)
        for i, member in enumerate(self.members):
            if member.resumed:
                self.optimizer.put(self.stack, i, member.resumed["optimizer"], member.epoch * self.epoch_steps + member.step)
        return self.optimizer

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None) -> None:
        most = self.members[0].engine.settings.trainer.clip
        if most is not None:
            clip(list(self.stack.parameters()), most)

    def on_train_epoch_start(self) -> None:
        self._pairs, _ = self.rounds.inputs()
        self.tally.start("train")
        if self.members[0].step:
            self.tally.put([member.resumed["measures"] for member in self.members])

    def on_train_batch_start(self, batch: Step, batch_idx: int) -> None:
        at = [member.epoch * self.epoch_steps + batch.number for member in self.members]
        self.optimizer.rates = torch.tensor(
            [peak * factor(step) for peak, factor, step in zip(self._peaks, self._factors, at, strict=True)], dtype=torch.float64
        )

    def training_step(self, batch: Step, batch_idx: int) -> Tensor:
        x, which, masks = batch.x.float(), batch.which.tolist(), None
        if any(p for _, p in self._inputs):
            masks = self._masks(batch)
            x = x[torch.tensor([pair for pair, _ in self._inputs], device=x.device)]  # [u, b, f]: one for each share and rate of dropout
            which = self._which
        y = batch.y if len(batch.y) == 1 else batch.y[batch.which]
        losses = self.tally.add(self.stack(x, which, masks).float(), y)  # [h, b]
        return (losses.sum(1) / losses.shape[1]).sum()

    def on_train_batch_end(self, outputs: Any, batch: Step, batch_idx: int) -> None:
        """Within an epoch all members are saved, or none."""
        done = batch.number + 1
        told = stopping.listener.told is not None
        if done < self.epoch_steps and (told or self.due.within()):
            self._save(range(len(self.members)), done)
            if told:
                stopping.listener.stop(f"and saved after step {done} of an epoch of each head")

    def on_train_epoch_end(self) -> None:
        """Every member has made one more epoch of its own; those that are done, or have diverged, leave the stack."""
        took, self._began = time.monotonic() - self._began, time.monotonic()
        train, val = self.tally.results(), self._validate()
        lrs = self.optimizer.rates.tolist()
        done = []
        for i, member in enumerate(self.members):
            found = {name: float(values[i]) for name, values in (train | val).items()}
            member.seconds += took
            member.shared = max(member.shared, len(self.members))
            if self._ended(i, member, found | {"lr": lrs[i]}):
                done.append(i)
        # when all have reported, the best first: Optuna compares each with those that were asked about before
        by = sorted((i for i in range(len(self.members)) if i not in done), key=lambda i: self.members[i].watched.standing)
        done += [i for i in by if self.members[i].watched.hopeless()]
        left = [i for i in range(len(self.members)) if i not in done]
        told = stopping.listener.told is not None
        self._save(range(len(self.members)) if told or self.due.now() else done)
        if told:
            stopping.listener.stop("and saved after an epoch of each head")
        if not left:
            self.trainer.should_stop = True
        elif done:
            self.stack.keep(torch.tensor(left))
            self.optimizer.keep(torch.tensor(left))
            self.members = self.rounds.members = [self.members[i] for i in left]
            self._arrange()

    def _arrange(self) -> None:
        """What is looked up for each head at each step."""
        settings = [member.engine.settings for member in self.members]
        self._peaks = [s.optimizer.lr * self.rate for s in settings]
        self._factors = [
            s.schedule.factor(self.epoch_steps * member.engine.epochs, self.epoch_steps)
            for s, member in zip(settings, self.members, strict=True)
        ]
        _, which = self.rounds.inputs()
        own = list(zip(which.tolist(), (getattr(s.head, "dropout", 0.0) for s in settings), strict=True))
        self._inputs = list(dict.fromkeys(own))  # [u] of (which share, dropout): what differs in what enters the heads
        self._which = [self._inputs.index(each) for each in own]  # [h], in ascending order
        self.tally = Tally([member.engine for member in self.members])

    def _masks(self, batch: Step) -> Any:
        rows = batch.x.shape[1]

        def mask(dropout: int, x: Tensor) -> Tensor:
            """[u or h, b, ...]: the masks that each head's run would draw alone, for the inputs [u or h, b, ...] of one of its dropouts."""
            numbers = [
                torch.rand(rows, *x.shape[2:], generator=generator(seed, "dropout", epoch, batch.number, self.first_dropout + dropout))
                for seed, epoch in self._pairs
            ]
            of = self._inputs if len(x) == len(self._inputs) else [self._inputs[number] for number in self._which]
            return torch.stack([(numbers[pair] >= p) / (1 - p) for pair, p in of]).to(x)

        return mask

    @torch.no_grad()
    def _validate(self) -> dict[str, Tensor]:
        if not len(self.val):
            return {}
        self.tally.start("val")
        with autocast(self.device, self.choice):
            for rows in torch.arange(len(self.val)).split(ROWS):
                x = self.val.tensors(rows, torch.zeros_like(rows), 0).float().to(self.device)
                self.tally.add(self.stack(x[None]).float(), self.val.truth[rows][None].to(self.device))
        return self.tally.results()

    def _ended(self, i: int, member: Member, found: dict[str, float]) -> bool:
        """What happens at the end of a member's epoch; whether it was its last."""
        epoch, engine = member.epoch, member.engine
        try:
            member.judge.finite(epoch, found["train/loss"])
        except UserError as error:
            member.error = error
            return True
        member.epoch, member.step = epoch + 1, 0
        Metrics(engine.folder / METRICS).append(engine.phases[0].name, epoch, member.epoch * self.epoch_steps, found)
        member.watched.report(member.epoch, found)
        for logger in member.loggers:
            logger.log_metrics({**found, "epoch": float(epoch)}, step=epoch)
        waited = member.judge.judge(epoch, found, lambda: {f"head.{name}": tensor for name, tensor in self.stack.state(i).items()})
        if waited:
            member.epoch = engine.epochs
        return member.ended

    def _save(self, heads: Sequence[int], step: int = 0) -> None:
        """The members' checkpoints: what each takes to go on alone or in any stack. `step`: within an epoch, how many are done."""
        measures = self.tally.plain() if step else [{}] * len(self.members)
        with self.due.saving(all=len(heads) == len(self.members)):
            for i in heads:
                if (member := self.members[i]).error:
                    continue
                mine = {"phase": 0, "over": member.over, "epochs": member.epoch, "step": step, "pruned": member.watched.pruned}
                mine |= member.judge.plain()
                own = {"head": self.stack.state(i), "optimizer": self.optimizer.state_of(self.stack, i), "measures": measures[i]}
                checkpoints.write(member.engine.folder, {"regraft": mine, "stacked": own})


def train(members: Sequence[Member], feeds: dict[str, Feed], choice: Choice) -> None:
    """Train all members to the end of each; afterwards each `judge.best` holds the kept epoch, or `error` says why there is none.

    So many at once as a part of the memory holds; half of that for each time that it was too much. Those that were interrupted after
    different numbers of steps of an epoch have each a stack of their own.
    """
    left = sorted((member for member in members if not member.ended), key=lambda member: member.step)
    for _, same in groupby(left, key=lambda member: member.step):
        together = list(same)
        engine = together[0].engine
        most = min(len(together), int(memory(device_of(engine.settings.hardware)) / weight(together[0])))
        most = max(1, most >> engine.folder.halved)
        for start in range(0, len(together), most):
            _fit(together[start : start + most], feeds, choice)


def weight(member: Member) -> int:
    """Bytes that one more head takes: its parameters, their gradients, two moments and the kept ones; its input, masked, and its logits."""
    engine, rows = member.engine, max(member.engine.settings.batch.size, ROWS)
    numbers = 6 * sum(tensor.numel() for tensor in member.head.parameters())
    return 4 * (numbers + rows * (3 * engine.chain.features + 4 * len(engine.source.classes)))


def memory(device: torch.device) -> float:
    """Bytes that a stack may take: a quarter of what the machine has, or half of what a GPU has free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 4


def _fit(members: Sequence[Member], feeds: dict[str, Feed], choice: Choice) -> None:
    # those that share an input stand together, now and whoever leaves
    members = sorted(members, key=lambda each: (each.epoch, each.seed, getattr(each.engine.settings.head, "dropout", 0.0)))
    first = members[0].engine
    below = sum(isinstance(part, Dropout) for part in first.chain.backbone.modules())
    rounds = Rounds(feeds["train"], members, first.sampling)
    module = StackModule(Stack([member.head for member in members]), members, rounds, feeds["val"], choice, below)
    trainer = pl.Trainer(
        max_epochs=max(member.engine.epochs - member.epoch for member in members),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,  # each member has a checkpoint of its own
        num_sanity_val_steps=0,
        default_root_dir=first.folder.path,
        **first.settings.hardware.trainer(choice) | {"accumulate_grad_batches": 1},
    )
    torch.set_flush_denormal(True)  # the weights of a head that shrinks to nothing would otherwise make every step forty times as long
    try:
        with stopping.listener.later(trainer):
            trainer.fit(module, DataLoader(rounds, batch_size=None))
    finally:
        torch.set_flush_denormal(False)
