"""Policies draw boundaries; a phase's gradients, modes and parameter groups follow from them exactly."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from regraft import augment, freeze, freezing, heads, losses, schedules
from regraft.chain import Chain
from regraft.errors import UserError
from regraft.models import ResNet, Timm
from regraft.optim import AdamW, parameter_groups
from regraft.registry import parse
from regraft.streams import seeded
from regraft.views import IDENTITY

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4", "head")
NETS = {"resnet": ResNet(name="resnet", depth=18, weights="none"), "vit": Timm(name="timm", arch="test_vit", weights="none")}


LAYOUT = {"stem": ["conv1", "bn1"], "layer1": ["layer1.0", "layer1.1"], "layer2": [], "layer3": ["layer3.0", "layer3.1", "layer3.2"]}
LAYOUT |= {"layer4": ["layer4.0", "layer4.1"], "head": []}
COMMON = {"layer_decay": 1.0, "stage_lr": None, "norm_stats": "train"}


def policy(name: str, **values) -> freeze.FreezePolicy:
    return parse(freeze.GROUP.spec(name), COMMON | {"name": name} | values, "freeze")


def refused(made: freeze.FreezePolicy, epochs: int = 10) -> list[tuple[str, str]]:
    with pytest.raises(UserError) as caught:
        made.drawn(LAYOUT, epochs)
    return [(problem.key, str(problem)) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (policy("none"), [("fine-tune", 10, "stem", 6)]),
        (policy("backbone"), [("probe", 10, "head", 1)]),
        (policy("last", n=0), [("last 0", 10, "head", 1)]),
        (policy("last", n=2), [("last 2", 10, "layer3", 3)]),
        (policy("last", n=5), [("last 5", 10, "stem", 6)]),
        (policy("lp_ft", probe=0.3, finetune_lr=0.1), [("probe", 3, "head", 1), ("fine-tune", 7, "stem", 6)]),
        (policy("until", stage="layer3"), [("above layer3", 10, "layer4", 2)]),
        (policy("until", stage="layer4"), [("above layer4", 10, "head", 1)]),
        (
            policy("gradual", every=4, down_to=None),
            [("head", 4, "head", 1), ("from layer4", 4, "layer4", 2), ("from layer3", 2, "layer3", 3)],
        ),
        (policy("gradual", every=4, down_to="layer4"), [("head", 4, "head", 1), ("from layer4", 6, "layer4", 2)]),
        (policy("gradual", every=99, down_to="stem"), [("head", 10, "head", 1)]),
        (policy("norm_only"), [("norms", 10, "stem", 6)]),
        (policy("bitfit"), [("biases", 10, "stem", 6)]),
        (policy("l2_sp", alpha=0.1, beta=0.01), [("l2-sp", 10, "stem", 6)]),
    ],
)
def test_phases(made, expected):
    phases = made.drawn(STAGES, 10)
    assert [(phase.name, phase.epochs, phase.boundary, len(phase.trains)) for phase in phases] == expected
    assert all(phase.trains == STAGES[-len(phase.trains) :] for phase in phases)
    assert phases == made.drawn(LAYOUT, 10), "a policy that names no block does not see them"
    assert made.cuts(LAYOUT) == []
    assert [json.loads(json.dumps(phase.plain()))["boundary"] for phase in phases] == [boundary for _, _, boundary, _ in expected]


@pytest.mark.parametrize(
    ("made", "cuts", "trains"),
    [
        (policy("until", stage="layer3.1"), ["layer3.2"], [("layer3.2", "layer4", "head")]),
        (policy("until", stage="layer3.0"), ["layer3.1"], [("layer3.1", "layer4", "head")]),
        (policy("until", stage="layer3.2"), [], [("layer4", "head")]),
        (policy("until", stage="conv1"), ["bn1"], [("bn1", "layer1", "layer2", "layer3", "layer4", "head")]),
        (policy("surgical", stages=["layer3.1"], head=True), ["layer3.1", "layer3.2"], [("layer3.1", "head")]),
        (policy("surgical", stages=["layer3.2", "stem"], head=True), ["layer3.2"], [("stem", "layer3.2", "head")]),
        (
            policy("surgical", stages=["layer3", "layer3.1"], head=True),
            ["layer3.1", "layer3.2"],
            [("layer3", "layer3.1", "layer3.2", "head")],
        ),
        (policy("surgical", stages=["head", "layer4"], head=True), [], [("layer4", "head")]),
        (policy("surgical", stages=["stem", "layer4"], head=False), [], [("stem", "layer4")]),
        (policy("transplant", stage="layer3", frozen=True), [], [("layer4", "head")]),
        (policy("until", stage="layer3", stage_lr={"layer3.1": 0.5}), ["layer3.1", "layer3.2"], [("layer4", "head")]),
        (
            policy("gradual", every=2, down_to="layer3.2"),
            ["layer3.2"],
            [("head",), ("layer4", "head"), ("layer3.2", "layer4", "head")],
        ),
        (
            policy(
                "phases",
                phases=[{"name": "a", "epochs": 4, "trains": ["head", "layer1.1"]}, {"name": "b", "epochs": 6, "from": "layer4.1"}],
            ),
            ["layer1.1", "layer4.1"],
            [("layer1.1", "head"), ("layer4.1", "head")],
        ),
    ],
)
def test_a_stages_name_is_the_whole_stage_and_a_blocks_that_block_alone(made, cuts, trains):
    assert made.asks()
    assert made.cuts(LAYOUT) == cuts
    phases = made.drawn(LAYOUT, 10)
    assert [phase.trains for phase in phases] == trains
    assert all(phase.boundary == phase.trains[0] for phase in phases)
    assert sum(phase.epochs for phase in phases) == 10


def test_what_a_policy_needs_no_net_for():
    assert not any(policy(name, **more).asks() for name, more in {"none": {}, "backbone": {}, "last": {"n": 0}, "norm_only": {}}.items())
    assert policy("last", n=1).asks()
    assert policy("none", stage_lr={"layer4": 0.1}).asks()
    assert not policy("gradual", every=1, down_to=None).asks()


@given(
    epochs=st.integers(1, 60),
    every=st.integers(1, 70),
    down_to=st.sampled_from([None, *LAYOUT, *(b for blocks in LAYOUT.values() for b in blocks)]),
)
def test_gradual_takes_every_epoch_and_goes_only_down(epochs, every, down_to):
    phases = policy("gradual", every=every, down_to=down_to).drawn(LAYOUT, epochs)
    assert sum(phase.epochs for phase in phases) == epochs
    assert min(phase.epochs for phase in phases) >= 1
    assert all(phase.epochs == every for phase in phases[:-1])
    assert phases[0].trains == ("head",)
    for one, other in itertools.pairwise(phases):
        assert other.trains[-len(one.trains) :] == one.trains
        assert len(other.trains) == len(one.trains) + 1


@given(epochs=st.integers(2, 200), probe=st.floats(0.001, 0.999))
def test_both_phases_of_lp_ft_get_an_epoch(epochs, probe):
    phases = policy("lp_ft", probe=probe, finetune_lr=0.1).drawn(STAGES, epochs)
    assert min(phase.epochs for phase in phases) >= 1
    assert sum(phase.epochs for phase in phases) == epochs
    assert policy("lp_ft", probe=probe, finetune_lr=0.1).epochs_problem(1).key == "trainer.max_epochs"


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (policy("last", n=6), [("freeze.n", "5 stages below the head: stem, layer1")]),
        (policy("until", stage="layer33"), [("freeze.stage", "did you mean layer3")]),
        (policy("until", stage="head"), [("freeze.stage", "freeze.stage=layer4 trains the head alone")]),
        (
            policy("surgical", stages=["layr4", "foo", "stem"], head=True),
            [("freeze.stages", "did you mean layer4"), ("freeze.stages", "the stages are stem,")],
        ),
        (policy("gradual", every=1, down_to="layer4.7"), [("freeze.down_to", "did you mean layer4")]),
        (policy("backbone", stage_lr={"haed": 2.0}), [("freeze.stage_lr", "did you mean head?")]),
        (
            policy("phases", phases=[{"name": "a", "epochs": 3, "trains": ["head"]}]),
            [("trainer.max_epochs", "trainer.max_epochs=3 would work")],
        ),
        (
            policy("phases", phases=[{"name": "a", "epochs": 5, "trains": ["haed"]}, {"name": "b", "epochs": 5, "from": "layer9"}]),
            [("freeze.phases[0].trains", "did you mean head?"), ("freeze.phases[1].from", "did you mean layer4")],
        ),
    ],
)
def test_what_the_net_does_not_have_is_told_all_at_once(made, told):
    found = refused(made)
    assert [key for key, _ in found] == [key for key, _ in told]
    assert all(text in message for (_, message), (_, text) in zip(found, told, strict=True)), found


def test_each_mistake_in_a_users_own_phases_is_named():
    right = {"name": "a", "epochs": 1, "from": "layer4", "lr": 0.1, "only": "norms"}
    assert policy("phases", phases=[right]).problems() == []
    wrong = [right | {"epochs": 2.5}, 3, right | {"trains": ["head"]}, {"name": "b", "epochs": 1}, right | {"only": "some", "frm": 1}]
    found = [(problem.key, problem.remedy) for problem in policy("phases", phases=wrong).problems()]
    assert [key for key, _ in found] == [
        "phases[0].epochs",
        "phases[1]",
        "phases[2].trains",
        "phases[3].trains",
        "phases[4].only",
        "phases[4].frm",
    ]
    remedies = [
        "a whole number is needed",
        "{name: probe",
        "and not both",
        "or from: STAGE",
        "all, norms or biases",
        "did you mean freeze.phases[4].from?",
    ]
    assert all(text in remedy for (_, remedy), text in zip(found, remedies, strict=True)), found


def test_learning_rates_fall_by_whole_stages_and_a_blocks_own_goes_first():
    made = policy("none", layer_decay=0.5, stage_lr={"layer4": 3.0, "layer4.1": 5.0, "head": 7.0})
    [phase] = made.drawn(LAYOUT, 1)
    rates = {stage: phase.factor(stage) for stage in phase.trains}
    below = {"layer4": 1.5, "layer4.1": 2.5, "layer3": 0.25, "layer2": 0.125, "layer1": 0.0625, "stem": 0.03125}
    assert rates == {**below, "head": 7.0}
    assert policy("backbone", layer_decay=0.5, stage_lr={"stem": 2.0}).drawn(LAYOUT, 1)[0].factors == (), "what does not train has no rate"


def grafted(net: str) -> Chain:
    with seeded("a net"):
        backbone = NETS[net].build(64)
        sample = torch.randn(2, 3, 64, 64)
        features = backbone.module.eval()(sample).shape[-1]
        return Chain(backbone, nn.Sequential(nn.Dropout(0.5), nn.Linear(features, 3)), sample)


@pytest.fixture(params=NETS)
def chain(request):
    return grafted(request.param)


@pytest.mark.parametrize("count", [0, 1, 2, 99])
def test_gradients_modes_and_groups(chain, count):
    trains = chain.stages[max(0, len(chain.stages) - 1 - count) :]
    phase = freeze.phase("a", 1, trains)
    chain.train()
    freezing.gradients(chain, phase)
    freezing.modes(chain, phase)
    for stage in chain.stages:
        wanted = stage in trains
        assert {parameter.requires_grad for _, parameter in chain.named_parameters_of(stage)} == {wanted}
        assert {module.training for _, module in chain.named_modules_of(stage)} == {wanted}
    groups = parameter_groups(chain, lr=0.5, weight_decay=0.1)
    held = [parameter for group in groups for parameter in group["params"]]
    trained = [parameter for parameter in chain.parameters() if parameter.requires_grad]
    assert {id(parameter) for parameter in held} == {id(parameter) for parameter in trained}
    assert len(held) == len(trained), "each once"
    for group in groups:
        assert group["weight_decay"] == (0.1 if group["params"][0].ndim > 1 else 0)
        assert {parameter.ndim > 1 for parameter in group["params"]} == {group["params"][0].ndim > 1}
    optimizer = AdamW(name="adamw", lr=0.5, weight_decay=0.1, betas=[0.9, 0.999]).build(groups, fused=True)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(trained)


def names(chain, phase) -> set[str]:
    return {name for name, _ in freezing.trained(chain, phase)}


@pytest.mark.parametrize("only", ["norms", "biases"])
@pytest.mark.parametrize("norm_stats", ["train", "frozen"])
@pytest.mark.parametrize("net", NETS)
def test_only_norms_or_biases_train_and_nothing_else_may_change(net, only, norm_stats):
    chain = grafted(net)
    [phase] = policy({"norms": "norm_only", "biases": "bitfit"}[only], norm_stats=norm_stats).drawn(chain.layout, 1)
    chain.train()
    freezing.gradients(chain, phase)
    freezing.modes(chain, phase)
    kinds = (nn.BatchNorm2d, nn.LayerNorm)
    norms = {name for name, module in chain.named_modules() if isinstance(module, kinds)}
    assert len(norms) > 10
    backbone = [name for name, _ in chain.named_parameters() if name.startswith("backbone.")]
    wanted = {
        "norms": {name for name in backbone if name.rpartition(".")[0] in norms},
        "biases": {name for name in backbone if name.endswith(".bias")},
    }[only] | {"head.1.weight", "head.1.bias"}
    assert {name for name, parameter in chain.named_parameters() if parameter.requires_grad} == wanted
    assert names(chain, phase) == wanted
    statistics = {name for name in chain.state_dict() if name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")}
    assert bool(statistics) == (net == "resnet")
    assert freezing.changing(chain, [phase]) == wanted | (statistics if norm_stats == "train" else set())
    before = {name: tensor.clone() for name, tensor in chain.state_dict().items()}
    groups = parameter_groups(chain, 0.1, 0.0, phase)
    optimizer = torch.optim.SGD(groups)
    (chain(torch.randn(4, 3, 64, 64)) ** 2).sum().backward()
    optimizer.step()
    moved = {name for name, tensor in chain.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved <= freezing.changing(chain, [phase])
    assert moved >= (statistics if norm_stats == "train" else set()) | {"head.1.weight"}
    assert not any(
        module.training for name, module in chain.named_modules() if isinstance(module, nn.ReLU | nn.GELU) and "head" not in name
    )
    assert chain.head[0].training, "the head trains wholly, its dropout too"


def test_what_is_a_norm_agrees_with_timms_table():
    from timm.layers import create_norm
    from torchvision.ops import Conv2dNormActivation, FrozenBatchNorm2d

    kinds = {kind for kind in create_norm._NORM_MAP.values() if isinstance(kind, type)}
    assert len(kinds) > 8
    for kind in kinds:
        assert freezing.is_norm(kind(32)), kind
    for module in (nn.InstanceNorm2d(8, affine=True), FrozenBatchNorm2d(8), nn.BatchNorm2d(8, affine=False), nn.SyncBatchNorm(8)):
        assert freezing.is_norm(module)
    for module in (nn.Linear(8, 8), nn.PReLU(8), nn.Conv2d(8, 8, 1), nn.MultiheadAttention(8, 2)):
        assert not freezing.is_norm(module)
    convolution = Conv2dNormActivation(3, 8)  # a sequence that holds a norm trains nothing of its own
    assert [name for name, module in convolution.named_children() if freezing.is_norm(module)] == ["1"]


def test_frozen_statistics_stay_where_a_whole_stage_trains():
    chain = grafted("resnet")
    [phase] = policy("last", n=1, norm_stats="frozen").drawn(chain.layout, 1)
    chain.train()
    freezing.gradients(chain, phase)
    freezing.modes(chain, phase)
    moving = freezing.changing(chain, [phase])
    assert moving == {name for name, _ in chain.named_parameters() if chain.stage_of(name) in ("layer4", "head")}
    before = {name: buffer.clone() for name, buffer in chain.named_buffers()}
    chain(torch.randn(4, 3, 64, 64))
    assert all(torch.equal(buffer, before[name]) for name, buffer in chain.named_buffers())
    assert chain.backbone.layer4.training


def test_a_chain_that_is_split_says_the_same_and_trains_the_block_alone():
    chain = grafted("resnet").eval()
    x = torch.randn(2, 3, 64, 64)
    whole, layout = chain(x), dict(chain.layout)
    assert layout["layer3"] == ("layer3.0", "layer3.1")
    made = policy("until", stage="layer3.0", norm_stats="train")
    for cut in made.cuts(chain.layout):
        chain.split(cut)
    assert chain.stages == ("stem", "layer1", "layer2", "layer3", "layer3.1", "layer4", "head")
    assert chain.layout == layout, "names mean the same after it"
    assert "layer3.1" not in chain.blocks
    chain.prove("layer3.1", x)
    assert torch.equal(chain(chain(x, stop="layer3.1"), start="layer3.1"), whole)
    [phase] = made.drawn(chain.layout, 1)
    assert phase.boundary == "layer3.1"
    assert {name for name in names(chain, phase) if ".layer3." in name} == {
        f"backbone.{name}" for name, _ in chain.backbone.named_parameters() if name.startswith("layer3.1.")
    }
    assert sum(count for _, count, _ in chain.summary()) == sum(parameter.numel() for parameter in chain.parameters())
    assert chain.stage_of("backbone.layer3.1.conv1.weight") == "layer3.1"
    assert chain.stage_of("backbone.layer3.0.conv1.weight") == "layer3"
    with pytest.raises(UserError, match=r"did you mean layer2\.1"):
        chain.split("layer2.9")


@pytest.mark.parametrize("net", NETS)
def test_every_name_of_a_layout_can_be_trained_alone(net):
    """The names are the chain's own: each is a piece of it after the split, and the pieces share out all parameters."""
    for name in [name for stage, blocks in grafted(net).layout.items() for name in dict.fromkeys((stage, *blocks))]:
        chain = grafted(net)
        made = policy("surgical", stages=[name], head=True)
        for cut in made.cuts(chain.layout):
            chain.split(cut)
        [phase] = made.drawn(chain.layout, 1)
        assert set(phase.trains) <= set(chain.stages)
        held = sorted(each for stage in chain.stages for each, _ in chain.named_parameters_of(stage))
        assert held == sorted(each for each, _ in chain.named_parameters())
        stage = next(stage for stage, blocks in chain.layout.items() if name in (stage, *blocks))
        if stage != name:
            assert {each for each in names(chain, phase) if "head" not in each} == {
                f"backbone.{each}" for each, _ in chain.backbone.named_parameters() if each.startswith(f"{name}.")
            }


