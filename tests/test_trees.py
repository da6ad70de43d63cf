"""Faster R-CNN on real photos: trees from above learnt from one, and found on another."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from regraft.datasets.markup import elements

SIDE = 200  # px of a square cut from a photo: a tree is some 20 of them wide
LEAST = 0.5  # part of a tree that lies in a square for it to be one of the square's
PHOTOS = {"2019_YELL_2_528000_4978000_image_crop2": ["train"], "2019_YELL_2_541000_4977000_image_crop": ["val", "test"]}
NET = ["task=detect", "freeze=backbone", "model.strides=[8,16]", "head.drawn_regions=32", "head.proposals=100", "hardware=cpu"]
NET += ["data.batch_size=4", "optimizer.lr=0.001", "trainer.clip=10", "trainer.monitor=val/ap50", "trainer.max_epochs=6"]


def cut(data: Path, root: Path) -> Path:
    """The photos as squares in VOC's folders: all of one for train; of the other the left half for val, and the right one for test."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for stem, splits in PHOTOS.items():
        photo, notes = Image.open(data / f"{stem}.png").convert("RGB"), data / f"{stem}.xml"
        boxes = [
            [float(each.text("bndbox", side)) for side in ("xmin", "ymin", "xmax", "ymax")]
            for each in elements(notes.read_bytes(), notes).all("object")
        ]
        for left in range(0, photo.width - SIDE + 1, SIDE):
            for top in range(0, photo.height - SIDE + 1, SIDE):
                there = [found for box in boxes if (found := inside(box, left, top))]
                if there:
                    name = f"{len(PHOTOS[stem])}-{left}-{top}"
                    photo.crop((left, top, left + SIDE, top + SIDE)).save(root / "JPEGImages" / f"{name}.png")
                    (root / "Annotations" / f"{name}.xml").write_text(noted(f"{name}.png", there))
                    lists[splits[len(splits) * (left + SIDE // 2) // photo.width]].append(name)
    for split, names in lists.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names))
    return root


def inside(box: list[float], left: int, top: int) -> list[float] | None:
    """What of a box lies in a square, in the square's own px; None where that is little."""
    x0, y0, x1, y1 = (min(max(value - at, 0), SIDE) for value, at in zip(box, (left, top) * 2, strict=True))
    return [x0, y0, x1, y1] if (x1 - x0) * (y1 - y0) >= LEAST * (box[2] - box[0]) * (box[3] - box[1]) else None


def noted(file: str, boxes: list[list[float]]) -> str:
    sides = [
        "".join(f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)) for box in boxes
    ]
    objects = "".join(f"<object><name>Tree</name><bndbox>{each}</bndbox></object>" for each in sides)
    return f"<annotation><filename>{file}</filename>{objects}</annotation>"


@pytest.mark.engines
@pytest.mark.skipif(find_spec("deepforest") is None, reason="deepforest's photos are not there")
def test_trees_are_found_on_a_photo_that_was_not_learnt_from(executed: Any, tmp_path: Path) -> None:
    found = find_spec("deepforest")
    assert found is not None
    assert found.submodule_search_locations
    root = cut(Path(found.submodule_search_locations[0], "data"), tmp_path / "squares")
    words = [*NET, "dataset=voc", f"dataset.path={root}"]
    before, after = executed([*words, "trainer.max_epochs=0"]), executed(words)
    assert before.metrics.get("test/ap50", 0) < 0.01
    assert after.metrics["test/ap50"] > 0.08
    assert after.metrics["test/ap50"] == pytest.approx(after.record["details"]["Tree"]["ap50"])
