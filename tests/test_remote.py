"""Launchers whose workers run elsewhere: what is refused before anything is begun, and what comes back when something is lost."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from regraft import config, launchers
from regraft.errors import UserError
from regraft.launchers import azureml, node, ray
from regraft.record import RunFolder

TINY = ["dataset=digits", "model=mlp", "model.weights=none", "freeze=none"]
AZURE = ["launcher=azureml", "hardware=azure_nc24ads_a100"]


def problems(*words: str) -> dict[str, str]:
    """What is wrong with a single run: key -> remedy."""
    with pytest.raises(UserError) as raised:
        config.Composer().jobs([*TINY, *words], multirun=False)
    return {problem.key: problem.remedy for problem in raised.value.problems}


def settings(*words: str):
    [job] = config.Composer().jobs([*TINY, *words], multirun=False)
    return job.settings


@pytest.fixture
def installed(monkeypatch):
    """As if every launcher's package were there."""
    monkeypatch.setattr(launchers, "_installed", lambda module: True)


@pytest.mark.parametrize(
    ("words", "module", "extra"), [(["launcher=ray"], "ray", "regraft[ray]"), (AZURE, "azure.ai.ml", "regraft[azure]")]
)
def test_a_missing_package_is_told_with_its_extra(monkeypatch, words, module, extra):
    for name in (module, module.partition(".")[0]):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
        monkeypatch.setattr(launchers, "find_spec", lambda name: None)
    remedy = problems(*words)["launcher.name"]
    assert f"pip install '{extra}'" in remedy
    assert module in remedy


def test_a_package_whose_parent_is_missing_is_missing():
    assert not launchers._installed("nobody_has_this.inside")


def test_gpus_are_looked_for_where_the_runs_go(installed, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "no GPU is visible here" in problems("launcher=ray", "hardware=gpu", "hardware.devices=2")["hardware.name"]
    assert settings("launcher=ray", "launcher.address=auto", "hardware=gpu", "hardware.devices=2").hardware.count() == 2
    assert settings(*AZURE).hardware.accelerator() == "gpu"


def test_azures_machine_must_be_named(installed):
    assert "hardware=azure_nc24ads_a100" in problems("launcher=azureml", "hardware=cpu")["launcher.compute"]
    assert settings("launcher=azureml", "hardware=cpu", "launcher.compute=cluster").launcher.compute == "cluster"


def test_a_search_does_not_go_where_nobody_waits(installed):
    found = problems(*AZURE, "sweeper=optuna")
    assert "nobody here waits" in found["sweeper"]


def test_what_azures_machines_do_not_see_must_be_mapped(installed, tmp_path):
    folder, weights = tmp_path / "pets", tmp_path / "weights.pth"
    for name in ("cats", "dogs"):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / name / "one.png")
    weights.write_bytes(b"nothing")
    words = ["dataset=folder", f"dataset.path={folder}", f"model.weights={weights}", *AZURE]
    found = problems(*words)
    assert set(found) == {"dataset.path", "model.weights"}
    remedy = found["dataset.path"]
    mapping = remedy[remedy.index("launcher.data") : remedy.rindex("'")].replace("...", "store/paths/all")
    assert set(problems(*words, mapping)) == {"model.weights"}, "the override that is proposed is one"
    assert settings(*words, mapping.replace("/pets", ""))  # the folder that both lie in


def test_each_path_of_a_list_must_be_mapped_and_words_need_not(installed, tmp_path):
    (tmp_path / "other" / "dog").mkdir(parents=True)
    found = problems(f"dataset.shift=[noise,jpeg:3,{tmp_path / 'other'}]", *AZURE)
    assert set(found) == {"dataset.shift"}
    assert settings("dataset.shift=[noise,jpeg:3]", *AZURE)


@pytest.mark.parametrize(
    "words", [["launcher=azureml", "launcher.compute=a"], ["launcher=ray", "launcher.address=auto"], ["launcher=local"]]
)
def test_no_launcher_decides_what_a_run_is(installed, words):
    known = settings("hardware=cpu").run_id("data", "weights")
    assert settings("hardware=cpu", *words).run_id("data", "weights") == known


class Group:
    """What a launcher asks of a group."""

    def __init__(self, devices: int, gpus: bool) -> None:
        self.devices, self.gpus = devices, gpus


def needs(group: Group, *words: str) -> dict[str, float]:
    nodes = [{"CPU": 16.0, "GPU": 4.0}, {"CPU": 64.0, "GPU": 8.0}, {"CPU": 32.0}]
    return ray.Launcher(settings("launcher=ray", *words).launcher)._need(group, nodes)


def test_ray_is_asked_for_what_a_groups_devices_need(installed):
    assert needs(Group(2, False)) == {"CPU": 2, "GPU": 0}
    assert needs(Group(2, True)) == {"CPU": 8, "GPU": 2}, "its part of the node with the fewest cores for each GPU"
    assert needs(Group(1, True), "launcher.cpus_per_job=3", "launcher.resources={A100:1,big:0.5}") == {
        "CPU": 3,
        "GPU": 1,
        "A100": 1,
        "big": 0.5,
    }


