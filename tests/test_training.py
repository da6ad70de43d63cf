"""What training promises beside the freezing: durations in steps, averages, clipping, mixing, no training, other truths than a class."""

from __future__ import annotations

import csv
import json

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from regraft import cli, weights
from regraft.augment import GROUP as AUGMENTATIONS
from regraft.errors import UserError
from regraft.graft import Run, build
from regraft.record import Metrics

SMALL = ["dataset=digits", "dataset.per_class=8", 'dataset.classes=["0","1","2"]', "model.weights=none", "trainer.max_epochs=3"]
SMALL += ["trainer.checkpoint_seconds=0", "hardware=cpu", "optimizer.lr=0.01", "data.batch_size=10", "hardware.workers=0"]
MLP = ["model=mlp", "model.depth=2", "freeze=none", "trainer.keep=last"]


def lines(run: Run) -> list[dict[str, str]]:
    return Metrics(run.folder / "metrics.csv").rows()


def losses(run: Run, split: str = "train") -> list[float]:
    return [float(row["value"]) for row in lines(run) if row["metric"] == f"{split}/loss"]


def apart(one: Run, other: Run) -> float:
    a, b = one.chain.state_dict(), other.chain.state_dict()
    return max((a[name].float() - b[name].float()).abs().max().item() for name in a)


@pytest.mark.parametrize("policy", [["freeze=none"], ["freeze=lp_ft", "freeze.probe=0.5"]])
def test_steps_end_a_run_in_the_middle_of_an_epoch(executed, monkeypatch, policy):
    """24 pictures in batches of 10 are three steps an epoch; 8 steps are two epochs and two steps."""
    run = executed([*SMALL, *MLP, *policy, "trainer.max_steps=8"])
    last = [int(row["step"]) for row in lines(run) if row["metric"] == "val/loss"][-1]
    assert last == (8 if policy == ["freeze=none"] else 2), "steps are counted anew in each phase"
    assert len(losses(run)) == len(losses(run, "val")) == 3
    if policy == ["freeze=none"]:
        assert losses(executed([*SMALL, *MLP, "schedule=constant", "trainer.max_epochs=2"])) == pytest.approx(
            losses(executed([*SMALL, *MLP, "schedule=constant", "trainer.max_steps=6"])), rel=1e-6
        ), "whole epochs of steps are epochs"


def test_a_run_in_steps_is_resumed_to_the_same_end(executed, monkeypatch):
    same = [*SMALL, *MLP, "trainer.max_steps=8", "trainer.ema=0.9", "augmentation=mixup"]
    whole = executed(same)
    append, calls = Metrics.append, []

    class Stop(BaseException):
        pass

    def dying(self, *arguments):
        append(self, *arguments)
        calls.append(arguments)
        if len(calls) == 2:
            raise Stop

    monkeypatch.setattr(Metrics, "append", dying)
    with pytest.raises(Stop):
        executed(same, folder="killed")
    monkeypatch.setattr(Metrics, "append", append)
    resumed = executed(same, folder="killed")
    assert apart(whole, resumed) == 0
    assert lines(whole) == lines(resumed)
    assert whole.metrics == resumed.metrics


@pytest.mark.parametrize("augmentation", ["mixup", "cutmix", "[rotations,random_erasing,mixup]", "alexnet", "trivialaugment"])
def test_no_augmentation_depends_on_how_the_batch_is_shared_out(executed, augmentation):
    same = [*SMALL, *MLP, f"augmentation={augmentation}", "optimizer=sgd"]
    whole, parts = executed(same), executed([*same, "hardware.accumulate=5"])
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)
    assert apart(whole, parts) < 1e-5
    assert losses(whole) != losses(executed([*same, "augmentation=none"])), "and it does something"


