"""What `regraft status` tells: every sweep of a folder with its counts, its best run, what is under way and what went wrong."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.errors import Problem, UserError
from regraft.report import words
from regraft.standing import Reader, Run, Sweep

if TYPE_CHECKING:
    from rich.console import RenderableType

LISTED = 20  # runs of a kind that are named
PAUSE = 1.0  # s between two looks


def command(folder: str, watch: bool, as_json: bool) -> int:
    """`regraft status`: told once, or with `watch` again and again until nothing runs. Raises UserError for a folder without runs."""
    root = Path(folder).expanduser().absolute()
    if not root.is_dir():
        raise UserError(Problem("DIR", folder, "no such folder; name a sweep's, or a run's, as regraft train tells it"))
    reader = Reader(root)
    if not watch:
        sweeps = reader.look()
        if as_json:
            print(json.dumps(plain(sweeps), indent=2, ensure_ascii=False))
        else:
            _console().print(shown(sweeps))
        return 0
    with suppress(KeyboardInterrupt):
        _watch(reader, as_json)
    return 0


def _watch(reader: Reader, as_json: bool) -> None:
    """On a terminal a picture that is drawn anew, elsewhere a line (JSON: a document) for each change."""
    console = _console()
    if console.is_terminal and not as_json:
        from rich.live import Live

        with Live(console=console, auto_refresh=False, transient=False) as live:
            while True:
                sweeps = reader.look()
                live.update(shown(sweeps), refresh=True)
                if not any(sweep.moving for sweep in sweeps):
                    return
                time.sleep(PAUSE)
    before = None
    while True:
        sweeps = reader.look()
        now = [(sweep.folder, *((run.run_id, run.status, run.epoch if as_json else 0) for run in sweep.runs)) for sweep in sweeps]
        if now != before:
            print(json.dumps(plain(sweeps), ensure_ascii=False) if as_json else "\n".join(map(line, sweeps)), flush=True)
        if not any(sweep.moving for sweep in sweeps):
            return
        before = now
        time.sleep(PAUSE)


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False)


def line(sweep: Sweep) -> str:
    """`multirun/default: 18 runs: 7 done, 1 running, 10 waiting; about 3 min left`"""
    counts = ", ".join(f"{count:,} {state if state != 'handed' else 'handed on'}" for state, count in sweep.counts.items())
    what = words.count(sum(sweep.counts.values()), "run")
    trials = f" of a search for {sweep.trials:,} trials" if sweep.trials is not None else ""
    if sweep.left is not None:
        end = f"; about {words.roughly(sweep.left)} left"
    elif sweep.moving:
        end = "; time left unknown"
    else:
        end = "; nobody is at work on the rest" if {"waiting", "interrupted"} & set(sweep.counts) else ""
    return f"{words.shorter(sweep.folder)}: {what}{trials}: {counts}{end}"


def shown(sweeps: Sequence[Sweep]) -> RenderableType:
    """All sweeps, for people."""
    from rich.console import Group
    from rich.constrain import Constrain
    from rich.text import Text

    parts: list[RenderableType] = []
    for sweep in sweeps:
        facts = [*_best(sweep), *_under_way(sweep), *_troubles(sweep)]
        parts += [Text(words.plain(line(sweep)), style="bold"), *([words.listing(facts)] if facts else [])]
    return Constrain(Group(*parts), words.WIDTH)


def _best(sweep: Sweep) -> list[tuple[str, str]]:
    best = sweep.best
    return [("best so far", f"{sweep.name(best)}: {best.monitor} {best.value:.3f} ({words.shorter(best.folder)})")] if best else []


def _under_way(sweep: Sweep) -> list[tuple[str, str]]:
    """The runs at work, each with how far it is."""
    told = []
    for state in ("running", "handed"):
        runs = [run for run in sweep.runs if run.status == state]
        told += [(state, f"{sweep.name(run)}: {_progress(run)}") for run in runs[:LISTED]]
        told += [(state, f"and {len(runs) - LISTED:,} more")] if len(runs) > LISTED else []
    return told


def _progress(run: Run) -> str:
    of = f" of {run.epochs}" if run.epochs else ""
    value = f", {run.monitor} {run.value:.3f}" if run.epoch and run.value is not None else ""
    return ", ".join(filter(None, (run.trouble, f"epoch {run.epoch}{of}{value}" if run.epoch else "no epoch yet")))


def _troubles(sweep: Sweep) -> list[tuple[str, str]]:
    """What went wrong, one cause a line, however many runs it stopped."""
    told = [("damaged", sweep.trouble)] if sweep.trouble else []
    for state in ("interrupted", "failed", "damaged"):
        causes: dict[str, list[Run]] = {}
        for run in sweep.runs:
            if run.status == state:
                causes.setdefault(run.trouble, []).append(run)
        for cause, runs in list(causes.items())[:LISTED]:
            more = f" and {len(runs) - 1:,} more" if len(runs) > 1 else ""
            told.append((state, f"{sweep.name(runs[0])}{more}: {cause}"))
        told += [(state, f"and {len(causes) - LISTED:,} other causes")] if len(causes) > LISTED else []
    if not sweep.moving and ({"waiting", "interrupted"} & set(sweep.counts) or sweep.unasked):
        told += [("goes on with", command) for command in sweep.commands[-1:]]
    return told


def plain(sweeps: Sequence[Sweep]) -> dict[str, Any]:
    """All of it as plain data; times in seconds."""
    return {"sweeps": [_plain(sweep) for sweep in sweeps]}


def _plain(sweep: Sweep) -> dict[str, Any]:
    best = sweep.best
    runs = [
        {
            "run_id": run.run_id,
            "folder": str(run.folder),
            "status": run.status,
            "overrides": list(run.overrides),
            "epoch": run.epoch,
            "epochs": run.epochs,
            "monitor": run.monitor,
            "value": run.value,
            "seconds": run.seconds,
            "trouble": run.trouble or None,
        }
        for run in sweep.runs
    ]
    return {
        "folder": str(sweep.folder),
        "counts": sweep.counts,
        "trials": sweep.trials,
        "working": sweep.working,
        "seconds_left": sweep.left,
        "best": best and {"run_id": best.run_id, "monitor": best.monitor, "value": best.value, "overrides": list(best.overrides)},
        "commands": list(sweep.commands),
        "trouble": sweep.trouble or None,
        "runs": runs,
    }
