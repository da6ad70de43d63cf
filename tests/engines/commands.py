"""Real commands in processes of their own, and what is seen of them from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from regraft import weights
from regraft.record import METRICS, MODEL, Metrics, RunFolder

REGRAFT = [sys.executable, "-m", "regraft.cli"]
LINE = [  # depth x dropout x device count, small enough for two cores
    *("dataset=digits", "model=resnet", "model.weights=none", "freeze=none", "hardware=cpu", "plots=false"),
    *("model.depth=18,34,50", "head.dropout=0,0.2,0.5", "hardware.devices=1,2"),
    *("dataset.per_class=2", 'dataset.classes=["0","1"]', "trainer.max_epochs=1"),
]
# the same three axes, two values each: for launchers that start every job afresh
CUBE = [*(word for word in LINE if not word.startswith(("model.depth", "head.dropout"))), "model.depth=18,34", "head.dropout=0,0.5"]


def regraft(*words: str, at: Path, timeout: float = 580, **how: Any) -> subprocess.CompletedProcess[str]:
    """A whole command, to its end."""
    return subprocess.run([*REGRAFT, *words], cwd=at, capture_output=True, text=True, timeout=timeout, **how)


def begun(*words: str, at: Path, log: Path, **how: Any) -> subprocess.Popen[bytes]:
    """A command that goes on beside this process; what it says is added to `log`."""
    with log.open("ab") as file:
        return subprocess.Popen([*REGRAFT, *words], cwd=at, stdout=file, stderr=file, stdin=subprocess.DEVNULL, **how)


def folders(root: Path) -> list[RunFolder]:
    """All run folders below, by their path."""
    return [RunFolder(path.parent) for path in sorted(root.rglob("record.json"))]


def complete(folder: RunFolder) -> bool:
    """Whether nothing of a finished run is missing."""
    names = ["config.yaml", "record.json", "metrics.csv", "predictions.parquet", "model.safetensors", "log.txt"]
    return folder.record["status"] == "done" and all((folder / name).is_file() for name in names)


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def holding(folder: RunFolder) -> list[int]:
    """Processes that hold the worker's lock: rank 0's worker first, and the loader workers that it has forked."""
    lock, found = str(folder / ".worker"), set()
    for path in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if os.readlink(path) == lock:
                found.add(int(path.parent.parent.name))
    return sorted(found)


def at_work(root: Path) -> dict[int, str]:
    """Processes that have a file below this folder open, and the command line of each: controllers write there through a log, workers hold
    locks and logs. One that has ended and that nobody has waited for is none."""
    found, prefix = {}, f"{root}{os.sep}"
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(os.readlink(file).startswith(prefix) for file in (path / "fd").iterdir()):
                found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def workers(folder: RunFolder) -> list[int]:
    """The processes of a run's ranks, rank 0 first: each leads a session and writes the log."""
    first = holding(folder)[:1]
    writing = [pid for pid in at_work(folder.path) if pid not in first]
    found = list(first)
    for pid in sorted(writing):
        with suppress(ProcessLookupError):
            found += [pid] if os.getsid(pid) == pid else []
    return found


def epochs(folder: RunFolder) -> list[int]:
    """The epochs that metrics.csv tells of, one for each of its lines of train/loss."""
    return [int(row["epoch"]) for row in Metrics(folder / METRICS).rows() if row["metric"] == "train/loss"]


def curves(folder: RunFolder) -> dict[tuple[str, str], float]:
    """{(metric, epoch): value}"""
    return {(row["metric"], row["epoch"]): float(row["value"]) for row in Metrics(folder / METRICS).rows()}


def furthest(one: RunFolder, other: RunFolder) -> float:
    """The greatest difference between two runs' weights; infinite where they hold different tensors."""
    a, b = (weights.read(folder / MODEL) for folder in (one, other))
    if a.keys() != b.keys():
        return float("inf")
    return max(((a[name].double() - b[name].double()).abs().max().item() for name in a), default=0.0)


def identical(one: RunFolder, other: RunFolder) -> bool:
    """Whether two runs have the same lines, metrics and weights, bit for bit."""
    a, b = (weights.read(folder / MODEL) for folder in (one, other))
    same = a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    return same and curves(one) == curves(other) and one.record["metrics"] == other.record["metrics"]


def trials(root: Path) -> list[Any]:
    """Of the search in this sweep's folder: Optuna's own."""
    import optuna

    from regraft import pruning
    from regraft.search import JOURNAL

    return optuna.load_study(study_name=pruning.STUDY, storage=pruning.storage(root / JOURNAL)).get_trials()


SEARCH = [  # three trials, two at a time, and small
    *("sweeper=optuna", "sweeper.trials=3", "sweeper.together=2", "dataset=digits", "dataset.per_class=5", "trainer.max_epochs=2"),
    *("model=mlp", "model.weights=none", "freeze=none", "optimizer.lr=tag(log,interval(1e-4,1e-1))", "hardware=cpu"),
    *("hardware.workers=0", "plots=false"),
]


def same_search(one: Path, other: Path) -> bool:
    """Whether two searches have asked for the same, and heard the same."""
    told = [[(each.number, each.params, each.state.name, round(each.value, 5)) for each in trials(root)] for root in (one, other)]
    return len(told[0]) == 3 and told[0] == told[1]
