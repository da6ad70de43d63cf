"""Whole runs in this process: what is frozen stays, what is cached equals what is live, what was interrupted ends the same."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from regraft import graft, heads, weights
from regraft.errors import UserError
from regraft.graft import Run, build
from regraft.record import CHECKPOINT, Metrics
from regraft.tasks.module import PhaseModule

SMALL = ["dataset=digits", "dataset.per_class=8", 'dataset.classes=["0","1","2"]', "model.weights=none", "trainer.max_epochs=3"]
SMALL += ["trainer.checkpoint_seconds=0", "hardware=cpu", "optimizer.lr=0.01", "data.batch_size=10", "hardware.workers=0"]
NETS = {
    "mlp": ["model=mlp", "model.depth=2", "model.dropout=0.1"],
    "resnet": ["model=resnet"],
    "efficientnet": ["model=timm", "model.arch=test_efficientnet"],
    "vit": ["model=timm", "model.arch=test_vit"],
}
POLICIES = {"none": [], "backbone": [], "last": ["freeze.n=1"], "lp_ft": ["freeze.probe=0.3", "freeze.finetune_lr=0.5"]}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def lines(run: Run) -> list[dict[str, str]]:
    return Metrics(run.folder / "metrics.csv").rows()


def losses(run: Run, split: str = "train") -> list[float]:
    return [float(row["value"]) for row in lines(run) if row["metric"] == f"{split}/loss"]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("net", NETS)
def test_what_is_frozen_is_bit_identical_and_what_trains_is_not(executed, net, policy):
    run = executed([*SMALL, *NETS[net], f"freeze={policy}", *POLICIES[policy], "trainer.keep=last"])
    before, after = build(run.settings, run.classes)[0], run.chain
    trained = {stage for phase in run.record["phases"] for stage in phase["trains"]}
    frozen = [stage for stage in before.stages if stage not in trained]
    start, end = before.state_dict(), after.state_dict()
    changed = {before.stage_of(name) for name in start if not torch.equal(start[name], end[name])}
    expected = {"none": before.stages, "lp_ft": before.stages, "backbone": ("head",), "last": before.stages[-2:]}[policy]
    assert trained == set(expected)
    assert changed == trained
    assert set(frozen).isdisjoint(changed)
    saved = weights.read(run.folder / "model.safetensors")
    assert {before.stage_of(name) for name in saved} == trained, "model.safetensors holds what trained, and nothing else"


def test_a_trained_batchnorm_moves_its_statistics_and_a_frozen_one_does_not(executed):
    run = executed([*SMALL, *NETS["resnet"], "freeze=last"])
    start, end = build(run.settings, run.classes)[0].state_dict(), run.chain.state_dict()
    moved = {name for name in start if name.endswith("running_mean") and not torch.equal(start[name], end[name])}
    assert moved == {name for name in start if name.endswith("running_mean") and ".layer4." in name}


@pytest.mark.parametrize(
    ("net", "policy", "views"),
    [("efficientnet", policy, views) for policy in ("backbone", "last") for views in ("none", "flips", "rotations", "d4", "expand")]
    + [("resnet", "last", "none"), ("resnet", "backbone", "d4"), ("vit", "last", "rotations"), ("mlp", "last", "flips")],
)
def test_cached_equals_live(executed, net, policy, views):
    augmentation = ["augmentation=rotations", "augmentation.views=expand"] if views == "expand" else [f"augmentation={views}"]
    same = [*SMALL, *NETS[net], f"freeze={policy}", *augmentation, "head.dropout=0.3", "trainer.keep=last"]
    cached, live = executed([*same, "cache.mode=require"]), executed([*same, "cache.mode=off"])
    assert {note["mode"] for note in cached.record["cache"]} == {"cached"}
    assert {note["mode"] for note in live.record["cache"]} == {"live"}
    assert losses(cached) == pytest.approx(losses(live), rel=1e-4)
    one, other = cached.chain.state_dict(), live.chain.state_dict()
    assert max((one[name].float() - other[name].float()).abs().max().item() for name in one) < 2e-4
    assert cached.metrics == pytest.approx(live.metrics, rel=1e-3, abs=1e-4)


def test_what_ran_once_is_read_ever_after(executed, tmp_path):
    same = [*SMALL, *NETS["efficientnet"], "freeze=backbone", f"cache.dir={tmp_path / 'cache'}"]

    def computed(run: Run) -> int:
        return sum(note["computed"] for note in run.record["cache"])

    first = executed([*same, "augmentation=d4"])
    sizes = first.record["data"]["sizes"]
    assert computed(first) == 8 * sizes["train"] + sizes["val"] + sizes["test"]
    assert computed(executed([*same, "augmentation=none", "head.dropout=0.5"])) == 0, "no augmentation lies within d4"
    assert computed(executed([*same, "augmentation=rotations", "optimizer.lr=0.1"])) == 0, "and so do rotations"
    assert computed(executed([*same, "dataset.per_class=4"])) == 0, "a smaller set shares its rows"
    assert computed(executed([*same, "data.size=40"])) > 0, "another size is another store"


def test_the_part_that_is_kept_of_a_picture_decides_rows_and_predictions(executed, tmp_path):
    same = [*SMALL, *NETS["efficientnet"], "freeze=backbone", f"cache.dir={tmp_path / 'cache'}", "data.size=32", "trainer.keep=last"]
    rows = sum((whole := executed(same)).record["data"]["sizes"].values())
    half = executed([*same, "data.crop=0.5"])
    assert sum(note["computed"] for note in half.record["cache"]) == rows, "another part is another store"
    assert sum(note["computed"] for note in executed([*same, "data.crop=0.5", "optimizer.lr=0.1"]).record["cache"]) == 0
    assert losses(half) == pytest.approx(losses(executed([*same, "data.crop=0.5", "cache.mode=off"])), rel=1e-4)
    assert losses(half) != pytest.approx(losses(whole), rel=1e-3)
    squashed = [*same, "data.fit=squash"]
    executed(squashed)
    assert sum(note["computed"] for note in executed([*squashed, "data.crop=0.5"]).record["cache"]) == 0, "squash keeps the whole"
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "one.png")
    Image.fromarray(picture[16:48, 16:48]).save(tmp_path / "middle.png")
    (_, seen), (_, smaller) = half.predict([tmp_path / "one.png", tmp_path / "middle.png"])
    [(_, expected)] = Run(whole.folder.path).predict([tmp_path / "middle.png"])
    by_hand = half.scores(picture[16:48, 16:48].transpose(2, 0, 1)[None])[0]
    torch.testing.assert_close(seen, by_hand)
    torch.testing.assert_close(expected, whole.scores(picture[16:48, 16:48].transpose(2, 0, 1)[None])[0])
    assert not torch.allclose(seen, smaller, rtol=1e-3)


def test_dropout_acts_and_only_while_training(executed):
    same = [*SMALL, *NETS["efficientnet"], "trainer.keep=last", "freeze=backbone"]
    none, half = executed([*same, "head.dropout=0"]), executed([*same, "head.dropout=0.5"])
    assert losses(none) != losses(half)
    assert half.evaluate() == pytest.approx(half.metrics, abs=1e-5), "two passes give the same: no dropout in evaluation"


@pytest.mark.parametrize("accumulate", [2, 5])
def test_accumulation_changes_no_loss_and_no_weight(executed, accumulate):
    same = [*SMALL, *NETS["mlp"], "freeze=none", "head.dropout=0.3", "augmentation=d4", "trainer.keep=last", "optimizer=sgd"]
    whole, parts = executed(same), executed([*same, f"hardware.accumulate={accumulate}"])
    assert parts.record["batch"] == {"global": 10, "devices": 1, "micro": 10 // accumulate, "accumulate": accumulate}
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-6)
    one, other = whole.chain.state_dict(), parts.chain.state_dict()
    assert max((one[name] - other[name]).abs().max().item() for name in one) < 1e-6


def test_the_same_seed_gives_the_same_run_and_another_seed_another(executed):
    same = [*SMALL, *NETS["mlp"], "freeze=none", "head.dropout=0.3", "augmentation=flips"]
    one, again, other = executed(same), executed(same), executed([*same, "seed=1"])
    assert equal(one.chain.state_dict(), again.chain.state_dict())
    assert lines(one) == lines(again)
    assert losses(one) != losses(other)


@pytest.mark.parametrize("after", [1, 2, 3, 4])
@pytest.mark.parametrize("policy", ["none", "lp_ft"])
def test_a_resumed_run_ends_as_the_uninterrupted_one(executed, killed, policy, after):
    """lp_ft: two epochs of each phase, so that it dies within the first, between both, and within the second."""
    same = [*SMALL, *NETS["efficientnet"], f"freeze={policy}", "trainer.max_epochs=5", "head.dropout=0.3", "augmentation=d4"]
    whole = executed(same)
    killed(same, after + 1)
    again = executed(same, folder="killed")
    assert equal(whole.chain.state_dict(), again.chain.state_dict())
    assert lines(whole) == lines(again), "each epoch's lines stand once"
    assert whole.metrics == again.metrics
    assert whole.record["kept"] == again.record["kept"]
    if policy == "lp_ft":
        assert [row["phase"] for row in lines(again) if row["metric"] == "train/loss"] == ["probe"] * 2 + ["fine-tune"] * 3


def test_a_damaged_checkpoint_is_named(executed, monkeypatch):
    same = [*SMALL, *NETS["mlp"]]
    folder = executed(same, folder="damaged").folder
    folder.update(status="running")
    (folder / CHECKPOINT).write_bytes(b"PK and no more")
    with pytest.raises(UserError, match=r"last.ckpt: the checkpoint can't be read"):
        executed(same, folder="damaged")


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_kept_epoch_is_the_tested_one(executed, keep):
    run = executed([*SMALL, *NETS["mlp"], "freeze=none", f"trainer.keep={keep}", "trainer.max_epochs=6", "optimizer.lr=0.1"])
    accuracy = [float(row["value"]) for row in lines(run) if row["metric"] == "val/accuracy"]
    kept = run.record["kept"]
    assert kept["epoch"] == (accuracy.index(max(accuracy)) if keep == "best" else 5)
    assert run.metrics["val/accuracy"] == pytest.approx(accuracy[kept["epoch"]])
    assert kept["value"] == pytest.approx(accuracy[kept["epoch"]])


def test_patience_ends_a_phase(executed):
    run = executed([*SMALL, *NETS["mlp"], "trainer.patience=2", "trainer.max_epochs=30", "optimizer.lr=1e-9"])
    assert len(losses(run)) == 3, "the first epoch is the best; two more do not better it"


def test_a_last_batch_of_one_picture_trains_under_batchnorm(executed):
    run = executed([*SMALL, *NETS["resnet"], "freeze=none", "data.batch_size=23", "trainer.max_epochs=1"])
    assert run.record["data"]["sizes"]["train"] % 23 == 1
    assert all(torch.isfinite(tensor).all() for tensor in run.chain.state_dict().values())


def test_metrics_count_every_picture_once(executed):
    run = executed([*SMALL, *NETS["mlp"], "data.batch_size=7"])
    answers = pl.read_parquet(run.folder / "predictions.parquet")
    assert answers.columns == ["id", "truth", "predicted", "scores"]
    assert answers["id"].to_list() == [sample.id for sample in run.source.split("test")]
    assert run.metrics["test/accuracy"] == pytest.approx((answers["truth"] == answers["predicted"]).mean())
    best = answers["scores"].list.arg_max().to_list()
    assert [run.classes[number] for number in best] == answers["predicted"].to_list()
    epoch = [float(row["value"]) for row in lines(run) if row["metric"] == "val/loss"][run.record["kept"]["epoch"]]
    assert epoch == pytest.approx(run.metrics["val/loss"], rel=1e-4), "during training and afterwards"


def test_the_record_names_what_decided_the_result(executed):
    run = executed([*SMALL, *NETS["efficientnet"], "freeze=last"])
    record = json.loads((run.folder / "record.json").read_text())
    promised = "schema run_id status command git packages machine data weights seed phases cache batch resolved times metrics group"
    assert set(promised.split()) <= set(record)
    assert record["status"] == "done"
    assert record["phases"][0]["boundary"] == run.chain.stages[-2]
    assert record["data"]["fingerprint"] == run.source.fingerprint()
    assert record["resolved"]["world"] == 1
    stages = record["phases"][0]["stages"]
    assert sum(stage["parameters"] for stage in stages) == sum(parameter.numel() for parameter in run.chain.parameters())
    assert [stage["stage"] for stage in stages if stage["trains"]] == record["phases"][0]["trains"]


def test_an_earlier_run_is_a_backbone(executed):
    first = executed([*SMALL, *NETS["efficientnet"], "freeze=none"])
    second = executed([*SMALL, *NETS["efficientnet"], "freeze=backbone", 'dataset.classes=["3","4"]', f"model.weights={first.folder.path}"])
    assert equal(graft.state_of(second.chain), graft.state_of(first.chain))
    assert [hop["run_id"] for hop in second.record["weights"]["lineage"]] == [first.record["run_id"]]
    third = executed([*SMALL, *NETS["efficientnet"], "freeze=none", f"model.weights={second.folder.path}"])
    assert [hop["run_id"] for hop in third.record["weights"]["lineage"]] == [first.record["run_id"], second.record["run_id"]]
    with pytest.raises(UserError, match="these weights are not of this net"):
        executed([*SMALL, *NETS["vit"], f"model.weights={first.folder.path}"])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_weights_file_is_loaded_without_its_classifier(executed, tmp_path, suffix):
    from torchvision.models import resnet18

    net = resnet18(num_classes=7)
    path = tmp_path / f"mine{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in net.state_dict().items()}}, path)
    else:
        weights.save(path, net.state_dict())
    run = executed([*SMALL, "model=resnet", "freeze=backbone", f"model.weights={path}"])
    expected = {name: tensor for name, tensor in net.state_dict().items() if not name.startswith("fc.")}
    assert equal(graft.state_of(run.chain), expected)
    path.unlink()
    assert equal(graft.state_of(Run(run.folder.path).chain), expected), "a run does not need the file that it began with"


def test_a_changed_file_of_a_run_is_refused(executed):
    folder = executed([*SMALL, *NETS["mlp"]], folder="changed").folder
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("lr: 0.01", "lr: 0.02"))
    with pytest.raises(UserError, match=r"config.yaml: not the file that the run wrote"):
        Run(folder.path)


def test_require_names_what_stands_in_the_way(executed):
    with pytest.raises(UserError, match="trains the lowest stage"):
        executed([*SMALL, *NETS["mlp"], "freeze=none", "cache.mode=require"])


def test_a_cache_that_is_too_small_is_told_and_training_goes_on_live(executed):
    with pytest.raises(UserError, match=r"cache.max_gb=\S+ would do"):
        executed([*SMALL, *NETS["mlp"], "freeze=backbone", "cache.mode=require", "cache.max_gb=1e-9", "data.size=33"])
    run = executed([*SMALL, *NETS["mlp"], "freeze=backbone", "cache.max_gb=1e-9", "data.size=33"])
    assert [(note["boundary"], note["mode"]) for note in run.record["cache"]] == [("pictures", "live"), ("head", "live")]
    assert "would be stored" in run.record["cache"][0]["why"]


def test_a_library_s_own_dropout_follows_the_seed_too(executed, monkeypatch):
    plain = lambda self, features, classes: torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(features, len(classes)))  # noqa: E731
    monkeypatch.setattr(heads.Linear, "build", plain)
    torch.manual_seed(1)
    one = executed([*SMALL, *NETS["mlp"]])
    torch.manual_seed(2)
    assert equal(one.chain.state_dict(), executed([*SMALL, *NETS["mlp"]]).chain.state_dict())


def test_a_buffer_that_no_state_dict_holds_does_no_harm(executed, monkeypatch):
    build = heads.Linear.build

    def with_buffer(self, features, classes):
        head = build(self, features, classes)
        head.register_buffer("index", torch.arange(3), persistent=False)
        return head

    monkeypatch.setattr(heads.Linear, "build", with_buffer)
    run = executed([*SMALL, *NETS["mlp"], "freeze=none"])
    assert "head.index" not in weights.read(run.folder / "model.safetensors")


def test_the_cache_s_bound_counts_all_views_and_splits(executed, tmp_path):
    same = [*SMALL, *NETS["efficientnet"], "freeze=backbone", "augmentation=d4", f"cache.dir={tmp_path / 'cache'}"]
    sizes = {"train": 24, "val": 81, "test": 81}
    row = 4 * executed(same, folder="first").chain.features
    need = row * (8 * sizes["train"] + sizes["val"] + sizes["test"])
    for bound, mode in ((need - 1, "live"), (need, "cached")):
        words = [*same, f"cache.dir={tmp_path / mode}", f"cache.max_gb={bound / 1e9:.12f}"]
        run = executed(words, folder=mode)
        assert run.record["data"]["sizes"] == sizes
        assert {note["mode"] for note in run.record["cache"]} == {mode}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_frozen_is_computed_in_one_precision_cached_or_live(executed, dtype):
    same = [*SMALL, *NETS["efficientnet"], "freeze=backbone", f"cache.dtype={dtype}", "trainer.keep=last"]
    cached, live = executed(same), executed([*same, "cache.mode=off"])
    assert cached.record["run_id"] == live.record["run_id"]
    assert losses(cached) == pytest.approx(losses(live), rel=1e-5)


def test_a_set_without_val_keeps_the_last_epoch_and_invents_no_figure(executed):
    run = executed([*SMALL, *NETS["mlp"], "dataset.val=0", "trainer.keep=last"])
    assert run.record["kept"] == {"epoch": 2}
    assert not [row for row in lines(run) if row["metric"].startswith("val/")]
    assert not [name for name in run.metrics if name.startswith("val/")]


def test_nan_is_never_the_best(executed, monkeypatch):
    results = PhaseModule.results
    found = iter([float("nan"), 1.0, 0.5])
    monkeypatch.setattr(
        PhaseModule, "results", lambda self, split: results(self, split) | ({"val/loss": next(found)} if split == "val" else {})
    )
    run = executed([*SMALL, *NETS["mlp"], "trainer.monitor=val/loss"])
    assert run.record["kept"] == {"epoch": 2, "monitor": "val/loss", "value": 0.5}
