"""Test once more, shifted: its pictures made worse, or those of another folder; each shift is a split of its own, and teaches nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from regraft.datasets import corruptions, layout
from regraft.datasets.corruptions import Corruption
from regraft.datasets.fingerprint import examine
from regraft.datasets.samples import SPLITS
from regraft.datasets.source import Files, Sample, Source, under
from regraft.errors import Problem, UserError, either

if TYPE_CHECKING:
    import numpy as np

MARK = "@"  # between a picture's id and the shift that it is shown under


class Shifted(Source):
    """A set of pictures with further splits: the same test pictures under each corruption, and other folders' pictures of its classes."""

    def __init__(self, source: Source, worse: Sequence[Corruption], folders: Mapping[str, Files]) -> None:
        self.source, self.worse, self.folders = source, {each.name: each for each in worse}, dict(folders)
        self.shifts = (*self.worse, *self.folders)
        samples = list(source.samples)
        test = [sample for sample in samples if sample.split == "test"]
        for name in self.worse:
            samples += [replace(each, id=f"{each.id}{MARK}{name}", split=name, sha256=under(each.sha256, name)) for each in test]
        for name, folder in self.folders.items():
            samples += [replace(each, id=f"{each.id}{MARK}{name}", split=name) for each in folder.samples]
        super().__init__(source.classes, samples, source.skipped, kind=source.kind, remarks=source.remarks)

    def read(self, sample: Sample) -> np.ndarray:
        """The picture, uint8 [h, w, 3], under the shift that its split names. Raises UserError for one that can't be read."""
        own = sample.id.removesuffix(f"{MARK}{sample.split}")
        if folder := self.folders.get(sample.split):
            return folder.read(replace(sample, id=own, split="test"))
        if worse := self.worse.get(sample.split):
            return worse(self.source.read(self.source.samples[self.source.samples.find(own)]))
        return self.source.read(sample)


def of(source: Source, words: Sequence[str], memos: Path) -> Shifted:
    """The set with the shifts that these words name. Raises UserError (key dataset.shift) for a set that is none of pictures, for words
    that name nothing, and for a folder that shares no class with the set."""
    if source.input != "pictures":
        raise _refused(words, "what enters the net are no pictures, and nothing of this kind can be done to it; [] works")
    if not source.split("test"):
        raise _refused(words, "the set has no test pictures; give it some, or leave dataset.shift=[]")
    worse: dict[str, Corruption] = {}
    folders: dict[str, Files] = {}
    for word in words:
        kinds = corruptions.parsed(word)
        if kinds is not None:
            worse |= {each.name: each for each in kinds}
            continue
        name = re.sub(r"[^\w.-]", "_", Path(word).name)
        if not name or name in (*SPLITS, *folders) or corruptions.parsed(name.replace("-", ":")):
            raise _refused(word, f"its shift would be called {name or 'nothing'}, as something else is; rename the folder")
        folders[name] = _folder(source, word, memos)
    return Shifted(source, list(worse.values()), folders)


def _folder(source: Source, word: str, memos: Path) -> Files:
    """The pictures of a folder that are of the set's classes: its test split, or all where it has none."""
    if source.kind != "class":
        raise _refused(word, f"a folder names classes, and the set has {source.kind}; corruptions work: {either(corruptions.KINDS)}")
    found = layout.find(word)
    shared = [name for name in source.classes if name in found.classes]
    if not shared:
        raise _refused(word, f"has none of the set's classes ({either(source.classes[:20])}) as folders")
    files = [file for file in layout.pictures(found, shared) if file.split in (None, "test") or "test" not in found.splits]
    hashes, _ = examine(found.root, sorted(file.id for file in files), memos, "raise")
    samples = [Sample(file.id, "test", source.classes.index(file.name), hashes[file.id]) for file in files]
    return Files(found.root, source.classes, samples)


def _refused(given: object, remedy: str) -> UserError:
    return UserError(Problem("dataset.shift", given, remedy))
