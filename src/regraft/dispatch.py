"""What is left of a sweep is handed to its launcher, group by group: claimed, begun, and told of when it ends."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from regraft import manifest, sweep, worker
from regraft.errors import Problem, UserError, said
from regraft.launchers import LauncherSpec, azureml, local, ray, slurm
from regraft.record import RunFolder, environment
from regraft.report import words

if TYPE_CHECKING:
    from rich.console import RenderableType

    from regraft.launchers.launcher import Launcher
    from regraft.sweep import Planned

    Say = Callable[[RenderableType], None]

SPARE = 256  # open files beside those of claimed runs
ORPHANED = worker.PATIENCE + 10  # seconds that a worker may outlive a controller that was killed: it ends its step, and saves


def launcher(spec: LauncherSpec) -> Launcher:
    """What a launcher's spec stands for."""
    makers: dict[str, Callable[[Any], Launcher]] = {
        "local": lambda spec: local.Launcher(spec.jobs),
        "azureml": azureml.Launcher,
        "ray": ray.Launcher,
        "slurm": slurm.Launcher,
    }
    return makers[spec.name](spec)


def run(planned: Sequence[Planned], command: str, say: Say, show: bool = False) -> list[RunFolder]:
    """Run all that is left to do. Afterwards each of these folders' records says `done`, `pruned`, `failed`, or `running` where its worker
    was ended from outside.

    `show`: the worker of a single run talks to this terminal.
    """
    several = len(planned) > 1 or not planned[0].job.single
    names = {each.run_id: f"{i}/{len(planned)} {each.run_id}" if several else "" for i, each in enumerate(planned, 1)}
    left, stopped = {each.run_id: each for each in planned if each.left}, False
    for each in planned:
        if each.run_id not in left and each.done:
            say(f"{names[each.run_id]} is done already: {each.name}" if several else "This run is done already.")
        elif each.run_id not in left:
            say(f"{names[each.run_id]} has failed before, and is passed over (sweep.retry=true tries it again): {each.name}")
            stopped = stopped or each.job.settings.sweep.on_error == "stop"
    if stopped:
        say("Nothing else is begun (sweep.on_error=stop).")
        left.clear()
    _open_files(SPARE + len(left))
    where = environment()
    pace = Pace(len(planned), len(left))
    launching = launcher(planned[0].job.settings.launcher)
    handed = _handed(list(left.values()), launching)
    going = {each.run_id for group in handed for each in group}
    fresh = sweep.groups([each for each in left.values() if each.run_id not in going])
    groups = [Group(group, names, command, where, say, pace, group in handed) for group in (*handed, *fresh)]
    with ExitStack() as works:
        for folder in dict.fromkeys(each.sweep for each in planned if each.sweep):
            works.enter_context(manifest.working(folder))
            runs = [(each.run_id, each.folder.path, each.job.overrides) for each in planned if each.sweep == folder]
            manifest.note(folder, command, runs)
        launching.launch(groups, show)
    return [each.folder for each in planned if each.folder.exists]


def _freed(folder: RunFolder) -> None:
    """Wait for a worker that has outlived its controller. Raises UserError where it does not end."""
    end = time.monotonic() + ORPHANED
    while True:
        try:
            return folder.hold().release()
        except UserError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def _open_files(count: int) -> None:
    """Let this process have so many: each claimed run is one, and a launcher may claim all at once."""
    few, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= few < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count if most < 0 else min(count, most), most))


def _handed(planned: Sequence[Planned], launching: Launcher) -> list[list[Planned]]:
    """Runs that an earlier command has handed on, and that still wait or run somewhere, by the job that has them."""
    jobs: dict[str, list[Planned]] = {}
    for each in planned:
        job = each.folder.job if each.status == "running" else None
        if job and job["launcher"] == each.job.settings.launcher.name:
            jobs.setdefault(job["id"], []).append(each)
    busy = launching.busy(jobs)
    return [group for job, group in jobs.items() if job in busy]


