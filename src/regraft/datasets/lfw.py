"""Labelled faces in the wild, funneled: lfw_funneled/<person>/*.jpg, of the people of whom there are enough pictures."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from regraft.datasets import fetch, layout
from regraft.datasets.fingerprint import examine
from regraft.datasets.source import Files, Sample, Source
from regraft.datasets.splits import OPEN, arrange
from regraft.errors import Problem, UserError, either, nearest

if TYPE_CHECKING:
    from regraft.datasets import Lfw

FOLDER = "lfw_funneled"
# Huang, Jain and Learned-Miller 2007. The makers' server is gone; figshare's copy is the one that scikit-learn names, by its sha256.
ARCHIVES = [
    fetch.Archive(
        "lfw-funneled.tgz",
        "https://ndownloader.figshare.com/files/5976015",
        ("1b42dfed7d15c9b2dd63d5e5840c86ad", "b47c8422c8cded889dc5a13418c4bc2abbda121092b3533a83306f90d900100a"),
        (FOLDER,),
    )
]


def load(spec: Lfw, cache: Path) -> Source:
    """A class for each person of whom there are `spec.least` pictures. Raises UserError where fewer than two people have as many."""
    root = (fetch.place(spec, cache, ARCHIVES) / FOLDER).resolve()
    found = layout.Layout(root, {}, layout.folders(root))
    files = list(layout.pictures(found, found.classes))
    people = Counter(file.name for file in files)
    enough = sorted(name for name, count in people.items() if count >= spec.least)
    names = spec.classes or enough
    if strange := [name for name in names if name not in enough]:
        raise UserError(Problem("dataset.classes", name, _why(name, people, enough, spec.least)) for name in strange)
    if len(names) < 2:
        most = max(people.values(), default=0)
        remedy = (
            f"of {len(enough)} people in {root} there are as many pictures, and two classes are needed; the most of one person is {most}"
        )
        raise UserError(Problem("dataset.least", spec.least, remedy))
    kept = {file.id: file.name for file in sorted(files) if file.name in names}
    hashes, skipped = examine(root, list(kept), cache, spec.on_error)
    samples = [Sample(file, OPEN, names.index(name), hashes[file]) for file, name in kept.items() if file in hashes]
    remarks = fetch.fewer(spec.name, {"face": people.total()}, {"face": 13_233})
    return Files(root, names, arrange(spec, names, samples), skipped, remarks=remarks)


def _why(name: str, people: Counter[str], enough: list[str], least: int) -> str:
    if name in people:
        return f"there are {people[name]} pictures, fewer than dataset.least = {least}; give dataset.least={people[name]} or leave them out"
    return f"no such person; {nearest(name, people) or f'there are {either(enough[:20])}'} (names are written First_Last)"
