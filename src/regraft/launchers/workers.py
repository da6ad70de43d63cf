"""A worker on this machine from its start to its end: forked from a server that has loaded the frameworks, or started by torchrun."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType
from typing import Any, cast

from regraft import ranks, worker
from regraft.errors import FULL, killed
from regraft.hardware import SHARE, cores
from regraft.record import LOG, RunFolder

FOREIGN = ("LOCAL_RANK", "RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
FOREIGN_PREFIXES = ("MASTER_", "PL_", "TORCHELASTIC_", "SLURM_")
FORKS = sys.platform == "linux"  # elsewhere a fork is not safe once the frameworks are loaded
PATIENCE = 30  # seconds that a worker has to save and end
OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1}  # what ends a worker that has made no mistake
ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # what tells a controller to have its workers save and end
SUMMARY = re.compile(rb"Root Cause.*?exitcode\s*:\s*(-\d+)", re.DOTALL)  # torchrun's last words, of a rank that a signal has ended
NOTICE = 3  # seconds that ranks have to notice that another has failed
LOST = 255  # multiprocessing's word for the exit status of a process whose server is gone


@dataclass(frozen=True)
class Share:
    """What a worker may take of this machine."""

    cores: int
    gpus: tuple[str, ...] | None = None  # as CUDA_VISIBLE_DEVICES names them; None: all that are visible


class Worker:
    """A worker at work on its runs: one process for each device, or torchrun that starts them; each leads its own process group."""

    def __init__(
        self, folders: Sequence[RunFolder], devices: int, pids: Sequence[int], join: Callable[[], int], ends: SimpleQueue[Worker]
    ) -> None:
        """`join` waits for its end and gives its exit status, that of the rank that failed first; the worker is then put into `ends`."""
        self.folders, self.devices, self.pids, self.status = list(folders), devices, list(pids), 0
        self._over, self._settled, self._told = threading.Event(), False, False
        threading.Thread(target=self._wait, args=(join, ends), daemon=True).start()

    def _wait(self, join: Callable[[], int], ends: SimpleQueue[Worker]) -> None:
        try:
            self.status = join()
        finally:
            self._over.set()
            ends.put(self)

    def tell(self, number: signal.Signals) -> None:
        """A signal for all of its groups, or for a process alone where it has not come to lead one yet."""
        self._told = True
        for pid in self.pids:
            try:
                os.killpg(pid, number)
            except (ProcessLookupError, PermissionError):  # the latter is a Mac's word for a group of which nobody is left
                if not self._over.is_set():
                    with suppress(ProcessLookupError):
                        os.kill(pid, number)

    def stop(self) -> None:
        """End it, first kindly, and whatever it has left behind. One that was told already is only waited for: a second word would keep
        it from saving."""
        try:
            if not self._over.is_set():
                if not self._told:
                    self.tell(signal.SIGTERM)
                self._over.wait(PATIENCE)
        finally:  # also where the user won't wait
            self.tell(signal.SIGKILL)
            self._over.wait(PATIENCE)

    def settle(self) -> list[RunFolder]:
        """Write into the records of runs that have not ended what has kept them from it. Those for which a GPU's memory was too small are
        given: they are to be started again, and take less."""
        if self._settled:
            return []
        self._settled = True
        self.tell(signal.SIGKILL)  # whatever it has left behind
        killer = max(0, -self.status)
        for folder in filter(lambda folder: folder.exists, self.folders):  # somebody may have removed it
            error, record = _first_error(folder), folder.record
            there = (record.get("resolved") or {}).get("world", self.devices)
            if record["status"] == "done" and there != self.devices:
                told = f"{self.devices} devices were asked for, {there} took part"
                folder.update(status="failed", error={"kind": "RuntimeError", "message": told, "problems": [], "rank": None})
            if record["status"] != "running":
                continue
            # what other ranks say of one that a signal has ended is an echo; but a GPU's want of memory is a cause
            echo = bool(error and killer and self.devices > 1 and error["kind"] != FULL)
            outside = self.status == LOST or (killer in OUTSIDE and (error is None or echo))
            if outside or error is None or echo:
                heard = f"; of which another rank says: {error['message']}" if error and not outside else ""
                error = killed(self._ending(killer) + heard)
            if error["kind"] == FULL and (left := _halved(self.folders, error)):
                return left
            folder.update(status="running" if outside or error["kind"] == worker.STOPPED else "failed", error=error)
        return []

    def _ending(self, killer: int) -> str:
        if self.status == LOST:
            return "the server of the workers has gone, and the worker with it"
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
    if FORKS:
        with suppress(OSError, EOFError):  # the server died while it loaded: a worker of its own will meet the same, and tell it
            return _forked(folders, devices, show, share, ends)
    return _fresh(folders, devices, show, share, ends)


def run(folders: Sequence[RunFolder], devices: int, show: bool = False, share: Share | None = None) -> None:
    """One worker's whole life. Raises KeyboardInterrupt where this process is told to stop, when the worker has saved and ended."""
    ends: SimpleQueue[Worker] = SimpleQueue()
    started: Worker | None = None
    with heeded():
        try:
            left = list(folders)
            while left:
                with unbroken():
                    started = start(left, devices, show, share or Share(cores()), ends)
                left = ends.get().settle()
        finally:
            if started:
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
def heeded(signals: Sequence[signal.Signals] = ENDING) -> Iterator[None]:
    """Inside, being told to end is as being interrupted, so that workers are told, and waited for."""
    main = threading.current_thread() is threading.main_thread()
    heard = [number for number in signals if main and signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, _interrupted) for number in heard}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def unbroken() -> Iterator[None]:
    """Inside, no word to stop is heard before the end: a worker that has been started and is not yet known here would never be told."""
    main = threading.current_thread() is threading.main_thread()
    heard: list[int] = []
    numbers = [number for number in (signal.SIGINT, *ENDING) if main and callable(signal.getsignal(number))]
    previous = {number: signal.signal(number, lambda number, frame: heard.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for told in heard:
            signal.raise_signal(told)


def _interrupted(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _forked(folders: Sequence[RunFolder], devices: int, show: bool, share: Share, ends: SimpleQueue[Worker]) -> Worker:
    """From the warm server, a process for each device. Raises OSError or EOFError where there is none to be had."""
    warm()
    paths, meeting, processes = [str(folder.path) for folder in folders], folders[0] / f".meeting-{secrets.token_hex(4)}", []
    for rank in range(devices):
        arguments = (paths, show and rank == 0, environment(devices, share) | _rank(rank, devices, meeting))
        process = multiprocessing.get_context("forkserver").Process(target=worker.forked, args=arguments)
        with _nameless_main():
            process.start()
        processes.append(process)

    def join() -> int:
        try:
            status = _joined(processes)
            return _outlived(processes) if status == LOST else status
        finally:
            meeting.unlink(missing_ok=True)

    return Worker(folders, devices, [process.pid for process in processes if process.pid is not None], join, ends)


def _rank(rank: int, world: int, meeting: Path) -> dict[str, str]:
    """The environment by which a rank knows its place, as torchrun makes it; the port is found at the meeting."""
    if world == 1:
        return {}
    places = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    own = {"TORCHELASTIC_RUN_ID": meeting.name, "TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    return {name: str(place) for name, place in places.items()} | own | {"MASTER_ADDR": "127.0.0.1", ranks.MEETING: str(meeting)}


def _joined(processes: Sequence[BaseProcess]) -> int:
    """Wait for all ranks; the exit status of the first that failed, or 0. The others then have some seconds to notice, as they do when
    they next speak to it, and are ended."""
    left, first, signals = {process.sentinel: process for process in processes}, 0, [signal.SIGKILL, signal.SIGTERM]
    while left:
        patience = {0: None, worker.TOLD: PATIENCE}.get(first, NOTICE)  # one that was told to stop has saved; the others follow
        for sentinel in wait(list(left), patience if signals else None):
            process = left.pop(cast(int, sentinel))
            process.join()
            first = first or process.exitcode or 0
            break
        else:
            number = signals.pop()
            for process in left.values():
                with suppress(ProcessLookupError):
                    os.killpg(cast(int, process.pid), number)
    return first


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
        said = os.fstat(log.fileno()).st_size  # by earlier attempts

    def join() -> int:
        status = process.wait()
        told = SUMMARY.search((folders[0] / LOG).read_bytes()[said:]) if devices > 1 and status > 0 else None
        return int(told[1]) if told else status

    return Worker(folders, devices, [process.pid], join, ends)


def _halved(folders: Sequence[RunFolder], error: dict[str, Any]) -> list[RunFolder]:
    """Have a run go on with micro-batches of half the size, accumulated over twice as many: the global batch, and so the result, stays;
    or what is left of a stack in stacks of half as many heads. None where there is nothing to halve."""
    left = [folder for folder in folders if folder.exists and folder.record["status"] == "running"]
    record = left[0].record
    halved = record.get("halved", 0)
    least = 2**halved >= len(left) if len(folders) > 1 else (record.get("batch") or {}).get("micro", 1) < 2
    for folder in [] if least else left:
        folder.update(halved=halved + 1, error=error)  # until it has gone on to its end
    return [] if least else left


def _outlived(processes: Sequence[BaseProcess]) -> int:
    """Their server is gone, which they hear of, and so save and end: wait for that, unseen by multiprocessing."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and any(_runs(cast(int, process.pid)) for process in processes):
        time.sleep(0.1)
    return LOST


def _runs(pid: int) -> bool:
    """Whether a process has not ended; one that nobody has waited for has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


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
