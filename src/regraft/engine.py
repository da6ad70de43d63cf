"""The phases of a run, one after the other: what lies below a phase's boundary is cached, what lies above it trains."""

from __future__ import annotations

import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from rich.progress import track
from timm.layers import convert_sync_batchnorm
from torch import Tensor

from regraft import freeze, weights
from regraft.augment import IDENTITY, View
from regraft.batches import GlobalBatches
from regraft.cache import NoRoom, Rows, Store, stored
from regraft.errors import Problem, UserError
from regraft.feeds import Cached, Feed, Live
from regraft.freeze import Phase
from regraft.hardware import Batch as Arithmetic
from regraft.progress import Bar
from regraft.record import CHECKPOINT, METRICS, Metrics, RunFolder
from regraft.tasks.classify import frozen

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger

    from regraft.chain import Chain
    from regraft.datasets.source import Sample, Source
    from regraft.settings import Settings
    from regraft.tasks.classify import ClassifyModule

FORMAT = 1  # of stored activations: raised when the same description would give other rows
EXTRACT = 64  # pictures of a batch that only runs forward

for noise in (
    r".*module\(s\) in eval mode.*",
    r".*does not have many workers.*",
    r".*logging interval.*",
    r".*SyncBatchNorm.*",
    r".*weights_only.*",
    r".*isinstance\(treespec.*",
):
    warnings.filterwarnings("ignore", noise)
warnings.filterwarnings("ignore", r".*compute.*method of metric.*was called before.*")  # a rank may hold no rows


@dataclass
class Best:
    """The epoch whose weights are kept."""

    epoch: int = -1
    value: float = float("nan")
    state: dict[str, Tensor] = field(default_factory=dict)


