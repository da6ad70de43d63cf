"""A Deep Belief Network is a chain of machines that greedy phases train one by one; it dreams what it has learnt."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from regraft.chain import Chain
from regraft.errors import UserError
from regraft.freeze import Greedy
from regraft.freezing import gradients
from regraft.layout import Layout
from regraft.models import dbn
from regraft.models.dbns import DBN
from regraft.registry import Spec, parse
from regraft.report import dreams

CONF = Path(__file__).parent.parent / "conf"
FILES: list[tuple[str, str, type[Spec]]] = [("model", "dbn", DBN), ("freeze", "greedy", Greedy)]


def spec(group: str, name: str, kind: type[Spec], **changed: object) -> Spec:
    return parse(kind, yaml.safe_load((CONF / group / f"{name}.yaml").read_text()) | changed, group)


def model(**changed: object) -> DBN:
    found = spec("model", "dbn", DBN, **changed)
    assert isinstance(found, DBN)
    return found


def greedy(**changed: object) -> Greedy:
    found = spec("freeze", "greedy", Greedy, **changed)
    assert isinstance(found, Greedy)
    return found


def chain(size: int = 4, **changed: object) -> Chain:
    torch.manual_seed(0)
    backbone = model(**changed).build(size)
    features = backbone.module(torch.zeros(1, 3, size, size)).shape[-1]
    return Chain(backbone, nn.Linear(features, 10), torch.rand(2, 3, size, size)).eval()


@pytest.mark.parametrize(("group", "name", "kind"), FILES)
def test_each_key_has_its_value_and_a_comment(group: str, name: str, kind: type[Spec]) -> None:
    text = (CONF / group / f"{name}.yaml").read_text()
    values = yaml.safe_load(text)
    assert values.keys() == kind.model_fields.keys()
    assert values["name"] == name
    for key in values.keys() - {"name"}:
        assert re.search(rf"^{key}: .*\S +# \S+", text, re.MULTILINE), key
    assert spec(group, name, kind).problems() == []


def test_the_specs_import_no_torch() -> None:
    program = "import sys, regraft.models.dbns, regraft.freeze; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_it_is_a_chain_of_machines_that_can_be_cut_between_all(depth: int) -> None:
    net = chain(depth=depth, width=8)
    assert net.stages == (*(f"rbm{i + 1}" for i in range(depth)), "head")
    x = torch.rand(5, 3, 4, 4)
    row = x.mean(1).flatten(1)
    for stage, machine in zip(net.stages, dbn.machines(net), strict=False):
        torch.testing.assert_close(net(x, stop=stage).mean(1).flatten(1) if stage == "rbm1" else net(x, stop=stage), row)
        torch.testing.assert_close(net(net(x, stop=stage), start=stage), net(x))
        row = torch.sigmoid(row @ machine.weight.T + machine.hidden_bias)
    torch.testing.assert_close(net(x), net.head(row))


def test_pictures_enter_as_they_are_for_binary_units_and_standardised_for_gaussian_ones() -> None:
    pixels = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2).expand(1, 3, 2, 2)
    assert chain(2).prepare(pixels).unique().tolist() == [0, 1]
    assert chain(2, visible="gaussian").prepare(pixels).unique().tolist() == [-2, 2]
    assert [machine.units for machine in dbn.machines(chain(visible="gaussian"))] == ["gaussian", "binary", "binary"]


@pytest.mark.parametrize("pool", ["mean", "none"])
def test_sequences_run_through_it_step_by_step(pool: str) -> None:
    torch.manual_seed(0)
    backbone = model(depth=2, width=8, window=2, pool=pool).build_for({"kind": "sequence", "shape": [6, 4], "tokens": 0})
    x = torch.rand(3, 6, 4)
    x[..., -1] = (torch.arange(6) < torch.tensor([[6], [2], [1]])).float()
    x = x * x[..., -1:]
    net = Chain(backbone, nn.Linear(8 if pool == "mean" else 9, 5), x).eval()
    assert net.stages == ("rbm1", "rbm2", "head")
    out = net(x, stop="head")
    one = dbn.machines(net)[1](dbn.machines(net)[0](x[1:2, :2]))  # without its padding
    torch.testing.assert_close(out[1], one[0, :, :-1].mean(0) if pool == "mean" else torch.cat([one[0], torch.zeros(4, 9)]))
    torch.testing.assert_close(net(net(x, stop="rbm2"), start="rbm2"), net(x))


def test_greedy_trains_machine_after_machine_and_then_everything() -> None:
    phases = greedy(pretrain=4, pretrain_lr=0.5).drawn(chain(width=8).layout, 20)
    assert [(each.name, each.epochs, each.boundary, each.trains, each.lr, each.objective) for each in phases] == [
        ("rbm1", 4, "rbm1", ("rbm1",), 0.5, "stage"),
        ("rbm2", 4, "rbm2", ("rbm2",), 0.5, "stage"),
        ("rbm3", 4, "rbm3", ("rbm3",), 0.5, "stage"),
        ("fine-tune", 8, "rbm1", ("rbm1", "rbm2", "rbm3", "head"), 1.0, "task"),
    ]
    assert [each.objective for each in greedy(pretrain=4).draw(Layout(["rbm1", "head"]), 4)] == ["stage"]


def test_greedy_says_how_many_epochs_it_needs() -> None:
    with pytest.raises(UserError, match=r"trainer\.max_epochs = 11: 3 stages of 4 epochs each need 12.*; 13 would work"):
        greedy(pretrain=4).drawn(chain(width=8).layout, 11)


def test_greedy_phases_train_their_machine_alone_by_its_own_loss() -> None:
    net = chain(depth=2, width=8).train()
    x = torch.rand(40, 3, 4, 4).round()
    for current in greedy().drawn(net.layout, 11)[:2]:
        gradients(net, current)
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        machine = net.backbone.get_submodule(current.boundary)
        optimizer = torch.optim.SGD([each for each in net.parameters() if each.requires_grad], lr=0.1)
        entering = net(x, stop=current.boundary)
        first = machine.measures(entering)["reconstruction"].mean()
        for epoch in range(60):
            optimizer.zero_grad()
            machine.losses(entering, 100 * epoch + torch.arange(40)).mean().backward()
            optimizer.step()
        assert machine.measures(entering)["reconstruction"].mean() < 0.9 * first
        changed = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
        assert changed == {f"backbone.{current.boundary}.{part}" for part in ("weight", "hidden_bias", "visible_bias")}


def states(n: int) -> Tensor:
    return torch.tensor([[number >> i & 1 for i in range(n)] for number in range(2**n)], dtype=torch.float32)


def test_a_single_machine_dreams_its_own_distribution() -> None:
    net = chain(2, depth=1, width=3)
    [machine] = dbn.machines(net)
    with torch.no_grad():
        for parameter in machine.parameters():
            parameter.copy_(torch.randn(parameter.shape))
        p = (-machine.free_energy(states(4))).softmax(0)  # [2^v]
    found = dbn.dream(net, 4000, 40, seed=0).flatten(1)  # [n, v]: means given h, whose mean is that of v
    torch.testing.assert_close(found.mean(0), p @ states(4), atol=0.03, rtol=0)


def test_dreams_follow_from_the_seed_and_the_samples_number() -> None:
    net = chain(width=8, visible="gaussian")
    found = dbn.dream(net, 5, 10, seed=3)
    assert found.shape == (5, 4, 4)
    assert found.min() >= 0
    assert found.max() <= 1
    torch.testing.assert_close(dbn.dream(net, 2, 10, seed=3), found[:2])
    assert not torch.allclose(dbn.dream(net, 5, 10, seed=4), found)
    windows = model(depth=2, width=8, window=3).build_for({"kind": "sequence", "shape": [6, 5], "tokens": 0})
    sung = dbn.dream(Chain(windows, nn.Linear(8, 2), torch.rand(3, 6, 5)), 2, 5, seed=0)
    assert sung.shape == (2, 3, 4)


@pytest.mark.parametrize("frames", [0, 1, 2, 7])
def test_the_next_frame_is_that_of_the_enumerated_machine(frames: int) -> None:
    torch.manual_seed(2)
    backbone = model(depth=1, width=4, window=3).build_for({"kind": "sequence", "shape": [6, 4], "tokens": 0})
    machine = backbone.module.get_submodule("rbm1")
    with torch.no_grad():
        machine.weight.copy_(torch.randn(4, 9))
        machine.visible_bias.copy_(torch.randn(9))
    history = torch.rand(5, frames, 3).round()
    held = torch.cat([torch.zeros(5, 2, 3), history], 1)[:, -2:].flatten(1)
    every = torch.cat([held[:, None].expand(-1, 8, -1), states(3).expand(5, -1, -1)], 2)  # [b, 2^f, v]
    exact = (-machine.free_energy(every)).softmax(1) @ states(3)
    torch.testing.assert_close(dbn.next_frame(machine, history, 3000), exact.detach(), atol=0.03, rtol=0)
    assert exact.std() > 0.05


@pytest.mark.parametrize("n", [1, 30, 200])
def test_sheets_show_every_picture(n: int) -> None:
    pictures = np.random.default_rng(0).random((n, 8, 8))
    image = dreams.samples(pictures, 100)
    shown = min(n, dreams.MOST)
    columns = min(max(shown, 9), 12)
    seen = np.asarray(image.convert("L"))
    for number in range(shown):
        x = dreams.MARGIN + number % columns * (dreams.SIDE + dreams.GAP)
        y = dreams.HEAD + number // columns * (dreams.SIDE + dreams.GAP)
        tile = seen[y : y + dreams.SIDE, x : x + dreams.SIDE][4::9, 4::9]  # the middle of each pixel
        assert np.abs(tile - pictures[number] * 255).max() <= 1.5, number


def test_filters_put_zero_at_grey_and_the_largest_norm_first() -> None:
    weights = np.zeros((3, 4, 4))
    weights[1, 0, 0], weights[2, 0, 0], weights[2, 3, 3] = 0.5, -4, 2
    seen = np.asarray(dreams.filters(weights).convert("L"))
    x, y, pixel = dreams.MARGIN, dreams.HEAD, dreams.SIDE // 4
    assert abs(int(seen[y + 5, x + 5]) - 0) <= 1
    assert abs(int(seen[y + 3 * pixel + 5, x + 3 * pixel + 5]) - 191) <= 1
    assert abs(int(seen[y + 5, x + dreams.SIDE + dreams.GAP + 5]) - 255) <= 1
    assert abs(int(seen[y + pixel + 5, x + pixel + 5]) - 128) <= 1