def test_a_mixed_row_learns_both_labels_by_their_shares(executed, monkeypatch):
    """Where both shares are a half, no answer to two classes has a loss below that of two equal ones: ln 2. About .39 of the pairs, of
    batches of 10, 10 and 4 pictures of three classes, are of one class; the mean of ten epochs lies within .06 of its expectation."""
    run = executed([*SMALL, *MLP, "augmentation=mixup", "augmentation.alpha=1e6", "trainer.max_epochs=30", "optimizer.lr=0.003"])
    assert np.mean(losses(run)[-10:]) > (1 - 0.39) * np.log(2) - 0.06
    assert losses(executed([*SMALL, *MLP, "trainer.max_epochs=30", "optimizer.lr=0.003"]))[-1] < 0.1


def test_what_is_measured_and_kept_is_the_average(executed):
    same = [*SMALL, *MLP, "optimizer=sgd", "optimizer.lr=0.1"]
    plain, averaged = executed(same), executed([*same, "trainer.ema=0.99"])
    assert losses(plain) == losses(averaged), "the average changes no training"
    assert losses(plain, "val") != losses(averaged, "val")
    assert apart(plain, averaged) > 1e-3
    assert averaged.evaluate() == pytest.approx(averaged.metrics, abs=1e-5)
    last = [float(row["value"]) for row in lines(averaged) if row["metric"] == "val/loss"][-1]
    assert averaged.metrics["val/loss"] == pytest.approx(last, rel=1e-5), "the kept weights are those that val was measured with"


def test_clipped_gradients_move_weights_less(executed):
    same = [*SMALL, *MLP, "optimizer=sgd", "optimizer.lr=0.1", "optimizer.momentum=0", "optimizer.nesterov=false", "trainer.max_steps=1"]

    def moved(run):
        start = build(run.settings, run.classes)[0].state_dict()
        return sum((start[name] - tensor).square().sum() for name, tensor in run.chain.state_dict().items()).sqrt().item()

    assert moved(executed([*same, "trainer.clip=0.01", "schedule=constant", "optimizer.weight_decay=0"])) == pytest.approx(
        0.1 * 0.01, rel=1e-3
    )


def test_without_training_the_net_is_measured_as_it_is(executed):
    run = executed([*SMALL, "model=mlp", "trainer.max_epochs=0", "trainer.keep=last"])
    start = build(run.settings, run.classes)[0].state_dict()
    assert all(torch.equal(start[name], tensor) for name, tensor in run.chain.state_dict().items())
    assert run.record["kept"] == {"epoch": -1}
    assert set(run.metrics) >= {"test/accuracy", "train/loss"}
    assert lines(run) == []


def test_every_metric_of_a_class_equals_scikit_learns(executed):
    from sklearn import metrics

    run = executed([*SMALL[:1], *SMALL[3:], "dataset.per_class=5", "model=mlp"])
    told = pl.read_parquet(run.folder / "predictions.parquet")
    truth, scores = told["truth"].to_list(), np.array(told["scores"].to_list())
    labels = [run.classes.index(name) for name in truth]
    expected = {
        "accuracy": metrics.accuracy_score(truth, told["predicted"].to_list()),
        "top5_accuracy": metrics.top_k_accuracy_score(labels, scores, k=5),
        "macro_f1": metrics.f1_score(truth, told["predicted"].to_list(), average="macro"),
        "auroc": metrics.roc_auc_score(labels, scores / scores.sum(1, keepdims=True), multi_class="ovr"),
    }
    for name, value in expected.items():
        assert run.metrics[f"test/{name}"] == pytest.approx(value, abs=1e-6), name
    sure, right = scores.max(1), scores.argmax(1) == labels
    bins = np.clip(np.ceil(sure * 15).astype(int) - 1, 0, 14)  # 15 of equal width (Guo et al. 2017, eq. 3)
    error = sum(abs(sure[bins == each].mean() - right[bins == each].mean()) * (bins == each).mean() for each in set(bins))
    assert run.metrics["test/calibration_error"] == pytest.approx(error, abs=1e-5)


