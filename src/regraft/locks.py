"""A lock belongs to the process that took it, and goes with it however it ends: an open file, held by flock."""

from __future__ import annotations

import errno
import fcntl
import os
import weakref
from contextlib import suppress
from pathlib import Path


class Lock:
    """A lock on a file, shared by many or held by one alone, until `release`, the end of `with`, or until nobody refers to it any more."""

    def __init__(self, path: Path, *, alone: bool, wait: bool = True) -> None:
        """Raises BlockingIOError where others hold it and `wait` is false, FileNotFoundError where its folder has gone, other OSErrors."""
        while True:
            number = _open(path)
            try:
                fcntl.flock(number, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB))
                stands = _same(path, number)  # its folder may have been removed while this one waited, and another one made
            except BaseException:
                os.close(number)
                raise
            if stands:
                break
            os.close(number)
        self.path, self._number = path, number
        self.release = weakref.finalize(self, os.close, number)
        _HELD.add(self)

    @property
    def stands(self) -> bool:
        """Whether it is held here, and the file that is held is still the one of that name."""
        with suppress(OSError):
            return self.release.alive and _same(self.path, self._number)
        return False

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def _open(path: Path) -> int:
    """A user who may only read takes part too."""
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return os.open(path, os.O_RDONLY | flags)


def _same(path: Path, number: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(number))
    except FileNotFoundError:
        return False


def _disown() -> None:
    """A forked child (a loader's worker) shares its parent's open files, and would hold the lock after the parent was killed."""
    for lock in list(_HELD):
        lock.release()


_HELD: weakref.WeakSet[Lock] = weakref.WeakSet()
os.register_at_fork(after_in_child=_disown)
