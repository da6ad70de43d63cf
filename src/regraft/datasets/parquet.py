"""Parquet files as Hugging Face's `datasets` writes them: pictures inside the table, taken out once into a file that is read at random.

A parquet file gives its rows in groups only, so that reading one picture means reading its neighbours; and a shuffled epoch does that for
each. The pictures' bytes are therefore copied, in order and unchanged, to one file in the cache folder, with a table of where each begins.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import PIL

from regraft.datasets import pictures
from regraft.datasets.fingerprint import TOLD
from regraft.datasets.layout import SPLIT_FOLDERS
from regraft.datasets.names import in_order
from regraft.datasets.source import Sample, Source
from regraft.datasets.splits import OPEN, arrange
from regraft.errors import Problem, UserError, either, nearest
from regraft.files import digest, whole

if TYPE_CHECKING:
    import polars as pl

    from regraft.datasets import HuggingFace

ROWS = 256  # that are in memory at once, beside the row group they come from
IMAGE, LABEL = ("image", "img"), ("label", "labels")  # columns that are looked for
SPLIT = re.compile(rf"(?:^|[-_.])({'|'.join(sorted(SPLIT_FOLDERS, key=len, reverse=True))})(?:[-_.]|$)")


class Row(NamedTuple):
    """What is known of one row."""

    row: int  # from 0, in its file
    label: str
    start: int  # byte
    length: int  # bytes
    sha256: str  # hex, of the picture's bytes
    problem: str | None  # why it can't be used; None: it can


class Extracted(Source):
    """Pictures that lie one after another in files; `where` says for each id: which file, from which byte, how many bytes."""

    def __init__(
        self,
        files: Sequence[Path],
        where: dict[str, tuple[int, int, int]],
        classes: Sequence[str],
        samples: Iterable[Sample],
        skipped: Iterable[Problem],
    ) -> None:
        super().__init__(classes, samples, skipped)
        self.files = list(files)
        self.where = np.array([where[sample.id] for sample in self.samples], np.int64).reshape(-1, 3)  # in the order of the samples

    def read(self, sample: Sample) -> np.ndarray:
        """The picture, uint8 [h, w, 3]. Raises UserError for a file that is gone or changed, or a damaged picture."""
        number, start, length = self.where[self.samples.find(sample.id)].tolist()
        try:
            with self.files[number].open("rb") as file:
                file.seek(start)
                data = file.read(length)
        except OSError as error:
            remedy = f"can't be read ({error.strerror}), though it could when the set was opened; start again"
            raise UserError(Problem(str(self.files[number]), None, remedy)) from None
        if hashlib.sha256(data).hexdigest() != sample.sha256:
            raise pictures.changed(str(self.files[number]))
        return pictures.decode(data, sample.id)


def load(spec: HuggingFace, cache: Path) -> Source:
    """The pictures of all files. Raises UserError for columns and rows (file and row) that can't be used, and as `arrange` does."""
    import polars as pl

    root, files = find(spec.path)
    splits = _splits(files, root)
    tables, stores = [], []
    names: list[str] | None = None
    for file in files:
        image, label, said = _columns(spec, file)
        if names is not None and said != names:
            raise UserError(Problem(str(file), None, f"names other classes than {files[0]}; give the files of one set"))
        names = said
        store, table = _extract(file, image, label, cache, spec.on_error)
        stores.append(store)
        tables.append(table)
    known = names or in_order({value for table in tables for value in table["label"].unique().to_list()})
    classes = spec.classes or known
    if strange := [name for name in classes if name not in known]:
        raise UserError(
            Problem("dataset.classes", name, f"is no class of {root}; {nearest(name, known) or f'there are {either(known[:TOLD])}'}")
            for name in strange
        )
    label_of = {name: label for label, name in enumerate(classes)}
    samples, where, skipped = [], {}, []
    for number, (file, table) in enumerate(zip(files, tables, strict=True)):
        for row in table.filter(pl.col("problem").is_not_null()).iter_rows(named=True):
            skipped.append(Problem(f"{file} row {row['row']}", None, row["problem"]))
        for row in table.filter(pl.col("problem").is_null()).iter_rows(named=True):
            value = row["label"]
            if names:
                if not (value.isdecimal() and int(value) < len(names)):
                    raise _bad_row(file, row["row"], f"has the label {value}, but there are {len(names)} class names")
                value = names[int(value)]
            if value in label_of:
                name = f"{file.relative_to(root).as_posix()}/{row['row']:07d}"
                samples.append(Sample(name, splits[file], label_of[value], row["sha256"]))
                where[name] = (number, row["start"], row["length"])
    brought = {split for split in splits.values() if split not in (OPEN, "train")}
    return Extracted(stores, where, classes, arrange(spec, classes, samples, brought), skipped)


