"""Jobs become run folders: which runs they are, what is left of them, and which of these share all below their heads."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from regraft import grouping, outlook, stages
from regraft.config import Job, Plan
from regraft.errors import Problem, UserError
from regraft.files import digest
from regraft.record import CHECKPOINT, ENDED, RunFolder

if TYPE_CHECKING:
    from regraft.datasets.source import Source
    from regraft.settings import Settings

KEPT = ("halved",)  # what a run's record says that the next attempt goes by


@dataclass(frozen=True)
class Planned:
    """A job with its run id and folder, before anything is written."""

    job: Job
    run_id: str
    folder: RunFolder
    data: dict[str, Any]  # its facts
    source: Source

    @property
    def status(self) -> str | None:
        """What its record says; None: it has none yet."""
        if not self.folder.exists:
            return None
        record = self.folder.record
        return str(record["status"]) if record["run_id"] == self.run_id else None

    @property
    def done(self) -> bool:
        return self.status in ENDED

    @property
    def left(self) -> bool:
        """Whether it is to be run: it is not done, and where it is one of a sweep's that has failed before, another try is asked for."""
        status, job = self.status, self.job
        return status not in ENDED and (status != "failed" or job.single or job.settings.sweep.retry)

    @property
    def name(self) -> str:
        return shlex.join(self.job.overrides)

    @property
    def went_stacked(self) -> bool:
        """Whether an interrupted stack of heads has left its checkpoint."""
        return self._left and bool(self.folder.record.get("group"))

    @property
    def went_alone(self) -> bool:
        """Whether it was interrupted while it trained by itself, and left its checkpoint."""
        return self._left and not self.folder.record.get("group")

    @property
    def _left(self) -> bool:
        return self.folder.exists and self.folder.record["run_id"] == self.run_id and (self.folder / CHECKPOINT).is_file()


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
            data, source = opened.data(job)
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
        planned.setdefault(run_id, Planned(job, run_id, folder, data, source))
    problems |= dict.fromkeys(_strangers([each.job.settings for each in planned.values() if each.left]))
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


def groups(planned: Sequence[Planned]) -> list[list[Planned]]:
    """What is left to do, in groups that are launched together; most of one run. One that has begun alone goes on alone."""
    left = [each for each in planned if each.left]
    of = [(each, each.job.settings, each.data["fingerprint"], each.job.settings.origin.identity) for each in left if not each.went_alone]
    found = [*grouping.grouped(of), *([each] for each in left if each.went_alone)]
    return sorted(found, key=lambda group: left.index(group[0]))


def ahead(planned: Sequence[Planned]) -> outlook.Outlook:
    """What is left to do will need."""
    return outlook.outlook(
        [[(each.job.settings, each.job.settings.origin.identity, each.source) for each in group] for group in groups(planned)]
    )


def begin_together(group: Sequence[Planned], command: str, where: dict[str, Any]) -> None:
    """`begin` for all runs of a group; a run by itself is one where it was interrupted in a stack of heads, since it goes on in one."""
    name = digest(*(each.run_id for each in group))[:12]
    for number, each in enumerate(group):
        stacked = len(group) > 1 or each.went_stacked
        begin(each, command, where, {"id": name, "size": len(group), "number": number} if stacked else None)


def begin(each: Planned, command: str, where: dict[str, Any], group: dict[str, Any] | None = None) -> None:
    """Write the run folder's config and its record, so that a worker can run it. `group`: which runs are trained together with it, as
    their common id, their number and its place. Raises UserError where another process runs it."""
    each.folder.hold().release()
    before = each.folder.record if each.status else {}
    kept = {key: before[key] for key in KEPT if key in before}
    record = {"run_id": each.run_id, "command": command, "overrides": list(each.job.overrides), **where, "times": {"launched": time.time()}}
    each.folder.begin(each.job.config, {**record, "data": each.data, "seed": each.job.settings.seed, "group": group, "error": None, **kept})
