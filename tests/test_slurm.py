"""The Slurm launcher before commands that only act as Slurm's: what is submitted, what is refused, and what becomes of jobs."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from regraft import dispatch, sweep
from regraft.config import Composer
from regraft.errors import UserError
from regraft.launchers import GROUP, slurm
from regraft.record import RunFolder
from regraft.registry import parse

pytest.importorskip("submitit")

VALUES = yaml.safe_load((Path(__file__).parents[1] / "conf" / "launcher" / "slurm.yaml").read_text())
RUNS = ["dataset=digits", "model=mlp", "model.weights=none", "freeze=none", "hardware=cpu", "launcher=slurm"]
SBATCH = """#!{python}
import re, sys
from pathlib import Path
here = Path({here!r})
script = Path(sys.argv[1]).read_text()
if refusal := (here / "refusal").read_text():
    sys.exit(refusal)
number = len(list(here.glob("script-*")))
(here / f"script-{{number}}").write_text(script)
array = re.search("--array=0-([0-9]+)", script)
jobs = [f"{{number}}_{{each}}" for each in range(int(array[1]) + 1)] if array else [str(number)]
with (here / "queue").open("a") as queue:
    queue.writelines(f"{{job}}|PENDING|Priority\\n" for job in jobs)
print(f"Submitted batch job {{number}}")
"""
SCANCEL = """#!{python}
import sys
from pathlib import Path
queue = Path({here!r}) / "queue"
lines = [line.split("|") for line in queue.read_text().splitlines()]
queue.write_text("".join(f"{{job}}|{{'CANCELLED' if job in sys.argv[1:] else state}}|{{why}}\\n" for job, state, why in lines))
"""
SQUEUE = "#!/bin/sh\ncat {here}/queue\n"


class Cluster:
    """What the commands are asked, and what they answer."""

    def __init__(self, here: Path) -> None:
        self.here = here
        (here / "queue").write_text("")
        self.refuses("")
        for name, text in {"sbatch": SBATCH, "scancel": SCANCEL, "squeue": SQUEUE, "srun": "#!/bin/sh\n", "sacct": "#!/bin/sh\n"}.items():
            (here / name).write_text(text.format(python=sys.executable, here=str(here)) if "{" in text else text)
            (here / name).chmod(0o755)

    def refuses(self, words: str) -> None:
        (self.here / "refusal").write_text(words)

    def becomes(self, **states: str) -> None:
        """What squeue says of jobs: `_0_1="FAILED|NonZeroExitCode"` is job 0_1."""
        lines = [line.partition("|") for line in (self.here / "queue").read_text().splitlines()]
        told = {name.removeprefix("_"): said for name, said in states.items()}
        (self.here / "queue").write_text("".join(f"{job}|{told.get(job, said)}\n" for job, _, said in lines))

    @property
    def scripts(self) -> list[dict[str, str]]:
        """sbatch's options in what was submitted, and under "" the lines below them."""
        found = []
        for path in sorted(self.here.glob("script-*")):
            options, lines = re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", path.read_text(), re.MULTILINE), path.read_text().splitlines()
            found.append({**dict(options), "": "\n".join(line for line in lines if line and not line.startswith("#"))})
        return found


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.setattr(slurm, "GRACE", 0)
    monkeypatch.setattr(slurm.time, "sleep", lambda seconds: None)
    return Cluster(tmp_path / "bin")


def planned(tmp_path: Path, *words: str) -> list[sweep.Planned]:
    return sweep.plan(Composer().jobs([*RUNS, *words, f"hydra.sweep.dir={tmp_path}/sweep"], multirun=True))


def run(tmp_path: Path, *words: str) -> tuple[list[RunFolder], str]:
    """A sweep's folders, in its order, and what was said."""
    told: list[str] = []
    folders = dispatch.run(planned(tmp_path, *words), "a test", lambda what: told.append(str(what)))
    return folders, "\n".join(told)


def refused(*words: str) -> dict[str, str]:
    with pytest.raises(UserError) as caught:
        Composer().jobs([*RUNS, *words], multirun=True)
    return {problem.key: problem.remedy for problem in caught.value.problems}


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch, cluster: Cluster) -> Any:
    """`ends(**states)`: before squeue is asked the first time, jobs have come to this."""

    def at(**states: str) -> None:
        queue = slurm._queue

        def later() -> Any:
            cluster.becomes(**states)
            return queue()

        monkeypatch.setattr(slurm, "_queue", later)

    return at


