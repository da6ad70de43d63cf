"""The sets whose pictures carry words: captions to be said, or clipart's tags."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from regraft.datasets.spec import DatasetSpec, Splitting, WithVal, absent, need_path
from regraft.errors import Problem
from regraft.registry import doc

if TYPE_CHECKING:
    from regraft.datasets.source import Source


class Captioned(DatasetSpec):
    """Common to the sets of captions."""

    floor: int = doc("a word is known that train's captions hold at least so many times; others are unknown to the decoder", ge=1)
    length: int = doc("words of a train caption that are kept, the first ones", ge=1)

    def problems(self) -> list[Problem]:
        found = super().problems()
        if self.classes is not None:
            remedy = "captions have no classes; null works, and dataset.floor says which words are known"
            found.append(Problem("classes", self.classes, remedy))
        return found


class ClipartTitles(Captioned):
    """The embedded set's titles as captions: one for each of 991 drawings, in its own splits (573/208/210)."""

    def open(self, cache: Path) -> Source:
        from regraft.datasets import captions

        self.check()
        return captions.load_titles(self, cache)


class ClipartTags(DatasetSpec):
    """The embedded set's tags, any number for each of 991 drawings, in its own splits (573/208/210); frequent tags first."""

    floor: int = doc("a tag is learnt that at least so many train pictures have", ge=1)

    def open(self, cache: Path) -> Source:
        from regraft.datasets import captions

        self.check()
        return captions.load_tags(self, cache)

    def names(self) -> list[str]:
        from regraft.datasets import captions

        return sorted({tag for row in captions.clipart.rows() for tag in captions.tags(row)})


class CocoCaptions(Captioned, WithVal):
    """Captions in COCO's json: captions_train2017.json with the pictures of train2017, and as test captions_val2017.json with its own."""

    path: str = doc("json file: images (id, file_name) and annotations (image_id, caption)", decides=False, path=True)
    root: str | None = doc("folder that its file names are relative to (null: the json's folder)", decides=False, path=True)
    test_path: str | None = doc("json file of the test pictures (null: no test, or a part of the others)", decides=False, path=True)
    test_root: str | None = doc("folder that its file names are relative to (null: that json's folder)", decides=False, path=True)
    test: float = doc("fraction 0..1 of the pictures that becomes test, where test_path is null (0: no test)", ge=0, lt=1)

    def open(self, cache: Path) -> Source:
        from regraft.datasets import captions

        self.check()
        return captions.load_coco(self, cache)

    def names(self) -> None:
        need_path(self, self.path)

    def problems(self) -> list[Problem]:
        found = super().problems()
        if self.test_path is None and self.val + self.test >= 1:
            found.append(Problem("val", self.val, f"with test = {self.test} nothing is left to train on; val + test must stay below 1"))
        return found + absent(self, {"path": "file", "root": "folder", "test_path": "file", "test_root": "folder"})


class Captions(Captioned, Splitting):
    """Your own captions: a csv file whose lines name a picture and a caption of it; a picture may have several lines."""

    path: str = doc("the csv file, with column names in its first line, in UTF-8", decides=False, path=True)
    root: str | None = doc("folder that the table's paths are relative to (null: the csv's folder)", decides=False, path=True)
    delimiter: str | None = doc("character between columns (null: found among comma, semicolon and tab)", min_length=1, max_length=1)
    file: str = doc("column of the pictures' paths")
    caption: str = doc("column of the captions")
    split: str | None = doc("column of the splits: train, val (valid, validation), test (null: all are made)")
    group: str | None = doc("column of groups: pictures of one group never cross a split that is made (null: none)")

    def open(self, cache: Path) -> Source:
        from regraft.datasets import captions

        self.check()
        return captions.load_csv(self, cache)

    def names(self) -> None:
        need_path(self, self.path)

    def problems(self) -> list[Problem]:
        return super().problems() + absent(self, {"path": "file", "root": "folder"})
