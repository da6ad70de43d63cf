"""Sweeps on a real Ray: a cluster of their own and one that is there, in namespaces where Ray can bind whatever it likes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from engines.commands import CUBE, SEARCH, folders, same_search, until
from regraft.record import Metrics, RunFolder

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="namespaces need Linux and root"),
]

REGRAFT = [sys.executable, "-m", "regraft.cli", "train", "-m"]
TINY = ["dataset=digits", "model=mlp", "model.weights=none", "freeze=none", "hardware=cpu", "trainer.checkpoint_seconds=0"]
LONG = [*TINY, "seed=0,1", "trainer.max_epochs=60", "trainer.keep=last", "hydra.sweep.dir=sweep"]


class World:
    """A network and process namespace of its own; commands that run in it, and who is left of them."""

    def __init__(self, at: Path) -> None:
        self.at = at
        unshare = ["unshare", "-n", "-p", "--fork", "--mount-proc", "--kill-child"]
        self._first = subprocess.Popen(
            [*unshare, "bash", "-c", "ip link set lo up; echo up; sleep infinity & wait"], stdout=subprocess.PIPE
        )
        assert self._first.stdout.readline() == b"up\n"
        [self._root] = Path(f"/proc/{self._first.pid}/task/{self._first.pid}/children").read_text().split()
        self._name = os.readlink(f"/proc/{self._root}/ns/pid")
        (at / "home").mkdir()  # where Ray keeps its token
        self._environment = {**os.environ, "HOME": str(at / "home"), "OMP_NUM_THREADS": "1", "RAY_TMPDIR": str(at)}
        self.others: set[int] = set()  # processes that are meant to stay

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = ["nsenter", "-t", self._root, "-n", "-p", "-m", f"--wdns={self.at}", *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self._environment)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*words)
        out, err = process.communicate(timeout=600)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def processes(self) -> dict[int, str]:
        """Who is in it, beside its first processes and `others`: pid as it is seen from outside -> command line."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                if os.readlink(path / "ns" / "pid") == self._name and words and "sleep infinity" not in words:
                    found[int(path.name)] = words
        return {pid: words for pid, words in found.items() if pid not in self.others}

    def named(self, words: str) -> list[int]:
        return sorted(pid for pid, line in self.processes().items() if words in line)

    def close(self) -> None:
        self._first.kill()
        self._first.communicate()


@pytest.fixture
def world(tmp_path):
    short = Path(f"/tmp/r{os.getpid()}")  # Ray's sockets lie below it, and their paths must be short
    short.mkdir()
    found = World(short)
    yield found
    found.close()
    shutil.rmtree(short, ignore_errors=True)


def runs(world: World, name: str = "sweep") -> list[RunFolder]:
    return folders(world.at / name)


def started(world: World, *words: str) -> subprocess.Popen[str]:
    """The long sweep, when both of its runs are some epochs on their way."""
    command = world.start(*REGRAFT, *LONG, *words)
    until(lambda: len(found := runs(world)) == 2 and all(len(Metrics(run / "metrics.csv").rows()) > 40 for run in found), 400)
    return command


def finished(world: World, *words: str) -> None:
    """The same command ends both runs, and each epoch stands once."""
    again = world.run(*REGRAFT, *LONG, *words)
    assert again.returncode == 0, again.stdout + again.stderr
    for folder in runs(world):
        assert folder.record["status"] == "done"
        rows = [(row["epoch"], row["metric"]) for row in Metrics(folder / "metrics.csv").rows()]
        assert len(rows) == len(set(rows))
        assert {int(epoch) for epoch, _ in rows} == set(range(60))


