"""Tables of one's own, csv and parquet: what they mean, and that each mistake is told with the file and the line."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from PIL import Image

from regraft.datasets import GROUP, DatasetSpec
from regraft.datasets.source import Source
from regraft.errors import Problem, UserError
from regraft.registry import parse

CONF = Path(__file__).parents[1] / "conf" / "dataset"


def spec(name: str, **values: Any) -> DatasetSpec:
    """The YAML's values with some set otherwise."""
    parsed = parse(GROUP.spec(name), yaml.safe_load((CONF / f"{name}.yaml").read_text()) | values, "dataset")
    assert isinstance(parsed, DatasetSpec)
    return parsed


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (value % 256, value // 256, 0)).save(file, "PNG")
    return file.getvalue()


# ---- csv


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """pics/00.png to pics/29.png, all different, and no table yet."""
    (tmp_path / "data" / "pics").mkdir(parents=True)
    for index in range(30):
        (tmp_path / "data" / "pics" / f"{index:02d}.png").write_bytes(png(index))
    return tmp_path / "data"


def table(folder: Path, rows: list[list[Any]], header: str = "file,label", delimiter: str = ",") -> Path:
    lines = [header, *(delimiter.join(map(str, row)) for row in rows)]
    (folder / "table.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "table.csv"


def plain(folder: Path) -> Path:
    """30 pictures of cats and dogs."""
    return table(folder, [[f"pics/{index:02d}.png", "cat" if index % 2 else "dog"] for index in range(30)])


def opened(path: Path, **values: Any) -> Source:
    return spec("csv", path=str(path), **values).open(path.parents[1])


def refused(path: Path, **values: Any) -> list[Problem]:
    with pytest.raises(UserError) as caught:
        opened(path, **values)
    return caught.value.problems


def test_a_table_of_classes(folder: Path) -> None:
    source = opened(plain(folder))
    assert (source.kind, source.classes) == ("class", ["cat", "dog"])
    assert source.sizes() == {"train": 22, "val": 4, "test": 4}
    for sample in source.samples:
        index = int(Path(sample.id).stem)
        assert source.classes[sample.label] == ("cat" if index % 2 else "dog")
        assert sample.target is None
        assert source.read(sample)[0, 0].tolist() == [index, 0, 0]
        assert sample.sha256 == hashlib.sha256((folder / sample.id).read_bytes()).hexdigest()
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(again.read(again.samples[3]), source.read(source.samples[3]))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda text: "\ufeff" + text, id="the mark of a spreadsheet"),
        pytest.param(lambda text: text.replace("\n", "\r\n"), id="lines of Windows"),
        pytest.param(lambda text: text.replace(",", ";"), id="semicolons"),
        pytest.param(lambda text: text.replace(",", "\t"), id="tabs"),
        pytest.param(lambda text: text.replace(",", " , "), id="blanks"),
        pytest.param(lambda text: text.replace("cat", '"cat"').replace("pics/00.png", '"./pics/00.png"'), id="quotes"),
        pytest.param(lambda text: "\n".join(f"{line},x,\"a, b\nc\"" for line in text.splitlines()) + "\n\n", id="more columns"),
        pytest.param(lambda text: "\n".join([text.splitlines()[0], *reversed(text.splitlines()[1:])]), id="another order"),
    ],
)  # fmt: skip
def test_a_table_may_be_written_in_many_ways(change: Any, folder: Path) -> None:
    path = plain(folder)
    before = opened(path).fingerprint()
    path.write_bytes(change(path.read_text()).encode())
    assert opened(path).fingerprint() == before


def test_a_delimiter_of_ones_own_and_one_column_that_holds_the_others(folder: Path) -> None:
    path = table(folder, [[f"pics/{index:02d}.png", "a;b" if index % 2 else "c;d"] for index in range(30)], "file|label", "|")
    assert opened(path, delimiter="|").classes == ["a;b", "c;d"]
    assert "has no column file (dataset.file)" in refused(path)[0].remedy


