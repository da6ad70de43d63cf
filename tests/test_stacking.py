"""Many heads at once: each comes to what it would have come to alone, fails alone, and goes on at its own epoch."""

from __future__ import annotations

import csv

import pytest
import torch

from regraft import config, grouping, stacking, sweep
from regraft.graft import Run
from regraft.weights import read

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = ["dataset.per_class=4", "data.size=32", "data.batch_size=16", "trainer.max_epochs=3"]  # 991 pictures of clipart, 19 classes
TOLERANCE = 1e-4  # of metrics and weights: the same sums in another order


def curves(folder) -> dict[tuple[str, int], float]:
    with (folder / "metrics.csv").open() as file:
        return {(row["metric"], int(row["epoch"])): float(row["value"]) for row in csv.DictReader(file)}


def same_run(stacked, alone) -> None:
    """One run's folder as it comes out of a stack, and as it comes out of a process of its own."""
    mine, other = curves(stacked), curves(alone)
    assert mine.keys() == other.keys()
    assert mine == pytest.approx(other, abs=TOLERANCE)
    assert stacked.record["metrics"] == pytest.approx(alone.record["metrics"], abs=TOLERANCE)
    assert stacked.record["kept"]["epoch"] == alone.record["kept"]["epoch"]
    one, two = read(stacked / "model.safetensors"), read(alone / "model.safetensors")
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.allclose(tensor.float(), two[name].float(), atol=TOLERANCE), name


SWEEPS = {
    "adamw": ["optimizer.lr=1e-3,1e-2", "head.dropout=0,0.5", "seed=0,7"],
    "adam": ["optimizer=adam", "optimizer.lr=1e-3,1e-2", "optimizer.weight_decay=0,0.1"],
    "sgd": ["optimizer=sgd", "optimizer.lr=0.01,0.1", "loss.label_smoothing=0,0.1", "trainer.clip=0.5"],
    "epochs": ["trainer.max_epochs=1,3", "head.dropout=0.2,0.4", "schedule.warmup=3 steps"],
    "mlp": ["head=mlp", "head.width=16", "head.dropout=0,0.3", "optimizer.lr=1e-3,1e-2"],
    "cosine": ["head=cosine", "head.learn_scale=true", "optimizer.lr=1e-3,1e-2"],
    "views": ["augmentation=d4", "seed=0,7", "optimizer.lr=1e-3,1e-2"],
    "expanded": ["augmentation=flips", "augmentation.views=expand", "optimizer.lr=1e-3,1e-2"],
    "monitor": ["trainer.monitor=val/macro_f1", "trainer.patience=1", "optimizer.lr=1e-3,1e-1"],
    "fixed": ["head=cosine", "head.learn_scale=false", "optimizer.lr=1e-3,1e-2"],
    "nesterov": ["optimizer=sgd", "optimizer.nesterov=true", "loss.class_weights=balanced", "optimizer.lr=0.01,0.03"],
    "tested views": ["augmentation=flips", "evaluate.views=true", "optimizer.lr=1e-3,1e-2"],
    "bf16": ["cache.dtype=bfloat16", "optimizer.lr=1e-3,1e-2", "seed=0,1"],
    "pre-drawn": ["augmentation=randaugment", "cache.views=2", "optimizer.lr=1e-3,1e-2"],
    "last": ["trainer.keep=last", "loss=focal", "optimizer.lr=1e-3,1e-2"],
}


@pytest.mark.parametrize("name", SWEEPS)
def test_each_head_comes_to_what_it_comes_to_alone(swept, name):
    words = [*SMALL, *SWEEPS[name]]
    together, alone = swept(words, "together"), swept([*words, "sweep.stack=false"], "alone")
    assert len(together) == len(alone) >= 2
    for one, other in zip(together, alone, strict=True):
        assert one.record["run_id"] == other.record["run_id"]
        assert one.record["group"]["size"] == len(together)
        assert other.record["group"] is None
        same_run(one, other)
    assert len({str(curves(folder)) for folder in together}) == len(together), "no two heads are the same"


def test_a_killed_group_goes_on_with_each_head_at_its_own_epoch(swept, dying):
    words = [*SMALL, "trainer.max_epochs=2,5", "optimizer.lr=1e-3,1e-2", "head.dropout=0.3", "trainer.checkpoint_seconds=0"]
    whole = swept(words, "whole")
    with dying(11):  # the shorter two are done with theirs after 2 x 4 epochs; the longer two are in their fourth
        swept(words, "killed")
    with dying(2):
        swept(words, "killed")
    again = swept(words, "killed")
    assert [len({epoch for _, epoch in curves(folder)}) for folder in again] == [2, 2, 5, 5]
    for one, other in zip(again, whole, strict=True):
        same_run(one, other)


