"""Pictures with words: COCO's json, a csv, and the embedded set's titles and tags; which words are known is counted on train alone."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from regraft import vocabulary
from regraft.datasets import clipart
from regraft.datasets.layout import SPLIT_FOLDERS
from regraft.datasets.source import Files, Sample, Source
from regraft.datasets.splits import OPEN, arrange
from regraft.datasets.tables import Line, headed, lines_of
from regraft.errors import Problem, UserError, either, nearest

if TYPE_CHECKING:
    from regraft.datasets import DatasetSpec
    from regraft.datasets.captioned import Captioned, Captions, ClipartTags, ClipartTitles, CocoCaptions

TOLD = 20  # mistakes that one error tells at most
MOST = 2**30  # bytes of a json or csv file; COCO's largest has 92 MB
LETTERS = 10_000  # of one caption
MEASURED = 100  # words of a caption of val or test

References = list[list[str]]  # the captions of a picture, as words


class Entry(NamedTuple):
    """A caption, and what its file says of the picture."""

    where: str  # file and line, or file and place in it
    file: str  # as it is written
    text: str
    split: str = OPEN
    group: str | None = None


def load_titles(spec: ClipartTitles, memos: Path) -> Source:
    """The embedded set's titles. Raises UserError for files that differ from labels.csv."""
    titles = {row["file"]: [vocabulary.words(row["title"])] for row in clipart.rows()}
    samples, skipped = _clipart(spec, memos)
    return _source(spec, clipart.ROOT, samples, titles, ("val", "test"), skipped)


def load_tags(spec: ClipartTags, memos: Path) -> Source:
    """The embedded set's tags that enough train pictures have, frequent ones first, or `dataset.classes` in their order.

    Raises UserError for files that differ from labels.csv, and where no tag is frequent enough."""
    held = {row["file"]: tags(row) for row in clipart.rows()}
    samples, skipped = _clipart(spec, memos)
    arranged = arrange(spec, ["the whole set"], samples, ("val", "test"), kind="tags")
    counts = Counter(tag for sample in arranged if sample.split == "train" for tag in held[sample.id])
    frequent = [tag for tag, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if count >= spec.floor]
    names = frequent if spec.classes is None else [tag for tag in spec.classes if tag in frequent]
    if not names:
        most = max(counts.values(), default=0)
        raise UserError(Problem("dataset.floor", spec.floor, f"no tag is that frequent; the most frequent one is on {most} train pictures"))
    tagged = [replace(sample, target=tuple(float(name in held[sample.id]) for name in names)) for sample in arranged]
    return Files(clipart.ROOT, names, tagged, skipped, kind="tags")


def tags(row: Mapping[str, str]) -> list[str]:
    """The tags of a line of labels.csv."""
    return list(dict.fromkeys(tag for part in row["tags"].split("|") if (tag := part.strip())))


def load_coco(spec: CocoCaptions, memos: Path) -> Source:
    """The pictures of one or two json files. Raises UserError for what can't be used in them, with the file and the place in it."""
    parts = [(spec.path, spec.root, OPEN), *([(spec.test_path, spec.test_root, "test")] if spec.test_path else [])]
    roots = [_root(path, root) for path, root, _ in parts]
    common = Path(os.path.commonpath(roots))
    entries, remarks = [], []
    for (path, _, split), root in zip(parts, roots, strict=True):
        before = str(root.relative_to(common))
        found, alone = _read_coco(Path(path).expanduser(), "" if before == "." else before, split)
        entries += found
        remarks += [f"{alone:,} pictures of {Path(path).name} have no caption and are left out"] if alone else []
    return _opened(spec, common, entries, memos, ("test",) if spec.test_path else (), remarks)


def load_csv(spec: Captions, memos: Path) -> Source:
    """The pictures that the table names. Raises UserError for lines (file and line) that can't be used."""
    path = Path(spec.path).expanduser()
    entries = list(_read_csv(spec, path))
    brought = {entry.split for entry in entries} - {OPEN, "train"}
    if spec.split and not spec.folds and all(entry.split != "train" for entry in entries):
        raise UserError(Problem("dataset.split", spec.split, f"no line of {path} is in train; write train for the pictures to learn from"))
    return _opened(spec, _root(spec.path, spec.root), entries, memos, brought)


def _clipart(spec: DatasetSpec, memos: Path) -> tuple[list[Sample], list[Problem]]:
    """All drawings, in labels.csv's own splits."""
    source = clipart.load(clipart_spec(spec), memos)
    return [replace(sample, label=0) for sample in source.samples], source.skipped


def clipart_spec(spec: DatasetSpec) -> Any:
    """What opens all drawings: the choices of classes and few pictures are made later."""
    return spec.model_copy(update={"classes": None, "per_class": None, "folds": None, "fold": 0})


