"""Loggers beside the run folder's own metrics.csv, which every run writes."""

from __future__ import annotations

import os
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from filelock import FileLock

from regraft.errors import Problem
from regraft.record import METRICS, Metrics
from regraft.registry import Group, Named, doc

if TYPE_CHECKING:
    from regraft.tracking import MLflow as MLflowLogger
    from regraft.tracking import TensorBoard as TensorBoardLogger
    from regraft.tracking import Wandb as WandbLogger

    Logger = MLflowLogger | TensorBoardLogger | WandbLogger

WANDB_RUN = (  # what a surrounding wandb run, agent or launch leaves in the environment: all runs of a sweep would become that one
    "WANDB_RUN_ID",
    "WANDB_SWEEP_ID",
    "WANDB_SWEEP_PARAM_PATH",
    "WANDB_RESUME",
    "WANDB_SERVICE",
    "WANDB_LAUNCH",
    "WANDB_LAUNCH_CONFIG_PATH",
)


class LoggerSpec(Named):
    """Common to all loggers. None of their keys decides a result."""

    package: ClassVar[str | None] = None  # what must be installed beside regraft: the module and the extra have one name

    def problems(self) -> list[Problem]:
        if self.package and not find_spec(self.package):
            remedy = f"the package {self.package} is not installed: pip install 'regraft[{self.package}]'"
            return [Problem("name", self.name, remedy)]
        return []

    def build(self, run: Path, run_id: str, place: str, config: dict[str, Any]) -> Logger | None:
        """Lightning's logger for one run, new or resumed; `run` is its folder, and `place` tells it from others that hold the same run,
        wherever it is copied to. To be closed with `success`, `failed`, or `aborted` where the run goes on later. None: nothing beside
        metrics.csv."""
        raise NotImplementedError


class CSV(LoggerSpec):
    """metrics.csv in the run folder, and nothing else."""

    def build(self, run: Path, run_id: str, place: str, config: dict[str, Any]) -> None:
        return None


class Wandb(LoggerSpec):
    """Weights & Biases: one wandb run for each run, grouped by sweep; offline where nobody is logged in."""

    project: str = doc("wandb's project", decides=False)
    entity: str | None = doc("wandb's user or team; null: the one that is logged in", decides=False)
    mode: Literal["auto", "online", "offline"] = doc("auto: online where somebody is logged in", decides=False)

    def build(self, run: Path, run_id: str, place: str, config: dict[str, Any]) -> Logger | None:
        from pytorch_lightning.utilities import rank_zero_only

        if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
            return None
        for variable in WANDB_RUN:
            os.environ.pop(variable, None)
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        from regraft.tracking import Wandb, synced

        unsaid = self.mode == "auto" and "WANDB_MODE" not in os.environ
        offline = self.mode == "offline" or (unsaid and not wandb.login(prompt=False, verify=False))
        mode = "offline" if offline else None if self.mode == "auto" else "online"  # None: WANDB_MODE decides
        name = f"{place}-{run_id}"  # the place too: the same run may stand in two sweeps
        # create_new: Lightning would otherwise go on with whatever run this process has opened before
        experiment = wandb.init(
            project=self.project,
            entity=self.entity,
            id=name,
            name=run_id,
            group=config.get("sweep", {}).get("name"),
            config=config,
            dir=str(run),
            mode=mode,  # type: ignore[arg-type]
            resume=None if offline else "allow",
            reinit="create_new",
            settings=wandb.Settings(console="off"),
        )
        there = experiment.starting_step  # rows that the server has, and appends to
        earlier = {folder for folder in (run / "wandb").glob(f"offline-run-*-{name}*") if folder != Path(experiment.sync_dir)}
        for folder in earlier if experiment.offline else ():
            if any(folder.glob("*.synced")):
                there = max(there, synced(folder))
            else:
                shutil.rmtree(folder)  # what it holds of an attempt that was killed is told again, all of it
        return Wandb(experiment, Metrics(run / METRICS), there)


class TensorBoard(LoggerSpec):
    """TensorBoard: events in tensorboard/ of the run folder."""

    package = "tensorboard"

    def build(self, run: Path, run_id: str, place: str, config: dict[str, Any]) -> Logger:
        from regraft.tracking import TensorBoard

        return TensorBoard(str(run), Metrics(run / METRICS))


class MLflow(LoggerSpec):
    """MLflow: one of its runs for each run, in a folder or on a server."""

    package = "mlflow"

    tracking_uri: str | None = doc("MLflow's server or store; null: the folder mlruns beside the sweep's folder", decides=False)
    experiment: str = doc("MLflow's experiment, which holds the runs", decides=False)

    def problems(self) -> list[Problem]:
        if not re.match(r"[^/]+://[^/]*@", self.tracking_uri or ""):
            return super().problems()
        remedy = "a config is kept and shown, and so must hold no password; MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD may"
        return [*super().problems(), Problem("tracking_uri", "(a server, with a name or a password)", remedy)]

    def build(self, run: Path, run_id: str, place: str, config: dict[str, Any]) -> Logger | None:
        from pytorch_lightning.utilities import rank_zero_only

        if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
            return None  # a client that only looks on would lay out a store of its own
        # MLflow 3 asks for a word before it writes to a folder, and would report its own use over the network
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        sweep = run.parent if run.parent.name in ("single", config.get("sweep", {}).get("name")) else run
        folder = sweep.parent / "mlruns"
        uri = self.tracking_uri or folder.as_uri()
        name = f"{place}-{run_id}"  # the place too: the same run may stand in two sweeps
        if self.tracking_uri:
            return self._logger(run, uri, name, run_id, config)
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".regraft"):  # two runs that start at once must not make the experiment twice
            return self._logger(run, uri, name, run_id, config)

    def _logger(self, run: Path, uri: str, name: str, run_id: str, config: dict[str, Any]) -> Logger:
        """On the run that bears the name, which a resumed run goes on with, or on a new one."""
        from mlflow.tracking import MlflowClient

        from regraft.tracking import MLflow

        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(self.experiment)
        known = client.search_runs([experiment.experiment_id], f"tags.regraft = '{name}'", max_results=1) if experiment else []
        logger = MLflow(
            Metrics(run / METRICS),
            experiment_name=self.experiment,
            run_name=run_id,
            tracking_uri=uri,
            tags={"regraft": name, "sweep": str(config.get("sweep", {}).get("name"))},
            run_id=known[0].info.run_id if known else None,
        )
        if known:
            client.update_run(known[0].info.run_id, status="RUNNING")
        else:
            logger.log_hyperparams(config)
        return logger


GROUP = Group(
    "logger", {"csv": CSV, "wandb": Wandb, "tensorboard": TensorBoard, "mlflow": MLflow}, about="where metrics go beside the run folder"
)
