"""Test under corruptions and in another folder: further splits that nothing learns from, each a function of the picture alone, cached."""

from __future__ import annotations

import io

import numpy as np
import polars
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from regraft import load
from regraft.cli import main
from regraft.config import Composer
from regraft.datasets import corruptions, shifted
from regraft.errors import UserError
from regraft.record import SHIFTED, RunFolder

PICTURE = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
DOTS = np.random.default_rng(1).integers(0, 60, (64, 64, 3))
SMOOTH = np.linspace(60, 190, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
TEXTURE = (SMOOTH + DOTS).astype(np.uint8)
ALL = [one for kind in corruptions.KINDS for one in corruptions.parsed(kind)]
DIGITS = ["dataset=digits", "dataset.per_class=5", "model=convnet", "model.weights=none", "freeze=backbone", "trainer.max_epochs=2"]
TINY = [*DIGITS, "hardware=cpu", "hardware.workers=0", "plots=false"]


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_a_corruption_is_a_function_of_the_picture(one):
    before = PICTURE.copy()
    first, second = one(PICTURE), one(PICTURE)
    assert first.dtype == np.uint8
    assert first.shape == PICTURE.shape
    assert (first == second).all()
    assert (before == PICTURE).all(), "the picture itself stays"
    assert (first != PICTURE).any()


@pytest.mark.parametrize("kind", corruptions.KINDS)
def test_each_strength_is_further_from_the_picture(kind):
    errors = [float(((one(TEXTURE).astype(float) - TEXTURE) ** 2).mean()) for one in corruptions.parsed(kind)]
    assert errors == sorted(errors)
    assert errors[0] < errors[-1]


def test_the_strengths_are_those_that_were_published():
    """Hendrycks and Dietterich (2019): noise of .08 of white, JPEG of quality 25, .4 of the contrast at strength 1."""
    grey = np.full((400, 400, 3), 128, np.uint8)
    noise = corruptions.Corruption("noise", 1)(grey).astype(float) - 128
    assert noise.std() / 255 == pytest.approx(0.08, rel=0.01)
    assert abs(noise.mean()) < 0.2
    less = corruptions.Corruption("contrast", 1)(SMOOTH).astype(float)
    assert less.std() / SMOOTH.std() == pytest.approx(0.4, rel=0.01)
    assert less.mean() == pytest.approx(SMOOTH.mean(), abs=0.5)
    held = io.BytesIO()
    Image.fromarray(PICTURE).save(held, "JPEG", quality=25)
    assert (corruptions.Corruption("jpeg", 1)(PICTURE) == np.asarray(Image.open(held))).all()


@settings(max_examples=25)
@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 3]), st.sampled_from(ALL), st.integers(0, 2**32 - 1))
def test_pictures_of_any_size_are_taken(height, width, channels, one, seed):
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    assert one(picture).shape == picture.shape


def opened(tmp_path, *words):
    [job] = Composer().jobs(["dataset=digits", *words], multirun=False)
    return job.settings.dataset.opened(tmp_path)


def test_a_shift_is_a_split_of_its_own(tmp_path):
    plain, source = opened(tmp_path), opened(tmp_path, "dataset.shift=[noise,jpeg:3]")
    assert source.shifts == ("noise-1", "noise-2", "noise-3", "noise-4", "noise-5", "jpeg-3")
    assert [source.sizes()[name] for name in ("train", "val", "test", *source.shifts)] == [1259, 269, *[269] * 7]
    for split in ("train", "val", "test"):
        assert [sample.id for sample in source.split(split)] == [sample.id for sample in plain.split(split)]
        assert source.split(split).sha256s() == plain.split(split).sha256s(), "what is cached of it is still that of the set itself"
    hashes = {sha256 for name in source.shifts for sha256 in source.split(name).sha256s()}
    assert len(hashes) == len(set(plain.split("test").sha256s())) * 6
    for sample, original in zip(source.split("jpeg-3"), plain.split("test"), strict=True):
        assert sample.label == original.label
        assert (source.read(sample) == corruptions.Corruption("jpeg", 3)(plain.read(original))).all()


def test_a_run_is_measured_under_its_shifts_from_the_cache_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *TINY, "hydra.run.dir=plain"]) == 0
    assert main(["train", *TINY, "dataset.shift=[noise,contrast:5]", "hydra.run.dir=shifted"]) == 0
    plain, run = RunFolder("plain").record, RunFolder("shifted").record
    assert plain["run_id"] != run["run_id"]
    same = {name: value for name, value in run["metrics"].items() if name.split("/")[0] in ("train", "val", "test")}
    assert same == plain["metrics"], "nothing is learnt from a shift"
    names = [*(f"noise-{strength}" for strength in range(1, 6)), "contrast-5"]
    assert all(0 <= run["metrics"][f"{name}/accuracy"] <= 1 for name in names)
    cached = {note["split"]: note["computed"] for note in run["cache"] if note.get("split")}
    assert [cached[name] for name in names] == [269] * 6
    assert cached["test"] == 0, "the plain run has left its rows"
    table = polars.read_parquet(tmp_path / "shifted" / SHIFTED)
    assert dict(table.group_by("shift").len().rows()) == dict.fromkeys(names, 269)
    noisy = table.filter(polars.col("shift") == "noise-1")
    right = (noisy["truth"] == noisy["predicted"]).mean()
    assert right == pytest.approx(run["metrics"]["noise-1/accuracy"])
    assert load("shifted").evaluate() == pytest.approx(run["metrics"], abs=1e-6)
    shown = capsys.readouterr().out
    assert "noise-1" in shown
    assert "contrast-5" in shown