def test_depth_dropout_and_device_count_give_the_metrics_of_the_local_launcher(world):
    for launcher in ("ray", "local"):
        done = world.run(*REGRAFT, *CUBE, f"launcher={launcher}", f"hydra.sweep.dir={launcher}")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
    ray, local = runs(world, "ray"), runs(world, "local")
    assert len(ray) == 8
    assert [folder.record["resolved"]["world"] for folder in ray] == [folder.record["resolved"]["world"] for folder in local]
    assert {folder.record["resolved"]["world"] for folder in ray} == {1, 2}
    for one, other in zip(ray, local, strict=True):
        assert one.record["status"] == other.record["status"] == "done"
        assert one.record["metrics"] == pytest.approx(other.record["metrics"], abs=1e-6)
    until(lambda: not world.processes(), 20)


def test_a_search_asks_ray_for_the_same_as_this_machine(world):
    for launcher in ("ray", "local"):
        done = world.run(*REGRAFT, *SEARCH, f"launcher={launcher}", f"hydra.sweep.dir={launcher}")
        assert done.returncode == 0, done.stdout + done.stderr
    assert same_search(world.at / "ray", world.at / "local")


def test_who_loses_a_worker_loses_no_other_run(world):
    command = started(world, "launcher=ray")
    os.kill(world.named("ray::work")[0], signal.SIGKILL)
    out, _ = command.communicate(timeout=600)
    assert command.returncode == 1
    lost, whole = sorted((folder.record for folder in runs(world)), key=lambda record: record["status"] == "done")
    assert (lost["status"], whole["status"]) == ("running", "done")
    assert "lost" in lost["error"]["message"]
    assert "goes on when the command is given again" in out
    until(lambda: not world.processes(), 20)
    finished(world, "launcher=ray")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_ended_controller_leaves_nothing_behind(world, number):
    command = started(world, "launcher=ray")
    [controller] = world.named("regraft.cli")[-1:]
    os.kill(controller, number)
    command.communicate(timeout=60)
    until(lambda: not world.named("ray::work") and not world.named("regraft"), 40)
    assert {folder.record["status"] for folder in runs(world)} == {"running"}
    assert {(folder.record["error"] or {}).get("kind") for folder in runs(world)} == {None if number == signal.SIGKILL else "Stopped"}
    finished(world, "launcher=ray")
    until(lambda: not world.processes(), 150)  # Ray's own helpers ask for their dead server for a minute


@pytest.mark.parametrize("address", ["auto", "ray://127.0.0.1:10001"])
def test_a_cluster_that_is_there_stays_and_stopped_runs_have_saved(world, address):
    head = ["ray", "start", "--head", "--num-cpus=2", "--num-gpus=1", "--include-dashboard=false", "--disable-usage-stats"]
    done = world.run(sys.executable, "-m", "ray.scripts.scripts", *head[1:], "--node-ip-address=127.0.0.1", f"--temp-dir={world.at}/t")
    assert done.returncode == 0, done.stdout + done.stderr
    until(lambda: world.named("gcs_server"))
    time.sleep(5)
    world.others = set(world.processes())
    there = ["launcher=ray", f"launcher.address={address}"]
    command = started(world, *there)
    os.kill(world.named("regraft.cli")[-1], signal.SIGTERM)
    _, err = command.communicate(timeout=120)
    assert command.returncode == 130, err
    assert [folder.record["error"]["kind"] for folder in runs(world)] == ["Stopped"] * 2
    until(lambda: world.named("ray::work") == world.named("regraft") == [], 40)
    finished(world, *there)
    large = world.run(*REGRAFT, *TINY, *there, "hardware.devices=1,3", "data.batch_size=30", "hydra.sweep.dir=large")
    assert large.returncode == 2
    assert "no node has that" in large.stderr
    assert runs(world, "large") == []
    gpu = world.run(*REGRAFT, *TINY, *there, "hardware=gpu", "hydra.sweep.dir=gpu")
    assert gpu.returncode == 1, gpu.stdout + gpu.stderr
    [folder] = runs(world, "gpu")
    assert "GPU" in folder.record["error"]["message"], "which this node only says that it has"
    assert world.others <= set(world.others | set(world.processes()))