def test_the_pull_is_equation_2_of_li():
    chain = grafted("resnet")
    [phase] = policy("l2_sp", alpha=0.3, beta=0.7).drawn(chain.layout, 1)
    freezing.gradients(chain, phase)
    start = {name: parameter.detach().clone() for name, parameter in chain.named_parameters()}
    with torch.no_grad():
        for parameter in chain.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    penalty = freezing.pull(chain, phase, start)
    penalty.backward()
    for name, parameter in chain.named_parameters():
        wanted = 0.3 * (parameter - start[name]) if name.startswith("backbone.") else 0.7 * parameter
        assert torch.allclose(parameter.grad, wanted, atol=1e-6), name
    backbone = sum(((parameter - start[name]) ** 2).sum() for name, parameter in chain.named_parameters() if "head" not in name)
    head = sum((parameter**2).sum() for parameter in chain.head.parameters())
    assert penalty.item() == pytest.approx((0.15 * backbone + 0.35 * head).item(), rel=1e-5)
    assert {group["weight_decay"] for group in parameter_groups(chain, 0.1, 0.5, phase)} == {0.0}, "in place of weight decay"
    assert freezing.pull(chain, freeze.phase("a", 1, chain.stages), start) is None


def test_groups_take_their_stages_rates():
    chain = grafted("resnet")
    [phase] = policy("none", layer_decay=0.5, stage_lr={"layer1": 4.0}).drawn(chain.layout, 1)
    freezing.gradients(chain, phase)
    rates = {group["stage"]: group["lr"] for group in parameter_groups(chain, 0.1, 0.0, phase)}
    assert rates == pytest.approx({"head": 0.1, "layer4": 0.05, "layer3": 0.025, "layer2": 0.0125, "layer1": 0.025, "stem": 0.003125})


