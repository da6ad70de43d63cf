"""A worker on this machine from its start to its end: forked from a server that has loaded the frameworks, or under torchrun."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import SimpleQueue
from types import ModuleType
from typing import Any

from regraft import worker
from regraft.hardware import SHARE, cores
from regraft.record import LOG, RunFolder

FOREIGN = ("LOCAL_RANK", "RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
FOREIGN_PREFIXES = ("MASTER_", "PL_", "TORCHELASTIC_", "SLURM_")
FORKS = sys.platform == "linux"  # elsewhere a fork is not safe once the frameworks are loaded
PATIENCE = 30  # seconds that a worker has to save and end
OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1}  # what ends a worker that has made no mistake
TAIL = 65536  # bytes of a log in which torchrun's last words are looked for
SUMMARY = re.compile(rb"Root Cause.*?exitcode\s*:\s*(-?\d+)", re.DOTALL)  # torchrun's, of the rank that ended first


@dataclass(frozen=True)
class Share:
    """What a worker may take of this machine."""

    cores: int
    gpus: tuple[str, ...] | None = None  # as CUDA_VISIBLE_DEVICES names them; None: all that are visible


class Worker:
    """A worker at work on its runs, the leader of its own process group."""

    def __init__(self, folders: Sequence[RunFolder], devices: int, pid: int, join: Callable[[], int], ends: SimpleQueue[Worker]) -> None:
        """`join` waits for its end and gives its exit status; the worker itself is then put into `ends`."""
        self.folders, self.devices, self.pid, self.status = list(folders), devices, pid, 0
        log = self.folders[0] / LOG
        self._said = log.stat().st_size if log.is_file() else 0  # bytes of earlier attempts
        self._over, self._settled = threading.Event(), False
        threading.Thread(target=self._wait, args=(join, ends), daemon=True).start()

    def _wait(self, join: Callable[[], int], ends: SimpleQueue[Worker]) -> None:
        self.status = join()
        self._over.set()
        ends.put(self)

    def tell(self, number: signal.Signals) -> None:
        """A signal for all of its group, or for the worker alone where it has not come to lead one yet."""
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):  # the latter is a Mac's word for a group of which nobody is left
            if not self._over.is_set():
                with suppress(ProcessLookupError):
                    os.kill(self.pid, number)

    def stop(self) -> None:
        """End it, first kindly, and whatever it has left behind."""
        try:
            if not self._over.is_set():
                self.tell(signal.SIGTERM)
                self._over.wait(PATIENCE)
        finally:  # also where the user won't wait
            self.tell(signal.SIGKILL)
            self._over.wait(PATIENCE)

    def settle(self) -> bool:
        """Write into the records of runs that have not ended what has kept them from it. Whether it is to be started again: a run for
        which a GPU's memory was too small goes on with micro-batches of half the size."""
        if self._settled:
            return False
        self._settled = True
        self.tell(signal.SIGKILL)  # whatever it has left behind
        killer = self._killer()
        for folder in self.folders:
            error = _first_error(folder)
            if folder.record["status"] != "running":
                continue
            outside = killer in OUTSIDE and (error is None or self.devices > 1)  # what the other ranks say is an echo
            if outside or error is None:
                error = {"kind": "Killed", "message": self._ending(killer), "rank": None}
            if error["kind"] == worker.MEMORY and len(self.folders) == 1 and _halve(folder):
                return True
            folder.update(status="running" if outside or error["kind"] == worker.STOPPED else "failed", error=error)
        return False

    def _killer(self) -> int:
        """The number of the signal that has ended the worker, or the first of its ranks; 0: none."""
        if self.devices > 1 and self.status > 0:
            with suppress(OSError), (self.folders[0] / LOG).open("rb") as log:
                log.seek(max(self._said, log.seek(0, os.SEEK_END) - TAIL))
                if said := SUMMARY.search(log.read()):
                    return max(0, -int(said[1]))
        return max(0, -self.status)

    def _ending(self, killer: int) -> str:
        if killer:
            with suppress(ValueError):
                name = signal.Signals(killer).name
                return f"the worker was ended by {name}" + (
                    " (somebody's, or the system's for want of memory)" if name == "SIGKILL" else ""
                )
        return f"the worker ended with status {self.status} and left no error; its last words are in {self.folders[0] / LOG}"


