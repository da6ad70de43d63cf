"""The command line as a process: what it says, what it imports, how it ends."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from regraft.cli import main
from regraft.record import RunFolder
from regraft.verbs import VERBS

REPORT = """
import json, sys
from regraft.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as error:
    status = error.code
print(json.dumps([status, sorted(sys.modules)]), file=sys.stderr)
"""


def imported(folder: Path, *words: str) -> tuple[str, set[str]]:
    """What a command prints, and the packages that it imported; it must end well."""
    done = subprocess.run([sys.executable, "-c", REPORT, *words], cwd=folder, capture_output=True, text=True, timeout=60)
    status, modules = json.loads(done.stderr.splitlines()[-1])
    assert status in (0, None), done.stderr
    return done.stdout, {name.partition(".")[0] for name in modules}


LIGHT = {  # words -> a text that is printed
    ("--help",): "regraft train model=resnet model.depth=50",
    ("--version",): "regraft 0.",
    ("list",): "efficientnet_lite, alexnet, vgg, googlenet, resnet, timm, convnet, mlp",
    ("list", "model"): "model.depth = 18",
    ("list", "experiment"): "experiment/NAME.yaml",
    **{(verb, "--help"): about[0].upper() + about[1:] for verb, (_, about) in VERBS.items()},
}


@pytest.mark.parametrize("words", LIGHT, ids=" ".join)
def test_what_is_asked_often_imports_little(words: tuple[str, ...], tmp_path: Path) -> None:
    printed, modules = imported(tmp_path, *words)
    assert LIGHT[words] in " ".join(printed.split())
    assert modules.isdisjoint({"torch", "hydra", "omegaconf", "numpy", "timm"})


@pytest.mark.parametrize("words", [(), ("model=timm",), ("-m", "model=resnet,mlp", "model.weights=none")], ids=" ".join)
def test_check_imports_no_torch(words: tuple[str, ...], tmp_path: Path) -> None:
    printed, modules = imported(tmp_path, "check", *words)
    assert "nothing wrong" in printed
    assert "multirun/" in printed
    assert modules.isdisjoint({"torch", "torchvision", "timm", "pytorch_lightning"})
    assert not (tmp_path / "multirun").exists()


def test_list_shows_every_group_and_entry(capsys: pytest.CaptureFixture[str]) -> None:
    from regraft.settings import GROUPS

    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    for group in GROUPS.values():
        assert f"\n{group.name} " in f"\n{shown}"
        assert main(["list", group.name]) == 0
        entries = capsys.readouterr().out
        for name in group.names():
            assert f"{group.name}={name}  " in entries
            fields = [field for field in group.spec(name).model_fields if field != "name"]
            below = f"{group.name}.{name}" if group.name == "logger" else group.name
            assert [field for field in fields if f"    {below}.{field} = " not in entries] == []


def test_without_a_verb_overrides_mean_train(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["dataset=digits", "--cfg", "job"], ["+dataset=digits", "-c", "job"], ["-m", "dataset=digits", "--cfg", "job"]):
        assert main(words) == 0
        assert yaml.safe_load(capsys.readouterr().out)["dataset"]["name"] == "digits"


def test_nothing_at_all_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: regraft")
    assert all(verb in shown for verb in VERBS)


@pytest.mark.parametrize(("what", "keys"), [("job", {"model", "seed"}), ("hydra", {"hydra"}), ("all", {"model", "seed", "hydra"})])
def test_the_composed_config_is_printed_as_yaml(what: str, keys: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--cfg", what, "seed=3"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert keys <= set(printed)
    assert "hydra" in keys or "hydra" not in printed
    assert printed.get("seed", 3) == 3


def test_a_printed_config_runs_as_the_overrides_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--cfg job` is whole: given back as a file, it is the same run."""
    assert main(["train", "--cfg", "job", "model=resnet", "model.depth=34", "optimizer.lr=1e-3"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "again.yaml").write_text(f"defaults:\n  - config\n  - override model: resnet\n  - _self_\n{printed}")
    assert main(["train", "--cfg", "job", "--config-dir", str(tmp_path), "--config-name", "again"]) == 0
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize("words", [["list", "model"], ["train", "--cfg", "all"]], ids=" ".join)
def test_a_reader_that_has_gone_is_no_error(words: list[str], tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        command = [sys.executable, "-m", "regraft.cli", *words]
        done = subprocess.run(command, cwd=tmp_path, env=buffered, stdout=closed, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_disk_is_a_line_and_no_traceback(tmp_path, monkeypatch, capsys):
    def full(self, config, record):
        raise OSError(errno.ENOSPC, "No space left on device", str(self.path))

    monkeypatch.setattr(RunFolder, "begin", full)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "dataset=digits", "model=mlp", "model.weights=none", "freeze=none", "hydra.run.dir=run"]) == 2
    said = capsys.readouterr().err
    assert str(tmp_path / "run") in said
    assert "can't be written (No space left on device); mend that" in said
    assert "Traceback" not in said
