"""Every command of README.md is run, in its order, in one folder, as a stranger would."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_digits

from regraft import config
from regraft.record import RunFolder

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = [line.partition("  #")[0].strip() for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
TOLD = sorted(set(re.findall(r"`(regraft train [^`]+)`", re.sub(r"```.*?```", "", README, flags=re.DOTALL))))
ELSEWHERE = [line for line in COMMANDS if "launcher=" in line]  # on engines of their own
FIGURES = [line for line in COMMANDS if "seed=0,1,2,3,4" in line]
FLOOR = {"": 0.47, "data.size=224": 0.53}  # test accuracy of one seed


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """A folder with pictures of the stranger's own; the first letter of a class says which digit it is."""
    at = tmp_path_factory.mktemp("stranger")
    digits = load_digits()
    for number in range(120):
        path = at / "pictures" / ("cat" if digits.target[number] % 2 else "dog") / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[number] * 255 / 16).astype("uint8")).resize((32, 32)).save(path)
    rows = [f"{path.relative_to(at / 'pictures')},{path.parent.name}" for path in sorted((at / "pictures").rglob("*.png"))]
    (at / "pictures" / "labels.csv").write_text("\n".join(["file,label", *rows]) + "\n")
    names = [digits.target[first : first + 9] for first in range(0, 540, 9)]  # of nine letters each
    mails = [
        f"{'cheap pills' if number % 2 else 'see you'} {''.join(chr(97 + letter) for letter in name)},{'spam' if number % 2 else 'ham'}"
        for number, name in enumerate(names)
    ]
    (at / "mails.csv").write_text("\n".join(["text,label", *mails]) + "\n")
    return at


def run(command: str, at: Path, *around: str) -> str:
    """`around`: words before the command, of what it is run in."""
    words = shlex.split(command)
    program = {"regraft": [sys.executable, "-m", "regraft.cli"], "./scripts/run": [str(ROOT / "scripts" / "run")]}[words[0]]
    done = subprocess.run([*around, *program, *words[1:]], cwd=at, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def runs(folder: Path) -> list[RunFolder]:
    return [RunFolder(path.parent) for path in sorted(folder.rglob("record.json"))]


def test_there_are_commands():
    assert len(COMMANDS) >= 12
    assert COMMANDS[:2] == ["./scripts/run", "./scripts/test"]
    assert len(FIGURES) == 3
    assert "scripts/test" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.engines
def test_the_first_run(stranger):
    said = run("./scripts/run", stranger)
    [folder] = runs(stranger / "multirun" / "single")
    record = folder.record
    assert record["metrics"]["test/accuracy"] >= FLOOR[""]
    assert record["data"]["sizes"] == {"train": 573, "val": 208, "test": 210}
    assert sum(note["computed"] for note in record["cache"]) == 991
    for words in ("95%", "test", "991 pictures ran once", "mistakes.png"):
        assert words in said


@pytest.mark.engines
@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("regraft") and line not in (*FIGURES, *ELSEWHERE)])
def test_a_command_does_what_it_says(stranger, command):
    before = len(runs(stranger))
    said = run(command, stranger)
    after = runs(stranger)
    assert all(folder.record["status"] == "done" for folder in after)
    if "train -m" in command:
        points = 1
        for word in shlex.split(command):
            whole = word.startswith(("sweeper.trials=", "seeds="))
            points *= int(word.partition("=")[2]) if whole else 1 if "(" in word else len(word.split(","))
        assert len(after) - before == points
        assert "choice was made on val" in said
    if "head.dropout=0,0.2,0.5 optimizer.lr" in command:
        assert all(note["computed"] == 0 for folder in runs(stranger / "multirun" / "default") for note in folder.record["cache"])


@pytest.mark.engines
@pytest.mark.parametrize("command", TOLD)
def test_a_command_in_the_text_composes(command):
    """What takes minutes is tried by tests/test_experiments.py in small; here that the words still mean something."""
    words = [word for word in shlex.split(command)[2:] if word != "-m"]
    assert config.Composer().jobs(words, multirun="-m" in command)


@pytest.mark.engines
def test_slurm_and_ray_give_the_same_metrics(stranger, slurm):
    """Ray binds whatever it likes: it has a network of its own."""
    ray = ["unshare", "-n", "-p", "--fork", "--mount-proc", "--kill-child", "bash", "-c", 'ip link set lo up; exec "$0" "$@"']
    found = []
    for name, around in (("slurm", []), ("ray", ray)):
        [command] = [line for line in ELSEWHERE if f"launcher={name}" in line]
        run(command, stranger, *around)
        found.append({each.record["batch"]["devices"]: each.record["metrics"] for each in runs(stranger / "multirun" / name)})
        assert all(each.record["status"] == "done" for each in runs(stranger / "multirun" / name))
    on_slurm, on_ray = found
    assert sorted(on_slurm) == sorted(on_ray) == [1, 2]
    assert all(on_slurm[devices] == pytest.approx(on_ray[devices], rel=1e-5) for devices in (1, 2))


@pytest.mark.engines
def test_azures_job_is_written_and_not_submitted(stranger):
    [command] = [line for line in ELSEWHERE if "launcher=azureml" in line]
    said = run(command, stranger)
    [file] = (stranger / "multirun" / "azure").glob(".azureml/*/job.yaml")
    assert str(file) in said
    assert all(folder.record["status"] == "running" for folder in runs(stranger / "multirun" / "azure"))
    assert len(ELSEWHERE) == 3


@pytest.mark.engines
@pytest.mark.parametrize("command", FIGURES)
def test_the_figures_hold_for_one_seed(stranger, command):
    """Five seeds are README's; one shows that the command still gives such a figure."""
    name = f"figure-{FIGURES.index(command)}"
    run(command.replace("seed=0,1,2,3,4", "seed=0") + f" hydra.sweep.dir={name} plots=false", stranger)
    [folder] = runs(stranger / name)
    accuracy = folder.record["metrics"]["test/accuracy"]
    if "model.weights=none" in command:
        assert accuracy < 0.30
    else:
        assert accuracy >= FLOOR["data.size=224" if "data.size=224" in command else ""]
