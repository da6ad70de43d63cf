"""A worker is told by a signal to stop: while it trains, when what it has learnt is saved; else at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
ECHO = 2.0  # seconds in which the same word may come again by another way (a scheduler's, and the controller's): it counts once


class Stopped(BaseException):
    """Raised where a worker stops because it was told to: no mistake, and nothing that handlers of errors should take for one."""


class Listener:
    """What this process has been told."""

    def __init__(self) -> None:
        self.told: signal.Signals | None = None
        self._at = 0.0  # s, when
        self._heard_later = False
        self._parent = os.getppid()

    def listen(self) -> None:
        """From here on signals are heard; to be called in the main thread."""
        self._parent = os.getppid()
        for number in SIGNALS:
            signal.signal(number, self.hear)

    def ignore(self) -> None:
        """From here on they are not: the process ends anyway."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def hear(self, number: int, frame: Any) -> None:
        """Stop at once, or inside `later` note it; a second word stops at once anyhow. Raises Stopped."""
        now = time.monotonic()
        if self.told is None:
            self.told, self._at = signal.Signals(number), now
            if self._heard_later:
                return
        elif (
            now - self._at < ECHO or os.getppid() != self._parent
        ):  # the system's word that the parent is gone keeps nothing from being saved
            return
        self.stop("at once; what was saved before stands")

    @contextmanager
    def later(self, trainer: Any) -> Iterator[None]:
        """Inside, where this Lightning trainer fits, a word to stop ends nothing: what is called there looks at `told`, saves and calls
        `stop`. Raises Stopped at the end at the latest."""
        trainer._signal_connector.register_signal_handlers = lambda: None  # its own would take the place of `hear`
        self._check()
        self._heard_later = True
        try:
            yield
        finally:
            self._heard_later = False
        self._check()

    def stop(self, where: str) -> NoReturn:
        """Raises Stopped. `where`: how far the run has come."""
        raise Stopped(f"stopped by {self.told.name if self.told else 'a signal to another rank'}, {where}")

    def _check(self) -> None:
        if self.told:
            self.stop("at once; what was saved before stands")


listener = Listener()


def reader(number: int) -> None:
    """Called in each process that reads pictures for this one: it ends at its parent's word alone, or with it. A signal to the whole group
    must not take the pictures from a parent that still has a step to end."""
    if not hasattr(signal, "sigwaitinfo"):  # a Mac: nobody can say there whose word it is
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_await, args=(os.getppid(),), daemon=True).start()


def _await(parent: int) -> None:
    while signal.sigwaitinfo(SIGNALS).si_pid != parent:
        pass
    os._exit(0)
