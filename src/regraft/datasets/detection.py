"""Sets whose truth are boxes: what each takes. Importing it costs milliseconds (no numpy, PIL or torch)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from regraft.datasets.spec import DatasetSpec, Splitting, absent, need_path
from regraft.errors import Problem
from regraft.registry import doc

if TYPE_CHECKING:
    from regraft.datasets.source import Source

PLACE = "file or folder"


class Scenes(DatasetSpec):
    """Made scenes: the embedded set's drawings on a canvas, drawn when they are read; a scene of a split holds drawings of that split."""

    train: int = doc("train scenes", ge=1)
    val: int = doc("val scenes", ge=0)
    test: int = doc("test scenes", ge=0)
    canvas: int = doc("px: side of the square that drawings are put on", ge=16, le=4096)
    least: int = doc("fewest drawings of a scene", ge=0)
    most: int = doc("most drawings of a scene; where none of 50 places is free, there is one less", ge=1, le=100)
    smallest: float = doc("least longer side of a drawing, as part of the canvas 0..1", gt=0, le=1)
    largest: float = doc("greatest longer side of a drawing, as part of the canvas 0..1", gt=0, le=1)
    overlap: float = doc("most that two boxes share, as part of the smaller one, 0..1", ge=0, le=1)
    scene_seed: int = doc("seed of the scenes: they stay as they are when the run's seed changes", ge=0)

    def open(self, cache: Path) -> Source:
        from regraft.datasets import scenes

        self.check()
        return scenes.load(self, cache)

    def names(self) -> list[str]:
        from regraft.datasets import clipart

        return clipart.classes()

    def problems(self) -> list[Problem]:
        found = super().problems()
        if self.folds is not None:
            found.append(Problem("folds", self.folds, "drawings of one split would stand in another; made scenes have no folds: give null"))
        for small, large in (("least", "most"), ("smallest", "largest")):
            if getattr(self, small) > getattr(self, large):
                found.append(Problem(small, getattr(self, small), f"at most {large} ({getattr(self, large)}) is needed"))
        return found


class Coco(Splitting):
    """COCO's json files of instances, and folders of pictures; splits that have no file of their own are made out of train."""

    path: str = doc("json file of train's boxes", decides=False, path=True)
    root: str | None = doc("folder of its pictures (null: the json's folder)", decides=False, path=True)
    val_path: str | None = doc("json file of val's boxes (null: val is made out of train)", decides=False, path=True)
    val_root: str | None = doc("folder of val's pictures (null: the json's folder)", decides=False, path=True)
    test_path: str | None = doc("json file of test's boxes (null: test is made out of train)", decides=False, path=True)
    test_root: str | None = doc("folder of test's pictures (null: the json's folder)", decides=False, path=True)

    def open(self, cache: Path) -> Source:
        from regraft.datasets import boxes

        self.check()
        return boxes.load_coco(self, cache)

    def names(self) -> list[str] | None:
        need_path(self, self.path)
        return None

    def files(self) -> dict[str, tuple[Path, Path]]:
        """Split -> its json file and the folder of its pictures; splits that bring none are not named."""
        places = {
            "train": (self.path, self.root),
            "val": (self.val_path, self.val_root),
            "test": (self.test_path, self.test_root),
        }
        found = {split: (Path(path).expanduser(), root) for split, (path, root) in places.items() if path}
        return {split: (path, Path(root).expanduser() if root else path.parent) for split, (path, root) in found.items()}

    def problems(self) -> list[Problem]:
        keys = ("path", "root", "val_path", "val_root", "test_path", "test_root")
        return [*super().problems(), *absent(self, dict.fromkeys(keys, PLACE))]


class Voc(Splitting):
    """Pascal VOC's folders: Annotations/*.xml and JPEGImages/*; splits by ImageSets/Main/{train,val,test}.txt, where they are."""

    path: str = doc("folder that holds Annotations and JPEGImages", decides=False, path=True)
    known: list[str] | None = doc(
        "the classes that there are: a box of another one is a mistake (null: those that are found)", min_length=1
    )

    def open(self, cache: Path) -> Source:
        from regraft.datasets import boxes

        self.check()
        return boxes.load_voc(self, cache)

    def names(self) -> list[str] | None:
        need_path(self, self.path)
        return self.known

    def problems(self) -> list[Problem]:
        return [*super().problems(), *absent(self, {"path": PLACE})]


class Boxes(Splitting):
    """Your own table of boxes: a csv file whose lines name a picture, a class and a box in px, or a picture without boxes alone."""

    path: str = doc("the csv file, with column names in its first line, in UTF-8", decides=False, path=True)
    root: str | None = doc("folder that the table's paths are relative to (null: the csv's folder)", decides=False, path=True)
    delimiter: str | None = doc("character between columns (null: found among comma, semicolon and tab)", min_length=1, max_length=1)
    columns: list[str] = doc("columns of the picture's path, the class, and left, top, right and bottom in px", min_length=6, max_length=6)
    split: str | None = doc("column of the splits: train, val (valid, validation), test (null: all are made)")
    known: list[str] | None = doc(
        "the classes that there are: a box of another one is a mistake (null: those that are found)", min_length=1
    )

    def open(self, cache: Path) -> Source:
        from regraft.datasets import boxes

        self.check()
        return boxes.load_csv(self, cache)

    def names(self) -> list[str] | None:
        need_path(self, self.path)
        return self.known

    def problems(self) -> list[Problem]:
        return [*super().problems(), *absent(self, {"path": PLACE, "root": PLACE})]
