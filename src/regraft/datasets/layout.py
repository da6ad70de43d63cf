"""How a folder of pictures is laid out: PATH/<split>/<class>/* or PATH/<class>/*, found by looking, without opening a picture."""

from __future__ import annotations

import os
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from regraft.errors import Problem, UserError, either, nearest

SUFFIXES = (".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp")
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
LAYOUTS = "lay pictures out as PATH/<class>/* or PATH/<split>/<class>/* (splits are called train, val, test)"


class Layout(NamedTuple):
    """A folder that was recognised."""

    root: Path  # absolute, links resolved
    splits: dict[str, str]  # split -> its folder's name; empty: PATH/<class>/*
    classes: list[str]  # sorted


class Found(NamedTuple):
    """One picture file."""

    id: str  # path relative to the root, with forward slashes
    split: str | None  # None: the layout has no split folders
    name: str  # its class


def find(path: str) -> Layout:
    """The layout of `path` (`~` is expanded). Looks at folders only, so it is quick however many pictures there are.

    Raises UserError (key dataset.path): no such folder, no class folders, one class only, a split folder whose classes train lacks.
    """
    given = Path(os.path.expanduser(path))
    if not given.exists():
        raise _refused(path, _missing(given))
    if not given.is_dir():
        raise _refused(path, f"is a file; give the folder that holds the pictures ({LAYOUTS})")
    root = given.resolve()
    folders = _folders(root, root)
    splits: dict[str, str] = {}
    for name in folders:
        if split := SPLIT_FOLDERS.get(name.lower()):
            if split in splits:
                raise _refused(path, f"{splits[split]} and {name} both mean {split}; keep one of them")
            splits[split] = name
    if not splits:
        return Layout(root, {}, _classes(path, root, root, folders))
    if "train" not in splits:
        raise _refused(path, f"has {either(splits.values())} but no train; add the folder train, or {LAYOUTS}")
    for name in folders:
        if name not in splits.values() and (near := get_close_matches(name.lower(), SPLIT_FOLDERS, 1, cutoff=0.7)):
            raise _refused(
                path, f"{name} is no split folder, and would be passed over; did you mean {near[0]}? Rename it, or move it elsewhere"
            )
    inside = {split: _classes(path, root, root / name, _folders(root / name, root)) for split, name in splits.items()}
    for split, classes in inside.items():
        if strange := [name for name in classes if name not in inside["train"]]:
            first = f"{splits[split]}/{strange[0]}"
            hint = nearest(strange[0], inside["train"], 1) or f"train has {either(inside['train'][:20])}."
            raise _refused(path, f"{first} is a class that train lacks; {hint} Add it to train, or remove it from {splits[split]}")
    return Layout(root, splits, inside["train"])


def pictures(layout: Layout, classes: list[str]) -> Iterator[Found]:
    """The picture files of these classes. Hidden files and files that are no pictures (by suffix) are passed over.

    Raises UserError (key dataset.path): a class folder without pictures, with a folder inside, or with a link that leaves the root.
    """
    for split, folder in layout.splits.items() or [(None, "")]:
        for name in classes:
            place = layout.root / folder / name
            if not place.is_dir():  # val and test need not have every class
                continue
            count = 0
            for entry in _entries(place, layout.root):
                if entry.is_dir():
                    remedy = f"{place} holds a folder, {entry.name}; pictures lie in the class folder itself: move them up ({LAYOUTS})"
                    raise _refused(str(layout.root), remedy)
                # A link to nothing is let through, so that it is told as a file that can't be read.
                if entry.name.lower().endswith(SUFFIXES) and (entry.is_file() or entry.is_symlink()):
                    count += 1
                    yield Found("/".join(filter(None, (folder, name, entry.name))), split, name)
            if not count:
                remedy = f"the class folder {place} holds no pictures; add some (files ending in {either(SUFFIXES)}), or remove the folder"
                raise _refused(str(layout.root), remedy)


def folders(place: Path) -> list[str]:
    """Names of the folders in a place, sorted, links to folders too; hidden ones are passed over. Raises UserError where they can't be."""
    try:
        with os.scandir(place) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise _refused(str(place), f"can't be listed ({error.strerror}); make it readable") from None


def _folders(place: Path, root: Path) -> list[str]:
    """Names of the folders in a place, sorted."""
    return sorted(entry.name for entry in _entries(place, root) if entry.is_dir())


def _entries(place: Path, root: Path) -> Iterator[os.DirEntry[str]]:
    """What a folder holds, hidden names left out. A link out of the root is refused: the data would depend on what lies elsewhere."""
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if not _readable(entry.name):
                    remedy = f"{entry.path!a} has a name that is no UTF-8, which no table could hold; rename it"
                    raise _refused(str(root), remedy)
                if entry.is_symlink() and not Path(target := os.path.realpath(entry.path)).is_relative_to(root):
                    remedy = f"{entry.path} is a link that leaves the folder, to {target}; copy the data in its place, or remove the link"
                    raise _refused(str(root), remedy)
                yield entry
    except OSError as error:
        raise _refused(str(root), f"{place} can't be listed ({error.strerror}); make it readable, or move it elsewhere") from None


def _readable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes of another encoding, which Python carries as lone surrogates
        return False
    return True


def _classes(path: str, root: Path, place: Path, classes: list[str]) -> list[str]:
    """The class folders of a place, two at least (in val and test, one is enough)."""
    inside = "" if place == root else f"{place.name} "
    if not classes:
        remedy = "is empty" if not any(place.iterdir()) else "has no class folders"
        raise _refused(path, f"{inside}{remedy}; {LAYOUTS}")
    if len(classes) < 2 and (place == root or SPLIT_FOLDERS[place.name.lower()] == "train"):
        raise _refused(path, f"{inside}has one class only, {classes[0]}; at least two class folders are needed ({LAYOUTS})")
    return classes


def _missing(given: Path) -> str:
    """What to do about a folder that isn't there: the folder of the nearest name, where the path goes wrong."""
    there = whole = Path(os.path.abspath(given))
    while not there.is_dir():
        there = there.parent
    wanted, *rest = whole.relative_to(there).parts
    names = [entry.name for entry in _entries(there, Path(there.anchor)) if entry.is_dir()]
    if near := get_close_matches(wanted, sorted(names), 1):
        mended = Path(there, near[0], *rest)
        return f"no such folder; did you mean {mended if mended.is_dir() else there / near[0]}?"
    return f"no such folder: {there} has no {wanted}; {LAYOUTS}"


def _refused(path: str, remedy: str) -> UserError:
    return UserError(Problem("dataset.path", path, remedy))