def test_classes_that_are_numbers_go_by_size(folder: Path) -> None:
    assert opened(table(folder, [[f"pics/{index:02d}.png", ("10", "9", "-1")[index % 3]] for index in range(30)])).classes == [
        "-1",
        "9",
        "10",
    ]


def test_another_root(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    path = table(tmp_path / "tables", [[f"{index:02d}.png", index % 2] for index in range(30)])
    source = opened(path, root=str(folder / "pics"))
    assert source.classes == ["0", "1"]
    assert len(source.samples) == 30
    assert "give the folder that the paths start from as dataset.root" in refused(path)[0].remedy


def test_splits_and_groups_of_the_table(folder: Path) -> None:
    words = ["train", "Validation", "test"]
    rows = [[f"pics/{index:02d}.png", index % 2, words[index % 3], index // 4] for index in range(30)]
    path = table(folder, rows, "file,label,fold,who")
    source = opened(path, split="fold")
    assert all(sample.split == ("train", "val", "test")[int(Path(sample.id).stem) % 3] for sample in source.samples)
    made = opened(path, group="who", val=0.3, test=0.3)
    where = defaultdict(set)
    for sample in made.samples:
        where[sample.group].add(sample.split)
    assert len(where) == 8
    assert all(len(splits) == 1 for splits in where.values())
    assert min(made.sizes().values()) > 0
    partly = table(folder, [[*row[:2], "train" if index % 5 else "test"] for index, row in enumerate(rows)], "file,label,split")
    source = opened(partly, split="split", val=0.25)
    assert source.sizes() == {"train": 18, "val": 6, "test": 6}  # val out of train


def test_equal_pictures_share_a_split_whatever_their_groups(folder: Path) -> None:
    for index in range(0, 30, 3):
        (folder / "pics" / f"{index + 1:02d}.png").write_bytes((folder / "pics" / f"{index:02d}.png").read_bytes())
    path = table(folder, [[f"pics/{index:02d}.png", "a" if index < 15 else "b", index % 3] for index in range(30)], "file,label,who")
    source = opened(path, val=0.3, test=0.3)
    split = {sample.id: sample.split for sample in source.samples}
    assert all(split[f"pics/{index:02d}.png"] == split[f"pics/{index + 1:02d}.png"] for index in range(0, 30, 3))


def test_classes_and_per_class(folder: Path) -> None:
    path = table(folder, [[f"pics/{index:02d}.png", "abc"[index % 3]] for index in range(30)])
    source = opened(path, classes=["c", "a"], per_class=3)
    assert source.classes == ["c", "a"]
    assert source.sizes()["train"] == 6
    assert {int(Path(sample.id).stem) % 3 for sample in source.samples} == {2, 0}
    (problem,) = refused(path, classes=["c", "d"])
    assert (problem.key, problem.given) == ("dataset.classes", "d")


def test_many_labels_in_columns_or_in_one(folder: Path) -> None:
    flags = [[index % 2, int(index % 3 == 0)] for index in range(30)]
    columns = opened(
        table(folder, [[f"pics/{index:02d}.png", *flags[index]] for index in range(30)], "file,odd,three"),
        label=None,
        labels=["odd", "three"],
    )
    words = ["|".join(name for name, flag in zip(("odd", "three"), each, strict=True) if flag) for each in flags]
    tags = opened(table(folder, [[f"pics/{index:02d}.png", words[index]] for index in range(30)], "file,tags"), label=None, labels="tags")
    for source in (columns, tags):
        assert (source.kind, source.classes) == ("tags", ["odd", "three"])
        assert {sample.id: sample.target for sample in source.samples} == {
            f"pics/{index:02d}.png": tuple(map(float, flags[index])) for index in range(30)
        }
        assert {sample.label for sample in source.samples} == {0}
        assert source.sizes() == {"train": 22, "val": 4, "test": 4}
    assert columns.fingerprint() == tags.fingerprint()
    turned = opened(folder / "table.csv", label=None, labels="tags", classes=["three", "odd"])
    assert turned.fingerprint() != tags.fingerprint()
    assert all(one.target == two.target[::-1] for one, two in zip(turned.samples, tags.samples, strict=True) if two.target)


def test_numbers_to_predict(folder: Path) -> None:
    path = table(folder, [[f"pics/{index:02d}.png", index / 4, -1e3 * index] for index in range(30)], "file,x,y")
    source = opened(path, label=None, targets=["y", "x"], per_class=10)
    assert (source.kind, source.classes) == ("numbers", ["y", "x"])
    assert source.sizes() == {"train": 10, "val": 4, "test": 4}
    assert all(sample.target == (-1e3 * int(Path(sample.id).stem), int(Path(sample.id).stem) / 4) for sample in source.samples)
    folded = [opened(path, label=None, targets=["x"], folds=3, fold=fold) for fold in range(3)]
    assert sorted(sample.id for source in folded for sample in source.split("test")) == [f"pics/{index:02d}.png" for index in range(30)]


def test_what_is_learnt_must_be_one_thing(folder: Path) -> None:
    path = str(plain(folder))
    for values, key in (({"labels": "label"}, "labels"), ({"targets": ["x"]}, "targets")):
        (problem,) = spec("csv", path=path, label="label", **values).problems()
        assert problem.key == key
    assert spec("csv", path=path, label=None).column == "label", "where nothing is said"
    assert "dataset.label=null" in spec("csv", path=path, label="x", targets=["x"]).problems()[0].remedy
    (problem,) = spec("csv", path=path, label=None, targets=["x"], classes=["x", "y"]).problems()
    assert problem.key == "classes"
    assert spec("csv", path=path + "x").problems()[0].remedy == "no such file"
    assert spec("csv").problems()[0].remedy.startswith("a value is needed: the csv file")


def cell(text: str) -> Any:
    """Puts a text into the line of picture 07 (line 9 of the file)."""
    return lambda folder: (folder / "table.csv").write_text((folder / "table.csv").read_text().replace("pics/07.png,cat", text))


def _link_out(folder: Path) -> None:
    (folder.parent / "secret.png").write_bytes(png(99))
    (folder / "pics" / "07.png").unlink()
    (folder / "pics" / "07.png").symlink_to(folder.parent / "secret.png")


def _latin(folder: Path) -> None:
    path = folder / "table.csv"
    path.write_bytes(path.read_bytes().replace(b"pics/07.png,cat", b"pics/07.png,caf\xe9"))


@pytest.mark.parametrize(
    ("spoil", "line", "given", "part"),
    [
        (cell("../secret.png,cat"), 9, "../secret.png", "lies outside of"),
        (cell("pics/../../secret.png,cat"), 9, "pics/../../secret.png", "lies outside of"),
        (cell("/etc/passwd,cat"), 9, "/etc/passwd", "lies outside of"),
        (_link_out, 9, "pics/07.png", "is a link out of"),
        (cell("pics,cat"), 9, "pics", "is a folder"),
        (cell("pics/7.png,cat"), 9, "pics/7.png", "no such file"),
        (cell("pics/07.pgn,cat"), 9, "pics/07.pgn", "did you mean 07.png?"),
        (cell("pics/06.png,cat"), 9, "pics/06.png", "is in line 8 already"),
        (cell("./pics//06.png,cat"), 9, "./pics//06.png", "is in line 8 already"),
        (cell(",cat"), 9, None, "has no file name"),
        (cell("pics/07.png,"), 9, None, "has no label"),
        (cell("pics/07.png,  "), 9, None, "has no label"),
        (cell("pics/07.png"), 9, None, "has 1 fields where the header has 2"),
        (cell("pics/07.png,cat,dog"), 9, None, "has 3 fields where the header has 2"),
        (cell('pics/07.png,"cat'), 9, None, "is no sound csv"),
        (_latin, 9, None, "is no UTF-8"),
    ],
)
def test_lines_that_cannot_be_used_are_told_with_their_number(spoil: Any, line: int, given: Any, part: str, folder: Path) -> None:
    path = plain(folder)
    opened(path)  # it can, before
    spoil(folder)
    (problem,) = refused(path)
    assert (problem.key, problem.given) == (f"{path}:{line}", given)
    assert part in problem.remedy


@pytest.mark.parametrize("value", ["", "nan", "inf", "-inf", "three", "1,5"])
def test_what_is_no_number_is_refused(value: str, folder: Path) -> None:
    rows = [[f"pics/{index:02d}.png", f'"{value}"' if index == 3 else index] for index in range(30)]
    (problem,) = refused(table(folder, rows, "file,x"), label=None, targets=["x"])
    assert problem == Problem(f"{folder / 'table.csv'}:5", value or None, "x must be a number; give one, or remove the line")


@pytest.mark.parametrize("value", ["", "2", "yes", "0.5", "nan"])
def test_what_is_no_tag_is_refused(value: str, folder: Path) -> None:
    rows = [[f"pics/{index:02d}.png", value if index == 3 else index % 2] for index in range(30)]
    (problem,) = refused(table(folder, rows, "file,x"), label=None, labels=["x"])
    assert problem == Problem(f"{folder / 'table.csv'}:5", value or None, "x must be 0 or 1")


def test_columns_that_are_not_there_or_twice(folder: Path) -> None:
    path = table(folder, [["pics/00.png", "a", 1, 2]], "File,lable,x,x")
    file, label = refused(path)
    assert file == Problem(f"{path}:1", None, "has no column file (dataset.file); did you mean File?")
    assert label == Problem(f"{path}:1", None, "has no column label (dataset.label); did you mean lable?")
    assert "two columns called x" in refused(path, file="File", label=None, targets=["x"])[0].remedy
    (problem,) = refused(path, file="File", label="lable", split="part")
    assert problem.remedy == "has no column part (dataset.split); there are File, lable, x or x"
    (folder / "table.csv").write_text("")
    assert refused(path)[0].key == f"{path}:1"


def test_words_that_are_no_split_and_tables_without_train(folder: Path) -> None:
    rows = [[f"pics/{index:02d}.png", index % 2, "tset" if index == 4 else "train"] for index in range(30)]
    (problem,) = refused(table(folder, rows, "file,label,split"), split="split")
    assert problem == Problem(f"{folder / 'table.csv'}:6", "tset", "is no split; did you mean test?")
    rows = [[f"pics/{index:02d}.png", index % 2, "test"] for index in range(30)]
    (problem,) = refused(table(folder, rows, "file,label,split"), split="split")
    assert (problem.key, problem.given) == ("dataset.split", "split")


def test_one_class_and_classes_with_too_few_pictures(folder: Path) -> None:
    (problem,) = refused(table(folder, [[f"pics/{index:02d}.png", "cat"] for index in range(30)]))
    assert "one class only, cat" in problem.remedy
    (problem,) = refused(table(folder, [[f"pics/{index:02d}.png", "cat" if index else "dog"] for index in range(30)]))
    assert (problem.key, problem.given) == ("dataset.classes", "dog")


def test_all_lines_are_told_at_once_but_no_more_than_twenty(folder: Path) -> None:
    found = refused(table(folder, [[f"pics/{index}x.png", index % 2] for index in range(30)]))
    assert len(found) == 21
    assert found[-1].remedy == "10 more lines can't be used"


def test_broken_and_missing_pictures_are_left_out_if_wanted(folder: Path) -> None:
    path = plain(folder)
    (folder / "pics" / "05.png").write_bytes(b"no picture")
    (folder / "pics" / "06.png").unlink()
    assert [problem.key for problem in refused(path)] == [f"{path}:8"]
    source = opened(path, on_error="skip")
    assert [os.path.basename(problem.key) for problem in source.skipped] == ["05.png", "06.png"]
    assert len(source.samples) == 28


# ---- parquet


def write(path: Path, rows: list[tuple[int, Any]], names: list[str] | None = None, **options: Any) -> None:
    """A file as `datasets` writes it: the class names are in the description that it keeps in the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    features: dict[str, Any] = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    frame = pl.DataFrame(
        {"image": [{"bytes": png(value), "path": f"{value}.png"} for value, _ in rows], "label": [label for _, label in rows]}
    )
    frame.write_parquet(path, metadata={"huggingface": json.dumps({"info": {"features": features}})} if names else None, **options)


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """Two train files, one validation and one test file."""
    parts = {"train-00000-of-00002": 0, "train-00001-of-00002": 20, "validation-00000-of-00001": 40, "test-00000-of-00001": 46, "": 52}
    for number, ((name, begin), end) in enumerate(zip(list(parts.items())[:-1], list(parts.values())[1:], strict=True)):
        write(
            tmp_path / "hf" / "data" / f"{name}.parquet",
            [(value, value % 2) for value in range(begin, end)],
            ["owl", "cat"],
            row_group_size=7 + number,
        )
    return tmp_path / "hf"


def loaded(path: Path, cache: Path, **values: Any) -> Source:
    return spec("huggingface", path=str(path), **values).open(cache)


def test_parquet_files_of_a_set(parquet: Path, tmp_path: Path) -> None:
    source = loaded(parquet, tmp_path / "cache")
    assert source.classes == ["owl", "cat"]
    assert source.sizes() == {"train": 40, "val": 6, "test": 6}
    values = set()
    for sample in source.samples:
        value = int(source.read(sample)[0, 0, 0])
        values.add(value)
        assert sample.label == value % 2
        assert sample.split == ("train" if value < 40 else "val" if value < 46 else "test")
        assert sample.sha256 == hashlib.sha256(png(value)).hexdigest()
    assert values == set(range(52))
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(again.read(again.samples[9]), source.read(source.samples[9]))
    assert len(pickle.dumps(source)) < 40_000  # the pictures are not in it


def test_parquet_is_taken_apart_once(parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = loaded(parquet, tmp_path / "cache").fingerprint()
    with monkeypatch.context() as patch:
        patch.setattr(pl, "scan_parquet", lambda *_: pytest.fail("was read again"))
        assert loaded(parquet, tmp_path / "cache").fingerprint() == first
    assert loaded(parquet, tmp_path / "other").fingerprint() == first
    for file in (tmp_path / "cache" / "extracted").glob("*.bin"):
        file.write_bytes(file.read_bytes()[:-1])  # damaged: made again
    source = loaded(parquet, tmp_path / "cache")
    assert source.read(source.samples[-1]).shape == (3, 4, 3)
    write(parquet / "data" / "test-00000-of-00001.parquet", [(value, value % 2) for value in range(100, 106)], ["owl", "cat"])
    assert loaded(parquet, tmp_path / "cache").fingerprint() != first


def test_parquet_narrowed_folded_and_one_file(parquet: Path, tmp_path: Path) -> None:
    source = loaded(parquet, tmp_path, classes=["cat", "owl"], per_class=4)
    assert source.classes == ["cat", "owl"]
    assert source.sizes() == {"train": 8, "val": 6, "test": 6}
    one = loaded(parquet / "data" / "train-00000-of-00002.parquet", tmp_path)
    assert one.sizes() == {"train": 16, "val": 2, "test": 2}
    tests = [sample.id for fold in range(4) for sample in loaded(parquet, tmp_path, folds=4, fold=fold).split("test")]
    assert len(set(tests)) == len(tests) == 52


def test_parquet_of_words_of_folders_and_of_other_columns(tmp_path: Path) -> None:
    for split, begin in (("train", 0), ("test", 20)):
        write(tmp_path / "words" / split / "0000.parquet", [(value, "ab"[value % 2]) for value in range(begin, begin + 20)])
    source = loaded(tmp_path / "words", tmp_path, val=0.3)
    assert source.classes == ["a", "b"]
    assert source.sizes() == {"train": 14, "val": 6, "test": 20}
    write(tmp_path / "numbers" / "all.parquet", [(value, (2, 10)[value % 2]) for value in range(20)])
    source = loaded(tmp_path / "numbers", tmp_path)
    assert source.classes == ["2", "10"]  # numbers by their size
    frame = pl.read_parquet(tmp_path / "numbers" / "all.parquet").rename({"image": "photo", "label": "kind"})
    frame.write_parquet(tmp_path / "numbers" / "all.parquet")
    assert loaded(tmp_path / "numbers", tmp_path, image="photo", label="kind").classes == ["2", "10"]
    with pytest.raises(UserError, match=r"has no column image or img; there are photo or kind \(dataset\.image names it\)"):
        loaded(tmp_path / "numbers", tmp_path)


@pytest.mark.parametrize(
    ("rows", "names", "part"),
    [
        ([(1, 0), (2, 1), (3, 2)], ["a", "b"], "has the label 2, but there are 2 class names"),
        ([(1, 0), (2, 1), (3, -1)], ["a", "b"], "has the label -1, but"),
        ([(1, 0), (2, 1), (3, None)], ["a", "b"], "has no label"),
        ([(1, "a"), (2, "b"), (3, "")], None, "has no label"),
    ],
)
def test_rows_that_cannot_be_used_are_told_by_number(rows: list[Any], names: Any, part: str, tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", rows, names)
    with pytest.raises(UserError) as caught:
        loaded(tmp_path / "x.parquet", tmp_path)
    (problem,) = caught.value.problems
    assert problem.key == f"{tmp_path / 'x.parquet'} row 2"
    assert part in problem.remedy


def test_broken_pictures_in_parquet(tmp_path: Path) -> None:
    pictures = [{"bytes": png(value), "path": None} for value in range(20)]
    pictures[3]["bytes"] = None
    pictures[4]["bytes"] = b"no picture"
    pictures[5]["bytes"] = pictures[5]["bytes"][:45]
    path = tmp_path / "x.parquet"
    pl.DataFrame({"image": pictures, "label": [index % 2 for index in range(20)]}).write_parquet(path)
    with pytest.raises(UserError) as caught:
        loaded(path, tmp_path)
    assert [problem.key for problem in caught.value.problems] == [f"{path} row 3", f"{path} row 4"]
    source = loaded(path, tmp_path, on_error="skip")
    assert [problem.key for problem in source.skipped] == [f"{path} row 3", f"{path} row 4", f"{path} row 5"]
    assert len(source.samples) == 17


def test_folders_of_parquet_that_cannot_be_used(parquet: Path, tmp_path: Path) -> None:
    (problem,) = spec("huggingface", path=str(tmp_path / "nowhere")).problems()
    assert (problem.key, problem.given) == ("path", str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    assert "holds no .parquet file" in spec("huggingface", path=str(tmp_path / "empty")).problems()[0].remedy
    write(parquet / "data" / "extra.parquet", [(1, 0)], ["owl", "cat"])
    with pytest.raises(UserError, match=r"extra\.parquet: is of no split, while other files are"):
        loaded(parquet, tmp_path)
    (parquet / "data" / "extra.parquet").rename(parquet / "data" / "test-extra.parquet")
    write(parquet / "data" / "test-extra.parquet", [(1, 0)], ["owl", "dog"])
    with pytest.raises(UserError, match=r"names other classes than"):
        loaded(parquet, tmp_path)
    (parquet / "data" / "test-extra.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"test-extra\.parquet: is no parquet file"):
        loaded(parquet, tmp_path)
    (parquet / "data" / "test-extra.parquet").unlink()
    for file in (parquet / "data").glob("train*"):
        file.unlink()
    with pytest.raises(UserError, match="has no train file"):
        loaded(parquet, tmp_path)


def test_parquet_without_pictures_in_it(tmp_path: Path) -> None:
    pl.DataFrame({"image": ["1.png"], "label": [0]}).write_parquet(tmp_path / "x.parquet")
    with pytest.raises(UserError, match="its column image holds String, and pictures are needed"):
        loaded(tmp_path / "x.parquet", tmp_path)
    pl.DataFrame({"image": [{"bytes": png(1), "path": ""}], "label": [[0, 1]]}).write_parquet(tmp_path / "x.parquet")
    with pytest.raises(UserError, match="its column label holds List"):
        loaded(tmp_path / "x.parquet", tmp_path)