@pytest.fixture
def table(tmp_path):
    """60 grey pictures; a csv with two labels of 0 and 1 and a number for each: light, tall, level."""
    random = np.random.default_rng(0)
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["picture", "light", "tall", "level", "split"])
        for number in range(60):
            level, tall = int(random.integers(20, 236)), number % 2
            picture = np.zeros((12, 12, 3), np.uint8)
            picture[:, 4:8] = level
            picture = picture if tall else picture.transpose(1, 0, 2)
            Image.fromarray(np.ascontiguousarray(picture)).save(tmp_path / f"{number}.png")
            rows.writerow([f"{number}.png", int(level > 127), tall, 10 * level + 1000, ("train", "train", "val", "test")[number % 7 % 4]])
    return ["dataset=csv", f"dataset.path={tmp_path / 'labels.csv'}", "dataset.file=picture", "dataset.split=split", "dataset.size=12"]


CSV = [
    "model=mlp",
    "model.weights=none",
    "freeze=none",
    "hardware=cpu",
    "hardware.workers=0",
    "trainer.max_epochs=40",
    "optimizer.lr=0.003",
]


def test_many_labels_are_learnt_and_measured(executed, table, capsys, tmp_path):
    run = executed([*CSV, *table, "dataset.labels=[light,tall]", "task=tag"])
    assert run.classes == ["light", "tall"]
    assert run.metrics["test/map"] > 0.95
    assert run.metrics["test/accuracy"] > 0.75
    assert run.record["kept"]["monitor"] == "val/map"
    told = pl.read_parquet(run.folder / "predictions.parquet")
    assert set(told["truth"]) == {"", "light", "tall", "light|tall"}
    assert cli.main(["predict", str(run.folder.path), str(tmp_path / "1.png"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["predicted"] in ("tall", "light|tall")
    assert max(said["scores"].values()) <= 1


def test_numbers_are_learnt_in_their_own_units(executed, table, capsys, tmp_path):
    run = executed([*CSV, *table, "dataset.targets=[level]", "task=regress", "loss=mse"])
    truth = pl.read_parquet(run.folder / "predictions.parquet")["truth"].list.first()
    assert run.metrics["test/r2"] > 0.9
    assert run.metrics["test/mae"] < 0.3 * truth.std()
    assert run.evaluate() == pytest.approx(run.metrics, rel=1e-4, abs=1e-4)
    assert cli.main(["predict", str(run.folder.path), str(tmp_path / "1.png"), "--json"]) == 0
    assert 500 < json.loads(capsys.readouterr().out)["scores"]["level"] < 4000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dataset.labels=[light,tall]"], "task=tag learns them"),
        (["dataset.labels=[light,tall]", "task=tag", "loss=mse"], "loss=cross_entropy|focal would work"),
        (["dataset.targets=[level]", "task=regress", "loss=mse", "augmentation=mixup"], "numbers are not mixed"),
        (["dataset.targets=[level]", "task=regress", "loss=mse", "trainer.monitor=val/accuracy"], "task=regress measures val/mae"),
    ],
)
def test_what_does_not_fit_together_is_refused(executed, table, words, said):
    with pytest.raises(UserError) as error:
        executed([*CSV, *table, *words])
    assert said in str(error.value)


def test_whitening_is_fitted_on_train_alone_and_kept_with_the_run(executed):
    same = [*SMALL, "model=mlp", "freeze=none", "data.size=12", "augmentation=whitening", "augmentation.over=pixels"]
    run = executed([*same, "augmentation.kind=zca"])
    pictures = torch.stack([torch.from_numpy(run.source.read(sample)) for sample in run.source.split("train")])
    assert len(pictures) == 24
    opened = Run(run.folder.path)
    assert torch.equal(opened.chain.whitening.mean, run.chain.whitening.mean)
    assert opened.evaluate() == pytest.approx(run.metrics, abs=1e-5)
    other = executed([*same, "augmentation.kind=zca", "dataset.per_class=4"])
    assert not torch.equal(other.chain.whitening.mean, run.chain.whitening.mean), "other train pictures, another map"
    fewer = executed([*same, "augmentation.kind=zca", "dataset.test=0.3"])
    assert fewer.record["data"]["sizes"]["test"] > run.record["data"]["sizes"]["test"]


def test_whitened_activations_are_cached_apart_from_plain_ones(executed, tmp_path):
    same = [*SMALL, "model=timm", "model.arch=test_efficientnet", "freeze=backbone", f"cache.dir={tmp_path / 'cache'}"]
    plain, whitened = executed(same), executed([*same, "augmentation=whitening", "augmentation.over=colours"])
    assert all(note["computed"] == note["rows"] for note in whitened.record["cache"])
    live = executed([*same, "augmentation=whitening", "augmentation.over=colours", "cache.mode=off"])
    assert losses(live) == pytest.approx(losses(whitened), rel=1e-4)
    assert losses(plain) != losses(whitened)


def test_every_augmentation_trains(executed):
    """Under a frozen backbone: finite ones and whitening from the cache, the others live."""
    assert len(AUGMENTATIONS.names()) >= 14
    same = [*SMALL, "model=timm", "model.arch=test_efficientnet", "freeze=backbone", "trainer.max_epochs=1"]
    for name in AUGMENTATIONS.names():
        steps = ["augmentation.steps=[flips,pixel_dropout]"] if name == "several" else []
        run = executed([*same, f"augmentation={name}", *steps])
        random = run.settings.augmentation.finite() is None
        assert [note["split"] for note in run.record["cache"] if note["mode"] == "live"] == (["train"] if random else []), name


def test_auxiliary_heads_train_with_the_stage_that_they_listen_to(executed):
    same = [*SMALL, "model=googlenet", "data.size=32", "trainer.max_epochs=1", "freeze=last"]
    above, within = executed([*same, "freeze.n=1"]), executed([*same, "freeze.n=2"])
    assert above.record["phases"][0]["trains"] == ["inception5", "head"]
    assert within.record["phases"][0]["trains"] == ["inception4", "inception5", "head"]
    held = {run: {name.split(".")[1] for name in saved(run) if name.startswith("auxiliary.")} for run in (above, within)}
    assert held == {above: set(), within: {"aux1", "aux2"}}
    start = build(within.settings, within.classes)[0].state_dict()
    moved = {name.split(".")[1] for name, tensor in saved(within).items() if not torch.equal(start[name], tensor) and "auxiliary" in name}
    assert moved == {"aux1", "aux2"}
    assert Run(within.folder.path).evaluate() == pytest.approx(within.metrics, abs=1e-4), "and are no part of the answer"
    alone = executed([*same, "freeze.n=2", "model.auxiliary=false"])
    assert losses(alone)[0] != losses(within)[0]


def saved(run: Run) -> dict[str, torch.Tensor]:
    return weights.read(run.folder / "model.safetensors")


def test_what_auto_chose_is_recorded_and_stays_with_the_run(executed, monkeypatch):
    same = [*SMALL, "model=timm", "model.arch=test_efficientnet", "freeze=none", "hardware.precision=auto", "hardware.memory_format=auto"]
    run = executed(same)
    [told] = run.record["tuning"]
    assert {(row["precision"], row["memory_format"]) for row in told["measured"]} == {
        (precision, layout) for precision in ("fp32", "bf16") for layout in ("contiguous", "channels_last")
    }
    assert not told["known"]
    again = executed([*same, "seed=1"])
    assert again.record["tuning"][0]["known"], "the same net and batch are not measured twice"
    assert again.record["tuning"][0]["choice"] == told["choice"]
    assert executed([*same[:-2], "seed=2"]).record.get("tuning") is None
    monkeypatch.setattr("regraft.tuning.fastest", lambda measured: next(row.choice for row in measured if "channels_last" in row.choice))
    other = executed([*same, "seed=3", "freeze=last"])
    assert other.record["tuning"][0]["choice"]["memory_format"] == "channels_last"
    assert all(tensor.is_contiguous() for tensor in saved(other).values())
