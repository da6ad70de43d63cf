"""Sweeps whose loggers are killed with their workers: one run of each tracker for each run of ours, with each epoch once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from engines.commands import begun, complete, epochs, folders, holding, regraft, until
from regraft.record import METRICS, Metrics, RunFolder

pytestmark = pytest.mark.engines

ALONE = ["dataset=digits", "model=mlp", "model.weights=none", "freeze=none", "hardware=cpu", "launcher.jobs=2", "trainer.max_epochs=30"]
STACK = ["dataset=digits", "model=convnet", "model.weights=none", "data.size=16", "hardware=cpu", "trainer.max_epochs=400"]
LOGGED = [
    "logger=[csv,wandb,tensorboard,mlflow]",
    "trainer.checkpoint_seconds=0.2",
    "trainer.keep=last",
    "sweep.name=tracked",
    "plots=false",
]


def services() -> set[int]:
    """wandb's own processes that are alive."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if path.read_bytes().split(b"\0")[0].endswith(b"wandb-core"):
                found.add(int(path.parent.name))
    return found


def surroundings(at: Path) -> dict[str, str]:
    """Where nobody is logged in, and the command was given from within another wandb run."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    return {**own, "HOME": str(at), "WANDB_RUN_ID": "theirs", "WANDB_SWEEP_ID": "theirs"}


def of_wandb(folder: RunFolder) -> dict[str, list[dict[str, Any]]]:
    """All that the one wandb run in a run folder holds, by its type."""
    [file] = folder.path.glob("wandb/offline-run-*/*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    found: dict[str, list[dict[str, Any]]] = {}
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        each = json.loads(line)
        found.setdefault(each["type"], []).append(each[each["type"]])
    return found


@pytest.mark.parametrize(
    ("words", "axis", "victim"),
    [(ALONE, "seed=0,1", "worker"), (STACK, "optimizer.lr=1e-3,1e-2", "controller")],
    ids=["two workers", "a stack"],
)
def test_each_run_has_each_epoch_once_however_it_was_killed(
    tmp_path: Path, words: list[str], axis: str, victim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    how, before, command = {"env": surroundings(tmp_path)}, services(), ["train", "-m", *words, *LOGGED, axis]
    for least in (4, 12):
        controller = begun(*command, at=tmp_path, log=tmp_path / "said", **how)
        until(lambda least=least: sum(len(epochs(folder)) > least for folder in folders(tmp_path)) == 2)
        for pid in {controller.pid} if victim == "controller" else {holding(folder)[0] for folder in folders(tmp_path)}:
            os.kill(pid, signal.SIGKILL)
        controller.wait(60)
        until(lambda: not any(holding(folder) for folder in folders(tmp_path)), 60)
        until(lambda: services() <= before, 60)
    done = regraft(*command, at=tmp_path, **how)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = folders(tmp_path)
    assert len(runs) == 2
    assert services() <= before, "none is left behind"
    client = MlflowClient((tmp_path / "multirun" / "mlruns").as_uri())
    theirs = {each.info.run_name: each for each in client.search_runs([client.get_experiment_by_name("regraft").experiment_id])}
    assert set(theirs) == {folder.record["run_id"] for folder in runs}
    ids = set()
    for folder in runs:
        assert complete(folder)
        wanted = {int(row["epoch"]): float(row["value"]) for row in Metrics(folder / METRICS).rows() if row["metric"] == "val/accuracy"}
        told = of_wandb(folder)
        rows = [row["item"] for row in told["history"]]
        assert {row["_step"]: row["val/accuracy"] for row in rows if "val/accuracy" in row} == pytest.approx(wanted)
        assert Counter(row["_step"] for row in rows) == Counter([*wanted, len(wanted)])
        assert rows[-1]["test/accuracy"] == pytest.approx(folder.record["metrics"]["test/accuracy"])
        assert told["exit"][0].get("exit_code", 0) == 0
        assert told["run"][0]["run_group"] == "tracked"
        ids.add(told["run"][0]["run_id"])
        events = EventAccumulator(str(folder / "tensorboard"), {"scalars": 0}).Reload().Scalars("val/accuracy")
        assert [each.step for each in events] == list(wanted)
        mine = theirs[folder.record["run_id"]]
        assert mine.info.status == "FINISHED"
        assert [each.step for each in client.get_metric_history(mine.info.run_id, "val/accuracy")] == list(wanted)
    assert len(ids) == 2


def test_two_ranks_have_one_run_and_a_run_that_was_told_to_stop_goes_on_with_it(tmp_path: Path) -> None:
    how, before = {"env": surroundings(tmp_path)}, services()
    command = ["train", *ALONE[:-2], *LOGGED, "trainer.max_epochs=40", "hardware.devices=2", "hydra.run.dir=run"]
    controller = begun(*command, at=tmp_path, log=tmp_path / "said", **how)
    run = RunFolder(tmp_path / "run")
    until(lambda: run.exists and len(epochs(run)) > 3)
    controller.send_signal(signal.SIGTERM)
    assert controller.wait(90)
    assert run.record["status"] == "running"
    told = of_wandb(run)
    assert [row["item"]["_step"] for row in told["history"]] == list(range(len(epochs(run))))
    assert "preempting" in told
    until(lambda: services() <= before, 60)
    done = regraft(*command, at=tmp_path, **how)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [row["item"]["_step"] for row in of_wandb(run)["history"]]
    assert rows == list(range(41))
