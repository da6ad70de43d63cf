"""Loggers: what was logged is read back by the library's own reader; one run for each run, also when it is resumed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from regraft import loggers
from regraft.files import digest
from regraft.loggers import GROUP
from regraft.record import METRICS, Metrics
from regraft.registry import parse

CONFIG: dict[str, Any] = {"sweep": {"name": "default"}, "optimizer": {"lr": 0.1, "betas": [0.9, 0.99]}, "long": "x" * 400}


def place(run: Path) -> str:
    return digest(str(run))[:8]


def logger(name: str, **values: Any) -> Any:
    usual: dict[str, dict[str, Any]] = {
        "mlflow": {"tracking_uri": None, "experiment": "tried"},
        "wandb": {"project": "tried", "entity": None, "mode": "offline"},
    }
    return parse(GROUP.spec(name), {"name": name, **usual.get(name, {}), **values}, "logger")


class Module(pl.LightningModule):
    """Logs by hand, as the engine does: once an epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 1)

    def training_step(self, batch: list[Tensor], number: int) -> Tensor:
        return self.net(batch[0]).square().mean()

    def on_train_epoch_end(self) -> None:
        for each in self.loggers:
            each.log_metrics({"val/accuracy": 0.5 + self.current_epoch / 10, "epoch": float(self.current_epoch)}, step=self.current_epoch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_password_is_no_part_of_a_config() -> None:
    refused = logger("mlflow", tracking_uri="https://somebody:secret@host/mlflow").problems()
    assert [problem.key for problem in refused] == ["tracking_uri"]
    assert "secret" not in str(refused[0])
    assert "MLFLOW_TRACKING_PASSWORD" in str(refused[0])
    assert not logger("mlflow", tracking_uri="https://host/mlflow@2").problems()


def fitted(spec: Any, run: Path, epochs: int) -> None:
    """A phase of a run with this logger, and what is logged after it."""
    made = spec.build(run, "0123abcd", place(run), CONFIG)
    trainer = pl.Trainer(
        max_epochs=epochs,
        log_every_n_steps=1,
        accelerator="cpu",
        logger=[made],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(Module(), DataLoader(TensorDataset(torch.ones(4, 2)), 2))
    made.log_metrics({"test/accuracy": 0.75})
    made.close("success")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run folder on a machine whose sockets lead nowhere."""

    tried = []

    def refuse(*arguments: Any, **keywords: Any) -> None:
        tried.append(arguments)  # a library's own thread may swallow what is raised
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    path = tmp_path / "multirun" / "default" / "0123abcd"
    path.mkdir(parents=True)
    yield path
    assert tried == [], "no logger may reach for the network"


def test_tensorboard(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fitted(logger("tensorboard"), run, 1)
    fitted(logger("tensorboard"), run, 3)
    assert [path.name for path in run.iterdir()] == ["tensorboard"]
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    values = {event.step: event.value for event in events.Scalars("val/accuracy")}
    assert values == pytest.approx({0: 0.5, 1: 0.6, 2: 0.7})
    assert {event.value for event in events.Scalars("test/accuracy")} == {0.75}


def found(folder: Path) -> list[Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(folder.as_uri())
    experiment = client.get_experiment_by_name("tried")
    return list(client.search_runs([experiment.experiment_id]))


def test_mlflow(run: Path) -> None:
    fitted(logger("mlflow"), run, 1)
    fitted(logger("mlflow"), run, 3)
    store = run.parents[1] / "mlruns"
    assert [path.name for path in run.iterdir()] == []
    [mine] = found(store)
    assert (mine.info.run_name, mine.info.status, mine.data.tags["sweep"]) == ("0123abcd", "FINISHED", "default")
    assert mine.data.params["optimizer/lr"] == "0.1"
    assert mine.data.metrics == pytest.approx({"val/accuracy": 0.7, "epoch": 2, "test/accuracy": 0.75})
    from mlflow.tracking import MlflowClient

    history = {each.step: each.value for each in MlflowClient(store.as_uri()).get_metric_history(mine.info.run_id, "val/accuracy")}
    assert history == pytest.approx({0: 0.5, 1: 0.6, 2: 0.7})


def test_the_same_run_in_two_folders_is_two_of_mlflows(run: Path) -> None:
    fitted(logger("mlflow"), run, 1)
    fitted(logger("mlflow"), run.parent / "again", 1)
    assert len(found(run.parents[1] / "mlruns")) == 2


def test_mlflows_store_lies_beside_a_run_that_stands_alone(run: Path) -> None:
    fitted(logger("mlflow"), run.parents[1] / "mine", 1)
    assert len(found(run.parents[1] / "mlruns")) == 1
    fitted(logger("mlflow"), run.parents[1] / "single" / "0123abcd", 1)
    assert len(found(run.parents[1] / "mlruns")) == 2, "single runs lie in a folder of that name"
    elsewhere = run.parents[2] / "elsewhere"
    fitted(logger("mlflow", tracking_uri=elsewhere.as_uri()), run, 1)
    assert len(found(elsewhere)) == 1


def test_runs_that_start_at_once_share_an_experiment(run: Path) -> None:
    spec = logger("mlflow")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: spec.build(run.parent / f"run{number}", f"run{number}", str(number), CONFIG), range(4)))
    assert sorted(each.info.run_name for each in found(run.parents[1] / "mlruns")) == [f"run{number}" for number in range(4)]


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_other_ranks_write_nothing(name: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    made = logger(name).build(run, "0123abcd", place(run), CONFIG)
    if made:  # one that a rank gets all the same
        made.log_metrics({"val/accuracy": 0.5}, step=0)
        made.close("success")
    assert sorted(path.name for path in run.parents[1].rglob("*")) == ["0123abcd", "default"]


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_package_that_is_not_there_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert logger(name).problems() == []
    monkeypatch.setattr(loggers, "find_spec", lambda package: None)
    [problem] = logger(name).problems()
    assert (problem.key, problem.given) == ("name", name)
    assert f"pip install 'regraft[{name}]'" in problem.remedy
    assert logger("csv").problems() == []


# Runs that are killed, and resumed


def attempt(name: str, run: Path, begin: int, end: int, told: int, status: str) -> None:
    """An attempt at a run that goes on after `begin` epochs and makes those below `end`; it is killed when it has written the last one,
    and has told its logger those below `told`. At its end (`success`) it tells what was measured."""
    made, metrics = logger(name).build(run, "0123abcd", place(run), CONFIG), Metrics(run / METRICS)
    metrics.start(begin)
    for epoch in range(begin, end):
        found = {"train/loss": 1.0 / (epoch + 1), "val/accuracy": epoch / 10}
        metrics.append("fine-tune", epoch, 10 * epoch, found)
        if epoch < told:
            made.log_metrics({**found, "epoch": float(epoch)}, step=epoch)
    if status == "success":
        made.log_metrics({"test/accuracy": 0.75})
    made.close(status)


def records(run: Path) -> dict[str, list[dict[str, Any]]]:
    """All that the one offline wandb run in a run folder holds."""
    [file] = run.glob("wandb/offline-run-*/*.wandb")
    return inspected(file)


def inspected(file: Path) -> dict[str, list[dict[str, Any]]]:
    """What wandb has written, by its type, as wandb's own reader tells it."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    found: dict[str, list[dict[str, Any]]] = {}
    for each in map(json.loads, lines):
        found.setdefault(each["type"], []).append(each[each["type"]])
    return found


def curve(name: str, run: Path, metric: str) -> list[tuple[int, float]]:
    """(epoch, value) of all that a logger keeps of a metric, in order."""
    if name == "wandb":
        rows = [row["item"] for row in records(run)["history"]]
        return [(row["_step"], round(row[metric], 6)) for row in rows if metric in row]
    if name == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        return [(each.step, round(each.value, 6)) for each in EventAccumulator(str(run / "tensorboard")).Reload().Scalars(metric)]
    from mlflow.tracking import MlflowClient

    store = run.parents[1] / "mlruns"
    [mine] = found(store)
    history = MlflowClient(store.as_uri()).get_metric_history(mine.info.run_id, metric)
    return [(each.step, round(each.value, 6)) for each in history]


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder where nobody is logged in."""
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "multirun" / "default" / "0123abcd"
    path.mkdir(parents=True)
    return path


ATTEMPTS: list[list[tuple[int, int, int, str]]] = [
    [(0, 3, 3, "aborted"), (2, 5, 5, "success")],  # its checkpoint lies an epoch back: that epoch is made, and told, again
    [(0, 3, 3, "aborted"), (3, 5, 5, "success")],
    [(0, 3, 2, "aborted"), (2, 5, 5, "success")],  # killed between the two writes
    [(0, 2, 2, "failed"), (0, 5, 5, "success")],
    [(0, 3, 3, "aborted"), (1, 4, 4, "aborted"), (4, 5, 5, "aborted"), (5, 5, 5, "success")],  # killed before what is measured was told
    [(0, 5, 5, "success"), (5, 5, 5, "success")],  # and after
]


@pytest.mark.parametrize(
    ("name", "attempts"),
    [
        (name, attempts)
        for number, attempts in enumerate(ATTEMPTS)
        for name in ("wandb", "tensorboard", "mlflow")
        if name != "wandb" or number in (0, 4, 5)  # which takes a second to start
    ],
)
def test_no_epoch_is_lost_and_none_stands_twice(name: str, attempts: list[tuple[int, int, int, str]], offline: Path) -> None:
    for begin, end, told, status in attempts:
        attempt(name, offline, begin, end, told, status)
    assert curve(name, offline, "val/accuracy") == [(epoch, epoch / 10) for epoch in range(5)]
    assert [epoch for epoch, _ in curve(name, offline, "epoch")] == list(range(5))
    assert curve(name, offline, "test/accuracy") == [(5, 0.75)]


def test_what_was_synced_before_the_run_went_on_is_not_told_again(offline: Path) -> None:
    """`wandb sync` appends to what the server has of a run: the two folders together hold each epoch once."""
    attempt("wandb", offline, 0, 3, 3, "aborted")
    [first] = offline.glob("wandb/offline-run-*/*.wandb")
    first.with_name(f"{first.name}.synced").touch()
    before = first.read_bytes()
    attempt("wandb", offline, 2, 5, 5, "success")
    assert first.read_bytes() == before
    [second] = set(offline.glob("wandb/offline-run-*/*.wandb")) - {first}
    rows = [row["item"]["_step"] for file in (first, second) for row in inspected(file)["history"]]
    assert rows == list(range(6))
    assert inspected(second)["run"][0]["run_id"] == inspected(first)["run"][0]["run_id"]


def test_what_wandb_held_back_is_told_again(offline: Path) -> None:
    """A worker that is killed takes wandb's own process with it, and with that all that it had not yet written."""
    attempt("wandb", offline, 0, 3, 3, "aborted")
    [lost] = offline.glob("wandb/offline-run-*/*.wandb")
    lost.write_bytes(lost.read_bytes()[:7])
    attempt("wandb", offline, 3, 5, 5, "success")
    assert [epoch for epoch, _ in curve("wandb", offline, "val/accuracy")] == list(range(5))


@pytest.mark.parametrize(("status", "code", "word"), [("success", 0, "FINISHED"), ("failed", 1, "FAILED"), ("aborted", 1, "KILLED")])
def test_a_runs_end_is_told_as_it_was(status: str, code: int, word: str, offline: Path) -> None:
    attempt("wandb", offline, 0, 1, 1, status)
    assert [each.get("exit_code", 0) for each in records(offline)["exit"]] == [code]
    assert ("preempting" in records(offline)) == (status == "aborted")
    attempt("mlflow", offline, 0, 1, 1, status)
    [mine] = found(offline.parents[1] / "mlruns")
    assert mine.info.status == word


def test_the_heads_of_a_stack_are_wandb_runs_of_their_own_whatever_the_surroundings(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the command was started by a wandb agent, or from within another wandb run."""
    for variable, value in {
        "RUN_ID": "theirs",
        "SWEEP_ID": "their-sweep",
        "RESUME": "must",
        "NAME": "theirs",
        "RUN_GROUP": "theirs",
    }.items():
        monkeypatch.setenv(f"WANDB_{variable}", value)
    monkeypatch.setenv("WANDB_API_KEY", "5ec2e7" * 7)
    monkeypatch.setenv("WANDB_SERVICE", "3-1-tcp-localhost-1")  # of a process that is gone
    import wandb

    wandb.teardown()  # what it has read of the environment for the tests before this one
    folders = [offline.parent / f"head{number}" for number in range(2)]
    for folder in folders:
        folder.mkdir()
    several = [logger("wandb").build(folder, folder.name, place(folder), CONFIG) for folder in folders]
    for epoch in range(2):
        for number, each in enumerate(several):
            each.log_metrics({"val/accuracy": number + epoch / 10, "epoch": float(epoch)}, step=epoch)
    for each in several:
        each.close("success")
    ids = set()
    for number, folder in enumerate(folders):
        [run] = records(folder)["run"][:1]
        assert (run["display_name"], run["run_group"], run["project"]) == (folder.name, "default", "tried")
        assert folder.name in run["run_id"]
        assert "sweep_id" not in run
        assert {key: value for key, value in run["config"]["update"].items() if key != "_wandb"} == CONFIG
        assert curve("wandb", folder, "val/accuracy") == [(epoch, round(number + epoch / 10, 6)) for epoch in range(2)]
        ids.add(run["run_id"])
        assert not [path for path in folder.rglob("*") if path.is_file() and b"5ec2e7" in path.read_bytes()], "the key is no log's"
    assert len(ids) == 2
    assert os.environ["WANDB_API_KEY"], "wandb needs it"
