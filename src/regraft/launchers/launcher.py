"""What a launcher is: it is handed groups of runs, has a worker run each as soon as there is room, and tells when each has ended."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from regraft.record import RunFolder


class Group(Protocol):
    """Runs that one worker runs together: one run, or what trains as one batch of heads."""

    @property
    def devices(self) -> int:
        """Devices that its worker takes."""

    @property
    def gpus(self) -> bool:
        """Whether these are GPUs."""

    @property
    def folders(self) -> Sequence[RunFolder]:
        """Its run folders, whether they have been begun or not."""

    def begin(self) -> Sequence[RunFolder]:
        """Claims its runs and writes their configs and records: called right before they are handed on. What is left of it to run, which
        may be nothing: done or claimed by another process in the meantime. Raises UserError for a single run that another process holds."""

    def ended(self) -> bool:
        """To be called when the worker has ended and the records say what became of the runs. Lets go of them; whether other groups
        shall still be begun."""


class Launcher(Protocol):
    """How groups get their workers."""

    def launch(self, groups: Sequence[Group], show: bool) -> None:
        """Runs all groups, each begun when there is room for it, and returns when the last has ended. Every run's record then says `done`
        or `failed`, or `running` with an error where its worker was ended from outside: the same command goes on with it.

        `show`: the worker of a single run talks to this terminal. Raises KeyboardInterrupt where this process is told to stop, when
        its workers have saved and ended.
        """

    def busy(self, jobs: Collection[str]) -> set[str]:
        """Which of these jobs, that an earlier command has handed on (their records' `job`), still wait or run somewhere without it."""
