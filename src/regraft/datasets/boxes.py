"""Pictures with boxes: COCO's json, Pascal VOC's xml and csv tables become one list of boxes; every mistake is told with its place.

A box is given in px of the upright picture, and kept as parts of its width and height.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from regraft.datasets.fingerprint import THREADS, TOLD, examine
from regraft.datasets.layout import SPLIT_FOLDERS, SUFFIXES
from regraft.datasets.markup import elements
from regraft.datasets.names import in_order
from regraft.datasets.pictures import FORMATS, ORIENTATION
from regraft.datasets.source import Files, Sample, Source
from regraft.datasets.splits import OPEN, arrange
from regraft.datasets.tables import headed, lines_of
from regraft.errors import Problem, UserError, either, nearest, shown

if TYPE_CHECKING:
    from regraft.datasets.detection import Boxes, Coco, Voc

    BoxSpec = Boxes | Coco | Voc

MAX_JSON = 2_000_000_000  # bytes; COCO's own train file has 450 MB
MAX_XML = 20_000_000  # bytes of one picture's annotations
PIXEL = 1.0  # px that a box may reach over the edge, and is cut: VOC counts from 1, and others round
FAR = 1e9  # px: no picture is so large


class Marked(NamedTuple):
    """A box as it was given."""

    place: str  # file and line, or file and index: for errors
    name: str  # its class
    corners: tuple[float, float, float, float]  # left, top, right, bottom, px


class Annotated(NamedTuple):
    """A picture and its boxes."""

    file: str  # relative to the root
    place: str  # where it is named: for errors
    split: str  # or OPEN
    size: tuple[int, int] | None  # width and height that were given with the boxes, px
    boxes: list[Marked]
    wrong: list[Problem]  # what keeps it from being used


def load_coco(spec: Coco, cache: Path) -> Source:
    """Raises UserError for files, pictures and boxes that can't be used."""
    files = spec.files()
    root = Path(os.path.commonpath([folder.resolve() for _, folder in files.values()]))
    found: list[Annotated] = []
    known: list[str] = []
    mistakes: list[Problem] = []
    crowds = 0
    for split, (path, folder) in files.items():
        inside = PurePosixPath(folder.resolve().relative_to(root).as_posix())
        names, pictures, crowd = _coco(path, split if len(files) > 1 else OPEN, inside, mistakes)
        known, found, crowds = known or names, found + pictures, crowds + crowd
        if names != known:
            mistakes.append(Problem(str(path), None, f"its categories are {either(names)}, and {spec.path} has {either(known)}"))
    remarks = [f"{crowds} boxes of crowds (iscrowd=1) were left out"] if crowds else []
    return _source(spec, cache, root, found, known, set(files) - {"train"}, mistakes, remarks)


def load_voc(spec: Voc, cache: Path) -> Source:
    """Raises UserError for files, pictures and boxes that can't be used."""
    root = Path(spec.path).expanduser().resolve()
    notes, pictures = root / "Annotations", root / "JPEGImages"
    for folder in (notes, pictures):
        if not folder.is_dir():
            raise UserError(
                Problem("dataset.path", spec.path, f"holds no folder {folder.name}; VOC has Annotations/*.xml and JPEGImages/*")
            )
    mistakes: list[Problem] = []
    lists = {path.stem: path for path in sorted((root / "ImageSets" / "Main").glob("*.txt")) if path.stem in SPLIT_FOLDERS}
    splits: dict[str, tuple[str, str]] = {}  # stem -> its split, and where it is listed
    torn: dict[str, list[Problem]] = {}  # stem -> that another list has it too
    for name, path in lists.items():
        for place, stem in _listed(path, notes, mistakes):
            split, before = splits.setdefault(stem, (SPLIT_FOLDERS[name], place))
            if split != SPLIT_FOLDERS[name]:
                remedy = f"is in {split} at {before}; a picture is in one split"
                torn.setdefault(stem, []).append(Problem(place, stem, remedy))
    there = {path.name: path.name for path in pictures.iterdir() if path.suffix.lower() in SUFFIXES}
    stems = {Path(name).stem: name for name in sorted(there, reverse=True)}
    found = []
    for path in sorted(notes.glob("*.xml")):
        if lists and path.stem not in splits:
            continue
        try:
            found.append(_voc(path, there, stems, splits.get(path.stem, (OPEN, ""))[0], torn.get(path.stem, [])))
        except UserError as error:
            mistakes += error.problems
    return _source(spec, cache, root, found, spec.known, {split for split, _ in splits.values()} - {"train"}, mistakes)


