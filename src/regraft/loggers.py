"""Loggers beside the run folder's own metrics.csv, which every run writes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from regraft.files import digest
from regraft.registry import Group, Named, doc

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger


class LoggerSpec(Named):
    """Common to all loggers. None of their keys decides a result."""

    def build(self, run: Path, run_id: str, config: dict[str, Any]) -> Logger | None:
        """Lightning's logger for one run; `run` is its folder. None: nothing beside metrics.csv."""
        raise NotImplementedError


class CSV(LoggerSpec):
    """metrics.csv in the run folder, and nothing else."""

    def build(self, run: Path, run_id: str, config: dict[str, Any]) -> None:
        return None


class Wandb(LoggerSpec):
    """Weights & Biases: one wandb run for each run, grouped by sweep; offline where nobody is logged in."""

    project: str = doc("wandb's project", decides=False)
    entity: str | None = doc("wandb's user or team; null: the one that is logged in", decides=False)
    mode: Literal["auto", "online", "offline"] = doc("auto: online where somebody is logged in", decides=False)

    def build(self, run: Path, run_id: str, config: dict[str, Any]) -> Logger:
        import wandb
        from pytorch_lightning.loggers import WandbLogger
        from pytorch_lightning.utilities import rank_zero_only

        offline = self.mode == "offline" or (self.mode == "auto" and not wandb.api.api_key)
        mode = "offline" if offline else None if self.mode == "auto" else "online"  # None: WANDB_MODE decides
        name = f"{digest(str(run))[:8]}-{run_id}"  # the folder too: the same run may stand in two sweeps
        if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
            return WandbLogger(id=name, offline=offline)
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
            settings=wandb.Settings(console="off", silent=True),
        )
        return WandbLogger(experiment=experiment)


GROUP = Group("logger", {"csv": CSV, "wandb": Wandb}, about="where metrics go beside the run folder")
