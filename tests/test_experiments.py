"""Every experiment of conf/experiment composes as it stands, and trains one short step at both ends of its sweep."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console
from sklearn.metrics import roc_auc_score

from regraft import config, running, sweep
from regraft.graft import Run
from regraft.report.tables import sweep as table

EXPERIMENTS = sorted(path.stem for path in (Path(__file__).parents[1] / "conf" / "experiment").glob("*.yaml"))
SHORT = ["plots=false", "hardware.workers=0", "trainer.max_epochs=1", "trainer.patience=null", "data.batch_size=16"]
OWN = {  # what makes each of them short
    "augmentations": ["data.size=32", "dataset.per_class=1"],
    "cats_and_dogs": ["data.size=32"],
    "depth_dropout_devices": ["dataset.per_class=2", "hardware.devices=1"],
    "few_pictures": ["data.size=32"],
    "freeze_policies": ["data.size=32", "dataset.per_class=1", "freeze=lp_ft,none", "trainer.max_epochs=2"],
    "from_scratch": ["dataset.per_class=1", 'dataset.classes=["bird","bug"]', "model=convnet,resnet"],
    "only_cats_and_dogs": ["trainer.max_epochs=0", "data.size=64"],
    "whitening": ["dataset.per_class=4"],
}


def executed(jobs, folder):
    for planned in sweep.plan(jobs):
        sweep.begin(planned, "a test", {"git": None, "packages": {}, "machine": {}})
        running.execute(planned.folder, lambda what: None)
        yield Run(planned.folder.path)


def test_all_are_found():
    assert len(EXPERIMENTS) >= 9
    assert {*OWN, "imagenet"} == set(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_it_composes_as_it_stands(name, tmp_path):
    given = [f"dataset.path={tmp_path}"] if name == "imagenet" else []
    (tmp_path / "val" / "n01440764").mkdir(parents=True)
    jobs = config.Composer().jobs([f"experiment={name}", *given], multirun=False)
    assert len(jobs) > 1
    assert len({str(job.config) for job in jobs}) == len(jobs)


@pytest.mark.parametrize("name", OWN)
def test_it_trains_one_short_step(name, tmp_path):
    words = [f"experiment={name}", *SHORT, *OWN[name], f"hydra.sweep.dir={tmp_path}"]
    jobs = config.Composer().jobs(words, multirun=False)
    for run in executed([jobs[0], jobs[-1]], tmp_path):
        assert 0 <= run.metrics["test/accuracy"] <= 1
        assert run.record["status"] == "done"


@pytest.mark.parametrize(
    "words", [["dataset=clipart", 'dataset.classes=["bread","bug"]'], ["dataset=digits", 'dataset.classes=["0","1"]', "dataset.val=0.01"]]
)
def test_the_convnets_of_the_talk_train_side_by_side(words, tmp_path):
    """`-m model=vgg,resnet,alexnet,googlenet model.weights=none` on drawings at 64 px and on digits."""
    nets = [
        "model=vgg,resnet,alexnet,googlenet",
        "model.weights=none",
        "freeze=none",
        "data.size=64",
        "dataset.per_class=2",
        "optimizer=sgd",
    ]
    jobs = config.Composer().jobs([*SHORT, *words, *nets, f"hydra.sweep.dir={tmp_path}"], multirun=True)
    runs = list(executed(jobs, tmp_path))
    assert [run.settings.model.name for run in runs] == ["vgg", "resnet", "alexnet", "googlenet"]
    assert all(run.record["phases"][0]["trains"][-1] == "head" for run in runs)
    shutil.rmtree(tmp_path)  # four nets and their checkpoints take gigabytes


def test_cats_and_dogs_are_told_apart_without_training(tmp_path):
    """The folds together: 30 drawings, each tested once, ranked by ImageNet's own classes; 0.5 would be chance."""
    jobs = config.Composer().jobs(["experiment=only_cats_and_dogs", "plots=false", f"hydra.sweep.dir={tmp_path}"], multirun=False)
    runs = list(executed(jobs, tmp_path))
    assert sum(run.record["data"]["sizes"]["test"] for run in runs) == 30
    told = pl.concat([pl.read_parquet(run.folder / "predictions.parquet") for run in runs])
    assert told["id"].n_unique() == 30
    assert roc_auc_score(told["truth"] == "dog", told["scores"].list.get(runs[0].classes.index("dog"))) > 0.7
    right = (told["truth"] == told["predicted"]).sum()
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table([run.folder for run in runs], ["dataset.fold"]))
    assert f"5 folds  {right} of 30 right" in console.export_text()
