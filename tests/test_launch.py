"""Real commands in processes of their own: a sweep in which one run fails, and a single run (kills and several devices: engines/)."""

from __future__ import annotations

from pathlib import Path

import pytest
from engines.commands import complete, folders, regraft
from PIL import Image

pytestmark = pytest.mark.slow

TINY = ["dataset=digits", "model=mlp", "model.weights=none", "freeze=none", "hardware=cpu", "trainer.checkpoint_seconds=0"]


@pytest.fixture
def pictures(tmp_path):
    """A folder of 24 small pictures in two classes."""
    for number in range(24):
        path = tmp_path / "pictures" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (10 * number, 0, 0)).save(path)
    return tmp_path / "pictures"


def test_a_sweep_skips_what_is_done_and_goes_on_after_a_failure(tmp_path, pictures):
    broken = pictures / "a" / "00.png"
    broken.write_bytes(broken.read_bytes()[:50])  # its header is right, its pixels are cut off
    words = ["train", "-m", "dataset=folder", f"dataset.path={pictures}", "data.size=16", *TINY[1:], "trainer.max_epochs=1"]
    words += ["dataset.on_error=raise,skip"]
    first = regraft(*words, at=tmp_path)
    assert first.returncode == 1, first.stdout + first.stderr
    status = {folder.config["dataset"]["on_error"]: folder.record["status"] for folder in folders(tmp_path)}
    assert status == {"raise": "failed", "skip": "done"}, first.stdout
    assert str(broken) in first.stdout
    assert "Traceback" not in first.stdout + first.stderr
    skipped = next(folder for folder in folders(tmp_path) if folder.record["status"] == "done").record["data"]["skipped"]
    assert [Path(each["file"]).name for each in skipped] == ["00.png"]
    again = regraft(*words, at=tmp_path)
    assert again.stdout.count("is done already") == 1


def test_a_single_run_shows_its_table_and_its_pictures_and_is_not_run_twice(tmp_path):
    words = ["train", *TINY, "trainer.max_epochs=2"]
    first = regraft(*words, at=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    [folder] = folders(tmp_path)
    assert folder.path.parent == tmp_path / "multirun" / "single"
    assert complete(folder)
    for word in ("train", "val", "test", "95%", "layer1", str(folder.path.relative_to(tmp_path))):
        assert word in first.stdout
    for name in ("curves.png", "confusion.png", "mistakes.png"):
        assert name in first.stdout
        assert Image.open(folder / name).size[0] > 300
    before = (folder / "record.json").stat().st_mtime_ns
    again = regraft(*words, at=tmp_path)
    assert again.returncode == 0
    assert "done already" in again.stdout
    assert (folder / "record.json").stat().st_mtime_ns == before