def _opened(
    spec: Captioned, root: Path, entries: Sequence[Entry], memos: Path, brought: Collection[str], remarks: Sequence[str] = ()
) -> Source:
    """The entries' pictures, looked at. Raises UserError with the first 20 entries that can't be used."""
    from regraft.datasets.fingerprint import examine

    first: dict[str, Entry] = {}
    texts: dict[str, References] = {}
    wrong: list[Problem] = []
    for entry in entries:
        name = os.path.normpath(entry.file) if entry.file else ""
        before, said = first.setdefault(name, entry), vocabulary.words(entry.text[:LETTERS])
        if before is entry and (remedy := _unplaced(root, name, entry.file, spec.on_error)):
            wrong.append(Problem(entry.where, entry.file or None, remedy))
        elif not said:
            wrong.append(Problem(entry.where, entry.text or None, "the caption has no words; write some, or remove it"))
        elif (before.split, before.group) != (entry.split, entry.group):
            wrong.append(Problem(entry.where, entry.file, f"is in another split or group at {before.where}; give it one"))
        texts.setdefault(name, []).append(said)
    if wrong:
        more = [Problem("dataset.path", None, f"{len(wrong) - TOLD} more entries can't be used")] if len(wrong) > TOLD else []
        raise UserError([*wrong[:TOLD], *more])
    hashes, skipped = examine(root, list(first), memos, spec.on_error)
    samples = [Sample(name, entry.split, 0, hashes[name], entry.group) for name, entry in first.items() if name in hashes]
    if not samples:
        raise UserError(Problem("dataset.path", getattr(spec, "path", None), "has no caption of a picture that can be used"))
    return _source(spec, root, samples, texts, brought, skipped, remarks)


def _source(
    spec: Captioned,
    root: Path,
    samples: Sequence[Sample],
    texts: Mapping[str, References],
    brought: Collection[str],
    skipped: Sequence[Problem],
    remarks: Sequence[str] = (),
) -> Source:
    """The samples in their splits, each with its references as places in the table of words."""
    arranged = arrange(spec, ["the whole set"], samples, brought, kind="text")
    cut = sum(len(text) > spec.length for sample in arranged if sample.split == "train" for text in texts[sample.id])
    kept = [  # what is learnt is cut; what is measured by stays whole, but for what is no caption any more
        [text[: spec.length if sample.split == "train" else max(spec.length, MEASURED)] for text in texts[sample.id]] for sample in arranged
    ]
    train = [text for sample, each in zip(arranged, kept, strict=True) if sample.split == "train" for text in each]
    names = vocabulary.table(train, [text for each in kept for text in each], spec.floor)
    if vocabulary.known(names) == len(vocabulary.SPECIAL):
        raise UserError(Problem("dataset.floor", spec.floor, "no word is in train's captions that often; a smaller one would work"))
    truth = vocabulary.encoded(kept, names)
    said = [replace(sample, target=target) for sample, target in zip(arranged, truth, strict=True)]
    told = [*remarks, *([f"{cut:,} captions of train are cut to their first {spec.length} words (dataset.length)"] if cut else [])]
    return Files(root, names, said, skipped, kind="text", remarks=told)


def _root(path: str, root: str | None) -> Path:
    return (Path(root).expanduser() if root else Path(path).expanduser().parent).resolve()


def _unplaced(root: Path, name: str, given: str, on_error: str) -> str | None:
    """Why a file name is none of a picture inside of the root; None: it is one. Links are followed to see that none leaves it."""
    place = root / name
    if not given:
        return "there is no file name; give one, or remove the entry"
    if "\0" in given or PurePosixPath(given).is_absolute() or name.split(os.sep)[0] == os.pardir:
        return f"lies outside of {root}; give paths inside of it, or another dataset.root"
    if not (place.is_symlink() or place.exists()):
        near = nearest(place.name, os.listdir(place.parent), 1) if place.parent.is_dir() else ""
        told = f"no such file in {root}; {near or 'give the folder that the paths start from as dataset.root'}"
        return told if on_error == "raise" else None  # with skip, it is left out and listed with the others that can't be read
    if not place.resolve().is_relative_to(root):
        return f"is a link out of {root}, to {place.resolve()}; copy the picture in its place"
    return "is a folder; name a picture" if place.is_dir() else None


# COCO's json


