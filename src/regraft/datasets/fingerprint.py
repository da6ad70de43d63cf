"""Content hashes of picture files, and whether each can be used; remembered, so that the second time costs one stat per file.

The memo is a sqlite file keyed by absolute path, good as long as size and mtime_ns are what they were. Several processes may use it at
once; where it can't be kept (read-only folder, full disk, damaged file) everything works without it, slower.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import PIL

from regraft.datasets import pictures
from regraft.errors import Problem, UserError

NAME = "fingerprints.sqlite"
THREADS = min(16, (os.cpu_count() or 1) + 4)  # reading waits for the disk, hashing and decoding let other threads run
CHUNK = 2048  # files per transaction
TOLD = 20  # broken files named in one error
WAIT = 30  # seconds for another process to finish its transaction

log = logging.getLogger(__name__)


class Finding(NamedTuple):
    """What was found in one file."""

    sha256: str  # hex; empty where the file could not be read
    problem: str | None  # why it can't be used; None: it can


def examine(root: Path, names: Sequence[str], cache: Path, on_error: str) -> tuple[dict[str, str], list[Problem]]:
    """Name -> sha256 of each file that can be used, and a Problem for each that can't. `names` are relative to `root`.

    on_error="raise": headers are checked, and files that fail are told in one UserError (20 by name). "skip": every file is decoded once,
    and those that fail are left out.
    """
    whole = on_error == "skip"
    good: dict[str, str] = {}
    bad: list[Problem] = []
    with closing(_Memo(cache, whole)) as memo, ThreadPoolExecutor(THREADS) as threads:
        rest = iter(names)
        while chunk := list(islice(rest, CHUNK)):
            paths = [os.path.join(root, name) for name in chunk]
            for name, path, finding in zip(chunk, paths, _look(paths, memo, threads, whole), strict=True):
                if finding.problem is None:
                    good[name] = finding.sha256
                else:
                    bad.append(Problem(path, None, finding.problem))
    if bad and not whole:
        more = (
            [Problem("dataset.path", str(root), f"{len(bad) - TOLD} more files can't be used, {pictures.SKIP}")] if len(bad) > TOLD else []
        )
        raise UserError([*bad[:TOLD], *more])
    return good, bad


def _look(paths: list[str], memo: _Memo, threads: ThreadPoolExecutor, whole: bool) -> Iterator[Finding]:
    """Findings in the order of the paths: remembered ones as they are, the others read in threads and remembered."""
    stamps = list(map(_stamp, paths))
    known = [memo.get(path, stamp) for path, stamp in zip(paths, stamps, strict=True)]
    fresh = [index for index, finding in enumerate(known) if finding is None]
    read = dict(zip(fresh, threads.map(lambda index: _examine(paths[index], whole), fresh), strict=True))
    # A file that changed while it was read, or could not be read, is not remembered.
    memo.put(
        (paths[index], stamps[index], finding)
        for index, finding in read.items()
        if finding.sha256 and _stamp(paths[index]) == stamps[index]
    )
    return (finding or read[index] for index, finding in enumerate(known))


def _examine(path: str, whole: bool) -> Finding:
    """Reads one file: its hash, and what is wrong with it."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        return Finding("", f"can't be read ({error.strerror}); mend or remove it, {pictures.SKIP}")
    check: Callable[[bytes, str], object] = pictures.decode if whole else pictures.probe
    try:
        check(data, path)
        problem = None
    except UserError as error:
        problem = error.problems[0].remedy
    return Finding(hashlib.sha256(data).hexdigest(), problem)


def _stamp(path: str) -> tuple[int, int]:
    """Size and mtime_ns, by which a change is noticed; of a link, its target's. (-1, -1) where there is no such file."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


class _Memo:
    """The findings of earlier times. After the first failure of the file that keeps them, it is empty and keeps nothing."""

    def __init__(self, cache: Path, whole: bool) -> None:
        # What was checked, and by which PIL: a newer one may read what an older one could not.
        self.check = f"{'whole' if whole else 'header'} {PIL.__version__}"
        self.database: sqlite3.Connection | None = None
        try:
            cache.mkdir(parents=True, exist_ok=True)
            self.database = sqlite3.connect(cache / NAME, timeout=WAIT, isolation_level=None)
            self.database.execute("PRAGMA journal_mode=WAL")  # readers don't wait for a writer
            self.database.execute("PRAGMA synchronous=NORMAL")
            self.database.execute(
                "CREATE TABLE IF NOT EXISTS files (path BLOB, checked TEXT, size INTEGER, mtime_ns INTEGER, sha256 BLOB, problem TEXT, "
                "PRIMARY KEY (path, checked)) WITHOUT ROWID"
            )
        except (OSError, sqlite3.Error) as error:
            self._give_up(cache, error)
        self.cache = cache

    def get(self, path: str, stamp: tuple[int, int]) -> Finding | None:
        if self.database is None:
            return None
        try:
            ask = "SELECT sha256, problem FROM files WHERE path = ? AND checked = ? AND size = ? AND mtime_ns = ?"
            row = self.database.execute(ask, (os.fsencode(path), self.check, *stamp)).fetchone()
        except sqlite3.Error as error:
            self._give_up(self.cache, error)
            return None
        return Finding(row[0].hex(), row[1]) if row else None

    def put(self, findings: Iterator[tuple[str, tuple[int, int], Finding]]) -> None:
        rows: list[tuple[Any, ...]] = [
            (os.fsencode(path), self.check, *stamp, bytes.fromhex(finding.sha256), finding.problem) for path, stamp, finding in findings
        ]
        if self.database is None or not rows:
            return
        try:
            self.database.execute("BEGIN IMMEDIATE")  # a writer from the start: a reader that turns into one may be refused
            self.database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)", rows)
            self.database.execute("COMMIT")
        except sqlite3.Error as error:
            self._give_up(self.cache, error)

    def close(self) -> None:
        if self.database is not None:
            with suppress(sqlite3.Error):
                self.database.close()
            self.database = None

    def _give_up(self, cache: Path, error: Exception) -> None:
        log.warning("%s can't be used (%s): every picture is hashed anew; make it writable, or remove it", cache / NAME, error)
        self.close()
