"""Sweeps on a real Slurm of one node: what each job asks for, jobs that are killed and requeued, and a controller that dies."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from engines.commands import CUBE, SEARCH, begun, complete, curves, epochs, folders, identical, regraft, same_search, until
from regraft.record import RunFolder

pytest.importorskip("submitit")
pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(
        sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("apt-get"), reason="needs Debian's Slurm, and root"
    ),
]

TINY = ["dataset=digits", "model=mlp", "model.weights=none", "hardware=cpu", "hardware.workers=0", "plots=false"]
SLURM = ["launcher=slurm", "launcher.cpus_per_device=1", "launcher.time_min=60"]
EPOCHS = 25
LONG = [*TINY, "freeze=none", f"trainer.max_epochs={EPOCHS}", "trainer.keep=last", "trainer.checkpoint_seconds=0"]


@pytest.fixture
def jobs(slurm):
    """`jobs()`: what accounting knows of the jobs since the test began, a mapping for each life of each."""
    before = {job["JobID"] for job in _jobs()}
    yield lambda: [job for job in _jobs() if job["JobID"] not in before]
    assert not said("squeue", "--noheader", "--states=PENDING,RUNNING"), "no job outlives its test"


def _jobs():
    names = ["JobID", "State", "ReqCPUS", "ReqTRES", "NodeList"]
    lines = said("sacct", "-X", "-D", "--noheader", "--parsable2", "--starttime=now-1day", f"--format={','.join(names)}").splitlines()
    found = []
    for line in lines:
        job, *facts = line.split("|")
        array, waiting = job.partition("_")[0], re.search(r"\[(\d+)(?:-(\d+))?", job)  # those of an array that wait are one line
        each = [f"{array}_{number}" for number in range(int(waiting[1]), int(waiting[2] or waiting[1]) + 1)] if waiting else [job]
        found += [dict(zip(names, [job, *facts], strict=True)) for job in each]
    return found


def said(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout


def state(job: str) -> str:
    return said("squeue", "--noheader", "--array", f"--jobs={job}", "--states=all", "--format=%T").strip()


def runs(root: Path, count: int) -> list[RunFolder]:
    """The run folders below, when there are so many and each is some Slurm job's."""
    until(lambda: sum(folder.job is not None for folder in folders(root)) == count)
    return folders(root)


def test_each_shape_is_an_array_with_its_cores_and_a_stack_is_one_job_with_metrics_equal_to_the_local_launchers(tmp_path, jobs):
    words = ["train", "-m", *TINY, "freeze=backbone", "trainer.max_epochs=3", "head.dropout=0,0.2", "hardware.devices=1,2"]
    there = regraft(*words, *SLURM, "hydra.sweep.dir=slurm", at=tmp_path)
    assert there.returncode == 0, there.stdout + there.stderr
    asked = Counter((job["ReqCPUS"], "gpu" in job["ReqTRES"], job["State"]) for job in jobs())
    assert asked == {("1", False, "COMPLETED"): 1, ("2", False, "COMPLETED"): 2}, "two heads are one job; two ranks are two cores"
    arrays = {job["JobID"].partition("_")[0] for job in jobs()}
    assert len(arrays) == 2
    assert regraft(*words, "hydra.sweep.dir=local", at=tmp_path).returncode == 0
    of = folders(tmp_path / "slurm")
    assert len(of) == 4
    for folder in of:
        assert complete(folder)
        assert folder.record["resolved"]["world"] == folder.record["batch"]["devices"]
        here = RunFolder(tmp_path / "local" / folder.path.name)
        assert folder.record["metrics"] == pytest.approx(here.record["metrics"], rel=1e-5)
        assert curves(folder) == pytest.approx(curves(here), rel=1e-5)
    again = regraft(*words, *SLURM, "hydra.sweep.dir=slurm", at=tmp_path)
    assert again.stdout.count("is done already") == 4
    assert len(jobs()) == 3


