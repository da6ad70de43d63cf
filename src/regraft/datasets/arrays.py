"""Sets of small pictures in binary files, held as one array: Fashion-MNIST (idx) and CIFAR's binary versions (records)."""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from regraft.datasets import fetch
from regraft.datasets.names import CIFAR10, CIFAR100, CIFAR100_COARSE, FASHION_MNIST
from regraft.datasets.source import Packed, Sample, Source
from regraft.datasets.splits import arrange
from regraft.errors import Problem, UserError

if TYPE_CHECKING:
    from regraft.datasets import Cifar10, Cifar100, FashionMnist, Published

FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
FASHION = [  # Xiao, Rasul and Vollgraf 2017
    fetch.Archive(f"{name}.gz", f"{FASHION_URL}/{name}.gz", (md5,))
    for name, md5 in (
        ("train-images-idx3-ubyte", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        ("train-labels-idx1-ubyte", "25c81989df183df01b3e8a0aad5dffbe"),
        ("t10k-images-idx3-ubyte", "bef4ecab320f06d8554ea6380940ec79"),
        ("t10k-labels-idx1-ubyte", "bb300cfdad3c16e7a12a480ee83cd310"),
    )
]
CIFAR_URL = "https://www.cs.toronto.edu/~kriz"  # Krizhevsky 2009; the binary versions, for a pickle could hold a program


class Records(NamedTuple):
    """One of CIFAR's sets: its archive, and its files by split. A record is label bytes, then 3 x 32 x 32 bytes (red, green, blue)."""

    archive: fetch.Archive
    files: Mapping[str, Sequence[str]]
    labels: int  # bytes before the pixels


CIFAR = {
    "cifar10": Records(
        fetch.Archive(
            "cifar-10-binary.tar.gz",
            f"{CIFAR_URL}/cifar-10-binary.tar.gz",
            ("c32a1d4ab5d03f1284b67883e8d87530",),
            ("cifar-10-batches-bin",),
        ),
        {"train": [f"data_batch_{number}.bin" for number in range(1, 6)], "test": ["test_batch.bin"]},
        labels=1,
    ),
    "cifar100": Records(
        fetch.Archive(
            "cifar-100-binary.tar.gz", f"{CIFAR_URL}/cifar-100-binary.tar.gz", ("03b5dce01913d631647c71ecec9e9cb8",), ("cifar-100-binary",)
        ),
        {"train": ["train.bin"], "test": ["test.bin"]},
        labels=2,  # coarse, fine
    ),
}
SIDE = 32  # px, of CIFAR


def load_fashion_mnist(spec: FashionMnist, cache: Path) -> Source:
    """Grey clothes of 28 x 28 px, 60,000 and 10,000. Raises UserError for files that are missing or not what their headers say."""
    folder = fetch.place(spec, cache, FASHION)
    parts = {}
    for split, stem in (("train", "train"), ("test", "t10k")):
        pixels, labels = _idx(folder, f"{stem}-images-idx3-ubyte", 3), _idx(folder, f"{stem}-labels-idx1-ubyte", 1)
        if len(pixels) != len(labels):
            remedy = f"has {len(labels)} labels for {len(pixels)} pictures; fetch both {stem} files again"
            raise UserError(Problem(str(folder / f"{stem}-labels-idx1-ubyte.gz"), None, remedy))
        parts[split] = (pixels, labels)
    return _packed(spec, FASHION_MNIST, parts, {"train": 60_000, "test": 10_000})


def load_cifar(spec: Cifar10 | Cifar100, cache: Path) -> Source:
    """Colour pictures of 32 x 32 px, 50,000 and 10,000. Raises UserError for files that are missing or cut off."""
    from regraft.datasets import Cifar100

    records = CIFAR[spec.name]
    fine = not (isinstance(spec, Cifar100) and spec.labels == "coarse")
    names = CIFAR10 if records.labels == 1 else CIFAR100 if fine else CIFAR100_COARSE
    folder = fetch.place(spec, cache, [records.archive]) / records.archive.gives[0]
    parts = {}
    for split, files in records.files.items():
        rows = np.concatenate([_records(folder / file, records.labels) for file in files])  # [n, labels + 3072]
        pixels = rows[:, records.labels :].reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)  # [n, 32, 32, 3]
        parts[split] = (np.ascontiguousarray(pixels), rows[:, records.labels - 1 if fine else 0])
    return _packed(spec, names, parts, {"train": 50_000, "test": 10_000})


def _packed(spec: Published, known: list[str], parts: Mapping[str, tuple[np.ndarray, np.ndarray]], published: Mapping[str, int]) -> Packed:
    """Split -> (pixels, labels) as a source that holds the pictures of the chosen classes only; ids are `<set>/<split>/<number>`."""
    names = spec.classes or known
    label_of = {known.index(name): label for label, name in enumerate(names)}
    samples, kept = [], []
    rows: dict[str, int] = {}
    for split, (pixels, labels) in parts.items():
        if (highest := int(labels.max(initial=0))) >= len(known):
            remedy = f"its {split} files hold the label {highest}, but there are {len(known)} classes; fetch them again"
            raise UserError(Problem("dataset.name", spec.name, remedy))
        chosen = np.flatnonzero(np.isin(labels, list(label_of)))
        kept.append(pixels[chosen])
        for index, picture in zip(chosen.tolist(), kept[-1], strict=True):
            name = f"{spec.name}/{split}/{index:05d}"
            rows[name] = len(rows)
            samples.append(Sample(name, split, label_of[int(labels[index])], hashlib.sha256(picture.tobytes()).hexdigest()))
    found = {split: len(labels) for split, (_, labels) in parts.items()}
    return Packed(
        np.concatenate(kept), rows, names, arrange(spec, names, samples, ("test",)), remarks=fetch.fewer(spec.name, found, published)
    )


def _idx(folder: Path, name: str, dimensions: int) -> np.ndarray:
    """An idx file of bytes, plain or .gz: uint8 [n] or [n, h, w]. The header is 0, 0, 8 (bytes), dimensions, and each as 4 bytes."""
    path = folder / name
    try:
        data = path.read_bytes() if path.is_file() else gzip.decompress((path := folder / f"{name}.gz").read_bytes())
    except (OSError, EOFError, zlib.error) as error:  # BadGzipFile is an OSError
        raise _broken(path, f"can't be read ({error})") from None
    if data[:4] != bytes((0, 0, 8, dimensions)):
        raise _broken(path, f"is no idx file of {dimensions} dimensions")
    start = 4 + 4 * dimensions
    shape = [int(size) for size in np.frombuffer(data[4:start], ">u4")]
    if len(data) - start != math.prod(shape):
        raise _broken(path, f"holds {len(data) - start} bytes where its header says {' x '.join(map(str, shape))}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _records(path: Path, labels: int) -> np.ndarray:
    """CIFAR's records: uint8 [n, labels + 3072]."""
    length = labels + 3 * SIDE * SIDE
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise _broken(path, f"can't be read ({error.strerror})") from None
    if not len(data) or len(data) % length:
        raise _broken(path, f"holds {len(data):,} bytes, which are not records of {length:,}")
    return data.reshape(-1, length)


def _broken(path: Path, what: str) -> UserError:
    return UserError(Problem(str(path), None, f"{what}; remove it, and place the published file or give dataset.download=true"))
