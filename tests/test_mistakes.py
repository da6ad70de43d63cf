"""What a new user gets wrong: each mistake ends with status 2 and no traceback, names the key or file, and says what would work."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from PIL import Image

from regraft import hardware
from regraft.cli import main
from regraft.settings import GROUPS

# what is typed after the verb (an argument a word, as in a shell) -> what is told: every text must be in the message
MISTAKES = {
    # names
    "typo in a field": ("model=resnet model.depht=50", ["model.depht = 50", "did you mean model.depth?"]),
    "typo in a section": ("trainr.max_epochs=5", ["trainr.max_epochs = 5", "did you mean trainer.max_epochs?"]),
    "typo in a group": ("modell=resnet", ["modell = resnet", "did you mean model?"]),
    "typo in a group's choice": ("model=resnt", ["model = resnt", "did you mean resnet?"]),
    "typo in a list of choices": ("logger=[csv,wnadb]", ["logger = wnadb", "did you mean wandb?"]),
    "typo in a value": ("data.fit=crp", ["data.fit = crp", "crop, squash or pad"]),
    "typo in the weights": ("model.weights=imagnet", ["model.weights = imagnet", "did you mean imagenet?"]),
    "a typo, and + before it": ("model=resnet +model.dpeth=50", ["model.dpeth = 50", "did you mean model.depth?"]),
    "a typo, and ++ before it": ("++trainer.max_epoch=5", ["trainer.max_epoch = 5", "did you mean trainer.max_epochs?"]),
    "a typo in a group, and + before it": ("+experimnt=mine", ["experimnt = mine", "did you mean experiment?"]),
    "~ of a needed key": ("~data.size", ["data.size", "a value is needed: side of the square"]),
    "~ of a needed group": ("~model", ["choose one: model=efficientnet_lite|alexnet|vgg|googlenet|resnet|timm|convnet|mlp"]),
    "a key without its section": ("lr=0.1", ["lr = 0.1", "did you mean optimizer.lr?"]),
    "half a key": ("epochs=5", ["epochs = 5", "did you mean trainer.max_epochs?"]),
    "a key in the wrong section": ("data.lr=0.1", ["data.lr = 0.1", "did you mean optimizer.lr?"]),
    "a key of another entry": ("model=mlp model.arch=resnet26d", ["model.arch = resnet26d", "model=mlp has no arch; model=timm has it"]),
    "a key of several other entries": (
        "model.depth=50",
        ["model=efficientnet_lite has no depth; model=alexnet, model=vgg", "model=dbn or model=crnn have it"],
    ),
    "a typo of another entry's key": ("model.depht=50", ["did you mean model.depth?", "model=dbn or model=crnn have it"]),
    "a key of an entry that has none": ("freeze.n=2", ["freeze=backbone has no n; freeze=last has it"]),
    "a key of a logger that is not there": ("logger.wandb.project=x", ["logger.wandb.project = x", "logger=wandb has it"]),
    "a typo in a key of Hydra's": ("hydra.run.dri=x", ["hydra.run.dri = x", "did you mean hydra.run.dir?"]),
    "a launcher of Hydra's": ("hydra/launcher=joblib", ["hydra/launcher = joblib", "launcher=local, ray, slurm or azureml works"]),
    "the run id by hand": ("run_id=mine", ["run_id = mine", "hydra.run.dir names the folder"]),
    # values
    "a depth that there is not": ("model=resnet model.depth=19", ["model.depth = 19", "resnet has depth 18, 34, 50, 101 or 152"]),
    "text for a number": ("head.dropout=high", ["head.dropout = high", "a number is needed (part of the head's inputs"]),
    "true for a number": ("head.dropout=true", ["head.dropout = true", "a number is needed"]),
    "a fraction for a whole number": ("trainer.max_epochs=1.5", ["trainer.max_epochs = 1.5", "a whole number is needed (epochs"]),
    "a number out of range": ("head.dropout=1", ["head.dropout = 1", "less than 1.0 is needed"]),
    "not a finite number": ("optimizer.lr=inf", ["optimizer.lr = inf", "a number is needed"]),
    "a word for a number or auto": ("hardware.devices=many", ["hardware.devices = many", "a whole number or auto is needed"]),
    "a number for text": ("sweep.name=3", ["sweep.name = 3", """'sweep.name="3"'"""]),
    "numbers for class names": ("dataset=digits dataset.classes=[3,8]", ["dataset.classes = [3,8]", """'dataset.classes=["3", "8"]'"""]),
    "one value for a list": ("optimizer.betas=0.9", ["optimizer.betas = 0.9", "a list [a,b] is needed"]),
    "too few values": ("optimizer.betas=[0.9]", ["optimizer.betas = [0.9]", "a list of 2 values is needed"]),
    "null for a needed value": ("trainer.max_epochs=null", ["trainer.max_epochs = null", "a whole number is needed"]),
    "??? for a needed value": ("trainer.max_epochs=???", ["trainer.max_epochs", "a value is needed: epochs over all phases"]),
    "a seed below 0": ("seed=-1", ["seed = -1", "a whole number of at least 0"]),
    "a section as a value": ("trainer=fast", ["trainer = fast", "a section is needed, with max_epochs"]),
    "no picture of a class": ("dataset.per_class=0", ["dataset.per_class = 0", "at least 1 is needed"]),
    "an unknown class": ("dataset.classes=[fruti,bird]", ["dataset.classes = fruti", "did you mean fruit?"]),
    "an unknown net of timm's": ("model=timm model.arch=resnet26dd", ["model.arch = resnet26dd", "did you mean resnet26d"]),
    "an unknown key in ${}": ("head.dropout=${model.dropout}", ["head.dropout = ${model.dropout}", "did you mean head.dropout"]),
    # what does not go together
    "a batch that can't be divided": (
        "hardware=cpu hardware.devices=3 data.batch_size=32",
        ["data.batch_size = 32", "must divide by 3", "30 or 33 would"],
    ),
    "no device": ("hardware=cpu hardware.devices=0", ["hardware.devices = 0", "at least 1"]),
    "a GPU that is not there": ("hardware=gpu", ["hardware.name = gpu", "hardware=cpu or hardware=auto work"]),
    "half precision on the processor": ("hardware=cpu hardware.precision=fp16", ["hardware.precision = fp16", "bf16 and fp32 work"]),
    "weights that nobody published": ("model=mlp model.weights=imagenet", ["model.weights = imagenet", "give none, or the path"]),
    "two phases in one epoch": ("freeze=lp_ft trainer.max_epochs=1", ["trainer.max_epochs = 1", "freeze=lp_ft needs at least 2"]),
    # files
    "a dataset without its path": ("dataset=folder", ["dataset.path", "a value is needed: folder of your pictures"]),
    "a path that is not there": ("dataset=folder dataset.path=/nowhere/at/all", ["dataset.path = /nowhere/at/all", "/ has no nowhere"]),
    "a typo in a path": ("dataset=folder dataset.path=picturs", ["dataset.path = ", "no such folder; did you mean", "/pictures?"]),
    "a path of another dataset": ("dataset.path=pictures", ["dataset.path = pictures", "dataset=clipart has no path", "dataset=folder, "]),
    "no such file of weights": ("model.weights=mine.pht", ["model.weights = ", "no such file or run; did you mean mine.pth?"]),
    "a file that holds no weights": ("model.weights=notes.txt", ["model.weights = ", ".safetensors, .pth"]),
    "a folder that is no run": ("model.weights=pictures", ["model.weights = ", "must be a run folder"]),
    "no such folder of configs": ("--config-dir nowhere", ["--config-dir = nowhere", "name one that holds config groups"]),
    "no such place in the search path": ("hydra.searchpath=[file:///nowhere]", ["hydra.searchpath = /nowhere", "no such folder"]),
    "no such config": ("--config-name confg", ["--config-name = confg", "did you mean config?"]),
    "an experiment that is none": ("experiment=mine", ["experiment = mine", "experiment is augmentations, cats_and_dogs"]),
    "an unknown key in a folder's pattern": ("hydra.run.dir=runs/${run_idd}", ["hydra.run.dir = runs/${run_idd}", "did you mean run_id?"]),
    "no run folder": ("hydra.run.dir=", ["hydra.run.dir", "a folder is needed"]),
    # sweeps
    "several values of a key, no -m": ("head.dropout=0,0.5", ["head.dropout = 0,0.5", "regraft train -m head.dropout=0,0.5"]),
    "several choices of a group, no -m": ("freeze=none,last seed=1", ["freeze = none,last", "regraft train -m freeze=none,last seed=1"]),
    "an interval": ("-m head.dropout=interval(0,1)", ["head.dropout = interval(0,1)", "range(0,1,step=0.1)"]),
    "names by a pattern": ("-m model=glob(*)", ["model = glob(*)", "write them out"]),
    "one folder for two runs": ("-m head.dropout=0,0.5 hydra.sweep.subdir=x", ["hydra.sweep.subdir = ", "put ${run_id}"]),
    # the grammar
    "brackets that stay open": ("'dataset.classes=[bird,fruit'", ["dataset.classes=[bird,fruit", "not an override; write key=value"]),
    "no value": ("model.depth", ["model.depth", "not an override; write key=value"]),
    "no key": ("=3", ["=3", "not an override; write key=value"]),
    "a package for a group": ("model@net=resnet", ["model@net = resnet", "write model=resnet"]),
    "an unknown option": ("--mutlirun", ["--mutlirun", "did you mean --multirun?"]),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with pictures, weights and notes, and no GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hardware, "visible_gpus", lambda: 0)
    for name in ("cat", "dog"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "pictures" / name / "1.png")
    (tmp_path / "notes.txt").write_text("none")
    (tmp_path / "mine.pth").write_bytes(b"")
    return tmp_path


def listed(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What is told on stderr; nothing is on stdout."""
    assert main(words) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("regraft: ")
    assert "Traceback" not in told.err
    return told.err


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_and_nothing_is_written(mistake: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed, expected = MISTAKES[mistake]
    before = listed(here)
    told = refused(["check", *shlex.split(typed)], capsys)
    assert [text for text in expected if text not in told] == []
    assert told.startswith("regraft: a problem\n"), f"one mistake, one problem: {told}"
    assert refused(["train", *shlex.split(typed)], capsys).replace("of train", "of check") == told
    assert listed(here) == before


VERBS = {
    "an unknown verb": ("trian model=resnet", ["trian", "did you mean train?"]),
    "an unknown group to list": ("list modle", ["list = modle", "did you mean model?"]),
    "an unknown option of the program": ("--verison", ["regraft --help"]),
    "a word too many": ("list model resnet", ["resnet", "regraft list --help"]),
    "no run to evaluate": ("evaluate", ["RUN", "regraft evaluate --help"]),
    "no such run to evaluate": ("evaluate runs/frist", ["RUN = runs/frist", "no such folder; did you mean runs/first?"]),
    "a folder of runs to evaluate": ("evaluate runs", ["RUN = runs", "not a run folder", "it holds some: runs/first"]),
    "a folder that holds no run": ("evaluate pictures", ["RUN = pictures", "not a run folder: it has no record.json"]),
    "no such run to predict with": ("predict runs/frist notes.txt", ["RUN = runs/frist", "did you mean runs/first?"]),
    "no picture to predict": ("predict runs/first", ["FILE", "regraft predict --help"]),
}


@pytest.mark.parametrize("mistake", VERBS)
def test_a_mistake_in_a_verb_or_in_a_run_folder(mistake: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "runs" / "first").mkdir(parents=True)
    (here / "runs" / "first" / "record.json").write_text("{}")
    typed, expected = VERBS[mistake]
    told = refused(shlex.split(typed), capsys)
    assert [text for text in expected if text not in told] == []


def test_all_mistakes_are_told_at_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(
        shlex.split(
            "train model=resnt freeze=lats hydra.run.dri=x data.fitt=crop head.dropout=2 hardware=cpu hardware.devices=3 "
            "dataset=folder dataset.path=nowhere freeze.m=1 seed=-1 optimizer.lr=0,1"
        ),
        capsys,
    )
    keys = {line.split(" = ")[0].strip() for line in told.splitlines()[1:] if not line.startswith("      ")}
    assert keys == {
        *("model", "freeze", "hydra.run.dri", "data.fitt", "head.dropout", "data.batch_size"),
        *("dataset.path", "seed", "optimizer.lr"),
    }  # freeze.m is not judged: which policy was meant is not known


def test_mistakes_in_some_points_of_a_grid_are_told_each_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(shlex.split("train -m model=resnet,mlp model.weights=none model.depth=1,18,19 head.dropout=0,0.5,2"), capsys)
    assert told.startswith("regraft: 5 problems\n")
    for text in ("head.dropout = 2", "resnet has depth 18, 34, 50, 101 or 152", "mlp has depth 1 or 2"):
        assert text in told
    assert told.count("model.depth = 1\n") == told.count("head.dropout = 2\n") == 1
    assert listed(here / "multirun") == []


def test_a_run_folder_that_holds_another_run_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "taken").mkdir()
    (here / "taken" / "record.json").write_text('{"schema": 1, "run_id": "another", "status": "done"}')
    for verb in ("check", "train"):
        told = refused([verb, "hydra.run.dir=taken"], capsys)
        assert f"hydra.run.dir = {here / 'taken'}" in told
        assert "holds another run (another" in told
        assert "name another folder" in told


