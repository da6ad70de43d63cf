"""The embedded set: labels.csv says which drawing is in which class, group and split, and what its bytes hash to."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from regraft.datasets.source import Files, Sample, Source
from regraft.datasets.splits import OPEN, arrange
from regraft.errors import Problem, UserError

if TYPE_CHECKING:
    from regraft.datasets import CatsDogs, Clipart, DatasetSpec

ROOT = Path(__file__).parent / "clipart_data"
CATS_DOGS = ["dog", "cat"]  # tags that no picture has both of


@cache
def rows() -> list[dict[str, str]]:
    """labels.csv: file, label, split, group, title, creator, tags (separated by |), source, sha256."""
    with open(ROOT / "labels.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def classes() -> list[str]:
    """The 19 classes, sorted."""
    return sorted({row["label"] for row in rows()})


def load(spec: Clipart, memos: Path) -> Source:
    """The set as it stands. Raises UserError for files that differ from labels.csv."""
    return _open(spec, memos, {row["file"]: row["label"] for row in rows()}, spec.classes or classes())


def load_tagged(spec: CatsDogs, memos: Path) -> Source:
    """The pictures whose tags name one of CATS_DOGS; labels.csv's own splits are left aside. Raises UserError as `load` does."""
    labels = {row["file"]: name for row in rows() for name in CATS_DOGS if name in row["tags"].split("|")}
    return _open(spec, memos, labels, spec.classes or CATS_DOGS, own_splits=False)


def _open(spec: DatasetSpec, memos: Path, labels: dict[str, str], names: list[str], *, own_splits: bool = True) -> Source:
    """The pictures whose label (file -> name) is among `names`."""
    from regraft.datasets.fingerprint import examine  # numpy and PIL: not needed to list the classes

    kept = [row for row in rows() if labels.get(row["file"]) in names]
    hashes, skipped = examine(ROOT, [row["file"] for row in kept], memos, spec.on_error)
    if differing := [row["file"] for row in kept if hashes.get(row["file"], row["sha256"]) != row["sha256"]]:
        remedy = "differs from labels.csv; install regraft again, or use dataset=folder for pictures of your own"
        raise UserError(Problem(str(ROOT / file), None, remedy) for file in differing)
    samples = [
        Sample(row["file"], row["split"] if own_splits else OPEN, names.index(labels[row["file"]]), row["sha256"], row["group"])
        for row in kept
        if row["file"] in hashes
    ]
    return Files(ROOT, names, arrange(spec, names, samples, ("val", "test") if own_splits else ()), skipped)
