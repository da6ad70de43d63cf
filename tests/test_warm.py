"""Workers from the warm server: a process of its own for each, an environment of its own, and no orphan."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType, SimpleNamespace

import pytest

from regraft import worker
from regraft.files import write_json
from regraft.launchers import workers
from regraft.record import LOG, RunFolder

pytestmark = pytest.mark.skipif(not workers.FORKS, reason="elsewhere every worker starts fresh")


class OutOfMemoryError(RuntimeError):
    """As torch's, which needs a GPU to be raised."""


def act(folders, say, show=False):
    """What stands for `running.execute` in these workers: each folder's config names what happens there."""
    import torch

    folder = folders[0]
    what = folder.config["act"]
    threads = (Path("/proc") / str(os.getppid()) / "status").read_text().split("Threads:")[1].split()[0]
    told = {"pid": os.getpid(), "server": os.getppid(), "leader": os.getsid(0), "threads": int(threads), "argv": sys.argv}
    told |= {"environment": dict(os.environ), "dtype": str(torch.get_default_dtype()), "draw": torch.rand(1).item()}
    told |= {"warm": "pytorch_lightning" in sys.modules, "cuda": torch.cuda.is_initialized(), "directory": os.getcwd()}
    if what == "linger":
        signal.signal(signal.SIGTERM, lambda number, frame: (folder / "terminated").touch())
        told["child"] = subprocess.Popen(["sleep", "300"]).pid
    (folder / "told.part").write_text(json.dumps(told))
    (folder / "told.part").rename(folder / "told")
    print("printed")
    say("said")
    torch.set_default_dtype(torch.float64)
    os.environ["LEFT"] = "by another"
    if what == "linger":
        time.sleep(300)
        time.sleep(300)
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "removed":
        shutil.rmtree(folder.path)
        return
    if what == "memory" and folder.record.get("halved", 0) < folder.config["enough"]:
        raise OutOfMemoryError("CUDA out of memory")
    if what == "half":
        folders[1].finish()
        folders[2].update(status="failed", error={"kind": "Alone", "message": "one head diverged", "rank": 0})
        raise RuntimeError("all the others")
    for each in folders:
        each.finish()


def acting(paths, show, surroundings):
    """`worker.forked`, but for what is run."""
    sys.modules["regraft.running"] = ModuleType("regraft.running")
    sys.modules["regraft.running"].execute = act  # type: ignore[attr-defined]
    worker.PATIENCE = 2  # s; one that lingers won't end by itself
    worker.forked(paths, show, surroundings)


@pytest.fixture
def stage(monkeypatch):
    monkeypatch.setattr(
        workers,
        "worker",
        SimpleNamespace(forked=acting, end_with_parent=worker.end_with_parent, STOPPED=worker.STOPPED, TOLD=worker.TOLD),
    )


def begun(path: Path, what: str, **more: object) -> RunFolder:
    folder = RunFolder(path)
    folder.begin({"act": what, **more}, {"run_id": path.name, "error": None})
    return folder


def told(folder: RunFolder) -> dict:
    return json.loads((folder / "told").read_text())


