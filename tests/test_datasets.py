"""The catalogue, what every source keeps to, and the sets that are at hand: clipart, its cats and dogs, digits."""

from __future__ import annotations

import hashlib
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
from regraft.datasets import GROUP, DatasetSpec
from regraft.datasets.clipart import ROOT, rows
from regraft.datasets.source import Sample, Source
from regraft.errors import UserError
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


# ---- the catalogue


def test_yaml_and_spec_have_the_same_keys_and_each_key_has_a_comment() -> None:
    files = sorted(CONF.rglob("*.yaml"))
    assert {file.stem for file in files} == set(GROUP.builtin)
    assert len(files) == 28
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


def test_cats_and_dogs_by_tag_are_dealt_to_five_folds(tmp_path: Path) -> None:
    tagged = {row["file"]: {"dog", "cat"} & set(row["tags"].split("|")) for row in rows()}
    tests: list[str] = []
    for fold in range(5):
        source = spec("cats_dogs", fold=fold).open(tmp_path)
        assert source.classes == ["dog", "cat"]
        assert [sum(sample.label == label for sample in source.samples) for label in (0, 1)] == [16, 14]
        assert all(tagged[sample.id] == {source.classes[sample.label]} for sample in source.samples)
        assert all({sample.label for sample in source.split(split)} == {0, 1} for split in ("train", "val", "test"))
        assert len({sample.group: sample.split for sample in source.samples}) == len({(each.group, each.split) for each in source.samples})
        tests += [sample.id for sample in source.split("test")]
    assert sorted(tests) == sorted(name for name, tags in tagged.items() if tags)
    halves = spec("cats_dogs", folds=None).open(tmp_path)
    assert sum(halves.sizes().values()) == 30
    assert min(halves.sizes().values()) >= 4


def test_folds_that_cannot_be_are_refused(tmp_path: Path) -> None:
    assert [(problem.key, problem.given) for problem in spec("digits", folds=5, fold=5).problems()] == [("fold", 5)]
    (problem,) = spec("digits", fold=2).problems()
    assert "dataset.folds=5" in problem.remedy
    with pytest.raises(UserError, match=r"dataset\.folds = 2: at least 3"):
        spec("digits", folds=2)
    with pytest.raises(UserError, match=r"^dataset\.folds = 15: .* groups of pictures"):
        spec("cats_dogs", folds=15).open(tmp_path)


def test_a_source_of_tags_or_numbers() -> None:
    samples = [Sample("a", "train", 0, "11", target=(1.0, 0.0)), Sample("b", "val", 0, "22", target=(0.5, 2.0))]
    source = Source(["x", "y"], samples, kind="numbers", remarks=["made"])
    assert (source.kind, source.remarks) == ("numbers", ["made"])
    seen = {
        source.fingerprint(),
        Source(["x", "z"], samples, kind="numbers").fingerprint(),
        Source(["x", "y"], samples, kind="tags").fingerprint(),
    }
    seen.add(Source(["x", "y"], [samples[0], Sample("b", "val", 0, "22", target=(0.5, 2.5))], kind="numbers").fingerprint())
    assert len(seen) == 4
    for kind, classes in (("class", ["x", "y"]), ("tags", ["x"]), ("numbers", ["x", "y", "z"])):
        with pytest.raises(ValueError, match=f"kind {kind} needs"):
            Source(classes, samples, kind=kind)
    with pytest.raises(ValueError, match="kind tags needs"):
        Source(["x"], [Sample("a", "train", 0, "11")], kind="tags")


def test_nothing_left_to_train_on_is_refused() -> None:
    (problem,) = spec("digits", val=0.5, test=0.5).problems()
    assert problem.key == "val"
