"""From YAML files and overrides to checked jobs: every file in conf/ composes, grids are cheap, run ids hang on what decides."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as trying
from hypothesis import strategies as st

from regraft import config as configs
from regraft.config import Composer, Job
from regraft.errors import UserError
from regraft.settings import FILES_GROUPS, GROUPS, PLAIN, SECTIONS

CONF = Path(__file__).parents[1] / "conf"
FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml") if path.parent.name != "paper")  # a paper is no part of a config
ENTRIES = [path for path in FILES if len(path.parts) > 1 and path.parts[0] not in FILES_GROUPS]
GIVEN = {  # what has no value that would do everywhere
    "dataset/csv": ["dataset.path=labels.csv"],
    "dataset/folder": ["dataset.path=pictures"],
    "dataset/huggingface": ["dataset.path=parquet"],
    "dataset/imagenet": ["dataset.path=ilsvrc"],
    "dataset/boxes": ["dataset.path=labels.csv"],
    "dataset/captions": ["dataset.path=labels.csv"],
    "dataset/coco": ["dataset.path=labels.csv"],
    "dataset/coco_captions": ["dataset.path=labels.csv"],
    "dataset/series": ["dataset.path=pictures"],
    "dataset/spam": ["dataset.path=pictures"],
    "dataset/text": ["dataset.path=labels.csv"],
    "dataset/voc": ["dataset.path=pictures"],
    "freeze/greedy": ["model=dbn"],
    "freeze/phases": ["freeze.phases=[{name: a, epochs: 20, trains: [head]}]"],
    "freeze/surgical": ["freeze.stages=[layer1]"],
    "freeze/transplant": ["freeze.stage=layer1"],
    "freeze/until": ["freeze.stage=layer1"],
    "head/captioner": ["task=caption"],
    "head/ctc": ["task=ocr"],
    "head/frames": ["task=frames"],
    "head/rcnn": ["task=detect"],
    "head/tagger": ["task=tag"],
    "launcher/azureml": ["hardware=azure_nc24ads_a100"],
    "launcher/slurm": ["hardware=cpu"],
    "loss/huber": ["task=regress"],
    "loss/mse": ["task=regress"],
    "loss/own": ["task=frames"],
    "task/regress": ["loss=mse"],
}
MISSES = ("hardware/gpu", "hardware/azure_", "hardware/mps", "launcher/")  # need what this machine may not have


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "dog"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
    (tmp_path / "ilsvrc" / "val" / "n01440764").mkdir(parents=True)
    (tmp_path / "labels.csv").write_text("path,label\n1.png,cat\n2.png,dog\n")
    (tmp_path / "parquet").mkdir()
    (tmp_path / "parquet" / "train-0.parquet").touch()


def jobs(typed: str, multirun: bool = False, **keywords: Any) -> list[Job]:
    return Composer(**keywords).jobs(shlex.split(typed), multirun)


def job(typed: str = "", **keywords: Any) -> Job:
    [only] = jobs(typed, **keywords)
    return only


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


# conf/


def test_every_file_is_found() -> None:
    assert len(FILES) >= 90
    assert [path for path in FILES if len(path.parts) == 1] == [Path("config.yaml")]
    assert {path.parts[0] for path in ENTRIES} == set(GROUPS)
    assert {path.parts[0] for path in FILES} == {*GROUPS, *FILES_GROUPS, "config.yaml"}


@pytest.mark.parametrize("path", ENTRIES, ids=str)
def test_every_file_composes_and_is_right(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group, name = path.parts[0], path.stem
    if f"{group}/{name}".startswith(MISSES):
        monkeypatch.setattr("regraft.hardware.visible_gpus", lambda: 4)
        monkeypatch.setattr("regraft.hardware._is_mac", lambda: True)
        monkeypatch.setattr("regraft.launchers._installed", lambda module: True)
        monkeypatch.setattr("regraft.launchers.which", lambda command: f"/usr/bin/{command}")
    composed = job(shlex.join([f"{group}={name}", *GIVEN.get(f"{group}/{name}", [])]))
    chosen = getattr(composed.settings, group)
    assert (chosen[name] if group == "logger" else chosen).name == name


@pytest.mark.parametrize("path", ENTRIES, ids=str)
def test_a_files_keys_are_its_specs_fields(path: Path) -> None:
    group, name = path.parts[0], path.stem
    values = yaml.safe_load((CONF / path).read_text())
    values = values[name] if group == "logger" else values
    assert set(values) == set(GROUPS[group].spec(name).model_fields)


def test_every_built_in_entry_has_its_file() -> None:
    assert {(path.parts[0], path.stem) for path in ENTRIES} == {(group.name, name) for group in GROUPS.values() for name in group.builtin}


def test_the_configs_sections_hold_what_their_specs_take() -> None:
    values = yaml.safe_load((CONF / "config.yaml").read_text())
    assert {key: set(values[key]) for key in SECTIONS} == {key: set(spec.model_fields) for key, spec in SECTIONS.items()}
    assert set(values) == {*SECTIONS, *PLAIN, "defaults", "run_id", "hydra"}
    assert {key.split()[-1] for each in values["defaults"] if isinstance(each, dict) for key in each} == {*GROUPS, *FILES_GROUPS}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_key_has_a_comment(path: Path) -> None:
    lines = (CONF / path).read_text().split("\nhydra:")[0].splitlines()  # Hydra's own keys have Hydra's documentation
    keys = [line for line in lines if re.match(r"\s*(- )?\w+:\s*[^#\s]", line)]
    bare = [line for line in keys if not re.search(r"\s# \S", line)]
    title = len(path.parts) > 1 and lines[0].startswith("# ")  # says what the entry is, and so what its name means
    assert keys
    assert [line for line in bare if not (title and line.strip().startswith("name:"))] == []


# grids


def test_a_grid_of_plain_values_is_composed_once_for_each_set_of_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    composed = []

    def compose(*arguments: Any, **keywords: Any) -> Any:
        composed.append(arguments)
        return original(*arguments, **keywords)

    original = configs.compose
    monkeypatch.setattr(configs, "compose", compose)
    found = jobs("model=resnet,mlp model.weights=none optimizer.lr=range(1,11) seed=range(50) hardware=cpu", multirun=True)
    assert len(found) == 1000
    assert len({(each.settings.model.name, each.settings.optimizer.lr, each.settings.seed) for each in found}) == 1000
    assert len(composed) == 3  # the two models; and, without the model's choice, whether the config itself asks for a sweep


def test_the_points_of_a_grid_are_numbered_with_the_last_axis_fastest() -> None:
    found = jobs("freeze=backbone,none head.dropout=0,0.5 seed=7", multirun=True)
    assert [(each.number, each.settings.freeze.name, each.settings.head.dropout) for each in found] == [
        (0, "backbone", 0),
        (1, "backbone", 0.5),
        (2, "none", 0),
        (3, "none", 0.5),
    ]
    assert found[1].overrides == ("freeze=backbone", "head.dropout=0.5", "seed=7")
    assert not any(each.single or each.settings.plots for each in found)


# values


@pytest.mark.parametrize(
    ("typed", "key", "value"),
    [
        ("optimizer.lr=1e-3", "optimizer.lr", 0.001),
        ("trainer.patience=null", "trainer.patience", None),
        ("optimizer.betas=[0.8,0.9]", "optimizer.betas", [0.8, 0.9]),
        ('dataset=digits \'dataset.classes=["3","8"]\'', "dataset.classes", ["3", "8"]),
        ("'sweep.name=\"a b, c\"'", "sweep.name", "a b, c"),
        ("sweep.name=probe-1", "sweep.name", "probe-1"),
        ("'head.dropout=${optimizer.weight_decay}'", "head.dropout", 0.01),
        ("model=mlp 'head.dropout=${model.dropout}' model.dropout=0.25", "head.dropout", 0.25),
        ("'sweep.name=\"${model.name}-${seed}\"' seed=3", "sweep.name", "efficientnet_lite-3"),
        ("plots=null", "plots", True),
        ("plots=false", "plots", False),
    ],
)
def test_values_arrive_as_they_are_meant(typed: str, key: str, value: object) -> None:
    assert flat(job(typed).config)[key] == value


def test_several_values_may_be_lists() -> None:
    found = jobs("optimizer.betas=[0.9,0.99],[0.8,0.9]", multirun=True)
    assert [each.settings.optimizer.betas for each in found] == [[0.9, 0.99], [0.8, 0.9]]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("typed", "key", "path"),
    [
        ("dataset=folder dataset.path=pictures", "dataset.path", "pictures"),
        ("cache.dir=./store", "cache.dir", "store"),
        ("model.weights=./mine.pth", "model.weights", "mine.pth"),
        ("cache.dir=~/store", "cache.dir", Path.home() / "store"),
    ],
)
def test_paths_become_absolute(typed: str, key: str, path: str | Path) -> None:
    Path("mine.pth").write_bytes(b"")
    assert flat(job(typed).config)[key] == str(Path.cwd() / path)


def test_a_word_is_no_path() -> None:
    assert job("model.weights=imagenet").settings.model.weights == "imagenet"


# files of one's own


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with an experiment and a model of the user's own, and a config to start from."""
    folder = tmp_path / "own"
    texts = {
        "experiment/sweep.yaml": """\
            # @package _global_
            defaults:
              - override /model: mine
              - override /freeze: last
            head: {dropout: 0.9}
            trainer: {max_epochs: 3}
            hydra:
              mode: MULTIRUN
              sweeper:
                params:
                  head.dropout: 0,0.5
                  freeze.n: range(1,4)
            """,
        "experiment/plain.yaml": "# @package _global_\noptimizer: {lr: 0.5}\n",
        "model/mine.yaml": "name: mlp\ndepth: 2\nwidth: 7\ndropout: 0.1\nweights: none\n",
        "start.yaml": "defaults:\n  - config\n  - override dataset: digits\n  - _self_\nseed: 5\n",
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("\n".join(line.removeprefix(" " * 12) for line in text.splitlines()))
    return folder


@pytest.mark.parametrize("by", ["hydra.searchpath", "--config-dir", "both"])
def test_an_experiment_brings_its_choices_values_and_axes(by: str, own: Path) -> None:
    path = f"hydra.searchpath=[{own if by == 'hydra.searchpath' else 'pkg://regraft.conf'}]" if by != "--config-dir" else ""
    found = jobs(f"experiment=sweep {path}", config_dir=None if by == "hydra.searchpath" else str(own))
    assert len(found) == 6
    assert not found[0].single
    first = found[0].settings
    assert (first.model.width, first.trainer.max_epochs) == (7, 3)  # type: ignore[attr-defined]
    assert {(each.settings.head.dropout, each.settings.freeze.n) for each in found} == {  # type: ignore[attr-defined]
        (dropout, n) for dropout in (0, 0.5) for n in (1, 2, 3)
    }


def test_the_command_line_has_the_last_word(own: Path) -> None:
    assert {each.settings.head.dropout for each in jobs("experiment=sweep head.dropout=0.3", config_dir=str(own))} == {0.3}
    assert {each.settings.optimizer.lr for each in jobs("experiment=plain,sweep optimizer.lr=2", True, config_dir=str(own))} == {2}


def test_a_config_of_ones_own_to_start_from(own: Path) -> None:
    found = job("", config_name="start", config_dir=str(own)).settings
    assert (found.seed, found.dataset.name) == (5, "digits")


# run ids

DECIDES = {  # key -> another value
    "seed": 1,
    "model.variant": 1,
    "dataset.size": 64,
    "dataset.classes": "[bird,fruit]",
    "dataset.per_class": 3,
    "dataset.labelled": 3,
    "dataset.split_seed": 1,
    "dataset.folds": 3,
    "freeze.layer_decay": 0.5,
    "freeze.stage_lr": "{layer4: 0.5}",
    "freeze.norm_stats": "frozen",
    "augmentation.views": "expand",
    "hardware.devices": 2,
    "hardware.accumulate": 2,
    "hardware.precision": "bf16",
    "hardware.batchnorm": "sync",
    "hardware.memory_format": "channels_last",
    "hardware.compile": "true",
    "head.dropout": 0.7,
    "head.kept": True,
    "loss.label_smoothing": 0.1,
    "loss.class_weights": "balanced",
    "optimizer.lr": 0.5,
    "optimizer.weight_decay": 0.5,
    "optimizer.betas": "[0.5,0.5]",
    "schedule.warmup": 0.5,
    "data.batch_size": 8,
    "data.size": 96,
    "data.fit": "pad",
    "data.crop": 0.875,
    "trainer.max_epochs": 7,
    "trainer.keep": "last",
    "trainer.monitor": "val/loss",
    "trainer.patience": 3,
    "trainer.max_steps": 7,
    "trainer.clip": 1,
    "trainer.ema": 0.9,
    "cache.dtype": "bfloat16",
    "evaluate.views": "true",
    "model": "mlp",
    "freeze": "none",
    "augmentation": "d4",
    "head": "mlp",
    "optimizer": "sgd",
    "schedule": "constant",
}
UNDECIDING = {
    "dataset.on_error": "skip",
    "hardware.workers": 1,
    "hardware.threads": 1,
    "trainer.checkpoint_seconds": 1,
    "cache.mode": "off",
    "cache.dir": "elsewhere",
    "cache.max_gb": 1,
    "sweep.name": "other",
    "sweep.on_error": "stop",
    "sweep.retry": True,
    "launcher.jobs": 2,
    "sweep.stack": False,
    "sweep.skip_invalid": True,
    "plots": "false",
    "logger": "[csv,wandb]",
    "hydra.run.dir": "elsewhere",
}


def test_epochs_do_not_decide_where_steps_do() -> None:
    assert run_id("trainer.max_steps=7 trainer.max_epochs=3") == run_id("trainer.max_steps=7")


def run_id(typed: str = "") -> str:
    return job(f"hardware=cpu {typed}").settings.run_id("data", "weights")


def test_the_tables_below_name_every_key() -> None:
    by_itself = {
        "model.weights",
        "dataset.fold",
        "cache.views",
        "row",
        "dataset.shift",
        "dataset.corruption",
        "dataset.rename",
    }  # the weights' own hash decides, and the changed pictures'; a fold needs folds, a draw chance, a row a file
    keys = {key for key in flat(job("hardware=cpu").config) if not key.endswith(".name")} | {"sweep.name"}
    assert keys - by_itself == {key for key in {**DECIDES, **UNDECIDING} if "." in key or key in PLAIN} - {"hydra.run.dir"}


@pytest.mark.parametrize("key", DECIDES)
def test_what_decides_changes_the_run_id(key: str) -> None:
    assert run_id(f"'{key}={DECIDES[key]}'") != run_id()


@pytest.mark.parametrize("key", UNDECIDING)
def test_what_does_not_decide_leaves_the_run_id(key: str) -> None:
    assert run_id(f"'{key}={UNDECIDING[key]}'") == run_id()


def test_data_and_weights_decide() -> None:
    settings = job().settings
    assert len({settings.run_id("a", "b"), settings.run_id("a", "c"), settings.run_id("c", "b")}) == 3


@trying(deadline=None)
@given(st.permutations(["seed=3", "head.dropout=0.1", "model=mlp", "model.depth=2", "optimizer=sgd", "optimizer.lr=0.1"]))
def test_the_order_of_overrides_does_not_decide(overrides: list[str]) -> None:
    composer = _composers.setdefault("one", Composer())
    [found] = composer.jobs(overrides, False)
    assert found.settings.run_id("", "") == _composers.setdefault("id", found.settings.run_id("", ""))


_composers: dict[str, Any] = {}


# folders


@pytest.mark.parametrize(
    ("typed", "folder"),
    [
        ("", "multirun/single/ID"),
        ("'hydra.run.dir=runs/${model.name}/${seed}-${run_id}' seed=3", "runs/efficientnet_lite/3-ID"),
        ("'hydra.run.dir=runs/${hydra.job.override_dirname}' seed=3 model=mlp", "runs/model=mlp,seed=3"),
        ("'hydra.run.dir=runs/${hydra.runtime.choices.freeze}'", "runs/backbone"),
        ("'hydra.run.dir=runs/${now:%Y}'", "runs/YEAR"),
        ("hydra.run.dir=/elsewhere/x", "/elsewhere/x"),
    ],
)
def test_where_a_run_is_put(typed: str, folder: str) -> None:
    expected = folder.replace("ID", "0123abcd").replace("YEAR", str(datetime.now().year))
    assert job(typed).folders("0123abcd") == (None, Path.cwd() / expected)


@pytest.mark.parametrize(
    ("typed", "folders"),
    [
        ("", ["multirun/default/ID", "multirun/default/ID"]),
        ("sweep.name=probe", ["multirun/probe/ID", "multirun/probe/ID"]),
        (
            "'hydra.sweep.dir=runs/${sweep.name}-${now:%Y}' 'hydra.sweep.subdir=${hydra.job.num}'",
            ["runs/default-YEAR/0", "runs/default-YEAR/1"],
        ),
        ("'hydra.sweep.subdir=${hydra.job.override_dirname}'", ["multirun/default/seed=0", "multirun/default/seed=1"]),
    ],
)
def test_where_the_runs_of_a_sweep_are_put(typed: str, folders: list[str]) -> None:
    year = str(datetime.now().year)
    found = [each.folders("0123abcd")[1] for each in jobs(f"seed=0,1 {typed}", multirun=True)]
    assert found == [Path.cwd() / folder.replace("ID", "0123abcd").replace("YEAR", year) for folder in folders]


# nothing is changed behind anybody's back


@pytest.mark.parametrize("change", [lambda c: c["model"].update(depth=9), lambda c: c["optimizer"]["betas"].append(1), lambda c: c.clear()])
def test_composing_twice_gives_equal_and_independent_results(change: Callable[[dict[str, Any]], Any]) -> None:
    composer = Composer()
    [first], [second] = (composer.jobs(["model=mlp", "optimizer.lr=0.1"], False) for _ in range(2))
    assert first == second
    before = copy.deepcopy(second.config)
    change(first.config)
    assert second.config == before
    [third] = composer.jobs(["model=mlp", "optimizer.lr=0.1"], False)
    assert third.config == before


def test_a_point_of_a_grid_does_not_see_another() -> None:
    found = jobs("data={batch_size:8},{fit:pad}", multirun=True)
    assert [(each.settings.data.batch_size, each.settings.data.fit) for each in found] == [(8, "crop"), (32, "pad")]


@pytest.mark.parametrize("typed", ["", "'freeze=surgical' 'freeze.stages=[blocks.1]'"])
def test_a_config_of_an_earlier_version_is_read_as_what_it_was(typed: str) -> None:
    from regraft.settings import LATER, settings

    now = job(typed).config
    before = {
        section: {k: v for k, v in values.items() if k not in LATER.get(section, ())} if isinstance(values, dict) else values
        for section, values in now.items()
    }
    del before["evaluate"]
    assert settings(before) == settings(now)


@pytest.mark.parametrize("axis", ["launcher=local,ray", "launcher.jobs=1,2", "sweep.retry=true,false"])
def test_what_decides_no_result_is_no_axis(axis):
    """Its runs would have one id, and one folder."""
    with pytest.raises(UserError, match=r"decides no result.*give one value"):
        Composer().jobs(["dataset=digits", "seed=0,1", axis], multirun=True)


def test_stages_train_alone_only_where_they_have_losses_of_their_own():
    with pytest.raises(UserError, match=r"freeze = greedy: it trains each stage by a loss of its own.*model=dbn has"):
        Composer().jobs(["freeze=greedy", "dataset=digits"], multirun=False)
