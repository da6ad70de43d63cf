"""The phases of a run, one after the other: what lies below a phase's boundary is cached, what lies above it trains."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from timm.layers import convert_sync_batchnorm
from torch import Tensor

from regraft import dreaming, freezing, stopping
from regraft.batches import GlobalBatches
from regraft.checkpoints import Checkpoints, divided, read
from regraft.computing import autocast, chosen, device_of
from regraft.ema import EMA
from regraft.epochs import Epochs
from regraft.errors import Problem, UserError
from regraft.feeds import EXTRACT, Feed, truth
from regraft.hardware import Batch as Arithmetic
from regraft.hardware import Choice
from regraft.judging import Best
from regraft.layout import HEAD
from regraft.progress import Bar
from regraft.record import CHECKPOINT, METRICS, Metrics, RunFolder
from regraft.supply import Supply
from regraft.tasks.module import PhaseModule
from regraft.tasks.units import Units
from regraft.tuning import applied, settle

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger
    from torchmetrics import Metric

    from regraft.chain import Chain
    from regraft.datasets.source import Source
    from regraft.freeze import Phase
    from regraft.settings import Settings

for noise in (
    r".*module\(s\) in eval mode.*",
    r".*does not have many workers.*",
    r".*logging interval.*",
    r".*SyncBatchNorm.*",
    r".*srun.*",  # a worker is started by no srun, on purpose
    r".*weights_only.*",
    r".*isinstance\(treespec.*",
    r".*have no `val_dataloader`.*",
    r".*your dataloader is not resumable.*",  # GlobalBatches begins where the checkpoint says
):
    warnings.filterwarnings("ignore", noise)
warnings.filterwarnings("ignore", r".*compute.*method of metric.*was called before.*")  # a rank may hold no rows


class Engine:
    """One run's training. Below a boundary the cache answers, where it pays; above it Lightning trains."""

    def __init__(
        self,
        settings: Settings,
        chain: Chain,
        source: Source,
        folder: RunFolder,
        say: Callable[[str], None],
        show: bool,
        like: Engine | None = None,
    ) -> None:
        """`like`: the engine of another run, which differs from this one in its head's numbers alone; what is equal is shared."""
        self.settings, self.chain, self.source, self.folder, self.say, self.show = settings, chain, source, folder, say, show
        self.supply: Supply = like.supply if like else Supply(settings, chain, source, say, show, max(1, EXTRACT >> folder.halved))
        self.samples = self.supply.samples
        self.sampling = self.supply.reading.sampling() | {"seed": settings.seed}  # how an epoch goes through the pictures
        self.batch = settings.batch.halved(folder.halved)
        self.batch_steps = self.batches().steps  # of a whole epoch that learns the task
        self.epochs = 0 if settings.head.fits else settings.trainer.epochs(self.batch_steps)
        self.phases = self._drawn() if self.epochs or settings.head.fits else []
        outputs = len(source.classes)
        self._meters: dict[str, Metric] = like._meters if like else settings.task.meters(outputs)
        if (metric := settings.monitor.partition("/")[2]) not in ("loss", *self._meters):
            remedy = f"{metric} says nothing of {outputs} classes; {', '.join(self._meters)} and loss are measured"
            raise UserError(Problem("trainer.monitor", settings.monitor, remedy))
        boundaries = [chain.stages.index(phase.boundary) for phase in self.phases]
        self.lowest = chain.stages[min(boundaries, default=-1)]  # below it nothing ever changes
        own = (
            set() if like else {name for name in chain.state_dict() if name.split(".")[0] in ("head", "whitening")}
        )  # a run's, whether they train or not
        self.changing: set[str] = set(like.changing) if like else freezing.changing(chain, self.phases) | own
        pulled = any(phase.pull for phase in self.phases)
        self.start = {name: tensor.detach().clone() for name, tensor in chain.named_parameters()} if pulled else {}
        train = self.truth("train")
        self.loss = settings.loss.fitted(train, len(source.classes))
        self.units = Units.of(train) if settings.task.KIND == "numbers" else None
        self.tuned: list[dict[str, Any]] = list(folder.record.get("tuning", [])) if folder.exists else []
        self.best = Best()
        self.seconds = 0.0  # of training

    def train(self, loggers: Sequence[Logger], rank: int) -> Best:
        """All phases, from the last checkpoint where there is one; then the chain holds the kept epoch's weights.

        Raises UserError for a checkpoint that can't be read, and for a boundary that can't be cached under cache.mode=require.
        """
        last = self.checkpoint()
        if "stacked" in last:
            self.say("the checkpoint is of a head among others, which can't go on here: the run starts again")
            last = {}
        mine = last.get("regraft", {})
        self.best = Best(**mine["best"]) if mine else Best()
        for number, phase in enumerate(self.phases):  # a warm-up that no phase has room for is told before the first one trains
            self.settings.schedule.factor(self._steps(number, phase), self.batches(phase).steps)
        if rank == 0:
            Metrics(self.folder / METRICS).start(mine.get("epochs", 0))
        if mine:
            at = f"in epoch {mine['epochs']} after step {step}" if (step := mine.get("step")) else f"after epoch {mine['epochs'] - 1}"
            self.say(f"goes on {at}, from its checkpoint")
        self.supply.prepare(self.phases)
        first_epoch = 0
        for number, phase in enumerate(self.phases):
            here = bool(mine) and number == mine["phase"]
            if here and mine["over"]:
                self._load(last["state_dict"])
            elif here or not mine or number > mine["phase"]:
                if rank == 0 and not here:
                    self._dream(number)
                self._phase(number, phase, first_epoch, last if here else {}, loggers, rank)
            first_epoch += phase.epochs
        self.hold()
        return self.best

    def _dream(self, number: int) -> None:
        """What stages have learnt by themselves, drawn before a phase of the task changes it."""
        objectives = [phase.objective for phase in self.phases[max(0, number - 1) : number + 1]]
        if not self.settings.plots or objectives != ["stage", "task"]:
            return
        from regraft.report.pictures import DREAMS, FILTERS

        with suppress(Exception):  # what is missing is drawn with the results' pictures, which tell what is wrong
            dreaming.write(self.chain, self.folder / FILTERS, self.folder / DREAMS, self.settings.seed, tuned=False)

    def hold(self) -> None:
        """The chain holds the kept epoch's weights."""
        self.chain.load_state_dict(self.best.state, strict=False)
        self.chain.requires_grad_(False).eval()

    def _load(self, state: dict[str, Tensor]) -> None:
        """A checkpoint's tensors into the chain."""
        self.chain.load_state_dict({name.removeprefix("chain."): tensor for name, tensor in state.items()}, strict=False)

    def _drawn(self) -> list[Phase]:
        """The policy's phases, each from the lowest stage in which anything trains. Raises UserError for one that does not suit the net."""
        s, most = self.settings, self.settings.trainer.max_steps
        try:
            phases = s.freeze.drawn(self.chain.layout, self.epochs)
        except UserError as error:
            if most is None:
                raise
            made = f"{most} steps are {self.epochs} epochs of {self.batch_steps}"
            raise UserError(
                Problem("trainer.max_steps", most, f"{made}: {each.remedy}") if each.key == "trainer.max_epochs" else each
                for each in error.problems
            ) from None
        for phase in phases:
            if phase.only != "all" and phase.trains != (HEAD,) and freezing.lowest(self.chain, phase) == HEAD:
                remedy = f"this net has no {phase.only} below its head; freeze=backbone trains the head alone"
                raise UserError(Problem("freeze", s.freeze.name, remedy))
        return [freezing.tightened(self.chain, phase) for phase in phases]

    def batches(self, phase: Phase | None = None, **more: Any) -> GlobalBatches:
        """How a phase goes through train, or (None) what learns the task: a stage that trains by itself sees those without a label too."""
        places = None if phase and phase.objective == "stage" else self.supply.reading.labelled
        count = len(self.samples["train"]) if places is None else len(places)
        return GlobalBatches(count, self.batch, places=places, **self.sampling, **more)

    def truth(self, split: str) -> Tensor:
        """What is known of a split, in its order: [n], [n, k] or [n, ...]"""
        return truth(self.samples[split].take(self.supply.reading.told(split).numpy()))

    @torch.inference_mode()
    def answers(self, split: str) -> Tensor:
        """Logits [n, classes], or what else the head answers [n, ...], in float32, for what `truth` gives of a split; above the lowest
        boundary of all phases. With evaluate.views those whose scores are the mean over the views."""
        task, found = self.settings.task, list[Tensor]()
        with autocast(device_of(self.settings.hardware), chosen(self.settings.hardware, self.tuned)):
            for views in self.supply.entering(split, self.lowest):  # [views, b, ...]
                logits = torch.stack([self.chain(x, start=self.lowest).float().cpu() for x in views])
                logits = logits if self.units is None else self.units.back(logits)
                found.append(task.averaged(logits) if len(logits) > 1 else logits[0])
        return torch.cat(found) if found else torch.empty(0, len(self.source.classes))

    def measured(self, logits: Tensor, truth: Tensor, thresholds: Sequence[float] | None = None) -> dict[str, float]:
        """The task's metrics and the loss of a whole split, in double precision: logits [n, k], numbers in the data's own units; truth
        [n] or [n, k]. Answers of a head that has a loss of its own have none here: it is no function of them. `thresholds`: as
        `TaskSpec.meters` takes them."""
        logits, task, units, found = logits.double(), self.settings.task, self.units, dict[str, float]()
        if not self.settings.head.learns:
            losses = self.loss(units.within(logits), units.within(truth)) if units else self.loss(logits, truth)
            found["loss"] = float(losses.double().mean())
        scores, truth = task.judged(units.within(logits) if units else logits, truth, units)
        meters = self._meters if thresholds is None else task.meters(len(self.source.classes), thresholds)
        for name, meter in meters.items():
            meter.distributed_available_fn = lambda: False  # this rank has the whole split, and the others are not asked
            meter.set_dtype(torch.float64).update(scores, truth)
            found[name] = float(meter.compute())
            meter.reset()
        return found

    def whiten(self) -> None:
        """Put before the net what the augmentation asks for, fitted on train."""
        if self.settings.augmentation.whiten() and self.chain.whitening is None:
            self.chain.whitening = self.supply.reading.whitening()
            self.changing |= {name for name in self.chain.state_dict() if name.startswith("whitening.")}

    def _phase(self, number: int, phase: Phase, first_epoch: int, checkpoint: dict[str, Any], loggers: Sequence[Logger], rank: int) -> None:
        s, resumed = self.settings, checkpoint.get("regraft")
        freezing.gradients(self.chain, phase)
        if not any(parameter.requires_grad for parameter in self.chain.parameters()):
            self.say(f"{phase.name}: nothing trains (head={s.head.name} has no parameters)")
            return
        if resumed:  # rows are made by the weights that this phase began with
            self._load(checkpoint["state_dict"])
        feeds = self.supply.feeds(phase.boundary, phase, self.phases[:number])
        module = self.module(phase, number)
        if s.hardware.syncs():
            self.chain.backbone = convert_sync_batchnorm(self.chain.backbone)  # timm's: torch's own would drop its fused activations
            self.chain.head = convert_sync_batchnorm(self.chain.head)
            self.chain.auxiliary = convert_sync_batchnorm(self.chain.auxiliary)  # type: ignore[assignment]
            freezing.gradients(self.chain, phase)
        last = self._last(number)
        begun = (resumed["epochs"], resumed.get("step", 0)) if resumed else None
        batches = {
            "train": self.batches(phase, rank=rank, first_epoch=first_epoch, last=last, begun=begun),
            "val": GlobalBatches(len(feeds["val"]), _forward(self.batch), rank=rank),
        }
        loaders = {split: feeds[split].loader(batches[split], 0 if feeds[split].light else s.hardware.readers()) for split in batches}
        choice = self._choice(number, module, feeds["train"], rank)
        bar = Bar(s.monitor) if self.show else None
        ema = EMA(s.trainer.ema) if s.trainer.ema is not None else None
        epochs = Epochs(self.folder, s, number, batches["train"], self.best, ema, bar)
        if resumed:
            epochs.resume(resumed)
        trainer = pl.Trainer(
            max_epochs=phase.epochs,
            callbacks=[callback for callback in (ema, epochs, bar) if callback],
            logger=list(loggers) or False,
            enable_progress_bar=False,  # a bar of our own
            enable_model_summary=False,
            use_distributed_sampler=False,  # GlobalBatches takes the rank's rows
            num_sanity_val_steps=0,
            gradient_clip_val=s.trainer.clip,
            reload_dataloaders_every_n_epochs=1 if last else 0,  # the last epoch is a shorter one
            default_root_dir=self.folder.path,
            plugins=[Checkpoints(self.folder, divided(checkpoint, self.batch.accumulate) if resumed else None)],
            **s.hardware.trainer(choice) | {"accumulate_grad_batches": self.batch.accumulate},
        )
        began = time.monotonic()
        resume = self.folder / CHECKPOINT if resumed else None  # whichever it was, it has been read
        with applied(module, choice), stopping.listener.later(trainer):
            trainer.fit(module, loaders["train"], loaders["val"], ckpt_path=resume, weights_only=True)
        self.seconds += time.monotonic() - began
        epochs.watched.go_on()
        if trainer.world_size != self.batch.devices:
            raise RuntimeError(f"{self.batch.devices} devices were asked for, {trainer.world_size} took part")

    def _choice(self, number: int, module: PhaseModule, feed: Feed, rank: int) -> Choice:
        """What a phase is computed in: as the config says, and where that is `auto` what was fastest; it stays with the run."""
        s = self.settings
        told = next((each for each in self.tuned if each["number"] == number), None)
        if told:
            return Choice(**told["choice"])
        if not s.hardware.measures():
            return s.hardware.plainest()
        share = next(iter(self.batches(module.phase)))
        batch = feed.batch(share)
        self.chain.to(device_of(s.hardware))
        choice, told = settle(s.hardware, module, batch, s.cache.folder(), s.model.deciding())
        if told:
            self.tuned.append(told | {"number": number})
            if rank == 0:
                self.folder.update(tuning=self.tuned)
            self.say(
                f"{module.phase.name}: {choice} is the fastest here" + ("" if told["known"] else f" of {len(told['measured'])} measured")
            )
        return choice

    def settled(self, feed: Feed) -> Choice:
        """What the first phase is computed in."""
        hardware = self.settings.hardware
        return self._choice(0, self.module(self.phases[0], 0), feed, 0) if hardware.measures() else hardware.plainest()

    def module(self, phase: Phase, number: int) -> PhaseModule:
        """The Lightning module of a phase."""
        s = self.settings
        return PhaseModule(
            self.chain,
            phase,
            task=s.task,
            loss=self.loss,
            optimizer=s.optimizer,
            schedule=s.schedule,
            outputs=len(self.source.classes),
            monitor=s.monitor,
            seed=s.seed,
            steps=self._steps(number, phase),
            epoch_steps=self.batches(phase).steps,
            changing=self.changing,
            dtype=self.supply.dtype,
            learns=s.head.learns,
            units=self.units,
            start=self.start,
        )

    def _steps(self, number: int, phase: Phase) -> int:
        """Optimizer steps of a phase."""
        last, whole = self._last(number), self.batches(phase).steps
        return whole * phase.epochs - (whole - last[1] if last else 0)

    def _last(self, number: int) -> tuple[int, int] | None:
        """The run's last epoch and its steps, where trainer.max_steps ends it early and it lies in this phase."""
        most = self.settings.trainer.max_steps
        short = most is not None and number == len(self.phases) - 1 and most % self.batch_steps
        return (self.epochs - 1, short) if short else None

    def checkpoint(self) -> dict[str, Any]:
        """What an interrupted run has left; empty where there is nothing. Raises UserError for one that can't be read."""
        return read(self.folder, self.say)


def _forward(batch: Arithmetic) -> Arithmetic:
    """The arithmetic of batches that only run forward: nothing is accumulated."""
    return Arithmetic(batch.micro * batch.devices, batch.devices, batch.micro, 1)


def quiet() -> None:
    """Lightning's own chatter goes no further than warnings."""
    for name in ("pytorch_lightning", "lightning_fabric", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
