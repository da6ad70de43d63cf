"""The sweeper group's catalogue: which points of its axes a sweep runs, all of them or those that a search asks for."""

from __future__ import annotations

from importlib.util import find_spec
from typing import ClassVar, Literal

from regraft.errors import Problem
from regraft.registry import Group, Named, doc


class SweeperSpec(Named):
    """Common to all sweepers. None of their keys decides a run's result."""

    searches: ClassVar[bool] = True  # whether later points hang on what earlier ones have given


class Grid(SweeperSpec):
    """Every point of the product of all axes."""

    searches = False


class Optuna(SweeperSpec):
    """A search by Optuna's samplers (Akiba et al. 2019), for the best trainer.monitor on val."""

    trials: int = doc("runs that have ended well or been pruned when the search is over; a failed one does not count", ge=1, decides=False)
    together: int = doc("trials of a round: asked for at once, and told together when all have ended", ge=1, decides=False)
    sampler: Literal["tpe", "cmaes", "random", "grid"] = doc(
        "tpe (Bergstra et al. 2011), cmaes (Hansen 2016; for numbers, choices are drawn at random), random, or grid (each point once)",
        decides=False,
    )
    startup: int = doc(
        "trials drawn at random before tpe and cmaes learn from them, and before pruner=median ends any", ge=0, decides=False
    )
    seed: int = doc("of the sampler: the same seed asks for the same trials", ge=0, lt=2**32, decides=False)
    pruner: Literal["none", "median", "asha", "hyperband"] = doc(
        "what ends a run early: none, median (worse than half of the ended ones), asha (Li et al. 2020) or hyperband (Li et al. 2018)",
        decides=False,
    )
    warmup: int = doc("epochs that every run has before it may be pruned", ge=1, decides=False)
    reduction: int = doc("asha, hyperband: one of so many goes on, to so many times the epochs", ge=2, decides=False)

    def problems(self) -> list[Problem]:
        missing = [name for name in ("optuna", *(["cmaes"] if self.sampler == "cmaes" else [])) if not find_spec(name)]
        return [Problem("name", self.name, f"the package {name} is not installed: pip install 'regraft[optuna]'") for name in missing]


GROUP = Group("sweeper", {"grid": Grid, "optuna": Optuna}, about="which points of a sweep are run: all, or those a search asks for")
