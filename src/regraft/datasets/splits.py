"""Which picture goes into which split: a pure function of ids, classes, groups and a seed; never of file order or of a random state.

Chance comes from hashing (seed, id), so a picture's place in the draw is its own: another order, another machine, another numpy change
nothing, and the k + 1 pictures of `few` contain the k.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from regraft.datasets.source import Kind, Sample
from regraft.errors import Problem, UserError

if TYPE_CHECKING:
    import numpy as np

    from regraft.datasets import DatasetSpec
    from regraft.datasets.samples import Samples

TOLD = 20  # classes that one error names at most
OPEN = ""  # the split of a sample whose set brings none


def arrange(
    spec: DatasetSpec,
    classes: Sequence[str],
    samples: Sequence[Sample],
    brought: Collection[str] = (),
    *,
    kind: Kind = "class",
    sparse: bool = False,
) -> list[Sample]:
    """The samples in the splits that the spec asks for; equal pictures and pictures of one group share one.

    A sample carries the split that its set brings, or OPEN for none. With `folds`, all pictures take part in a k-fold split and what the
    set brings is ignored. Otherwise the splits not `brought` are made out of train, by the spec's `val` and `test`, class by class (kind
    "class") or from all pictures alike. At last `per_class` is kept. `sparse`: classes with few or no pictures are no mistake.
    Raises UserError: a class with fewer pictures than splits, or with fewer groups than folds.
    """
    strata = list(classes) if kind == "class" else ["the whole set"]
    seed = getattr(spec, "split_seed", 0)  # a set with splits of its own takes none
    free = [sample for sample in samples if spec.folds or sample.split in (OPEN, "train")]
    ids, labels = [sample.id for sample in free], [sample.label for sample in free]
    groups = joined([sample.group for sample in free], [sample.sha256 for sample in free])
    if spec.folds:
        numbers = folds(ids, labels, groups, strata, spec.folds, seed, sparse=sparse)
        names = {spec.fold: "test", (spec.fold + 1) % spec.folds: "val"}
        splits = [names.get(number, "train") for number in numbers]
    else:
        fractions = {split: getattr(spec, split, 0) for split in ("val", "test") if split not in brought}
        splits = assign(ids, labels, groups, fractions, seed) if sparse else make(ids, labels, groups, strata, fractions, seed)
    made = dict(zip(ids, splits, strict=True))
    return few([replace(sample, split=made.get(sample.id, sample.split)) for sample in samples], spec.per_class, seed)


def joined(*groupings: Sequence[str | None]) -> list[str | None]:
    """One grouping that keeps together whatever one of the given ones keeps together (None: alone); a group is called by a number."""
    parent = list(range(len(groupings[0])))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]  # halves the way for the next time
        return index

    for grouping in groupings:
        first: dict[str, int] = {}
        for index, name in enumerate(grouping):
            if name is not None:
                parent[root(index)] = root(first.setdefault(name, index))
    return [str(root(index)) for index in range(len(parent))]


def folds(
    ids: Sequence[str],
    labels: Sequence[int],
    groups: Sequence[str | None],
    classes: Sequence[str],
    count: int,
    seed: int,
    *,
    sparse: bool = False,
) -> list[int]:
    """For each picture the fold 0..count-1 that it belongs to. A group never crosses folds.

    The groups of a class are dealt in the order of their draw, each to the fold that has the fewest of the class: two folds differ by no
    more than one group, unless classes share groups. Raises UserError (key dataset.folds) for a class with fewer groups than folds,
    unless `sparse`.
    """
    blocks, of_class, order = _blocks(ids, labels, groups, seed, "fold")
    if not sparse and (short := [label for label in range(len(classes)) if len(of_class.get(label, ())) < count]):
        raise UserError(Problem("dataset.folds", count, _too_few_groups(classes[label], len(of_class.get(label, ())))) for label in short)
    place: dict[int, int] = {}  # block -> fold
    have: dict[int, list[int]] = {label: [0] * count for label in of_class}  # label -> its pictures in each fold
    total = [0] * count
    for label in order:
        for number in of_class[label]:
            if number not in place:
                place[number] = fold = min(range(count), key=lambda each: (have[label][each], total[each], each))
                total[fold] += len(blocks[number])
                for index in blocks[number]:
                    have[labels[index]][fold] += 1
    where = {index: place[number] for number, block in enumerate(blocks) for index in block}
    return [where[index] for index in range(len(ids))]


def make(
    ids: Sequence[str],
    labels: Sequence[int],
    groups: Sequence[str | None],
    classes: Sequence[str],
    fractions: Mapping[str, float],
    seed: int,
) -> list[str]:
    """What `assign` gives. Raises UserError (key dataset.classes) for classes with fewer pictures than splits, or none to train on."""
    _refuse_small(labels, classes, [split for split, fraction in fractions.items() if fraction > 0])
    splits = assign(ids, labels, groups, fractions, seed)
    _refuse_small([label for label, split in zip(labels, splits, strict=True) if split == "train"], classes, [])
    return splits


def assign(ids: Sequence[str], labels: Sequence[int], groups: Sequence[str | None], fractions: Mapping[str, float], seed: int) -> list[str]:
    """For each picture: "train", or one of the splits in `fractions` (split -> fraction 0..1 of each class; 0: not wanted).

    A group (None: the picture stands alone) never crosses a split. Each class is split for itself, and comes within one group of its
    fractions. A class with a group for each split, none of them shared with another class, has a picture in each; with fewer, train has
    one, and the splits named last in `fractions` come next.
    """
    wanted = {split: fraction for split, fraction in fractions.items() if fraction > 0}
    blocks, of_class, order = _blocks(ids, labels, groups, seed, "split")
    place: dict[int, str] = {}  # block -> split
    for label in order:
        counts = {number: sum(labels[index] == label for index in blocks[number]) for number in of_class[label]}
        _split_class(counts, wanted, place)
    splits = [""] * len(ids)
    for number, block in enumerate(blocks):
        for index in block:
            splits[index] = place[number]
    return splits


def _blocks(
    ids: Sequence[str], labels: Sequence[int], groups: Sequence[str | None], seed: int, purpose: str
) -> tuple[list[list[int]], dict[int, list[int]], list[int]]:
    """What must stay together (lists of indices, in the order of the draw), label -> its blocks, and the labels in the order of dealing."""
    members: dict[str, list[int]] = defaultdict(list)
    for index, (name, group) in enumerate(zip(ids, groups, strict=True)):
        members[f"id {name}" if group is None else f"group {group}"].append(index)
    # A group is drawn by its first id and not by its name, so that naming groups differently does not split differently.
    blocks = sorted(members.values(), key=lambda block: _draw(seed, purpose, min(ids[index] for index in block)))
    of_class: dict[int, list[int]] = defaultdict(list)
    for number, block in enumerate(blocks):
        for label in {labels[index] for index in block}:
            of_class[label].append(number)
    first: dict[int, str] = {}  # label -> its first id
    for name, label in zip(ids, labels, strict=True):
        first[label] = min(name, first.get(label, name))
    # Rarest class first: where classes share groups, it has the least choice. Ids break ties, for labels are an accident of order.
    return blocks, of_class, sorted(of_class, key=lambda label: (len(of_class[label]), first[label]))


def _split_class(counts: dict[int, int], wanted: Mapping[str, float], place: dict[int, str]) -> None:
    """Places the blocks of one class (block -> its pictures of the class, in the order of the draw) that have no place yet."""
    have: dict[str, int] = defaultdict(int)
    for number, count in counts.items():
        if number in place:
            have[place[number]] += count
    free = [number for number in counts if number not in place]
    order = list(wanted)
    for position, split in enumerate(order):
        target = wanted[split] * sum(counts.values())
        # train and the splits that are still to come must find a block each
        spare = len(free) - sum(not have[other] for other in ("train", *order[position + 1 :]))
        for number in free:
            if spare <= 0 or have[split] >= target:
                break
            if abs(have[split] + counts[number] - target) < abs(have[split] - target):  # take what brings the split nearer to its size
                place[number] = split
                have[split] += counts[number]
                spare -= 1
        if not have[split] and spare > 0:  # every block is too large: the smallest, so that the split isn't empty
            place[min(free, key=counts.__getitem__)] = split
        free = [number for number in free if number not in place]
    place.update(dict.fromkeys(free, "train"))


def few(samples: Sequence[Sample], most: int | None, seed: int) -> list[Sample]:
    """The samples with at most `most` train pictures per class (None: all); a smaller choice is part of every larger one."""
    if most is None:
        return list(samples)
    chosen = _chosen((sample for sample in samples if sample.split == "train"), most, seed)
    return [sample for sample in samples if sample.split != "train" or sample.id in chosen]


def labelled(spec: DatasetSpec, train: Samples) -> np.ndarray | None:
    """Places in train, [k] int64 in its order, of the pictures whose labels are known: those that `per_class` would keep. None: all are."""
    if spec.labelled is None:
        return None
    import numpy as np  # not needed to list the classes of a set

    chosen = _chosen(train, spec.labelled, getattr(spec, "split_seed", 0))
    return np.array([place for place, sample in enumerate(train) if sample.id in chosen], np.int64)


def _chosen(samples: Iterable[Sample], most: int, seed: int) -> set[str]:
    """The ids of at most `most` per class: the first of each in the draw."""
    of_class: dict[int, list[str]] = defaultdict(list)
    for sample in samples:
        of_class[sample.label].append(sample.id)
    return {name for names in of_class.values() for name in sorted(names, key=lambda name: _draw(seed, "few", name))[:most]}


def _refuse_small(labels: Sequence[int], classes: Sequence[str], wanted: Sequence[str]) -> None:
    """Refuses every class that has fewer pictures than there are splits to fill: train and those wanted."""
    counts = [0] * len(classes)
    for label in labels:
        counts[label] += 1
    if small := [(name, count) for name, count in zip(classes, counts, strict=True) if count <= len(wanted)]:
        more = [Problem("dataset.classes", None, f"{len(small) - TOLD} more classes have too few pictures")] if len(small) > TOLD else []
        raise UserError([*(Problem("dataset.classes", name, _too_few(count, wanted)) for name, count in small[:TOLD]), *more])


def _too_few(count: int, wanted: Sequence[str]) -> str:
    given = "has 1 picture" if count == 1 else f"has {count or 'no'} pictures"
    if not wanted:
        return f"{given} to train on; add some, or name the classes to keep with dataset.classes"
    zero = " and ".join(f"dataset.{split}=0" for split in wanted)
    need = " and ".join(["train", *wanted])
    return f"{given}, but {need} need one each: add pictures, give {zero}, or name the classes to keep with dataset.classes"


def _too_few_groups(name: str, count: int) -> str:
    least = f"give dataset.folds={count}, " if count >= 3 else ""
    return (
        f"{name} has {count} groups of pictures (equal ones, and those of one group, count once), fewer than folds: {least}add pictures, "
        "or name the classes to keep with dataset.classes"
    )


def _draw(seed: int, purpose: str, name: str) -> bytes:
    """A picture's place in a draw."""
    return hashlib.sha256(f"{seed} {purpose} {name}".encode("utf-8", "surrogateescape")).digest()
