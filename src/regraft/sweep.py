"""Jobs become run folders: what is done is skipped, what was interrupted goes on, the rest is launched."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from regraft import stages
from regraft.config import Job, Plan
from regraft.errors import Problem, UserError
from regraft.launchers import local
from regraft.record import RunFolder, environment

if TYPE_CHECKING:
    from rich.console import RenderableType

    from regraft.settings import Settings


@dataclass(frozen=True)
class Planned:
    """A job with its run id and folder, before anything is written."""

    job: Job
    run_id: str
    folder: RunFolder
    data: dict[str, Any]

    @property
    def done(self) -> bool:
        if not self.folder.exists:
            return False
        record = self.folder.record
        return record["run_id"] == self.run_id and record["status"] == "done"


def plan(jobs: Sequence[Job]) -> list[Planned]:
    """Each job's run id and folder; reads the data and names the weights. Raises UserError with every mistake in any job.

    Jobs with the same run id are one run.
    """
    opened = Plan(jobs)
    planned: dict[str, Planned] = {}
    problems: dict[Problem, None] = {}
    taken: dict[str, str] = {}
    for job in jobs:
        s = job.settings
        try:
            data = opened.data(job)
            if unfit := [*s.fits(data), *(problem._replace(key=f"head.{problem.key}") for problem in s.head.unfit(data["classes"]))]:
                raise UserError(unfit)
            run_id = s.run_id(data["fingerprint"], s.origin.identity)
            folder = RunFolder(job.folder(run_id))
        except UserError as error:
            problems |= dict.fromkeys(error.problems)
            continue
        if taken.setdefault(str(folder.path), run_id) != run_id:
            remedy = "two different runs of this sweep would share this folder; put ${run_id} or ${hydra.job.num} into hydra.sweep.subdir"
            problems[Problem("hydra.sweep.subdir", str(folder.path), remedy)] = None
        if not folder.exists and folder.path.is_dir() and any(not path.name.startswith(".") for path in folder.path.iterdir()):
            remedy = "the folder holds something else, and no run; name another folder"
            problems[Problem("hydra.run.dir" if job.single else "hydra.sweep.dir", str(folder.path), remedy)] = None
        if folder.exists and (held := folder.record["run_id"]) != run_id and not folder.barren:
            key = "hydra.run.dir" if job.single else "hydra.sweep.dir"
            remedy = f"the folder holds another run ({held}, not {run_id}); name another folder, or remove this one"
            problems[Problem(key, str(folder.path), remedy)] = None
        planned.setdefault(run_id, Planned(job, run_id, folder, data))
    problems |= dict.fromkeys(_strangers([each.job.settings for each in planned.values() if not each.done]))
    if problems:
        raise UserError(problems)
    return list(planned.values())


def _strangers(runs: Sequence[Settings]) -> Iterator[Problem]:
    """What freeze policies ask of nets that do not have it: nets are built in another process, and only where a policy names stages."""
    asking = [s for s in runs if s.freeze.asks()]
    if not asking:
        return
    try:
        layouts = stages.ask([(s.model, s.size) for s in asking], asking[0].cache.folder())
    except UserError as error:
        yield from error.problems
        return
    for s, layout in zip(asking, layouts, strict=True):
        if isinstance(layout, UserError):
            yield from layout.problems
            continue
        try:
            s.freeze.cuts(layout)
            if s.trainer.max_steps is None and s.trainer.max_epochs:  # how many epochs max_steps are, the worker finds out
                s.freeze.drawn(layout, s.trainer.max_epochs)
        except UserError as error:
            yield from error.problems


def run(planned: Sequence[Planned], command: str, say: Callable[[RenderableType], None], show: bool = False) -> list[RunFolder]:
    """Run all that is not done, one after the other. Afterwards each folder's record says `done` or `failed`.

    `show`: the workers talk to this terminal.
    """
    several = len(planned) > 1 or not planned[0].job.single
    where = environment()
    for number, each in enumerate(planned, 1):
        name = shlex.join(each.job.overrides)
        if each.done:
            say(f"{number}/{len(planned)} {each.run_id} is done already: {name}" if several else "This run is done already.")
            continue
        try:
            claim = each.folder.hold("controller")
        except UserError:
            if not several:
                raise
            say(f"{number}/{len(planned)} {each.run_id} is passed over, another process runs it: {name}")
            continue
        with claim:
            if each.done:  # by another process, in the meantime
                continue
            if several:
                say(f"{number}/{len(planned)} {each.run_id} runs: {name}")
            begin(each, command, where)
            record = local.launch(each.folder, each.job.settings.batch.devices, show=show)
        if several:
            say(f"{number}/{len(planned)} {each.run_id} {_outcome(record)}")
        if record["status"] == "failed" and each.job.settings.sweep.on_error == "stop":
            break
    return [each.folder for each in planned if each.folder.exists]


def begin(each: Planned, command: str, where: dict[str, Any]) -> None:
    """Write the run folder's config and its record, so that a worker can run it. Raises UserError where another process runs it."""
    each.folder.hold().release()
    record = {"run_id": each.run_id, "command": command, "overrides": list(each.job.overrides), **where, "times": {"launched": time.time()}}
    each.folder.begin(each.job.config, {**record, "data": each.data, "seed": each.job.settings.seed, "group": None, "error": None})


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
    metrics, seconds = record["metrics"], record["times"]["total"]
    first = record.get("metric", "accuracy")
    figures = ", ".join(f"{name} {metrics[name]:.3f}" for name in (f"val/{first}", f"test/{first}") if name in metrics)
    return f"done in {seconds:.1f} s: {figures}"
