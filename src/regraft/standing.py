"""How the runs of a folder stand, read off their folders: how far each is, what has failed and why, the time left, the best so far.

It only looks: nothing is written, no file is made, and a lock is asked for no longer than it takes to hear that somebody has it.
"""

from __future__ import annotations

import fcntl
import math
import os
import shlex
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from regraft import manifest
from regraft.errors import Problem, UserError
from regraft.record import DRY, METRICS, RECORD, Metrics, RunFolder
from regraft.report import words
from regraft.tasks import LOWER

STATES = ("done", "pruned", "running", "handed", "interrupted", "failed", "waiting", "damaged")
CHOICELESS = {"seed", "dataset.fold"}  # keys of which no value is a choice


@dataclass(frozen=True)
class Run:
    """One run, as far as its folder tells."""

    run_id: str
    folder: Path
    status: str  # one of STATES
    overrides: tuple[str, ...] = ()
    epoch: int = 0  # epochs that are done
    epochs: int | None = None  # of all; None: not known yet
    monitor: str | None = None  # what decides its best epoch
    value: float | None = None  # of the last epoch; of a run that is done, of what was kept
    seconds: float | None = None  # that it took, or has taken so far; of a group's time, its share
    launched: float | None = None  # s since 1970
    group: str | None = None  # which runs one worker runs together
    trouble: str = ""  # the first line of what went wrong, or who it was handed to

    @property
    def part(self) -> float:
        """How much of it is done, 0..1."""
        return min(1.0, self.epoch / self.epochs) if self.epochs else 0.0

    @property
    def worker(self) -> str:
        """What one worker's runs have in common."""
        return self.group or self.run_id


@dataclass(frozen=True)
class Sweep:
    """The runs of one folder."""

    folder: Path
    runs: tuple[Run, ...]
    working: bool  # whether a command is at work on it
    trials: int | None = None  # that a search wants in all
    commands: tuple[str, ...] = ()
    trouble: str = ""  # why its manifest can't be read

    @cached_property
    def counts(self) -> dict[str, int]:
        """Runs of each status; of a search at work, the trials that are yet to be asked for wait too."""
        found = Counter(run.status for run in self.runs)
        if self.working:
            found["waiting"] += self.unasked
        return {state: found[state] for state in STATES if found[state]}

    @property
    def unasked(self) -> int:
        """Trials of a search that have no run yet. One that failed is none: another takes its place; two of the same point are one run."""
        return max(0, (self.trials or 0) - sum(run.status not in ("failed", "damaged") for run in self.runs))

    @property
    def moving(self) -> bool:
        """Whether anything more will happen without another command."""
        return self.working or any(run.status in ("running", "handed") for run in self.runs)

    @property
    def left(self) -> float | None:
        """Seconds until all that runs or waits is done, by what the others took and how far each has come; None: nobody can say yet,
        or nobody is at work."""
        running = [run for run in self.runs if run.status == "running"]
        waiting = self.counts.get("waiting", 0) + self.counts.get("interrupted", 0)
        if not self.moving or "handed" in self.counts or not (running or waiting):  # a queue's pace is not to be known
            return None
        together = Counter(run.worker for run in running)
        took = [run.seconds for run in self.runs if run.status in ("done", "pruned") and run.seconds]
        paces = [run.seconds / run.part / together[run.worker] for run in running if run.part and run.seconds]
        if not (took or paces):
            return None
        mean = sum(took or paces) / len(took or paces)  # s of one run
        rests = dict.fromkeys(together, 0.0)  # of each worker
        for run in running:
            rests[run.worker] += mean * (1 - run.part)
        return max(sum(rests.values(), waiting * mean) / max(1, len(rests)), *rests.values(), 0.0)

    @cached_property
    def axes(self) -> frozenset[str]:
        """The overrides that its runs do not share."""
        of = [frozenset(run.overrides) for run in self.runs if run.overrides]
        return of[0].union(*of) - of[0].intersection(*of) if len(of) > 1 else frozenset()

    def name(self, run: Run) -> str:
        """A run by what tells it from the others."""
        return shlex.join([word for word in run.overrides if word in self.axes]) or run.run_id

    @property
    def best(self) -> Run | None:
        """The run that is best on val so far, of those that are done; None: there is none, or nothing to choose between."""
        done = [run for run in self.runs if run.status == "done" and run.value is not None and run.monitor]
        keys = {word.lstrip("+").partition("=")[0] for word in self.axes}
        if not done or len({run.monitor for run in done}) > 1 or (keys and keys <= CHOICELESS):
            return None
        lower = (done[0].monitor or "").partition("/")[2] in LOWER
        return (min if lower else max)(done, key=lambda run: run.value or 0.0)