def test_what_no_node_of_ray_has_is_refused(installed):
    nodes = [{"CPU": 8.0, "GPU": 1.0}, {"CPU": 64.0}]
    ray._fits(Group(1, True), {"CPU": 8, "GPU": 1}, nodes)
    with pytest.raises(UserError, match=r"takes 9 CPU, 1 GPU, and no node has that \(there are 64 CPU; 8 CPU, 1 GPU\)"):
        ray._fits(Group(1, True), {"CPU": 9, "GPU": 1}, nodes)


class Tasks:
    """The module ray, as far as the end of a task goes."""

    def __init__(self, error: Exception | None) -> None:
        self.exceptions, self.error = pytest.importorskip("ray").exceptions, error

    def get(self, task, timeout):
        if self.error:
            raise self.error

    def cancel(self, task, force):
        pass


@pytest.fixture
def begun(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.begin({}, {"run_id": "x", "error": None})
    return folder


def test_a_lost_worker_leaves_an_interrupted_run(begun):
    exceptions = Tasks(None).exceptions
    ray._settle(Tasks(exceptions.WorkerCrashedError()), None, [begun])
    assert begun.record["status"] == "running"
    assert "the worker was lost" in begun.record["error"]["message"]


def test_what_a_node_can_not_start_has_failed_with_its_own_words(begun):
    exceptions = Tasks(None).exceptions
    cause = ModuleNotFoundError("No module named 'regraft'")
    ray._settle(Tasks(exceptions.RayTaskError("work", "a traceback", cause)), None, [begun])
    assert begun.record["status"] == "failed"
    assert begun.record["error"]["kind"] == "ModuleNotFoundError"
    assert begun.record["error"]["message"] == str(cause)


@pytest.mark.parametrize("told", [{"status": "done"}, {"error": {"kind": "Stopped", "message": "told to stop", "rank": 0}}])
def test_what_a_worker_has_written_itself_stays(begun, told):
    begun.update(**told)
    before = begun.record
    ray._settle(Tasks(Tasks(None).exceptions.WorkerCrashedError()), None, [begun])
    assert begun.record == before


def test_a_worker_that_still_has_its_run_is_not_written_over(begun, monkeypatch):
    monkeypatch.setattr(ray, "GRACE", 0.2)
    held = begun.hold()
    ray._settle(Tasks(Tasks(None).exceptions.WorkerCrashedError()), None, [begun])
    assert begun.record["error"] is None
    held.release()


def test_a_copied_run_folder_has_no_locks_and_its_record_last(begun, tmp_path, monkeypatch):
    (begun / "wandb" / "deep").mkdir(parents=True)
    for name in ("last.ckpt", "wandb/deep/events", "zebra.txt"):
        (begun / name).write_bytes(name.encode())
    begun.hold().release()
    copied, plain = [], node.shutil.copyfile
    monkeypatch.setattr(node.shutil, "copyfile", lambda source, target: copied.append(source.name) or plain(source, target))
    node.copy(begun.path, tmp_path / "copy")
    assert copied[-1] == "record.json"
    assert sorted(copied) == ["config.yaml", "events", "last.ckpt", "record.json", "zebra.txt"]
    assert (tmp_path / "copy/wandb/deep/events").read_bytes() == b"wandb/deep/events"


def test_data_is_found_where_the_command_has_it(tmp_path):
    mount, path = tmp_path / "mnt", tmp_path / "home" / "me" / "pets"
    (mount / "cats").mkdir(parents=True)
    node._place(path, mount)
    assert (path / "cats").is_dir()
    node._place(path, tmp_path / "elsewhere")  # a job that starts once more
    assert (path / "cats").is_dir()


def test_a_job_installs_what_runs_need_and_nothing_of_tests(installed):
    found = list(azureml._needed([settings(*AZURE)]))
    assert any(line.startswith("torch>=") for line in found)
    assert any(line.startswith("efficientnet-lite1") for line in found), "weights that model.variant=1 takes"
    assert not any(line.startswith(("pytest", "ray", "submitit", "azure", "regraft")) for line in found)


@pytest.mark.parametrize("refusals", [2, 3])
def test_a_ray_cluster_that_is_too_busy_is_asked_three_times(monkeypatch, refusals):
    asked = []

    def init(address, **how):
        asked.append(address)
        if len(asked) <= refusals:
            raise ConnectionAbortedError("Initialization failure from server:\nbusy")

    library = SimpleNamespace(init=init, shutdown=lambda: None, exceptions=SimpleNamespace(RayError=KeyError))
    monkeypatch.setitem(sys.modules, "ray", library)
    launcher = ray.Launcher(SimpleNamespace(address="ray://here:1"))
    if refusals < 3:
        assert launcher._connected() is library
    else:
        with pytest.raises(UserError, match="Ray says: Initialization failure"):
            launcher._connected()
    assert asked == ["ray://here:1"] * 3