def _read_coco(path: Path, before: str, split: str) -> tuple[list[Entry], int]:
    """The captions, and how many pictures have none; `before`: where file names start from. Raises UserError: no sound file of its kind."""
    try:
        whole = json.loads(_bytes(path))
    except json.JSONDecodeError as error:
        raise UserError(Problem(f"{path}:{error.lineno}", None, f"is no sound json ({error.msg}); fetch or save it again")) from None
    except (UnicodeDecodeError, RecursionError, ValueError):
        raise UserError(Problem(str(path), None, "is no json of captions; save it as UTF-8 json with images and annotations")) from None
    images = _listed(path, whole, "images", {"id": int | str, "file_name": str})
    annotations = _listed(path, whole, "annotations", {"image_id": int | str, "caption": str})
    files: dict[int | str, str] = {}
    wrong = []
    for number, image in enumerate(images):
        if image["id"] in files:
            wrong.append(Problem(f"{path}: images[{number}]", image["id"], "another picture has this id; give each its own"))
        files[image["id"]] = image["file_name"]
    if twice := [name for name, count in Counter(files.values()).items() if count > 1]:
        wrong += [Problem(f"{path}: images", name, "two pictures have this file_name; name each once") for name in twice]
    entries = []
    for number, each in enumerate(annotations):
        where = f"{path}: annotations[{number}]"
        if each["image_id"] not in files:
            wrong.append(Problem(where, each["image_id"], "no picture of images has this id; remove the caption, or add the picture"))
            continue
        name = files[each["image_id"]]
        joined = name if not name or PurePosixPath(name).is_absolute() or _leaves(name) else os.path.join(before, name)
        entries.append(Entry(where, joined, each["caption"], split))
    if wrong:
        raise UserError(wrong[:TOLD])
    return entries, len(files) - len({each["image_id"] for each in annotations})


def _leaves(name: str) -> bool:
    """Whether a relative name lies outside of the folder that it starts from."""
    return os.path.normpath(name).split(os.sep)[0] == os.pardir


def _listed(path: Path, whole: Any, key: str, needed: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A list of the file, each of whose entries has what is needed. Raises UserError where it is not there, or an entry lacks something."""
    if not isinstance(whole, dict) or not isinstance(whole.get(key), list):
        raise UserError(Problem(str(path), None, f"has no list called {key}; give COCO's json of captions (captions_train2017.json)"))
    wrong = []
    for number, each in enumerate(whole[key]):
        for name, kind in needed.items():
            value = each.get(name) if isinstance(each, dict) else None
            if not isinstance(value, kind) or isinstance(value, bool):
                wrong.append(Problem(f"{path}: {key}[{number}]", None, f"{name} is missing, or of another kind than COCO's"))
    if wrong:
        raise UserError(wrong[:TOLD])
    return whole[key]


def _bytes(path: Path) -> bytes:
    """Raises UserError for a file that can't be read, or is too large."""
    try:
        if path.stat().st_size > MOST:
            raise UserError(Problem(str(path), None, f"is larger than {MOST >> 30} GB; give a part of it"))
        return path.read_bytes()
    except OSError as error:
        raise UserError(Problem("dataset.path", str(path), f"can't be read ({error.strerror}); give the file of captions")) from None


# A csv


def _read_csv(spec: Captions, path: Path) -> Iterator[Entry]:
    """The lines below the header. Raises UserError: not UTF-8, columns that are missing, ragged lines, words that are no split."""
    data = _bytes(path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise UserError(Problem(f"{path}:{number}", None, "is no UTF-8; save the table as UTF-8")) from None
    wanted = {key: name for key in ("file", "caption", "split", "group") if (name := getattr(spec, key)) is not None}
    delimiter, header = headed(path, text, spec.delimiter, list(wanted.values()))
    if strange := [(key, name) for key, name in wanted.items() if header.count(name) != 1]:
        there = f"there are {either(header)}"
        raise UserError(
            Problem(f"{path}:1", None, f"has two columns called {name}; rename one")
            if name in header
            else Problem(f"{path}:1", None, f"has no column {name} (dataset.{key}); {nearest(name, header) or there}")
            for key, name in strange
        )
    lines: list[Line] = list(lines_of(path, text, delimiter, header))
    words = {line.number: line.cells[spec.split].lower() for line in lines} if spec.split else {}
    known = f"{spec.split} is {either(SPLIT_FOLDERS)}"
    if wrong := [
        Problem(f"{path}:{number}", word, f"is no split; {nearest(word, SPLIT_FOLDERS) or known}")
        for number, word in words.items()
        if word not in SPLIT_FOLDERS
    ]:
        raise UserError(wrong[:TOLD])
    for line in lines:
        split = SPLIT_FOLDERS[words[line.number]] if spec.split else OPEN
        group = (line.cells[spec.group] or None) if spec.group else None
        yield Entry(f"{path}:{line.number}", line.cells[spec.file], line.cells[spec.caption], split, group)
