"""ImageNet as ILSVRC2012 lays it out: train/<WordNet id>/* and val/<WordNet id>/*, or any part of it, with what is missing said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from regraft.datasets import layout
from regraft.datasets.fingerprint import examine
from regraft.datasets.names import imagenet, imagenet_words
from regraft.datasets.source import Files, Sample, Source
from regraft.datasets.splits import arrange
from regraft.errors import Problem, UserError, nearest

if TYPE_CHECKING:
    from regraft.datasets import ImageNet

# Its val has long been what everybody reports: it is our test, and a part of train becomes val, on which choices are made.
SPLITS = {"train": "train", "test": "val"}
PICTURES = {"train": 1_281_167, "test": 50_000}  # Russakovsky et al. 2015, table 2
PER_CLASS = 50  # validation pictures of each class
TOLD = 5  # missing classes that are named


def find(path: str) -> layout.Layout:
    """The layout of `path`; classes are the WordNet ids that have a folder in train or val.

    Raises UserError (key dataset.path): no such folder, neither train nor val, a folder that is no class, pictures that are not in class
    folders.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise _refused(path, "is no folder; give the one that holds train/<WordNet id>/* and val/<WordNet id>/*")
    root = root.resolve()
    splits = {split: folder for split, folder in SPLITS.items() if (root / folder).is_dir()}
    if not splits:
        raise _refused(path, "has neither train nor val; give the folder that holds train/<WordNet id>/* and val/<WordNet id>/*")
    classes: set[str] = set()
    for folder in splits.values():
        inside = layout.folders(root / folder)
        if strange := [name for name in inside if name not in imagenet()]:
            hint = nearest(strange[0], imagenet()) or "they are called n01440764 to n15075141"
            remedy = f"{folder}/{strange[0]} is none of ImageNet's 1,000 classes; {hint}"
            raise _refused(path, remedy)
        if not inside:
            remedy = f"{folder} has no class folders; sort its pictures into {folder}/<WordNet id>/"
            if folder == "val":
                remedy += (
                    " (the devkit's ILSVRC2012_validation_ground_truth.txt says which is which, and torchvision.datasets.ImageNet does it)"
                )
            raise _refused(path, remedy)
        classes.update(inside)
    return layout.Layout(root, splits, sorted(classes))


def load(spec: ImageNet, cache: Path) -> Source:
    """Always with all 1,000 classes (or the chosen ones) in the order of their ids, whichever are there, so that labels are ImageNet's."""
    found = find(spec.path)
    names = imagenet()
    chosen = {wnid: names[wnid] for wnid in (imagenet_words()[word] for word in spec.classes or names)}
    label_of = {wnid: label for label, wnid in enumerate(chosen)}
    files = {file.id: file for file in sorted(layout.pictures(found, [wnid for wnid in chosen if wnid in found.classes]))}
    hashes, skipped = examine(found.root, list(files), cache, spec.on_error)
    samples = [Sample(file.id, file.split or "train", label_of[file.name], hashes[file.id]) for file in files.values() if file.id in hashes]
    placed = arrange(spec, list(chosen.values()), samples, ("test",), sparse=True)
    remarks = list(_missing(samples, list(chosen), narrowed=spec.classes is not None))
    return Files(found.root, list(chosen.values()), placed, skipped, remarks=remarks)


def _missing(samples: list[Sample], wnids: list[str], *, narrowed: bool) -> Iterator[str]:
    """What the folder lacks of the real thing; nothing where it is complete."""
    if narrowed:
        yield f"imagenet: {len(wnids)} of 1,000 classes were chosen; figures are not ImageNet's"
    have = {split: Counter(wnids[sample.label] for sample in samples if sample.split == split) for split in SPLITS}
    whole = {"train": None if narrowed else PICTURES["train"], "test": PER_CLASS * len(wnids)}
    parts = []
    absent = [wnid for wnid in wnids if wnid not in have["test"]]
    if (count := have["test"].total()) != whole["test"]:
        parts.append(
            f"{len(wnids) - len(absent):,} of {len(wnids):,} classes and {count:,} of {whole['test']:,} validation pictures are there"
        )
        if absent:
            more = f", ... ({len(absent)} class folders)" if len(absent) > TOLD else ""
            parts.append(f"missing: {', '.join(absent[:TOLD])}{more}")
        if short := [wnid for wnid in wnids if 0 < have["test"][wnid] < PER_CLASS]:
            parts.append(f"{len(short)} classes have fewer than {PER_CLASS} validation pictures")
        parts.append("figures are not ImageNet's")
    if parts:
        yield f"imagenet: {'; '.join(parts)}"
    trained = have["train"]
    if (whole["train"] is not None and trained.total() != whole["train"]) or len(trained) < len(wnids):
        of = f" of {whole['train']:,}" if whole["train"] else ""
        yield f"imagenet: {trained.total():,}{of} train pictures of {len(trained):,} of {len(wnids):,} classes are there to train on"


def _refused(path: str, remedy: str) -> UserError:
    return UserError(Problem("dataset.path", path, remedy))
