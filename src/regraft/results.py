"""What a trained net leaves in its run folder: metrics, the test pictures' answers, weights, pictures, and a record that says done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft import checkpoints, weights
from regraft.datasets.source import ARRAYS
from regraft.feeds import truth
from regraft.files import whole, write_json
from regraft.graft import measure
from regraft.record import MODEL, PREDICTIONS, SHIFTED, VOCABULARY, RunFolder
from regraft.tasks.spec import HALF

if TYPE_CHECKING:
    import polars as pl
    from torch import Tensor

    from regraft.engine import Engine
    from regraft.together import Begun

NAMED = 3  # classes that a warning names
DETAILED = 100  # classes whose own figures stand in the record


def finish(run: Begun) -> None:
    """Measure whole splits with what the chain holds now, on one rank alone (no padded duplicate is counted), and write it all down."""
    engine, began = run.engine, time.monotonic()
    folder, s = engine.folder, engine.settings
    metrics, facts = _measure(engine, folder, run.warned)
    measured = time.monotonic() - began
    for logger in run.loggers:
        logger.log_metrics({name: value for name, value in metrics.items() if name.startswith("test/")})
    if engine.source.tokens:
        write_json(folder / VOCABULARY, list(engine.source.tokens))
    state = engine.chain.state_dict()
    weights.save(folder / MODEL, {name: state[name] for name in sorted(engine.changing)})
    _draw(engine, run.warned)
    best = engine.best
    run.close("success")  # before the record says done: a logger may hold back what it was told, and nobody would tell it again
    folder.finish(
        metrics=metrics,
        cache=engine.supply.notes,
        kept={"epoch": best.epoch} | ({"monitor": s.monitor, "value": best.value} if engine.samples["val"] and best.epoch >= 0 else {}),
        warnings=run.warned,
        times=run.times(measured),
        **facts,
        **run.facts,
    )
    checkpoints.remove(folder)


def _measure(engine: Engine, folder: RunFolder, warned: list[str]) -> tuple[dict[str, float], dict[str, Any]]:
    """All splits' metrics, and what else the record says of them: the thresholds that val has chosen, and each class's figures on test. The
    test pictures' answers go into predictions.parquet, those under shifts into shifted.parquet."""
    import polars as pl

    classes, task, found = engine.source.classes, engine.settings.task, dict[str, float]()
    answered, known = engine.answers("val"), engine.truth("val")
    thresholds = task.thresholds(answered, known)
    if thresholds and (unsure := task.unsure(known, classes)):
        warned.append(f"no val picture has {_some(unsure)}: said from a score of {HALF} on, a threshold that nothing has chosen")
    shifted = []
    for split in engine.samples:
        metrics, logits = measure(engine, split, thresholds, answered if split == "val" else None)
        found |= metrics
        if split == "test":
            test, told = logits, truth(engine.samples[split])
            _write(_table(engine, split, logits, thresholds), folder / PREDICTIONS)
        elif split in engine.source.shifts:
            shifted.append(_table(engine, split, logits, thresholds).insert_column(0, pl.lit(split).alias("shift")))
    if shifted:
        _write(pl.concat(shifted), folder / SHIFTED)
    details = task.details(test, told, classes, thresholds or ()) if len(told) else {}
    facts = {"details": _worst(details)} if details else {}
    return found, facts | ({"thresholds": thresholds} if thresholds else {})


def _table(engine: Engine, split: str, logits: Tensor, thresholds: Sequence[float] | None) -> pl.DataFrame:
    """What is said of each picture of a split, and what is true of it."""
    import polars as pl

    classes, task, samples = engine.source.classes, engine.settings.task, engine.samples[split]
    scores, told, numbers = task.scores(logits), truth(samples), task.KIND == "numbers"
    real = task.within(scores, told) if samples else scores
    listed = scores.tolist() if scores.ndim == 2 and task.KIND not in ARRAYS else [None] * len(scores)
    said = pl.List(pl.Float32) if numbers else pl.String
    return pl.DataFrame(
        {
            "id": [sample.id for sample in samples],
            "truth": (told.tolist() if numbers else task.truths(told, classes)) if samples else [],
            "predicted": scores.tolist() if numbers else task.answers(real, classes, thresholds or ()),
            "scores": listed,
        },
        schema={"id": pl.String, "truth": said, "predicted": said, "scores": pl.List(pl.Float32)},
    )


def _write(table: pl.DataFrame, path: Path) -> None:
    with whole(path) as part:
        table.write_parquet(part)


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _worst(details: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """A record is read often: of very many classes those stay in it whose first figure is the lowest."""
    worst = set(sorted(details, key=lambda name: next(iter(details[name].values())))[:DETAILED])
    return {name: figures for name, figures in details.items() if name in worst}


def _draw(engine: Engine, warned: list[str]) -> None:
    """The run's pictures. One that can't be drawn is a warning: the run's results stand without it."""
    s, folder = engine.settings, engine.folder
    if not s.plots:
        return
    from regraft import drawing, dreaming
    from regraft.report.pictures import DREAMS, FILTERS, LOOKS, draw

    try:
        draw(folder, engine.source)
        if getattr(s.head, "attention", False):
            drawing.on_test(engine.chain, engine.supply.reading, folder / LOOKS)
        alone = any(phase.objective == "stage" for phase in engine.phases)  # these have learnt to make what enters them
        if alone and not (folder / DREAMS).is_file():  # else it was drawn before the task has changed them
            dreaming.write(engine.chain, folder / FILTERS, folder / DREAMS, s.seed, engine.phases[-1].objective == "task")
    except Exception as error:  # matplotlib, fonts, a full disk: none of them makes a trained net worthless
        warned.append(f"no pictures: {type(error).__name__}: {error}")
