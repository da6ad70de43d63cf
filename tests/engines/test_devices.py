"""The result does not depend on how many devices share the batch: the same losses, weights and metrics as on one."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score, log_loss
from torchvision.models import googlenet

from engines.commands import begun, complete, curves, epochs, folders, furthest, holding, identical, regraft, until, workers
from regraft.graft import Run
from regraft.record import LOG, RunFolder

pytestmark = pytest.mark.engines

COMMON = ["model.weights=none", "freeze=none", "optimizer=sgd", "trainer.keep=last", "plots=false", "hardware=cpu", "hardware.workers=0"]
DIGITS = ["dataset=digits", "dataset.per_class=8", 'dataset.classes=["0","1","2"]']
FOREIGN = [  # of torchrun, Lightning and Slurm, each of which would make a worker part of a stranger's world
    *("RANK=1", "LOCAL_RANK=1", "NODE_RANK=1", "GROUP_RANK=1", "WORLD_SIZE=3", "LOCAL_WORLD_SIZE=3", "MASTER_ADDR=10.255.255.1"),
    *("MASTER_PORT=1", "PL_GLOBAL_SEED=5", "TORCHELASTIC_RUN_ID=theirs", "TORCHELASTIC_RESTART_COUNT=2"),
    *("TORCHELASTIC_USE_AGENT_STORE=True", "SLURM_JOB_ID=7", "SLURM_NTASKS=4", "SLURM_PROCID=1", "SLURM_LOCALID=1"),
    *("SLURM_NODEID=0", "SLURM_JOB_NAME=theirs", "SLURM_NTASKS_PER_NODE=4"),
]
LEFTOVERS = dict(word.split("=") for word in FOREIGN)


def swept(*words: str, at: Path, status: int = 0, **how) -> list[RunFolder]:
    done = regraft("train", "-m", *words, "hydra.sweep.dir=sweep", at=at, **how)
    assert done.returncode == status, done.stdout + done.stderr
    return folders(at / "sweep")


def one_and_two(words: list[str], at: Path) -> tuple[RunFolder, RunFolder]:
    runs = swept(*words, "hardware.devices=1,2", at=at)
    one, two = sorted(runs, key=lambda folder: folder.record["resolved"]["world"])
    assert [folder.record["resolved"]["world"] for folder in (one, two)] == [1, 2]
    return one, two


@pytest.fixture(scope="module")
def divided(tmp_path_factory):
    """One batch of 32, shared out in each way, in an environment that another launcher has left behind: {(devices, accumulate): folder}

    69 pictures: the last batch has 5, and of four devices with two micro-batches each some have nothing of it to do.
    """
    at = tmp_path_factory.mktemp("divided")
    words = [*COMMON, "dataset=digits", "dataset.per_class=23", 'dataset.classes=["0","1","2"]', "data.size=16", "data.batch_size=32"]
    words += ["model=convnet", "model.depth=3", "model.width=8", "model.batchnorm=false", "head.dropout=0.3", "optimizer.lr=0.3"]
    words += ["augmentation=random_resized_crop", "augmentation.scale=[0.5,1.0]", "trainer.max_epochs=6"]
    words += ["hardware.devices=1,2,4", "hardware.accumulate=1,2"]
    runs = swept(*words, at=at, env={**os.environ, **LEFTOVERS})
    return {(folder.config["hardware"]["devices"], folder.config["hardware"]["accumulate"]): folder for folder in runs}


def test_every_division_gives_the_same_losses_and_weights(divided):
    assert sorted(divided) == [(devices, accumulate) for devices in (1, 2, 4) for accumulate in (1, 2)]
    whole = divided[1, 1]
    assert whole.record["data"]["sizes"]["train"] == 69
    losses = [value for (metric, _), value in sorted(curves(whole).items()) if metric == "train/loss"]
    assert len(losses) == 6
    assert max(losses) - min(losses) > 0.1, "it learns something, so that there is something to compare"
    for (devices, accumulate), folder in divided.items():
        micro = 32 // devices // accumulate
        assert folder.record["batch"] == {"global": 32, "devices": devices, "micro": micro, "accumulate": accumulate}
        assert folder.record["resolved"]["world"] == devices
        assert complete(folder)
        assert folder.record["warnings"] == []
        assert curves(folder) == pytest.approx(curves(whole), abs=1e-6, rel=0), (devices, accumulate)
        assert furthest(folder, whole) < 1e-6, (devices, accumulate)
        assert folder.record["metrics"] == pytest.approx(whole.record["metrics"], abs=1e-6, rel=0)


def test_dropout_and_augmentation_take_part_in_that(divided, tmp_path):
    """What would be the same without them proves nothing of them."""
    whole = divided[1, 1]
    overrides = [word for word in whole.record["overrides"] if not word.startswith("hydra.")]
    without = {"head.dropout=0": "head.dropout=", "augmentation=none": "augmentation"}  # a value, and the words that it takes the place of
    for word, others in without.items():
        kept = [each for each in overrides if not each.startswith(others)]
        done = regraft("train", *kept, word, "hydra.run.dir=" + word.partition("=")[0], at=tmp_path)
        assert done.returncode == 0, done.stderr
        assert furthest(RunFolder(tmp_path / word.partition("=")[0]), whole) > 1e-3, word


def test_metrics_are_those_of_the_whole_split(tmp_path):
    """Seven val pictures on three ranks, three of test: no rank holds as many as another, and none is counted twice."""
    levels = np.random.default_rng(0).permutation(np.arange(20, 236, 6))[:31]
    splits = ["val"] * 7 + ["test"] * 5 + ["train"] * 19
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "label", "split"])
        for number, (level, split) in enumerate(zip(levels, splits, strict=True)):
            Image.new("RGB", (8, 8), (int(level), 255 - int(level), int(level) // 2)).save(tmp_path / f"{number}.png")
            rows.writerow([f"{number}.png", "abc"[(int(level) // 12) % 3], split])
    words = [*COMMON, "dataset=csv", f"dataset.path={tmp_path / 'labels.csv'}", "dataset.split=split", "dataset.label=label", "model=mlp"]
    words += ["data.size=8", "data.batch_size=6", "trainer.max_epochs=3", "optimizer.lr=0.1", "hardware.devices=1,3"]
    one, three = sorted(swept(*words, at=tmp_path), key=lambda folder: folder.record["resolved"]["world"])
    assert three.record["resolved"]["world"] == 3
    assert three.record["data"]["sizes"] == {"train": 19, "val": 7, "test": 5}
    assert curves(three) == pytest.approx(curves(one), abs=1e-6, rel=0)
    assert furthest(one, three) < 1e-6
    answers, run = pl.read_parquet(three / "predictions.parquet"), Run(three.path)
    figures = three.record["metrics"]
    assert len(answers) == 5
    assert figures["test/accuracy"] == pytest.approx(accuracy_score(answers["truth"], answers["predicted"]), abs=1e-9)
    f1 = f1_score(answers["truth"], answers["predicted"], average="macro", labels=sorted(set(answers["truth"]) | set(answers["predicted"])))
    assert figures["test/macro_f1"] == pytest.approx(f1, abs=1e-6)
    scores = np.array(answers["scores"].to_list(), dtype=np.float64)
    assert figures["test/loss"] == pytest.approx(
        log_loss(answers["truth"], scores / scores.sum(1, keepdims=True), labels=run.classes), abs=1e-5
    )
    val = run.source.split("val")
    said = [name for _, scores in run.predict([tmp_path / sample.id for sample in val]) for name in [run.classes[int(scores.argmax())]]]
    right = accuracy_score([run.classes[int(sample.label)] for sample in val], said)
    last = curves(three)["val/accuracy", "2"]
    assert last * 7 == pytest.approx(round(last * 7), abs=1e-5)
    assert last == pytest.approx(right, abs=1e-6)
    assert figures["val/accuracy"] == pytest.approx(right, abs=1e-6)


def test_a_frozen_batchnorm_holds_and_a_trained_one_follows_the_key(tmp_path):
    words = [*COMMON, *DIGITS, "model=timm", "model.arch=test_efficientnet", "data.size=32", "data.batch_size=8", "trainer.max_epochs=2"]
    (tmp_path / "frozen").mkdir()
    one, two = one_and_two([*words, "freeze.norm_stats=frozen", "hardware.batchnorm=refuse"], tmp_path / "frozen")
    assert one.record["warnings"] == two.record["warnings"] == []
    assert curves(two) == pytest.approx(curves(one), abs=1e-5, rel=0)
    assert furthest(one, two) < 1e-5
    (tmp_path / "trained").mkdir()
    found = swept(*words, "hardware.devices=2", "hardware.batchnorm=local,sync,refuse", at=tmp_path / "trained", status=1)
    local, sync, refuse = sorted(found, key=lambda folder: ["local", "sync", "refuse"].index(folder.config["hardware"]["batchnorm"]))
    assert [folder.record["status"] for folder in (local, sync, refuse)] == ["done", "done", "failed"]
    assert refuse.record["error"]["problems"][0][:2] == ["hardware.batchnorm", "refuse"]
    counted = "BatchNorm takes its statistics from 4 pictures, not from 8 (2 devices x 1 micro-batches; local"
    assert local.record["warnings"] == [f"{counted})"]
    assert sync.record["warnings"] == [f"{counted}, since SyncBatchNorm needs GPUs)"]
    assert identical(local, sync)
    assert furthest(local, one) > 1e-3


SMALL = "dataset.train=13 dataset.val=5 dataset.test=5"
PICTURES = "data.size=32 dataset.per_class=40 model.weights=none"
GREEDY = "dataset=digits dataset.per_class=3 data.size=8 model=dbn model.width=16 freeze=greedy freeze.pretrain=1"
OTHERS = {  # what is no classification of pictures: batches of 6, of which the last one is smaller
    "sequences": "dataset=japanese_vowels dataset.per_class=3 model=lstm model.depth=2 model.width=16 model.dropout=0.2 freeze=none",
    "machines": f"{GREEDY} model.depth=2",
    "persistent chains": f"{GREEDY} model.depth=2 model.particles=5",
    "frames": "task=frames dataset=chorales dataset.per_class=14 model=gru model.width=16 model.pool=none freeze=none",
    "tags": f"task=tag dataset=clipart_tags dataset.floor=3 {PICTURES} model=mlp freeze=none",
    "tags in a row": f"task=tag dataset=clipart_tags dataset.floor=3 {PICTURES} model=mlp freeze=none head=tagger head.width=16",
    "captions": f"task=caption dataset=clipart_titles {PICTURES} model=captioner head.width=16 head.attention=true freeze=backbone",
    "lines": f"task=ocr dataset=digit_strings {SMALL} model.width=4 model.units=8 freeze=none freeze.norm_stats=frozen",
    "boxes": f"task=detect dataset=scenes {SMALL} data.size=64 model.weights=none freeze=backbone",
}


@pytest.mark.parametrize("words", OTHERS.values(), ids=OTHERS)
def test_every_task_and_family_has_the_same_result_on_two_devices(tmp_path, words):
    common = ["data.batch_size=6", "optimizer=sgd", "optimizer.lr=1e-3", "trainer.max_epochs=2", "trainer.keep=last", "plots=false"]
    one, two = one_and_two([*common, *words.split(), "hardware=cpu", "hardware.workers=0"], tmp_path)
    assert len({value for (metric, _), value in curves(one).items() if metric == "train/loss"}) > 1, "it learns something"
    assert curves(two) == pytest.approx(curves(one), abs=1e-5, rel=1e-5)
    assert furthest(one, two) < 1e-5
    assert two.record["metrics"] == pytest.approx(one.record["metrics"], abs=1e-5, rel=1e-5)


@pytest.mark.parametrize("world", ["1", "3"])
def test_a_worker_in_another_world_than_was_asked_for_fails_loudly(tmp_path, world):
    """What a launcher that has lost count of its tasks would start: two devices are asked for."""
    begin = "from regraft import config, sweep; import sys\n"
    begin += "[planned] = sweep.plan(config.Composer().jobs(sys.argv[1:], multirun=False))\n"
    begin += "sweep.begin(planned, 'a test', {'git': None, 'packages': {}, 'machine': {}})"
    words = [*COMMON, *DIGITS, "model=mlp", "trainer.max_epochs=2", "data.batch_size=12", "hardware.devices=2", "hydra.run.dir=run"]
    subprocess.run([sys.executable, "-c", begin, *words], cwd=tmp_path, check=True, timeout=120)
    own = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29599"}
    command = [sys.executable, "-m", "regraft.worker", "run"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **own}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    folder = RunFolder(tmp_path / "run")
    assert folder.record["status"] == "running"
    assert not (folder / "model.safetensors").exists()
    assert f"2 devices were asked for, {world} take" in (folder / LOG).read_text()


LONG = [*COMMON, *DIGITS, "model=mlp", "head.dropout=0.2", "augmentation=flips", "data.batch_size=8", "trainer.max_epochs=60"]
LONG += ["trainer.checkpoint_seconds=0", "hardware.devices=2"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    at = tmp_path_factory.mktemp("undisturbed")
    done = regraft("train", *LONG, "hydra.run.dir=whole", at=at)
    assert done.returncode == 0, done.stderr
    return RunFolder(at / "whole")


@pytest.mark.parametrize("victim", ["rank 0", "rank 1", "controller", "told controller"])
def test_what_ends_one_of_two_ranks_or_their_controller_leaves_a_run_that_goes_on(tmp_path, undisturbed, victim):
    words, folder = ["train", *LONG, "hydra.run.dir=run"], RunFolder(tmp_path / "run")
    controller = begun(*words, at=tmp_path, log=tmp_path / "log")
    until(lambda: len(epochs(folder)) > 8)
    ranks = workers(folder)
    assert len(ranks) == 2
    number = signal.SIGTERM if victim.startswith("told") else signal.SIGKILL
    os.kill(controller.pid if victim.endswith("controller") else ranks[int(victim[-1])], number)
    assert controller.wait(60) != 0
    until(lambda: not workers(folder) and not holding(folder), 60)
    assert len(epochs(folder)) < 60, "it was ended before its end"
    record = folder.record
    assert record["status"] == "running", record["error"]
    if victim.startswith("rank"):
        assert "SIGKILL" in record["error"]["message"], "its signal, and not the other rank's echo"
        assert "SIGKILL" in (tmp_path / "log").read_text()
    again = regraft(*words, at=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert epochs(folder) == list(range(60))
    assert identical(folder, undisturbed)


def test_a_rank_that_dies_is_told_with_its_own_words(tmp_path):
    for number in range(24):
        path = tmp_path / "pictures" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (10 * number, 0, 0)).save(path)
        path.write_bytes(path.read_bytes()[:50])  # its header is right, its pixels are cut off
    words = ["dataset=folder", f"dataset.path={tmp_path / 'pictures'}", "data.size=16", "model=mlp", *COMMON, "hardware.devices=2"]
    done = regraft("train", *words, "data.batch_size=8", "hydra.run.dir=run", at=tmp_path)
    assert done.returncode == 1
    assert ".png" in done.stderr
    assert "Traceback" not in done.stderr
    folder = RunFolder(tmp_path / "run")
    assert folder.record["error"]["kind"] == "UserError"
    until(lambda: not workers(folder), 20)


def test_tags_of_fewer_val_pictures_than_ranks(tmp_path):
    """The second rank has no val row, and of the last train batch, of one picture, none either."""
    levels = np.random.default_rng(0).permutation(np.arange(20, 236, 13))  # no two pictures are the same
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "light", "wide", "split"])
        for number in range(16):
            level, wide = int(levels[number]), number % 2
            picture = np.zeros((8, 8, 3), np.uint8)
            picture[2:6] = level
            Image.fromarray(picture if wide else np.ascontiguousarray(picture.transpose(1, 0, 2))).save(tmp_path / f"{number}.png")
            rows.writerow([f"{number}.png", int(level > 127), wide, "val" if number == 3 else "test" if number > 13 else "train"])
    words = ["dataset=csv", f"dataset.path={tmp_path / 'labels.csv'}", "dataset.split=split", "dataset.labels=[light,wide]"]
    words += ["task=tag", "model=mlp", *COMMON, "data.size=8", "data.batch_size=4", "trainer.max_epochs=3", "optimizer.lr=0.05"]
    one, two = one_and_two(words, tmp_path)
    assert two.record["data"]["sizes"] == {"train": 13, "val": 1, "test": 2}
    found = curves(two)
    assert {metric for metric, _ in found} == {"train/loss", "train/map", "val/loss", "val/map", "lr"}
    assert found == pytest.approx(curves(one), rel=1e-6, nan_ok=True)
    assert all(np.isfinite(found[name, "2"]) for name in ("train/map", "train/loss", "val/loss"))
    assert two.record["metrics"] == pytest.approx(one.record["metrics"], rel=1e-6)


def test_mixed_rows(executed, tmp_path):
    words = [*COMMON, *DIGITS, "model=mlp", "model.depth=2", "augmentation=mixup", "data.batch_size=10", "trainer.max_epochs=3"]
    words += ["optimizer.lr=0.05", "head.dropout=0.3"]
    one, two = one_and_two(words, tmp_path)
    assert curves(two) == pytest.approx(curves(one), rel=1e-6)
    assert furthest(one, two) < 1e-6
    plain = executed([*words, "augmentation=none"]).folder
    assert curves(plain)["train/loss", "2"] != pytest.approx(curves(one)["train/loss", "2"], rel=1e-2), "mixing does something"


def test_machines_that_learn_without_labels_and_a_task_with_few(tmp_path):
    words = ["dataset=digits", "dataset.per_class=8", "dataset.labelled=3", 'dataset.classes=["0","1","2"]', "data.size=8", "model=dbn"]
    words += ["model.depth=2", "model.width=12", "freeze=greedy", "freeze.pretrain=2", "trainer.max_epochs=7", "data.batch_size=14"]
    one, two = one_and_two([*(word for word in COMMON if word != "freeze=none"), *words], tmp_path)
    assert curves(two) == pytest.approx(curves(one), abs=1e-4)
    assert furthest(one, two) < 1e-4
    assert (one.record["data"]["sizes"]["train"], two.record["data"]["unlabelled"]) == (9, 15)


def test_auxiliary_heads_over_frozen_batchnorm(executed, tmp_path):
    """From weights that keep the variance: from random ones, nothing would come through all layers without BatchNorm's own statistics."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = googlenet(init_weights=False, aux_logits=False)
        for module in net.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    words = [*COMMON, *DIGITS, "model=googlenet", "data.size=32", "data.batch_size=12", "trainer.max_epochs=1"]
    words += ["freeze.norm_stats=frozen", "optimizer.lr=0.03", f"model.weights={tmp_path / 'net.pth'}"]
    one, two = one_and_two(words, tmp_path)
    assert not [warning for warning in two.record["warnings"] if "BatchNorm" in warning]
    assert curves(two) == pytest.approx(curves(one), rel=1e-4)
    assert furthest(one, two) < 1e-4
    alone = executed([*words, "model.auxiliary=false"]).folder
    assert furthest(one, alone) > 1e-3, "and they do something"


