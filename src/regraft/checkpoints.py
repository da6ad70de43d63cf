"""Checkpoints of a run: written whole, the one before kept; a damaged one is noticed, and the one before it taken.

`last.ckpt` is what Lightning makes of a phase, or what a stack keeps of one head. Under "regraft" lies how far the run has come: `phase`,
`over` (the phase has ended), `epochs` (whole ones that are done, over all phases), `step` (of the next one that are done), the division of
the batch by which Lightning has counted, and what the judge knows.
"""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import CheckpointIO

from regraft import files
from regraft.errors import Problem, UserError
from regraft.record import CHECKPOINT, PREVIOUS, RunFolder

NEXT = "next.ckpt"  # whole, and about to become the last
SHARE = 20  # within an epoch, so many times as long as a checkpoint takes is trained before the next


class Due:
    """When the next checkpoint is due."""

    def __init__(self, seconds: float) -> None:
        """`seconds` between two; 0: at the end of each epoch, and within none."""
        self.seconds, self._saved, self._took = seconds, time.monotonic(), 0.0

    def now(self) -> bool:
        """At the end of an epoch."""
        return time.monotonic() - self._saved >= self.seconds

    def within(self) -> bool:
        """After a step within one."""
        return self.seconds > 0 and self.now() and time.monotonic() - self._saved >= SHARE * self._took

    @contextmanager
    def saving(self, all: bool = True) -> Iterator[None]:
        """Inside, one is made; `all`: of all runs that train together, so that none is due for some time."""
        began = time.monotonic()
        yield
        if all:
            self._saved = time.monotonic()
            self._took = self._saved - began


class Checkpoints(CheckpointIO):
    """Where Lightning's checkpoints of a run go, and come from."""

    def __init__(self, folder: RunFolder, found: dict[str, Any] | None = None) -> None:
        """`found`: what has been read already, and is to be gone on with."""
        self.folder, self.found = folder, found

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write(self.folder, checkpoint)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        assert self.found is not None
        found, self.found = self.found, None  # once is enough, and its memory can go
        return found

    def remove_checkpoint(self, path: Any) -> None:
        """Only the one before the last is ever removed, by `write`."""


def write(folder: RunFolder, checkpoint: Mapping[str, Any]) -> None:
    """The folder's last checkpoint; what was the last is now the one before. However the process ends, one of them is whole."""
    with files.whole(folder / NEXT) as part:
        torch.save(checkpoint, part)
    with suppress(FileNotFoundError):
        (folder / CHECKPOINT).replace(folder / PREVIOUS)
    (folder / NEXT).replace(folder / CHECKPOINT)


def read(folder: RunFolder, say: Callable[[str], None]) -> dict[str, Any]:
    """What an interrupted run has left; empty where there is nothing. Where the last checkpoint is damaged, the one before it, and `say` is
    told. Raises UserError where that can't be read either."""
    broken = None
    for path in (folder / CHECKPOINT, folder / PREVIOUS):
        if not path.is_file():
            continue
        try:
            found = _read(path)
        except Exception as error:  # torch and zipfile raise many kinds for a damaged file
            remedy = f"the checkpoint can't be read ({str(error).partition(chr(10))[0][:100]}); remove it to start this run again"
            broken = broken or Problem(str(path), None, remedy)
            continue
        if broken:
            say(f"{CHECKPOINT} is damaged: {PREVIOUS} takes its place, and what was done since it was written is done again")
        return found
    if broken:
        raise UserError(broken)
    return {}


def remove(folder: RunFolder) -> None:
    """Once a run is done nothing goes on from its checkpoints, and they are four times as large as its weights."""
    for name in (CHECKPOINT, PREVIOUS):
        (folder / name).unlink(missing_ok=True)


def divided(checkpoint: dict[str, Any], accumulate: int) -> dict[str, Any]:
    """As if it had been written under another division of the batch: Lightning counts micro-batches, of which a step now has `accumulate`.
    `checkpoint` itself is left as it is."""
    mine = checkpoint["regraft"]
    if not mine.get("step") or mine["accumulate"] == accumulate:
        return checkpoint
    loop = checkpoint["loops"]["fit_loop"]
    progress = loop["epoch_loop.batch_progress"]

    def counted(name: str, count: int) -> int:
        left = int(name == "completed")  # it was written when the last micro-batch of a step was processed, but not completed
        return (count + left) // mine["accumulate"] * accumulate - left

    both = {which: {name: counted(name, count) for name, count in progress[which].items()} for which in ("total", "current")}
    loop = {**loop, "epoch_loop.batch_progress": {**progress, **both}}
    return {**checkpoint, "loops": {**checkpoint["loops"], "fit_loop": loop}}


def _read(path: Path) -> dict[str, Any]:
    """Raises what zipfile and torch raise for a damaged file, ValueError for a wrong checksum, KeyError for what is no run's checkpoint."""
    with zipfile.ZipFile(path) as archive:
        if wrong := archive.testzip():
            raise ValueError(f"{wrong} has not the checksum that was written")
    found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    mine = found["regraft"]
    mine["best"]["state"], mine["epochs"], mine["over"]
    found["stacked" if "stacked" in found else "state_dict"]
    return found
