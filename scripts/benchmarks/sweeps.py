"""Sweeps of heads and of top stages as whole commands, against what users do without regraft."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.commands import REGRAFT, Bench
from benchmarks.table import Row, interleaved

EPOCHS = 10
ALWAYS = [f"trainer.max_epochs={EPOCHS}", "cache.dtype=bfloat16"]
RATES = "optimizer.lr=3e-4,1e-3,3e-3,1e-2"
TWELVE = ["head.dropout=0,0.2,0.5", RATES, *ALWAYS]
MANY = [
    "head.dropout=0,0.2,0.5",
    "optimizer.lr=1e-4,3e-4,5e-4,1e-3,2e-3,3e-3,5e-3,1e-2",
    "optimizer.weight_decay=0,1e-2",
    "seed=0,1",
    *ALWAYS,
]
CUTS = ["freeze=last", "freeze.n=1,2", RATES, "trainer.max_epochs=5"]


def cold(bench: Bench) -> Row:
    """12 heads from nothing, against both peers."""
    measured = {"ours": lambda: bench.cold(TWELVE, 12)}
    if bench.peers:
        measured |= {"by hand": lambda: bench.hand(12)}
    seconds = interleaved(bench.rounds, measured)
    reached, holds = "-", None
    if bench.peers:
        started, one = bench.lightning(EPOCHS)
        seconds["lightning"] = started + 12 * one
        gain, ratio = seconds["lightning"] / seconds["ours"], seconds["ours"] / seconds["by hand"]
        reached, holds = f"{gain:.0f}x lightning; {ratio:.2f} of by hand", gain >= 50 and ratio <= 1
    peers = [f"peer_lightning.py 1 {EPOCHS} 32 (start-up + 12 x its training)", "peer_hand.py 12 bf16"]
    must = "at least 50x faster than lightning, at most 1.0 of by hand"
    return Row("heads12", "12 heads x 10 epochs, cold cache", must, reached, holds, seconds, [command(TWELVE), *peers])


def warm(bench: Bench) -> Row:
    """12 heads whose features are there already."""
    cache = _filled(bench)
    measured = {"ours": lambda: bench.sweep(TWELVE, cache, 12)}
    if bench.peers:
        measured |= {"by hand": lambda: bench.hand(12)}
    seconds = interleaved(bench.rounds, measured)
    ratio = seconds["ours"] / seconds["by hand"] if bench.peers else None
    reached, holds = ("-", None) if ratio is None else (f"{ratio:.2f}", ratio <= 0.6)
    return Row("heads12_warm", "the same, warm cache", "at most 0.6 of by hand", reached, holds, seconds, [command(TWELVE)])


def many(bench: Bench) -> Row:
    """Eight times as many heads."""
    cache = _filled(bench)
    seconds = interleaved(bench.rounds, {"96": lambda: bench.sweep(MANY, cache, 96), "12": lambda: bench.sweep(TWELVE, cache, 12)})
    ratio = seconds["96"] / seconds["12"]
    return Row("heads96", "96 heads instead of 12, warm", "at most 2.5x", f"{ratio:.2f}x", ratio <= 2.5, seconds, [command(MANY)])


def cuts(bench: Bench) -> Row:
    """The last stages train on what enters them; with the cache off the whole net runs in each epoch."""
    grids = {"cached": CUTS, "live": [*CUTS, "cache.mode=off"]}
    seconds = interleaved(bench.rounds, {name: (lambda grid=grid: bench.cold(grid, 8)) for name, grid in grids.items()})  # type: ignore[misc]
    gain = seconds["live"] / seconds["cached"]
    what = "last 1 and last 2 stages x 4 learning rates x 5 epochs, cold cache"
    commands = [command(grid) for grid in grids.values()]
    return Row("last_stages", what, "at least 2x faster than cache.mode=off", f"{gain:.1f}x", gain >= 2, seconds, commands)


def start(bench: Bench) -> Row:
    """What is typed most."""
    limits = {"--help": 0.5, "list": 0.5, "check": 1.0}
    seconds = {word: median(bench.run([REGRAFT, word])[0] for _ in range(5)) for word in limits}
    holds = all(seconds[word] < limit for word, limit in limits.items())
    reached = ", ".join(f"{word} {value:.2f} s" for word, value in seconds.items())
    asked = f"COMP_LINE='regraft train model=re' COMP_POINT=22 COMP_TYPE=9 _ARGCOMPLETE=1 {shlex.quote(str(REGRAFT))} 8>&1 9>&2"  # as bash
    seconds["Tab"] = median(bench.run(["bash", "-c", asked])[0] for _ in range(5))
    what, must = "--help, list; check; a completion", "under 0.5 s; 1 s; 0.2 s"
    reached += f", a completion {seconds['Tab']:.2f} s"
    return Row("start", what, must, reached, holds and seconds["Tab"] < 0.2, seconds, [f"regraft {word}" for word in limits])


def command(grid: Sequence[str]) -> str:
    return f"regraft train -m {shlex.join(grid)}"


def _filled(bench: Bench) -> Path:
    """A cache that holds clipart's features."""
    cache = bench.fresh("cache")
    bench.sweep(["optimizer.lr=1e-3", *ALWAYS], cache, 1)
    return cache
