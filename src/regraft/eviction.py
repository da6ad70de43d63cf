"""Stores as wholes: how large each is, when it was last used, whether anyone uses it, and how it is taken away in one step."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

from regraft.locks import Lock
from regraft.segments import listed, sweep

FOLDER = "activations"  # in the cache folder: holds the stores
USED = "used"  # readers share a lock on it, whoever removes the store must have it alone; its time is that of the last use
GONE = ".gone-"  # what an evicted store is called until it is removed


def stores_in(folder: Path) -> list[Path]:
    """The stores in a cache folder."""
    return [path for path in listed(folder / FOLDER, "") if not path.name.startswith(".") and path.is_dir()]


def size(folder: Path) -> int:
    """Bytes of all files in a folder, at any depth."""
    total = 0
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                total += size(Path(entry)) if entry.is_dir(follow_symlinks=False) else entry.stat(follow_symlinks=False).st_size
    return total


def last_used(store: Path) -> float:
    """When a store was last opened, in seconds since 1970; 0 where it can't be known."""
    with suppress(OSError):
        return (store / USED).stat().st_mtime
    return 0.0


def claim(store: Path) -> Lock | None:
    """The store for this process alone, to be removed; None where another uses it, or this user may not."""
    if os.access(store, os.W_OK) and os.access(store.parent, os.W_OK):
        with suppress(OSError):
            return Lock(store / USED, alone=True, wait=False)
    return None


def evict(store: Path, claimed: Lock) -> None:
    """By a rename first, so that nobody reads half a store."""
    gone = store.with_name(f"{GONE}{store.name}-{token_hex(4)}")
    with suppress(OSError):
        store.rename(gone)
    claimed.release()
    sweep(listed(store.parent, GONE))  # with what a killed process left


def in_use(store: Path) -> bool:
    """Whether any process has it open or builds it."""
    try:
        if (store / USED).exists():
            Lock(store / USED, alone=True, wait=False).release()
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False
