"""Whole runs under every freeze policy: what is frozen stays to the bit, cached equals live, what was interrupted ends the same."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from regraft import config, stages, sweep, weights
from regraft.errors import UserError
from regraft.freezing import is_norm
from regraft.graft import Run, build
from regraft.models import MLP, ResNet
from regraft.record import Metrics

SMALL = ["dataset=digits", "dataset.per_class=8", 'dataset.classes=["0","1","2"]', "model.weights=none", "trainer.max_epochs=3"]
SMALL += [
    "trainer.checkpoint_seconds=0",
    "trainer.keep=last",
    "hardware=cpu",
    "optimizer.lr=0.01",
    "data.batch_size=10",
    "hardware.workers=0",
]
RESNET, TINY = ["model=timm", "model.arch=test_resnet"], ["model=timm", "model.arch=test_vit"]
OWN = "freeze.phases=[{name: probe, epochs: 1, trains: [head]}, {name: mixed, epochs: 1, trains: [LOW, head], lr: 0.5}, "
OWN += "{name: norms, epochs: 1, from: HIGH, only: norms}]"


def policies(low: str, high: str, block: str) -> dict[str, list[str]]:
    """Each policy's own words, with a low stage, a high one and a block of the net's."""
    return {
        "until": ["freeze=until", f"freeze.stage={low}"],
        "until a block": ["freeze=until", f"freeze.stage={block}"],
        "transplant": ["freeze=transplant", f"freeze.stage={low}"],
        "transplant up to a block, and train all": ["freeze=transplant", f"freeze.stage={block}", "freeze.frozen=false"],
        "gradual": ["freeze=gradual", f"freeze.down_to={low}"],
        "norm_only": ["freeze=norm_only"],
        "norm_only, frozen statistics": ["freeze=norm_only", "freeze.norm_stats=frozen"],
        "bitfit": ["freeze=bitfit"],
        "surgical": ["freeze=surgical", f"freeze.stages=[{low}]"],
        "l2_sp": ["freeze=l2_sp"],
        "phases": ["freeze=phases", OWN.replace("LOW", low).replace("HIGH", high)],
        "layer decay": ["freeze=none", "freeze.layer_decay=0.5", f"freeze.stage_lr={{{low}: 2.0}}"],
        "frozen statistics": ["freeze=last", "freeze.n=2", "freeze.norm_stats=frozen"],
    }


NETS = {"resnet": (RESNET, policies("layer2.0", "layer3.0", "layer2.0")), "vit": (TINY, policies("blocks.2", "blocks.4", "blocks.5"))}
BOTH = [(net, name) for net, (_, known) in NETS.items() for name in known]


def words(net: str, policy: str) -> list[str]:
    return [*SMALL, *NETS[net][0], *NETS[net][1][policy]]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def losses(run: Run) -> list[float]:
    return [float(row["value"]) for row in Metrics(run.folder / "metrics.csv").rows() if row["metric"] == "train/loss"]


def allowed(chain, phase) -> set[str]:
    """The names that may change in a phase, by the words of the record and nothing of the policy's code."""
    found = set()
    modules = dict(chain.named_modules())
    for name in chain.state_dict():
        owner, _, last = name.rpartition(".")
        norm, statistic = is_norm(modules[owner]), last in dict(modules[owner].named_buffers(recurse=False))
        if chain.stage_of(name) not in phase["trains"]:
            continue
        if phase["only"] == "all" or name.startswith("head."):
            trains = not statistic or not norm or phase["norm_stats"] == "train"
        elif phase["only"] == "norms":
            trains = norm and (not statistic or phase["norm_stats"] == "train")
        else:
            trains = (
                (last == "bias") if not statistic else phase["norm_stats"] == "train" and "bias" in dict(modules[owner].named_parameters())
            )
        found |= {name} if trains else set()
    return found


