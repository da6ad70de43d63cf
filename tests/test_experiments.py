"""Every experiment of conf/experiment composes as it stands, and trains one short step at both ends of its sweep."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import polars as pl
import pytest
import yaml
from omegaconf import OmegaConf
from rich.console import Console
from sklearn.metrics import roc_auc_score

from regraft import config, running, sweep, weights
from regraft.graft import Run
from regraft.record import MODEL, Metrics
from regraft.report.swept import table

FILES = Path(__file__).parents[1] / "conf" / "experiment"
EXPERIMENTS = sorted(path.stem for path in FILES.glob("*.yaml"))
SHORT = ["plots=false", "hardware.workers=0", "trainer.max_epochs=1", "trainer.patience=null", "data.batch_size=16"]
OWN = {  # what makes each of them short
    "augmentations": ["data.size=32", "dataset.per_class=1"],
    "cats_and_dogs": ["data.size=32"],
    "dbn": ["freeze.pretrain=1,0", "trainer.max_epochs=4", "dataset.per_class=4", "dataset.labelled=2"],
    "depth_dropout_devices": ["dataset.per_class=2", "hardware.devices=1"],
    "few_pictures": ["data.size=32"],
    "freeze_policies": ["data.size=32", "dataset.per_class=1", "freeze=lp_ft,none", "trainer.max_epochs=2"],
    "from_scratch": ["dataset.per_class=1", 'dataset.classes=["bird","bug"]', "model=convnet,resnet"],
    "only_cats_and_dogs": ["trainer.max_epochs=0", "data.size=64"],
    "scenes": ["dataset.train=8", "dataset.val=4", "dataset.test=4"],
    "talk": ["data.size=32", "dataset.per_class=1", "row=majority,lp_ft", "trainer.max_epochs=2"],
    "talk_few": ["data.size=32", "row=probe", "dataset.per_class=5,40", "trainer.max_epochs=1"],
    "whitening": ["dataset.per_class=4"],
}
ELSEWHERE = ("imagenet", "vowels", "chorales")  # their data is not here, or too long for a short step
PROBE, LITE = ["head"], ["stem", *(f"blocks.{number}" for number in range(7)), "conv_head", "head"]
RESNET = ["stem", "layer1", "layer2", "layer3", "layer4", "head"]
DBN = ["rbm1", "rbm2", "rbm3", "head"]
CONVNET = ["conv1", "conv2", "conv3", "conv4", "fc", "head"]
# side (px), points of the sweep, train, val and test pictures at both its ends, and what each phase trains at both its ends
EXPECTED = {
    "augmentations": (32, 10, [(19, 208, 210)] * 2, [PROBE], [PROBE]),
    "cats_and_dogs": (32, 5, [(14, 8, 8), (18, 8, 4)], [PROBE], [PROBE]),
    "dbn": (8, 10, [(20, 269, 269)] * 2, [[stage] for stage in DBN[:-1]] + [DBN], [DBN]),
    "depth_dropout_devices": (32, 4, [(20, 269, 269)] * 2, [RESNET], [RESNET]),
    "few_pictures": (32, 15, [(19, 208, 210), (343, 208, 210)], [PROBE], [PROBE]),
    "freeze_policies": (32, 2, [(19, 208, 210)] * 2, [PROBE, LITE], [LITE]),
    "from_scratch": (64, 2, [(2, 20, 20)] * 2, [CONVNET], [RESNET]),
    "only_cats_and_dogs": (64, 5, [(14, 8, 8), (18, 8, 4)], [], []),
    "scenes": (160, 2, [(8, 4, 4)] * 2, [PROBE], [PROBE]),
    "talk": (32, 6, [(19, 208, 210)] * 2, [PROBE], [PROBE, LITE]),
    "talk_few": (32, 6, [(95, 208, 210), (518, 208, 210)], [PROBE], [PROBE]),
    "whitening": (16, 4, [(40, 269, 269)] * 2, [CONVNET], [CONVNET]),
}


def test_every_recipe_is_a_row_of_the_talk(tmp_path):
    planned = sweep.plan(config.Composer().jobs(["experiment=talk", f"hydra.sweep.dir={tmp_path}"], multirun=False))
    rows = [each.job.config["row"] for each in planned]
    assert sorted(set(rows)) == sorted(path.stem for path in FILES.with_name("row").glob("*.yaml"))
    assert len(planned) == 3 * len(set(rows)) == len({each.run_id for each in planned})
    assert sweep.axes(planned) == ["seed", "row"], "what a recipe brings along is not an axis of its own"


def executed(jobs, folder):
    for planned in sweep.plan(jobs):
        sweep.begin(planned, "a test", {"git": None, "packages": {}, "machine": {}})
        running.execute([planned.folder], lambda what: None)
        yield Run(planned.folder.path)


def test_all_are_found():
    assert len(EXPERIMENTS) >= 9
    assert {*OWN, *ELSEWHERE} == set(EXPERIMENTS)
    assert EXPECTED.keys() == OWN.keys()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_it_composes_as_it_stands(name, tmp_path):
    given = [f"dataset.path={tmp_path}"] if name == "imagenet" else []
    (tmp_path / "val" / "n01440764").mkdir(parents=True)
    jobs = config.Composer().jobs([f"experiment={name}", *given], multirun=False)
    assert len(jobs) > 1
    assert len({str(job.config) for job in jobs}) == len(jobs)


@pytest.mark.parametrize("name", OWN)
def test_it_trains_one_short_step(name, tmp_path):
    """Both ends of the sweep: the swept keys have the file's values, and the run has the stages, sizes and epochs that they mean."""
    words = [f"experiment={name}", *SHORT, *OWN[name], f"hydra.sweep.dir={tmp_path}"]
    jobs = config.Composer().jobs(words, multirun=False)
    side, points, pictures, *trains = EXPECTED[name]
    assert len(jobs) == points
    for end, run in zip((0, -1), executed([jobs[0], jobs[-1]], tmp_path), strict=True):
        for key, values in swept(name).items():
            assert at(run.folder.config, key) == values[end], key
        assert run.record["resolved"]["size"] == side
        assert tuple(run.record["data"]["sizes"].values()) == pictures[end]
        assert [phase["trains"] for phase in run.record["phases"]] == trains[end]
        epochs = [row["epoch"] for row in Metrics(run.folder / "metrics.csv").rows() if row["metric"] == "train/loss"]
        assert len(epochs) == sum(phase["epochs"] for phase in run.record["phases"])
        changed = {run.chain.stage_of(tensor) for tensor in weights.read(run.folder / MODEL) if not tensor.startswith("whitening.")}
        # the head is saved with the run, whether it trains or not
        assert changed | {"head"} == {stage for phase in trains[end] for stage in phase} | {"head"}
        told = pl.read_parquet(run.folder / "predictions.parquet")
        if run.record["metric"] == "accuracy":
            assert run.metrics["test/accuracy"] == pytest.approx((told["truth"] == told["predicted"]).mean())
        assert len(told) == pictures[end][2]


def swept(name: str) -> dict[str, list[object]]:
    """The values of each swept key: the file's own, or those that `OWN` gives in their place."""
    axes = OmegaConf.to_container(OmegaConf.load(FILES / f"{name}.yaml"))["hydra"]["sweeper"]["params"]
    given = dict(word.split("=", 1) for word in OWN[name])
    found = {}
    for key, values in axes.items():
        values = str(given.get(key, values))
        counted = re.fullmatch(r"range\((\d+)\)", values)
        found[key] = list(range(int(counted[1]))) if counted else [yaml.safe_load(each) for each in values.split(",")]
    return found


def at(config: dict, key: str) -> object:
    """The value of a key; of a group its entry's name."""
    for word in key.split("."):
        config = config[word]
    return config["name"] if isinstance(config, dict) else config


@pytest.mark.engines  # no engine, but gigabytes of nets and checkpoints
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
