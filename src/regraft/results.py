"""What a trained net leaves in its run folder: metrics, the test pictures' answers, weights, pictures, and a record that says done."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from regraft import weights
from regraft.datasets.source import ARRAYS
from regraft.feeds import truth
from regraft.files import whole, write_json
from regraft.graft import measure
from regraft.record import MODEL, PREDICTIONS, PREVIOUS, VOCABULARY, RunFolder

if TYPE_CHECKING:
    from regraft.datasets.source import Source
    from regraft.engine import Engine
    from regraft.settings import Settings
    from regraft.together import Begun


def finish(run: Begun) -> None:
    """Measure whole splits with what the chain holds now, on one rank alone (no padded duplicate is counted), and write it all down."""
    engine, began = run.engine, time.monotonic()
    folder, s = engine.folder, engine.settings
    metrics = _measure(engine, folder)
    measured = time.monotonic() - began
    for logger in run.loggers:
        logger.log_metrics({name: value for name, value in metrics.items() if name.startswith("test/")})
    if engine.source.tokens:
        write_json(folder / VOCABULARY, list(engine.source.tokens))
    state = engine.chain.state_dict()
    weights.save(folder / MODEL, {name: state[name] for name in sorted(engine.changing)})
    _draw(folder, engine.source, s, run.warned)
    best = engine.best
    run.close("success")  # before the record says done: a logger may hold back what it was told, and nobody would tell it again
    folder.finish(
        metrics=metrics,
        cache=engine.supply.notes,
        kept={"epoch": best.epoch} | ({"monitor": s.monitor, "value": best.value} if engine.samples["val"] and best.epoch >= 0 else {}),
        warnings=run.warned,
        times=run.times(measured),
        **run.facts,
    )
    (folder / PREVIOUS).unlink(missing_ok=True)


def _measure(engine: Engine, folder: RunFolder) -> dict[str, float]:
    """All splits' metrics; the test pictures' answers go into predictions.parquet."""
    import polars as pl

    found: dict[str, float] = {}
    for split in engine.samples:
        metrics, logits = measure(engine, split)
        found |= metrics
    samples, classes, task = engine.samples["test"], engine.source.classes, engine.settings.task
    scores, told, numbers = task.scores(logits), truth(samples), task.KIND == "numbers"
    listed = scores.tolist() if scores.ndim == 2 and task.KIND not in ARRAYS else [None] * len(scores)
    said = pl.List(pl.Float32) if numbers else pl.String
    table = pl.DataFrame(
        {
            "id": [sample.id for sample in samples],
            "truth": (told.tolist() if numbers else task.truths(told, classes)) if samples else [],
            "predicted": scores.tolist() if numbers else task.answers(scores, classes),
            "scores": listed,
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
