"""What training promises beside the freezing: durations in steps, averages, clipping, mixing, whitening, no training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from regraft import config, weights
from regraft.augment import GROUP as AUGMENTATIONS
from regraft.feeds import fitted
from regraft.graft import Run, build
from regraft.reading import Reading
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
def test_steps_end_a_run_in_the_middle_of_an_epoch(executed, policy):
    """24 pictures in batches of 10 are three steps an epoch; 8 steps are two epochs and two steps."""
    run = executed([*SMALL, *MLP, *policy, "trainer.max_steps=8"])
    last = [int(row["step"]) for row in lines(run) if row["metric"] == "val/loss"][-1]
    assert last == (8 if policy == ["freeze=none"] else 2), "steps are counted anew in each phase"
    assert len(losses(run)) == len(losses(run, "val")) == 3
    if policy == ["freeze=none"]:
        assert losses(executed([*SMALL, *MLP, "schedule=constant", "trainer.max_epochs=2"])) == pytest.approx(
            losses(executed([*SMALL, *MLP, "schedule=constant", "trainer.max_steps=6"])), rel=1e-6
        ), "whole epochs of steps are epochs"


def test_a_run_in_steps_is_resumed_to_the_same_end(executed, killed):
    same = [*SMALL, *MLP, "trainer.max_steps=8", "trainer.ema=0.9", "augmentation=mixup"]
    whole = executed(same)
    killed(same, 2)
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


EMA = [*SMALL, "model=timm", "model.arch=test_efficientnet", "freeze=lp_ft", "freeze.finetune_lr=1", "trainer.ema=0.8"]
EMA += ["trainer.max_epochs=5", "augmentation=flips"]


@pytest.mark.parametrize("keep", ["best", "last"])
def test_an_average_over_two_phases_is_what_val_was_measured_with(executed, keep):
    """With BatchNorm, whose statistics are averaged too, and whose statistics stay in the first phase."""
    run = executed([*EMA, f"trainer.keep={keep}", "trainer.monitor=val/loss"])
    assert [phase["epochs"] for phase in run.record["phases"]] == [2, 3]
    measured = losses(run, "val")
    kept = run.record["kept"]["epoch"]
    assert kept == (4 if keep == "last" else measured.index(min(measured)))
    assert run.metrics["val/loss"] == pytest.approx(measured[kept], rel=1e-4)
    assert run.evaluate() == pytest.approx(run.metrics, rel=1e-4, abs=1e-5)
    plain = executed([*[word for word in EMA if "ema" not in word], f"trainer.keep={keep}", "trainer.monitor=val/loss"])
    first = losses(run)[:2]
    assert first == losses(plain)[:2], "the average changes no training of the first phase"
    assert losses(run, "val") != losses(plain, "val")


def test_an_average_is_resumed_in_the_second_phase_to_the_same_bits(executed, killed):
    whole = executed(EMA)
    killed(EMA, 4)
    checkpoint = torch.load(whole.folder.path.parent / "killed" / "last.ckpt", weights_only=True)
    assert (checkpoint["regraft"]["phase"], checkpoint["regraft"]["epochs"]) == (1, 3)
    resumed = executed(EMA, folder="killed")
    assert apart(whole, resumed) == 0
    assert lines(whole) == lines(resumed)
    assert whole.metrics == resumed.metrics
    assert whole.record["kept"] == resumed.record["kept"]


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


def pictures(run: Run, split: str) -> torch.Tensor:
    """uint8 [n, 3, size, size], as the net would see them."""
    read = [torch.from_numpy(fitted(run.source.read(sample), run.settings.size, "crop")) for sample in run.source.split(split)]
    return torch.stack(read)


def test_whitening_is_fitted_on_train_alone_and_kept_with_the_run(executed):
    same = [*SMALL, "model=mlp", "freeze=none", "data.size=12", "augmentation=whitening", "augmentation.over=pixels"]
    run = executed([*same, "augmentation.kind=zca"])
    train = pictures(run, "train")
    assert len(train) == 24
    torch.testing.assert_close(run.chain.whitening.mean, (train.double() / 255).mean(0).flatten().float())
    every = torch.cat([pictures(run, split) for split in ("train", "val", "test")])
    with pytest.raises(AssertionError):
        torch.testing.assert_close(run.chain.whitening.mean, (every.double() / 255).mean(0).flatten().float(), rtol=0.01, atol=0.01)
    opened = Run(run.folder.path)
    assert torch.equal(opened.chain.whitening.mean, run.chain.whitening.mean)
    assert opened.evaluate() == pytest.approx(run.metrics, abs=1e-5)
    seen = run.chain.prepare(train).flatten(1).double()  # [24, d]
    torch.testing.assert_close(seen.mean(0), torch.zeros(seen.shape[1], dtype=torch.float64), rtol=0, atol=1e-4)


def test_the_colours_of_alexnets_shift_are_trains_alone():
    words = ["dataset=clipart", 'dataset.classes=["bread","bug"]', "dataset.per_class=3", "data.size=16", "model=mlp", "hardware.workers=0"]
    s = config.Composer().jobs([*words, "augmentation=alexnet"], multirun=False)[0].settings
    source = s.dataset.open(s.cache.folder())
    found = Reading(s, source).colours

    def by_hand(*splits: str) -> tuple[np.ndarray, np.ndarray]:
        read = [fitted(source.read(sample), 16, "crop") for split in splits for sample in source.split(split)]
        pixels = np.concatenate([picture.reshape(3, -1) for picture in read], 1) / 255
        return pixels.mean(1), np.cov(pixels)

    mean, covariance = by_hand("train")
    np.testing.assert_allclose(found.mean, mean, rtol=1e-9)
    np.testing.assert_allclose(found.eigenvectors.T @ torch.diag(found.eigenvalues) @ found.eigenvectors, covariance, atol=1e-9)
    assert np.abs(by_hand("train", "val", "test")[0] - mean).max() > 1e-3
    plain = config.Composer().jobs([*words, "augmentation=randaugment"], multirun=False)[0].settings
    assert Reading(plain, source).colours is None


def test_whitened_activations_are_cached_apart_from_plain_ones(executed, tmp_path):
    same = [*SMALL, "model=timm", "model.arch=test_efficientnet", "freeze=backbone", f"cache.dir={tmp_path / 'cache'}"]
    plain, whitened = executed(same), executed([*same, "augmentation=whitening", "augmentation.over=colours"])
    assert all(note["computed"] == note["rows"] for note in whitened.record["cache"])
    live = executed([*same, "augmentation=whitening", "augmentation.over=colours", "cache.mode=off"])
    assert losses(live) == pytest.approx(losses(whitened), rel=1e-4)
    assert losses(plain) != losses(whitened)


def test_every_augmentation_trains_and_changes_what_is_learnt(executed):
    """Under a frozen backbone: finite ones and whitening from the cache, the others live."""
    assert len(AUGMENTATIONS.names()) >= 14
    same = [*SMALL, "model=timm", "model.arch=test_efficientnet", "freeze=backbone", "trainer.max_epochs=1", "trainer.keep=last"]
    plain = executed([*same, "augmentation=none", "cache.mode=off"])
    assert losses(executed([*same, "augmentation=none"])) == pytest.approx(losses(plain), rel=1e-5), "live or cached is no difference"
    for name in AUGMENTATIONS.names():
        steps = ["augmentation.steps=[flips,pixel_dropout]"] if name == "several" else []
        run = executed([*same, f"augmentation={name}", *steps])
        random = run.settings.augmentation.finite() is None
        assert [note["split"] for note in run.record["cache"] if note["mode"] == "live"] == (["train"] if random else []), name
        assert (losses(run) == pytest.approx(losses(plain), rel=1e-4)) == (name == "none"), name


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
