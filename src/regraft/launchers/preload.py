"""What the server of the workers does before it forks the first one: it loads the frameworks. Imported in that process alone."""

from __future__ import annotations

import gc
import os
import signal
import sys
from contextlib import suppress
from importlib import import_module
from types import FrameType

from regraft.launchers.workers import environment
from regraft.worker import end_with_parent

MODULES = ("torch", "torchvision", "timm", "pytorch_lightning", "torchmetrics", "regraft.running")


def load() -> None:
    """Load all that every worker needs, and start nothing: no thread, no device, no draw of a random number.

    What can't be imported is left to the worker, which meets the same error and has a log and a record to tell it in.
    """
    for name in MODULES:
        with suppress(Exception):
            import_module(name)
    gc.collect()
    gc.freeze()  # a worker's collections would write to these pages, and each would have its own copy of them


def _end(number: int, frame: FrameType | None) -> None:
    """Orderly, since libraries have made temporary folders, and once: an end that has begun is not ended."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit()


signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the controller, who tells the workers
signal.signal(signal.SIGTERM, _end)
end_with_parent()
surroundings = environment(1)
os.environ.clear()
os.environ.update(surroundings)  # before a library reads how many threads it may have
load()
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # from here on multiprocessing ends the server, when the controller and all workers are gone