def test_a_head_that_began_in_a_group_goes_on_by_itself(swept, dying):
    words = [*SMALL, "head.dropout=0.3", "trainer.checkpoint_seconds=0"]
    whole = swept([*words, "optimizer.lr=1e-3,1e-2"], "whole")
    with dying(4):
        swept([*words, "optimizer.lr=1e-3,1e-2"], "killed")
    [again] = swept([*words, "optimizer.lr=1e-2"], "killed")
    assert again.record["group"]["size"] == 1
    same_run(again, whole[1])


def test_one_that_began_alone_stays_alone(swept, dying):
    words = [*SMALL, "trainer.checkpoint_seconds=0"]
    with dying(2):
        swept([*words, "optimizer.lr=1e-3", "sweep.stack=false"], "killed")
    [one, *others] = swept([*words, "optimizer.lr=1e-3,1e-2,2e-2"], "killed")
    assert one.record["group"] is None
    assert [other.record["group"]["size"] for other in others] == [2, 2]
    assert one.record["status"] == "done"


def test_a_head_that_diverges_fails_alone(swept):
    words = [*SMALL, "optimizer=sgd", "trainer.max_epochs=4"]
    good, bad, fine = swept([*words, "optimizer.lr=0.01,1e30,0.02"])
    assert [folder.record["status"] for folder in (good, bad, fine)] == ["done", "failed", "done"]
    assert bad.record["error"]["problems"][0][:2] == ["optimizer.lr", "1e+30"]
    assert "diverged" in bad.record["error"]["message"]
    for folder, other in zip((good, fine), swept([*words, "optimizer.lr=0.01,0.02", "sweep.stack=false"], "alone"), strict=True):
        same_run(folder, other)


def test_every_folder_of_a_group_is_a_run_folder_of_its_own(swept):
    folders = swept([*SMALL, "optimizer.lr=1e-3,1e-2", "head.dropout=0,0.5"])
    assert [folder.record["group"]["number"] for folder in folders] == [0, 1, 2, 3]
    for folder in folders:
        run = Run(folder.path)
        assert run.evaluate() == pytest.approx(run.metrics, abs=1e-5)
        assert (folder / "predictions.parquet").is_file()
        assert not folder.saved


def test_heads_that_find_no_room_in_the_cache_train_alone_and_come_to_the_same(swept):
    words = [*SMALL, "data.size=36", "optimizer.lr=1e-3,1e-2", "seed=0,3", "augmentation=flips", "trainer.max_epochs=2"]
    live, cached = swept([*words, "cache.max_gb=1e-9"], "live"), swept(words, "cached")
    assert all(folder.record["cache"][0]["mode"] == "live" for folder in live)
    assert all(folder.record["group"] is None for folder in live)
    for one, other in zip(live, cached, strict=True):
        same_run(one, other)


def test_a_stack_that_would_not_fit_is_trained_in_parts(swept, monkeypatch):
    words = [*SMALL, "optimizer.lr=1e-3,3e-3,1e-2", "head.dropout=0.1"]
    whole = swept(words, "whole")
    sizes, stack = [], stacking.Stack
    monkeypatch.setattr(stacking, "Stack", lambda heads: sizes.append(len(heads)) or stack(heads))
    monkeypatch.setattr(stacking, "memory", lambda device: 3e6)
    for one, other in zip(swept(words, "parts"), whole, strict=True):
        same_run(one, other)
    assert len(sizes) > 1
    assert sum(sizes) == 3


def keys(*sweeps) -> list[int]:
    """For each job of all sweeps the number of its group; None: alone."""
    jobs = [job for words in sweeps for job in config.Composer().jobs(list(words), multirun=True)]
    made = grouping.grouped([(i, job.settings, "data", job.settings.origin.identity) for i, job in enumerate(jobs)])
    return [next(n for n, group in enumerate(made) if i in group) for i in range(len(jobs))]


