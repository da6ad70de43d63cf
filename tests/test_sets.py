"""Published sets, each on a made miniature in its real format on disk: compared with torchvision's readers, fetched, and refused."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import subprocess
import sys
import tarfile
import urllib.error
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import regraft
from regraft.datasets import GROUP, DatasetSpec, arrays, fetch, gtsrb, lfw, names, pets
from regraft.datasets.source import Source
from regraft.errors import Problem, UserError
from regraft.registry import parse

SRC = Path(regraft.__file__).parents[1]
CONF = Path(__file__).parents[1] / "conf" / "dataset"
RNG = np.random.default_rng(0)


def spec(name: str, **values: Any) -> DatasetSpec:
    """The YAML's values with some set otherwise."""
    parsed = parse(GROUP.spec(name), yaml.safe_load((CONF / f"{name}.yaml").read_text()) | values, "dataset")
    assert isinstance(parsed, DatasetSpec)
    return parsed


def refused(cache: Path, name: str, **values: Any) -> list[Problem]:
    with pytest.raises(UserError) as caught:
        spec(name, **values).open(cache)
    return caught.value.problems


def noise(path: Path, side: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)


# ---- miniatures: each as its archives leave it


def idx(values: np.ndarray) -> bytes:
    return bytes((0, 0, 8, values.ndim)) + np.array(values.shape, ">u4").tobytes() + values.astype(np.uint8).tobytes()


def make_fashion_mnist(root: Path) -> None:
    root.mkdir(parents=True)
    for stem, count in (("train", 100), ("t10k", 20)):
        for kind, values in (("images-idx3", RNG.integers(0, 256, (count, 28, 28))), ("labels-idx1", np.arange(count) % 10)):
            (root / f"{stem}-{kind}-ubyte.gz").write_bytes(gzip.compress(idx(values)))


def make_cifar(root: Path, name: str) -> None:
    records = arrays.CIFAR[name]
    folder = root / records.archive.gives[0]
    folder.mkdir(parents=True)
    for number, file in enumerate(file for files in records.files.values() for file in files):
        rows = RNG.integers(0, 256, (300 if records.labels == 2 else 20, records.labels + 3072), dtype=np.uint8)
        rows[:, records.labels - 1] = (np.arange(len(rows)) + number) % (100 if records.labels == 2 else 10)
        if records.labels == 2:
            rows[:, 0] = rows[:, 1] % 20
        rows.tofile(folder / file)


CATS = "Abyssinian, Bengal, Birman, Bombay, British Shorthair, Egyptian Mau, Maine Coon, Persian, Ragdoll, Russian Blue, Siamese, Sphynx"


def make_oxford_pets(root: Path) -> None:
    (root / "annotations").mkdir(parents=True)
    for file, numbers in (("trainval.txt", range(1, 5)), ("test.txt", range(5, 7))):
        lines = []
        for breed, name in enumerate(names.OXFORD_PETS, 1):
            stem = name.replace(" ", "_") if name in CATS else name.replace(" ", "_").lower()
            for number in numbers:
                lines.append(f"{stem}_{number} {breed} {1 if name in CATS else 2} 1")
                noise(root / "images" / f"{stem}_{number}.jpg")
        (root / "annotations" / file).write_text("\n".join(lines) + "\n")


def make_gtsrb(root: Path) -> None:
    header = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"
    for number in range(43):
        folder = root / gtsrb.TRAIN / f"{number:05d}"
        files = [f"{track:05d}_{frame:05d}.ppm" for track in range(3) for frame in range(2)]
        for file in files:
            noise(folder / file, side=20)
        (folder / f"GT-{number:05d}.csv").write_text(header + "".join(f"{file};20;20;5;6;15;18;{number}\n" for file in files))
    for index in range(43):
        noise(root / gtsrb.TEST / f"{index:05d}.ppm", side=20)
    lines = "".join(f"{index:05d}.ppm;20;20;1;2;3;9;{42 - index}\n" for index in range(43))
    (root / gtsrb.TABLE).write_text(header + lines)


