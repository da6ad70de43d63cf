"""Folders of one's own pictures: what is in them, their fingerprints, what is refused, and that hashing is done once."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import regraft
from regraft.datasets import GROUP, DatasetSpec, layout
from regraft.datasets import fingerprint as fingerprints
from regraft.errors import Problem, UserError
from regraft.registry import parse

SRC = Path(regraft.__file__).parents[1]
CONF = Path(__file__).parents[1] / "conf" / "dataset"


def spec(name: str, **values: Any) -> DatasetSpec:
    """The YAML's values with some set otherwise."""
    parsed = parse(GROUP.spec(name), yaml.safe_load((CONF / f"{name}.yaml").read_text()) | values, "dataset")
    assert isinstance(parsed, DatasetSpec)
    return parsed


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), (value % 256, value // 256, 0)).save(path)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """PATH/<class>/*: 3 classes of 20 different pictures."""
    for label, name in enumerate(["cat", "dog", "owl"]):
        for index in range(20):
            picture(tmp_path / "data" / name / f"{index:02d}.png", label * 100 + index)
    return tmp_path / "data"


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """PATH/<split>/<class>/*: 2 classes, 10 + 3 + 2 pictures each."""
    for label, name in enumerate(["cat", "dog"]):
        for place, count in (("train", 10), ("valid", 3), ("test", 2)):
            for index in range(count):
                picture(tmp_path / "data" / place / name / f"{index}.png", label * 1000 + len(place) * 50 + index)
    return tmp_path / "data"


def refused(path: Path, cache: Path, **values: Any) -> list[Problem]:
    with pytest.raises(UserError) as caught:
        spec("folder", path=str(path), **values).open(cache)
    return caught.value.problems


# ---- how a folder is laid out


def test_flat_folder(flat: Path, tmp_path: Path) -> None:
    source = spec("folder", path=str(flat)).open(tmp_path)
    assert source.classes == ["cat", "dog", "owl"]
    assert source.sizes() == {"train": 42, "val": 9, "test": 9}
    for name in ("val", "test"):
        assert [sum(sample.label == label for sample in source.split(name)) for label in range(3)] == [3, 3, 3]
    sample = next(sample for sample in source.samples if sample.id == "dog/05.png")
    assert source.classes[sample.label] == "dog"
    assert source.read(sample).tolist() == [[[105, 0, 0]] * 4] * 3
    assert sample.sha256 == hashlib.sha256((flat / "dog/05.png").read_bytes()).hexdigest()


def test_split_folder(split: Path, tmp_path: Path) -> None:
    source = spec("folder", path=str(split)).open(tmp_path)
    assert source.sizes() == {"train": 20, "val": 6, "test": 4}
    assert {sample.id.split("/")[0] for sample in source.split("val")} == {"valid"}


def test_missing_splits_come_out_of_train(split: Path, tmp_path: Path) -> None:
    (split / "valid").rename(tmp_path / "away")
    source = spec("folder", path=str(split), val=0.2).open(tmp_path)
    assert source.sizes() == {"train": 16, "val": 4, "test": 4}
    assert {sample.id.split("/")[0] for sample in source.split("val")} == {"train"}
    assert spec("folder", path=str(split), val=0.0).open(tmp_path).sizes() == {"train": 20, "val": 0, "test": 4}


def test_equal_pictures_never_cross_a_split_that_is_made(flat: Path, tmp_path: Path) -> None:
    for index in range(20):
        for copy in range(2):
            (flat / "cat" / f"copy{copy}-{index:02d}.png").write_bytes((flat / "cat" / f"{index:02d}.png").read_bytes())
    source = spec("folder", path=str(flat), val=0.3, test=0.3).open(tmp_path)
    where = defaultdict(set)
    for sample in source.samples:
        where[sample.sha256].add(sample.split)
    assert len(source.samples) == 100
    assert all(len(splits) == 1 for splits in where.values())


def test_narrowing_keeps_the_split_and_the_order_of_classes(flat: Path, tmp_path: Path) -> None:
    whole = {sample.id: sample.split for sample in spec("folder", path=str(flat)).open(tmp_path).samples}
    source = spec("folder", path=str(flat), classes=["owl", "cat"], per_class=5).open(tmp_path)
    assert source.classes == ["owl", "cat"]
    assert source.sizes() == {"train": 10, "val": 6, "test": 6}
    assert all(whole[sample.id] == sample.split for sample in source.samples)
    assert {(sample.label, sample.id.split("/")[0]) for sample in source.samples} == {(0, "owl"), (1, "cat")}


def test_other_files_are_passed_over(flat: Path, tmp_path: Path) -> None:
    before = spec("folder", path=str(flat)).open(tmp_path).fingerprint()
    for name in ("README.md", "cat/notes.txt", "cat/.hidden.png", "cat/Thumbs.db", ".git/x/y.png"):
        (flat / name).parent.mkdir(parents=True, exist_ok=True)
        (flat / name).write_bytes(b"no picture")
    assert spec("folder", path=str(flat)).open(tmp_path).fingerprint() == before
    (flat / "cat" / "00.png").rename(flat / "cat" / "00.PNG")
    assert len(spec("folder", path=str(flat)).open(tmp_path).samples) == 60


def test_what_changes_the_fingerprint(flat: Path, tmp_path: Path) -> None:
    def now() -> str:
        return spec("folder", path=str(flat)).open(tmp_path / "cache").fingerprint()

    before = now()
    os.utime(flat / "cat" / "00.png", ns=(1, 1))
    assert now() == before
    moved = tmp_path / "elsewhere"  # written in another order, in another place
    for file in sorted(flat.rglob("*.png"), reverse=True):
        (moved / file.relative_to(flat)).parent.mkdir(parents=True, exist_ok=True)
        (moved / file.relative_to(flat)).write_bytes(file.read_bytes())
    assert spec("folder", path=str(moved)).open(tmp_path / "cache").fingerprint() == before
    picture(flat / "cat" / "00.png", 9999)
    changed = now()
    assert changed != before
    (flat / "dog" / "00.png").rename(flat / "dog" / "99.png")
    assert len({before, changed, now()}) == 3


def test_a_missing_path_is_said(flat: Path, tmp_path: Path) -> None:
    (problem,) = spec("folder").problems()
    assert problem.key == "path"
    assert problem.remedy.startswith("a value is needed: folder of your pictures")
    with pytest.raises(UserError, match=r"dataset\.path: a value is needed"):
        parse(GROUP.spec("folder"), {"name": "folder"}, "dataset")
    wrong = tmp_path / "dta"
    assert spec("folder", path=str(wrong)).problems() == [Problem("path", str(wrong), f"no such folder; did you mean {flat}?")]
    wrong = tmp_path / "dta" / "cat"
    assert spec("folder", path=str(wrong)).problems() == [Problem("path", str(wrong), f"no such folder; did you mean {flat}/cat?")]
    (problem,) = spec("folder", path="/nowhere/at/all").problems()
    assert problem.remedy.startswith("no such folder: / has no nowhere")
    (problem,) = refused(flat / "cat" / "00.png", tmp_path)
    assert problem.key == "dataset.path"
    assert "is a file" in problem.remedy


def test_all_mistakes_are_told_at_once(flat: Path) -> None:
    found = spec("folder", path=str(flat), classes=["cats", "dgo"], val=0.6, test=0.6).problems()
    assert [(problem.key, problem.given) for problem in found] == [("classes", "cats"), ("classes", "dgo"), ("val", 0.6)]


def _empty(root: Path) -> None:
    (root / "train").rename(root.parent / "a")
    (root / "valid").rename(root.parent / "b")
    (root / "test").rename(root.parent / "c")


def _files_only(root: Path) -> None:
    _empty(root)
    picture(root / "1.png", 1)


def _one_class(root: Path) -> None:
    _empty(root)
    picture(root / "cat" / "1.png", 1)


def _one_class_in_train(root: Path) -> None:
    (root / "train" / "dog").rename(root.parent / "a")


def _no_train(root: Path) -> None:
    (root / "train").rename(root.parent / "a")


def _typo(root: Path) -> None:
    (root / "test").rename(root / "tset")


def _twice(root: Path) -> None:
    picture(root / "val" / "cat" / "1.png", 1)


def _strange_class(root: Path) -> None:
    (root / "valid" / "cat").rename(root / "valid" / "cats")


def _empty_val(root: Path) -> None:
    (root / "valid").rename(root.parent / "a")
    (root / "valid").mkdir()


def _class_of_texts(root: Path) -> None:
    (root / "train" / "owl").mkdir()
    (root / "train" / "owl" / "a.txt").write_text("x")


def _deeper(root: Path) -> None:
    picture(root / "train" / "cat" / "more" / "1.png", 1)


def _link_out(root: Path) -> None:
    picture(root.parent / "secret.png", 1)
    (root / "train" / "cat" / "link.png").symlink_to(root.parent / "secret.png")


def _folder_link_out(root: Path) -> None:
    (root.parent / "owl").mkdir()
    (root / "train" / "owl").symlink_to(root.parent / "owl")


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (_empty, ["is empty", "PATH/<class>/*"]),
        (_files_only, ["has no class folders", "PATH/<class>/*"]),
        (_one_class, ["one class only, cat"]),
        (_one_class_in_train, ["train has one class only, cat"]),
        (_no_train, ["no train"]),
        (_typo, ["tset", "did you mean test?"]),
        (_twice, ["val and valid both mean val"]),
        (_strange_class, ["valid/cats is a class that train lacks", "did you mean cat?"]),
        (_empty_val, ["valid is empty"]),
        (_class_of_texts, ["train/owl holds no pictures", ".png"]),
        (_deeper, ["train/cat holds a folder, more"]),
        (_link_out, ["train/cat/link.png is a link that leaves the folder", "secret.png"]),
        (_folder_link_out, ["train/owl is a link that leaves the folder"]),
    ],
)
def test_folders_that_cannot_be_used(spoil: Any, parts: list[str], split: Path, tmp_path: Path) -> None:
    spec("folder", path=str(split)).open(tmp_path)  # it can, before
    spoil(split)
    (problem,) = refused(split, tmp_path)
    assert problem.key == "dataset.path"
    assert problem.given == str(split)
    for part in parts:
        assert part in problem.remedy