def test_what_differs_below_the_heads_or_in_their_shape_is_another_group():
    assert keys(["optimizer.lr=1,2", "head.dropout=0,0.1", "seed=0,1", "trainer.max_epochs=2,3"]) == [0] * 16
    for axis in (
        "head=linear,mlp",
        "data.size=64,128",
        "model.variant=0,1",
        "optimizer=sgd,adamw",
        "data.batch_size=16,32",
        "optimizer.betas=[0.9,0.99],[0.9,0.9]",
        "schedule=cosine,constant",
        "augmentation=none,d4",
        "cache.dtype=float32,bfloat16",
        "trainer.patience=1,2",
    ):
        assert keys([axis, "optimizer.lr=1,2"]) == [0, 0, 1, 1] or keys([axis, "optimizer.lr=1,2"]) == [0, 1, 0, 1], axis
    for word in (
        "sweep.stack=false",
        "cache.mode=off",
        "freeze=last",
        "trainer.ema=0.9",
        "trainer.max_steps=5",
        "optimizer=timm",
        "augmentation=mixup",
        "hardware.devices=2",
    ):
        assert keys(["optimizer.lr=0.1,0.2", word]) == [0, 1], word
    assert keys(["model.weights=none", "seed=0,1", "optimizer.lr=0.1,0.2"]) in ([0, 0, 1, 1], [0, 1, 0, 1]), (
        "random weights follow the seed"
    )
    assert keys(["augmentation=randaugment", "cache.views=3", "optimizer.lr=0.1,0.2"]) == [0, 0]


def test_a_group_holds_no_more_runs_than_files_can_be_open():
    rates = ",".join(f"{n}e-5" for n in range(1, 2 * grouping.MOST + 2))
    numbers = keys([f"optimizer.lr={rates}"])
    assert [numbers.count(number) for number in range(3)] == [grouping.MOST, grouping.MOST, 1]


def test_tags_and_numbers_are_stacked_too(swept, tmp_path):
    from PIL import Image

    rows = ["file,width,wide,tall,split"]
    for i in range(40):
        picture = Image.new("RGB", (32, 32), "white")
        picture.paste("black", (0, 8, i % 20 + 2, 24))
        picture.save(tmp_path / f"{i}.png")
        split = "test" if i % 5 == 0 else "val" if i % 5 == 1 else "train"
        rows.append(f"{i}.png,{i % 20},{int(i % 20 > 9)},{i % 2},{split}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    same = [
        "dataset=csv",
        f"dataset.path={tmp_path / 'table.csv'}",
        "data.size=32",
        "data.batch_size=8",
        "trainer.max_epochs=3",
        "seed=0,1",
    ]
    for name, more in {
        "numbers": ["dataset.targets=[width]", "task=regress", "loss=huber"],
        "tags": ["dataset.targets=[wide,tall]", "task=tag", "trainer.monitor=val/macro_f1"],
    }.items():
        words = [*same, *more, "optimizer.lr=1e-3,1e-2"]
        words = [word.replace("targets", "labels") if name == "tags" else word for word in words]
        together, alone = swept(words, f"{name} together"), swept([*words, "sweep.stack=false"], f"{name} alone")
        for one, other in zip(together, alone, strict=True):
            same_run(one, other)


def test_without_val_the_last_epoch_is_kept(swept):
    words = [
        *SMALL,
        "dataset=digits",
        "model=convnet",
        "model.weights=none",
        "dataset.val=0",
        "trainer.keep=last",
        "optimizer.lr=1e-3,1e-2",
    ]
    for one, other in zip(swept(words, "together"), swept([*words, "sweep.stack=false"], "alone"), strict=True):
        same_run(one, other)
        assert one.record["kept"]["epoch"] == 2


def test_each_head_has_loggers_of_its_own(swept):
    folders = swept([*SMALL, "logger=tensorboard", "optimizer.lr=1e-3,1e-2"])
    for folder in folders:
        assert list((folder / "tensorboard").glob("events.*")), "its own events in its own folder"


def test_what_is_wrong_with_one_head_is_no_trouble_of_the_others(swept, dying, tmp_path):
    words = [*SMALL, "trainer.checkpoint_seconds=0", "optimizer.lr=1e-3,1e-2,2e-2"]
    with dying(7):
        swept(words, "killed")
    jobs = config.Composer().jobs(["plots=false", *words, f"hydra.sweep.dir={tmp_path / 'killed'}"], multirun=True)
    folders = [planned.folder for planned in sweep.plan(jobs)]
    for name in ("last.ckpt", "previous.ckpt"):
        (folders[1] / name).write_bytes(b"no checkpoint")
    swept(words, "killed")
    assert [folder.record["status"] for folder in folders] == ["done", "failed", "done"]
    assert "last.ckpt" in folders[1].record["error"]["message"]
    short, long = swept([*SMALL, "schedule.warmup=2 epochs", "trainer.max_epochs=1,4"], "warm")
    assert [short.record["status"], long.record["status"]] == ["failed", "done"]
    assert "warmup" in short.record["error"]["message"]
