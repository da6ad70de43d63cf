"""Loggers: what was logged is read back by the library's own reader; one run for each run, also when it is resumed."""

from __future__ import annotations

import socket
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
from regraft.loggers import GROUP
from regraft.registry import parse

CONFIG: dict[str, Any] = {"sweep": {"name": "default"}, "optimizer": {"lr": 0.1, "betas": [0.9, 0.99]}, "long": "x" * 400}


def logger(name: str, **values: Any) -> Any:
    usual: dict[str, dict[str, Any]] = {"mlflow": {"tracking_uri": None, "experiment": "tried"}}
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


def fitted(spec: Any, run: Path, epochs: int) -> None:
    """A phase of a run with this logger, and what is logged after it."""
    made = spec.build(run, "0123abcd", CONFIG)
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
        list(pool.map(lambda number: spec.build(run.parent / f"run{number}", f"run{number}", CONFIG), range(4)))
    assert sorted(each.info.run_name for each in found(run.parents[1] / "mlruns")) == [f"run{number}" for number in range(4)]


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_other_ranks_write_nothing(name: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    made = logger(name).build(run, "0123abcd", CONFIG)
    if made:  # one that a rank gets all the same
        made.log_metrics({"val/accuracy": 0.5}, step=0)
        made.finalize("success")
    assert sorted(path.name for path in run.parents[1].rglob("*")) == ["0123abcd", "default"]


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_package_that_is_not_there_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert logger(name).problems() == []
    monkeypatch.setattr(loggers, "find_spec", lambda package: None)
    [problem] = logger(name).problems()
    assert (problem.key, problem.given) == ("name", name)
    assert f"pip install 'regraft[{name}]'" in problem.remedy
    assert logger("csv").problems() == []