def test_each_shape_is_one_array_that_asks_for_what_its_runs_need(tmp_path: Path, cluster: Cluster, ends: Any) -> None:
    ends(_0_0="COMPLETED|None", _0_1="COMPLETED|None", _1_0="COMPLETED|None", _1_1="COMPLETED|None")
    words = ["launcher.partition=long", "launcher.mem_gb=1.5", "launcher.time_min=90", "launcher.array_parallelism=1"]
    words += ["launcher.setup=['module load x']", "launcher.additional={constraint:a100,exclusive:true}"]
    folders, _ = run(tmp_path, "hardware.devices=1,2", "seed=0,1", *words)
    one, two = cluster.scripts
    assert (one["cpus-per-task"], two["cpus-per-task"]) == ("4", "8")
    for script in (one, two):
        assert (script["array"], script["partition"], script["mem"], script["time"]) == ("0-1%1", "long", "1536M", "90")
        assert (script["nodes"], script["ntasks-per-node"], script["signal"]) == ("1", "1", "B:USR2@90")
        assert {"requeue": "", "exclusive": "", "constraint": "a100"}.items() <= script.items()
        assert not {"account", "qos", "gpus-per-node", "wckey"} & script.keys(), "what nobody has asked for is the cluster's own choice"
        setup, _, command = script[""].splitlines()
        assert setup == "module load x"
        assert command == f"exec {sys.executable} -u -m submitit.core._submit {tmp_path}/sweep/.slurm"
    ids = {folder.config["hardware"]["devices"]: folder.job["id"] for folder in folders if folder.job}
    assert ids == {1: "0_1", 2: "1_1"}


def test_gpus_are_counted_on_the_node(tmp_path: Path, cluster: Cluster, ends: Any) -> None:
    ends(_0="COMPLETED|None", _1="COMPLETED|None")
    run(tmp_path, "hardware=gpu", "hardware.devices=1,2")
    assert [script["gpus-per-node"] for script in cluster.scripts] == ["1", "2"]
    assert list(refused("hardware=gpu", "hardware.devices=auto")) == ["hardware.devices"]
    assert "hardware=gpu" in refused("hardware=auto")["hardware.name"]
    assert refused("hardware=gpu", "hardware.devices=0").keys() == {"hardware.devices"}
    assert refused("hardware=gpu", "hardware.devices=1", "launcher=local").keys() == {"hardware.name"}, "here there is none"


def test_heads_that_train_as_one_batch_are_one_job(tmp_path: Path, cluster: Cluster, ends: Any) -> None:
    ends(_0="COMPLETED|None")
    folders, _ = run(tmp_path, "freeze=backbone", "optimizer.lr=0.1,0.2,0.3")
    assert {folder.job["id"] for folder in folders if folder.job} == {"0"}
    assert len(cluster.scripts) == len({folder.record["group"]["id"] for folder in folders}) == 1


def test_a_lost_job_is_told_with_slurms_words_and_the_others_are_waited_for(tmp_path: Path, cluster: Cluster, ends: Any) -> None:
    ends(_0_0="NODE_FAIL|None", _0_1="FAILED|NonZeroExitCode", _0_2="OUT_OF_MEMORY|OutOfMemory")
    folders, told = run(tmp_path, "seed=0,1,2")
    messages = [folder.record["error"]["message"] for folder in folders]
    assert messages == [
        f"Slurm says of job 0_{number}: {said}"
        for number, said in enumerate(["NODE_FAIL", "FAILED (NonZeroExitCode)", "OUT_OF_MEMORY (OutOfMemory)"])
    ]
    assert {folder.record["status"] for folder in folders} == {"running"}
    assert told.count("was interrupted, and goes on when the command is given again: Slurm says") == 3