class Reader:
    """Looks at a folder as often as it is asked; what has not changed since is not read again."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[Path, tuple[Any, Run]] = {}
        self._monitors: dict[Path, str] = {}

    def look(self) -> list[Sweep]:
        """Every sweep with its runs, in the order of their folders. Raises UserError where there is none."""
        manifests, folders = _found(self.root)
        told, troubles = {}, {}
        for path in manifests:
            try:
                told[path] = manifest.read(path)
            except UserError as error:
                told[path], troubles[path] = manifest.Manifest(), str(error)
        of: dict[Path, dict[Path, Run]] = {path: {} for path in manifests}
        for path, each in told.items():
            for entry in each.runs:
                folder = Path(os.path.normpath(path / entry.folder))
                of[path][folder] = Run(entry.run_id, folder, "waiting", entry.overrides)
        for folder in folders:
            own = folder if folder == self.root else folder.parent
            of.setdefault(next((path for path in folder.parents if path in told), own), {})[folder] = self._run(folder)
        if not folders and not any(of.values()):
            raise UserError(Problem("DIR", str(self.root), "holds no run folders; name a sweep's folder, as regraft train tells it"))
        return [self._sweep(path, tuple(runs.values()), told.get(path), troubles.get(path, "")) for path, runs in of.items()]

    def _sweep(self, path: Path, runs: tuple[Run, ...], told: manifest.Manifest | None, trouble: str) -> Sweep:
        told = told or manifest.Manifest()
        return Sweep(path, runs, _held(path / manifest.WORK, alone=True), told.trials, told.commands, trouble)

    def _run(self, folder: Path) -> Run:
        try:
            stat = os.stat(folder / RECORD)
            signature = stat.st_mtime_ns, stat.st_size, stat.st_ino
            known = self._known.get(folder)
            if not known or known[0] != signature:
                self._known[folder] = known = signature, _read(folder)
            run = known[1]
            return self._live(run) if run.status in ("running", "interrupted") else run
        except OSError as error:  # it was removed while it was looked for
            return Run(folder.name, folder, "damaged", trouble=f"{RECORD} can't be read ({error.strerror})")

    def _live(self, run: Run) -> Run:
        """A run whose record says `running`: whether that is so, and how far it is."""
        folder = run.folder
        job = RunFolder(folder).job if run.status == "running" else None
        if _held(folder / ".worker") or (not job and _held(folder / ".controller")):  # a launcher's controller claims what waits, too
            run = replace(run, status="running", trouble="", seconds=max(0.0, time.time() - run.launched) if run.launched else None)
        elif job and job["id"] != DRY:
            run = replace(run, status="handed", trouble=f"handed to {words.plain(job['launcher'], 40)} as {words.plain(job['id'], 40)}")
        else:
            run = replace(run, status="interrupted", trouble=run.trouble or "its process is gone")
        if last := Metrics(folder / METRICS).last():
            monitor = self._monitor(run)
            run = replace(run, epoch=last[0] + 1, monitor=monitor, value=_finite(last[1].get(monitor)))
        return run

    def _monitor(self, run: Run) -> str:
        """What decides the best epoch of a run under way: of its config, which does not change."""
        if run.folder not in self._monitors:
            asked = None
            with suppress(UserError):
                asked = words.at(RunFolder(run.folder).config, "trainer.monitor")
            self._monitors[run.folder] = asked if isinstance(asked, str) and asked != "auto" else run.monitor or "val/loss"
        return self._monitors[run.folder]


def _found(root: Path) -> tuple[list[Path], list[Path]]:
    """The folders with a manifest and the run folders in and below a folder, each in order; nothing inside a run folder is looked at."""
    manifests, runs = [], []
    for at, inside, files in os.walk(root):
        if RECORD in files:
            runs.append(Path(at))
            inside.clear()
            continue
        if manifest.NAME in files:
            manifests.append(Path(at))
        inside[:] = sorted(name for name in inside if not name.startswith("."))
    return manifests, runs


def _read(folder: Path) -> Run:
    """A run as its record alone tells it."""
    try:
        return _told(folder, RunFolder(folder).record)
    except (UserError, TypeError, ValueError, OverflowError) as error:  # what lies there may be anybody's
        return Run(folder.name, folder, "damaged", trouble=words.first(error))


def _told(folder: Path, record: dict[str, Any]) -> Run:
    """`interrupted`: an error stands beside the status `running`."""
    status, first = record["status"], words.metric(record)
    error = record.get("error")
    if status == "running" and error:
        status = "interrupted"
    epochs = [words.at(phase, "epochs") for phase in record.get("phases") or [] if isinstance(phase, dict)]
    all_of = int(sum(epochs)) if epochs and all(map(words.known, epochs)) else None
    launched, share, total = (words.at(record, f"times.{key}") for key in ("launched", "share", "total"))
    seconds = next((value for value in (share, total) if words.known(value)), None)
    monitor = words.at(record, "kept.monitor")
    monitor = monitor if isinstance(monitor, str) else f"val/{first}"
    kept = (words.at(record, "kept.value"), (record.get("metrics") or {}).get(monitor) if isinstance(record.get("metrics"), dict) else None)
    overrides = record.get("overrides")
    group = words.at(record, "group.id")
    return Run(
        record["run_id"],
        folder,
        status if status in STATES else "damaged",
        tuple(map(str, overrides)) if isinstance(overrides, list) else (),
        epochs=all_of,
        monitor=monitor,
        value=next((_finite(value) for value in kept if words.known(value)), None),
        seconds=seconds,
        launched=launched if words.known(launched) else None,
        group=group if isinstance(group, str) else None,
        trouble=words.first(words.error(record)) if error else "" if status in STATES else f"its record says {words.plain(status, 40)}",
    )


def _held(lock: Path, alone: bool = False) -> bool:
    """Whether a process holds this lock; `alone`: also where it shares it. Makes no file, and lets go at once."""
    try:
        number = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(number, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(number)
    return False


def _finite(value: Any) -> float | None:
    return float(value) if words.known(value) and math.isfinite(value) else None
