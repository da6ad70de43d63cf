"""The launcher group's catalogue: what starts a run's worker, and where."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from regraft.registry import Group, Named, doc


class LauncherSpec(Named):
    """Common to all launchers. None of their keys decides a result."""


class Local(LauncherSpec):
    """Workers on this machine."""

    jobs: Annotated[int, Field(ge=1)] | Literal["auto"] = doc(
        "workers at once, which share cores and GPUs; auto: as many as the GPUs suffice for, one on a CPU", decides=False
    )


GROUP = Group("launcher", {"local": Local}, about="what starts the runs, and where")
