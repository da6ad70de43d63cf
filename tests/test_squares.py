"""Live training decodes each picture once, and sees the same as if it had decoded it every time."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from regraft import squares
from regraft.cache import NoRoom
from regraft.datasets.source import Packed
from regraft.errors import Problem
from regraft.weights import read

pytestmark = pytest.mark.usefixtures("one_thread")
LIVE = ["dataset=digits", "dataset.per_class=5", "model=convnet", "model.weights=none", "freeze=none", "data.size=16", "hardware.workers=0"]
LIVE += ["trainer.max_epochs=3", "trainer.keep=last", "data.batch_size=16"]


@pytest.fixture
def reads(monkeypatch):
    """How often each picture was decoded."""
    counts: Counter[str] = Counter()
    decode = Packed.read

    def counting(self, sample):
        counts[sample.sha256] += 1
        return decode(self, sample)

    monkeypatch.setattr(Packed, "read", counting)
    return counts


@pytest.mark.parametrize("augmentation", ["none", "d4", "randaugment", "alexnet", "mixup", "[flips,cutmix]"])
def test_what_training_sees_does_not_depend_on_when_it_was_decoded(executed, augmentation):
    same = [*LIVE, f"augmentation={augmentation}"]
    kept, anew = executed(same), executed([*same, "cache.mode=off"])
    assert kept.metrics == anew.metrics
    one, other = read(kept.folder / "model.safetensors"), read(anew.folder / "model.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_each_picture_is_decoded_once_for_all_epochs_and_runs(executed, reads, tmp_path):
    same = [*LIVE, f"cache.dir={tmp_path / 'cache'}"]
    run = executed(same)
    train, val = (run.source.split(split).sha256s() for split in ("train", "val"))
    assert {reads[sha] for sha in train} == {2}, "once for the store, and once when all is measured at the end"
    assert {reads[sha] for sha in val} == {2}
    reads.clear()
    executed([*same, "seed=4"])
    assert {reads[sha] for sha in train} == {1}


def test_without_room_pictures_are_decoded_in_each_epoch_and_the_record_says_why(executed, reads, monkeypatch, tmp_path):
    def full(*arguments):
        raise NoRoom(Problem("cache.dir", "somewhere", "can't write (No space left on device)"))

    monkeypatch.setattr(squares, "fill", full)
    run = executed([*LIVE, f"cache.dir={tmp_path / 'cache'}"])
    assert {reads[sha] for sha in run.source.split("train").sha256s()} == {3 + 1}
    [note] = [note for note in run.record["cache"] if note["boundary"] == "pictures"]
    assert "No space left on device" in note["why"]
