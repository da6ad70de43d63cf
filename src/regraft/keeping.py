"""What is kept: which views of which pictures are wanted at which boundary, and where a row is read sooner than computed again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from regraft.views import IDENTITY, Seen

READ = 5e8  # bytes that are read in a second: a plain SSD; what lies in memory is read ten times as fast

Wants = dict[str, dict[str, list[Seen]]]  # boundary -> split -> views


class Cost(NamedTuple):
    """What a row at a boundary costs."""

    seconds: float  # to compute it from the picture
    bytes: int

    @property
    def pays(self) -> bool:
        """Whether reading it takes less time than computing it."""
        return self.bytes / READ < self.seconds


def wanted(
    order: Sequence[str], trained: Iterable[str], lowest: str, training: Sequence[Seen] | None, measuring: Mapping[str, Sequence[Seen]]
) -> Wants:
    """What can be kept, the lowest boundary first; each view once.

    `order`: the stages, of which the first has nothing below it. `trained`: the boundaries of phases below which nothing has changed when
    they begin. `lowest`: where whole splits are `measuring` at the end, in these views of each. `training`: the views of a train picture;
    None: they never end.
    """
    found: dict[str, dict[str, list[Seen]]] = {}
    for boundary in trained:
        of = found.setdefault(boundary, {})
        of["train"], of["val"] = list(training or ()), [IDENTITY]
    for split, views in measuring.items():
        known = found.setdefault(lowest, {}).get(split, [])
        found[lowest][split] = list(dict.fromkeys([*known, *views]))
    return {stage: found[stage] for stage in order[1:] if stage in found}


def again_pays(epochs: int, views: int, expand: bool) -> bool:
    """Whether rows that only one phase will use are sooner made of all views at once than picture by picture in each of its epochs."""
    return epochs * (views if expand else 1) > views
