"""Start workers on this machine: forked from a server that has loaded the frameworks, or one for each device under torchrun."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import Any, NamedTuple

from regraft import worker
from regraft.hardware import cores
from regraft.record import LOG, RunFolder

FOREIGN = ("LOCAL_RANK", "RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
FOREIGN_PREFIXES = ("MASTER_", "PL_", "TORCHELASTIC_")
FORKS = sys.platform == "linux"  # elsewhere a fork is not safe once the frameworks are loaded
PATIENCE = 10  # seconds that a worker has for its own end


class Started(NamedTuple):
    """A worker at work, the leader of its own process group."""

    pid: int
    status: Callable[[float | None], int | None]  # its exit status, waited for so many seconds (null: for ever); null: it still runs


def launch(folders: Sequence[RunFolder], devices: int, show: bool) -> None:
    """Run the folders' runs in one worker and wait for it; afterwards each folder's record says `done` or `failed`.

    `show`: the worker talks to this terminal; else its words go to the first folder's log.txt alone. A worker is told to stop when
    this process is interrupted or terminated, and is waited for.
    """
    for folder in folders:
        for stale in folder.path.glob(".error-*.json"):
            stale.unlink()
    previous = {number: signal.signal(number, _interrupted) for number in (signal.SIGTERM,) if _main_thread()}
    started = None
    try:
        started = _start(folders, devices, show)
        status = started.status(None)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if started:
            _stop(started)
    assert status is not None
    for folder in folders:
        error = _first_error(folder) or {"kind": "Killed", "message": _ending(status, folders[0]), "rank": None}
        if folder.record["status"] == "running":
            folder.update(status="failed", error=error)


def warm() -> None:
    """Have the server load what workers need, beside what this process does meanwhile; it ends with this process. Returns at once."""
    if FORKS:
        from multiprocessing import forkserver

        multiprocessing.get_context("forkserver").set_forkserver_preload(["regraft.launchers.preload"])
        forkserver.ensure_running()


def environment(devices: int) -> dict[str, str]:
    """This process's environment without what another launcher has left in it: a worker must not take part in a stranger's world.

    The cores are shared out among the ranks, unless OMP_NUM_THREADS says otherwise.
    """
    own = {name: value for name, value in os.environ.items() if name not in FOREIGN and not name.startswith(FOREIGN_PREFIXES)}
    return {"OMP_NUM_THREADS": str(max(1, cores() // devices)), **own}


def _start(folders: Sequence[RunFolder], devices: int, show: bool) -> Started:
    if FORKS and devices == 1:
        with suppress(OSError, EOFError):  # the server died while it loaded: a worker of its own will meet the same, and tell it
            return _forked(folders, show)
    return _fresh(folders, devices, show)


def _forked(folders: Sequence[RunFolder], show: bool) -> Started:
    """From the warm server. Raises OSError or EOFError where there is none to be had."""
    warm()
    arguments = ([str(folder.path) for folder in folders], show, environment(1))
    process = multiprocessing.get_context("forkserver").Process(target=worker.forked, args=arguments)
    with _nameless_main():
        process.start()
    assert process.pid is not None

    def status(seconds: float | None) -> int | None:
        process.join(seconds)
        return process.exitcode

    return Started(process.pid, status)


def _fresh(folders: Sequence[RunFolder], devices: int, show: bool) -> Started:
    """From nothing; its own process for each device, under torchrun, where there are several."""
    own = ["-m", "regraft.worker", *(str(folder.path) for folder in folders), *(["--show"] if show else [])]
    ranks = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(devices)]
    command = [sys.executable, *(ranks if devices > 1 else []), *own]
    with (folders[0] / LOG).open("ab") as log:
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": log}
        if show:
            quiet = {"stderr": log} if devices > 1 else {}
        process = subprocess.Popen(
            command, env=environment(devices), stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=worker.end_with_parent, **quiet
        )

    def status(seconds: float | None) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(seconds)
        return None

    return Started(process.pid, status)


@contextmanager
def _nameless_main() -> Iterator[None]:
    """While a process starts: multiprocessing would have it run this program's main module once more, guarded or not."""
    main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _first_error(folder: RunFolder) -> dict[str, Any] | None:
    """The first cause: the earliest error that a rank left; the others often only echo it."""
    left = sorted(folder.path.glob(".error-*.json"), key=lambda path: path.stat().st_mtime_ns)
    errors = [json.loads(path.read_text()) for path in left]
    for path in left:
        path.unlink()
    return errors[0] if errors else None


def _ending(status: int, first: RunFolder) -> str:
    if status < 0:
        with suppress(ValueError):
            return f"the worker was ended by {signal.Signals(-status).name}"
    return f"the worker ended with status {status} and left no error; its last words are in {first / LOG}"


def _stop(started: Started) -> None:
    """End the worker, first kindly, and whatever it has left behind."""
    try:
        if started.status(0) is None:
            _tell(started, signal.SIGTERM)
            started.status(PATIENCE)
    finally:  # also where the user won't wait
        _tell(started, signal.SIGKILL)
        started.status(PATIENCE)


def _tell(started: Started, number: signal.Signals) -> None:
    """A signal for all of the worker's group, or for the worker alone where it has not come to lead one yet."""
    try:
        os.killpg(started.pid, number)
    except (ProcessLookupError, PermissionError):  # the latter is a Mac's word for a group of which nobody is left
        if started.status(0) is None:
            with suppress(ProcessLookupError):
                os.kill(started.pid, number)


def _interrupted(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()