@pytest.mark.parametrize(("net", "policy"), BOTH)
def test_what_is_frozen_is_bit_identical_and_what_trains_is_not(executed, net, policy):
    run = executed(words(net, policy))
    before, after = build(run.settings, run.classes)[0], run.chain
    start, end = before.state_dict(), after.state_dict()
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    may = set().union(*(allowed(before, phase) for phase in run.record["phases"]))
    assert changed <= may
    assert {name for name in may if name.startswith("head.") or "norm" in name or "bn" in name} & changed, "something trains"
    still = may - changed
    # a bias below a norm whose scale began at 0, and stays there, has no gradient
    assert all("bias" in name or "weight" in name for name in still), f"statistics stood still: {still}"
    assert len(still) < 0.35 * len(may), f"these could train, and did not: {sorted(still)}"
    assert set(weights.read(run.folder / "model.safetensors")) == may
    assert json.loads((run.folder / "record.json").read_text())["phases"] == run.record["phases"]
    assert sum(phase["epochs"] for phase in run.record["phases"]) == 3
    assert run.evaluate() == pytest.approx(run.metrics, abs=1e-5)


@pytest.mark.parametrize(
    ("net", "policy"),
    [pair for pair in BOTH if pair[1] in ("until", "until a block", "surgical", "gradual", "phases", "frozen statistics")],
)
def test_cached_equals_live(executed, net, policy):
    same = [*words(net, policy), "augmentation=flips", "head.dropout=0.3"]
    cached, live = executed([*same, "cache.mode=require"]), executed([*same, "cache.mode=off"])
    assert {note["mode"] for note in cached.record["cache"]} == {"cached"}
    assert {note["mode"] for note in live.record["cache"]} == {"live"}
    assert losses(cached) == pytest.approx(losses(live), rel=1e-3)
    one, other = cached.chain.state_dict(), live.chain.state_dict()
    assert max((one[name].float() - other[name].float()).abs().max().item() for name in one) < 2e-3


@pytest.mark.parametrize("policy", ["gradual", "norm_only", "bitfit", "surgical", "l2_sp", "phases", "layer decay", "until a block"])
def test_a_resumed_run_ends_as_the_uninterrupted_one(executed, killed, policy):
    same = [*words("resnet", policy), "head.dropout=0.3"]
    whole = executed(same)
    killed(same, 3)
    again = executed(same, folder="killed")
    assert equal(whole.chain.state_dict(), again.chain.state_dict())
    assert losses(whole) == losses(again)


def test_a_strong_pull_holds_the_backbone_where_it_began(executed):
    far = {}
    same = [*SMALL, *RESNET, "freeze=l2_sp", "optimizer=sgd", "optimizer.momentum=0", "freeze.beta=0"]
    for alpha in (0, 90):  # at lr 0.01 nine tenths of the way back are gone with each step
        run = executed([*same, f"freeze.alpha={alpha}"])
        start = dict(build(run.settings, run.classes)[0].backbone.named_parameters())
        far[alpha] = sum((p - start[name]).square().sum().item() for name, p in run.chain.backbone.named_parameters()) ** 0.5
    assert 0 < far[90] < 0.5 * far[0]


def test_accumulation_changes_nothing_of_a_pull(executed):
    same = [*SMALL, "model=mlp", "freeze=l2_sp", "freeze.alpha=1.0", "freeze.beta=1.0", "optimizer=sgd"]
    whole, parts = executed(same), executed([*same, "hardware.accumulate=5"])
    one, other = whole.chain.state_dict(), parts.chain.state_dict()
    assert max((one[name] - other[name]).abs().max().item() for name in one) < 1e-6