def load_csv(spec: Boxes, cache: Path) -> Source:
    """Raises UserError for lines (file and line), pictures and boxes that can't be used."""
    path = Path(spec.path).expanduser()
    root = (Path(spec.root).expanduser() if spec.root else path.parent).resolve()
    file, name, *sides = spec.columns
    mistakes: list[Problem] = []
    found: dict[str, Annotated] = {}
    for number, cells in _lines(spec, path):
        place = f"{path}:{number}"
        given = os.path.normpath(cells[file]) if cells[file] else ""
        if not given or not _inside(given):
            mistakes.append(Problem(place, cells[file] or None, f"a path inside of {root} is needed in the column {file}"))
            continue
        word = cells[spec.split].lower() if spec.split else ""
        if spec.split and word not in SPLIT_FOLDERS:
            mistakes.append(Problem(place, cells[spec.split] or None, f"{spec.split} is {either(SPLIT_FOLDERS)}"))
            continue
        picture = found.setdefault(given, Annotated(given, place, SPLIT_FOLDERS.get(word, OPEN), None, [], []))
        if SPLIT_FOLDERS.get(word, OPEN) != picture.split:
            picture.wrong.append(Problem(place, word, f"{given} is in {picture.split} at {picture.place}; a picture is in one split"))
        if not any(cells[column] for column in (name, *sides)):
            continue  # a picture without boxes
        try:
            corners = tuple(float(cells[column]) for column in sides)
        except ValueError:
            picture.wrong.append(Problem(place, ", ".join(cells[column] for column in sides), f"{either(sides)} must be numbers, in px"))
            continue
        picture.boxes.append(Marked(place, cells[name], corners))  # type: ignore[arg-type]
    brought = {picture.split for picture in found.values()} - {OPEN, "train"}
    return _source(spec, cache, root, list(found.values()), spec.known, brought, mistakes)


def _source(
    spec: BoxSpec,
    cache: Path,
    root: Path,
    found: Sequence[Annotated],
    known: Sequence[str] | None,
    brought: set[str],
    mistakes: list[Problem],
    remarks: Sequence[str] = (),
) -> Source:
    """Pictures with their boxes as a source. Raises UserError with the first 20 mistakes; on_error=skip leaves those pictures out."""
    skip = spec.on_error == "skip"
    _placed(root, found)
    mistakes += [problem for each in found for problem in each.wrong]
    try:
        hashes, skipped = examine(root, [each.file for each in found], cache, spec.on_error)
    except UserError as error:
        raise UserError([*mistakes, *error.problems][: TOLD + 1]) from None
    readable = [each for each in found if each.file in hashes]
    with ThreadPoolExecutor(THREADS) as threads:
        sizes = list(threads.map(lambda each: upright(root / each.file), readable))
    names = list(known) if known else in_order({box.name for each in readable for box in each.boxes} - {""})
    if strange := [name for name in spec.classes or () if name not in names]:
        hints = (nearest(name, names) or f"there are {either(names[:TOLD])}" for name in strange)
        raise UserError(Problem("dataset.classes", name, f"no such class; {hint}") for name, hint in zip(strange, hints, strict=True))
    classes = spec.classes or names
    kept: list[tuple[Annotated, np.ndarray]] = []
    for each, size in zip(readable, sizes, strict=True):
        wrong, rows = _judged(each, size, names, classes)
        mistakes += wrong
        if not wrong and not each.wrong:
            kept.append((each, rows))
    if mistakes and not skip:
        more = [Problem("dataset.path", spec.path, f"{len(mistakes) - TOLD} more mistakes; on_error=skip leaves such pictures out")]
        raise UserError([*mistakes[:TOLD], *(more if len(mistakes) > TOLD else [])])
    if not any(len(rows) for _, rows in kept):
        raise UserError(Problem("dataset.path", spec.path, "has no box that can be used"))
    most = max(len(rows) for _, rows in kept)
    samples = [Sample(each.file, each.split, 0, hashes[each.file], target=padded(rows, most)) for each, rows in kept]
    return Files(
        root, classes, arrange(spec, classes, samples, brought, kind="boxes"), [*skipped, *mistakes], kind="boxes", remarks=remarks
    )


def _placed(root: Path, found: Sequence[Annotated]) -> None:
    """Mark the pictures that are named twice, and those that a link leads out of the root for."""
    first: dict[str, Annotated] = {}
    outside = {folder: not (root / folder).resolve().is_relative_to(root) for folder in {os.path.dirname(each.file) for each in found}}
    for each in found:
        place, before = root / each.file, first.setdefault(each.file, each)
        if before is not each:
            each.wrong.append(
                Problem(each.place, each.file, f"is named at {before.place} too; a picture is named once, with all of its boxes")
            )
            before.wrong.append(Problem(before.place, each.file, f"is named at {each.place} too"))
        if outside[os.path.dirname(each.file)] or (place.is_symlink() and not place.resolve().is_relative_to(root)):
            each.wrong.append(Problem(each.place, each.file, f"is a link out of {root}; copy the picture in its place"))


