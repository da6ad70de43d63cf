"""Jobs become run folders: which runs they are, what is left of them, and which of these share all below their heads."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft import grouping, outlook, stages
from regraft.config import Job, Plan
from regraft.errors import Problem, UserError
from regraft.files import digest
from regraft.record import ENDED, JOB, VOCABULARY, RunFolder
from regraft.settings import FILES_GROUPS, GROUPS

if TYPE_CHECKING:
    from regraft.datasets.source import Source
    from regraft.settings import Settings

KEPT = ("halved", "tuning")  # what a run's record says that the next attempt goes by


@dataclass(frozen=True)
class Planned:
    """A job with its run id and folder, before anything is written."""

    job: Job
    run_id: str
    folder: RunFolder
    data: dict[str, Any]  # its facts
    source: Source
    sweep: Path | None  # the sweep's folder; None: a single run

    @property
    def status(self) -> str | None:
        """What its record says; None: it has none yet."""
        if not self.folder.exists:
            return None
        record = self.folder.record
        return str(record["status"]) if record["run_id"] == self.run_id else None

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return self._done(self.status)

    @property
    def left(self) -> bool:
        """Whether it is to be run: it is not done, and where it is one of a sweep's that has failed before, another try is asked for."""
        status = self.status
        return not self._done(status) and (status != "failed" or self.job.single or self.job.settings.sweep.retry)

    def _done(self, status: str | None) -> bool:
        """A run that a search has pruned is one that another sweep goes on with."""
        return status in ENDED and (status != "pruned" or self.job.trial is not None)

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
        return self.folder.exists and self.folder.record["run_id"] == self.run_id and self.folder.saved


def plan(jobs: Sequence[Job], opened: Plan | None = None, skipped: dict[str, str] | None = None) -> list[Planned]:
    """Each job's run id and folder; reads the data and names the weights. Raises UserError with every mistake in any job.

    Jobs with the same run id are one run. `opened`: the data of earlier jobs, which need not be opened again.
    `skipped`: where sweep.skip_invalid leaves out, and notes, the points of which the net lacks a stage that a policy names.
    """
    opened = opened or Plan(jobs)
    planned: dict[str, Planned] = {}
    problems: dict[Problem, None] = {}
    taken: dict[str, str] = {}
    for job in jobs:
        s = job.settings
        try:
            data, source = opened.data(job)
            heads = (problem._replace(key=f"head.{problem.key}") for problem in s.head.unfit(data["classes"]))
            nets = (problem._replace(key=f"model.{problem.key}") for problem in s.model.lacks(source))
            if unfit := s.fits(data) or [*heads, *nets, *_renumbered(s, source), *_headless(s, source)]:
                raise UserError(unfit)
            run_id = s.run_id(data["fingerprint"], s.origin.identity)
            sweep, path = job.folders(run_id)
            folder = RunFolder(path)
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
        planned.setdefault(run_id, Planned(job, run_id, folder, data, source, sweep))
    lacking: dict[str, list[Problem]] = {}
    try:
        for each, problem in _strangers([each for each in planned.values() if each.job.settings.freeze.asks() and each.left]):
            lacking.setdefault(each.run_id, []).append(problem)
    except UserError as error:
        problems |= dict.fromkeys(error.problems)
    if skipped is not None and jobs[0].settings.sweep.skip_invalid and len(lacking) < len(planned):
        skipped |= {planned.pop(run_id).name: "; ".join(map(str, found)) for run_id, found in lacking.items()}
    else:
        problems |= {problem: None for found in lacking.values() for problem in found}
    if problems:
        raise UserError(problems)
    return list(planned.values())