@pytest.mark.parametrize(
    ("rows", "side", "idle", "moved"),
    [(2, 32, False, {"bn1", "layer4"}), (1, 64, False, {"bn1", "layer4"}), (1, 32, False, {"bn1"}), (1, 64, True, set())],
)
def test_batchnorm_takes_statistics_where_there_are_any(rows, side, idle, moved):
    """At 32 px, layer4 of resnet18 sees one value for each channel of a lone picture, which has no variance; at 64 px it sees four."""
    chain = Chain(NETS["resnet"].build(side), nn.Linear(512, 3), torch.randn(2, 3, side, side)).train()
    norms = {"bn1": chain.backbone.bn1, "layer4": chain.backbone.layer4[1].bn2}
    before = {name: norm.running_mean.clone() for name, norm in norms.items()}
    with freezing.lone(chain, rows, rows, idle):
        chain(torch.randn(rows, 3, side, side)).sum().backward()
    assert {name for name, norm in norms.items() if not torch.equal(norm.running_mean, before[name])} == moved
    assert all(norm.training for norm in norms.values())


def test_views_are_the_symmetries_of_the_square():
    x = torch.arange(3 * 4 * 4).view(3, 4, 4)
    d4 = augment.D4(name="d4", views="draw").finite()
    seen = {tuple(view(x).flatten().tolist()) for view in d4}
    assert len(d4) == len(seen) == 8
    for view in d4:
        for other in d4:
            assert tuple(other(view(x)).flatten().tolist()) in seen, "closed: a view of a view is a view"
    assert torch.equal(d4[0](x), x)
    assert augment.Plain(name="none", views="draw").finite() == [IDENTITY]
    assert set(augment.Rotations(name="rotations", views="draw").finite()) < set(d4)
    assert torch.equal(augment.Rotations(name="rotations", views="draw").finite()[1](x), x.rot90(1, (1, 2)))