def make_lfw(root: Path) -> None:
    for name, count in {"Ada_B": 20, "Carl_D": 25, "Eve_F": 19, "Gus_H": 1}.items():
        for number in range(1, count + 1):
            noise(root / lfw.FOLDER / name / f"{name}_{number:04d}.jpg")
    (root / lfw.FOLDER / "pairs_01.txt").write_text("300\n")


def make_imagenet(root: Path, classes: int = 10) -> None:
    for wnid in list(names.imagenet())[1 : classes + 1]:  # n01440764 is not there
        for index in range(10):
            noise(root / "train" / wnid / f"{wnid}_{index}.JPEG")
        for index in range(3):
            noise(root / "val" / wnid / f"ILSVRC2012_val_{index:08d}.JPEG")


MAKE: dict[str, Callable[[Path], None]] = {
    "fashion_mnist": make_fashion_mnist,
    "cifar10": lambda root: make_cifar(root, "cifar10"),
    "cifar100": lambda root: make_cifar(root, "cifar100"),
    "oxford_pets": make_oxford_pets,
    "gtsrb": make_gtsrb,
    "lfw": make_lfw,
    "imagenet": make_imagenet,
}
PUBLISHED = [name for name in MAKE if name != "imagenet"]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all miniatures, each under its name; tests that spoil one make their own."""
    root = tmp_path_factory.mktemp("sets")
    for name, make in MAKE.items():
        make(root / name)
    return root


def opened(name: str, sets: Path, cache: Path, **values: Any) -> Source:
    return spec(name, path=str(sets / name), **values).open(cache)


# ---- what holds for each


def test_opening_any_set_imports_no_torch_and_no_timm(sets: Path, tmp_path: Path) -> None:
    values = {name: yaml.safe_load((CONF / f"{name}.yaml").read_text()) | {"path": str(sets / name)} for name in MAKE}
    code = f"""
import sys, pathlib
from regraft.datasets import GROUP
for name, each in {values!r}.items():
    source = GROUP.spec(name).model_validate(each).open(pathlib.Path({str(tmp_path)!r}))
    source.read(source.samples[0])
