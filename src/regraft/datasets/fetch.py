"""Published archives: where they lie or go, fetched whole or not at all, checked before they are unpacked; else what to place where."""

from __future__ import annotations

import hashlib
import logging
import socket
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from regraft.errors import Problem, UserError

if TYPE_CHECKING:
    from regraft.datasets import Published

TIMEOUT = 60  # s without a byte, after which a server is given up
SUMS = {32: "md5", 64: "sha256"}  # hex digits -> algorithm

log = logging.getLogger(__name__)


class Archive(NamedTuple):
    """One file of a published set."""

    file: str  # the name under which it is placed
    url: str
    sums: tuple[str, ...]  # hex checksums, md5 or sha256; a file that has one of them is whole
    gives: tuple[str, ...] = ()  # the paths that unpacking it leaves; empty: it is read as it is


def place(spec: Published, cache: Path, archives: Sequence[Archive]) -> Path:
    """The set's folder with everything in it: archives that lie there are unpacked, and missing ones fetched if `spec.download`.

    Raises UserError (key dataset.path) with all that is missing, where it must be placed, and its checksums; also for an archive that is
    not what was published.
    """
    folder = Path(spec.path).expanduser() if spec.path else cache / "datasets" / spec.name
    missing = [archive for archive in archives if not _there(folder, archive)]
    for number, archive in enumerate(missing):
        placed = folder / archive.file
        try:
            if archive.gives and placed.is_file():
                if fault := _fault(placed, archive):
                    raise UserError(Problem(str(placed), None, f"{fault}; remove it, and fetch it again from {archive.url}"))
                _unpack(placed, archive, folder)
            elif spec.download:
                _fetch(archive, folder, spec.name)
            else:
                raise UserError(Problem("dataset.path", str(folder), f"{spec.name} is not there; {_ask(missing[number:])}"))
        except (OSError, HTTPException, RuntimeError, RecursionError) as error:  # URLError and timeouts are OSErrors
            said = getattr(error, "reason", None) or error
            remedy = f"{archive.file} can't be put there from {archive.url} ({said}); {_ask(missing[number:])}"
            raise UserError(Problem("dataset.path", str(folder), remedy)) from None
    return folder


def fewer(name: str, found: Mapping[str, int], published: Mapping[str, int]) -> Iterator[str]:
    """A remark where a set has not the number of pictures that its makers published."""
    if dict(found) != dict(published):
        counts = " and ".join(f"{found.get(split, 0):,} of {count:,} {split} pictures" for split, count in published.items())
        yield f"{name}: {counts} are there; figures are not those of the published set"


def _there(folder: Path, archive: Archive) -> bool:
    if archive.gives:
        return all((folder / name).exists() for name in archive.gives)
    return any((folder / name).is_file() for name in (archive.file, archive.file.removesuffix(".gz")))  # unpacked by hand will do


def _ask(archives: Sequence[Archive]) -> str:
    files = "; ".join(
        f"{archive.file} ({' or '.join(f'{SUMS[len(total)]} {total}' for total in archive.sums)}) from {archive.url}"
        for archive in archives
    )
    return f"place in this folder: {files}; or give dataset.download=true where there is a network, or name the folder that has them"


def _fetch(archive: Archive, folder: Path, name: str) -> None:
    """Fetches into a folder of its own, so that what is broken off never has a name that a reader would trust."""
    from torchvision.datasets.utils import download_url  # seconds to import: only where something is fetched

    log.warning("%s: fetching %s to %s", name, archive.url, folder)
    folder.mkdir(parents=True, exist_ok=True)
    before = socket.getdefaulttimeout()
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as part:
        socket.setdefaulttimeout(TIMEOUT)
        try:
            download_url(archive.url, part, archive.file)
        finally:
            socket.setdefaulttimeout(before)
        whole = Path(part, archive.file)
        if fault := _fault(whole, archive):
            raise OSError(f"what came {fault}")
        if archive.gives:
            _unpack(whole, archive, folder)
        else:
            whole.replace(folder / archive.file)


def _fault(path: Path, archive: Archive) -> str | None:
    """What is wrong with a file that has none of the archive's checksums."""
    found = []
    for total in archive.sums:
        with path.open("rb") as file:
            mine = hashlib.file_digest(file, SUMS[len(total)]).hexdigest()
        if mine == total:
            return None
        found.append(f"{SUMS[len(total)]} {mine}, not {total}")
    return f"is broken, or not the published file ({' and '.join(found)})"


def _unpack(path: Path, archive: Archive, folder: Path) -> None:
    """Unpacks beside the place and then renames: what was broken off is never taken for whole. Raises UserError for unsafe members."""
    with tempfile.TemporaryDirectory(prefix=".unpack-", dir=folder) as part:
        try:
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archived:
                    archived.extractall(part)  # drops leading / and .. from names
            else:
                with tarfile.open(path) as taped:
                    taped.extractall(part, filter="data")  # refuses what would land outside, and devices
        except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
            raise UserError(Problem(str(path), None, f"can't be unpacked ({error}); fetch it again from {archive.url}")) from None
        for name in archive.gives:
            if not (folder / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                _rename(Path(part, name), folder / name, path)


def _rename(made: Path, wanted: Path, archive: Path) -> None:
    try:
        made.rename(wanted)
    except OSError as error:
        if not wanted.exists():  # if it does, another process was quicker
            raise UserError(Problem(str(archive), None, f"gives no {wanted.name} ({error.strerror}); fetch it again")) from None
