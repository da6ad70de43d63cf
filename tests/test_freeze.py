"""Policies draw boundaries; a phase's gradients, modes and parameter groups follow from them exactly."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from regraft import augment, freeze, heads, losses, schedules
from regraft.chain import Chain
from regraft.errors import UserError
from regraft.models import ResNet, Timm
from regraft.optim import AdamW, parameter_groups

STAGES = ("stem", "layer1", "layer2", "layer3", "layer4", "head")
NETS = {"resnet": ResNet(name="resnet", depth=18, weights="none"), "vit": Timm(name="timm", arch="test_vit", weights="none")}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (freeze.Nothing(name="none"), [("fine-tune", 10, "stem", 6)]),
        (freeze.BackboneFrozen(name="backbone"), [("probe", 10, "head", 1)]),
        (freeze.Last(name="last", n=0), [("last 0", 10, "head", 1)]),
        (freeze.Last(name="last", n=2), [("last 2", 10, "layer3", 3)]),
        (freeze.Last(name="last", n=5), [("last 5", 10, "stem", 6)]),
        (freeze.LinearProbeFineTune(name="lp_ft", probe=0.3, finetune_lr=0.1), [("probe", 3, "head", 1), ("fine-tune", 7, "stem", 6)]),
    ],
)
def test_phases(policy, expected):
    phases = policy.phases(STAGES, 10)
    assert [(phase.name, phase.epochs, phase.boundary, len(phase.trains)) for phase in phases] == expected
    assert all(phase.trains == STAGES[-len(phase.trains) :] for phase in phases)


@given(epochs=st.integers(2, 200), probe=st.floats(0.001, 0.999))
def test_both_phases_of_lp_ft_get_an_epoch(epochs, probe):
    phases = freeze.LinearProbeFineTune(name="lp_ft", probe=probe, finetune_lr=0.1).phases(STAGES, epochs)
    assert min(phase.epochs for phase in phases) >= 1
    assert sum(phase.epochs for phase in phases) == epochs


def test_more_stages_than_there_are_is_refused():
    with pytest.raises(UserError, match="5 stages below the head: stem, layer1"):
        freeze.Last(name="last", n=6).phases(STAGES, 1)


@pytest.fixture(params=NETS)
def chain(request):
    backbone = NETS[request.param].build(64)
    sample = torch.randn(2, 3, 64, 64)
    features = backbone.module.eval()(sample).shape[-1]
    return Chain(backbone, nn.Sequential(nn.Dropout(0.5), nn.Linear(features, 3)), sample)


@pytest.mark.parametrize("count", [0, 1, 2, 99])
def test_gradients_modes_and_groups(chain, count):
    trains = chain.stages[max(0, len(chain.stages) - 1 - count) :]
    phase = freeze.phase("a", 1, trains)
    chain.train()
    freeze.gradients(chain, phase)
    freeze.modes(chain, phase)
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
    optimizer = AdamW(name="adamw", lr=0.5, weight_decay=0.1, betas=[0.9, 0.999]).build(groups)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(trained)


@pytest.mark.parametrize(
    ("rows", "side", "idle", "moved"),
    [(2, 32, False, {"bn1", "layer4"}), (1, 64, False, {"bn1", "layer4"}), (1, 32, False, {"bn1"}), (1, 64, True, set())],
)
def test_batchnorm_takes_statistics_where_there_are_any(rows, side, idle, moved):
    """At 32 px, layer4 of resnet18 sees one value for each channel of a lone picture, which has no variance; at 64 px it sees four."""
    chain = Chain(NETS["resnet"].build(side), nn.Linear(512, 3), torch.randn(2, 3, side, side)).train()
    norms = {"bn1": chain.backbone.bn1, "layer4": chain.backbone.layer4[1].bn2}
    before = {name: norm.running_mean.clone() for name, norm in norms.items()}
    with freeze.lone(chain, rows, rows, idle):
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
    assert augment.Plain(name="none", views="draw").finite() == [augment.IDENTITY]
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
    for spec in (heads.Linear(name="linear", dropout=0.5), heads.MLPHead(name="mlp", dropout=0.5, width=4)):
        assert spec.build(7, 3).eval()(x).shape == (5, 3)
    logits, truth = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1])
    plain = losses.CrossEntropy(name="cross_entropy", label_smoothing=0)(logits, truth)
    assert plain.tolist() == pytest.approx([0.126928, 0.693147], abs=1e-6)  # log(1 + e^-2), log 2
    smooth = losses.CrossEntropy(name="cross_entropy", label_smoothing=0.2)(logits, truth)
    assert smooth.tolist() == pytest.approx([0.126928 + 0.1 * 2, 0.693147], abs=1e-6)  # 0.9 and 0.1 of either class
