"""The launcher group's catalogue: what starts a run's worker, and where."""

from __future__ import annotations

from regraft.registry import Group, Named


class LauncherSpec(Named):
    """Common to all launchers."""


class Local(LauncherSpec):
    """Workers on this machine, one run after the other."""


GROUP = Group("launcher", {"local": Local}, about="what starts the runs, and where")
