"""The process that runs one run: `python -m regraft.worker RUN_DIR`, once for each rank; it knows no Hydra."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from regraft import files
from regraft.errors import UserError
from regraft.record import LOG, RunFolder


def main(arguments: list[str]) -> int:
    """Exit status 0: the run is done. Else 1, and the rank's error lies beside the record for the parent to read."""
    show = "--show" in arguments
    folder = RunFolder(next(word for word in arguments if not word.startswith("--")))
    rank = int(os.environ.get("RANK", 0))
    end_with_parent()
    log = (folder / LOG).open("a", encoding="utf-8")
    logging.basicConfig(stream=log, level=logging.INFO, format=f"%(asctime)s rank {rank} %(levelname)s %(name)s: %(message)s")
    logging.captureWarnings(True)
    lock = None
    try:
        if rank == 0:
            lock = folder.hold()
        from regraft.running import execute

        execute(folder, _console(log, show and rank == 0), show and rank == 0 and sys.stdout.isatty())
    except BaseException as error:
        log.write(traceback.format_exc())
        log.flush()
        _leave(folder, rank, error)
        return 1
    finally:
        if lock is not None:
            lock.release()
        log.close()
    return 0


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
    kind = type(error).__name__
    problems = [list(map(str, problem)) for problem in error.problems] if isinstance(error, UserError) else []
    message = "\n".join(str(problem) for problem in error.problems) if isinstance(error, UserError) else str(error)
    files.write_json(error_file(folder, rank), {"kind": kind, "message": message, "problems": problems, "rank": rank})


def error_file(folder: RunFolder, rank: int) -> Path:
    return folder / f".error-{rank}.json"


def end_with_parent() -> None:
    """Ask Linux to end this process when its parent dies, so that no orphan trains on."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
