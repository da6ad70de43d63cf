"""Real commands in processes of their own: devices, sweeps, a rank that dies, and kill -9 of either side."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from PIL import Image

from regraft import weights
from regraft.record import Metrics, RunFolder

pytestmark = pytest.mark.slow

REGRAFT = [sys.executable, "-m", "regraft.cli"]
TINY = ["dataset=digits", "model=mlp", "model.weights=none", "freeze=none", "hardware=cpu", "trainer.checkpoint_seconds=0"]


def regraft(*words: str, at: Path, **how) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*REGRAFT, *words], cwd=at, capture_output=True, text=True, timeout=240, **how)


def folders(root: Path) -> list[RunFolder]:
    return [RunFolder(path.parent) for path in sorted(root.rglob("record.json"))]


def complete(folder: RunFolder) -> bool:
    names = ["config.yaml", "record.json", "metrics.csv", "predictions.parquet", "last.ckpt", "model.safetensors", "log.txt"]
    return folder.record["status"] == "done" and all((folder / name).is_file() for name in names)


def until(condition, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def alive(words: str) -> list[int]:
    """Processes whose command line holds these words."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if words in path.read_bytes().replace(b"\0", b" ").decode():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def holding(folder: RunFolder) -> list[int]:
    """Processes that hold the worker's lock: the worker first, and the loader workers that it has forked."""
    lock, found = str(folder / ".worker"), set()
    for path in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if os.readlink(path) == lock:
                found.add(int(path.parent.parent.name))
    return sorted(found)


@pytest.fixture
def pictures(tmp_path):
    """A folder of 24 small pictures in two classes."""
    for number in range(24):
        path = tmp_path / "pictures" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (10 * number, 0, 0)).save(path)
    return tmp_path / "pictures"