class Group:
    """Runs that are launched together (`launchers.launcher.Group`)."""

    def __init__(
        self,
        runs: Sequence[Planned],
        names: dict[str, str],
        command: str,
        where: dict[str, Any],
        say: Say,
        pace: Pace,
        handed: bool = False,
    ) -> None:
        """`names`: what each run is called by its id; empty: the run is the only one. `where`: what the controller runs on.
        `handed`: an earlier command has handed the runs on, and this one only waits for them."""
        self._handed = handed
        self.runs, self._names, self._command, self._where, self._say, self._pace = list(runs), names, command, where, say, pace
        self._claims = ExitStack()
        s = runs[0].job.settings
        self.devices, self.gpus, self._stops = s.batch.devices, s.hardware.accelerator() == "gpu", s.sweep.on_error == "stop"

    @property
    def folders(self) -> list[RunFolder]:
        return [each.folder for each in self.runs]

    def begin(self) -> list[RunFolder]:
        before, self.runs = len(self.runs), [each for each in self.runs if self._claim(each)]
        self._pace.passed(before - len(self.runs))
        if self._handed:
            for each in self.runs:
                self._tell(each, f"goes on as job {(each.folder.job or {}).get('id')} of an earlier command: {each.name}")
            return self.folders
        if len(self.runs) > 1:
            self._say(f"{len(self.runs)} runs differ in their heads' numbers alone, and train as one batch of heads:")
        for each in self.runs:
            self._tell(each, f"runs: {each.name}")
        if self.runs:
            sweep.begin_together(self.runs, self._command, self._where)
        return self.folders

    def ended(self) -> bool:
        records = [each.folder.record if each.folder.exists else None for each in self.runs]
        self._claims.close()
        self._pace.ended(sum(record is None or record["status"] != "running" for record in records))
        for each, record in zip(self.runs, records, strict=True):
            if record is None:
                self._tell(each, f"has gone: {each.folder.path} was removed while it ran")
            elif each.folder.waits:
                self._tell(each, "is handed on")
            else:
                self._tell(each, _outcome(record) + (f" ({self._pace})" if each is self.runs[-1] else ""))
        return not (self._stops and any(record and record["status"] == "failed" for record in records))

    def _claim(self, each: Planned) -> bool:
        """Whether the run is this process's to run, from here on."""
        try:
            held = each.folder.hold("controller")
            self._claims.callback(held.release)
            if self._handed:
                return True
            _freed(each.folder)
        except UserError:
            if not self._names[each.run_id]:
                raise
            self._tell(each, f"is passed over, another process runs it: {each.name}")
            return False
        return each.left  # another process may have done it in the meantime

    def _tell(self, each: Planned, what: str) -> None:
        if name := self._names[each.run_id]:
            self._say(f"{name} {what}")


class Pace:
    """How many runs of a command have ended, and how long the rest takes at this pace: `7 of 18 ended, about 3 min left`."""

    def __init__(self, total: int, left: int) -> None:
        self._total, self._left, self._began, self._here = total, left, time.monotonic(), 0

    def passed(self, runs: int) -> None:
        """So many are another process's, or done."""
        self._left -= runs

    def ended(self, runs: int) -> None:
        """So many have ended here."""
        self._left, self._here = self._left - runs, self._here + runs

    def __str__(self) -> str:
        seconds = (time.monotonic() - self._began) / max(1, self._here) * self._left
        return f"{self._total - self._left} of {self._total} ended" + (f", about {words.roughly(seconds)} left" if self._left else "")


def succeeded(folder: RunFolder) -> None:
    """Raises UserError, with the first cause, where the run failed."""
    record = folder.record
    if record["status"] != "done":
        error = record["error"] or {"message": record["status"]}
        raise UserError(Problem(str(folder.path), record["status"], f"{error['message']} (more in log.txt)"))


def _outcome(record: dict[str, Any]) -> str:
    if record["status"] == "failed":
        return f"failed: {said(record['error'])}"
    if record["status"] == "running":
        return f"was interrupted, and goes on when the command is given again: {(record['error'] or {}).get('message')}"
    metrics, times = record["metrics"], record["times"]
    if record["status"] == "pruned":
        return f"pruned after epoch {record['pruned']['epoch']}: {record['pruned']['monitor']} {record['pruned']['value']:.3f}"
    seconds = times.get("share", times["total"])
    first = record.get("metric", "accuracy")
    figures = ", ".join(f"{name} {metrics[name]:.3f}" for name in (f"val/{first}", f"test/{first}") if name in metrics)
    return f"done in {seconds:.1f} s: {figures}"
