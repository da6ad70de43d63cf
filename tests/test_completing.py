"""A shell completes verbs, options, groups with their entries and keys, papers and run folders: asked through a real bash."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from runs import run

ASK = """\
eval "$(regraft completion bash)"
COMP_LINE="$1" COMP_POINT=${#1} COMP_TYPE=9 COMPREPLY=()
_python_argcomplete regraft
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completed(line: str, folder: Path) -> list[str]:
    """What bash would offer for this line."""
    at = Path(sys.executable).parent
    asked = subprocess.run(
        ["bash", "-c", ASK, "bash", line], cwd=folder, capture_output=True, text=True, check=True, env={"PATH": f"{at}:/usr/bin:/bin"}
    )
    assert not asked.stderr
    return [word.strip() for word in asked.stdout.splitlines() if word.strip()]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("regraft pre", ["preview", "predict"]),
        ("regraft train --co", ["--config-dir", "--config-name"]),
        ("regraft train model=re", ["resnet"]),
        ("regraft model=re", ["resnet"]),
        ("regraft train freeze=none,la", ["none,last"]),
        ("regraft train model=vgg model.b", ["model.batchnorm="]),
        ("regraft train trainer.max_e", ["trainer.max_epochs="]),
        ("regraft train +experiment=talk_", ["talk_few"]),
        ("regraft train sweep.stack=", ["true", "false"]),
        ("regraft train model.weights=im", ["imagenet"]),
        ("regraft train model.weights=runs/m", ["runs/mine", "runs/more/"]),
        ("regraft train --config-dir own model=ow", ["own"]),
        ("regraft list op", ["optimizer"]),
        ("regraft paper lp", ["lp_ft"]),
        ("regraft paper lp_ft optimizer.l", ["optimizer.lr="]),
        ("regraft evaluate ru", ["runs/"]),
        ("regraft evaluate runs/", ["runs/mine", "runs/more/"]),
        ("regraft completion z", ["zsh"]),
        ("regraft train no_such_group=", []),
        ("regraft evaluate nowhere/", []),
    ],
)
def test_a_line_is_completed(line, offered, tmp_path):
    run(tmp_path / "runs" / "mine", {"a1": "a"})
    (tmp_path / "runs" / "more").mkdir()
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own" / "model" / "own.yaml").write_text("# A net of one's own.\nname: mlp\n")
    assert sorted(completed(line, tmp_path)) == sorted(offered)


def test_a_bare_key_offers_groups_first(tmp_path):
    found = completed("regraft train ", tmp_path)
    assert {"model=", "dataset=", "freeze=", "augmentation=", "hardware=", "seeds="} <= set(found)
    assert not any("." in word for word in found)


ZSH = """\
autoload -U compinit && compinit -u
eval "$(regraft completion zsh)"
_describe() { print -rl -- "${(@P)2}" }
words=(regraft train model=re) BUFFER="regraft train model=re" CURSOR=22
$_comps[regraft]
"""  # _describe: what zsh is told, which a terminal would show
FISH = "regraft completion fish | source; complete -C 'regraft train model=re'"


@pytest.mark.engines
@pytest.mark.parametrize(("shell", "ask", "told"), [("zsh", ZSH, "model=resnet:Residual"), ("fish", FISH, "model=resnet\tResidual")])
def test_other_shells_are_answered_too(shell, ask, told, tmp_path):
    subprocess.run([Path(__file__).parents[1] / "scripts" / "engines" / "shells"], check=True, timeout=400)
    env = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(tmp_path)}
    answer = subprocess.run([shell, "-c", ask], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60)
    assert not answer.stderr
    assert answer.stdout.startswith(told)