def _renumbered(s: Settings, source: Source) -> list[Problem]:
    """Weights of a run that has read tokens by other numbers: each row of its table would mean another token."""
    if s.origin.kind != "run" or not source.tokens:
        return []
    known = Path(s.model.weights).expanduser() / VOCABULARY
    if not known.is_file() or json.loads(known.read_text("utf-8")) == list(source.tokens):
        return []
    remedy = f"model.weights={s.model.weights} has learnt tokens by other numbers; dataset.vocabulary={s.model.weights} keeps its own"
    return [Problem("dataset.vocabulary", getattr(s.dataset, "vocabulary", None), remedy)]


def _headless(s: Settings, source: Source) -> list[Problem]:
    """What keeps a head from going on from an earlier run's."""
    if not getattr(s.head, "kept", False):
        return []
    if s.origin.kind != "run":
        return [Problem("head.kept", True, f"model.weights={s.model.weights} is no earlier run, whose head could be kept; false works")]
    earlier = RunFolder(s.model.weights)
    if (name := (earlier.config.get("head") or {}).get("name")) != s.head.name:
        return [Problem("head", s.head.name, f"that of {s.model.weights} is {name}; head={name} keeps it")]
    if (classes := (earlier.record.get("data") or {}).get("classes")) != source.classes:
        told = ", ".join(map(str, (classes or [])[:10]))
        remedy = f"the run {s.model.weights} tells other classes apart ({told}); false works, or dataset.classes and dataset.rename"
        return [Problem("head.kept", True, remedy)]
    return []


def _strangers(asking: Sequence[Planned]) -> Iterator[tuple[Planned, Problem]]:
    """What freeze policies ask of nets that do not have it: nets are built in another process, and only where a policy names stages
    (`asking`). Raises UserError where that process fails."""
    if not asking:
        return
    nets = [stages.Net(each.job.settings.model, each.job.settings.size, each.data["input"]) for each in asking]
    layouts = stages.ask(nets, asking[0].job.settings.cache.folder())
    for each, layout in zip(asking, layouts, strict=True):
        s = each.job.settings
        if isinstance(layout, UserError):
            yield from ((each, problem) for problem in layout.problems)
            continue
        try:
            s.freeze.cuts(layout)
            if s.trainer.max_steps is None and s.trainer.max_epochs:  # how many epochs max_steps are, the worker finds out
                s.freeze.drawn(layout, s.trainer.max_epochs)
        except UserError as error:
            yield from ((each, problem) for problem in error.problems)


def axes(planned: Sequence[Planned]) -> list[str]:
    """The keys in which the runs of a sweep differ, a chosen group by its name."""
    flat = [_flat(each.job.config) for each in planned]
    keys = list(dict.fromkeys(key for each in flat for key in each))
    differing = [key for key in keys if len({repr(each.get(key)) for each in flat}) > 1 or (len(planned) == 1 and _swept(planned[0], key))]
    if any(_swept(planned[0], key) for key in FILES_GROUPS):  # whole recipes differ in much: their names tell them apart
        return [key for key in differing if _swept(planned[0], key.removesuffix(".name"))]
    groups = {key.removesuffix(".name") for key in differing if key.endswith(".name") and key.removesuffix(".name") in GROUPS}
    return [key for key in differing if key.endswith(".name") or key.split(".")[0] not in groups or _swept(planned[0], key)]


def _swept(planned: Planned, key: str) -> bool:
    return any(line.lstrip("+").partition("=")[0] == key for line in planned.job.overrides)


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


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
    (each.folder / JOB).unlink(missing_ok=True)  # a job that still waits somewhere then finds that the run is no longer its own
    before = each.folder.record if each.status else {}
    kept = {key: before[key] for key in KEPT if key in before}
    record = {"run_id": each.run_id, "command": command, "overrides": list(each.job.overrides), **where, "times": {"launched": time.time()}}
    record |= {"place": digest(str(each.folder.path))[:8]} | ({"trial": each.job.trial} if each.job.trial else {})
    each.folder.begin(each.job.config, {**record, "data": each.data, "seed": each.job.settings.seed, "group": group, "error": None, **kept})
