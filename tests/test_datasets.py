"""The three kinds of dataset: what is in them, what decides their fingerprint, what is refused, and that hashing is done once."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
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
from regraft.datasets.clipart import ROOT, rows
from regraft.datasets.source import Sample, Source
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


# ---- the catalogue


def test_yaml_and_spec_have_the_same_keys_and_each_key_has_a_comment() -> None:
    files = sorted(CONF.rglob("*.yaml"))
    assert {file.stem for file in files} == set(GROUP.builtin)
    assert len(files) == 3
    for file in files:
        text = file.read_text()
        values = yaml.safe_load(text)
        assert next(iter(values)) == "name"
        assert values["name"] == file.stem
        assert set(values) == set(GROUP.spec(file.stem).model_fields)
        assert all("#" in line for line in text.splitlines())
        assert all(field.is_required() and field.description for key, field in GROUP.spec(file.stem).model_fields.items() if key != "name")


def test_importing_the_catalogue_imports_nothing_heavy() -> None:
    code = "import sys, regraft.datasets; print([name for name in ('numpy', 'PIL', 'torch', 'sklearn') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(SRC)}, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_opening_every_kind_imports_no_torch(flat: Path, tmp_path: Path) -> None:
    values = [(name, yaml.safe_load((CONF / f"{name}.yaml").read_text()) | extra) for name, extra in KINDS(flat)]
    code = f"""
import sys, pathlib
from regraft.datasets import GROUP
for name, values in {values!r}:
    source = GROUP.spec(name).model_validate(values).open(pathlib.Path({str(tmp_path)!r}))
    source.read(source.samples[0])
print([name for name in ("torch", "torchvision", "PIL") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(SRC)}, capture_output=True, text=True, check=True)
    assert done.stdout == "['PIL']\n"


def KINDS(flat: Path) -> list[tuple[str, dict[str, str]]]:
    return [("clipart", {}), ("digits", {}), ("folder", {"path": str(flat)})]


def test_the_path_stays_out_of_the_run_id() -> None:
    assert "path" not in spec("folder").deciding()
    assert {"classes", "per_class", "split_seed", "val"} <= set(spec("folder").deciding())


def test_a_source_survives_pickling_and_reads_the_same(flat: Path, tmp_path: Path) -> None:
    for name, values in KINDS(flat):
        source = spec(name, **values).open(tmp_path)
        again = pickle.loads(pickle.dumps(source))
        assert again.fingerprint() == source.fingerprint()
        assert np.array_equal(again.read(again.samples[-1]), source.read(source.samples[-1]))


def test_a_source_of_ones_own() -> None:
    samples = [Sample("b", "val", 1, "22"), Sample("a", "train", 0, "11")]
    source = Source(["x", "y"], samples)
    assert [sample.id for sample in source.samples] == ["a", "b"]
    assert source.sizes() == {"train": 1, "val": 1, "test": 0}
    assert source.fingerprint() == hashlib.sha256(b"a\x0011\0x\0train\n\0b\x0022\0y\0val\n\0").hexdigest()
    for wrong in (Sample("a", "val", 0, ""), Sample("c", "dev", 0, ""), Sample("c", "val", 2, ""), Sample("c", "val", -1, "")):
        with pytest.raises(ValueError, match=r"id a|split must be"):
            Source(["x", "y"], [*samples, wrong])


# ---- clipart


def test_clipart_is_what_its_labels_say(tmp_path: Path) -> None:
    source = spec("clipart").open(tmp_path)
    assert len(source.samples) == 991
    assert source.sizes() == {"train": 573, "val": 208, "test": 210}
    assert len(source.classes) == 19
    assert source.classes == sorted(source.classes)
    assert source.skipped == []
    listed = {row["file"]: row for row in rows()}
    where = defaultdict(set)
    for sample in source.samples:
        assert hashlib.sha256((ROOT / sample.id).read_bytes()).hexdigest() == sample.sha256 == listed[sample.id]["sha256"]
        assert source.classes[sample.label] == listed[sample.id]["label"]
        where[sample.group].add(sample.split)
    assert len(where) == 618
    assert all(len(splits) == 1 for splits in where.values())
    assert source.read(source.samples[0]).shape == (128, 128, 3)


def test_clipart_narrowed(tmp_path: Path) -> None:
    whole = spec("clipart").open(tmp_path)
    source = spec("clipart", classes=["fruit", "bird"], per_class=4).open(tmp_path)
    assert source.classes == ["fruit", "bird"]
    assert [sum(sample.label == label for sample in source.split("train")) for label in (0, 1)] == [4, 4]
    kept = {sample.id for sample in whole.split("test") if whole.classes[sample.label] in ("fruit", "bird")}
    assert {sample.id for sample in source.split("test")} == kept
    assert source.fingerprint() != whole.fingerprint()


def test_a_damaged_clipart_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = ROOT / rows()[0]["file"]
    true = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: true(path) + b"x" if path == file else true(path))
    with pytest.raises(UserError, match=r"000\.png: differs from labels\.csv"):
        spec("clipart").open(tmp_path)


@pytest.mark.parametrize(
    ("classes", "remedy"),
    [
        (["fruits", "bird"], "no such class; did you mean fruit"),
        (["bird"], "at least two"),
        (["bird", "bird"], "at least two"),
        (["bird", "bird", "fruit"], "named twice"),
        ([], "at least two"),
    ],
)
def test_wrong_classes_are_refused(classes: list[str], remedy: str, tmp_path: Path) -> None:
    (problem,) = spec("clipart", classes=classes).problems()
    assert problem.key == "classes"
    assert remedy in problem.remedy
    with pytest.raises(UserError, match=r"^dataset\.classes = "):
        spec("clipart", classes=classes).open(tmp_path)


# ---- digits


def test_digits(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    truth = load_digits()
    source = spec("digits").open(tmp_path)
    assert sum(source.sizes().values()) == len(source.samples) == 1797
    assert source.classes == list("0123456789")
    for size in (source.sizes()["val"], source.sizes()["test"]):
        assert abs(size - 0.15 * 1797) <= 10
    for sample in source.samples[::100]:
        index = int(sample.id.removeprefix("digits/"))
        assert sample.label == truth.target[index]
        read = source.read(sample)
        assert read.shape == (8, 8, 3)
        assert read.dtype == np.uint8
        assert np.abs(read[..., 1] - truth.images[index] * 255 / 16).max() <= 0.5
        assert hashlib.sha256(read[..., 0].tobytes()).hexdigest() == sample.sha256
    seeds = [spec("digits", split_seed=seed).open(tmp_path).fingerprint() for seed in (0, 0, 1)]
    assert seeds[0] == seeds[1] == source.fingerprint() != seeds[2]


def test_digits_narrowed(tmp_path: Path) -> None:
    source = spec("digits", classes=["8", "3"], per_class=10, val=0.0, test=0.5).open(tmp_path)
    assert source.classes == ["8", "3"]
    assert source.sizes()["train"] == 20
    assert source.sizes()["val"] == 0
    assert spec("digits", classes=["8", "three"]).problems()[0].given == "three"


def test_nothing_left_to_train_on_is_refused() -> None:
    (problem,) = spec("digits", val=0.5, test=0.5).problems()
    assert problem.key == "val"


# ---- folders


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
