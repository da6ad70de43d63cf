"""Three formats of boxes are one; every mistake is told with its place; made scenes have exact boxes, and drawings of their split alone."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from regraft.datasets import clipart
from regraft.datasets.boxes import upright
from regraft.datasets.detection import Boxes, Coco, Scenes, Voc
from regraft.datasets.scenes import Made, boxes, recipe, shared
from regraft.datasets.source import Source
from regraft.datasets.spec import DatasetSpec
from regraft.errors import UserError
from regraft.registry import parse

CONF = Path(__file__).parent.parent / "conf" / "dataset"
SPECS: dict[str, type[DatasetSpec]] = {"scenes": Scenes, "coco": Coco, "voc": Voc, "boxes": Boxes}
WIDTH, HEIGHT = 40, 20
Given = Mapping[str, Sequence[tuple[str, float, float, float, float]]]  # picture -> class, left, top, right, bottom in px
SET: Given = {
    "a.png": [("cat", 4, 2, 20, 12), ("dog", 0, 0, 40, 20)],
    "b.png": [("dog", 10, 5, 30, 15)],
    "c.png": [],
    "d.png": [("cat", 1, 1, 2, 2)],
}


def spec_of(name: str, **changed: object) -> Any:
    return parse(SPECS[name], yaml.safe_load((CONF / f"{name}.yaml").read_text()) | changed, "dataset")


def pictures(folder: Path, names: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), number + 1, np.uint8)).save(folder / name)


def as_coco(folder: Path, rows: Given, **more: Any) -> Coco:
    pictures(folder, list(rows))
    known = ["cat", "dog"]
    annotations = [
        {"image_id": number, "category_id": known.index(kind) if kind in known else 9, "bbox": [left, top, right - left, bottom - top]}
        for number, each in enumerate(rows.values())
        for kind, left, top, right, bottom in each
    ]
    parts = {
        "images": [{"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT} for number, name in enumerate(rows)],
        "categories": [{"id": number, "name": name} for number, name in enumerate(known)],
        "annotations": annotations,
    }
    (folder / "boxes.json").write_text(json.dumps(parts | more.pop("parts", {})))
    return spec_of("coco", path=str(folder / "boxes.json"), **more)


def as_voc(folder: Path, rows: Given, **more: Any) -> Voc:
    pictures(folder / "JPEGImages", list(rows))
    (folder / "Annotations").mkdir(exist_ok=True)
    for name, each in rows.items():
        objects = [
            f"<object>\n<name>{kind}</name>\n<bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox>\n</object>"
            for kind, a, b, c, d in each
        ]
        size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
        text = "\n".join(["<annotation>", f"<filename>{name}</filename>", size, *objects, "</annotation>"])
        (folder / "Annotations" / name.replace(".png", ".xml")).write_text(text)
    return spec_of("voc", path=str(folder), **{"known": ["cat", "dog"]} | more)


def as_csv(folder: Path, rows: Given, **more: Any) -> Boxes:
    pictures(folder, list(rows))
    lines = [f"{name},{','.join(map(str, row))}" for name, each in rows.items() for row in each or [("", "", "", "", "")]]
    (folder / "boxes.csv").write_text("\n".join(["file,class,x0,y0,x1,y1", *lines]) + "\n")
    return spec_of("boxes", path=str(folder / "boxes.csv"), **{"known": ["cat", "dog"]} | more)


FORMATS = {"coco": as_coco, "voc": as_voc, "boxes": as_csv}


def opened(spec: DatasetSpec, tmp_path: Path) -> Source:
    return spec.open(tmp_path / "memos")


def told(spec: DatasetSpec, tmp_path: Path) -> list[str]:
    with pytest.raises(UserError) as error:
        opened(spec, tmp_path)
    return list(map(str, error.value.problems))


def test_each_spec_has_its_file_with_the_same_keys_each_with_a_comment() -> None:
    for name, spec in SPECS.items():
        text = (CONF / f"{name}.yaml").read_text()
        assert yaml.safe_load(text).keys() == spec.model_fields.keys()
        for key in spec.model_fields:
            assert re.search(rf"^{key}: .*\S +# \S+", text, re.MULTILINE), key


@pytest.mark.parametrize("name", FORMATS)
def test_a_set_is_the_same_in_each_format(name: str, tmp_path: Path) -> None:
    source = opened(FORMATS[name](tmp_path / "set", SET, val=0.25, test=0.25), tmp_path)
    assert (source.kind, source.classes) == ("boxes", ["cat", "dog"])
    found = {Path(sample.id).name: sample.target for sample in source.samples}
    expected = {
        "a.png": [[0, 0.1, 0.1, 0.5, 0.6], [1, 0, 0, 1, 1]],
        "b.png": [[1, 0.25, 0.25, 0.75, 0.75], [-1, 0, 0, 0, 0]],
        "c.png": [[-1, 0, 0, 0, 0]] * 2,
        "d.png": [[0, 0.025, 0.05, 0.05, 0.1], [-1, 0, 0, 0, 0]],
    }
    assert found.keys() == expected.keys()
    for file, target in found.items():
        assert isinstance(target, np.ndarray)
        assert target.dtype == np.float32
        np.testing.assert_allclose(target, expected[file], atol=1e-7)
    assert source.sizes() == {"train": 2, "val": 1, "test": 1}
    assert source.read(source.samples[0]).shape == (HEIGHT, WIDTH, 3)
    again = opened(FORMATS[name](tmp_path / "set", SET, val=0.25, test=0.25), tmp_path)
    assert again.fingerprint() == source.fingerprint()


PLACES = {"coco": r"boxes\.json: annotations\[{}\]", "voc": r"{}\.xml:{}", "boxes": r"boxes\.csv:{}"}


@pytest.mark.parametrize("name", FORMATS)
def test_boxes_that_cant_be_are_told_all_at_once_with_their_places(name: str, tmp_path: Path) -> None:
    wrong: Given = {
        "a.png": [("cat", 4, 2, 20, 12), ("cat", 30, 2, 42, 12), ("cat", 5, 5, 5, 9)],
        "b.png": [("horse", 1, 1, 5, 5), ("dog", 1, -3, 5, 5), ("dog", 0, 0, 41, 21)],  # the last reaches over by one px, and is cut
    }
    problems = told(FORMATS[name](tmp_path / "set", wrong), tmp_path)
    words = ["outside of", "no area", "no such class" if name != "coco" else "no category", "outside of"]
    if name == "coco":  # a box of no category belongs to no class, and is told before what boxes are looked at for
        words.insert(0, words.pop(2))
    assert len(problems) == 4
    for problem, word in zip(problems, words, strict=True):
        assert word in problem
    places = {"coco": ["[3]", "[1]", "[2]", "[4]"], "voc": ["a.xml:8", "a.xml:12", "b.xml:4", "b.xml:8"], "boxes": [":3", ":4", ":5", ":6"]}
    for problem, place in zip(problems, places[name], strict=True):
        assert f"{place} = " in problem

    source = opened(FORMATS[name](tmp_path / "set", {**SET, **wrong}, on_error="skip", val=0, test=0), tmp_path)
    assert {Path(sample.id).name for sample in source.samples} == {"c.png", "d.png"}
    assert len(source.skipped) == 4


def test_a_picture_is_named_once(tmp_path: Path) -> None:
    as_voc(tmp_path / "voc", SET)
    text = (tmp_path / "voc/Annotations/b.xml").read_text().replace("b.png", "a.png")
    (tmp_path / "voc/Annotations/b.xml").write_text(text)
    spec = as_coco(tmp_path / "coco", SET)
    parts = json.loads((tmp_path / "coco/boxes.json").read_text())
    parts["images"].append(parts["images"][0] | {"id": 99})
    (tmp_path / "coco/boxes.json").write_text(json.dumps(parts))
    for each, places in ((spec_of("voc", path=str(tmp_path / "voc"), known=["cat", "dog"]), "a.xml b.xml"), (spec, "images[0] images[4]")):
        problems = told(each, tmp_path)
        assert len(problems) == 2
        for problem, place in zip(problems, places.split(), strict=True):
            assert place in problem
            assert "is named at" in problem
        kept = opened(each.model_copy(update={"on_error": "skip", "val": 0, "test": 0}), tmp_path)
        assert "a.png" not in {Path(sample.id).name for sample in kept.samples}
    parts["images"][-1] = parts["images"][1] | {"id": 0}
    (tmp_path / "coco/boxes.json").write_text(json.dumps(parts))
    assert "another picture has this id" in told(spec, tmp_path)[0]


@pytest.mark.parametrize("link", ["file", "folder"])
def test_a_picture_outside_of_the_root_is_refused(link: str, tmp_path: Path) -> None:
    as_csv(tmp_path / "set", SET)
    pictures(tmp_path / "other", ["z.png"])
    if link == "file":
        (tmp_path / "set" / "z.png").symlink_to(tmp_path / "other" / "z.png")
    else:
        (tmp_path / "set" / "sub").symlink_to(tmp_path / "other")
    with (tmp_path / "set" / "boxes.csv").open("a") as file:
        file.write(f"{'sub/' if link == 'folder' else ''}z.png,cat,1,1,9,9\n")
    spec = spec_of("boxes", path=str(tmp_path / "set/boxes.csv"), known=["cat", "dog"], val=0, test=0)
    [problem] = told(spec, tmp_path)
    assert "is a link out of" in problem
    kept = opened(spec.model_copy(update={"on_error": "skip"}), tmp_path)
    assert {Path(sample.id).name for sample in kept.samples} == set(SET)


def test_a_long_list_of_mistakes_is_cut(tmp_path: Path) -> None:
    problems = told(as_csv(tmp_path, {"a.png": [("cat", 5, 5, 5, 5)] * 30}), tmp_path)
    assert len(problems) == 21
    assert "10 more mistakes" in problems[-1]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("../a.png,cat,1,1,2,2", "a path inside of"),
        ("/a.png,cat,1,1,2,2", "a path inside of"),
        ("a.png,cat,1,1,two,2", "must be numbers"),
        ("a.png,cat,1,1,nan,2", "no area"),
        ("a.png,,1,1,2,2", "no such class"),
        ("a.png,cat,1,1,2", "has 5 fields"),
        ("z.png,cat,1,1,2,2", "can't be read"),
    ],
)
def test_lines_that_cant_be_used_are_told(line: str, words: str, tmp_path: Path) -> None:
    spec = as_csv(tmp_path, SET)
    with open(tmp_path / "boxes.csv", "a") as file:
        file.write(f"{line}\n")
    [problem] = told(spec, tmp_path)
    assert words in problem
    assert "boxes.csv:7" in problem or "z.png" in problem


def test_a_table_says_its_columns_splits_and_delimiter(tmp_path: Path) -> None:
    pictures(tmp_path, ["a.png", "b.png"])
    (tmp_path / "t.csv").write_text("image;part;name;l;t;r;b\na.png;train;x;0;0;10;10\nb.png;valid;x;0;0;20;10\nb.png;valid;y;0;0;1;1\n")
    columns = ["image", "name", "l", "t", "r", "b"]
    source = opened(spec_of("boxes", path=str(tmp_path / "t.csv"), columns=columns, split="part", test=0), tmp_path)
    assert source.sizes() == {"train": 1, "val": 1, "test": 0}
    assert source.classes == ["x", "y"]
    only = opened(spec_of("boxes", path=str(tmp_path / "t.csv"), columns=columns, val=0, test=0, classes=["y", "x"]), tmp_path)
    assert only.classes == ["y", "x"]
    assert "did you mean" in told(spec_of("boxes", path=str(tmp_path / "t.csv"), columns=["images", *columns[1:]]), tmp_path)[0]


def test_crowds_are_left_out_with_a_remark(tmp_path: Path) -> None:
    crowd = {"image_id": 0, "category_id": 0, "bbox": [0, 0, 10, 10]}
    source = opened(as_coco(tmp_path, SET, parts={"annotations": [crowd, crowd | {"iscrowd": 1}]}), tmp_path)
    assert source.remarks == ["1 boxes of crowds (iscrowd=1) were left out"]
    assert sum(int((sample.target[:, 0] >= 0).sum()) for sample in source.samples) == 1  # type: ignore[index]


def test_cocos_splits_have_files_and_folders_of_their_own(tmp_path: Path) -> None:
    as_coco(tmp_path / "train", SET)
    as_coco(tmp_path / "val", {"a.png": [("dog", 0, 0, 5, 5)]})
    spec = spec_of("coco", path=str(tmp_path / "train/boxes.json"), val_path=str(tmp_path / "val/boxes.json"), test=0)
    source = opened(spec, tmp_path)
    assert source.sizes() == {"train": 4, "val": 1, "test": 0}
    assert "val/a.png" in {sample.id for sample in source.samples}


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"annotations": 3}, "a list of this name is needed"),
        ({"annotations": [{"image_id": 77, "category_id": 0, "bbox": [0, 0, 1, 1]}]}, "no picture has this id"),
        ({"annotations": [{"image_id": 0, "category_id": 0, "bbox": [0, 0, 1]}]}, "bbox is left"),
        ({"annotations": [{"image_id": 0, "category_id": 0, "bbox": [10**400, 0, 1, 1]}]}, "bbox is left"),
        ({"annotations": ["x"]}, "is missing"),
        ({"images": [{"id": 0, "file_name": "a\0.png", "width": 1, "height": 1}], "annotations": []}, "a path inside of"),
        ({"images": [{"id": 0, "file_name": "../x.png", "width": 1, "height": 1}], "annotations": []}, "a path inside of"),
        ({"images": [{"id": 0, "file_name": "a.png", "width": 20, "height": 40}], "annotations": []}, "a picture of 20 x 40 px"),
    ],
)
def test_json_of_another_make_is_refused(parts: dict[str, Any], words: str, tmp_path: Path) -> None:
    assert words in told(as_coco(tmp_path, SET, parts=parts), tmp_path)[0]


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{", '{"images": NaN}'])
def test_what_is_no_coco_file_is_refused(text: str, tmp_path: Path) -> None:
    spec = as_coco(tmp_path, SET)
    (tmp_path / "boxes.json").write_text(text)
    assert str(tmp_path / "boxes.json") in told(spec, tmp_path)[0]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('<?xml version="1.0"?>\n<!DOCTYPE a [<!ENTITY b "c">]>\n<annotation>&b;</annotation>', 2, "document type"),
        ("<annotation>\n" + "<a>" * 50, 2, "elements inside each other"),
        ("<annotation>\n</b>", 2, "no sound xml"),
        ("<annotation><filename>z.png</filename></annotation>", 1, "no such picture"),
        ("<annotation><filename>a.png</filename>\n<object><name>cat</name></object></annotation>", 2, "bndbox needs"),
    ],
)
def test_xml_that_cant_be_used_is_refused(text: str, line: int, words: str, tmp_path: Path) -> None:
    spec = as_voc(tmp_path, SET)
    (tmp_path / "Annotations" / "x.xml").write_bytes(text.encode("utf-16" if "DOCTYPE" in text else "utf-8"))
    [problem] = told(spec, tmp_path)
    assert words in problem
    assert f"x.xml:{line}" in problem


def test_voc_says_its_splits(tmp_path: Path) -> None:
    spec = as_voc(tmp_path, SET, test=0)
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\n")
    (lists / "val.txt").write_text("d 1\n")
    (lists / "cat_train.txt").write_text("a 1\n")  # of one class: no split
    source = opened(spec, tmp_path)
    assert {sample.id: sample.split for sample in source.samples} == {
        "JPEGImages/a.png": "train",
        "JPEGImages/b.png": "train",
        "JPEGImages/d.png": "val",
    }
    (lists / "val.txt").write_text("d\n../../a\n")
    assert "val.txt:2" in told(spec, tmp_path)[0]
    (lists / "val.txt").write_text("d\nb\n")
    [problem] = told(spec, tmp_path)
    assert "val.txt:2 = b" in problem
    assert "train.txt:2" in problem
    (lists / "val.txt").write_bytes("dü\n".encode("latin-1"))
    assert "UTF-8" in told(spec, tmp_path)[0]


def test_a_json_is_no_table(tmp_path: Path) -> None:
    as_coco(tmp_path, SET)
    (tmp_path / "boxes.json").write_text(json.dumps({"annotations": [{"name": "x" * 200_000}]}))
    assert "is no csv" in told(spec_of("boxes", path=str(tmp_path / "boxes.json")), tmp_path)[0]


def test_boxes_are_those_of_the_upright_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "turned.jpg", exif=exif)
    assert upright(tmp_path / "turned.jpg") == (HEIGHT, WIDTH)
    (tmp_path / "boxes.csv").write_text("file,class,x0,y0,x1,y1\nturned.jpg,a,0,0,20,40\n")
    source = opened(spec_of("boxes", path=str(tmp_path / "boxes.csv"), val=0, test=0), tmp_path)
    np.testing.assert_allclose(source.samples[0].target, [[0, 0, 0, 1, 1]])
    assert source.read(source.samples[0]).shape == (WIDTH, HEIGHT, 3)


# Made scenes


FEW = {"train": 12, "val": 4, "test": 4, "classes": ["bug", "flag", "fruit"], "canvas": 96}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    source = spec_of("scenes", **FEW).open(tmp_path_factory.mktemp("memos"))
    assert isinstance(source, Made)
    return source


def test_a_drawing_fills_its_box_and_touches_nothing_else(made: Made) -> None:
    for sample in made.samples[:8]:
        whole = made.recipes[sample.id]
        for number, placed in enumerate(whole.drawings):
            alone = whole._replace(drawings=(placed,))
            made.recipes["one"] = alone
            scene = made.read(Samplelike("one"))
            drawn = (scene != np.array(alone.colour)).any(-1)
            rows, columns = drawn.any(1).nonzero()[0], drawn.any(0).nonzero()[0]
            target = sample.target[number, 1:] * made.canvas  # type: ignore[index]
            np.testing.assert_allclose(target, placed.box)
            seen = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            assert all(abs(one - other) <= 1 for one, other in zip(seen, placed.box, strict=True)), (
                placed,
                seen,
            )  # paper's edge may be pale
        del made.recipes["one"]
        assert made.read(sample).shape == (96, 96, 3)


class Samplelike:
    """What `read` asks of a sample."""

    def __init__(self, name: str) -> None:
        self.id = name


def test_scenes_are_made_of_their_own_splits_drawings(made: Made) -> None:
    split = {row["file"]: row["split"] for row in clipart.rows()}
    label = {row["file"]: row["label"] for row in clipart.rows()}
    assert made.sizes() == {"train": 12, "val": 4, "test": 4}
    for sample in made.samples:
        drawings = made.recipes[sample.id].drawings
        assert {split[placed.file] for placed in drawings} == {sample.split}
        assert [label[placed.file] for placed in drawings] == [made.classes[placed.label] for placed in drawings]
        assert sample.target[len(drawings) :, 0].tolist() == [-1] * (4 - len(drawings))  # type: ignore[index]


def test_scenes_are_a_function_of_their_seed(made: Made, tmp_path: Path) -> None:
    again, other = (spec_of("scenes", **FEW, scene_seed=seed).open(tmp_path) for seed in (0, 1))
    assert again.fingerprint() == made.fingerprint() != other.fingerprint()
    copy = pickle.loads(pickle.dumps(made))
    for sample in made.samples[:3]:
        assert (copy.read(sample) == made.read(sample)).all()
    more = spec_of("scenes", **FEW | {"train": 20}).open(tmp_path)
    known = {sample.id: sample.sha256 for sample in more.samples}
    assert all(known[sample.id] == sample.sha256 for sample in made.samples)  # a larger set holds the smaller one
    assert len({*known.values()}) == len(known)
    assert spec_of("scenes", **FEW, per_class=5).open(tmp_path).sizes()["train"] == 5


@given(st.integers(0, 10_000), st.floats(0, 0.5), st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_no_two_boxes_share_more_than_they_may(seed: int, overlap: float, most: int) -> None:
    spec = spec_of("scenes", **FEW, scene_seed=seed, overlap=overlap, most=most)
    rows = [row for row in clipart.rows() if row["label"] == "bug"][:4]
    whole = recipe(spec, [[row["file"] for row in rows]], {row["file"]: row["sha256"] for row in rows}, "train 0")
    assert 1 <= len(whole.drawings) <= most
    for one, other in combinations(whole.drawings, 2):
        assert shared(one.box, other.box) <= overlap
    for x0, y0, x1, y1 in (placed.box for placed in whole.drawings):
        assert 0 <= x0 < x1 <= 96
        assert 0 <= y0 < y1 <= 96
        assert round(0.25 * 96) <= max(x1 - x0, y1 - y0) <= round(0.5 * 96)
    assert (boxes(whole, 96, 6)[:, 0] >= 0).sum() == len(whole.drawings)


def test_a_share_is_of_the_smaller_box() -> None:
    assert shared((0, 0, 10, 10), (5, 5, 7, 7)) == 1
    assert shared((0, 0, 10, 10), (5, 0, 15, 10)) == 0.5
    assert shared((0, 0, 10, 10), (10, 0, 20, 10)) == 0


@pytest.mark.parametrize(
    ("changed", "key"),
    [({"folds": 5}, "folds"), ({"least": 5}, "least"), ({"smallest": 0.9}, "smallest"), ({"classes": ["bug", "x"]}, "classes")],
)
def test_scenes_that_cant_be_made_are_refused(changed: dict[str, Any], key: str) -> None:
    assert [problem.key for problem in spec_of("scenes", **changed).problems()] == [key]


@pytest.mark.engines
@pytest.mark.skipif(find_spec("deepforest") is None, reason="deepforest is not installed")
def test_real_trees_are_951_boxes(tmp_path: Path) -> None:
    found = find_spec("deepforest")
    assert found is not None
    assert found.submodule_search_locations
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "JPEGImages").mkdir()
    for xml in Path(found.submodule_search_locations[0], "data").glob("*.xml"):
        (tmp_path / "Annotations" / xml.name).write_bytes(xml.read_bytes())
        (tmp_path / "JPEGImages" / xml.with_suffix(".png").name).write_bytes(xml.with_suffix(".png").read_bytes())
    source = opened(spec_of("voc", path=str(tmp_path), val=0.25, test=0.25), tmp_path)
    assert source.sizes() == {"train": 2, "val": 1, "test": 1}
    assert sum(int((sample.target[:, 0] >= 0).sum()) for sample in source.samples) == 951  # type: ignore[index]