OWN = {  # a YAML file of the user's own -> what is typed with it, and what is told
    "model/typo.yaml": ("name: resnet\ndepht: 18\nweights: none\n", "model=typo", ["model.depht = 18", "did you mean model.depth?"]),
    "model/unknown.yaml": ("name: rsnet\ndepth: 18\n", "model=unknown", ["model.name = rsnet", "did you mean resnet?"]),
    "model/wrong.yaml": ("name: resnet\ndepth: 19\nweights: none\n", "model=wrong", ["model.depth = 19", "18, 34, 50, 101 or 152"]),
    "model/empty.yaml": ("", "model=empty", ["choose one: model=efficientnet_lite|"]),
    "model/broken.yaml": ("name: resnet\ndepth: [18\n", "model=broken", ["line 3 is not YAML"]),
    "model/tab.yaml": ("name: resnet\n\tdepth: 18\n", "model=tab", ["line 2 is not YAML"]),
    "experiment/key.yaml": (
        "# @package _global_\nhead: {droput: 0.1}\n",
        "experiment=key",
        ["head.droput = 0.1", "did you mean head.dropout?"],
    ),
    "experiment/section.yaml": ("# @package _global_\nhed: {dropout: 0.1}\n", "experiment=section", ["hed", "did you mean head?"]),
    "experiment/choice.yaml": (
        "# @package _global_\ndefaults:\n  - override /model: resnt\n",
        "experiment=choice",
        ["model = resnt", "did you mean resnet?"],
    ),
    "experiment/group.yaml": (
        "# @package _global_\ndefaults:\n  - override /modl: resnet\n",
        "experiment=group",
        ["Could not override 'modl'", "did you mean model?"],
    ),
}


