"""So many workers at once on this machine, which share its cores and GPUs."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Collection, Sequence
from queue import SimpleQueue
from typing import Literal

from regraft.hardware import cores, visible_gpus
from regraft.launchers.launcher import Group
from regraft.launchers.workers import Share, Worker, heeded, start, unbroken


class Launcher:
    """As `launchers.launcher` says."""

    def __init__(self, jobs: int | Literal["auto"]) -> None:
        self.jobs = jobs

    def launch(self, groups: Sequence[Group], show: bool) -> None:
        waiting, room = deque(groups), Room(self.jobs, any(group.gpus for group in groups))
        running: dict[Worker, tuple[Group, Share]] = {}
        ends: SimpleQueue[Worker] = SimpleQueue()
        with heeded():
            try:
                while waiting or running:
                    while waiting and (share := room.take(waiting[0].devices, waiting[0].gpus)):
                        group = waiting.popleft()
                        if folders := group.begin():
                            with unbroken():
                                running[start(folders, group.devices, show, share, ends)] = group, share
                        else:
                            room.give(share)
                    if running:
                        ended = ends.get()
                        group, share = running.pop(ended)
                        if left := ended.settle():
                            with unbroken():
                                running[start(left, group.devices, show, share, ends)] = group, share
                            continue
                        room.give(share)
                        if not group.ended():
                            waiting.clear()
            finally:
                for worker in running:  # all at once: each may save while the others do
                    worker.tell(signal.SIGTERM)
                for worker, (group, _) in running.items():
                    worker.stop()
                    worker.settle()
                    group.ended()

    def busy(self, jobs: Collection[str]) -> set[str]:
        """None: workers here end with their controller."""
        return set()


class Room:
    """The cores and GPUs that more workers may have."""

    def __init__(self, jobs: int | Literal["auto"], gpus: bool) -> None:
        """`gpus`: whether any of the workers needs some."""
        count, named = visible_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")
        self._gpus = [name.strip() for name in named.split(",")][:count] if named else [str(number) for number in range(count)]
        self._jobs = jobs if isinstance(jobs, int) else max(1, count if gpus else 1)
        self._cores, self._several = max(1, cores() // self._jobs), self._jobs > 1

    def take(self, devices: int, gpus: bool) -> Share | None:
        """A worker's share, of so many devices; None: it must wait."""
        if not self._jobs or (gpus and len(self._gpus) < devices):
            return None
        self._jobs -= 1
        if not gpus or not self._several:
            return Share(self._cores)
        mine, self._gpus = tuple(self._gpus[:devices]), self._gpus[devices:]
        return Share(self._cores, mine)

    def give(self, share: Share) -> None:
        """It is free again."""
        self._jobs += 1
        self._gpus += share.gpus or ()