def padded(rows: np.ndarray, most: int) -> np.ndarray:
    """Boxes [m, 5] -> float32 [most, 5]; a row without a box has the class -1."""
    whole = np.zeros((most, 5), np.float32)
    whole[:, 0] = -1
    whole[: len(rows)] = rows
    return whole


def upright(path: Path) -> tuple[int, int]:
    """Width and height in px as the picture is seen, by its header."""
    with Image.open(path, formats=FORMATS) as image:
        try:
            turned = image.getexif().get(ORIENTATION, 1) >= 5
        except Exception:  # as in `pictures`: a broken EXIF block raises many kinds
            turned = False
        return (image.height, image.width) if turned else image.size


def _judged(each: Annotated, size: tuple[int, int], names: Sequence[str], classes: Sequence[str]) -> tuple[list[Problem], np.ndarray]:
    """What is wrong with a picture's boxes, and those of the chosen classes [m, 5]: class, x0, y0, x1, y1 in parts."""
    width, height = size
    if each.size is not None and each.size != size:
        given, real = (f"{wide} x {high} px" for wide, high in (each.size, size))
        return [Problem(each.place, each.file, f"its boxes are of a picture of {given}, and it has {real}; mend one of them")], np.empty(
            (0, 5)
        )
    wrong, rows = [], []
    for place, name, corners in each.boxes:
        left, top, right, bottom = corners
        told = f"{left:g}, {top:g}, {right:g}, {bottom:g}"
        if name not in names:
            wrong.append(Problem(place, name or None, f"no such class; {nearest(name, names) or f'there are {either(names[:TOLD])}'}"))
        elif not all(map(math.isfinite, corners)) or right <= left or bottom <= top:
            wrong.append(Problem(place, told, "the box has no area; right must be more than left, and bottom more than top"))
        elif min(left, top) < -PIXEL or right > width + PIXEL or bottom > height + PIXEL or left >= width or top >= height:
            wrong.append(Problem(place, told, f"the box lies outside of {each.file}, which has {width} x {height} px"))
        elif name in classes:
            inside = [min(max(side, 0), edge) / edge for side, edge in zip(corners, (width, height) * 2, strict=True)]
            rows.append((classes.index(name), *inside))
    return wrong, np.array(rows, np.float32).reshape(-1, 5)


def _inside(name: str) -> bool:
    """Whether a path as it was given stays in its folder."""
    return "\0" not in name and not PurePosixPath(name).is_absolute() and os.path.normpath(name).split(os.sep)[0] != os.pardir


# COCO


def _coco(path: Path, split: str, folder: PurePosixPath, mistakes: list[Problem]) -> tuple[list[str], list[Annotated], int]:
    """Category names in the order of their ids, the pictures with their boxes, and how many boxes of crowds there were."""
    parts = _json(path)
    names = {each["id"]: each["name"] for _, each in _rows(path, parts, "categories", {"id": int, "name": str}, mistakes)}
    if len(set(names.values())) < len(names):
        mistakes.append(Problem(f"{path}: categories", None, "two have one name; give each its own"))
    found: dict[int, Annotated] = {}
    wanted = {"id": int, "file_name": str, "width": int, "height": int}
    for place, each in _rows(path, parts, "images", wanted, mistakes):
        if each["id"] in found:
            mistakes.append(Problem(place, each["id"], "another picture has this id; give each its own"))
            found[each["id"]].wrong.append(Problem(found[each["id"]].place, each["id"], "another picture has this id"))
        elif not _inside(each["file_name"]):
            mistakes.append(Problem(place, each["file_name"], "a path inside of the pictures' folder is needed"))
        else:
            file = str(folder / os.path.normpath(each["file_name"]))
            found[each["id"]] = Annotated(file, place, split, (each["width"], each["height"]), [], [])
    crowds = 0
    for place, each in _rows(path, parts, "annotations", {"image_id": int, "category_id": int, "bbox": list}, mistakes):
        picture, box = found.get(each["image_id"]), each["bbox"]
        if picture is None:
            mistakes.append(Problem(place, each["image_id"], "no picture has this id"))
        elif each["category_id"] not in names:
            remedy = f"no category has this id; there are {either(list(names)[:TOLD])}"
            picture.wrong.append(Problem(place, each["category_id"], remedy))
        elif len(box) != 4 or not all(isinstance(side, int | float) and not isinstance(side, bool) and abs(side) < FAR for side in box):
            picture.wrong.append(Problem(place, shown(box)[:100], "bbox is left, top, width and height in px"))
        elif each.get("iscrowd"):
            crowds += 1
        else:
            left, top, width, height = map(float, box)
            picture.boxes.append(Marked(place, names[each["category_id"]], (left, top, left + width, top + height)))
    return [names[number] for number in sorted(names)], list(found.values()), crowds