def find(path: str) -> tuple[Path, list[Path]]:
    """The folder, and the .parquet files in it (at any depth), sorted; or one file and its folder. Raises UserError where there is none."""
    given = Path(path).expanduser()
    if given.is_file():
        return given.resolve().parent, [given.resolve()]
    if not given.is_dir():
        raise UserError(Problem("dataset.path", path, "is neither a folder nor a file; give a .parquet file or a folder that holds some"))
    root = given.resolve()
    files = sorted(file for file in root.rglob("*.parquet") if not any(part.startswith(".") for part in file.relative_to(root).parts))
    if not files:
        raise UserError(Problem("dataset.path", path, "holds no .parquet file; nothing is downloaded: place the set's files there"))
    return root, files


def _splits(files: Sequence[Path], root: Path) -> dict[Path, str]:
    """File -> its split, by its name (train-00000-of-00002) or its folder's (train/0000); OPEN for one file, or where no name says it."""
    if len(files) == 1:
        return {files[0]: OPEN}
    found: dict[Path, str] = {}
    for file in files:
        words = [*reversed(file.relative_to(root).with_suffix("").parts)]
        hits = [match[1] for word in words if (match := SPLIT.search(word.lower()))]
        found[file] = SPLIT_FOLDERS[hits[0]] if hits else OPEN
    if OPEN in found.values() and set(found.values()) != {OPEN}:
        odd = next(file for file, split in found.items() if split == OPEN)
        remedy = f"is of no split, while other files are; call it train-, validation- or test-{odd.name}, or move it elsewhere"
        raise UserError(Problem(str(odd), None, remedy))
    if not {OPEN, "train"} & set(found.values()):
        raise UserError(Problem("dataset.path", str(root), "has no train file; call it train-00000-of-00001.parquet"))
    return found


def _columns(spec: HuggingFace, file: Path) -> tuple[str, str, list[str] | None]:
    """The columns of the pictures and of the labels, and the class names that the file's own description has for the latter."""
    import polars as pl

    try:
        schema, meta = pl.read_parquet_schema(file), pl.read_parquet_metadata(file)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(Problem(str(file), None, f"is no parquet file that can be read ({error}); fetch it again")) from None
    image = _column(file, schema, "image", spec.image, IMAGE)
    label = _column(file, schema, "label", spec.label, LABEL)
    pictured = schema[image]
    if not isinstance(pictured, pl.Struct) or "bytes" not in {field.name for field in pictured.fields}:
        remedy = f"its column {image} holds {schema[image]}, and pictures are needed: a struct of bytes and path, as datasets writes them"
        raise UserError(Problem(str(file), None, remedy))
    if not (schema[label].is_integer() or schema[label] in (pl.String, pl.Categorical)):
        remedy = f"its column {label} holds {schema[label]}; class labels are whole numbers or words (dataset.label names the column)"
        raise UserError(Problem(str(file), None, remedy))
    try:
        feature = json.loads(meta.get("huggingface") or "{}").get("info", {}).get("features", {}).get(label, {})
    except (ValueError, AttributeError):
        feature = {}
    names = feature.get("names") if isinstance(feature, dict) and schema[label].is_integer() else None
    return image, label, list(names) if names else None