@pytest.mark.slow
@pytest.mark.engines
def test_one_and_two_devices_give_the_same_weights(tmp_path):
    words = [
        "model=mlp",
        "freeze=l2_sp",
        "freeze.alpha=1.0",
        "freeze.layer_decay=0.5",
        "optimizer=sgd",
        "hardware.devices=1,2",
        "plots=false",
    ]
    command = [sys.executable, "-m", "regraft.cli", "train", "-m", *SMALL, *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (weights.read(path) for path in sorted(tmp_path.rglob("model.safetensors")))
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-6


def test_a_factor_on_a_stage_is_a_factor_on_its_way(executed):
    """Plain gradient descent, one step: the way that a stage's weights go is proportional to its rate."""
    same = [*SMALL, *TINY, "freeze=none", "optimizer=sgd", "optimizer.momentum=0", "optimizer.weight_decay=0", "schedule=constant"]
    same += ["trainer.max_epochs=1", "data.batch_size=99", "schedule.warmup=0"]
    ways = []
    for more in ([], ["freeze.stage_lr={blocks.1: 3.0}", "freeze.layer_decay=0.5"]):
        run = executed([*same, *more])
        before = build(run.settings, run.classes)[0]
        start, end = before.state_dict(), run.chain.state_dict()
        parts = {stage: [name for name, _ in before.named_parameters_of(stage)] for stage in before.stages}
        ways.append({stage: torch.stack([(end[name] - start[name]).norm() for name in own]).norm().item() for stage, own in parts.items()})
    factors = {stage: ways[1][stage] / ways[0][stage] for stage in ways[0]}
    wanted = {stage: 0.5 ** (len(factors) - 1 - number) for number, stage in enumerate(factors)}
    wanted["blocks.1"] *= 3
    assert factors == pytest.approx(wanted, rel=2e-3)


def planned(*overrides: str, several: bool = False):
    return sweep.plan(config.Composer().jobs([*SMALL, "plots=false", *overrides], multirun=several))


def test_a_stage_that_is_not_there_is_told_before_any_run_starts(tmp_path):
    grid = ["model=resnet", "freeze=until", "freeze.stage=layer3,layer33,head", f"hydra.sweep.dir={tmp_path}"]
    with pytest.raises(UserError) as caught:
        planned(*grid, several=True)
    assert [(problem.key, problem.given) for problem in caught.value.problems] == [("freeze.stage", "layer33"), ("freeze.stage", "head")]
    assert "did you mean layer3" in caught.value.problems[0].remedy
    assert not list(tmp_path.rglob("record.json"))


def test_one_process_answers_for_all_nets_and_only_once(tmp_path, monkeypatch):
    mlp = MLP(name="mlp", weights="none", depth=2, width=8, dropout=0.0)
    nets = [stages.Net(ResNet(name="resnet", depth=18, weights="imagenet"), 64), stages.Net(mlp, 8), stages.Net(mlp, 8)]
    asked, real = [], stages._asked
    monkeypatch.setattr(stages, "_asked", lambda some: asked.append(some) or real(some))
    first = stages.ask(nets, tmp_path)
    small = ["layer1", "layer2", "head"]
    assert [list(layout) for layout in first] == [["stem", "layer1", "layer2", "layer3", "layer4", "head"], small, small]
    assert first[0]["layer3"] == ["layer3.0", "layer3.1"]
    assert asked == [nets[:2]], "the same net is built once"
    assert stages.ask(nets, tmp_path) == first
    assert len(asked) == 1, "what was answered is kept"
    monkeypatch.setattr(stages, "_asked", lambda some: asked.append(some) or [{"layout": {"head": []}} for _ in some])
    assert stages.ask([stages.Net(mlp, 16)], tmp_path) == [{"head": []}], "another size is another net"
    for path in (tmp_path / "stages").iterdir():
        path.write_text("{")
    assert stages.ask([stages.Net(mlp, 8)], tmp_path) == [{"head": []}], "a damaged answer is asked for again"


def test_a_net_that_can_not_be_built_is_told_without_a_traceback(tmp_path, monkeypatch):
    mlp = MLP(name="mlp", weights="none", depth=1, width=8, dropout=0.0)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(UserError, match=r"model = mlp: its stages can't be told"):
        stages.ask([stages.Net(mlp, 8)], tmp_path)


def test_what_keeps_a_net_from_being_built_is_told_by_the_net():
    question = {"model": {"name": "timm", "arch": "test_vit", "weights": "none"}, "size": 3, "enters": {"kind": "pictures"}}
    [answer] = stages.answers([question])
    assert "layout" not in answer
    assert answer["problems"][0][:2] == ["data.size", 3]


def test_only_what_lies_up_to_a_stage_takes_over_its_weights(executed):
    """From a run: up to layer2 the trained weights, above it those that the seed draws, with their statistics."""
    trained = executed([*SMALL, *RESNET, "freeze=none"], folder="trained")
    drawn = build(executed([*SMALL, *RESNET, "freeze=backbone", "seed=1"], folder="drawn").settings, trained.classes)[0].state_dict()
    words = [*SMALL, *RESNET, f"model.weights={trained.folder.path}", "freeze=transplant", "freeze.stage=layer2.0", "seed=1"]
    for frozen in ("true", "false"):
        run = executed([*words, f"freeze.frozen={frozen}"], folder=frozen)
        chain = build(run.settings, run.classes)[0]
        own, old = chain.state_dict(), trained.chain.state_dict()
        for name in own:
            if name.startswith("backbone."):
                above = chain.stages.index(chain.stage_of(name)) > chain.stages.index("layer2.0")
                assert torch.equal(own[name], (drawn if above else old)[name]), name
        assert any(not torch.equal(drawn[name], old[name]) for name in own if name.startswith("backbone."))
        trains = run.record["phases"][0]["trains"]
        assert ("stem" in trains, "layer3.0" in trains, "head" in trains) == (frozen == "false", True, True)
        assert run.evaluate() == pytest.approx(run.metrics, abs=1e-5)


def test_a_head_goes_on_from_an_earlier_runs_and_may_stay_as_it_is(executed):
    trained = executed([*SMALL, *RESNET, "freeze=none"], folder="trained")
    words = [*SMALL, *RESNET, f"model.weights={trained.folder.path}", "head.kept=true", "seed=1"]
    as_it_was = executed([*words, "trainer.max_epochs=0"], folder="as it was")
    assert as_it_was.metrics == pytest.approx(trained.metrics, abs=1e-5)
    surgical = executed([*words, "freeze=surgical", "freeze.stages=[layer2.0]", "freeze.head=false"], folder="surgical")
    heads = [{name: tensor for name, tensor in run.chain.state_dict().items() if name.startswith("head.")} for run in (trained, surgical)]
    assert equal(*heads)
    assert surgical.record["phases"][0]["trains"] == ["layer2.0"]
    probe = executed([*words, "freeze=backbone"], folder="probe")
    assert losses(probe)[0] < losses(executed([*words, "freeze=backbone", "head.kept=false"], folder="anew"))[0]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["model.weights=none"], "is no earlier run"),
        (["head=mlp"], "head=linear keeps it"),
        (['dataset.classes=["0","1"]'], "tells other classes apart"),
    ],
)
def test_a_head_that_can_not_be_kept_is_told_before_anything_runs(executed, words, told):
    trained = executed([*SMALL, *RESNET, "freeze=none", "trainer.max_epochs=1"], folder="trained")
    asked = [*SMALL, *RESNET, f"model.weights={trained.folder.path}", "head.kept=true", *words]
    with pytest.raises(UserError, match=told):
        sweep.plan(config.Composer().jobs(asked, multirun=False))


def test_heads_that_are_kept_do_not_share_a_stack(executed):
    trained = executed([*SMALL, *RESNET, "freeze=none", "trainer.max_epochs=1"], folder="trained")
    asked = [*SMALL, *RESNET, f"model.weights={trained.folder.path}", "optimizer.lr=0.01,0.02"]
    groups = {
        kept: len(sweep.groups(sweep.plan(config.Composer().jobs([*asked, f"head.kept={kept}"], multirun=True))))
        for kept in ("true", "false")
    }
    assert groups == {"true": 2, "false": 1}
