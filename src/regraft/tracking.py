"""Lightning's loggers for runs that may be killed and resumed: each epoch stands once in what they keep, and none is lost.

What a killed run had told its logger may be lost, told again, or both: W&B writes nothing to disk before much has come together. So an
epoch has the same number whenever it is told, one that is there already is passed over, and one that an earlier attempt has made is told
again from metrics.csv. Lightning ends its loggers after each phase; these end when the run does.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only
from typing_extensions import override

from regraft.record import Metrics

ENDS = {"success": "FINISHED", "failed": "FAILED", "aborted": "KILLED"}  # how a run ends, and MLflow's words for it


class Told:
    """The epochs of a run, each to be told once."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics, self._next = metrics, -1

    def rows(self, found: Mapping[str, float], step: int | None) -> Iterator[tuple[int, dict[str, float]]]:
        """(number, metrics) of what is to be told now: first what earlier attempts have found, then `found`, of the epoch `step`, or
        after the last one."""
        if self._next < 0:
            past = self._past()
            self._next = len(past) if step is None else step
            for epoch, values in past.items():
                if epoch < self._next:
                    yield epoch, values | {"epoch": float(epoch)}
        number = self._next if step is None else step
        self._next = number + (step is not None)
        yield number, dict(found)

    def done(self) -> int:
        """Epochs that are done, where nothing has been told yet."""
        return len(self._past())

    def _past(self) -> dict[int, dict[str, float]]:
        past: dict[int, dict[str, float]] = {}
        for row in self._metrics.rows():
            past.setdefault(int(row["epoch"]), {})[row["metric"]] = float(row["value"])
        return past


class Wandb(WandbLogger):
    """On a wandb run; the number of a row is the epoch's."""

    def __init__(self, experiment: Any, metrics: Metrics, there: int) -> None:
        """`there`: rows that the server has already."""
        super().__init__(experiment=experiment)
        self._told, self._first = Told(metrics), there

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        for number, values in self._told.rows(metrics, step):
            if number >= self._first:
                self.experiment.log(values, step=number, commit=True)

    @override
    def finalize(self, status: str) -> None:
        """Not yet."""

    @rank_zero_only
    def close(self, status: str) -> None:
        if status == "aborted":
            self.experiment.mark_preempting()  # type: ignore[union-attr]
        self.experiment.finish(exit_code=0 if status == "success" else 1)


def synced(folder: Path) -> int:
    """Rows that a server has of an offline run which was sent to it with `wandb sync`; what is sent later is appended to them."""
    rows = 0
    for file in folder.glob("*.wandb"):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
        for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
            told = json.loads(line)
            if told["type"] == "history":
                rows = max(rows, int(told["history"]["item"]["_step"]) + 1)
    return rows


class TensorBoard(TensorBoardLogger):
    """Events of a resumed run: a reader drops what earlier attempts have told of the epochs that are done again."""

    def __init__(self, folder: str, metrics: Metrics) -> None:
        # no sub_dir, no second set of "hp" metrics
        super().__init__(folder, name="", version="tensorboard", default_hp_metric=False)
        self._told = Told(metrics)

    @property
    def experiment(self) -> Any:
        return self._opened(None)

    def _opened(self, step: int | None) -> Any:
        """`step`: the first epoch that is told here; None: the one after those that are done."""
        if self._experiment is None and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            self._kwargs["purge_step"] = self._told.done() if step is None else step
        return super().experiment

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        experiment = self._opened(step)
        *_, (number, values) = self._told.rows(metrics, step)  # what is past is in the events of earlier attempts
        super().log_metrics(values, number)
        experiment.flush()  # a run that is killed leaves what it has told

    @override
    def finalize(self, status: str) -> None:
        """Not yet."""

    def close(self, status: str) -> None:
        super().finalize(status)


class MLflow(MLFlowLogger):
    """On an MLflow run, a new one or that of an earlier attempt."""

    def __init__(self, metrics: Metrics, **keywords: Any) -> None:
        super().__init__(**keywords)
        self._told, self._resumed, self._known = Told(metrics), keywords["run_id"] is not None, dict[str, int]()

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        for number, values in self._told.rows(metrics, step):
            if new := {name: value for name, value in values.items() if number > self._last(name)}:
                super().log_metrics(new, number)

    def _last(self, name: str) -> int:
        """The last epoch for which an earlier attempt has told this metric."""
        if self._resumed and name not in self._known:
            history = self.experiment.get_metric_history(self.run_id, name)
            self._known[name] = max((each.step for each in history), default=-1)
        return self._known.get(name, -1)

    @override
    def finalize(self, status: str = "success") -> None:
        """Not yet."""

    @rank_zero_only
    def close(self, status: str) -> None:
        self.experiment.set_terminated(self.run_id, ENDS[status])
