"""The process that runs a run, or a group of them as one: `python -m regraft.worker RUN_DIR...`, once for each rank; it knows no Hydra."""

from __future__ import annotations

import atexit
import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from regraft import files, stopping
from regraft.errors import facts
from regraft.record import LOG, RunFolder

PATIENCE = 30  # seconds that an orphan has to save and end
STOPPED = stopping.Stopped.__name__  # the kind of error that a worker leaves which was told to stop, and has saved
TOLD = 75  # the exit status of a worker that was told to stop


def main(folders: Sequence[RunFolder], show: bool) -> int:
    """Exit status 0: the runs have ended, each as its record says. Else 1, or TOLD, and beside the record of each that has not lies
    the rank's error for the parent to read.

    A group writes one log, the first folder's; the others' name it. `show`: talk to the terminal too.
    """
    rank = int(os.environ.get("RANK", 0))
    end_with_parent()
    with (folders[0] / LOG).open("a", encoding="utf-8") as log, ExitStack() as locks:
        logging.basicConfig(stream=log, level=logging.INFO, format=f"%(asctime)s rank {rank} %(levelname)s %(name)s: %(message)s")
        logging.captureWarnings(True)
        try:
            stopping.listener.listen()
            for folder in folders if rank == 0 else ():
                locks.callback(folder.hold().release)
                for left in folder.path.glob(
                    ".[!.]*.part"
                ):  # by one that was killed while it wrote; other ranks' errors begin with two dots
                    left.unlink(missing_ok=True)
                if folder is not folders[0]:
                    with (folder / LOG).open("a", encoding="utf-8") as other:
                        other.write(f"runs in a group, whose log is {folders[0] / LOG}\n")
            from regraft.running import execute

            execute(folders, _console(log, show and rank == 0), show and rank == 0 and sys.stdout.isatty())
        except BaseException as error:
            stopping.listener.ignore()
            log.write(traceback.format_exc())
            for folder in folders:
                if folder.record["status"] == "running":
                    _leave(folder, rank, error)
            return TOLD if isinstance(error, stopping.Stopped) else 1
    return 0


def forked(paths: Sequence[str], show: bool, surroundings: Mapping[str, str]) -> None:
    """`main` in a process that has just been forked from a warm server: first it becomes what a process started for it would be.

    `surroundings`: its whole environment. Ends with its parent, the controller: the server, whose child it is, says nothing of that.
    """
    os.setsid()  # its own group, so that it can be ended with all that it starts
    for number in stopping.SIGNALS:  # until `main` listens, and can tell of them
        signal.signal(number, signal.SIG_DFL)
    multiprocessing.set_start_method(None, force=True)  # the system's own way for its loader workers; they need no server
    atexit._clear()  # what the server's imports want done at the end is for the server's end
    os.environ.clear()
    os.environ.update(surroundings)
    sys.argv = ["regraft.worker", *paths]
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    folders = [RunFolder(path) for path in paths]
    if not show:
        with open(os.devnull, "ab") as nothing, (folders[0] / LOG).open("ab") as log:
            os.dup2(nothing.fileno(), 1)
            os.dup2(log.fileno(), 2)
    status = main(folders, show)
    atexit._run_exitfuncs()  # multiprocessing leaves them out, and a logger may have its last lines to send
    if wait([parent.sentinel], 0):
        os.killpg(0, signal.SIGKILL)  # nobody is left who would end what this process has started
    sys.exit(status)


def _end_with(sentinel: int) -> None:
    """Wait until the controller is gone, then have this process save, and end it and all that it started."""
    wait([sentinel])
    if stopping.listener.told is None:  # else it is saving, and another word would end that
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE)
    os.killpg(0, signal.SIGKILL)


def _console(log: Any, show: bool) -> Any:
    """Says things into log.txt and, for a single run, on the terminal."""
    from rich.console import Console

    consoles = [Console(file=log, width=100, no_color=True), *([Console(highlight=False)] if show else [])]

    def say(what: Any) -> None:
        for console in consoles:
            console.print(what, markup=False)
            console.file.flush()

    return say


def _leave(folder: RunFolder, rank: int, error: BaseException) -> None:
    """The rank's error, whole, for the parent; the earliest of all ranks is the cause of the others."""
    files.write_json(error_file(folder, rank), facts(error, rank))


def error_file(folder: RunFolder, rank: int) -> Path:
    return folder / f".error-{rank}.json"


def end_with_parent() -> None:
    """Ask Linux to end this process when its parent dies, so that no orphan trains on."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    words = sys.argv[1:]
    sys.exit(main([RunFolder(word) for word in words if word != "--show"], "--show" in words))