def test_one_and_two_devices_give_the_same_losses_and_weights(tmp_path):
    same = ["head.dropout=0.3", "augmentation=d4", "optimizer=sgd", "trainer.max_epochs=3", "trainer.keep=last", "data.batch_size=50"]
    done = regraft("train", "-m", *TINY, *same, "hardware.devices=1,2", at=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = sorted(folders(tmp_path), key=lambda folder: folder.record["batch"]["devices"])
    assert complete(one)
    assert complete(two)
    assert [folder.record["resolved"]["world"] for folder in (one, two)] == [1, 2]
    assert two.record["batch"] == {"global": 50, "devices": 2, "micro": 25, "accumulate": 1}
    rows = [[float(row["value"]) for row in Metrics(folder / "metrics.csv").rows()] for folder in (one, two)]
    assert rows[0] == pytest.approx(rows[1], rel=1e-6)
    first, second = weights.read(one / "model.safetensors"), weights.read(two / "model.safetensors")
    assert max((first[name] - second[name]).abs().max().item() for name in first) < 1e-6
    assert one.record["metrics"] == pytest.approx(two.record["metrics"], rel=1e-6)


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


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The words of a run, and its folder when nobody kills it."""
    at = tmp_path_factory.mktemp("undisturbed")
    few = ["dataset.per_class=10", 'dataset.classes=["0","1","2"]']
    words = ["train", *TINY, *few, "augmentation=flips", "trainer.max_epochs=60", "plots=false"]
    done = regraft(*words, "hydra.run.dir=whole", at=at)
    assert done.returncode == 0, done.stderr
    return words, RunFolder(at / "whole")


@pytest.mark.parametrize("victims", ["controller", "worker", "both"])
def test_a_killed_run_leaves_no_orphan_and_the_same_command_ends_it(tmp_path, undisturbed, victims):
    words, whole = undisturbed
    killed = RunFolder(tmp_path / "killed")
    controller = subprocess.Popen(
        [*REGRAFT, *words, "hydra.run.dir=killed"], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    until(lambda: len(Metrics(killed / "metrics.csv").rows()) > 25)
    if victims in ("worker", "both"):
        os.kill(holding(killed)[0], signal.SIGKILL)
    if victims in ("controller", "both"):
        controller.kill()
    controller.communicate(timeout=30)
    until(lambda: not holding(killed), 20)
    assert killed.record["status"] == "running"
    if victims == "worker":
        assert "SIGKILL" in killed.record["error"]["message"]
    epochs = len(Metrics(killed / "metrics.csv").rows())
    resumed = regraft(*words, "hydra.run.dir=killed", at=tmp_path)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert epochs < len(Metrics(whole / "metrics.csv").rows()), "it was killed before its end"
    assert Metrics(killed / "metrics.csv").rows() == Metrics(whole / "metrics.csv").rows()
    first, second = weights.read(whole / "model.safetensors"), weights.read(killed / "model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_rank_that_dies_is_told_with_its_own_words(tmp_path, pictures):
    words = ["dataset=folder", f"dataset.path={pictures}", "data.size=16", *TINY[1:], "hardware.devices=2"]
    for path in pictures.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:50])
    done = regraft("train", *words, "data.batch_size=8", at=tmp_path)
    assert done.returncode == 1
    assert ".png" in done.stderr
    assert "Traceback" not in done.stderr
    [folder] = folders(tmp_path)
    assert folder.record["error"]["kind"] == "UserError"
    assert not alive(f"regraft.worker {folder.path}")


def test_evaluate_and_predict_read_a_run_folder(tmp_path):
    assert regraft("train", *TINY, "trainer.max_epochs=2", "hydra.run.dir=run", "plots=false", at=tmp_path).returncode == 0
    evaluated = regraft("evaluate", "run", "--json", at=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads(evaluated.stdout) == pytest.approx(RunFolder(tmp_path / "run").record["metrics"], abs=1e-6)
    digits = __import__("sklearn.datasets").datasets.load_digits()
    (tmp_path / "pictures").mkdir()
    for number in range(10):
        Image.fromarray((digits.images[number] * 255 / 16).astype("uint8")).save(tmp_path / "pictures" / f"{digits.target[number]}.png")
    told = regraft("predict", "run", "pictures", "--json", "--top", "2", at=tmp_path)
    answers = [json.loads(line) for line in told.stdout.splitlines()]
    assert [Path(answer["file"]).stem for answer in answers] == [str(digit) for digit in range(10)]
    assert sum(Path(answer["file"]).stem == answer["predicted"] for answer in answers) >= 8
    assert all(len(answer["scores"]) == 2 for answer in answers)
    assert regraft("predict", "run", "pictures/3.png", at=tmp_path).stdout.startswith("pictures/3.png")
    model = tmp_path / "run" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"\0")
    for words in (["evaluate", "run"], ["predict", "run", "pictures/3.png"]):
        damaged = regraft(*words, at=tmp_path)
        assert damaged.returncode == 2
        assert "model.safetensors" in damaged.stderr
        assert "Traceback" not in damaged.stderr


def test_wandb_is_offline_where_nobody_is_logged_in(tmp_path):
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")} | {"HOME": str(tmp_path)}
    done = regraft("train", *TINY, "trainer.max_epochs=2", "logger=[csv,wandb]", "plots=false", at=tmp_path, env=surroundings)
    assert done.returncode == 0, done.stdout + done.stderr
    [folder] = folders(tmp_path)
    [written] = folder.path.glob("wandb/offline-run-*/*.wandb")
    assert written.stat().st_size > 500
    assert folder.record["run_id"] in written.name


def test_a_terminal_sees_progress_and_a_pipe_does_not(tmp_path):
    words = [*REGRAFT, "train", *TINY, 'dataset.classes=["0","1"]', "trainer.max_epochs=2", "plots=false"]
    mine, theirs = os.openpty()
    process = subprocess.Popen(
        [*words, "hydra.run.dir=terminal"], cwd=tmp_path, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"}
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            seen += os.read(mine, 65536)
        except OSError:  # the other end is closed
            break
    os.close(mine)
    assert process.wait(60) == 0
    text = seen.decode()
    assert "fine-tune, epoch 2 of 2" in text
    assert "val/accuracy" in text
    piped = regraft(*words[3:], "hydra.run.dir=piped", at=tmp_path)
    assert piped.returncode == 0
    assert "epoch 2 of 2" not in piped.stdout + piped.stderr
    assert "\x1b" not in piped.stdout + piped.stderr


def test_a_sweep_draws_its_pictures_when_asked_to(tmp_path):
    words = ["train", "-m", *TINY, 'dataset.classes=["0","1"]', "trainer.max_epochs=1", "seed=0,1"]
    assert regraft(*words, "plots=true", at=tmp_path).returncode == 0
    assert [len(list(folder.path.glob("*.png"))) for folder in folders(tmp_path)] == [3, 3]
    assert [folder.path.parent for folder in folders(tmp_path)] == [tmp_path / "multirun" / "default"] * 2


def test_two_starts_of_one_command_do_not_disturb_each_other(tmp_path):
    words = ["train", *TINY, "trainer.max_epochs=2", "plots=false", "hydra.run.dir=run"]
    first = subprocess.Popen([*REGRAFT, *words], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    until(lambda: (tmp_path / "run" / "record.json").is_file())
    second = regraft(*words, at=tmp_path)
    assert second.returncode == 2
    assert "another process is running this run" in second.stderr
    assert first.wait(120) == 0
    assert complete(RunFolder(tmp_path / "run"))


@pytest.mark.parametrize("victim", ["controller", "worker"])
def test_a_killed_group_leaves_no_orphan_and_the_same_command_ends_every_head(tmp_path, victim):
    words = ["dataset=digits", "model=convnet", "model.weights=none", "data.size=16", "data.batch_size=128", "hardware=cpu"]
    words += ["trainer.checkpoint_seconds=0", "optimizer.lr=1e-3,1e-2", "trainer.max_epochs=30,300", "trainer.keep=last"]
    whole = regraft("train", "-m", *words, "hydra.sweep.dir=whole", at=tmp_path)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    command = [*REGRAFT, "train", "-m", *words, "hydra.sweep.dir=killed"]
    controller = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: any(len(Metrics(path).rows()) > 40 * 5 for path in tmp_path.glob("killed/*/metrics.csv")))
    running = folders(tmp_path / "killed")
    [worker, *_] = holding(running[0])
    os.kill(worker if victim == "worker" else controller.pid, signal.SIGKILL)
    controller.wait(60)
    until(lambda: not any(holding(folder) for folder in running), 30)
    again = regraft("train", "-m", *words, "hydra.sweep.dir=killed", at=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    for one, other in zip(folders(tmp_path / "killed"), folders(tmp_path / "whole"), strict=True):
        assert complete(one)
        assert one.record["group"]["size"] >= 1
        assert one.record["metrics"] == pytest.approx(other.record["metrics"], abs=1e-3)
        rows = [[row["epoch"] for row in Metrics(folder / "metrics.csv").rows()] for folder in (one, other)]
        assert rows[0] == rows[1], "no epoch is lost, and none stands twice"
