"""Adapters train beside layers that stay as they are: they begin as nothing, what lies below is cached, and merged they are a net like any
other."""

from __future__ import annotations

import pytest
import torch
from test_freeze import policy
from test_policies import SMALL, equal, losses
from torch import nn

from regraft import adapters, freeze, weights
from regraft.chain import Backbone, Chain
from regraft.errors import UserError
from regraft.graft import build

pytestmark = pytest.mark.usefixtures("one_thread")

VIT, RESNET, LITE = ([*SMALL, "model=timm", f"model.arch=test_{name}"] for name in ("vit", "resnet", "efficientnet"))
LORA = ["freeze=lora", "freeze.rank=2"]


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize(("net", "layer"), [(VIT, nn.Linear), (RESNET, nn.Conv2d), (LITE, nn.Conv2d)])
def test_what_is_frozen_stays_to_the_bit_and_a_merged_net_answers_the_same(executed, kind, net, layer):
    run = executed([*net, *LORA, f"freeze.kind={kind}"])
    start, plain = build(run.settings, run.classes)[0], build(executed([*net, "freeze=backbone"]).settings, run.classes)[0]
    x = torch.randn(2, *start.enters, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(start.eval()(x), plain.eval()(x), rtol=1e-5, atol=1e-6), "adapters begin as nothing"
    before, after = start.state_dict(), run.chain.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    inside = {name for name in changed if name.startswith("backbone.")}
    assert inside, "adapters train"
    assert all(adapters.is_adapter(name) for name in inside)
    assert all(isinstance(run.chain.get_submodule(name.partition(".lora_")[0]).base_layer, layer) for name in inside)
    assert set(weights.read(run.folder / "model.safetensors")) == {n for n in after if adapters.is_adapter(n) or n.startswith("head.")}
    plain.backbone.load_state_dict(adapters.merged(run.chain.backbone))
    with torch.no_grad():
        one, other = run.chain(x, stop="head"), plain(x, stop="head")
    assert (one - other).abs().max() < 1e-4 * one.abs().max()
    assert not torch.allclose(other, start(x, stop="head"), rtol=1e-3), "and they have learnt something"
    assert run.evaluate() == pytest.approx(run.metrics, abs=1e-5)


def test_what_lies_below_the_lowest_adapter_is_cached(executed):
    same = [*VIT, *LORA, "freeze.down_to=blocks.4", "head.dropout=0.3"]
    cached, live = executed([*same, "cache.mode=require"]), executed([*same, "cache.mode=off"])
    assert [phase["boundary"] for phase in cached.record["phases"]] == ["blocks.4"]
    assert {note["mode"] for note in cached.record["cache"]} == {"cached"}
    assert losses(cached) == pytest.approx(losses(live), rel=1e-3)
    assert not [name for name in cached.chain.state_dict() if adapters.is_adapter(name) and cached.chain.below(name, "blocks.4")]


def test_a_resumed_run_ends_as_the_uninterrupted_one(executed, killed):
    same = [*VIT, *LORA, "freeze.down_to=blocks.2", "head.dropout=0.3"]
    whole = executed(same)
    killed(same, 3)
    again = executed(same, folder="killed")
    assert equal(whole.chain.state_dict(), again.chain.state_dict())
    assert losses(whole) == losses(again)


def test_a_run_with_adapters_is_a_backbone(executed):
    earlier = executed([*VIT, *LORA])
    later = executed([*VIT, "freeze=backbone", f"model.weights={earlier.folder.path}"])
    merged, taken = adapters.merged(earlier.chain.backbone), later.chain.backbone.state_dict()
    assert equal(merged, taken)
    again = executed([*VIT, *LORA, f"model.weights={later.folder.path}"], folder="again")
    assert equal(adapters.bare(again.chain.backbone.state_dict()), taken), "and takes adapters once more"


class Bypassed(nn.Module):
    """A layer whose weight is used, and which is never called: an adapter beside it would do nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self.one(x.flatten(1)), self.two.weight)


def test_a_layer_that_is_never_called_takes_no_adapter():
    sample = torch.randn(1, 1, 2, 2)
    chain = Chain(Backbone(Bypassed(), None, "", (0.5,), (0.5,), 1, 1), nn.Identity(), sample)
    assert adapters.fitting(chain, "all", None, sample) == ["one"]


def test_a_name_takes_no_longer_one_along():
    """peft takes each name of a list for the end of longer ones: `conv1` would be every block's."""
    net = nn.Sequential()
    net.add_module("conv1", nn.Conv2d(3, 4, 1))
    net.add_module("layer", nn.Sequential())
    net.layer.add_module("conv1", nn.Conv2d(4, 4, 1))
    net.add_module("flat", nn.Flatten())
    sample = torch.randn(1, 3, 2, 2)
    chain = Chain(Backbone(net, None, "", (0.5,) * 3, (0.5,) * 3, 3, 1), nn.Identity(), sample)
    adapters.put(chain, ["conv1"], 2, 4, False)
    assert {name.partition(".lora")[0] for name, _ in chain.backbone.named_parameters() if adapters.is_adapter(name)} == {"conv1"}


def test_layers_that_are_not_there_are_told(executed):
    with pytest.raises(UserError, match=r"freeze\.layers = attention: this net has no such layers"):
        executed([*RESNET, *LORA, "freeze.layers=attention"])


def test_the_package_that_is_missing_is_named(monkeypatch):
    made = policy("lora", rank=8, alpha=16, layers="auto", kind="lora", down_to=None)
    assert made.problems() == []
    monkeypatch.setattr(freeze, "find_spec", lambda package: None)
    [problem] = made.problems()
    assert "pip install 'regraft[lora]'" in problem.remedy
