"""Signals to real processes: every rank saves at the same step before it ends, and the same command ends as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engines.commands import REGRAFT, epochs, folders, furthest, holding, identical, regraft, until, workers
from regraft import checkpoints
from regraft.record import RunFolder

pytestmark = pytest.mark.engines

EPOCHS = 50
WORDS = ["train", "dataset=digits", "dataset.per_class=10", 'dataset.classes=["0","1","2"]', "data.batch_size=4", "plots=false"]
WORDS += ["model=mlp", "model.weights=none", "freeze=none", "hardware=cpu", "head.dropout=0.3", f"trainer.max_epochs={EPOCHS}"]
KINDS = {
    "one rank": ["augmentation=d4", "hardware.workers=0", "trainer.ema=0.9"],
    "one rank, and a process that reads": ["augmentation=random_resized_crop", "hardware.workers=1"],
    "two ranks": ["augmentation=d4", "hardware.workers=0", "hardware.devices=2"],
}


TORCHRUN = [  # regraft as where no server can be forked
    *(sys.executable, "-c"),
    "import sys; from regraft.launchers import workers; workers.FORKS = False; from regraft.cli import main; sys.exit(main())",
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run of each kind when nobody stops it."""
    at, found = tmp_path_factory.mktemp("undisturbed"), {}

    def run(kind: str) -> RunFolder:
        if kind not in found:
            folder = RunFolder(at / str(len(found)))
            done = regraft(*WORDS, *KINDS[kind], f"hydra.run.dir={folder.path}", at=at)
            assert done.returncode == 0, done.stderr
            found[kind] = folder
        return found[kind]

    return run


