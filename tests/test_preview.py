"""The sheet shows what training's feed gives, epoch by epoch, and `regraft preview` draws it into a PNG or says what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from regraft import cli, preview, whitening
from regraft.batches import GlobalBatches
from regraft.config import Composer
from regraft.datasets.source import InMemory, Sample, Source
from regraft.errors import UserError
from regraft.feeds import Live
from regraft.hardware import Batch
from regraft.settings import Settings

COUNT, SIZE = 23, 12


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def source() -> Source:
    draws = np.random.default_rng(0)
    ids = [f"{split}/{index:02}" for split, count in (("train", COUNT), ("test", 5)) for index in range(count)]
    pictures = {name: draws.integers(0, 256, (SIZE + 3, SIZE + 5, 3), dtype=np.uint8) for name in ids}
    return InMemory(pictures, ["cat", "dog"], [Sample(name, name.split("/")[0], index % 2, name) for index, name in enumerate(ids)])


def settings(*overrides: str) -> Settings:
    common = ["dataset=digits", f"data.size={SIZE}", "data.batch_size=8", "hardware=cpu", "seed=3"]
    [job] = Composer().jobs([*common, *overrides], multirun=False)
    return job.settings


def steps(*lines: str) -> list[str]:
    return ["augmentation=several", f"augmentation.steps=[{','.join(lines)}]"]


# What is shown is what is trained on


def trained(s: Settings, source: Source, epoch: int) -> dict[tuple[int, int], Tensor]:
    """(picture, view) -> what the training feed gives in an epoch, from two loader workers and in two micro-batches."""
    samples, augmentation = source.split("train"), s.augmentation
    plain = Live(source, samples, s.size, s.data.fit)
    colours = whitening.colours(lambda: (batch.x for batch in plain.in_order(5))) if augmentation.needs_colours else None
    feed = Live(source, samples, s.size, s.data.fit, augmentation, s.seed, colours)
    views = len(augmentation.symmetries())
    how: dict[str, Any] = {"seed": s.seed, "views": views, "expand": augmentation.views == "expand" and views > 1}
    batches = GlobalBatches(len(samples), Batch(8, 1, 4, 2), mix=augmentation.mix(), **how)
    batches.set_epoch(epoch)
    found = {}
    for batch in feed.loader(batches, workers=2):
        for picture, view, x in zip(batch.share.picture.tolist(), batch.share.view.tolist(), batch.x, strict=True):
            found[picture, view] = x
    return found


@pytest.mark.parametrize(
    "overrides",
    [
        ["augmentation=alexnet", "augmentation.crop=0.75"],
        ["augmentation=mixup", "augmentation.alpha=1"],
        steps("rotations", "{name: random_erasing, p: 0.9}", "cutmix"),
        [*steps("flips", "alexnet", "mixup"), "augmentation.views=expand"],
    ],
    ids=["alexnet", "mixup", "drawn", "expanded"],
)
def test_the_sheet_shows_what_the_training_feed_gives(overrides: list[str], source: Source) -> None:
    s = settings(*overrides)
    index = [20, 3, 11]
    sheet = preview.Training(s, source)
    for epoch in range(2):
        given = trained(s, source, epoch)
        for at, batch in zip(index, sheet.epoch(index, epoch), strict=True):
            assert int(batch.share.picture) == at
            assert torch.equal(batch.x[0], given[at, int(batch.share.view)])
    expand = s.augmentation.views == "expand"
    assert not expand or [int(batch.share.view) for batch in sheet.epoch(index, 1)] == [1, 1, 1], "the epochs go through the views"


def test_the_columns_of_what_is_random_are_epochs(source: Source) -> None:
    s = settings("augmentation=alexnet", "augmentation.crop=0.75")
    columns = preview.sheet(preview.Training(s, source), pictures=4, draws=3)
    assert [column.title for column in columns] == ["picture", "epoch 0", "epoch 1", "epoch 2"]
    samples = source.split("train")
    shown = [0, 5, 11, 17]  # at equal distances over the split
    assert all(np.array_equal(seen, source.read(samples[at])) for at, seen in zip(shown, columns[0].pictures, strict=True))
    assert columns[0].notes == [["cat", "dog"][at % 2] for at in shown]
    given = trained(s, source, 2)
    assert all(np.array_equal(seen, given[at, 0].permute(1, 2, 0)) for at, seen in zip(shown, columns[3].pictures, strict=True))


def test_the_columns_of_what_is_finite_are_its_views_by_name(source: Source) -> None:
    s = settings("augmentation=rotations")
    columns = preview.sheet(preview.Training(s, source), pictures=2, draws=9)
    assert [column.title for column in columns] == ["picture", "0 degrees", "90 degrees", "180 degrees", "270 degrees"]
    upright = columns[1].pictures[1]
    assert upright.shape == (SIZE, SIZE, 3)
    for turns in range(4):
        assert np.array_equal(columns[1 + turns].pictures[1], np.rot90(upright, turns))


def test_a_mixed_pictures_note_says_with_what_and_how_much(source: Source) -> None:
    s = settings("augmentation=mixup", "augmentation.alpha=1")
    sheet = preview.Training(s, source)
    [_, column] = preview.sheet(sheet, pictures=3, draws=1)
    for batch, note in zip(sheet.epoch([0, 7, 15], 0), column.notes, strict=True):
        assert batch.own is not None
        assert batch.share.partners is not None
        other = source.classes[source.split("train")[int(batch.share.partners.picture)].label]
        assert note == f"{float(batch.own):.0%}, {1 - float(batch.own):.0%} {other}"
    views = preview.sheet(preview.Training(settings(*steps("rotations", "pixel_dropout")), source), pictures=12, draws=2)
    assert {note for column in views[1:] for note in column.notes} == {"", "90 degrees", "180 degrees", "270 degrees"}


def test_whitened_pictures_are_those_of_a_map_fitted_on_train(source: Source) -> None:
    s = settings("augmentation=whitening", "augmentation.over=pixels", "augmentation.epsilon=0.01")
    samples = source.split("train")
    train = torch.stack([Live(source, samples, SIZE, s.data.fit).picture(at, 0, 0) for at in range(COUNT)])
    module = whitening.fit(lambda: [train], "zca", "pixels", 0.01, None)
    [_, column] = preview.sheet(preview.Training(s, source), pictures=2, draws=5)
    assert column.title == "whitened"
    for at, seen in zip([0, 11], column.pictures, strict=True):
        whitened = module(train[at : at + 1] / 255)[0].permute(1, 2, 0).flatten()
        levels = torch.from_numpy(seen.astype(np.float32)).flatten() - 127.5
        assert torch.corrcoef(torch.stack([whitened, levels]))[0, 1] > 0.99, "the same picture, on a scale of its own"
        assert levels.abs().max() > 120
    several = preview.sheet(preview.Training(settings(*steps("rotations", "whitening")), source), pictures=1, draws=1)
    assert [column.title for column in several] == ["picture", "0 degrees", "90 degrees", "180 degrees", "270 degrees"]


# The command


def regraft(*words: str) -> int:
    return cli.main(["preview", "dataset=digits", "hardware=cpu", *words])


def test_the_command_writes_a_png_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert regraft("augmentation=d4", "--output", "seen/of.png", "--pictures", "2") == 0
    assert capsys.readouterr().out == "seen/of.png\n"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["of.png"], "nothing is run, nothing else is written"
    with Image.open(tmp_path / "seen/of.png") as image:
        width, height = image.size
        pixels = np.asarray(image.convert("L"))
    assert width > 9 * preview.BOX, "the picture and its eight views"
    assert 2 * preview.BOX < height < 4 * preview.BOX
    dark = (pixels < 60).any(0)  # digits are black where nothing is written
    assert dark[preview.MARGIN : width - 3 * preview.MARGIN].mean() > 0.8


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--pictures", "0", "--draws", "-1"], "--pictures = 0\n      at least 1 is needed\n  --draws = -1"),
        (["--output", "sheet.jpg"], "the sheet is a PNG"),
        (["--output", "folder.png"], "this is a folder"),
        (["--output", "file/sheet.png"], "can't be written"),
        (["augmentation=alexnett"], "did you mean alexnet?"),
        (["augmentation=several", "augmentation.steps=[{name: mixup, alfa: 1}]"], "did you mean augmentation.steps[0].alpha?"),
        (["seed=1,2"], "several values make a sweep"),
    ],
)
def test_a_mistake_is_told(words: list[str], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    assert regraft(*words) == 2
    assert problem in capsys.readouterr().err
    assert not list(tmp_path.rglob("preview.png"))


def test_without_train_pictures_there_is_nothing_to_show(source: Source) -> None:
    rest = InMemory(source.pictures, source.classes, source.split("test"))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="nothing to show"):
        preview.Training(settings(), rest)
