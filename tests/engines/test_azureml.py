"""Azure ML without Azure: its own library takes the job files, and what they carry runs where nothing of this folder is seen."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from PIL import Image

from engines import commands
from engines.commands import complete, regraft
from regraft import config, dispatch, sweep
from regraft.errors import UserError
from regraft.launchers import azureml
from regraft.record import RunFolder

ml = pytest.importorskip("azure.ai.ml")
pytestmark = pytest.mark.engines

TINY = ["model=mlp", "model.weights=none", "freeze=none", "trainer.max_epochs=2", "plots=false"]
WORDS = ["train", "-m", "dataset=digits", *TINY, "launcher=azureml", "hydra.sweep.dir=sweep"]


def folders(root: Path) -> list[RunFolder]:
    return [folder for folder in commands.folders(root) if azureml.FOLDER not in folder.path.parts]  # there are copies


def job_files(root: Path) -> list[Path]:
    return sorted(root.glob(".azureml/*/job.yaml"))


def test_there_is_a_job_for_each_machine_and_azures_library_takes_it(tmp_path):
    machines = "hardware=azure_nc24ads_a100,azure_nc96ads_a100,azure_nc12"
    done = regraft(*WORDS, machines, "seed=0,1", "launcher.dry_run=true", at=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "retired in August 2023" in done.stdout, "a K80's machine is told of"
    assert "experimental" not in done.stderr
    shapes = {}
    for path in job_files(tmp_path / "sweep"):
        job = ml.load_job(path)
        assert job._validate().passed
        plan = json.loads((path.parent / job.inputs["runs"].path / "plan.json").read_text())
        shapes[job.resources.instance_type] = [group["devices"] for group in plan["groups"]]
        assert (path.parent / job.code / "regraft" / "worker.py").is_file()
    assert shapes == {"Standard_NC12": [2, 2], "Standard_NC24ads_A100_v4": [1, 1], "Standard_NC96ads_A100_v4": [4, 4]}
    assert {folder.job["id"] for folder in folders(tmp_path / "sweep")} == {"dry_run"}
    assert {folder.record["status"] for folder in folders(tmp_path / "sweep")} == {"running"}


def test_what_a_job_carries_runs_elsewhere_and_comes_back_done(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    pictures = here / "pets"
    for number in range(24):
        path = pictures / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (10 * number, 0, 0)).save(path)
    data = ["dataset=folder", f"dataset.path={pictures}", "data.size=16", "data.batch_size=4"]
    words = ["train", "-m", *data, *TINY, "hardware=cpu", "hardware.devices=1,2", "launcher=azureml", "hydra.sweep.dir=sweep"]
    words += ["launcher.compute=cluster", f"launcher.data={{{pictures}:azureml://datastores/store/paths/pets}}"]
    dry = regraft(*words, "launcher.dry_run=true", at=here)
    assert dry.returncode == 0, dry.stdout + dry.stderr
    jobs = [yaml.safe_load(path.read_text()) for path in job_files(here / "sweep")]
    assert [job["compute"] for job in jobs] == ["azureml:cluster"] * 2
    shutil.copytree(here / "sweep" / ".azureml", there / "job")
    shutil.move(pictures, there / "mounted")  # under another name, as a datastore is
    for path, job in zip(job_files(here / "sweep"), jobs, strict=True):
        given = there / "job" / path.parent.name / job["inputs"]["runs"]["path"]
        where = {"inputs.runs": given, "outputs.runs": there / "out", "inputs.data_0": there / "mounted"}
        command = job["command"]
        for name, place in where.items():
            command = command.replace(f"${{{{{name}}}}}", shlex.quote(str(place)))
        command = command.replace("python", shlex.quote(sys.executable), 1)
        ran = subprocess.run(["sh", "-c", command], cwd=there / "job" / "code", capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stdout + ran.stderr
    assert [complete(folder) for folder in folders(there / "out")] == [True, True]
    assert {folder.record["resolved"]["world"] for folder in folders(there / "out")} == {1, 2}
    assert [folder.record["status"] for folder in folders(here / "sweep")] == ["running"] * 2, "nothing has come back yet"
    pictures.unlink()  # the link that the node has made
    shutil.move(there / "mounted", pictures)
    shutil.copytree(there / "out", here / "sweep", dirs_exist_ok=True)
    again = regraft(*words, at=here)  # submits nothing, for which it would need credentials
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("is done already") == 2
    [one, _] = folders(here / "sweep")
    assert regraft("evaluate", str(one.path), at=here).returncode == 0


def test_a_job_that_starts_once_more_goes_on_with_what_it_has_copied_out(tmp_path):
    dry = regraft(*WORDS, "hardware=cpu", "launcher.compute=cluster", "launcher.dry_run=true", "seed=0,1", at=tmp_path)
    assert dry.returncode == 0, dry.stdout + dry.stderr
    [path] = job_files(tmp_path / "sweep")
    command = [sys.executable, "-m", "regraft.launchers.node", str(path.parent / "runs"), str(tmp_path / "out")]
    for _ in range(2):
        assert subprocess.run(command, capture_output=True, timeout=300).returncode == 0
        written = {folder.path.name: (folder / "metrics.csv").read_bytes() for folder in folders(tmp_path / "out")}
    assert len(written) == 2
    shutil.rmtree(tmp_path / "out" / min(written))
    before = {folder.path.name: folder.record["times"] for folder in folders(tmp_path / "out")}
    assert subprocess.run(command, capture_output=True, timeout=300).returncode == 0
    after = {folder.path.name: folder.record["times"] for folder in folders(tmp_path / "out")}
    assert {name: after[name] for name in before} == before, "what was done is not run again"
    assert set(after) == set(written)


class Azure:
    """What is asked of MLClient."""

    def __init__(self) -> None:
        self.sent, self.states = [], {}
        self.jobs = SimpleNamespace(create_or_update=self._create, get=lambda name: SimpleNamespace(status=self.states[name]))

    def _create(self, job):
        assert job._validate().passed
        self.sent.append(job)
        name = f"job_{len(self.sent)}"
        self.states[name] = "Queued"
        return SimpleNamespace(name=name, studio_url=f"https://ml.azure.com/runs/{name}")


def test_what_was_submitted_is_not_submitted_again_until_it_has_failed(tmp_path, monkeypatch, capsys):
    azure = Azure()
    monkeypatch.setattr(azureml.Launcher, "_client", lambda self: azure)
    words = [*WORDS[2:-1], f"hydra.sweep.dir={tmp_path}", "seed=0,1", "hardware=azure_nc24ads_a100,azure_nc48ads_a100"]

    def command():
        planned = sweep.plan(config.Composer().jobs(words, multirun=True))
        dispatch.run(planned, "a test", lambda what: None)
        return capsys.readouterr().out

    first = command()
    assert [job.resources.instance_type for job in azure.sent] == ["Standard_NC24ads_A100_v4", "Standard_NC48ads_A100_v4"]
    assert "https://ml.azure.com/runs/job_1" in first
    assert "az ml job download --name job_2" in first
    assert sorted(folder.job["id"] for folder in folders(tmp_path)) == ["job_1", "job_1", "job_2", "job_2"]
    again = command()
    assert len(azure.sent) == 2
    assert "job_1 has been handed on before" in again
    azure.states |= {"job_1": "Completed", "job_2": "Failed"}
    command()
    assert [job.resources.instance_type for job in azure.sent[2:]] == ["Standard_NC48ads_A100_v4"]
    assert sorted(folder.job["id"] for folder in folders(tmp_path)) == ["job_1", "job_1", "job_3", "job_3"]


def test_azures_refusal_is_told_in_its_own_words(tmp_path, monkeypatch):
    from azure.core.exceptions import HttpResponseError

    azure = Azure()

    def refuse(job):
        raise HttpResponseError("The specified compute 'none' was not found")

    azure.jobs.create_or_update = refuse
    monkeypatch.setattr(azureml.Launcher, "_client", lambda self: azure)
    words = [*WORDS[2:-1], f"hydra.sweep.dir={tmp_path}", "hardware=cpu", "launcher.compute=none"]
    with pytest.raises(UserError, match="The specified compute 'none' was not found"):
        dispatch.run(sweep.plan(config.Composer().jobs(words, multirun=True)), "a test", lambda what: None)
    [folder] = folders(tmp_path)
    assert "not handed on" in folder.record["error"]["message"]
    folder.hold("controller").release()  # nobody holds it any more


def test_who_is_not_logged_in_is_told_what_would_work(tmp_path):
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith(("AZURE", "MSI", "IDENTITY"))}
    surroundings |= {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "AZURE_TOKEN_CREDENTIALS": "dev"}
    told = regraft(*WORDS, "hardware=azure_nc24ads_a100", at=tmp_path, env=surroundings)
    assert told.returncode == 2, told.stdout + told.stderr
    assert "nobody is logged in to Azure" in told.stderr
    assert "launcher.dry_run=true" in told.stderr
    assert "Traceback" not in told.stderr
    assert folders(tmp_path) == []