def test_another_folder_is_a_second_test_set(tmp_path):
    for number in range(10):
        (tmp_path / "photos" / str(number)).mkdir(parents=True)
        Image.new("L", (8, 8), 20 * number).save(tmp_path / "photos" / str(number) / "a.png")
    (tmp_path / "photos" / "cat").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "photos" / "cat" / "a.png")
    source = opened(tmp_path, f"dataset.shift=[{tmp_path / 'photos'}]", 'dataset.classes=["3","7"]')
    assert source.shifts == ("photos",)
    samples = list(source.split("photos"))
    assert [(source.classes[sample.label], int(source.read(sample).max())) for sample in samples] == [("3", 60), ("7", 140)]


@pytest.mark.parametrize(
    ("given", "told"),
    [("noisy", "did you mean noise"), ("noise:6", "noise:5"), ("nowhere/at/all", "neither a folder nor a corruption")],
)
def test_a_word_that_names_no_shift_is_refused(given, told, capsys):
    assert main(["check", "dataset=digits", f"dataset.shift=[{given!r}]"]) == 2
    said = capsys.readouterr().err
    assert "dataset.shift" in said
    assert told in said


def test_a_folder_of_other_classes_is_refused(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "pets" / name / "a.png")
    with pytest.raises(UserError, match="none of the set's classes"):
        opened(tmp_path, f"dataset.shift=[{tmp_path / 'pets'}]")


def test_a_folder_that_would_be_called_as_a_split_is_refused(tmp_path):
    (tmp_path / "val").mkdir()
    with pytest.raises(UserError, match="rename the folder"):
        opened(tmp_path, f"dataset.shift=[{tmp_path / 'val'}]")


def test_a_set_without_test_has_no_shifts(tmp_path):
    with pytest.raises(UserError, match="no test pictures"):
        opened(tmp_path, "dataset.shift=[noise]", "dataset.test=0")
    assert shifted.MARK == "@"


# all pictures, and other names


def altered(*overrides):
    [job] = Composer().jobs([*TINY, *overrides], multirun=False)
    return job.settings.dataset.opened(job.settings.cache.folder())


def test_a_set_under_a_corruption_is_the_same_pictures_made_worse_in_all_splits():
    plain, worse = altered(), altered("dataset.corruption=contrast:4")
    assert (worse.classes, worse.sizes()) == (plain.classes, plain.sizes())
    assert worse.fingerprint() != plain.fingerprint() != altered("dataset.corruption=contrast:3").fingerprint()
    [corruption] = corruptions.parsed("contrast:4")
    for split in ("train", "val", "test"):
        one, other = plain.split(split)[0], worse.split(split)[0]
        assert (one.id, one.label) == (other.id, other.label)
        assert (worse.read(other) == corruption(plain.read(one))).all()


def test_classes_under_other_names_are_another_task_of_the_same_pictures():
    plain, renamed = altered(), altered("dataset.rename={0:9,9:0}")
    assert renamed.classes == plain.classes
    assert renamed.fingerprint() != plain.fingerprint()
    swapped = {0: 9, 9: 0}
    assert [each.label for each in renamed.samples] == [swapped.get(each.label, each.label) for each in plain.samples]
    assert [each.sha256 for each in renamed.samples] == [each.sha256 for each in plain.samples]


def test_classes_of_one_name_are_one_class():
    even = altered("dataset.rename={0:even,2:even,4:even,6:even,8:even,1:odd,3:odd,5:odd,7:odd,9:odd}")
    assert even.classes == ["even", "odd"]
    for one, other in zip(even.samples, altered().samples, strict=True):
        assert one.label == other.label % 2


def test_renamed_worse_and_shifted_at_once():
    source = altered("dataset.rename={9:0}", "dataset.corruption=noise:1", "dataset.shift=[contrast:2]")
    assert source.classes == [str(digit) for digit in range(9)]
    assert source.sizes()["contrast-2"] == source.sizes()["test"]
    [noise], [contrast] = corruptions.parsed("noise:1"), corruptions.parsed("contrast:2")
    first = source.split("contrast-2")[0]
    plain = altered()
    original = plain.samples[plain.samples.find(first.id.removesuffix("@contrast-2"))]
    assert (source.read(first) == contrast(noise(plain.read(original)))).all()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("dataset.corruption=nois:3", "did you mean noise:3"),
        ("dataset.corruption=noise", "did you mean noise:"),
        ("dataset.rename={10:0}", "no such class"),
        ("dataset.rename={0:a,1:a,2:a,3:a,4:a,5:a,6:a,7:a,8:a,9:a}", "nothing to tell apart"),
    ],
)
def test_what_can_not_be_made_of_a_set_is_told(override, words):
    with pytest.raises(UserError, match=words):
        altered(override)


def test_a_folder_that_is_called_like_a_corruption_is_not_taken_for_it(tmp_path, monkeypatch):
    (tmp_path / "noise").mkdir()
    monkeypatch.chdir(tmp_path)
    assert altered("dataset.shift=[noise:2]").shifts == altered("dataset.shift=[noise]").shifts[1:2] == ("noise-2",)


def test_a_preview_shows_what_training_would_see(tmp_path):
    sheets = [tmp_path / f"{number}.png" for number in range(2)]
    for sheet, override in zip(sheets, ("dataset.corruption=null", "dataset.corruption=contrast:5"), strict=True):
        assert main(["preview", *TINY, override, "--output", str(sheet), "--pictures", "2", "--draws", "1"]) == 0
    plain, worse = (np.asarray(Image.open(sheet).convert("L"), dtype=float) for sheet in sheets)
    assert plain.shape == worse.shape
    assert np.abs(plain - worse).max() > 50