def _column(file: Path, schema: Iterable[str], key: str, given: str | None, looked_for: Sequence[str]) -> str:
    there = list(schema)
    for name in (given,) if given else looked_for:
        if name in there:
            return name
    wanted = given or either(looked_for)
    remedy = f"has no column {wanted}; {nearest(wanted, there, at='') or f'there are {either(there)}'} (dataset.{key} names it)"
    raise UserError(Problem(str(file), None, remedy))


def _extract(file: Path, image: str, label: str, cache: Path, on_error: str) -> tuple[Path, pl.DataFrame]:
    """The file that holds the pictures of a parquet file, one after another, and a table: row, label, start, length, sha256, problem.

    Both are kept in the cache folder for as long as the parquet file keeps its size and time. Raises UserError for rows that can't be
    used, 20 of them by number, unless `on_error` is skip.
    """
    import polars as pl

    status = file.stat()
    key = digest(str(file), status.st_size, status.st_mtime_ns, image, label, on_error, PIL.__version__)[:32]
    store, index = cache / "extracted" / f"{key}.bin", cache / "extracted" / f"{key}.parquet"
    if store.is_file() and index.is_file():
        try:
            table = pl.read_parquet(index)
            if store.stat().st_size == table["length"].sum():
                return store, table
        except (OSError, pl.exceptions.PolarsError):
            pass  # damaged: made again
    rows: list[Row] = []
    try:
        with whole(store) as part, part.open("wb") as out:
            for row, (data, value) in enumerate(_rows(file, image, label)):
                rows.append(_examined(file, row, data, value, out.tell(), on_error))
                out.write(data or b"")
        if on_error == "raise" and (bad := [row for row in rows if row.problem]):
            more = [Problem("dataset.path", str(file), f"{len(bad) - TOLD} more rows can't be used, {pictures.SKIP}")]
            raise UserError([*(Problem(f"{file} row {row.row}", None, str(row.problem)) for row in bad[:TOLD]), *more[: len(bad) > TOLD]])
        table = pl.DataFrame(rows, schema=list(Row._fields), schema_overrides={"label": pl.String, "problem": pl.String}, orient="row")
        with whole(index) as part:
            table.write_parquet(part)
    except OSError as error:
        size = f"{status.st_size / 1e9:.1f} GB"
        remedy = f"the pictures of {file} ({size}) can't be kept in {store.parent} ({error.strerror}); make room, or set cache.dir"
        raise UserError(Problem("cache.dir", str(cache), remedy)) from None
    return store, table


def _rows(file: Path, image: str, label: str) -> Iterator[tuple[bytes | None, object]]:
    """Each row's picture bytes and label, a part of the file at a time."""
    import polars as pl

    scan = pl.scan_parquet(file).select(pl.col(image).struct.field("bytes").alias("bytes"), pl.col(label).alias("label"))
    start = 0
    while len(part := scan.slice(start, ROWS).collect()):
        yield from part.iter_rows()
        start += ROWS


def _examined(file: Path, row: int, data: bytes | None, value: object, start: int, on_error: str) -> Row:
    problem = None
    if data is None:
        problem = f"holds no picture bytes, only a path at most; save the set with its pictures inside, {pictures.SKIP}"
    elif value is None or value == "":
        problem = f"has no label, {pictures.SKIP}"
    else:
        check: Callable[[bytes, str], object] = pictures.decode if on_error == "skip" else pictures.probe
        try:
            check(data, f"{file} row {row}")
        except UserError as error:
            problem = error.problems[0].remedy
    return Row(row, str(value), start, len(data or b""), hashlib.sha256(data or b"").hexdigest(), problem)


def _bad_row(file: Path, row: int, what: str) -> UserError:
    return UserError(Problem(f"{file} row {row}", None, f"{what}; mend the set, or name a column of labels as dataset.label"))