def gone(pid: int) -> bool:
    """Ended; one that nobody has waited for counts as ended."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_each_job_has_a_process_of_its_own_and_inherits_nothing_of_another(stage, tmp_path, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "PL_GLOBAL_SEED", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("OURS", "it is")
    folders = [begun(tmp_path / name, "end") for name in ("one", "two")]
    for folder in folders:
        workers.run([folder], 1)
        assert folder.record["status"] == "done"
    one, two = map(told, folders)
    assert one["pid"] != two["pid"]
    assert one["server"] == two["server"] != os.getpid()
    assert one["threads"] == 1
    assert one["draw"] == two["draw"]
    for each, folder in zip((one, two), folders, strict=True):
        assert each["leader"] == each["pid"]
        assert each["warm"]
        assert not each["cuda"]
        assert each["dtype"] == "torch.float32"
        assert each["directory"] == str(Path.cwd())
        assert each["argv"] == ["regraft.worker", str(folder.path)]
        assert each["environment"] == workers.environment(1)
        assert each["environment"]["OMP_NUM_THREADS"] == "7"
        assert not [name for name in each["environment"] if name in workers.FOREIGN or name.startswith(workers.FOREIGN_PREFIXES)]
        assert gone(each["pid"])


def test_the_cores_are_a_workers_unless_the_user_shares_them_out(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert workers.environment(1)["OMP_NUM_THREADS"] == str(len(os.sched_getaffinity(0)))


def test_a_worker_that_is_killed_interrupts_its_run_alone(stage, tmp_path):
    dies, next_one = begun(tmp_path / "dies", "die"), begun(tmp_path / "next", "end")
    for folder in (dies, next_one):
        workers.run([folder], 1)
    assert dies.record["status"] == "running", "it is no failure of the run's"
    assert dies.record["error"]["kind"] == "Killed"
    assert "ended by SIGKILL" in dies.record["error"]["message"]
    assert next_one.record["status"] == "done"
    assert "printed" not in (dies / LOG).read_text()
    assert "said" in (dies / LOG).read_text()
    dies.hold().release()  # nobody holds it


def test_a_folder_that_is_removed_meanwhile_is_no_trouble(stage, tmp_path):
    folder = begun(tmp_path / "run", "removed")
    workers.run([folder], 1)
    assert not folder.exists


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_what_the_other_rank_says_of_one_that_a_signal_has_ended_is_an_echo(tmp_path, number):
    folder = begun(tmp_path / "run", "end")
    echo = {"kind": "RuntimeError", "message": "gloo: Connection closed by peer", "problems": [], "rank": 0}
    write_json(worker.error_file(folder, 0), echo)
    ended: SimpleQueue = SimpleQueue()
    ended_by = workers.Worker([folder], 2, [], lambda: -number, ended)
    assert ended.get(timeout=10) is ended_by
    ended_by.settle()
    record = folder.record
    assert record["status"] == ("running" if number == signal.SIGKILL else "failed"), "a crash is a mistake, whoever's it is"
    assert f"ended by {number.name}" in record["error"]["message"]
    assert ("closed by peer" in record["error"]["message"]) == (number != signal.SIGKILL)


def test_what_was_half_written_by_one_that_was_killed_is_removed(stage, tmp_path):
    folder = begun(tmp_path / "run", "end")
    (folder / ".next.ckpt.x1y2.part").write_bytes(b"0" * 100)
    workers.run([folder], 1)
    assert folder.record["status"] == "done"
    assert not list(folder.path.glob(".*.part"))


def test_a_run_that_a_gpus_memory_is_too_small_for_goes_on_with_smaller_micro_batches(stage, tmp_path):
    record = {"error": None, "batch": {"global": 8, "devices": 1, "micro": 8, "accumulate": 1}}
    for name, enough, micro in (("some", 2, 8), ("none", 9, 1)):
        folder = RunFolder(tmp_path / name)
        folder.begin({"act": "memory", "enough": enough}, {**record, "run_id": name, "batch": {**record["batch"], "micro": micro}})
        workers.run([folder], 1)
    some, none = (RunFolder(tmp_path / name).record for name in ("some", "none"))
    assert (some["status"], some["halved"], some["error"]) == ("done", 2, None)
    assert (none["status"], none["error"]["kind"]) == ("failed", "OutOfMemoryError"), "one picture at a time is the least"


@pytest.mark.parametrize(("enough", "status", "halved"), [(2, "done", 2), (9, "failed", 2)])
def test_a_stack_that_a_gpus_memory_is_too_small_for_goes_on_in_parts_without_those_that_have_ended(
    stage, tmp_path, enough, status, halved
):
    folders = [begun(tmp_path / str(number), "memory", enough=enough) for number in range(4)]
    folders[3].finish()
    workers.run(folders, 1)
    assert [(folder.record["status"], folder.record.get("halved", 0)) for folder in folders] == [(status, halved)] * 3 + [("done", 0)]


def test_a_run_that_fewer_devices_took_part_in_is_none(stage, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.begin({"act": "end"}, {"run_id": "run", "error": None, "resolved": {"world": 2}})
    workers.run([folder], 1)
    assert folder.record["status"] == "failed"
    assert folder.record["error"]["message"] == "1 devices were asked for, 2 took part"


def test_a_groups_error_is_that_of_all_whose_end_was_not_written(stage, tmp_path):
    folders = [begun(tmp_path / name, "half") for name in ("first", "done", "failed", "last")]
    workers.run(folders, 1)
    assert [folder.record["status"] for folder in folders] == ["failed", "done", "failed", "failed"]
    errors = [folder.record["error"] and folder.record["error"]["message"] for folder in folders]
    assert errors == ["all the others", None, "one head diverged", "all the others"]
    assert "RuntimeError: all the others" in (folders[0] / LOG).read_text()
    for folder in folders[1:]:
        assert str(folders[0] / LOG) in (folder / LOG).read_text()
    assert not list(tmp_path.glob("*/.error*"))


def test_a_group_whose_member_another_process_runs_does_not_start(stage, tmp_path):
    folders = [begun(tmp_path / name, "end") for name in ("free", "held")]
    with folders[1].hold():
        workers.run(folders, 1)
    assert "another process is running this run" in folders[0].record["error"]["message"]
    assert not (folders[0] / "told").exists()


CONTROLLER = """
import multiprocessing, signal, sys
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace
import test_warm
from regraft.launchers import workers
from regraft.record import RunFolder

