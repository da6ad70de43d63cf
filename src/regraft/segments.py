"""A segment: an immutable folder of rows and their keys, written aside, published by one rename, believed for its checksums.

`rows.bin` holds the rows one after the other, `keys.bin` the 32 bytes of each row's key, `segment.json` sizes, type and checksums
under a seal of its own. Whatever does not agree counts as damaged, whoever wrote it: nothing is read beyond what the sizes allow.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from regraft.files import digest, sha256

if TYPE_CHECKING:
    from io import FileIO

    import numpy as np
    from torch import Tensor

KEY = 32  # bytes of a sha256
LARGEST = 256 * 2**20  # bytes of rows after which a segment is published: what a killed pass may lose
DTYPES = {"float32": 4, "bfloat16": 2, "uint8": 1}  # bytes of a value
META, ROWS, KEYS = "segment.json", "rows.bin", "keys.bin"
LONGEST = 2**16  # bytes of segment.json
BUILDING, DAMAGED, PUBLISHED = ".building-", ".damaged-", "segment-"  # how the folders are called

_SUMS: dict[tuple[str, int, int, int], str] = {}  # path, inode, size, mtime -> checksum: a file is read through once in a process


class Damaged(Exception):
    """A segment that is not what was written; says what is wrong."""


@dataclass(frozen=True)
class Segment:
    """One whole segment."""

    path: Path
    rows: int
    shape: tuple[int, ...]  # of one row
    dtype: str

    def keys(self) -> np.ndarray:
        """[rows] of 32 bytes each"""
        import numpy as np

        return np.fromfile(self.path / KEYS, f"S{KEY}", self.rows)

    def map(self) -> Tensor:
        """[rows, ...], memory-mapped, and copied where it is written to: the file never changes. Keeps no file open."""
        import torch

        size = self.rows * math.prod(self.shape) * DTYPES[self.dtype]
        raw = torch.from_file(str(self.path / ROWS), shared=False, size=size, dtype=torch.uint8)
        return raw.view(getattr(torch, self.dtype)).view(self.rows, *self.shape)


def read(path: Path) -> Segment | None:
    """A segment, its checksums compared; None where it has gone or this user can't read it. Raises Damaged."""
    try:
        if not stat.S_ISDIR(path.lstat().st_mode):
            raise Damaged("it is no folder")
        meta = _meta(path / META)
        segment = Segment(path, meta["rows"], tuple(meta["shape"]), meta["dtype"])
        row = math.prod(segment.shape) * DTYPES[segment.dtype]
        for name, size in ((KEYS, segment.rows * KEY), (ROWS, segment.rows * row)):
            if _sum(path / name, size) != meta["sha256"][name]:
                raise Damaged(f"{name} is not what was written")
    except FileNotFoundError as error:
        if path.exists():
            raise Damaged(f"{Path(error.filename).name} is missing") from None
        return None
    except OSError as error:
        if error.errno == errno.EIO:
            raise Damaged(f"the disk can't read it ({error.strerror})") from None
        return None
    return segment


def listed(folder: Path, *prefixes: str) -> list[Path]:
    """What lies in a folder under names that begin so, sorted; nothing where it can't be read."""
    try:
        return sorted(folder / name for name in os.listdir(folder) if name.startswith(prefixes))
    except OSError:
        return []


def set_aside(path: Path) -> None:
    """Out of the readers' way at once, also while others have it mapped; the next builder removes it."""
    with suppress(OSError):
        path.rename(path.with_name(f"{DAMAGED}{path.name}-{token_hex(4)}"))


def _meta(path: Path) -> dict[str, Any]:
    """What `segment.json` says, if it can be true. Raises Damaged, OSError."""
    _size(path, None)
    with path.open("rb") as file:
        text = file.read(LONGEST)
    with suppress(ValueError, RecursionError, KeyError, TypeError, AttributeError):
        meta = json.loads(text)
        seal = meta.pop("seal")
        numbers = [meta["rows"], *meta["shape"]]
        true = all(type(number) is int and 0 < number < 2**48 for number in numbers) and len(numbers) <= 9
        if true and meta["dtype"] in DTYPES and seal == digest(meta) and {KEYS, ROWS} == meta["sha256"].keys():
            if meta["store"] != path.parent.parent.name:
                raise Damaged("it belongs to another store")
            return meta
    raise Damaged(f"{META} is not what was written")


def _size(path: Path, size: int | None) -> os.stat_result:
    """The file's status. Raises Damaged for what is no file, or has another size."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise Damaged(f"{path.name} is no file")
    if size is not None and status.st_size != size:
        raise Damaged(f"{path.name} has {status.st_size} bytes, not {size}")
    return status


def _sum(path: Path, size: int) -> str:
    status = _size(path, size)
    mark = (str(path), status.st_ino, status.st_size, status.st_mtime_ns)
    if mark not in _SUMS:
        _SUMS[mark] = sha256(path)
    return _SUMS[mark]


class Writer:
    """One store's rows on their way to the disk. Every method raises OSError where the disk refuses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = 0  # written in all
        self._part: Path | None = None
        self._kind: tuple[tuple[int, ...], str] | None = None

    def add(self, keys: bytes, rows: Tensor) -> None:
        """[b, ...] with the keys of its rows; publishes what has become large enough. Raises ValueError for rows unlike those before."""
        import torch

        kind = tuple(rows.shape[1:]), str(rows.dtype).removeprefix("torch.")
        if kind[1] not in DTYPES or kind != (self._kind or kind) or len(keys) != KEY * len(rows):
            raise ValueError(f"{len(rows)} rows of {kind} can't be stored: {len(keys) // KEY} of {self._kind or tuple(DTYPES)} are due")
        self._kind = kind
        data = memoryview(rows.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        if self._part is None:
            self._begin()
        self._whole = False
        self._sum.update(data)
        while data:
            data = data[self._file.write(data) or 0 :]
        self._keys += keys
        self.rows += len(rows)
        self._whole = True
        if self._file.tell() >= LARGEST:
            self.publish()

    def publish(self) -> None:
        """What was added since the last time becomes a segment, or nothing: where the last `add` was broken off, or the disk refuses."""
        if self._part is None:
            return
        try:
            if self._whole and self._kind:
                os.fsync(self._file.fileno())
                sums = {ROWS: self._sum.hexdigest(), KEYS: hashlib.sha256(self._keys).hexdigest()}
                shape, dtype = self._kind
                meta = {"rows": len(self._keys) // KEY, "shape": shape, "dtype": dtype, "store": self.folder.name, "sha256": sums}
                (self._part / KEYS).write_bytes(self._keys)
                (self._part / META).write_text(json.dumps(meta | {"seal": digest(meta)}))
                self._part.rename(self.folder / f"{PUBLISHED}{sums[KEYS][:16]}-{token_hex(4)}")
        finally:
            self.discard()

    def discard(self) -> None:
        """Nothing stays of what was not published."""
        if self._part is not None:
            self._file.close()
            shutil.rmtree(self._part, ignore_errors=True)
            self._part = None

    def _begin(self) -> None:
        part = self.folder / f"{BUILDING}{token_hex(8)}"
        part.mkdir()  # with the rights that the umask gives, so that other users may read what is published
        self._part = part
        self._keys, self._sum, self._whole = bytearray(), hashlib.sha256(), True
        self._file: FileIO = (part / ROWS).open("xb", buffering=0)


def sweep(paths: Iterable[Path]) -> None:
    """Remove what nobody reads."""
    for path in paths:
        with suppress(OSError):
            path.unlink() if path.is_symlink() or path.is_file() else shutil.rmtree(path, ignore_errors=True)