def test_each_rank_computes_half_of_the_rows_of_boundaries_that_move_too(tmp_path):
    """Each rank publishes what it has computed in segments of its own."""
    words = [*DIGITS, "model.weights=none", "model=convnet", "data.size=16", "freeze=phases", "trainer.max_epochs=4", "trainer.keep=last"]
    words += [
        "freeze.phases=[{name: low, epochs: 1, trains: [conv3, head]}, {name: high, epochs: 3, trains: [head]}]",
        "augmentation=flips",
    ]
    words += ["model.batchnorm=false", "data.batch_size=8", "optimizer=sgd", "plots=false", "hardware.workers=0", "cache.mode=require"]
    words += ["hardware=cpu", f"cache.dir={tmp_path}/${{hardware.devices}}"]
    one, two = one_and_two(words, tmp_path)
    assert curves(two) == pytest.approx(curves(one), rel=1e-5)
    assert furthest(one, two) < 1e-5
    assert two.record["metrics"] == pytest.approx(one.record["metrics"], rel=1e-5)
    sizes = two.record["data"]["sizes"]
    notes = {(note["boundary"], note["split"], note["view"]): (note["mode"], note["computed"]) for note in two.record["cache"]}
    views = ("0 degrees", "mirrored 0 degrees")
    assert notes == (
        {(stage, "train", view): ("cached", sizes["train"]) for stage in ("conv3", "head") for view in views}
        | {(stage, "val", views[0]): ("cached", sizes["val"]) for stage in ("conv3", "head")}
        | {("conv3", "test", views[0]): ("cached", sizes["test"])}
    )
    for ranks in (1, 2):
        parts = {split: [count * (rank + 1) // ranks - count * rank // ranks for rank in range(ranks)] for split, count in sizes.items()}
        expected = [parts["train"], parts["train"], parts["train"] + parts["val"], parts["train"] + parts["val"] + parts["test"]]
        stores = [
            [json.loads(path.read_text())["rows"] for path in at.glob("*/segment.json")]
            for at in (tmp_path / str(ranks)).glob("activations/*")
        ]
        assert sorted(map(sorted, stores)) == sorted(map(sorted, expected)), f"{ranks} ranks"