signal.signal(signal.SIGINT, signal.default_int_handler)  # who begins tests in the background may have it ignored
with open("begun", "a") as file:  # no guard: whoever imports this program runs it
    file.write("once\\n")
multiprocessing.get_context("forkserver").set_forkserver_preload(["regraft.worker"])  # not the frameworks, for speed
forkserver.ensure_running()
workers.worker = SimpleNamespace(forked=test_warm.acting, end_with_parent=None, STOPPED="Stopped", TOLD=75)
workers.PATIENCE = 2
workers.run([RunFolder("run")], 1)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_no_orphan_outlives_the_controller(tmp_path, number):
    folder = begun(tmp_path / "run", "linger")
    (tmp_path / "controller.py").write_text(CONTROLLER)
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    controller = subprocess.Popen(
        [sys.executable, "controller.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE, text=True
    )
    until((folder / "told").exists)
    until(lambda: "said" in (folder / LOG).read_text())
    controller.send_signal(number)
    stderr = controller.communicate(timeout=30)[1]  # ends with the last process that holds the other end: the server's
    facts = told(folder)
    for who in ("pid", "child", "server"):
        until(lambda who=who: gone(facts[who]), 20)
    assert (folder / "terminated").exists(), "it was told before it was killed"
    assert folder.record["status"] == "running"
    folder.hold().release()
    assert (tmp_path / "begun").read_text() == "once\n"
    assert "leaked" not in stderr
    assert ("KeyboardInterrupt" in stderr) == (number != signal.SIGKILL)


def test_a_word_to_stop_that_comes_while_a_worker_starts_reaches_it(stage, tmp_path, monkeypatch):
    folder, start = begun(tmp_path / "run", "linger"), workers.start

    def interrupted(*how):
        started = start(*how)
        until((folder / "told").exists)
        until(lambda: "said" in (folder / LOG).read_text())
        signal.raise_signal(signal.SIGINT)
        return started

    monkeypatch.setattr(workers, "start", interrupted)
    monkeypatch.setattr(workers, "PATIENCE", 2)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            workers.run([folder], 1)
    finally:
        signal.signal(signal.SIGINT, before)
    until(lambda: gone(told(folder)["pid"]), 20)
    assert (folder / "terminated").exists()
    assert folder.record["status"] == "running"


@pytest.mark.parametrize(
    ("breakage", "words"),
    [("raise RuntimeError('a broken installation')", "a broken installation"), ("import os; os._exit(3)", "status 3")],
)
def test_frameworks_that_can_not_be_loaded_are_an_error_and_no_hang(tmp_path, breakage, words):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torch.py").write_text(breakage)
    folder = begun(tmp_path / "run", "end")
    command = "from regraft.launchers import workers; from regraft.record import RunFolder; workers.run([RunFolder('run')], 1, show=True)"
    done = subprocess.run(
        [sys.executable, "-c", command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "broken")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert folder.record["status"] == "failed"
    assert words in folder.record["error"]["message"]
    assert "Traceback" not in done.stderr


def test_a_server_that_is_not_needed_any_more_ends_while_it_loads(tmp_path):
    """The command comes back at once, though its output is a pipe that the server holds too."""
    (tmp_path / "torch.py").write_text("import time; open('loading', 'w').close(); time.sleep(60)")
    command = "import time; from pathlib import Path; from regraft.launchers import workers; workers.warm()\n"
    command += "while not Path('loading').exists(): time.sleep(0.02)"
    surroundings = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", command], cwd=tmp_path, env=surroundings, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_worker_shows_what_it_says_where_it_is_asked_to(tmp_path):
    begun(tmp_path / "run", "end")
    (tmp_path / "controller.py").write_text(CONTROLLER.replace(", 1)", ", 1, show=True)"))
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    surroundings = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "controller.py"], cwd=tmp_path, env=surroundings, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["printed", "said"]
    assert done.stderr == ""
