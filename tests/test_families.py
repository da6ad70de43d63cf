"""What holds of every net holds of those that read no pictures or answer no class: cached as live, micro-batches as whole ones, resumed as
uninterrupted."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from test_resume import again, same, told

from regraft import asking
from regraft.record import RunFolder

pytestmark = pytest.mark.usefixtures("one_thread")

COMMON = ["hardware=cpu", "hardware.workers=0", "trainer.max_epochs=2", "data.batch_size=6", "trainer.checkpoint_seconds=3600"]
TINY = ["model=timm", "model.arch=test_efficientnet"]


@pytest.fixture
def given(tmp_path):
    """Overrides of each family, on small made data."""
    torch.manual_seed(0)
    wave = ["@problemName Waves", "@timeStamps false", "@univariate true", "@equalLength false", "@classLabel true a b", "@data"]
    for number in range(40):
        steps = torch.randn(3 + number % 5).cumsum(0) * (1 if number % 2 else -1)
        wave.append(f"{','.join(f'{value:.4f}' for value in steps.tolist())}:{'ab'[number % 2]}")
    (tmp_path / "waves.ts").write_text("\n".join(wave))
    letters = ["".join(chr(97 + int(place)) for place in row) for row in torch.randint(26, (40, 5))]
    texts = ["text,label"] + [f"{'good fine day' if number % 2 else 'bad dark'} {word},{number % 2}" for number, word in enumerate(letters)]
    (tmp_path / "texts.csv").write_text("\n".join(texts))
    captions, tags = ["file,caption"], ["file,dark,left"]
    for number in range(30):
        shade = 20 * (number % 10)
        picture = Image.new("RGB", (32, 32), (shade, shade, 200))
        picture.paste("red", (0 if number % 2 else 20, 8, 12 if number % 2 else 32, 24))
        picture.save(tmp_path / f"{number}.png")
        side = "left" if number % 2 else "right"
        captions.append(f"{number}.png,a red bar on the {side}")
        tags.append(f"{number}.png,{int(shade < 90)},{number % 2}")
    (tmp_path / "captions.csv").write_text("\n".join(captions))
    (tmp_path / "tags.csv").write_text("\n".join(tags))
    scenes = [
        "dataset=scenes",
        "dataset.train=15",
        "dataset.val=3",
        "dataset.test=3",
        "dataset.canvas=64",
        "dataset.most=2",
        "data.size=64",
    ]
    maps = "model.backbone={name: timm, arch: test_efficientnet}"
    small = ["head.width=8", "head.hidden=16", "head.proposals=16", "head.drawn_anchors=16", "head.drawn_regions=16"]
    said = [*TINY, "model.weights=none", "data.size=32", "head.width=8"]
    return {
        "series": ["dataset=series", f"dataset.path={tmp_path / 'waves.ts'}", "model=lstm", "model.depth=2", "model.width=6"],
        "tokens": ["dataset=text", f"dataset.path={tmp_path / 'texts.csv'}", "model=gru", "model.depth=1", "model.width=6"],
        "boxes": ["task=detect", *scenes, maps, "model.weights=none", "model.strides=[16,32]", *small],
        "captions": ["task=caption", "dataset=captions", f"dataset.path={tmp_path / 'captions.csv'}", *said, "dataset.floor=1"],
        "told tags": [
            *("task=tag", "head=tagger", "dataset=csv", f"dataset.path={tmp_path / 'tags.csv'}", "dataset.labels=[dark,left]", *said),
            *("dataset.val=0.3", "dataset.test=0.3"),
        ],
        "lines": [
            "task=ocr",
            "dataset=digit_strings",
            "dataset.train=12",
            "dataset.val=4",
            "dataset.test=4",
            "model.width=4",
            "model.units=6",
        ],
        "machines": [
            *("dataset=digits", "dataset.per_class=2", "data.size=8", "model=dbn", "model.depth=2", "model.width=12"),
            *("freeze=greedy", "freeze.pretrain=2", "trainer.max_epochs=5"),
        ],
    }


FAMILIES = ["series", "tokens", "boxes", "captions", "told tags", "lines", "machines"]
LIVE = {"series": "last", "tokens": "last", "boxes": "backbone", "captions": "backbone", "told tags": "backbone", "machines": "greedy"}


def words(given: dict[str, list[str]], family: str, freeze: str = "none") -> list[str]:
    own = {word.partition("=")[0] for word in given[family]}
    return [*given[family], *(word for word in [*COMMON, f"freeze={freeze}"] if word.partition("=")[0] not in own)]


@pytest.mark.parametrize("family", FAMILIES)
def test_micro_batches_and_stops_change_nothing(executed, given, tmp_path, family):
    typed = words(given, family)
    whole = executed(typed, folder="whole")
    parts = executed([*typed, "hardware.accumulate=3"], folder="parts")
    if family not in ("boxes", "captions", "told tags", "lines"):  # a trained BatchNorm sees its own micro-batch
        same(whole, parts, abs=1e-4)
    with told(1) as (_, said):
        executed(typed, folder="stopped")
    assert "after step 1" in said[0]
    stopped = again(RunFolder(tmp_path / "runs" / "stopped"))
    same(whole, stopped)
    table = json.loads((whole.folder / "record.json").read_text())
    assert table["status"] == "done"
    first = table["metric"]
    assert {f"{split}/{first}" for split in ("train", "val", "test")} <= whole.metrics.keys()


@pytest.mark.parametrize("family", LIVE)
def test_what_is_frozen_is_cached_and_gives_the_same(executed, given, family):
    typed = words(given, family, LIVE[family])
    cached = executed([*typed, "cache.mode=require"] if LIVE[family] != "greedy" else typed, folder="cached")
    live = executed([*typed, "cache.mode=off"], folder="live")
    assert any(note["mode"] == "cached" for note in cached.record["cache"])
    assert not any(note["mode"] == "cached" for note in live.record["cache"])
    same(live, cached, abs=1e-5)
    parts = executed([*typed, "hardware.accumulate=3"], folder="parts")
    same(cached, parts, abs=1e-4)
    assert cached.evaluate() == pytest.approx(cached.metrics, abs=1e-4)


def test_pictures_are_predicted_in_the_tasks_own_words(executed, given, tmp_path, capsys):
    for family, kind in (("boxes", list), ("captions", str)):
        run = executed([*words(given, family), "trainer.max_epochs=1"], folder=family)
        assert asking.predict(str(run.folder.path), [str(tmp_path / "3.png")], 3, as_json=True) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["file"] == str(tmp_path / "3.png")
        assert isinstance(said["predicted"], kind)
