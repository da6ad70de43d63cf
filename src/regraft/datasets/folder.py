"""A folder of the user's pictures as a source: found, hashed, and split where the folder brings no splits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from regraft.datasets import layout
from regraft.datasets.fingerprint import examine
from regraft.datasets.source import Files, Sample, Source
from regraft.datasets.splits import OPEN, arrange

if TYPE_CHECKING:
    from regraft.datasets import Folder


def load(spec: Folder, memos: Path) -> Source:
    """The pictures of `spec.path`. Files of equal content share a split where splits are made.

    Raises UserError: a folder that is not laid out as `layout` says, broken pictures (on_error="raise"), a class with too few pictures.
    """
    found = layout.find(spec.path)
    classes = spec.classes or found.classes
    label_of = {name: label for label, name in enumerate(classes)}
    files = {file.id: file for file in sorted(layout.pictures(found, classes))}  # a folder lists its files in any order
    hashes, skipped = examine(found.root, list(files), memos, spec.on_error)

    # Without split folders everything is there to be split; with them, what train holds, for those that are missing.
    samples = [Sample(file.id, file.split or OPEN, label_of[file.name], hashes[file.id]) for file in files.values() if file.id in hashes]
    return Files(found.root, classes, arrange(spec, classes, samples, found.splits), skipped)