@pytest.mark.parametrize(
    ("horizontal", "vertical", "axes"), [(True, False, [(), (2,)]), (False, True, [(), (1,)]), (True, True, [(), (2,), (1,), (1, 2)])]
)
def test_flips(horizontal, vertical, axes):
    x = torch.arange(3 * 4 * 4).view(3, 4, 4)
    views = augment.Flips(name="flips", horizontal=horizontal, vertical=vertical, views="draw").finite()
    assert {tuple(view(x).flatten().tolist()) for view in views} == {tuple(x.flip(axis).flatten().tolist()) for axis in axes}
    assert len(views) == len(axes)


@given(steps=st.integers(1, 500), warmup=st.floats(0, 0.99))
def test_schedules(steps, warmup):
    for schedule in (schedules.Cosine(name="cosine", warmup=warmup), schedules.Constant(name="constant", warmup=warmup)):
        factors = [schedule.factor(steps)(step) for step in range(steps)]
        first = round(warmup * steps)
        assert all(0 < factor <= 1 for factor in factors)
        assert factors[:first] == sorted(factors[:first])
        assert factors[first:] == sorted(factors[first:], reverse=True)
    assert schedules.Cosine(name="cosine", warmup=0).factor(100)(50) == pytest.approx(0.5)


def test_heads_and_losses():
    torch.manual_seed(0)
    x = torch.randn(5, 7)
    for spec in (heads.Linear(name="linear", dropout=0.5, kept=False), heads.MLPHead(name="mlp", dropout=0.5, width=4, kept=False)):
        assert spec.build(7, ["a", "b", "c"]).eval()(x).shape == (5, 3)
    logits, truth = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1])
    plain = losses.CrossEntropy(name="cross_entropy", label_smoothing=0, class_weights=None)(logits, truth)
    assert plain.tolist() == pytest.approx([0.126928, 0.693147], abs=1e-6)  # log(1 + e^-2), log 2
    smooth = losses.CrossEntropy(name="cross_entropy", label_smoothing=0.2, class_weights=None)(logits, truth)
    assert smooth.tolist() == pytest.approx([0.126928 + 0.1 * 2, 0.693147], abs=1e-6)  # 0.9 and 0.1 of either class