print([name for name in ("torch", "torchvision", "timm", "sklearn") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(SRC)}, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", MAKE)
def test_every_set_splits_pickles_narrows_and_folds(name: str, sets: Path, tmp_path: Path) -> None:
    source = opened(name, sets, tmp_path, val=0.25)
    assert all(source.sizes()[split] > 0 for split in ("train", "val", "test"))
    again = pickle.loads(pickle.dumps(source))
    assert again.fingerprint() == source.fingerprint() == opened(name, sets, tmp_path, val=0.25).fingerprint()
    picture = source.read(source.samples[-1])
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    assert picture.shape[2] == 3
    assert np.array_equal(again.read(again.samples[-1]), picture)
    assert len({sample.sha256 for sample in source.samples}) == len(source.samples)  # all are noise, so all differ

    there = [source.classes[label] for label in sorted({sample.label for sample in source.samples})]
    chosen = there[1::-1]
    narrow = opened(name, sets, tmp_path, val=0.25, classes=chosen, per_class=2)
    assert narrow.classes == chosen
    assert narrow.sizes()["train"] == 4
    split = {sample.id: sample.split for sample in source.samples}
    assert all(split[sample.id] == sample.split for sample in narrow.samples)

    tests: Counter[str] = Counter()
    for fold in range(3):
        folded = opened(name, sets, tmp_path, folds=3, fold=fold)
        assert len(folded.samples) == len(source.samples)
        tests.update(sample.id for sample in folded.split("test"))
    assert set(tests.values()) == {1}
    assert len(tests) == len(source.samples)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_miniature_is_not_taken_for_the_published_set(name: str, sets: Path, tmp_path: Path) -> None:
    (remark,) = opened(name, sets, tmp_path).remarks
    assert remark.startswith(f"{name}: ")
    assert "figures are not those of the published set" in remark


def test_a_wrong_class_is_refused_without_opening_the_set() -> None:
    for name, wrong, right in (
        ("cifar10", "dgo", "dog"),
        ("cifar100", "seals", "seal"),
        ("gtsrb", "Stopp", "Stop"),
        ("oxford_pets", "beagle", "Beagle"),
        ("fashion_mnist", "Bags", "Bag"),
    ):
        first, *_ = spec(name, classes=[wrong, right], path="/nowhere").problems()
        assert (first.key, first.given) == ("classes", wrong)
        assert f"did you mean {right}" in first.remedy
    assert [len(known) for known in (names.CIFAR100, names.CIFAR100_COARSE, names.GTSRB, names.OXFORD_PETS)] == [100, 20, 43, 37]
    assert sorted(set(names.CIFAR100)) == names.CIFAR100


# ---- one by one


def test_fashion_mnist_reads_as_torchvision_does(sets: Path, tmp_path: Path) -> None:
    from torchvision.datasets import FashionMNIST

    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in (sets / "fashion_mnist").iterdir():
        (raw / file.name.removesuffix(".gz")).write_bytes(gzip.decompress(file.read_bytes()))
    source = spec("fashion_mnist", path=str(raw)).open(tmp_path)  # unpacked by hand will do
    assert source.fingerprint() == opened("fashion_mnist", sets, tmp_path).fingerprint()
    assert source.classes == FashionMNIST.classes
    assert source.sizes() == {"train": 90, "val": 10, "test": 20}
    truth = {split: FashionMNIST(tmp_path, train=split == "train") for split in ("train", "test")}
    for sample in source.samples:
        _, split, number = sample.id.split("/")
        image, label = truth[split][int(number)]
        assert sample.label == label
        assert np.array_equal(source.read(sample), np.asarray(image.convert("RGB")))


def test_cifar_planes_become_colours(sets: Path, tmp_path: Path) -> None:
    source = opened("cifar10", sets, tmp_path, val=0.0)
    assert source.sizes() == {"train": 100, "val": 0, "test": 20}
    record = np.fromfile(sets / "cifar10/cifar-10-batches-bin/data_batch_3.bin", np.uint8).reshape(-1, 3073)[7]
    sample = next(sample for sample in source.samples if sample.id == "cifar10/train/00047")  # 40 records come before
    assert source.classes[sample.label] == names.CIFAR10[record[0]]
    picture = source.read(sample)
    assert picture.shape == (32, 32, 3)
    for row, column, channel in ((0, 0, 0), (0, 1, 2), (31, 5, 1)):
        assert picture[row, column, channel] == record[1 + channel * 1024 + row * 32 + column]


def test_cifar100_has_two_labels(sets: Path, tmp_path: Path) -> None:
    fine, coarse = (opened("cifar100", sets, tmp_path, labels=labels, val=0.0) for labels in ("fine", "coarse"))
    record = np.fromfile(sets / "cifar100/cifar-100-binary/train.bin", np.uint8).reshape(-1, 3074)
    for one, other in zip(fine.samples, coarse.samples, strict=True):
        assert one.id == other.id
        assert other.label == one.label % 20
    first = [sample for sample in fine.samples if sample.split == "train"]
    assert [sample.label for sample in first] == record[:, 1].tolist()
    assert coarse.classes == names.CIFAR100_COARSE


def test_oxford_pets_reads_as_torchvision_does(sets: Path, tmp_path: Path) -> None:
    from torchvision.datasets import OxfordIIITPet

    (tmp_path / "oxford-iiit-pet").symlink_to(sets / "oxford_pets")
    breeds, species = (opened("oxford_pets", sets, tmp_path, target=target, val=0.0) for target in ("breed", "cat_dog"))
    for split, theirs in (("train", "trainval"), ("test", "test")):
        truth = OxfordIIITPet(tmp_path, theirs, target_types=["category", "binary-category"])
        found = {Path(image).name: labels for image, *labels in zip(truth._images, truth._labels, truth._bin_labels, strict=True)}
        assert {Path(sample.id).name: [sample.label] for sample in breeds.split(split)} == {name: [each[0]] for name, each in found.items()}
        assert {Path(sample.id).name: [sample.label] for sample in species.split(split)} == {
            name: [each[1]] for name, each in found.items()
        }
        assert [breeds.classes[label] for label in sorted(set(truth._labels))] == truth.classes
    assert species.classes == ["cat", "dog"]


def test_gtsrb_reads_as_torchvision_does(sets: Path, tmp_path: Path) -> None:
    from torchvision.datasets import GTSRB

    (tmp_path / "gtsrb").symlink_to(sets / "gtsrb")
    source = opened("gtsrb", sets, tmp_path, val=0.0, roi=False)
    for split in ("train", "test"):
        truth = {Path(path).relative_to(tmp_path / "gtsrb").as_posix(): label for path, label in GTSRB(tmp_path, split)._samples}
        assert {sample.id: sample.label for sample in source.split(split)} == truth
    assert source.classes[14] == "Stop"


def test_gtsrb_cuts_out_the_box_and_keeps_tracks_together(sets: Path, tmp_path: Path) -> None:
    whole, cut = (opened("gtsrb", sets, tmp_path, val=0.25, roi=roi) for roi in (False, True))
    where = defaultdict(set)
    for big, small in zip(whole.samples, cut.samples, strict=True):
        left, top, right, bottom = (5, 6, 15, 18) if "Training" in big.id else (1, 2, 3, 9)
        assert np.array_equal(cut.read(small), whole.read(big)[top:bottom, left:right])
        assert big.sha256 != small.sha256  # what the cache is keyed by
        if big.group:
            where[big.group].add(big.split)
    assert len(where) == 43 * 3
    assert all(len(splits) == 1 for splits in where.values())
    assert whole.sizes() == {"train": 172, "val": 86, "test": 43}


def test_lfw_keeps_people_of_whom_there_is_enough(sets: Path, tmp_path: Path) -> None:
    assert opened("lfw", sets, tmp_path).classes == ["Ada_B", "Carl_D"]
    assert opened("lfw", sets, tmp_path, least=19).classes == ["Ada_B", "Carl_D", "Eve_F"]
    (problem,) = refused(tmp_path, "lfw", path=str(sets / "lfw"), least=21)
    assert (problem.key, problem.given) == ("dataset.least", 21)
    assert "the most of one person is 25" in problem.remedy
    few, strange = refused(tmp_path, "lfw", path=str(sets / "lfw"), classes=["Eve_F", "Adda_B", "Carl_D"])
    assert "there are 19 pictures, fewer than dataset.least = 20" in few.remedy
    assert "did you mean Ada_B" in strange.remedy


# ---- imagenet


def test_imagenet_says_exactly_what_is_missing(sets: Path, tmp_path: Path) -> None:
    source = opened("imagenet", sets, tmp_path)
    assert source.remarks == [
        "imagenet: 10 of 1,000 classes and 30 of 50,000 validation pictures are there; missing: n01440764, n01531178, n01532829, "
        "n01534433, n01537544, ... (990 class folders); 10 classes have fewer than 50 validation pictures; figures are not ImageNet's",
        "imagenet: 100 of 1,281,167 train pictures of 10 of 1,000 classes are there to train on",
    ]


def test_imagenet_labels_are_those_of_published_weights(sets: Path, tmp_path: Path) -> None:
    from torchvision.models import ResNet18_Weights

    source = opened("imagenet", sets, tmp_path)
    theirs = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    assert len(source.classes) == len(theirs) == 1000
    assert [name.split(" ", 1)[1] for name in source.classes] == theirs
    for sample in source.samples:
        assert source.classes[sample.label].startswith(sample.id.split("/")[1] + " ")
    assert {sample.id.split("/")[0] for sample in source.split("test")} == {"val"}
    assert {sample.id.split("/")[0] for sample in source.split("val")} == {"train"}
    assert source.sizes() == {"train": 90, "val": 10, "test": 30}  # one of each class at least


def test_imagenet_val_alone_is_enough_to_evaluate(tmp_path: Path) -> None:
    make_imagenet(tmp_path / "set", classes=2)
    (tmp_path / "set" / "train").rename(tmp_path / "away")
    source = spec("imagenet", path=str(tmp_path / "set")).open(tmp_path)
    assert source.sizes() == {"train": 0, "val": 0, "test": 6}
    assert source.remarks[1] == "imagenet: 0 of 1,281,167 train pictures of 0 of 1,000 classes are there to train on"


def test_imagenet_classes_go_by_id_or_name(sets: Path, tmp_path: Path) -> None:
    source = opened("imagenet", sets, tmp_path, classes=["great white shark", "n01443537 goldfish"])
    assert [name.split(" ")[0] for name in source.classes] == ["n01484850", "n01443537"]
    assert source.remarks[0] == "imagenet: 2 of 1,000 classes were chosen; figures are not ImageNet's"
    (problem,) = refused(tmp_path, "imagenet", path=str(sets / "imagenet"), classes=["n01443537", "goldfish"])
    assert "named twice" in problem.remedy
    (problem, _) = refused(tmp_path, "imagenet", path=str(sets / "imagenet"), classes=["goldfisch", "n01443536"])
    assert "did you mean goldfish" in problem.remedy


def _flat_val(root: Path) -> None:
    for file in list((root / "val").rglob("*.JPEG")):
        file.rename(root / "val" / f"{file.parent.name}{file.name}")
    for folder in list((root / "val").iterdir()):
        if folder.is_dir():
            folder.rmdir()


@pytest.mark.parametrize(
    ("spoil", "part"),
    [
        (_flat_val, "val has no class folders; sort its pictures into val/<WordNet id>/"),
        (lambda root: (root / "val" / "n01443537").rename(root / "val" / "n01443538"), "val/n01443538 is none of ImageNet's 1,000 classes"),
        (lambda root: [(root / name).rename(root / f"my{name}") for name in ("train", "val")], "has neither train nor val"),
        (lambda root: (root / "val" / "n01440764").mkdir(), "n01440764 holds no pictures"),
    ],
)
def test_imagenet_folders_that_cannot_be_used(spoil: Callable[[Path], Any], part: str, tmp_path: Path) -> None:
    make_imagenet(tmp_path / "set", classes=2)
    spoil(tmp_path / "set")
    (problem,) = refused(tmp_path, "imagenet", path=str(tmp_path / "set"))
    assert problem.key == "dataset.path"
    assert part in problem.remedy


# ---- files that are not what they should be


@pytest.mark.parametrize(
    ("name", "file", "spoil", "part"),
    [
        ("fashion_mnist", "train-images-idx3-ubyte.gz", lambda data: data[:-100], "can't be read"),
        ("fashion_mnist", "train-labels-idx1-ubyte.gz", lambda data: gzip.compress(gzip.decompress(data)[:-5]), "holds 95 bytes where"),
        ("fashion_mnist", "t10k-labels-idx1-ubyte.gz", lambda data: gzip.compress(idx(np.zeros(19))), "has 19 labels for 20 pictures"),
        ("fashion_mnist", "t10k-labels-idx1-ubyte.gz", lambda data: gzip.compress(b"no idx"), "is no idx file"),
        ("cifar10", "cifar-10-batches-bin/data_batch_2.bin", lambda data: data[:-1], "which are not records of 3,073"),
        ("cifar100", "cifar-100-binary/test.bin", lambda data: b"", "which are not records of 3,074"),
        (
            "oxford_pets",
            "annotations/trainval.txt",
            lambda data: data.replace(b"Abyssinian_2 1", b"Abyssinian_2 2"),
            "is not: picture, breed",
        ),
        ("gtsrb", "GT-final_test.csv", lambda data: data.replace(b"Roi.X1", b"Roi.X9"), "has no column Roi.X1"),
        ("gtsrb", "GTSRB/Training/00014/GT-00014.csv", lambda data: data.replace(b"15;18;14", b"15;18;99", 1), "a class (0 to 42)"),
        ("gtsrb", "GTSRB/Training/00014/GT-00014.csv", lambda data: data.replace(b"15;18;14", b"x;18;14", 1), "else than whole numbers"),
        ("gtsrb", "GTSRB/Training/00014/GT-00014.csv", lambda data: data.replace(b"00000_00001", b"../0000_00001"), "file name that can't"),
    ],
)
def test_spoilt_files_are_named(name: str, file: str, spoil: Callable[[bytes], bytes], part: str, tmp_path: Path) -> None:
    MAKE[name](tmp_path / "set")
    path = tmp_path / "set" / file
    path.write_bytes(spoil(path.read_bytes()))
    (problem,) = refused(tmp_path, name, path=str(tmp_path / "set"))
    assert problem.key.split(":")[0] == str(path)
    assert part in problem.remedy


def test_lines_are_counted_as_an_editor_does(tmp_path: Path) -> None:
    make_oxford_pets(tmp_path / "set")
    path = tmp_path / "set" / "annotations" / "trainval.txt"
    path.write_text("# a comment\n\n" + path.read_text().replace("Abyssinian_2 1 1 1", "Abyssinian_2 1 1"))
    number = path.read_text().splitlines().index("Abyssinian_2 1 1") + 1
    assert refused(tmp_path, "oxford_pets", path=str(tmp_path / "set"))[0].key == f"{path}:{number}"


# ---- fetching


def test_checksums_and_addresses_are_torchvisions() -> None:
    from torchvision.datasets import GTSRB, FashionMNIST, LFWPeople, OxfordIIITPet

    assert [(archive.file, *archive.sums) for archive in arrays.FASHION] == FashionMNIST.resources
    assert all(archive.url.startswith(FashionMNIST.mirrors[0]) for archive in arrays.FASHION)
    assert [(archive.url, *archive.sums) for archive in pets.ARCHIVES] == list(OxfordIIITPet._RESOURCES)
    assert (lfw.FOLDER, lfw.ARCHIVES[0].file, lfw.ARCHIVES[0].sums[0]) == LFWPeople.file_dict["funneled"]
    constants = [each for each in GTSRB.download.__code__.co_consts if isinstance(each, str)]
    for archive in gtsrb.ARCHIVES:
        assert archive.sums[0] in constants
        assert any(archive.url.endswith(each) for each in constants if each.endswith(".zip"))
    for archive in (*arrays.FASHION, *pets.ARCHIVES, *gtsrb.ARCHIVES, *lfw.ARCHIVES, *(each.archive for each in arrays.CIFAR.values())):
        assert all(len(total) in fetch.SUMS for total in archive.sums)


def test_what_is_not_there_is_asked_for_by_name_place_and_checksum(tmp_path: Path) -> None:
    (problem,) = refused(tmp_path, "gtsrb")
    folder = tmp_path / "datasets" / "gtsrb"
    assert (problem.key, problem.given) == ("dataset.path", str(folder))
    for archive in gtsrb.ARCHIVES:
        assert f"{archive.file} (md5 {archive.sums[0]}) from {archive.url}" in problem.remedy
    assert "dataset.download=true" in problem.remedy
    assert not folder.exists()
    (problem,) = refused(tmp_path, "lfw", path=str(tmp_path / "faces"))
    assert problem.given == str(tmp_path / "faces")
    assert "md5 1b42dfed7d15c9b2dd63d5e5840c86ad or sha256 b47c8422" in problem.remedy


@pytest.mark.parametrize("error", [urllib.error.URLError("Name or service not known"), TimeoutError("timed out"), RuntimeError("moved")])
def test_where_the_network_refuses_one_error_says_what_to_place(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, root: str, filename: str) -> None:
        Path(root, filename).write_bytes(b"half of it")
        raise error

    monkeypatch.setattr("torchvision.datasets.utils.download_url", refuse)
    (problem,) = refused(tmp_path, "fashion_mnist", download=True)
    assert problem.key == "dataset.path"
    assert str(getattr(error, "reason", error)) in problem.remedy
    assert all(f"{archive.file} (md5 {archive.sums[0]})" in problem.remedy for archive in arrays.FASHION)
    assert list((tmp_path / "datasets" / "fashion_mnist").iterdir()) == []  # nothing that could be taken for whole


def packed(source: Path, members: list[str], kind: str) -> bytes:
    out = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(out, "w") as archive:
            for file in sorted(file for member in members for file in (source / member, *(source / member).rglob("*")) if file.is_file()):
                archive.write(file, file.relative_to(source))
    else:
        with tarfile.open(fileobj=out, mode="w:gz") as archive:
            for member in members:
                archive.add(source / member, member)
    return out.getvalue()


@pytest.fixture
def server(sets: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Archives of the miniatures in place of the published ones: url -> bytes, served in place of the network."""
    served: dict[str, bytes] = {}

    def publish(name: str, archives: list[fetch.Archive]) -> list[fetch.Archive]:
        known = []
        for archive in archives:
            kind = "zip" if archive.file.endswith(".zip") else "tar"
            data = packed(sets / name, list(archive.gives), kind) if archive.gives else (sets / name / archive.file).read_bytes()
            served[archive.url] = data
            known.append(archive._replace(sums=(hashlib.md5(data).hexdigest(),)))
        return known

    for name, module, constant in (
        ("fashion_mnist", arrays, "FASHION"),
        ("oxford_pets", pets, "ARCHIVES"),
        ("gtsrb", gtsrb, "ARCHIVES"),
        ("lfw", lfw, "ARCHIVES"),
    ):
        monkeypatch.setattr(module, constant, publish(name, getattr(module, constant)))
    for name, records in arrays.CIFAR.items():
        monkeypatch.setitem(arrays.CIFAR, name, records._replace(archive=publish(name, [records.archive])[0]))

    def download_url(url: str, root: str, filename: str) -> None:
        Path(root, filename).write_bytes(served[url])

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download_url)
    return served


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_fetched_set_is_the_set(
    name: str, server: dict[str, bytes], sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = opened(name, sets, tmp_path).fingerprint()
    assert spec(name, download=True).open(tmp_path).fingerprint() == expected
    folder = tmp_path / "datasets" / name
    assert str(folder) in caplog.text  # where it goes is said
    assert not [entry for entry in folder.iterdir() if entry.name.startswith(".")]
    monkeypatch.setattr("torchvision.datasets.utils.download_url", lambda *_: pytest.fail("was fetched again"))
    assert spec(name, download=True).open(tmp_path).fingerprint() == expected
    assert spec(name).open(tmp_path).fingerprint() == expected


@pytest.mark.parametrize("name", ["cifar10", "gtsrb", "lfw", "oxford_pets"])
def test_archives_that_were_placed_by_hand_are_unpacked(name: str, server: dict[str, bytes], sets: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    archives = [arrays.CIFAR[name].archive] if name == "cifar10" else {"gtsrb": gtsrb, "lfw": lfw, "oxford_pets": pets}[name].ARCHIVES
    for archive in archives:
        (tmp_path / "mine" / archive.file).write_bytes(server[archive.url])
    source = spec(name, path=str(tmp_path / "mine")).open(tmp_path)
    assert source.fingerprint() == opened(name, sets, tmp_path).fingerprint()
    assert (tmp_path / "mine" / archives[0].file).exists()  # what is the user's stays


def test_a_cut_off_archive_is_never_unpacked(server: dict[str, bytes], tmp_path: Path) -> None:
    archive = arrays.CIFAR["cifar10"].archive
    whole = server[archive.url]
    server[archive.url] = whole[: len(whole) // 2]
    (problem,) = refused(tmp_path, "cifar10", download=True)
    assert "what came is broken, or not the published file (md5 " in problem.remedy
    assert f"not {archive.sums[0]}" in problem.remedy
    folder = tmp_path / "datasets" / "cifar10"
    assert list(folder.iterdir()) == []
    (folder / archive.file).write_bytes(whole[:-1])
    (problem,) = refused(tmp_path, "cifar10")
    assert problem.key == str(folder / archive.file)
    assert f"not {archive.sums[0]}" in problem.remedy
    assert [entry.name for entry in folder.iterdir()] == [archive.file]


def test_an_archive_that_reaches_out_of_its_folder_is_refused(
    server: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("../../../escaped"), io.BytesIO())
    records = arrays.CIFAR["cifar10"]
    sums = (hashlib.md5(out.getvalue()).hexdigest(),)
    monkeypatch.setitem(arrays.CIFAR, "cifar10", records._replace(archive=records.archive._replace(sums=sums)))
    server[records.archive.url] = out.getvalue()
    (problem,) = refused(tmp_path, "cifar10", download=True)
    assert "can't be unpacked" in problem.remedy
    assert not list(tmp_path.rglob("escaped*"))
    assert list((tmp_path / "datasets" / "cifar10").iterdir()) == []


def test_checking_never_fetches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.utils.download_url", lambda *_: pytest.fail("was fetched"))
    for name in PUBLISHED:
        assert spec(name, download=True, path="/nowhere").problems() == []
