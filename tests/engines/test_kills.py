"""A sweep that is killed over and over ends as the one that nobody has disturbed: every job done once, none lost, none repeated."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from engines.commands import LINE, begun, complete, curves, epochs, folders, holding, identical, regraft, until, workers
from regraft.record import MODEL, PREDICTIONS, RunFolder

pytestmark = [pytest.mark.engines, pytest.mark.slow]

EPOCHS = 40
SWEEP = [  # heads on one device train as one stack; the others by themselves, half of them on two devices
    *("train", "-m", "dataset=digits", "dataset.per_class=8", 'dataset.classes=["0","1","2"]', "data.batch_size=8", "plots=false"),
    *(
        "model=mlp",
        "model.weights=none",
        "hardware=cpu",
        "hardware.workers=0",
        f"trainer.max_epochs={EPOCHS}",
        "trainer.checkpoint_seconds=0",
    ),
    *("freeze=backbone,none", "optimizer.lr=1e-3,1e-2", "hardware.devices=1,2", "head.dropout=0.2", "launcher.jobs=2"),
]
ROUNDING = 1e-4  # of a stack: the same sums in another order
KILLS, SEED = 30, 0


def mine(name: str) -> list[str]:
    return [*SWEEP, f"hydra.sweep.dir={name}", f"cache.dir={name}-cache"]


def stacked(folder: RunFolder) -> bool:
    return bool(folder.record["group"])


class Kept:
    """What a finished run has left must never be written again."""

    def __init__(self, root: Path) -> None:
        self.root, self.seen = root, {}

    def look(self) -> None:
        for folder in folders(self.root):
            if folder.record["status"] == "done":
                marks = [((folder / name).stat().st_ino, (folder / name).stat().st_mtime_ns) for name in (PREDICTIONS, MODEL)]
                assert self.seen.setdefault(folder.path, marks) == marks, f"{folder.path.name} was done, and was run again"
        assert self.seen.keys() <= {folder.path for folder in folders(self.root) if folder.record["status"] == "done"}


def same_table(sweep: Path, whole: Path) -> None:
    """Each run's folder, figures and lines are those of the undisturbed sweep."""
    for one, other in zip(folders(sweep), folders(whole), strict=True):
        assert one.path.name == other.path.name
        assert complete(one)
        assert epochs(one) == epochs(other) == list(range(len(epochs(other)))), "each epoch stands once"
        assert one.record["kept"]["epoch"] == other.record["kept"]["epoch"] or stacked(one)
        if stacked(one):
            assert curves(one) == pytest.approx(curves(other), abs=ROUNDING)
            assert one.record["metrics"] == pytest.approx(other.record["metrics"], abs=ROUNDING)
        else:
            assert identical(one, other), one.path.name


def nobody_left(root: Path) -> None:
    """A worker whose controller is gone saves, and ends."""
    until(lambda: not any(workers(folder) for folder in folders(root)), 60)


def kill(victim: str, controller: int, root: Path, draw: random.Random) -> list[int]:
    """Who was killed: any rank of any run that is at work, the controller, or both at once."""
    at_work = sorted({pid for folder in folders(root) for pid in workers(folder)})
    chosen = [draw.choice(at_work)] if at_work and victim != "controller" else []
    chosen += [controller] if victim != "worker" else []
    for pid in chosen:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return chosen


def test_thirty_random_kills_change_nothing(tmp_path):
    whole = regraft(*mine("whole"), at=tmp_path)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    assert len(folders(tmp_path / "whole")) == 8
    assert {stacked(folder) for folder in folders(tmp_path / "whole")} == {True, False}
    draw, kills, sweeps = random.Random(SEED), 0, 0
    interrupted: set[int] = set()  # kills that met a run at work
    while kills < KILLS:  # where a sweep has come to its end in spite of all, the next begins
        name, sweeps = f"killed-{sweeps}", sweeps + 1
        root = tmp_path / name
        kept = Kept(root)
        for _ in range(KILLS):
            command = begun(*mine(name), at=tmp_path, log=tmp_path / f"{name}.txt")
            while command.poll() is None and kills < KILLS:
                # at any moment of the start, or some moments after the next epochs have been written
                written = sum(len(epochs(folder)) for folder in folders(root))
                more, late = draw.choice([0, 1, 5, 40, 40]), draw.uniform(0, 1)
                end = time.monotonic() + (draw.uniform(0, 9) if not more else 60)
                while time.monotonic() < end and command.poll() is None:
                    if more and sum(len(epochs(folder)) for folder in folders(root)) >= written + more:
                        break
                    time.sleep(0.05)
                time.sleep(late * 0.2)
                if command.poll() is None:
                    victims = kill(draw.choice(["controller", "worker", "both"]), command.pid, root, draw)
                    interrupted |= {kills} if any(victim != command.pid for victim in victims) else set()
                    kills += bool(victims)
                    if command.pid in victims:
                        command.wait(30)
            status = command.wait(580)
            kept.look()
            if draw.random() < 0.5 or kills == KILLS:  # else the same command comes while the last one's workers may still save
                nobody_left(root)
            if status == 0 or kills == KILLS:
                break
        last = regraft(*mine(name), at=tmp_path)
        assert last.returncode == 0, last.stdout + last.stderr
        kept.look()
        same_table(root, tmp_path / "whole")
        again = regraft(*mine(name), at=tmp_path)
        assert again.stdout.count("is done already") == 8, again.stdout
        kept.look()
    assert len(interrupted) >= KILLS // 4, "most kills met nobody at work"
    nobody_left(tmp_path)


def test_the_line_is_killed_five_times_and_ends_with_the_same_table(tmp_path):
    whole = regraft("train", "-m", *LINE, "hydra.sweep.dir=whole", at=tmp_path)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    runs = folders(tmp_path / "whole")
    assert len(runs) == 18
    assert all(map(complete, runs))
    settled = [(folder.config["model"]["depth"], folder.config["head"]["dropout"], folder.record["resolved"]["world"]) for folder in runs]
    assert sorted(settled) == sorted((depth, dropout, world) for depth in (18, 34, 50) for dropout in (0, 0.2, 0.5) for world in (1, 2))
    draw, root, kept = random.Random(1), tmp_path / "killed", Kept(tmp_path / "killed")
    for number in range(5):
        command = begun("train", "-m", *LINE, "hydra.sweep.dir=killed", at=tmp_path, log=tmp_path / "killed.txt")
        until(lambda: any(map(holding, folders(root))))
        time.sleep(draw.uniform(0, 12))
        assert command.poll() is None, f"it came to its end before kill {number}"
        kill(["controller", "both"][number % 2], command.pid, root, draw)
        command.wait(30)
        nobody_left(root)
        kept.look()
    last = regraft("train", "-m", *LINE, "hydra.sweep.dir=killed", at=tmp_path)
    assert last.returncode == 0, last.stdout + last.stderr
    kept.look()
    same_table(root, tmp_path / "whole")
