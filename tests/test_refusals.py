"""What can't work is refused with the key that mends it, and what looks alike but works is not."""

from __future__ import annotations

import pytest
import torch

from regraft.config import Composer
from regraft.errors import Problem, UserError
from regraft.graft import build
from regraft.record import CHECKPOINT, MODEL

SMALL = ["dataset=digits", "dataset.per_class=8", 'dataset.classes=["0","1","2"]', "model=mlp", "model.depth=2", "model.weights=none"]
SMALL += ["freeze=none", "hardware=cpu", "hardware.workers=0", "data.batch_size=10", "trainer.max_epochs=3", "optimizer.lr=0.01"]


def given(*words: str) -> list[str]:
    """The common words without the mlp's own where another net is named."""
    other = any(word.startswith("model=") for word in words)
    return [*(word for word in SMALL if not (other and word.startswith(("model=", "model.depth")))), *words]


def refused(executed, *words: str, folder: str | None = None) -> Problem:
    with pytest.raises(UserError) as error:
        executed(given(*words), folder)
    [problem] = error.value.problems
    return problem


TIMM = ["model=timm", "model.arch=test_efficientnet"]


# BatchNorm over micro-batches


@pytest.mark.parametrize("policy", [["freeze=none"], ["freeze=last", "freeze.n=1"], ["freeze=lp_ft"]])
def test_a_trained_batchnorm_over_micro_batches_is_refused_where_that_was_asked_for(executed, policy):
    problem = refused(executed, *TIMM, *policy, "hardware.accumulate=2", "hardware.batchnorm=refuse")
    assert (problem.key, problem.given) == ("hardware.batchnorm", "refuse")
    assert "1 devices x 2 micro-batches" in problem.remedy


@pytest.mark.parametrize(
    "words",
    [
        ["freeze.norm_stats=frozen", "hardware.accumulate=2"],
        ["freeze=backbone", "hardware.accumulate=2"],
        ["hardware.accumulate=1"],
    ],
    ids=["frozen statistics", "frozen backbone", "whole batches"],
)
def test_one_that_takes_no_statistics_of_its_own_is_not(executed, words):
    run = executed(given(*TIMM, *words, "hardware.batchnorm=refuse", "trainer.max_epochs=1"))
    assert run.record["warnings"] == []
    if "freeze.norm_stats=frozen" in words:
        moved = {name for name, tensor in run.chain.state_dict().items() if name.endswith("running_mean") and tensor.abs().max() > 0}
        assert not moved


def test_local_statistics_are_told_with_their_numbers(executed):
    run = executed(given(*TIMM, "hardware.accumulate=5", "trainer.max_epochs=1"))
    [warning] = run.record["warnings"]
    assert "from 2 pictures, not from 10 (1 devices x 5 micro-batches; local)" in warning


# Sizes


@pytest.mark.parametrize(
    ("words", "size", "least"),
    [
        (["model=alexnet", "dataset.size=8"], 63, 63),
        (["model=vgg", "dataset.size=8"], 32, 32),
        (["model=vgg", "dataset.size=40"], 40, 32),
        (["model=googlenet", "dataset.size=8"], 15, 15),
        (["model=mlp", "dataset.size=8"], 8, 1),
    ],
)
def test_auto_is_the_datasets_size_and_no_less_than_the_net_takes(words, size, least):
    def settings(*more: str):
        return Composer().jobs(given(*words, *more), multirun=False)[0].settings

    assert settings().size == size
    assert settings().data.size == "auto"
    assert settings(f"data.size={least}").size == least
    if least > 1:
        with pytest.raises(UserError) as error:
            settings(f"data.size={least - 1}")
        [problem] = error.value.problems
        assert (problem.key, problem.given) == ("data.size", least - 1)
        assert f"data.size={least}" in problem.remedy


# Training


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_training_that_diverges_names_the_rate(executed, optimizer):
    words = ["optimizer.lr=1e6"] if optimizer == "sgd" else ["optimizer.lr=1e20"]
    problem = refused(executed, f"optimizer={optimizer}", *words, folder="diverged")
    assert problem.key == "optimizer.lr"
    assert float(problem.given) == float(words[0].partition("=")[2])
    assert "diverged" in problem.remedy


def test_a_failed_run_that_never_trained_gives_its_folder_to_the_corrected_command(executed):
    bad, good = ["trainer.max_steps=2", "freeze=lp_ft"], ["trainer.max_epochs=2", "freeze=lp_ft"]
    problem = refused(executed, *bad, folder="mine")
    run = executed(given(*good), folder="other")
    folder = type(run.folder)(run.folder.path.parent / "mine")
    with pytest.raises(UserError, match="holds another run"):
        executed(given(*good), folder="mine")  # as long as it might still be running
    folder.update(status="failed", error={"kind": "UserError", "message": str(problem), "problems": [], "rank": 0})  # as the launcher does
    taken = executed(given(*good), folder="mine")
    assert taken.record["status"] == "done"
    assert taken.record["run_id"] == run.record["run_id"]
    assert taken.metrics == run.metrics
    folder.update(status="failed")
    (folder / MODEL).replace(folder / CHECKPOINT)  # as if it had failed after its first checkpoint
    with pytest.raises(UserError, match="holds another run"):
        executed(given("trainer.max_epochs=1"), folder="mine")  # it has learnt something


@pytest.mark.parametrize(
    ("words", "key", "said"),
    [
        (["freeze=lp_ft", "trainer.max_steps=2"], "trainer.max_steps", "2 steps are 1 epochs of 3: freeze=lp_ft needs at least 2"),
        (["trainer.max_steps=5", "trainer.max_epochs=0"], "trainer.max_steps", "trainer.max_epochs=0 means no training"),
        (["freeze=norm_only"], "freeze", "no norms below its head; freeze=backbone"),
        (["trainer.monitor=val/top5_accuracy"], "trainer.monitor", "top5_accuracy says nothing of 3 classes; accuracy, "),
        (["trainer.monitor=val/top6_accuracy"], "trainer.monitor", "val/top5_accuracy"),
        (["loss.class_weights=[1,2]"], "loss.class_weights", "3 classes"),
        (["schedule.warmup='9 steps'"], "schedule.warmup", "a phase has 9 steps (3 epochs)"),
    ],
)
def test_what_a_run_can_not_do_names_its_key(executed, words, key, said):
    problem = refused(executed, *words)
    assert problem.key == key
    assert said in problem.remedy


@pytest.mark.parametrize("words", [["freeze=lp_ft", "trainer.max_steps=4"], ["freeze=bitfit"], ["schedule.warmup='8 steps'"]])
def test_what_only_just_can_be_done_is_done(executed, words):
    assert executed(given(*words)).record["status"] == "done"


def test_norms_above_the_stem_train_over_what_ran_once(executed):
    """A ViT's stem has no norm: what it gives is cached, and its weights stay."""
    run = executed(given("model=timm", "model.arch=test_vit", "freeze=norm_only", "cache.mode=require", "trainer.keep=last"))
    [phase] = run.record["phases"]
    assert run.chain.stages.index(phase["boundary"]) == 1
    assert phase["trains"] == list(run.chain.stages[1:])
    assert {note["mode"] for note in run.record["cache"]} == {"cached"}
    assert {note["boundary"] for note in run.record["cache"]} == {phase["boundary"]}
    start = build(run.settings, run.classes)[0].state_dict()
    moved = {name for name, tensor in run.chain.state_dict().items() if not torch.equal(start[name], tensor)}
    assert moved
    assert all("norm" in name or name.startswith("head.") for name in moved), moved
