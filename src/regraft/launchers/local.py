"""Start a run's worker on this machine: one process, or one for each device under torchrun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Any

from regraft.hardware import cores
from regraft.record import LOG, RunFolder
from regraft.worker import end_with_parent

FOREIGN = ("LOCAL_RANK", "RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
FOREIGN_PREFIXES = ("MASTER_", "PL_", "TORCHELASTIC_")


def launch(folder: RunFolder, devices: int, show: bool) -> dict[str, Any]:
    """Run the run in the folder and wait for it; gives back its record, `done` or `failed`.

    `show`: the worker talks to this terminal; else its words go to log.txt alone. A worker is told to stop when this process is
    interrupted or terminated, and is waited for.
    """
    for stale in folder.path.glob(".error-*.json"):
        stale.unlink()
    own = ["-m", "regraft.worker", str(folder.path), *(["--show"] if show else [])]
    ranks = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(devices)]
    command = [sys.executable, *(ranks if devices > 1 else []), *own]
    with (folder / LOG).open("ab") as log:
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": log}
        if show:
            quiet = {"stderr": log} if devices > 1 else {}
        worker = subprocess.Popen(
            command, env=environment(devices), stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=end_with_parent, **quiet
        )
        previous = {number: signal.signal(number, _interrupted) for number in (signal.SIGTERM,) if _main_thread()}
        try:
            status = worker.wait()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            _stop(worker)
    record = folder.record
    if record["status"] == "done" and status == 0:
        return record
    error = _first_error(folder) or {"kind": "Killed", "message": _ending(status), "rank": None}
    folder.update(status="failed", error=error)
    return folder.record


def environment(devices: int) -> dict[str, str]:
    """This process's environment without what another launcher has left in it: a worker must not take part in a stranger's world.

    The cores are shared out among the ranks, unless OMP_NUM_THREADS says otherwise.
    """
    own = {name: value for name, value in os.environ.items() if name not in FOREIGN and not name.startswith(FOREIGN_PREFIXES)}
    return {"OMP_NUM_THREADS": str(max(1, cores() // devices)), **own}


def _first_error(folder: RunFolder) -> dict[str, Any] | None:
    """The first cause: the earliest error that a rank left; the others often only echo it."""
    left = sorted(folder.path.glob(".error-*.json"), key=lambda path: path.stat().st_mtime_ns)
    errors = [json.loads(path.read_text()) for path in left]
    for path in left:
        path.unlink()
    return errors[0] if errors else None


def _ending(status: int) -> str:
    if status < 0:
        with suppress(ValueError):
            return f"the worker was ended by {signal.Signals(-status).name}"
    return f"the worker ended with status {status} and left no error; its last words are in {LOG}"


def _stop(worker: subprocess.Popen[bytes]) -> None:
    """End the worker and all its ranks, first kindly."""
    if worker.poll() is not None:
        return
    for number, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(worker.pid, number)
            worker.wait(patience)


def _interrupted(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()