@contextmanager
def controlling(command: list[str], at: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command beside this process, whose words go to the file `said`; it does not outlive the test."""
    with (at / "said").open("ab") as said:
        controller = subprocess.Popen(command, cwd=at, stdout=said, stderr=said, stdin=subprocess.DEVNULL)
    try:
        yield controller
    finally:
        controller.kill()
        controller.wait()


def interrupted(folder: RunFolder, controller: subprocess.Popen[bytes]) -> tuple[int, int]:
    """How far the run has come, in epochs and steps, once its processes are gone; within an epoch or not, it has been saved."""
    controller.wait(60)
    until(lambda: not holding(folder), 30)
    assert folder.record["status"] == "running"
    said: list[str] = []
    mine = checkpoints.read(folder, said.append)["regraft"]
    assert not said
    assert not mine["over"]
    return mine["epochs"], mine["step"]


def ends_the_same(folder: RunFolder, words: list[str], whole: RunFolder, at: Path) -> None:
    again = regraft(*words, f"hydra.run.dir={folder.path}", at=at)
    assert again.returncode == 0, again.stdout + again.stderr
    assert furthest(folder, whole) == 0
    assert identical(folder, whole)
    assert epochs(folder) == list(range(EPOCHS))


@pytest.mark.parametrize(
    ("kind", "number", "victim"),
    [
        ("one rank", signal.SIGTERM, "group"),
        ("one rank", signal.SIGUSR1, "worker"),
        ("one rank", signal.SIGINT, "controller"),
        ("one rank", signal.SIGKILL, "controller"),
        ("one rank, and a process that reads", signal.SIGTERM, "group"),
        ("one rank, and a process that reads", signal.SIGUSR1, "group"),
        ("two ranks", signal.SIGTERM, "controller"),
        ("two ranks", signal.SIGKILL, "controller"),
        ("two ranks", signal.SIGUSR1, "rank 1 alone"),
    ],
)
def test_who_is_told_saves_and_the_same_command_ends_the_same(tmp_path, undisturbed, kind, number, victim):
    whole, folder, words = undisturbed(kind), RunFolder(tmp_path / "stopped"), [*WORDS, *KINDS[kind]]
    with controlling([*REGRAFT, *words, f"hydra.run.dir={folder.path}"], tmp_path) as controller:
        until(lambda: len(epochs(folder)) > 3)
        ranks = workers(folder)
        assert len(ranks) == (2 if kind == "two ranks" else 1)
        told = {"controller": controller.pid, "worker": ranks[0], "group": -ranks[0], "rank 1 alone": ranks[-1]}[victim]
        (os.killpg if told < 0 else os.kill)(abs(told), number)
        done, step = interrupted(folder, controller)
    assert 3 < done < EPOCHS - 1, "it was stopped on its way"
    assert done == len(epochs(folder)), "saved where it stood: no epoch that was written is done again"
    if number != signal.SIGKILL:  # a killed controller reads no error
        error = folder.record["error"]
        assert error["kind"] == "Stopped"
        assert f"step {step} of epoch {done}" in error["message"] or f"saved after epoch {done - 1}" in error["message"]
    assert "Traceback" not in (tmp_path / "said").read_text()
    ends_the_same(folder, words, whole, tmp_path)


def test_torchrun_s_ranks_save_too(tmp_path, undisturbed):
    """As where no server can be forked, and on other machines' launchers: the agent is told, and tells its ranks."""
    whole, folder, words = undisturbed("two ranks"), RunFolder(tmp_path / "stopped"), [*WORDS, *KINDS["two ranks"]]
    with controlling([*TORCHRUN, *words, f"hydra.run.dir={folder.path}"], tmp_path) as controller:
        until(lambda: len(epochs(folder)) > 3)
        controller.terminate()
        done, _ = interrupted(folder, controller)
    assert done == len(epochs(folder))
    assert 3 < done < EPOCHS - 1
    ends_the_same(folder, words, whole, tmp_path)


def test_a_rank_of_torchrun_s_that_is_killed_interrupts_the_run_and_the_other_s_echo_is_no_error_of_its_own(tmp_path):
    folder, words = RunFolder(tmp_path / "killed"), [*WORDS, *KINDS["two ranks"]]
    with controlling([*TORCHRUN, *words, f"hydra.run.dir={folder.path}"], tmp_path) as controller:
        until(lambda: len(epochs(folder)) > 3)
        os.kill(workers(folder)[-1], signal.SIGKILL)
        assert controller.wait(60) == 1
    until(lambda: not holding(folder), 30)
    record = folder.record
    assert (record["status"], record["error"]["kind"]) == ("running", "Killed")
    assert "ended by SIGKILL" in record["error"]["message"]
    assert "was interrupted" in (tmp_path / "said").read_text()


def test_a_stack_of_heads_saves_all_of_them(tmp_path):
    words = ["train", "-m", "dataset=digits", "model=convnet", "model.weights=none", "data.size=16", "data.batch_size=128", "hardware=cpu"]
    words += ["optimizer.lr=1e-3,1e-2", "trainer.max_epochs=300", "trainer.keep=last", "trainer.checkpoint_seconds=3600"]
    assert regraft(*words, "hydra.sweep.dir=whole", at=tmp_path).returncode == 0
    with controlling([*REGRAFT, *words, "hydra.sweep.dir=stopped"], tmp_path) as controller:
        until(lambda: any(len(epochs(folder)) > 10 for folder in folders(tmp_path / "stopped")))
        controller.send_signal(signal.SIGTERM)
        stopped = [interrupted(folder, controller) for folder in folders(tmp_path / "stopped")]
    assert len(stopped) == 2
    assert all(10 < done < 300 for done, _ in stopped)
    assert regraft(*words, "hydra.sweep.dir=stopped", at=tmp_path).returncode == 0
    for one, other in zip(folders(tmp_path / "stopped"), folders(tmp_path / "whole"), strict=True):
        assert identical(one, other)


def test_want_of_memory_names_what_a_user_can_change(tmp_path):
    """Under a limit on the address space: a clear error, no traceback, and the sweep goes on with the run that fits."""
    limited = f'ulimit -v {12 << 20}; exec {" ".join(REGRAFT)} "$@"'
    words = ["train", "-m", "dataset=digits", "model=mlp", "model.weights=none", "freeze=none", "hardware=cpu", "hardware.workers=0"]
    words += ["trainer.max_epochs=1", "model.width=64,2000000", "hydra.sweep.dir=sweep", "data.size=32"]
    done = subprocess.run(["bash", "-c", limited, "bash", *words], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    of = {folder.config["model"]["width"]: folder.record for folder in folders(tmp_path)}
    assert of[64]["status"] == "done"
    assert of[2000000]["status"] == "failed", of[2000000]
    assert "data.batch_size" in of[2000000]["error"]["message"]