def test_links_inside_and_a_linked_root_are_fine(flat: Path, tmp_path: Path) -> None:
    (flat / "cat" / "link.png").symlink_to(flat / "cat" / "00.png")
    (tmp_path / "root").symlink_to(flat)
    source = spec("folder", path=str(tmp_path / "root")).open(tmp_path)
    assert len(source.samples) == 61


def test_a_class_with_too_few_pictures_is_refused_by_name(flat: Path, tmp_path: Path) -> None:
    for file in sorted((flat / "owl").iterdir())[2:]:
        file.unlink()
    (problem,) = refused(flat, tmp_path)
    assert (problem.key, problem.given) == ("dataset.classes", "owl")
    assert problem.remedy.startswith("has 2 pictures, but train and val and test need one each")
    assert len(spec("folder", path=str(flat), classes=["cat", "dog"]).open(tmp_path).samples) == 40
    assert spec("folder", path=str(flat), test=0.0).open(tmp_path).sizes() == {"train": 35, "val": 7, "test": 0}


def test_folds_leave_a_set_s_own_splits_aside(split: Path, tmp_path: Path) -> None:
    tests: list[str] = []
    for fold in range(5):
        source = spec("folder", path=str(split), folds=5, fold=fold).open(tmp_path)
        assert all(5 <= source.sizes()[name] <= 7 for name in ("val", "test"))
        assert not {sample.sha256 for sample in source.split("test")} & {sample.sha256 for sample in source.split("train")}
        tests += [sample.id for sample in source.split("test")]
    assert sorted(tests) == sorted(sample.id for sample in spec("folder", path=str(split)).open(tmp_path).samples)


