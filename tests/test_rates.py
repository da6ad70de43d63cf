"""Losses, schedules and the range test in whole runs: each changes what it says, and the rate that is told is the one that was used."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from PIL import Image

from regraft import lr_finder, range_test
from regraft.config import Composer
from regraft.errors import UserError
from regraft.graft import Run
from regraft.record import Metrics

SMALL = ["dataset=digits", "dataset.per_class=8", 'dataset.classes=["0","1","2"]', "model=mlp", "model.weights=none", "freeze=none"]
SMALL += ["hardware=cpu", "hardware.workers=0", "data.batch_size=10", "trainer.max_epochs=3", "trainer.keep=last", "optimizer.lr=0.01"]


def told(run: Run, name: str) -> list[float]:
    return [float(row["value"]) for row in Metrics(run.folder / "metrics.csv").rows() if row["metric"] == name]


@pytest.fixture(scope="module")
def source(_surroundings):
    return settings().dataset.open(settings().cache.folder())


def settings(*words: str):
    return Composer().jobs([*SMALL, *words], multirun=False)[0].settings


# 24 pictures in batches of 10 are three steps an epoch, nine in all; the last of each epoch are the steps 2, 5 and 8, counted from 0
RATES = {
    "constant": ([], [1, 1, 1]),
    "cosine": (["schedule.warmup=0"], [0.883022, 0.413176, 0.030154]),  # (1 + cos(pi step / 9)) / 2
    "linear": (["schedule.warmup=0"], [7 / 9, 4 / 9, 1 / 9]),
    "linear of steps": (["schedule=linear", "schedule.warmup='2 steps'"], [1, 4 / 7, 1 / 7]),
    "linear of epochs": (["schedule=linear", "schedule.warmup='1 epochs'"], [3 / 4, 4 / 6, 1 / 6]),
    "one_cycle": (["schedule.anneal=linear"], [1, 0.500002, 4e-6]),  # three steps up, six down to 4e-6
    "step": ([], [1, 0.1, 0.01]),  # half of nine steps is the fourth, three quarters the seventh
    "step of steps": (["schedule=step", "schedule.warmup='2 steps'", "schedule.milestones=['5 steps']"], [1, 0.1, 0.1]),
    "step of epochs": (["schedule=step", "schedule.warmup='2 epochs'", "schedule.milestones=['2 epochs']"], [3 / 7, 6 / 7, 0.1]),
}


@pytest.fixture(scope="module")
def constant(_surroundings):
    """What the losses are at a rate that never changes; filled by the first test that asks."""
    return {}


@pytest.mark.parametrize("name", RATES)
def test_an_epochs_rate_is_the_one_that_its_last_step_used(executed, constant, name):
    words, factors = RATES[name]
    run = executed([*SMALL, f"schedule={name.split()[0]}", *words])
    assert told(run, "lr") == pytest.approx([0.01 * factor for factor in factors], rel=1e-4)
    if not constant:
        constant["losses"] = told(executed([*SMALL, "schedule=constant"]), "train/loss")
    assert (told(run, "train/loss") == constant["losses"]) == (name == "constant"), "a schedule changes the training"


def test_the_rate_is_told_of_each_phase_with_its_factor(executed):
    run = executed([*SMALL, "freeze=lp_ft", "freeze.probe=0.4", "freeze.finetune_lr=0.5", "schedule=linear", "schedule.warmup=0"])
    assert told(run, "lr") == pytest.approx([0.01 * 1 / 3, 0.005 * 4 / 6, 0.005 * 1 / 6], rel=1e-5)


def test_weights_of_classes_weigh_and_balanced_ones_balance(executed):
    """One step, before which all rows have been measured with the same weights."""
    same = [*SMALL, "trainer.max_epochs=1", "optimizer.lr=1e-12", "head.dropout=0", "data.batch_size=24"]

    def first(*words: str) -> float:
        [loss] = told(executed([*same, *words]), "train/loss")
        return loss

    plain, alone = first(), [first(f"loss.class_weights={weights}") for weights in ("[1,0,0]", "[0,1,0]", "[0,0,1]")]
    assert min(alone) > 0
    assert sum(alone) == pytest.approx(plain, rel=1e-5)
    assert first("loss.class_weights=[3,1,0.5]") == pytest.approx(3 * alone[0] + alone[1] + 0.5 * alone[2], rel=1e-5)
    assert first("loss.class_weights=balanced") == pytest.approx(plain, rel=1e-5), "eight pictures of each"


def test_balanced_weights_give_a_rare_class_the_same_part(executed, tmp_path):
    random = np.random.default_rng(0)
    for name, count in (("common", 12), ("rare", 4)):
        for number in range(count):
            for split in ("train", "val", "test") if number < 2 else ("train",):
                path = tmp_path / "pictures" / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    same = [*SMALL, "dataset=folder", f"dataset.path={tmp_path / 'pictures'}", "dataset.per_class=null", "dataset.classes=null"]
    same += ["data.size=8", "trainer.max_epochs=1", "optimizer.lr=1e-12", "head.dropout=0"]

    def first(weights: str) -> float:
        [loss] = told(executed([*same, f"loss.class_weights={weights}"]), "train/loss")
        return loss

    assert first("balanced") == pytest.approx(first("[1,0]") * 16 / (2 * 12) + first("[0,1]") * 16 / (2 * 4), rel=1e-5)
    assert first("balanced") != pytest.approx(first("null"), rel=1e-4)


def test_focal_loss_counts_little_what_is_right_already(executed):
    plain = told(executed(SMALL), "train/loss")
    assert told(executed([*SMALL, "loss=focal", "loss.gamma=0"]), "train/loss") == pytest.approx(plain, rel=1e-5)
    assert told(executed([*SMALL, "loss=focal"]), "train/loss") != pytest.approx(plain, rel=1e-2)
    still = [*SMALL, "optimizer.lr=1e-12", "head.dropout=0"]
    plain, focal = told(executed(still), "train/loss"), told(executed([*still, "loss=focal"]), "train/loss")
    assert all(less < more for less, more in zip(focal, plain, strict=True)), "by the factors (1 - p)^2"
    weighted = told(executed([*still, "loss=focal", "loss.class_weights=[2,2,2]"]), "train/loss")
    assert weighted == pytest.approx([2 * loss for loss in focal], rel=1e-5)


# The range test


@pytest.mark.parametrize("policy", ["freeze=phases", "freeze=lp_ft"])
def test_the_suggestion_is_one_for_optimizer_lr(source, tmp_path, monkeypatch, policy):
    """A phase whose rate has a factor of a tenth does at a rate what one without does at a tenth of it; optimizer.lr changes nothing."""

    def found(factor: float, *words: str, **keys: float) -> lr_finder.Found:
        monkeypatch.setattr(range_test.lr_finder, "find", partial(find, **keys))
        phases = f"freeze.phases=[{{name: whole, epochs: 3, from: layer1, lr: {factor}}}]"
        own = [phases] if policy == "freeze=phases" else []
        return range_test.run(settings(policy, *own, *words), source, tmp_path / "lr.png", 40, lambda text: None)

    find = lr_finder.find
    whole = found(1.0)
    assert whole.suggestion is not None
    assert 1e-4 < whole.suggestion < 1
    assert found(1.0, "optimizer.lr=0.3") == whole
    if policy == "freeze=phases":
        tenth = found(0.1, first=1e-5, last=10.0)
        assert tenth.losses == pytest.approx(whole.losses, rel=1e-4)
        assert tenth.lrs == pytest.approx([10 * rate for rate in whole.lrs])
        assert tenth.suggestion == pytest.approx(10 * whole.suggestion)
    else:
        assert found(1.0, "freeze.finetune_lr=0.001") == whole, "the first phase is what is tested"


NARROW = ["model=efficientnet_lite", "model.weights=imagenet", "freeze=backbone", "head=narrow", "dataset=cats_dogs"]


@pytest.mark.parametrize(
    ("words", "key", "said"),
    [
        (NARROW, "trainer.max_epochs", "nothing trains"),
        (["trainer.max_epochs=0"], "trainer.max_epochs", "nothing trains"),
        (["hardware=ddp_cpu"], "hardware.devices", "one device"),
    ],
)
def test_where_there_is_no_rate_to_find_it_is_said(tmp_path, words, key, said):
    given = [word for word in SMALL if not (words == NARROW and word.startswith("dataset"))]
    s = Composer().jobs([*given, *words], multirun=False)[0].settings
    with pytest.raises(UserError) as error:
        range_test.run(s, s.dataset.open(s.cache.folder()), tmp_path / "lr.png", 40, lambda text: None)
    [problem] = error.value.problems
    assert problem.key == key
    assert said in problem.remedy
    assert not list(tmp_path.iterdir())


def test_tags_are_no_class(tmp_path):
    (tmp_path / "out").mkdir()
    rows = ["file,light,tall", *(f"{number}.png,{number % 2},{number % 3 // 2}" for number in range(12))]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    for number in range(12):
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(tmp_path / f"{number}.png")
    given = [word for word in SMALL if not word.startswith("dataset")]
    given += ["dataset=csv", f"dataset.path={tmp_path / 'labels.csv'}", "dataset.labels=[light,tall]", "data.size=8"]
    for task, right in (("classify", False), ("tag", True)):
        s = Composer().jobs([*given, f"task={task}"], multirun=False)[0].settings
        source = s.dataset.open(s.cache.folder())
        if right:
            assert range_test.run(s, source, tmp_path / "out" / "lr.png", 16, lambda text: None).losses
            assert [path.name for path in (tmp_path / "out").iterdir()] == ["lr.png"]
        else:
            with pytest.raises(UserError, match="task=tag learns them"):
                range_test.run(s, source, tmp_path / "out" / "lr.png", 16, lambda text: None)
            assert not list((tmp_path / "out").iterdir())


def test_nothing_is_left_but_the_picture(source, tmp_path):
    s = settings("freeze=backbone", "cache.mode=off")
    range_test.run(s, source, tmp_path / "lr.png", 16, lambda text: None)
    assert [path.name for path in tmp_path.iterdir()] == ["lr.png"]
