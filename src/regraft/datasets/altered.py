"""A set whose classes have other names, or all of whose pictures are made worse: another task, or another domain, of the same pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from regraft.datasets.corruptions import Corruption
from regraft.datasets.source import Sample, Source, under
from regraft.datasets.spec import strangers
from regraft.errors import Problem, UserError

if TYPE_CHECKING:
    import numpy as np


class Altered(Source):
    """A set of pictures with other classes, other pictures, or both."""

    def __init__(self, source: Source, names: Mapping[str, str], worse: Corruption | None) -> None:
        """`names`: class -> its new name; those of one new name are one class. Classes keep their order, and new names come behind them."""
        self.source, self.worse = source, worse
        renamed = [names.get(name, name) for name in source.classes]
        classes = [name for name in source.classes if name in renamed]
        classes += [name for name in dict.fromkeys(renamed) if name not in classes]
        samples = list(source.samples)
        if names:
            samples = [replace(each, label=classes.index(renamed[each.label])) for each in samples]
        if worse:
            samples = [replace(each, sha256=under(each.sha256, worse.name)) for each in samples]
        super().__init__(classes if names else source.classes, samples, source.skipped, kind=source.kind, remarks=source.remarks)

    def read(self, sample: Sample) -> np.ndarray:
        """The picture, uint8 [h, w, 3]. Raises UserError for one that can't be read."""
        picture = self.source.read(self.source.samples[self.source.samples.find(sample.id)])
        return self.worse(picture) if self.worse else picture


def of(source: Source, names: Mapping[str, str], worse: Corruption | None) -> Altered:
    """Raises UserError (keys dataset.rename and dataset.corruption) for a set of which these can't be had."""
    problems = []
    if worse and source.input != "pictures":
        problems.append(Problem("dataset.corruption", worse.name, "what enters the net are no pictures; null works"))
    if names and source.kind != "class":
        problems.append(Problem("dataset.rename", None, f"the set has {source.kind}, and no classes; null works"))
    else:
        problems += (strange := strangers("dataset.rename", names, source.classes))
        if names and not strange and len({names.get(name, name) for name in source.classes}) < 2:
            problems.append(Problem("dataset.rename", None, "one class alone would be left, and nothing to tell apart"))
    if problems:
        raise UserError(problems)
    return Altered(source, names, worse)