def _json(path: Path) -> dict[str, Any]:
    """Raises UserError for what is no json object, too large, or nested too deep."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise UserError(Problem(str(path), None, f"is larger than {MAX_JSON // 10**9} GB; split it"))
        parts = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise UserError(Problem(str(path), None, f"can't be read as json ({error or type(error).__name__})")) from None
    if not isinstance(parts, dict):
        raise UserError(Problem(str(path), None, "is no COCO file: an object with images, annotations and categories is needed"))
    return parts


def _rows(
    path: Path, parts: dict[str, Any], key: str, wanted: dict[str, type], mistakes: list[Problem]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a list, each with its place, that have what is wanted of them."""
    rows = parts.get(key)
    if not isinstance(rows, list):
        raise UserError(Problem(f"{path}: {key}", None, "a list of this name is needed; give a COCO file of instances"))
    for number, row in enumerate(rows):
        place = f"{path}: {key}[{number}]"
        lacking = [name for name, kind in wanted.items() if not isinstance(row, dict) or not isinstance(row.get(name), kind)]
        if lacking:
            mistakes.append(Problem(place, None, f"{either(lacking)} is missing, or of another type"))
        else:
            yield place, row


# Pascal VOC


def _voc(path: Path, there: dict[str, str], stems: dict[str, str], split: str, wrong: list[Problem]) -> Annotated:
    """One file of annotations. `there` and `stems`: the pictures by name, and by name without suffix."""
    if path.stat().st_size > MAX_XML:
        raise UserError(Problem(str(path), None, f"is larger than {MAX_XML // 10**6} MB"))
    whole = elements(path.read_bytes(), path)
    named = whole.text("filename")
    file = there.get(named) or stems.get(path.stem)
    if file is None:
        raise UserError(Problem(f"{path}:{whole.line}", named or None, "JPEGImages holds no such picture"))
    problems, boxes = [], []
    for each in whole.all("object"):
        sides = [each.text("bndbox", side) for side in ("xmin", "ymin", "xmax", "ymax")]
        try:
            corners = tuple(map(float, sides))
        except ValueError:
            problems.append(Problem(f"{path}:{each.line}", ", ".join(sides), "bndbox needs xmin, ymin, xmax and ymax as numbers, in px"))
            continue
        boxes.append(Marked(f"{path}:{each.line}", each.text("name"), corners))  # type: ignore[arg-type]
    size = [whole.text("size", side) for side in ("width", "height")]
    if problems:
        raise UserError(problems)
    given = (int(size[0]), int(size[1])) if all(side.isdecimal() and int(side) for side in size) else None
    return Annotated(f"JPEGImages/{file}", f"{path}:{whole.line}", split, given, boxes, list(wrong))


def _listed(path: Path, notes: Path, mistakes: list[Problem]) -> Iterator[tuple[str, str]]:
    """Place and stem of what a list of a split names; a second column, of a class's lists, is left aside. Raises UserError: not UTF-8."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(Problem(str(path), None, f"can't be read ({error}); save it as UTF-8, a name on each line")) from None
    for number, line in enumerate(text.splitlines(), 1):
        stem = line.split()[0] if line.split() else ""
        if stem and (not _inside(stem) or not (notes / f"{stem}.xml").is_file()):
            mistakes.append(Problem(f"{path}:{number}", stem, "Annotations holds no such xml"))
        elif stem:
            yield f"{path}:{number}", stem


# csv


def _lines(spec: Boxes, path: Path) -> Iterable[tuple[int, dict[str, str]]]:
    """Number and cells of each line. Raises UserError: no such file, not UTF-8, columns that are missing, ragged lines."""
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(Problem("dataset.path", str(path), f"can't be read ({error}); give a csv file in UTF-8")) from None
    needed = [*spec.columns, *([spec.split] if spec.split else [])]
    delimiter, header = headed(path, text, spec.delimiter, needed)
    if missing := [name for name in needed if header.count(name) != 1]:
        hint = f"there are {either(header)}; name yours in dataset.columns"
        raise UserError(Problem(f"{path}:1", None, f"has not one column {name}; {nearest(name, header) or hint}") for name in missing)
    return lines_of(path, text, delimiter, header)
