"""What is left of a sweep is handed to its launcher, group by group: claimed, begun, and told of when it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from regraft import sweep
from regraft.errors import Problem, UserError
from regraft.launchers import LauncherSpec, local
from regraft.record import RunFolder, environment

if TYPE_CHECKING:
    from rich.console import RenderableType

    from regraft.launchers.launcher import Launcher
    from regraft.sweep import Planned

    Say = Callable[[RenderableType], None]


def launcher(spec: LauncherSpec) -> Launcher:
    """What a launcher's spec stands for."""
    makers: dict[str, Callable[[Any], Launcher]] = {"local": lambda spec: local.Launcher(spec.jobs)}
    return makers[spec.name](spec)


def run(planned: Sequence[Planned], command: str, say: Say, show: bool = False) -> list[RunFolder]:
    """Run all that is left to do. Afterwards each of these folders' records says `done`, `failed`, or `running` where its worker was ended
    from outside.

    `show`: the worker of a single run talks to this terminal.
    """
    several = len(planned) > 1 or not planned[0].job.single
    names = {each.run_id: f"{i}/{len(planned)} {each.run_id}" if several else "" for i, each in enumerate(planned, 1)}
    for each in planned:
        if each.done:
            say(f"{names[each.run_id]} is done already: {each.name}" if several else "This run is done already.")
        elif not each.left:
            say(f"{names[each.run_id]} has failed before, and is passed over (sweep.retry=true tries it again): {each.name}")
    where = environment()
    groups = [Group(group, names, command, where, say) for group in sweep.groups(planned)]
    launcher(planned[0].job.settings.launcher).launch(groups, show)
    return [each.folder for each in planned if each.folder.exists]


class Group:
    """Runs that are launched together (`launchers.launcher.Group`)."""

    def __init__(self, runs: Sequence[Planned], names: dict[str, str], command: str, where: dict[str, Any], say: Say) -> None:
        """`names`: what each run is called by its id; empty: the run is the only one. `where`: what the controller runs on."""
        self.runs, self._names, self._command, self._where, self._say = list(runs), names, command, where, say
        self._claims = ExitStack()
        s = runs[0].job.settings
        self.devices, self.gpus, self._stops = s.batch.devices, s.hardware.accelerator() == "gpu", s.sweep.on_error == "stop"

    @property
    def folders(self) -> list[RunFolder]:
        return [each.folder for each in self.runs]

    def begin(self) -> list[RunFolder]:
        self.runs = [each for each in self.runs if self._claim(each)]
        if len(self.runs) > 1:
            self._say(f"{len(self.runs)} runs differ in their heads' numbers alone, and train as one batch of heads:")
        for each in self.runs:
            self._tell(each, f"runs: {each.name}")
        if self.runs:
            sweep.begin_together(self.runs, self._command, self._where)
        return self.folders

    def ended(self) -> bool:
        records = [each.folder.record for each in self.runs]
        self._claims.close()
        for each, record in zip(self.runs, records, strict=True):
            self._tell(each, _outcome(record))
        return not (self._stops and any(record["status"] == "failed" for record in records))

    def _claim(self, each: Planned) -> bool:
        """Whether the run is this process's to run, from here on."""
        try:
            held = each.folder.hold("controller")
            self._claims.callback(held.release)
            each.folder.hold().release()  # a worker may outlive its controller by some seconds
        except UserError:
            if not self._names[each.run_id]:
                raise
            self._tell(each, f"is passed over, another process runs it: {each.name}")
            return False
        return each.left  # another process may have done it in the meantime

    def _tell(self, each: Planned, what: str) -> None:
        if name := self._names[each.run_id]:
            self._say(f"{name} {what}")


def succeeded(folder: RunFolder) -> None:
    """Raises UserError, with the first cause, where the run failed."""
    record = folder.record
    if record["status"] != "done":
        error = record["error"] or {"message": record["status"]}
        raise UserError(Problem(str(folder.path), record["status"], f"{error['message']} (more in log.txt)"))


def _outcome(record: dict[str, Any]) -> str:
    if record["status"] == "failed":
        kind = "" if record["error"]["kind"] == "UserError" else f"{record['error']['kind']}: "
        return f"failed: {kind}{record['error']['message']}"
    if record["status"] == "running":
        return f"was interrupted, and goes on when the command is given again: {(record['error'] or {}).get('message')}"
    metrics, times = record["metrics"], record["times"]
    seconds = times.get("share", times["total"])
    first = record.get("metric", "accuracy")
    figures = ", ".join(f"{name} {metrics[name]:.3f}" for name in (f"val/{first}", f"test/{first}") if name in metrics)
    return f"done in {seconds:.1f} s: {figures}"
