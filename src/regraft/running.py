"""One run, from a run folder that holds its config to one that holds its results; knows no Hydra."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from regraft import freezing, weights
from regraft.chain import Chain
from regraft.engine import Engine, quiet
from regraft.errors import Problem, UserError
from regraft.feeds import truth
from regraft.files import whole
from regraft.graft import build, measure, same_data, state_of
from regraft.record import MODEL, PREDICTIONS, RunFolder
from regraft.settings import Settings, settings

if TYPE_CHECKING:
    from rich.console import RenderableType

    from regraft.datasets.source import Source
    from regraft.freeze import Phase

Say = Callable[["RenderableType"], None]


def execute(folder: RunFolder, say: Say, show: bool = False) -> None:
    """Run what the folder's config says, and leave the results there; every rank of a run calls this.

    `show`: draw progress bars. Raises UserError for what a user can mend; the folder then still says `running`.
    """
    launched = folder.record["times"]["launched"]
    start = time.time() - launched
    quiet()
    rank = int(os.environ.get("RANK", 0))
    s, record = settings(folder.config), folder.record
    torch.set_num_threads(s.hardware.computing())
    source = s.dataset.open(s.cache.folder())
    same_data(source, record)
    if unfit := s.fits(source.facts()):
        raise UserError(unfit)
    chain, origin = build(s, source.classes)
    before = state_of(chain)
    engine = Engine(s, chain, source, folder, lambda text: say(text) if rank == 0 else None, show and rank == 0)
    engine.whiten()
    warned = [*s.hardware.warnings(), *source.remarks, *_warnings(chain, engine.phases, s)]
    phases = [phase.plain() | {"stages": _stages(chain, phase, s)} for phase in engine.phases]
    facts = {
        "weights": {
            "source": s.model.weights,
            "identity": origin.identity,
            "sha256": weights.fingerprint(before),
            "lineage": weights.lineage(RunFolder(origin.path).record) if origin.kind == "run" and origin.path else [],
        },
        "phases": phases,
        "batch": s.batch.plain(),
        "resolved": {
            "accelerator": s.hardware.accelerator(),
            "world": int(os.environ.get("WORLD_SIZE", 1)),
            "size": s.size,
            "threads": torch.get_num_threads(),
        },
        "metric": s.task.METRICS[0],
        "reported": _reported(s),
        "warnings": warned,
    } | ({"units": [numbers.tolist() for numbers in engine.units]} if engine.units else {})
    if rank == 0:
        from regraft.report import tables

        if set(chain.state_dict()) - engine.changing:  # what stays frozen is kept once, for all runs that share it
            weights.Kept(s.cache.folder()).put(before)
        folder.update(**facts)
        say(tables.stages([{**phase, "rows": phase["stages"]} for phase in phases]))
        for warning in warned:
            say(f"warning: {warning}")
    loggers = [logger for spec in s.logger.values() if (logger := spec.build(folder.path, record["run_id"], folder.config))]
    engine.train(loggers, rank)
    if rank == 0:  # alone, over whole splits: no padded duplicate is counted
        done = time.monotonic()
        metrics = _measure(engine, folder)
        measured = time.monotonic()
        for logger in loggers:
            logger.log_metrics({name: value for name, value in metrics.items() if name.startswith("test/")})
        state = chain.state_dict()
        weights.save(folder / MODEL, {name: state[name] for name in sorted(engine.changing)})
        _draw(folder, source, s, warned)
        seconds = {"start": start, "frozen": engine.supply.seconds, "train": engine.seconds, "evaluate": measured - done}
        seconds["total"] = time.time() - launched
        best = engine.best
        folder.finish(
            metrics=metrics,
            cache=engine.supply.notes,
            kept={"epoch": best.epoch} | ({"monitor": s.monitor, "value": best.value} if engine.samples["val"] and best.epoch >= 0 else {}),
            warnings=warned,
            times={"launched": launched, "finished": time.time()} | {name: round(value, 3) for name, value in seconds.items()},
        )


def _reported(s: Settings) -> dict[str, Any] | None:
    """The top-5 error on ImageNet that is told of this net, beside which ours stands; None: this run does not measure it."""
    reported = s.model.reported if s.dataset.name == "imagenet" else None
    return {"top5_error": reported[0], "source": reported[1]} if reported else None


def _warnings(chain: Chain, phases: list[Phase], s: Settings) -> list[str]:
    """What a user should know of before training. Raises UserError for what `hardware.batchnorm=refuse` refuses."""
    norms = (torch.nn.modules.batchnorm._BatchNorm,)
    found = any(isinstance(module, norms) for phase in phases for module in freezing.awake(chain, phase))
    if s.batch.devices * s.batch.accumulate == 1 or not found:
        return []
    several = f"{s.batch.devices} devices x {s.batch.accumulate} micro-batches"
    if s.hardware.batchnorm == "refuse":
        raise UserError(
            Problem("hardware.batchnorm", "refuse", f"BatchNorm would train over {several}; local or sync, or one device, work")
        )
    seen = s.batch.micro * (s.batch.devices if s.hardware.syncs() else 1)
    if seen == s.batch.size:
        return []
    why = ", since SyncBatchNorm needs GPUs" if s.hardware.batchnorm == "sync" and s.hardware.accelerator() != "gpu" else ""
    kind = "sync" if s.hardware.syncs() else "local"
    return [f"BatchNorm takes its statistics from {seen} pictures, not from {s.batch.size} ({several}; {kind}{why})"]


def _stages(chain: Chain, phase: Phase, s: Settings) -> list[dict[str, Any]]:
    """The table of stages before a phase, the lowest stage first."""
    freezing.gradients(chain, phase)
    trained = {stage: [p.numel() for _, p in chain.named_parameters_of(stage) if p.requires_grad] for stage in chain.stages}
    return [
        {
            "stage": stage,
            "parameters": count,
            "training": sum(trained[stage]),
            "trains": stage in phase.trains,
            "mode": "train" if stage in phase.trains else "eval",
            "lr": s.optimizer.lr * phase.lr * phase.factor(stage) if stage in phase.trains else None,
            "output": list(shape),
        }
        for stage, count, shape in chain.summary()
    ]


def _measure(engine: Engine, folder: RunFolder) -> dict[str, float]:
    """All splits' metrics; the test pictures' answers go into predictions.parquet."""
    import polars as pl

    found: dict[str, float] = {}
    for split in engine.samples:
        metrics, logits = measure(engine, split)
        found |= metrics
    samples, classes, task = engine.samples["test"], engine.source.classes, engine.settings.task
    scores, told, numbers = task.scores(logits), truth(samples), task.KIND == "numbers"
    said = pl.List(pl.Float32) if numbers else pl.String
    table = pl.DataFrame(
        {
            "id": [sample.id for sample in samples],
            "truth": (told.tolist() if numbers else task.truths(told, classes)) if samples else [],
            "predicted": scores.tolist() if numbers else task.answers(scores, classes),
            "scores": scores.tolist(),
        },
        schema={"id": pl.String, "truth": said, "predicted": said, "scores": pl.List(pl.Float32)},
    )
    with whole(folder / PREDICTIONS) as part:
        table.write_parquet(part)
    return found


def _draw(folder: RunFolder, source: Source, s: Settings, warned: list[str]) -> None:
    """The run's pictures. One that can't be drawn is a warning: the run's results stand without it."""
    if not s.plots:
        return
    from regraft.report.pictures import draw

    try:
        draw(folder, source)
    except Exception as error:  # matplotlib, fonts, a full disk: none of them makes a trained net worthless
        warned.append(f"no pictures: {type(error).__name__}: {error}")