def test_depth_dropout_and_device_count_give_the_metrics_of_the_local_launcher(tmp_path, jobs):
    for name, launcher in (("slurm", SLURM), ("local", [])):
        done = regraft("train", "-m", *CUBE, *launcher, f"hydra.sweep.dir={name}", at=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    there, here = folders(tmp_path / "slurm"), folders(tmp_path / "local")
    assert len(there) == len(here) == 8
    assert all(map(complete, there))
    for one, other in zip(there, here, strict=True):
        assert one.path.name == other.path.name
        assert one.record["metrics"] == pytest.approx(other.record["metrics"], rel=1e-5)
    assert Counter(job["ReqCPUS"] for job in jobs()) == {"1": 4, "2": 4}


def test_a_search_asks_slurm_for_the_same_as_this_machine(tmp_path, jobs):
    for name, launcher in (("slurm", SLURM), ("local", [])):
        done = regraft("train", "-m", *SEARCH, *launcher, f"hydra.sweep.dir={name}", at=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    assert len(jobs()) == 3
    assert same_search(tmp_path / "slurm", tmp_path / "local")


def test_a_lost_job_does_not_lose_the_others_and_the_same_command_ends_it(tmp_path, jobs):
    words = ["train", "-m", *LONG, "seed=0,1", *SLURM, "hydra.sweep.dir=sweep"]
    command = begun(*words, at=tmp_path, log=tmp_path / "log")
    first, second = runs(tmp_path, 2)
    until(lambda: len(epochs(first)) >= 3)
    said("scancel", "--signal=KILL", "--full", first.job["id"])
    assert command.wait(300) == 1
    told = (tmp_path / "log").read_text()
    assert "was interrupted" in told
    assert "Slurm says of job" in first.record["error"]["message"]
    assert first.record["status"] == "running"
    assert complete(second)
    assert "Traceback" not in told
    done = regraft(*words, at=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert complete(first)
    assert first.record["error"] is None
    assert epochs(first) == list(range(EPOCHS))
    assert len(jobs()) == 3


def test_a_job_that_is_requeued_saves_and_goes_on_as_if_nothing_had_been(tmp_path, jobs):
    """USR2 is what Slurm says before the time limit, and the job asks for its turn; where somebody else requeues it, it hears SIGTERM."""
    command = begun("train", *LONG, *SLURM, "hydra.run.dir=run", at=tmp_path, log=tmp_path / "log")
    [folder] = runs(tmp_path, 1)
    job, reached = folder.job["id"], 0
    for tell in (["scancel", "--batch", "--signal=USR2", job], ["scontrol", "requeue", job]):
        until(lambda: len(epochs(folder)) >= reached + 3)  # noqa: B023
        said(*tell)
        until(lambda: state(job) == "PENDING")
        assert folder.record["error"]["kind"] == "Stopped", "it has saved"
        reached = len(epochs(folder))
    assert command.wait(300) == 0, (tmp_path / "log").read_text()
    assert epochs(folder) == list(range(EPOCHS))
    assert {each["JobID"] for each in jobs()} == {job}
    assert Counter(each["State"] for each in jobs()) == {"REQUEUED": 2, "COMPLETED": 1}
    assert regraft("train", *LONG, "hydra.run.dir=other", at=tmp_path).returncode == 0
    assert identical(folder, RunFolder(tmp_path / "other")), "the time that it has lost is all that it has lost"


def test_the_end_of_its_time_and_turns_is_told(tmp_path, jobs):
    words = [word for word in (*LONG, *SLURM) if not word.startswith(("trainer.max_epochs", "launcher.time_min"))]
    words += ["trainer.max_epochs=100000", "launcher.time_min=1", "launcher.max_requeues=0", "hydra.run.dir=run"]
    done = regraft("train", *words, at=tmp_path)
    assert done.returncode == 1
    error = RunFolder(tmp_path / "run").record["error"]
    assert error["kind"] in ("Stopped", "Killed"), "Slurm speaks up to a minute early: it may have come before the worker listened"
    assert "timed-out too many times" in error["message"]
    assert "was interrupted" in done.stderr
    assert "timed-out too many times" in done.stderr
    assert len(jobs()) == 1


def test_jobs_outlive_their_controller_and_the_same_command_waits_for_them(tmp_path, jobs):
    words = ["train", "-m", *LONG, "seed=0,1,2", *SLURM, "launcher.array_parallelism=1", "hydra.sweep.dir=sweep"]
    command = begun(*words, at=tmp_path, log=tmp_path / "log")
    first = {folder.job["id"] for folder in runs(tmp_path, 3)}
    command.kill()
    command.wait()
    again = begun(*words, at=tmp_path, log=tmp_path / "again")
    until(lambda: (tmp_path / "again").read_text().count("goes on as job") == 3)
    again.send_signal(signal.SIGTERM)
    assert again.wait(120) != 0
    assert not said("squeue", "--noheader", "--states=PENDING,RUNNING"), "who is told to end ends the jobs too"
    stopped = [folder for folder in folders(tmp_path) if not complete(folder)]
    assert stopped, "one job after the other: the first may have ended by then, and the last has not begun"
    for folder in stopped:
        assert folder.record["status"] == "running"
        assert folder.record["error"]
    assert {folder.job["id"] for folder in folders(tmp_path)} == first
    last = begun(*words, at=tmp_path, log=tmp_path / "last")
    until(lambda: all(folder.job and folder.job["id"] not in first for folder in stopped))
    second = {folder.job["id"] for folder in stopped}
    last.kill()
    last.wait()
    done = regraft(*words, at=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(complete(folder) and epochs(folder) == list(range(EPOCHS)) for folder in folders(tmp_path))
    assert {folder.job["id"] for folder in stopped} == second
    arrays = {job.partition("_")[0] for job in first | second}
    assert len(arrays) == 2
    found = {job["JobID"].partition("_")[0] for job in jobs()}  # without those that ended before they began
    assert found <= arrays, "nothing is submitted twice"
    assert Counter(job["State"] for job in jobs())["COMPLETED"] == 3


def test_gpus_are_asked_for_as_each_run_needs_them_and_looked_for_on_the_node(tmp_path, slurm, jobs):
    if slurm["FAKE_GPUS"] == "0":
        pytest.skip("mknod is refused here: the node has no GPUs")
    words = [
        "train",
        "-m",
        *TINY,
        "freeze=none",
        "hardware=gpu",
        *SLURM,
        f"launcher.setup=['echo visible=$CUDA_VISIBLE_DEVICES >> {tmp_path}/seen']",
    ]
    refused = regraft(*words, "hardware.devices=1,8", at=tmp_path)
    assert refused.returncode == 2, refused.stdout
    assert "hardware.devices = 8" in refused.stderr
    assert "Requested node configuration is not available" in refused.stderr
    assert "Traceback" not in refused.stderr
    shutil.rmtree(tmp_path / "multirun")
    (tmp_path / "seen").unlink(missing_ok=True)
    done = regraft(*words, "hardware.devices=1,2", at=tmp_path)
    assert done.returncode == 1
    assert Counter(len(line.partition("=")[2].split(",")) for line in (tmp_path / "seen").read_text().split()) == {1: 1, 2: 1}
    for folder in folders(tmp_path):
        assert folder.record["status"] == "failed", "there is no GPU on the node, whatever Slurm believes"
        assert "no GPU is visible" in folder.record["error"]["message"]
        assert f"gres/gpu={folder.config['hardware']['devices']}" in {part for job in jobs() for part in job["ReqTRES"].split(",")}


@pytest.mark.parametrize(
    ("override", "words"),
    [("launcher.partition=nope", "Invalid partition name"), ("launcher.mem_gb=1e6", "Memory specification can not be satisfied")],
)
def test_what_slurm_refuses_is_told_with_its_words_and_the_key(tmp_path, jobs, override, words):
    refused = regraft("train", *TINY, *SLURM, "freeze=none", override, at=tmp_path)
    assert refused.returncode == 2
    assert override.partition("=")[0] in refused.stderr
    assert words.lower() in refused.stderr.lower()
    assert "Traceback" not in refused.stderr
    assert {(job["State"], job["NodeList"]) for job in jobs()} <= {("FAILED", "None assigned")}, "what was refused has run nowhere"
