"""German traffic signs: 43 classes photographed in tracks of 30 frames, each sign's box in a table beside the pictures."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from regraft.datasets import fetch, layout
from regraft.datasets.fingerprint import examine
from regraft.datasets.names import GTSRB
from regraft.datasets.source import Files, Sample, Source
from regraft.datasets.splits import arrange
from regraft.errors import Problem, UserError

if TYPE_CHECKING:
    from regraft.datasets import Gtsrb

URL = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370"  # Stallkamp et al. 2011
TRAIN, TEST, TABLE = "GTSRB/Training", "GTSRB/Final_Test/Images", "GT-final_test.csv"
ARCHIVES = [
    fetch.Archive("GTSRB-Training_fixed.zip", f"{URL}/GTSRB-Training_fixed.zip", ("513f3c79a4c5141765e10e952eaa2478",), (TRAIN,)),
    fetch.Archive("GTSRB_Final_Test_Images.zip", f"{URL}/GTSRB_Final_Test_Images.zip", ("c7e4e6327067d32654124b0fe9e82185",), (TEST,)),
    fetch.Archive("GTSRB_Final_Test_GT.zip", f"{URL}/GTSRB_Final_Test_GT.zip", ("fe31e9c9270bbcd7b84b7f21a9d9d9e5",), (TABLE,)),
]
COLUMNS = ("Filename", "Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2", "ClassId")
Box = tuple[int, int, int, int]  # px: left, top, and the first column and row that are no longer inside


class Row(NamedTuple):
    """One line of a table."""

    file: str  # path relative to the set's folder
    split: str
    number: int  # class, 0..42
    box: Box
    track: str | None  # pictures of one real sign


class Cropped(Files):
    """Pictures in files, of which only a box is shown."""

    def __init__(
        self,
        root: Path,
        classes: Sequence[str],
        samples: Iterable[Sample],
        skipped: Iterable[Problem],
        boxes: Mapping[str, Box],
        remarks: Iterable[str],
    ) -> None:
        super().__init__(root, classes, samples, skipped, remarks=remarks)
        self.boxes = dict(boxes)

    def read(self, sample: Sample) -> np.ndarray:
        """The box, uint8 [h, w, 3]. Raises UserError for a file that is gone or damaged, or smaller than its box."""
        picture = super().read(sample)
        left, top, right, bottom = self.boxes[sample.id]
        if right > picture.shape[1] or bottom > picture.shape[0]:
            remedy = f"is smaller than its sign's box ({left},{top} to {right},{bottom}); place the set again, or give dataset.roi=false"
            raise UserError(Problem(str(self.root / sample.id), None, remedy))
        return np.ascontiguousarray(picture[top:bottom, left:right])

    def content(self, sample: Sample, sha256: str) -> str:
        return _hash(sha256, self.boxes[sample.id])


def load(spec: Gtsrb, cache: Path) -> Source:
    """The signs; val is made out of train, and no track crosses it. Raises UserError for tables (file and line) that don't fit."""
    root = fetch.place(spec, cache, ARCHIVES)
    names = spec.classes or GTSRB
    rows = [*_train(root), *_table(root, TABLE, TEST, "test")]
    kept = {row.file: row for row in rows if GTSRB[row.number] in names}
    hashes, skipped = examine(root, list(kept), cache, spec.on_error)
    samples = [
        Sample(file, row.split, names.index(GTSRB[row.number]), _hash(hashes[file], row.box if spec.roi else None), row.track)
        for file, row in kept.items()
        if file in hashes
    ]
    counts = {split: sum(row.split == split for row in rows) for split in ("train", "test")}
    remarks = fetch.fewer(spec.name, counts, {"train": 26_640, "test": 12_630})
    placed = arrange(spec, names, samples, ("test",))
    if spec.roi:
        return Cropped(root, names, placed, skipped, {sample.id: kept[sample.id].box for sample in placed}, remarks)
    return Files(root, names, placed, skipped, remarks=remarks)


def _hash(sha256: str, box: Box | None) -> str:
    """What stands for the pixels that are read: a box of a file is another picture than the file."""
    return sha256 if box is None else hashlib.sha256(f"{sha256} {box}".encode()).hexdigest()


def _train(root: Path) -> Iterator[Row]:
    for name in layout.folders(root / TRAIN):
        if not (name.isdecimal() and int(name) < len(GTSRB)):
            remedy = f"holds a folder {name}, which is none of the classes 00000 to 00042; remove it"
            raise UserError(Problem(str(root / TRAIN), None, remedy))
        yield from _table(root, f"{TRAIN}/{name}/GT-{name}.csv", f"{TRAIN}/{name}", "train")


def _table(root: Path, table: str, folder: str, split: str) -> Iterator[Row]:
    """The lines of a table (columns separated by semicolons) about the pictures of `folder`."""
    try:
        with (root / table).open(encoding="utf-8-sig", newline="") as file:
            lines = csv.DictReader(file, delimiter=";")
            if lacking := [name for name in COLUMNS if name not in (lines.fieldnames or ())]:
                raise _wrong(root / table, 1, f"has no column {lacking[0]}")
            for row in lines:
                try:
                    left, top, right, bottom, number = (int(row[name]) for name in COLUMNS[1:])
                except (TypeError, ValueError):
                    raise _wrong(root / table, lines.line_num, "has something else than whole numbers in its columns") from None
                name = row["Filename"]
                if not (0 <= left < right and 0 <= top < bottom and 0 <= number < len(GTSRB)) or "/" in name or name.startswith("."):
                    raise _wrong(root / table, lines.line_num, f"has a box, a class (0 to {len(GTSRB) - 1}) or a file name that can't be")
                # Training pictures are called <track>_<frame>.ppm; numbers of tracks begin anew in each class.
                track = f"{number}/{name.partition('_')[0]}" if split == "train" else None
                yield Row(f"{folder}/{name}", split, number, (left, top, right, bottom), track)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(Problem(str(root / table), None, f"can't be read ({error}); place the set's tables again")) from None


def _wrong(table: Path, line: int, what: str) -> UserError:
    return UserError(Problem(f"{table}:{line}", None, f"{what}; place the set's tables again"))
