"""Real commands in processes of their own: kill -9 of either side, two starts at once, a terminal, a tracker, the other verbs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image

from engines.commands import REGRAFT, complete, folders, holding, regraft, until
from regraft import weights
from regraft.record import Metrics, RunFolder

pytestmark = pytest.mark.engines

TINY = ["dataset=digits", "model=mlp", "model.weights=none", "freeze=none", "hardware=cpu", "trainer.checkpoint_seconds=0"]


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
    told = regraft("status", "killed", at=tmp_path).stdout
    assert "running" in told
    assert re.search(r"epoch \d+ of 60, val/accuracy", told)
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


def test_the_first_failure_stops_a_sweep_where_that_is_asked_for_and_is_tried_again_where_that_is(tmp_path):
    words = ["train", "-m", *TINY, "optimizer=sgd", "optimizer.lr=1e30,0.01,0.02", "trainer.max_epochs=2", "hydra.sweep.dir=sweep"]
    stopped = regraft(*words, "sweep.on_error=stop", at=tmp_path)
    assert stopped.returncode == 1
    [failed] = folders(tmp_path)
    assert failed.record["status"] == "failed"
    assert "diverged" in stopped.stdout
    launched = failed.record["times"]["launched"]
    going = regraft(*words, at=tmp_path)
    assert going.returncode == 1, "one of its runs has failed"
    assert going.stdout.count("has failed before, and is passed over") == 1
    assert sorted(folder.record["status"] for folder in folders(tmp_path)) == ["done", "done", "failed"]
    assert failed.record["times"]["launched"] == launched
    again = regraft(*words, "sweep.retry=true", at=tmp_path)
    assert again.stdout.count("is done already") == 2
    assert failed.record["times"]["launched"] > launched
    assert failed.record["status"] == "failed"


@pytest.mark.parametrize(("jobs", "devices"), [(1, 1), (2, 1), (1, 2)])
def test_the_cores_are_shared_out_among_workers_and_ranks(tmp_path, jobs, devices):
    own = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    words = [*TINY, "trainer.max_epochs=1", "seed=0,1", f"launcher.jobs={jobs}", f"hardware.devices={devices}", "hydra.sweep.dir=sweep"]
    done = regraft("train", "-m", *words, at=tmp_path, env=own)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = sorted((folder.record for folder in folders(tmp_path)), key=lambda record: record["times"]["launched"])
    cores = len(os.sched_getaffinity(0))
    for record in (one, two):
        assert record["resolved"]["threads"] == max(1, cores // jobs // devices)
        assert record["resolved"]["world"] == devices
    at_once = two["times"]["launched"] < one["times"]["launched"] + one["times"]["total"]
    assert at_once == (jobs == 2)
