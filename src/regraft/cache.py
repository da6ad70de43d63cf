"""A content-addressed store of activations: what a frozen net gives for a picture is computed once and read ever after.

A store is a folder named by the hash of its description (transform, view, architecture and weights below the boundary, dtype).
It holds *segments*: immutable folders of rows that are written aside and published by one rename, so that a reader sees a
whole segment or none. Rows are found by the picture's content hash: sets that share pictures share rows.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock

from regraft.errors import Problem, UserError
from regraft.files import digest, sha256, write_json
from regraft.registry import Spec, doc

if TYPE_CHECKING:
    from io import FileIO

    import torch
    from torch import Tensor

KEY = 32  # bytes of a sha256


class CacheSpec(Spec):
    """The config section `cache`: where what is frozen is kept, and how much of it."""

    mode: Literal["auto", "off", "require"] = doc(
        "auto: wherever a boundary allows it; off: never; require: fail where it can't be", decides=False
    )
    dir: str | None = doc("folder of the store; null: regraft in the user's cache folder", decides=False, path=True)
    max_gb: float = doc("GB that stored activations may take", gt=0, decides=False)
    dtype: Literal["float32", "bfloat16"] = doc("precision in which frozen stages are computed and stored")

    def folder(self) -> Path:
        if self.dir:
            return Path(self.dir).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "regraft"


class NoRoom(UserError):
    """The rows can't be kept: they are more than `cache.max_gb` allows, or the disk is full."""


@dataclass
class Rows:
    """Rows of one store, memory-mapped: `rows[i]` of the asked-for keys."""

    pages: list[Tensor]  # each [n, ...], of one segment
    page: Tensor  # [keys] int64: which page holds a key's row
    row: Tensor  # [keys] int64: which row of it

    def __len__(self) -> int:
        return len(self.page)

    def gather(self, index: Tensor) -> Tensor:
        """[b] int64 -> [b, ...]: a copy, in memory, of the rows"""
        import torch

        page, row = self.page[index], self.row[index]
        if len(self.pages) == 1:
            return self.pages[0][row]
        out = torch.empty(len(index), *self.pages[0].shape[1:], dtype=self.pages[0].dtype)
        for number in page.unique().tolist():
            mine = page == number
            out[mine] = self.pages[number][row[mine]]
        return out


