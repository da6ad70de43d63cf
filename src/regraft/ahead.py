"""What `regraft check` says of runs to come: what they are, how they are grouped, and what they will need."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from regraft import grouping
from regraft.hardware import cores
from regraft.outlook import Outlook
from regraft.report import words
from regraft.sweep import Planned


def lines(planned: Sequence[Planned], groups: Sequence[Sequence[Planned]], outlook: Outlook, shown: Callable[[Path], str]) -> Iterator[str]:
    """`groups`: of what is not done, those that are launched together; `shown`: how a path is written."""
    done = sum(each.done for each in planned)
    yield f"{words.count(len(planned), 'run')}, nothing wrong{f'; {done} done already' if done else ''}"
    if len(planned) == 1:
        yield from _one(planned[0])
    elif groups:
        yield from _groups(groups)
    if groups:
        yield from _needs(outlook)
    for each in planned:
        yield f"  {shown(each.folder.path)}  {shlex.join(each.job.overrides)}".rstrip()


def _one(only: Planned) -> Iterator[str]:
    s = only.job.settings
    batch, steps, epochs = s.batch, s.trainer.max_steps, s.trainer.max_epochs
    length = "no epochs" if s.head.fits else f"{steps} steps" if steps else words.count(epochs, "epoch")
    what = f"{s.model.name} ({s.model.weights}) on {s.dataset.name}{_at(s.size)}"
    yield f"  {what}, freeze {s.freeze.name}, augmentation {s.augmentation.name}, {length}"
    division = f"{batch.devices} devices x {batch.micro} pictures x {batch.accumulate} micro-batches"
    yield f"  batch {batch.size} = {division}, on {s.hardware.accelerator()}"


def _groups(groups: Sequence[Sequence[Planned]]) -> Iterator[str]:
    """A line for each batch of heads, and one for all that train alone, with the reasons."""
    reasons: dict[str, int] = {}
    for number, group in enumerate(groups, 1):
        s = group[0].job.settings
        if len(group) > 1:
            how = "one solver" if s.head.fits else "one batch of heads"
            yield f"  group {number}: {len(group)} runs as {how}, on {s.model.name}{_at(s.size)}"
        else:
            why = grouping.alone(s) or ("began alone" if group[0].went_alone else "no other run shares all below its head")
            reasons[why] = reasons.get(why, 0) + 1
    for why, count in reasons.items():
        yield f"  {words.count(count, 'run')} alone: {why}"


def _needs(outlook: Outlook) -> Iterator[str]:
    if outlook.unknown:
        launches = (
            ("this run" if outlook.runs == 1 else "these runs")
            if outlook.launches == 1
            else f"{outlook.unknown} of {outlook.launches} launches"
        )
        yield f"  passes, disk and time of {launches} are known once one like it has run here"
    if outlook.unknown == outlook.launches:
        return
    for boundary, count in outlook.passes.items():
        yield f"  pass to {boundary}: {count:,} rows to be computed" if count else f"  pass to {boundary}: none, all rows are there"
    yield f"  disk: {outlook.bytes / 1e6:,.1f} MB to be written; {outlook.there:,} rows are there"
    yield f"  time: about {words.duration(outlook.seconds)} on this machine ({words.count(cores(), 'core')})"


def _at(size: int) -> str:
    return f" at {size} px" if size else ""
