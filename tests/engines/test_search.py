"""A search that is killed over and over ends as the one that nobody has disturbed: as many trials, the same ones, the same best."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from engines.commands import begun, curves, epochs, folders, regraft, trials, workers
from regraft.record import RunFolder

pytestmark = pytest.mark.engines

TRIALS, KILLS, SEED, EPOCHS = 8, 6, 0, 6
SEARCH = [
    *("train", "-m", "sweeper=optuna", f"sweeper.trials={TRIALS}", "sweeper.together=4", "sweeper.startup=4"),
    *("dataset=digits", "dataset.per_class=20", "model=mlp,convnet", "model.weights=none", "model.depth=1,2,3", "hardware=cpu"),
    *("optimizer.lr=tag(log,interval(1e-4,1e-1))", "freeze=none", "plots=false", f"trainer.max_epochs={EPOCHS}"),
    *("trainer.checkpoint_seconds=0", "hardware.workers=0"),
]


def told(root: Path) -> list[tuple[Any, ...]]:
    return [(each.number, each.params, each.state.name, each.value, each.user_attrs["run_id"]) for each in trials(root)]


def killed(words: list[str], at: Path, root: Path, draw: random.Random) -> int:
    """Give the command again and again, and kill the controller, a worker or all of them, until it comes to its end; how often."""
    kills = 0
    for _ in range(40):
        command = begun(*words, at=at, log=at / f"{root.name}.txt")
        while command.poll() is None and kills < KILLS:  # where a worker alone is killed, the same command goes on
            before = sum(len(epochs(folder)) for folder in folders(root))
            some, end = draw.choice([0, 1, 4]), time.monotonic() + draw.uniform(0, 20)
            while command.poll() is None and time.monotonic() < end:
                if some and sum(len(epochs(folder)) for folder in folders(root)) >= before + some:
                    break
                time.sleep(0.02)
            at_work = [pid for folder in folders(root) for pid in workers(folder)]
            victims = {"controller": [command.pid], "worker": at_work[:1], "all": [command.pid, *at_work]}
            for pid in victims[draw.choice(list(victims))] if command.poll() is None else ():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    kills += 1
        if command.wait(580) == 0:
            return kills
    raise AssertionError((at / f"{root.name}.txt").read_text())


def test_a_search_that_is_killed_asks_for_the_same_trials_and_finds_the_same(tmp_path):
    whole = regraft(*SEARCH, "hydra.sweep.dir=whole", at=tmp_path)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    assert Counter(state for _, _, state, _, _ in told(tmp_path / "whole")) == {"COMPLETE": TRIALS}
    root = tmp_path / "killed"
    assert killed([*SEARCH, "hydra.sweep.dir=killed"], tmp_path, root, random.Random(SEED)) >= KILLS // 2
    assert told(root) == told(tmp_path / "whole")
    assert len(folders(root)) == len(folders(tmp_path / "whole")) == len({run for *_, run in told(root)})
    for one, other in zip(folders(root), folders(tmp_path / "whole"), strict=True):
        assert one.path.name == other.path.name
        assert one.record["status"] == "done"
        assert epochs(one) == epochs(other) == list(range(EPOCHS))
        assert curves(one) == curves(other)
    last = [line for line in whole.stdout.splitlines() if line.startswith("search: ")]
    assert last[0] in (tmp_path / "killed.txt").read_text()


def test_a_search_with_pruning_that_is_killed_has_as_many_trials_as_wanted(tmp_path):
    words = [*SEARCH, "freeze=backbone", "sweeper.pruner=asha", "sweeper.reduction=2", "launcher.jobs=2", "trainer.max_epochs=60"]
    root = tmp_path / "killed"
    assert killed([*words, "hydra.sweep.dir=killed"], tmp_path, root, random.Random(SEED)) >= 1
    states = Counter(state for _, _, state, _, _ in told(root))
    assert states["COMPLETE"] + states["PRUNED"] == TRIALS == states.total()
    assert states["PRUNED"] > 0
    assert states["COMPLETE"] > 0
    for trial in trials(root):
        folder = RunFolder(root / trial.user_attrs["folder"])
        assert folder.record["status"] == {"COMPLETE": "done", "PRUNED": "pruned"}[trial.state.name]
        assert epochs(folder) == list(range(len(epochs(folder))))
        values = {int(epoch) + 1: value for (metric, epoch), value in curves(folder).items() if metric == "val/accuracy"}
        assert trial.intermediate_values == values, "each epoch is reported, and once"