# ---- broken pictures and the memo


@pytest.fixture
def broken(flat: Path) -> dict[str, str]:
    """Bad files in `flat`: name -> a part of what is said about it. The last two are bad only when they are decoded."""
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for kind in ("PNG", "JPEG"):
        file = io.BytesIO()
        photo.save(file, kind)
        (flat / "cat" / f"cut.{kind.lower()}").write_bytes(file.getvalue()[: len(file.getvalue()) // 2])
    (flat / "cat" / "empty.png").write_bytes(b"")
    (flat / "dog" / "text.jpg").write_text("<html>404</html>")
    (flat / "dog" / "gone.png").symlink_to(flat / "nothing.png")
    return {
        "cat/empty.png": "is empty",
        "dog/text.jpg": "is not a picture",
        "dog/gone.png": "can't be read (No such file",
        "cat/cut.png": "truncated",
        "cat/cut.jpeg": "truncated",
    }


def test_skip_leaves_out_exactly_the_bad_ones(flat: Path, broken: dict[str, str], tmp_path: Path) -> None:
    for _ in range(2):  # the second time, from the memo
        source = spec("folder", path=str(flat), on_error="skip").open(tmp_path)
        assert {problem.key for problem in source.skipped} == {str(flat / name) for name in broken}
        for problem in source.skipped:
            assert broken[str(Path(problem.key).relative_to(flat))] in problem.remedy
        assert len(source.samples) == 60
        assert not set(broken) & {sample.id for sample in source.samples}


def test_raise_tells_every_file_that_fails_the_header_check(flat: Path, broken: dict[str, str], tmp_path: Path) -> None:
    found = refused(flat, tmp_path)
    assert {problem.key for problem in found} == {str(flat / name) for name in list(broken)[:3]}
    assert all("dataset.on_error=skip" in problem.remedy for problem in found)
    # what one mode has learnt does not change what the other says, whichever came first
    assert len(spec("folder", path=str(flat), on_error="skip").open(tmp_path).skipped) == len(broken)
    spec("folder", path=str(flat), on_error="skip").open(tmp_path / "skip first")
    assert refused(flat, tmp_path / "skip first") == refused(flat, tmp_path) == found
    for name in list(broken)[:3]:
        (flat / name).unlink()
    source = spec("folder", path=str(flat)).open(tmp_path)
    (cut,) = (sample for sample in source.samples if sample.id == "cat/cut.png")
    with pytest.raises(UserError, match=r"cat/cut\.png: is damaged or truncated"):
        source.read(cut)


def test_of_many_broken_files_twenty_are_named(flat: Path, tmp_path: Path) -> None:
    for index in range(57):
        (flat / "cat" / f"bad{index:02d}.png").write_bytes(b"")
    found = refused(flat, tmp_path)
    assert len(found) == 21
    assert found[0].key == str(flat / "cat" / "bad00.png")
    assert found[20].key == "dataset.path"
    assert found[20].remedy.startswith("37 more files")


def test_a_file_that_vanishes_later_is_named(flat: Path, tmp_path: Path) -> None:
    source = spec("folder", path=str(flat)).open(tmp_path)
    (flat / "cat" / "00.png").unlink()
    with pytest.raises(UserError, match=r"cat/00\.png: can't be read"):
        source.read(source.samples[0])


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the picture files that are opened from now on."""
    names: list[str] = []
    true = io.open

    def watch(file: Any, *args: Any, **kwargs: Any) -> Any:
        if str(file).endswith(".png"):
            names.append(Path(file).name)
        return true(file, *args, **kwargs)

    monkeypatch.setattr(io, "open", watch)
    return names


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_the_second_time_reads_no_file(flat: Path, tmp_path: Path, opened: list[str], on_error: str) -> None:
    def now() -> str:
        opened.clear()
        return spec("folder", path=str(flat), on_error=on_error).open(tmp_path / "cache").fingerprint()

    before = now()
    assert len(opened) == 60
    assert now() == before
    assert opened == []
    # changed content of the same size: the time gives it away
    file = flat / "cat" / "01.png"
    size = file.stat().st_size
    picture(file, 55)
    assert file.stat().st_size == size
    os.utime(file, ns=(5, file.stat().st_mtime_ns + 1))
    changed = now()
    assert opened == ["01.png"]
    assert changed != before
    # the same time, another size
    stamp = file.stat().st_mtime_ns
    Image.new("RGB", (50, 70)).save(file)
    os.utime(file, ns=(stamp, stamp))
    assert file.stat().st_size != size
    assert now() not in (before, changed)
    assert opened == ["01.png"]


def test_more_files_than_fit_in_one_transaction(flat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: list[str]) -> None:
    whole = spec("folder", path=str(flat)).open(tmp_path / "one").fingerprint()
    monkeypatch.setattr(fingerprints, "CHUNK", 7)
    opened.clear()
    for _ in range(2):
        assert spec("folder", path=str(flat)).open(tmp_path / "many").fingerprint() == whole
    assert len(opened) == 60


def test_without_a_place_for_the_memo_all_works(flat: Path, tmp_path: Path, opened: list[str], caplog: pytest.LogCaptureFixture) -> None:
    kept = spec("folder", path=str(flat)).open(tmp_path / "cache").fingerprint()
    (tmp_path / "file").write_text("")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / fingerprints.NAME).write_text("no database " * 1000)
    for cache in (tmp_path / "file" / "cache", tmp_path / "damaged"):
        caplog.clear()
        for _ in range(2):
            opened.clear()
            assert spec("folder", path=str(flat)).open(cache).fingerprint() == kept
            assert len(opened) == 60
        assert str(cache / fingerprints.NAME) in caplog.text


def test_several_processes_at_once(flat: Path, tmp_path: Path, opened: list[str]) -> None:
    values = yaml.safe_load((CONF / "folder.yaml").read_text()) | {"path": str(flat)}
    code = f"""
import pathlib
from regraft.datasets import GROUP, fingerprint
fingerprint.CHUNK = 3
print(GROUP.spec("folder").model_validate({values!r}).open(pathlib.Path({str(tmp_path / "cache")!r})).fingerprint())
"""
    command = [sys.executable, "-c", code]
    running = [
        subprocess.Popen(command, env={"PYTHONPATH": str(SRC)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)
    ]
    said = [process.communicate(timeout=60) for process in running]
    opened.clear()
    mine = spec("folder", path=str(flat)).open(tmp_path / "cache").fingerprint()
    assert said == [(f"{mine}\n", "")] * 4  # no warning either: the memo served all of them
    assert opened == []


@pytest.mark.parametrize("broken", [b"caf\xe9/1.png", b"b/caf\xe9.png"])
def test_a_name_that_is_no_utf8_is_refused_with_its_bytes(tmp_path, broken):
    for name in (b"a/1.png", b"b/1.png", broken):
        path = os.path.join(os.fsencode(tmp_path), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(b"x")
    with pytest.raises(UserError, match=r"caf\\udce9.* is no UTF-8"):
        list(layout.pictures(layout.find(str(tmp_path)), layout.find(str(tmp_path)).classes))
