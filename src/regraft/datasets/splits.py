"""Which picture goes into which split: a pure function of ids, classes, groups and a seed; never of file order or of a random state.

Chance comes from hashing (seed, id), so a picture's place in the draw is its own: another order, another machine, another numpy change
nothing, and the k + 1 pictures of `few` contain the k.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

from regraft.datasets.source import Sample
from regraft.errors import Problem, UserError


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
    members: dict[str, list[int]] = defaultdict(list)
    for index, (name, group) in enumerate(zip(ids, groups, strict=True)):
        members[f"id {name}" if group is None else f"group {group}"].append(index)
    # A group is drawn by its first id and not by its name, so that naming groups differently does not split differently.
    blocks = sorted(members.values(), key=lambda block: _draw(seed, "split", min(ids[index] for index in block)))
    of_class: dict[int, list[int]] = defaultdict(list)  # label -> its blocks
    for number, block in enumerate(blocks):
        for label in {labels[index] for index in block}:
            of_class[label].append(number)

    place: dict[int, str] = {}  # block -> split
    first: dict[int, str] = {}  # label -> its first id
    for name, label in zip(ids, labels, strict=True):
        first[label] = min(name, first.get(label, name))
    # Rarest class first: where classes share groups, it has the least choice. Ids break ties, for labels are an accident of order.
    for label in sorted(of_class, key=lambda label: (len(of_class[label]), first[label])):
        counts = {number: sum(labels[index] == label for index in blocks[number]) for number in of_class[label]}
        _split_class(counts, wanted, place)
    splits = [""] * len(ids)
    for number, block in enumerate(blocks):
        for index in block:
            splits[index] = place[number]
    return splits


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
    of_class: dict[int, list[str]] = defaultdict(list)
    for sample in samples:
        if sample.split == "train":
            of_class[sample.label].append(sample.id)
    chosen = {name for names in of_class.values() for name in sorted(names, key=lambda name: _draw(seed, "few", name))[:most]}
    return [sample for sample in samples if sample.split != "train" or sample.id in chosen]


def _refuse_small(labels: Sequence[int], classes: Sequence[str], wanted: Sequence[str]) -> None:
    """Refuses every class that has fewer pictures than there are splits to fill: train and those wanted."""
    counts = [0] * len(classes)
    for label in labels:
        counts[label] += 1
    if small := [(name, count) for name, count in zip(classes, counts, strict=True) if count <= len(wanted)]:
        raise UserError(Problem("dataset.classes", name, _too_few(count, wanted)) for name, count in small)


def _too_few(count: int, wanted: Sequence[str]) -> str:
    given = "has 1 picture" if count == 1 else f"has {count or 'no'} pictures"
    if not wanted:
        return f"{given} to train on; add some, or name the classes to keep with dataset.classes"
    zero = " and ".join(f"dataset.{split}=0" for split in wanted)
    need = " and ".join(["train", *wanted])
    return f"{given}, but {need} need one each: add pictures, give {zero}, or name the classes to keep with dataset.classes"


def _draw(seed: int, purpose: str, name: str) -> bytes:
    """A picture's place in a draw."""
    return hashlib.sha256(f"{seed} {purpose} {name}".encode("utf-8", "surrogateescape")).digest()
