"""Two ranks equal one: a rank without rows, mixed rows whose partners another rank holds, auxiliary heads, rows that each made half of."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import googlenet

from regraft import weights
from regraft.graft import Run
from regraft.record import Metrics

pytestmark = pytest.mark.slow

COMMON = ["model.weights=none", "freeze=none", "optimizer=sgd", "trainer.keep=last", "plots=false", "hardware.workers=0"]
DIGITS = ["dataset=digits", "dataset.per_class=8", 'dataset.classes=["0","1","2"]']


def of_two_ranks(words: list[str], at: Path) -> Run:
    command = [sys.executable, "-m", "regraft.cli", "train", *words, "hardware=ddp_cpu", "hydra.run.dir=two"]
    done = subprocess.run(command, cwd=at, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    run = Run(at / "two")
    assert run.record["resolved"]["world"] == 2
    return run


def values(run: Run) -> dict[tuple[str, str], float]:
    """Each epoch's metrics: {(epoch, metric): value}"""
    return {(row["epoch"], row["metric"]): float(row["value"]) for row in Metrics(run.folder / "metrics.csv").rows()}


def furthest(one: Run, other: Run) -> float:
    a, b = (weights.read(run.folder / "model.safetensors") for run in (one, other))
    return max((a[name].float() - b[name].float()).abs().max().item() for name in a.keys() & b.keys())


def test_tags_of_fewer_val_pictures_than_ranks(executed, tmp_path):
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
    one, two = executed([*words, "hardware=cpu"]), of_two_ranks(words, tmp_path)
    assert two.record["data"]["sizes"] == {"train": 13, "val": 1, "test": 2}
    found = values(two)
    assert {metric for _, metric in found} == {"train/loss", "train/map", "val/loss", "val/map", "lr"}
    assert found == pytest.approx(values(one), rel=1e-6, nan_ok=True)
    assert all(np.isfinite(found["2", name]) for name in ("train/map", "train/loss", "val/loss"))
    assert two.metrics == pytest.approx(one.metrics, rel=1e-6)


def test_mixed_rows(executed, tmp_path):
    words = [*COMMON, *DIGITS, "model=mlp", "model.depth=2", "augmentation=mixup", "data.batch_size=10", "trainer.max_epochs=3"]
    words += ["optimizer.lr=0.05", "head.dropout=0.3"]
    one, two = executed([*words, "hardware=cpu"]), of_two_ranks(words, tmp_path)
    assert values(two) == pytest.approx(values(one), rel=1e-6)
    assert furthest(one, two) < 1e-6
    plain = executed([*words, "hardware=cpu", "augmentation=none"])
    assert values(plain)["2", "train/loss"] != pytest.approx(values(one)["2", "train/loss"], rel=1e-2), "mixing does something"


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
    one, two = executed([*words, "hardware=cpu"]), of_two_ranks(words, tmp_path)
    assert not [warning for warning in two.record["warnings"] if "BatchNorm" in warning]
    assert values(two) == pytest.approx(values(one), rel=1e-4)
    assert furthest(one, two) < 1e-4
    alone = executed([*words, "hardware=cpu", "model.auxiliary=false"])
    assert furthest(one, alone) > 1e-3, "and they do something"


def test_each_rank_computes_half_of_the_rows_of_boundaries_that_move_too(executed, tmp_path):
    """Each rank publishes what it has computed in segments of its own."""
    words = [*DIGITS, "model.weights=none", "model=convnet", "data.size=16", "freeze=phases", "trainer.max_epochs=4", "trainer.keep=last"]
    words += [
        "freeze.phases=[{name: low, epochs: 1, trains: [conv3, head]}, {name: high, epochs: 3, trains: [head]}]",
        "augmentation=flips",
    ]
    words += ["model.batchnorm=false", "data.batch_size=8", "optimizer=sgd", "plots=false", "hardware.workers=0", "cache.mode=require"]
    two = of_two_ranks([*words, f"cache.dir={tmp_path / 'two'}"], tmp_path)
    one = executed([*words, "hardware=cpu", f"cache.dir={tmp_path / 'one'}"])
    assert values(two) == pytest.approx(values(one), rel=1e-5)
    assert furthest(one, two) < 1e-5
    assert two.metrics == pytest.approx(one.metrics, rel=1e-5)
    sizes = two.record["data"]["sizes"]
    notes = {(note["boundary"], note["split"], note["view"]): (note["mode"], note["computed"]) for note in two.record["cache"]}
    views = ("0 degrees", "mirrored 0 degrees")
    assert notes == (
        {(stage, "train", view): ("cached", sizes["train"]) for stage in ("conv3", "head") for view in views}
        | {(stage, "val", views[0]): ("cached", sizes["val"]) for stage in ("conv3", "head")}
        | {("conv3", "test", views[0]): ("cached", sizes["test"])}
    )
    for folder, ranks in ((tmp_path / "one", 1), (tmp_path / "two", 2)):
        parts = {split: [count * (rank + 1) // ranks - count * rank // ranks for rank in range(ranks)] for split, count in sizes.items()}
        expected = [parts["train"], parts["train"], parts["train"] + parts["val"], parts["train"] + parts["val"] + parts["test"]]
        stores = [[json.loads(path.read_text())["rows"] for path in at.glob("*/segment.json")] for at in folder.glob("activations/*")]
        assert sorted(map(sorted, stores)) == sorted(map(sorted, expected)), f"{ranks} ranks"