class Epochs(Checkpoint):
    """What happens at the end of each epoch: metrics are written, the best epoch is kept, a checkpoint is made."""

    def __init__(self, folder: RunFolder, settings: Settings, number: int, first_epoch: int, best: Best, bar: Bar | None) -> None:
        self.folder, self.spec, self.number, self.first_epoch, self.best = folder, settings.trainer, number, first_epoch, best
        self.metrics = Metrics(folder / METRICS)
        self.waited = 0  # epochs since trainer.monitor was better than `peak`
        self.peak: float | None = None
        self._saved = time.monotonic()
        self._over = False
        self._bar = bar

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        epoch = self.first_epoch + trainer.current_epoch
        found = module.results("train") | (module.results("val") if sum(trainer.num_val_batches) else {})
        if trainer.is_global_zero:
            self.metrics.append(module.phase.name, epoch, trainer.global_step, found | {"lr": trainer.optimizers[0].param_groups[-1]["lr"]})
        for logger in trainer.loggers:
            logger.log_metrics({**found, "epoch": float(epoch)}, step=epoch)
        value = found.get(self.spec.monitor, math.nan)  # no val pictures: the last epoch is kept
        if self._bar:
            self._bar.epoch_ended(value)
        self._judge(epoch, value, module)
        if self.spec.patience is not None and self.waited >= self.spec.patience:
            trainer.should_stop = True
        over = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        due = time.monotonic() - self._saved >= self.spec.checkpoint_seconds
        if trainer.strategy.broadcast(over or due):  # all ranks save together, or none
            self._save(trainer, over)

    def _judge(self, epoch: int, value: float, module: ClassifyModule) -> None:
        lower = self.spec.monitor == "val/loss"
        if self.peak is None or math.isnan(self.peak) or (value < self.peak if lower else value > self.peak):
            self.peak, self.waited = value, 0
        else:
            self.waited += 1
        better = self.best.epoch < 0 or math.isnan(self.best.value) or (value < self.best.value if lower else value > self.best.value)
        if better or self.spec.keep == "last":
            self.best.epoch, self.best.value, self.best.state = epoch, value, module.changed()

    def _save(self, trainer: pl.Trainer, over: bool) -> None:
        self._over = over
        part = self.folder / f".{CHECKPOINT}.part"
        trainer.save_checkpoint(part)
        if trainer.is_global_zero:
            part.replace(self.folder / CHECKPOINT)
        self._saved = time.monotonic()

    def on_save_checkpoint(self, trainer: pl.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["regraft"] = {
            "phase": self.number,
            "over": self._over,
            "epochs": self.first_epoch + trainer.current_epoch + 1,
            "waited": self.waited,
            "peak": self.peak,
            "best": {"epoch": self.best.epoch, "value": self.best.value, "state": self.best.state},
        }


class Engine:
    """One run's training. Below a boundary the cache answers, where it pays; above it Lightning trains."""

    def __init__(self, settings: Settings, chain: Chain, source: Source, folder: RunFolder, say: Callable[[str], None], show: bool) -> None:
        self.settings, self.chain, self.source, self.folder, self.say, self.show = settings, chain, source, folder, say, show
        self.samples = {split: source.split(split) for split in ("train", "val", "test")}
        self.phases = settings.freeze.phases(chain.stages, settings.trainer.max_epochs)
        self.lowest = min(self.phases, key=lambda phase: chain.stages.index(phase.boundary))  # below it nothing ever changes
        self.changing = freeze.changing(chain, self.phases)
        self.dtype: torch.dtype = getattr(torch, settings.cache.dtype)
        self.notes: list[dict[str, Any]] = []  # what was cached, what was not, and why
        self.best = Best()
        self._full = ""  # why nothing more is stored
        self._stores: dict[tuple[str, View], Store] = {}
        self._rows: dict[tuple[str, str, View], Rows] = {}
        self.seconds = {"frozen": 0.0, "train": 0.0}

    def train(self, loggers: Sequence[Logger], rank: int) -> Best:
        """All phases, from the last checkpoint where there is one; then the chain holds the kept epoch's weights.

        Raises UserError for a checkpoint that can't be read, and for a boundary that can't be cached under cache.mode=require.
        """
        last = self._checkpoint()
        mine = last.get("regraft", {})
        self.best = Best(**mine["best"]) if mine else Best()
        if rank == 0:
            Metrics(self.folder / METRICS).start(mine.get("epochs", 0))
        first_epoch = 0
        for number, phase in enumerate(self.phases):
            here = bool(mine) and number == mine["phase"]
            if here and mine["over"]:
                self.chain.load_state_dict({name.removeprefix("chain."): t for name, t in last["state_dict"].items()}, strict=False)
            elif here or not mine or number > mine["phase"]:
                self._phase(number, phase, first_epoch, mine if here else None, loggers, rank)
            first_epoch += phase.epochs
        self.chain.load_state_dict(self.best.state, strict=False)
        self.chain.requires_grad_(False).eval()
        return self.best

    @torch.inference_mode()
    def answers(self, split: str) -> Tensor:
        """Logits [n, classes], in float32, for a split's pictures in their order; above the lowest boundary of all phases."""
        feed, device = self.feeds(self.lowest, augmented=False)[split], _device(self.settings)
        self.chain.to(device).eval()
        found = [torch.empty(0, len(self.source.classes))]
        boundary = self.lowest.boundary
        with _autocast(device, self.settings.hardware.precision):
            for batch in feed.in_order(1024 if feed.cached else EXTRACT, 0 if feed.cached else self.settings.hardware.readers()):
                x = batch.x.to(device)
                if not feed.cached:
                    x = self.chain.prepare(x)
                    x = x if boundary == self.chain.stages[0] else frozen(self.chain, x, boundary, self.dtype)
                found.append(self.chain(x.float(), start=boundary).float().cpu())
        return torch.cat(found)

    def _phase(
        self, number: int, phase: Phase, first_epoch: int, resumed: dict[str, Any] | None, loggers: Sequence[Logger], rank: int
    ) -> None:
        s = self.settings
        feeds = self.feeds(phase)
        views = len(s.augmentation.finite() or [IDENTITY])
        batches = {
            "train": GlobalBatches(
                len(feeds["train"]),
                s.batch,
                rank=rank,
                seed=s.seed,
                views=views,
                expand=s.augmentation.views == "expand" and views > 1,
                first_epoch=first_epoch,
            ),
            "val": GlobalBatches(len(feeds["val"]), _forward(s.batch), rank=rank),
        }
        module = s.task.build(
            self.chain,
            phase,
            loss=s.loss,
            optimizer=s.optimizer,
            schedule=s.schedule,
            classes=len(self.source.classes),
            seed=s.seed,
            steps=batches["train"].steps * phase.epochs,
            changing=self.changing,
            cached=feeds["train"].cached,
            dtype=self.dtype,
        )
        if s.hardware.syncs():
            self.chain.backbone = convert_sync_batchnorm(self.chain.backbone)  # timm's: torch's own would drop its fused activations
            self.chain.head = convert_sync_batchnorm(self.chain.head)
            freeze.gradients(self.chain, phase)
        bar = Bar(s.trainer.monitor) if self.show else None
        epochs = Epochs(self.folder, s, number, first_epoch, self.best, bar)
        if resumed:
            epochs.waited, epochs.peak = resumed["waited"], resumed["peak"]
        trainer = pl.Trainer(
            max_epochs=phase.epochs,
            callbacks=[epochs, *([bar] if bar else [])],
            logger=list(loggers) or False,
            enable_progress_bar=False,  # a bar of our own
            enable_model_summary=False,
            use_distributed_sampler=False,  # GlobalBatches takes the rank's rows
            num_sanity_val_steps=0,
            default_root_dir=self.folder.path,
            **s.hardware.trainer(),
        )
        began = time.monotonic()
        workers = 0 if feeds["train"].cached else s.hardware.readers()
        loaders = {split: feeds[split].loader(batches[split], workers) for split in batches}
        resume = self.folder / CHECKPOINT if resumed else None
        trainer.fit(module, loaders["train"], loaders["val"], ckpt_path=resume, weights_only=True)
        self.seconds["train"] += time.monotonic() - began
        if trainer.world_size != s.batch.devices:
            raise RuntimeError(f"{s.batch.devices} devices were asked for, {trainer.world_size} took part")

    def _checkpoint(self) -> dict[str, Any]:
        path = self.folder / CHECKPOINT
        if not path.is_file():
            return {}
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            checkpoint["regraft"]["best"]["state"]
        except Exception as error:  # torch raises many kinds for a damaged file
            remedy = f"the checkpoint can't be read ({str(error).splitlines()[0][:100]}); remove it to start this run again"
            raise UserError(Problem(str(path), None, remedy)) from None
        return checkpoint

    def feeds(self, phase: Phase, augmented: bool = True) -> dict[str, Feed]:
        """Every split's tensors for a phase: rows of the cache where its boundary can be cached, else pictures read live."""
        s = self.settings
        hindrance = "cache.mode=off" if s.cache.mode == "off" else self._full or self._hindrance(phase)
        if not hindrance:
            try:
                self._room(phase, augmented)
                return {split: self._cached(split, phase, augmented) for split in self.samples}
            except NoRoom as error:
                hindrance = self._full = str(error)
        if s.cache.mode == "require":
            raise UserError(Problem("cache.mode", "require", f"{hindrance}; cache.mode=auto trains such a phase live"))
        self._note(boundary=phase.boundary, phase=phase.name, mode="live", why=hindrance)
        return {split: self._live(split, augmented) for split in self.samples}

    def _room(self, phase: Phase, augmented: bool) -> None:
        """Raises NoRoom where the rows that are missing would not fit `cache.max_gb`, beside all that is stored already."""
        folder, shapes = self.settings.cache.folder(), {stage: shape for stage, _, shape in self.chain.summary()}
        below = self.chain.stages[self.chain.stages.index(phase.boundary) - 1]
        row = math.prod(shapes[below]) * self.dtype.itemsize
        missing = sum(
            self._store(phase.boundary, view).missing([sample.sha256 for sample in self.samples[split]])
            for split in self.samples
            for view in self._views(split, augmented)
            if (phase.boundary, split, view) not in self._rows
        )
        if missing and (need := row * missing + stored(folder)) > self.settings.cache.max_gb * 1e9:
            raise NoRoom(Problem("cache.max_gb", self.settings.cache.max_gb, f"{need / 1e9:.2g} GB would be stored; raise cache.max_gb"))

    def _views(self, split: str, augmented: bool) -> list[View]:
        finite = self.settings.augmentation.finite() if augmented and split == "train" else None
        return finite or [IDENTITY]

    def _cached(self, split: str, phase: Phase, augmented: bool) -> Cached:
        samples = self.samples[split]
        known = ((view, self._rows.get((phase.boundary, split, view))) for view in self._views(split, augmented))
        rows = [rows or self.rows(phase.boundary, split, samples, view) for view, rows in known]
        return Cached(rows, [sample.label for sample in samples])

    def _live(self, split: str, augmented: bool) -> Live:
        s = self.settings
        return Live(
            self.source, self.samples[split], s.size, s.data.fit, s.augmentation if augmented and split == "train" else None, s.seed
        )

    def _hindrance(self, phase: Phase) -> str | None:
        """Why this phase's boundary can't be cached; None: it can."""
        s = self.settings
        if phase.boundary == self.chain.stages[0]:
            return f"freeze={s.freeze.name} trains the lowest stage, so nothing below it stays the same"
        if s.augmentation.finite() is None:
            return f"augmentation={s.augmentation.name} is random"
        earlier = freeze.changing(self.chain, self.phases[: self.phases.index(phase)])
        if any(self.chain.below(name, phase.boundary) for name in earlier):
            return f"an earlier phase has changed what lies below {phase.boundary}"
        return None

    def rows(self, boundary: str, split: str, samples: Sequence[Sample], view: View) -> Rows:
        """What enters `boundary` for each of these pictures in one view; computed for those that the store lacks."""
        s, device = self.settings, _device(self.settings)
        store = self._store(boundary, view)
        self.chain.to(device).requires_grad_(False).eval()

        def compute(missing: list[int]) -> Iterable[Tensor]:
            live = _Viewed(self.source, [samples[position] for position in missing], s.size, s.data.fit, view)
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
        self.seconds["frozen"] += seconds
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
        state = {name: tensor for name, tensor in self.chain.state_dict().items() if self.chain.below(name, boundary)}
        return {
            "format": FORMAT,
            "transform": {
                "size": s.size,
                "fit": s.data.fit,
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

    def __init__(self, source: Source, samples: Sequence[Sample], size: int, how: Any, view: View) -> None:
        super().__init__(source, samples, size, how)
        self.views = [view]


def _forward(batch: Arithmetic) -> Arithmetic:
    """The arithmetic of batches that only run forward: nothing is accumulated."""
    return Arithmetic(batch.micro * batch.devices, batch.devices, batch.micro, 1)


def _device(settings: Settings) -> torch.device:
    kind = settings.hardware.accelerator()
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if kind == "gpu" else torch.device(kind)


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    """What Lightning computes in, for passes of our own."""
    return torch.autocast(device.type, torch.float16 if precision == "fp16" else torch.bfloat16, enabled=precision != "fp32")


def quiet() -> None:
    """Lightning's own chatter goes no further than warnings."""
    for name in ("pytorch_lightning", "lightning_fabric", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