@pytest.mark.parametrize("by", ["--config-dir own", "hydra.searchpath=[file://{here}/own]"])
@pytest.mark.parametrize("name", OWN)
def test_a_mistake_in_a_file_of_ones_own_names_the_file(name: str, by: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, typed, expected = OWN[name]
    file = here / "own" / name
    file.parent.mkdir(parents=True)
    file.write_text(text)
    told = refused(["check", *shlex.split(f"{typed} {by}".format(here=here))], capsys)
    assert [each for each in [*expected, str(file)] if each not in told] == []


def test_a_near_miss_of_an_entry_of_ones_own(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "own" / "experiment").mkdir(parents=True)
    (here / "own" / "experiment" / "clipart_probe.yaml").write_text("# @package _global_\nseed: 1\n")
    assert "did you mean clipart_probe?" in refused(["check", "--config-dir", "own", "experiment=clipart_prob"], capsys)


@pytest.mark.parametrize(
    ("typed", "same"),
    [
        ("model=resnet +model.depth=50", "model=resnet model.depth=50"),
        ("+model=resnet", "model=resnet"),
        ("model.name=resnet model.depth=50", "model=resnet model.depth=50"),
        ("-m seeds=3", "-m seed=0,1,2"),
        ("seeds=3", "-m seed=0,1,2"),
        ("data={batch_size:16}", "data.batch_size=16"),
    ],
)
def test_what_is_meant_clearly_is_taken(typed: str, same: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for words in (typed, same):
        assert main(["train", "--cfg", "job", *shlex.split(words)]) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]


@pytest.mark.parametrize("verb", ["preview", "find-lr"])
@pytest.mark.parametrize("typed", ["experiment=talk", "seeds=2", "seed=0,1"])
def test_several_runs_are_refused_where_one_is_asked_for(verb: str, typed: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused([verb, typed], capsys)
    assert any(word in told for word in ("give each key one value", "several values make a sweep"))


def test_seeds_make_runs_of_their_own(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "dataset=digits", "seeds=2"]) == 0
    shown = capsys.readouterr().out
    assert all(f"seed={seed}" in shown for seed in (0, 1))
    assert "2 runs" in shown


@pytest.mark.parametrize("group", GROUPS)
def test_a_misspelt_choice_is_mended_in_every_group(group: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = GROUPS[group].names()[0]
    assert f"did you mean {name}" in refused(["check", f"{group}={name}x"], capsys)
