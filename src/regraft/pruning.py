"""A search's journal, and a run's part in it: what it reports at each epoch's end, and whether it is worth going on."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.locks import Lock
from regraft.record import RunFolder
from regraft.sweepers import Optuna
from regraft.tasks import LOWER

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.storages import BaseStorage
    from optuna.trial import Trial

    from regraft.settings import Settings

STUDY = "regraft"  # a journal holds one


class Pruned(Exception):
    """Ends a run that is not worth going on with. `told`: after which epoch, and the monitored metric then; of the first rank."""

    def __init__(self, told: dict[str, Any]) -> None:
        super().__init__("not worth going on with")
        self.told = told


class Watched:
    """A run's trial. It is silent where the run belongs to no search, or the search has no pruner."""

    def __init__(self, folder: RunFolder, s: Settings) -> None:
        told = folder.record.get("trial") if isinstance(s.sweeper, Optuna) and s.sweeper.pruner != "none" else None
        self.active, self._told, self._s = bool(told and Path(told["journal"]).is_file()), told, s
        self._trial: Trial | None = None
        self._last: dict[str, Any] = {}
        self.pruned: dict[str, Any] | None = None  # once it was found hopeless: after which epoch, and the monitored metric then

    def report(self, epochs: int, found: Mapping[str, float]) -> None:
        """What has been measured after so many epochs. A resumed run that measures an epoch again finds it reported."""
        if not self.active or (value := found.get(self._s.monitor)) is None:
            return
        trial = self._opened()
        self._last = {"epoch": epochs - 1, "monitor": self._s.monitor, "value": value}
        if epochs not in trial.storage.get_trial(trial._trial_id).intermediate_values:
            trial.report(value, epochs)

    @property
    def standing(self) -> float:
        """The lower, the better it stands by what it has reported last."""
        value = self._last.get("value", math.inf)
        return value if self._s.monitor.partition("/")[2] in LOWER else -value if self._last else math.inf

    def hopeless(self) -> bool:
        """Whether the run is not worth going on with, by what others have reported."""
        if self.active and self._opened().should_prune():
            self.pruned = self._last
        return self.pruned is not None

    def end(self) -> None:
        """It is hopeless, as the first rank has found."""
        self.pruned = self.pruned or {}

    def go_on(self) -> None:
        """Raises Pruned where the run is hopeless: to be called where its training has ended."""
        if self.pruned is not None:
            raise Pruned(self.pruned)

    def _opened(self) -> Trial:
        if self._trial is None:
            import optuna

            assert self._told is not None
            optuna.logging.set_verbosity(optuna.logging.WARNING)
            held = _shared(Path(self._told["journal"]))
            study = optuna.load_study(study_name=STUDY, storage=held, sampler=optuna.samplers.RandomSampler(), pruner=_pruner(self._s))
            number = held.get_trial_id_from_study_id_trial_number(study._study_id, self._told["number"])
            self._trial = optuna.trial.Trial(study, number)
        return self._trial


def _pruner(s: Settings) -> BasePruner:
    """What the sweeper asks for. Steps are epochs that have been made."""
    from optuna import pruners

    spec = s.sweeper
    assert isinstance(spec, Optuna)
    return {
        "median": lambda: pruners.MedianPruner(n_startup_trials=spec.startup, n_warmup_steps=spec.warmup),
        "asha": lambda: pruners.SuccessiveHalvingPruner(min_resource=spec.warmup, reduction_factor=spec.reduction),
        "hyperband": lambda: pruners.HyperbandPruner(
            min_resource=spec.warmup, max_resource=max(spec.warmup, s.trainer.max_epochs), reduction_factor=spec.reduction
        ),
    }[spec.pruner]()


def storage(path: Path) -> BaseStorage:
    """Optuna's storage in one file to which lines are added. Raises OSError where it can't be."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(path), lock_obj=Turn(path)))  # type: ignore[arg-type]


_shared = cache(storage)  # by all runs of a worker


class Turn:
    """Whose turn it is to add lines. Optuna's own locks outlive a process that is killed, and make the next wait for half a minute."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, None  # type: tuple[Path, Lock | None]

    def acquire(self) -> bool:
        self._lock = Lock(self._path.with_name(f".{self._path.name}.lock"), alone=True)
        mend(self._path)
        return True

    def release(self) -> None:
        if self._lock:
            self._lock.release()


def mend(path: Path) -> None:
    """Cut off a last line that was not written to its end, since its writer was killed: another one after it would be lost too."""
    with suppress(FileNotFoundError), path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        start, tail = end, b""
        while start and b"\n" not in tail:
            step = min(start, 65536)
            start -= step
            file.seek(start)
            tail = file.read(step) + tail
        if tail and not tail.endswith(b"\n"):
            file.truncate(start + tail.rfind(b"\n") + 1)


def value(record: Mapping[str, Any], monitor: str) -> float | None:
    """What a run that has ended well is worth to a search: the monitored metric on val at the epoch that is kept; None: nothing."""
    kept = record.get("kept") or {}
    found = kept.get("value") if kept.get("monitor") == monitor else (record.get("metrics") or {}).get(monitor)
    return float(found) if isinstance(found, int | float) and math.isfinite(found) else None
