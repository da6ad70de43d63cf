"""The embedded set: labels.csv says which drawing is in which class, group and split, and what its bytes hash to."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from regraft.datasets.source import Files, Sample, Source
from regraft.datasets.splits import few
from regraft.errors import Problem, UserError

if TYPE_CHECKING:
    from regraft.datasets import Clipart

ROOT = Path(__file__).parent / "clipart_data"
SEED = 0  # of per_class: the set has its own splits, so it takes no seed for them


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
    from regraft.datasets.fingerprint import examine  # numpy and PIL: not needed to list the classes

    names = spec.classes or classes()
    kept = [row for row in rows() if row["label"] in names]
    hashes, skipped = examine(ROOT, [row["file"] for row in kept], memos, spec.on_error)
    if differing := [row["file"] for row in kept if hashes.get(row["file"], row["sha256"]) != row["sha256"]]:
        remedy = "differs from labels.csv; install regraft again, or use dataset=folder for pictures of your own"
        raise UserError(Problem(str(ROOT / file), None, remedy) for file in differing)
    samples = [
        Sample(row["file"], row["split"], names.index(row["label"]), row["sha256"], row["group"]) for row in kept if row["file"] in hashes
    ]
    return Files(ROOT, names, few(samples, spec.per_class, SEED), skipped)