def start(folders: Sequence[RunFolder], devices: int, show: bool, share: Share, ends: SimpleQueue[Worker]) -> Worker:
    """A worker for the runs of these folders, which are begun; `show`: it talks to this terminal, else its words go to the first
    folder's log.txt alone. To be called by the main thread: a worker ends with the thread that has started it."""
    for folder in folders:
        for stale in folder.path.glob(".error-*.json"):
            stale.unlink()
    if FORKS and devices == 1:
        with suppress(OSError, EOFError):  # the server died while it loaded: a worker of its own will meet the same, and tell it
            return _forked(folders, show, share, ends)
    return _fresh(folders, devices, show, share, ends)


def run(folders: Sequence[RunFolder], devices: int, show: bool = False, share: Share | None = None) -> None:
    """One worker's whole life. Raises KeyboardInterrupt where this process is told to stop, when the worker has saved and ended."""
    ends: SimpleQueue[Worker] = SimpleQueue()
    with heeded():
        started = start(folders, devices, show, share or Share(cores()), ends)
        try:
            while ends.get() and started.settle():
                started = start(folders, devices, show, share or Share(cores()), ends)
        finally:
            started.stop()
            started.settle()


def warm() -> None:
    """Have the server load what workers need, beside what this process does meanwhile; it ends with this process. Returns at once."""
    if FORKS:
        from multiprocessing import forkserver

        multiprocessing.get_context("forkserver").set_forkserver_preload(["regraft.launchers.preload"])
        forkserver.ensure_running()


def environment(devices: int, share: Share | None = None) -> dict[str, str]:
    """This process's environment without what another launcher has left in it: a worker must not take part in a stranger's world.

    The cores are shared out among the ranks, unless OMP_NUM_THREADS says otherwise.
    """
    share = share or Share(cores())
    own = {name: value for name, value in os.environ.items() if name not in FOREIGN and not name.startswith(FOREIGN_PREFIXES)}
    mine = {SHARE: str(share.cores)} | ({"CUDA_VISIBLE_DEVICES": ",".join(share.gpus)} if share.gpus is not None else {})
    return {"OMP_NUM_THREADS": str(max(1, share.cores // devices)), **own, **mine}


@contextmanager
def heeded() -> Iterator[None]:
    """Inside, being told to end (SIGTERM, SIGHUP) is as being interrupted, so that workers are told, and waited for."""
    main = threading.current_thread() is threading.main_thread()
    heard = [number for number in (signal.SIGTERM, signal.SIGHUP) if main and signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, _interrupted) for number in heard}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _interrupted(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _forked(folders: Sequence[RunFolder], show: bool, share: Share, ends: SimpleQueue[Worker]) -> Worker:
    """From the warm server. Raises OSError or EOFError where there is none to be had."""
    warm()
    arguments = ([str(folder.path) for folder in folders], show, environment(1, share))
    process = multiprocessing.get_context("forkserver").Process(target=worker.forked, args=arguments)
    with _nameless_main():
        process.start()
    assert process.pid is not None

    def join() -> int:
        process.join()
        return process.exitcode or 0

    return Worker(folders, 1, process.pid, join, ends)


def _fresh(folders: Sequence[RunFolder], devices: int, show: bool, share: Share, ends: SimpleQueue[Worker]) -> Worker:
    """From nothing; its own process for each device, under torchrun, where there are several."""
    own = ["-m", "regraft.worker", *(str(folder.path) for folder in folders), *(["--show"] if show else [])]
    ranks = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(devices)]
    command = [sys.executable, *(ranks if devices > 1 else []), *own]
    with (folders[0] / LOG).open("ab") as log:
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": log}
        if show:
            quiet = {"stderr": log} if devices > 1 else {}
        process = subprocess.Popen(
            command,
            env=environment(devices, share),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=worker.end_with_parent,
            **quiet,
        )
    return Worker(folders, devices, process.pid, process.wait, ends)


def _halve(folder: RunFolder) -> bool:
    """Have the run go on with micro-batches of half the size, accumulated over twice as many: the global batch, and so the result, stays.
    Whether there was something to halve."""
    record = folder.record
    if (record.get("batch") or {}).get("micro", 1) < 2:
        return False
    folder.update(halved=record.get("halved", 0) + 1)
    return True


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
