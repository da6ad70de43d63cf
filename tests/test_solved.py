"""Heads that need no epochs, as runs: in the same folders and tables, on the same cache, those of one kind together."""

from __future__ import annotations

import pytest
import torch

from regraft import config, sweep
from regraft.errors import UserError
from regraft.graft import Run
from regraft.report import tables
from regraft.weights import read

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = ["dataset.per_class=6", "data.size=32"]


@pytest.mark.parametrize("head", ["ridge", "logistic", "knn", "nearest_mean"])
def test_a_solved_run_is_a_run_like_any_other(swept, head):
    [folder] = swept([*SMALL, f"head={head}"])
    run = Run(folder.path)
    assert run.metrics["train/accuracy"] > 0.3 > 1 / 19, "19 classes: better than chance by far on what it was fitted on"
    assert run.evaluate() == pytest.approx(run.metrics, abs=1e-5)
    assert run.record["fit"]["pictures"] == 6 * 19
    assert run.record["kept"] == {"epoch": -1}
    assert tables.result(folder) is not None


def test_runs_that_differ_in_the_penalty_alone_are_one_solvers_work(swept):
    penalties = ["head=ridge", "head.penalty=1,100,10000"]
    together, alone = swept([*SMALL, *penalties], "together"), swept([*SMALL, *penalties, "sweep.stack=false"], "alone")
    assert [folder.record["group"]["size"] for folder in together] == [3, 3, 3]
    weights = []
    for one, other in zip(together, alone, strict=True):
        mine, its = read(one / "model.safetensors"), read(other / "model.safetensors")
        assert mine.keys() == its.keys()
        assert all(torch.allclose(mine[name], its[name], atol=1e-5) for name in mine)
        assert one.record["metrics"] == pytest.approx(other.record["metrics"], abs=1e-5)
        weights.append(mine["head.weight"].norm())
    assert weights[0] > weights[1] > weights[2], "the stronger the penalty, the smaller the weights"


def test_what_is_chosen_is_chosen_on_val(swept):
    [folder] = swept([*SMALL, "head=ridge", "head.penalty=[0.1,1000,100000]"])
    fit, metrics = folder.record["fit"], folder.record["metrics"]
    tried = {each["penalty"]: each["val"] for each in fit["tried"]}
    assert set(tried) == {0.1, 1000, 100000}
    assert tried[fit["penalty"]] == max(tried.values())
    assert metrics["val/accuracy"] == pytest.approx(max(tried.values()), abs=1e-6)


def test_every_view_of_a_train_picture_is_fitted(swept):
    [folder] = swept([*SMALL, "head=knn", "head.k=1", "augmentation=d4"])
    assert folder.record["fit"]["pictures"] == 8 * 6 * 19
    assert len(read(folder / "model.safetensors")["head.bank"]) == 8 * 6 * 19
    assert folder.record["metrics"]["train/accuracy"] == 1.0, "the nearest neighbour of a train picture is itself"


def test_live_and_cached_features_give_the_same_head(swept):
    [cached] = swept([*SMALL, "head=ridge"], "cached")
    [live] = swept([*SMALL, "head=ridge", "cache.mode=off"], "live")
    assert live.record["metrics"] == pytest.approx(cached.record["metrics"], abs=1e-4)


def test_numbers_are_solved_in_the_datas_own_units(swept, tmp_path):
    from PIL import Image

    rows = ["file,width,split"]
    for i in range(30):
        picture = Image.new("RGB", (32, 32), "white")
        picture.paste("black", (0, 8, i + 2, 24))
        picture.save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{1000 + 8 * i},{'test' if i % 5 == 0 else 'val' if i % 5 == 1 else 'train'}")
    (tmp_path / "widths.csv").write_text("\n".join(rows))
    words = ["dataset=csv", f"dataset.path={tmp_path / 'widths.csv'}", "dataset.targets=[width]", "task=regress", "loss=mse"]
    [folder] = swept([*words, "data.size=32", "head=ridge", "head.penalty=0.01"])
    assert folder.record["metrics"]["train/mae"] < 8, "of numbers from 1000 to 1232"
    assert folder.record["metrics"]["test/mae"] < 40


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["head=ridge", "freeze=last"], "freeze"),
        (["head=knn", "hardware=cpu", "hardware.devices=2"], "hardware.devices"),
        (["head=nearest_mean", "task=tag"], "head"),
        (["head=ridge", "head.dropout=0.5"], "head.dropout"),
        (["head=knn", "head.k=[]"], "head.k"),
    ],
)
def test_what_a_solved_head_can_not_do_is_told_before_anything_runs(words, key):
    with pytest.raises(UserError) as caught:
        sweep.plan(config.Composer().jobs(words, multirun=False))
    assert key in [problem.key for problem in caught.value.problems]


def test_heads_of_one_kind_but_other_layers_are_each_kept_whole(swept):
    folders = swept([*SMALL, "head=nearest_mean", "head.metric=cosine,euclidean", "trainer.max_epochs=0,3"])
    assert [folder.record["status"] for folder in folders] == ["done"] * 4
    for folder in folders:
        run = Run(folder.path)
        assert run.evaluate() == pytest.approx(run.metrics, abs=1e-5)


def test_no_epochs_is_what_a_solved_head_needs(swept):
    [folder] = swept([*SMALL, "head=knn", "trainer.max_epochs=0", "augmentation=flips", "augmentation.vertical=true", "cache.mode=off"])
    views = 4 if folder.config["augmentation"]["horizontal"] else 2
    assert folder.record["fit"]["pictures"] == views * 6 * 19