class Store:
    """One store. `description` is plain data: all that decides the rows' values."""

    def __init__(self, folder: Path, description: dict[str, Any]) -> None:
        self.key = digest(description)
        self.folder = folder / "activations" / self.key[:32]
        self.description = description
        self._whole: set[Path] = set()  # segments whose checksum this process has seen to be right

    def missing(self, keys: Sequence[str]) -> int:
        """How many different contents of these keys have no row yet."""
        return len(self._missing(keys))

    def await_builder(self, keys: Sequence[str], seconds: float = 30) -> None:
        """Wait until another process has begun to build, or has built, these rows; for at most `seconds`."""
        end = time.monotonic() + seconds
        while self._missing(keys) and not list(self.folder.glob(".building-*")) and time.monotonic() < end:
            time.sleep(0.05)

    def ensure(self, keys: Sequence[str], compute: Callable[[list[int]], Iterable[Tensor]]) -> int:
        """Make sure that every key (a sha256 in hex) has a row; returns how many were computed now.

        `compute` gets the positions in `keys` of the missing rows and yields their rows in that order, in batches [b, ...].
        One process builds while others wait for the lock. Raises NoRoom where the disk is full or the
        folder can't be written; then nothing is left behind.
        """
        if not self._missing(keys):
            return 0
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / "lock").acquire()
        with lock:
            missing = self._missing(keys)  # another process may have built them while this one waited
            if missing:
                self._sweep()
                with self._writing():
                    write_json(self.folder / "store.json", self.description)
                self._publish([keys[position] for position in missing], compute(missing))
        return len(missing)

    def open(self, keys: Sequence[str]) -> Rows:
        """The rows of these keys, which `ensure` has made sure of. Raises KeyError for one that is not there."""
        import torch

        segments = self._segments()
        places: dict[bytes, tuple[int, int]] = {}
        for number, segment in enumerate(segments):
            names = (segment / "keys.bin").read_bytes()
            for row in range(len(names) // KEY):
                places.setdefault(names[row * KEY : (row + 1) * KEY], (number, row))
        found = [places[bytes.fromhex(key)] for key in keys]
        used = sorted({number for number, _ in found})
        pages = [_map(segments[number]) for number in used]
        page = torch.tensor([used.index(number) for number, _ in found], dtype=torch.int64)
        return Rows(pages, page, torch.tensor([row for _, row in found], dtype=torch.int64))

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """What the disk refuses is told as NoRoom."""
        try:
            yield
        except OSError as error:
            remedy = f"can't write ({error.strerror}); free room, or name another folder with cache.dir"
            raise NoRoom(Problem("cache.dir", str(self.folder), remedy)) from error

    def _segments(self) -> list[Path]:
        """Whole segments, oldest first; one whose rows are not what was written is set aside, and so built again."""
        found = []
        for segment in sorted(self.folder.glob("segment-*")):
            if segment not in self._whole and _damaged(segment):
                shutil.rmtree(segment, ignore_errors=True)
            else:
                self._whole.add(segment)
                found.append(segment)
        return found

    def _missing(self, keys: Sequence[str]) -> list[int]:
        """Positions of the keys that have no row, each content once."""
        there: set[bytes] = set()
        for segment in self._segments():
            names = (segment / "keys.bin").read_bytes()
            there.update(names[start : start + KEY] for start in range(0, len(names), KEY))
        missing = []
        for position, key in enumerate(keys):
            if bytes.fromhex(key) not in there:
                there.add(bytes.fromhex(key))
                missing.append(position)
        return missing

    def _sweep(self) -> None:
        """Remove what a killed builder left; the lock is held, so nobody is building."""
        for part in self.folder.glob(".building-*"):
            shutil.rmtree(part, ignore_errors=True)

    def _publish(self, keys: list[str], batches: Iterable[Tensor]) -> None:
        with self._writing():
            part = Path(tempfile.mkdtemp(prefix=".building-", dir=self.folder))
        try:
            shape: list[int] = []
            dtype = ""
            with (part / "rows.bin").open("wb", buffering=0) as file:
                for rows in batches:
                    shape, dtype = list(rows.shape[1:]), str(rows.dtype).removeprefix("torch.")
                    self._write(file, _bytes(rows))
                os.fsync(file.fileno())
            meta = {"rows": len(keys), "shape": shape, "dtype": dtype, "sha256": sha256(part / "rows.bin")}
            with self._writing():
                (part / "keys.bin").write_bytes(b"".join(map(bytes.fromhex, keys)))
                write_json(part / "segment.json", meta)
                number = len(list(self.folder.glob("segment-*")))
                part.rename(self.folder / f"segment-{number:06d}-{digest(keys)[:12]}")
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise

    def _write(self, file: FileIO, data: memoryview) -> None:
        """All of the bytes; what fails here is the disk, not the picture."""
        with self._writing():
            while data:
                data = data[file.write(data) or 0 :]


def stored(folder: Path) -> int:
    """Bytes of all rows in a cache folder."""
    return sum(path.stat().st_size for path in (folder / "activations").glob("*/segment-*/rows.bin"))


def _bytes(rows: Tensor) -> memoryview:
    import torch

    return memoryview(rows.contiguous().cpu().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def _damaged(segment: Path) -> bool:
    with suppress(OSError, ValueError, KeyError):
        meta = json.loads((segment / "segment.json").read_text())
        whole = (segment / "keys.bin").stat().st_size == meta["rows"] * KEY
        return not (whole and sha256(segment / "rows.bin") == meta["sha256"])
    return True


def _map(segment: Path) -> Tensor:
    import numpy as np
    import torch

    meta = json.loads((segment / "segment.json").read_text())
    dtype: torch.dtype = getattr(torch, {"float32": "float32", "bfloat16": "bfloat16"}[meta["dtype"]])
    raw = np.memmap(segment / "rows.bin", dtype=np.uint8, mode="c")  # copy on write: torch wants it writable, the file never changes
    return torch.from_numpy(raw).view(dtype).view(meta["rows"], *meta["shape"])