def test_a_folder_that_somebody_removes_takes_no_other_job_with_it(
    tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, asked = slurm._queue, []

    def later() -> Any:
        asked.append(1)
        for folder in map(RunFolder, (tmp_path / "sweep").glob("[!.]*/")):
            if folder.job and folder.job["id"] == "0_0":
                shutil.rmtree(folder.path)
            elif folder.job and len(asked) == 3:
                folder.update(status="failed", error={"kind": "ValueError", "message": "no"})
        if len(asked) == 3:
            cluster.becomes(_0_0="COMPLETED|None", _0_1="COMPLETED|None")
        elif len(asked) == 1:
            cluster.becomes(_0_0="COMPLETED|None", _0_1="RUNNING|None")
        return queue()

    monkeypatch.setattr(slurm, "_queue", later)
    [folder], told = run(tmp_path, "seed=0,1")
    assert folder.record["status"] == "failed"
    assert "was removed while it ran" in told
    assert "CANCELLED" not in (cluster.here / "queue").read_text()


def test_a_job_that_slurm_has_forgotten_is_not_waited_for(tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without accounting it leaves no word: it is gone from the queue."""
    monkeypatch.setattr(slurm, "_queue", dict)
    folders, _ = run(tmp_path, "seed=0")
    assert folders[0].record["error"]["message"] == "Slurm says of job 0: it is gone"


def test_what_can_never_begin_is_given_up(tmp_path: Path, cluster: Cluster, ends: Any) -> None:
    ends(_0="PENDING|PartitionTimeLimit")
    folders, _ = run(tmp_path, "seed=0")
    assert folders[0].record["error"]["message"] == "Slurm says of job 0: PENDING (PartitionTimeLimit)"
    assert (cluster.here / "queue").read_text() == "0|CANCELLED|PartitionTimeLimit\n"


def test_what_waits_is_cancelled_after_a_failure_where_that_is_asked_for(
    tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = slurm._queue

    def failed() -> Any:
        for folder in map(RunFolder, (tmp_path / "sweep").glob("[!.]*/")):
            if folder.job and folder.job["id"] == "0_0":
                folder.update(status="failed", error={"kind": "ValueError", "message": "no"})
                cluster.becomes(_0_0="COMPLETED|None")
        return queue()

    monkeypatch.setattr(slurm, "_queue", failed)
    folders, _ = run(tmp_path, "seed=0,1,2", "sweep.on_error=stop")
    assert [folder.record["status"] for folder in folders] == ["failed", "running", "running"]
    assert (cluster.here / "queue").read_text() == "0_0|COMPLETED|None\n0_1|CANCELLED|Priority\n0_2|CANCELLED|Priority\n"


def test_the_same_command_waits_for_jobs_that_still_run_and_submits_the_rest(tmp_path: Path, cluster: Cluster, ends: Any) -> None:
    runs = planned(tmp_path, "seed=0,1")
    for each, job in zip(runs, ("77_0", "77_1"), strict=True):
        sweep.begin(each, "a test", {})
        (each.folder / "job.json").write_text(json.dumps({"launcher": "slurm", "id": job}))
    (cluster.here / "queue").write_text("77_0|RUNNING|None\n77_1|FAILED|NonZeroExitCode\n")
    assert slurm.Launcher(runs[0].job.settings.launcher).busy(["77_0", "77_1", "78"]) == {"77_0"}  # type: ignore[arg-type]
    held = runs[0].folder.hold()  # its worker's
    told = []

    def say(what: object) -> None:
        told.append(str(what))
        if "goes on as job 77_0" in str(what):
            ends(_77_0="COMPLETED|None", _0="COMPLETED|None")
            runs[0].folder.finish(metrics={"val/accuracy": 1.0}, times={"total": 1.0})

    dispatch.run(runs, "a test", say)
    held.release()
    assert len(cluster.scripts) == 1
    assert runs[0].folder.job == {"launcher": "slurm", "id": "77_0"}
    assert runs[1].folder.job == {"launcher": "slurm", "id": "0"}
    assert "done in 1.0 s" in "\n".join(told)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ("sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified", "launcher.account"),
        ("sbatch: error: Batch job submission failed: Invalid qos specification", "launcher.qos"),
        (
            "sbatch: error: Batch job submission failed: Requested time limit is invalid (missing or exceeds some limit)",
            "launcher.time_min",
        ),
        ("sbatch: error: CPU count per node can not be satisfied", "launcher.cpus_per_device"),
        ("sbatch: error: Invalid generic resource (gres) specification", "hardware.devices"),
        ("sbatch: error: the site's own words", "launcher"),
    ],
)
def test_a_refusal_is_told_with_its_key_and_nothing_is_left_of_it(tmp_path: Path, cluster: Cluster, words: str, key: str) -> None:
    cluster.refuses(words)
    with pytest.raises(UserError) as caught:
        run(tmp_path, "seed=0,1")
    [problem] = caught.value.problems
    assert problem.key == key
    assert words.rpartition(": ")[2] in problem.remedy
    cluster.refuses("")
    for each in planned(tmp_path, "seed=0,1"):
        assert each.left
        assert each.folder.job is None
        each.folder.hold("controller").release()


def test_what_is_missing_is_told_before_anything_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no sbatch" in refused()["launcher.name"]
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert "pip install 'regraft[slurm]'" in refused()["launcher.name"]


def test_a_job_whose_runs_were_taken_by_another_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "WORD", 0)
    folders = [RunFolder(tmp_path / name) for name in "abc"]
    for folder, job, status in zip(folders, ("5_0", "6", "5_0"), ("running", "running", "done"), strict=True):
        folder.begin({}, {"run_id": folder.path.name})
        folder.update(status=status)
        (folder / "job.json").write_text(json.dumps({"launcher": "slurm", "id": job}))
    task = slurm.Task([str(folder.path) for folder in folders], 1)
    assert [folder.path.name for folder in task._own("5_0")] == ["a"]
    assert task._own("7") == []
    (folders[0] / "job.json").write_text("{")
    assert folders[0].job is None


def test_no_key_decides_a_result_and_an_old_run_folder_is_still_read() -> None:
    spec = parse(GROUP.spec("slurm"), VALUES, "launcher")
    assert spec.deciding().keys() == {"name"}
    assert spec.remote  # type: ignore[attr-defined]
