"""A chain is the library's own net, and every cut that it offers holds: same answer, gradients above only, any batch size."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision import models

from regraft.chain import Backbone, Chain, CutError
from regraft.errors import UserError
from regraft.models import mlp, resnet
from regraft.models import timm as any_timm
from regraft.watching import candidates, units, watch

CLASSES = 5
NETS = {  # name -> (backbone, picture side, stages)
    "resnet18": (lambda: resnet.build(18), 64, ["stem", "layer1", "layer2", "layer3", "layer4"]),
    "resnet50": (lambda: resnet.build(50), 32, ["stem", "layer1", "layer2", "layer3", "layer4"]),
    "mlp": (lambda: mlp.build(2, 16, 0.5, 8), 8, ["layer1", "layer2"]),
    "tf_efficientnet_lite0": (
        lambda: any_timm.build("tf_efficientnet_lite0", 64),
        64,
        ["stem", *(f"blocks.{i}" for i in range(7)), "conv_head"],
    ),
    "vit_tiny_patch16_224": (lambda: any_timm.build("vit_tiny_patch16_224", 64), 64, ["stem", *(f"blocks.{i}" for i in range(12))]),
    "convnext_atto": (lambda: any_timm.build("convnext_atto", 64), 64, ["stem", *(f"stages.{i}" for i in range(4))]),
    "resnet26d": (lambda: any_timm.build("resnet26d", 64), 64, ["stem", *(f"layer{i}.{j}" for i in range(1, 5) for j in range(2))]),
    "densenet121": (lambda: any_timm.build("densenet121", 64), 64, None),
    "nf_resnet26": (lambda: any_timm.build("nf_resnet26", 64), 64, None),
    "swin_tiny_patch4_window7_224": (
        lambda: any_timm.build("swin_tiny_patch4_window7_224", 64),
        64,
        ["stem", *(f"layers.{i}" for i in range(4))],
    ),
    "crossvit_9_240": (lambda: any_timm.build("crossvit_9_240", 240), 240, None),  # its branches run side by side: no cut
}
BUILT: dict[str, Chain] = {}


pytestmark = pytest.mark.usefixtures("one_thread")


def chain_of(name: str) -> Chain:
    """The same chain for all tests of a net, in eval mode, nothing frozen."""
    if name not in BUILT:
        torch.manual_seed(0)
        build, size, _ = NETS[name]
        backbone = build()
        with torch.no_grad():  # norms as after training: at 0 and 1 they hide mistakes
            for parameter in backbone.module.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        features = backbone.module.eval()(torch.zeros(2, 3, size, size)).shape[-1]
        BUILT[name] = Chain(backbone, nn.Linear(features, CLASSES), torch.zeros(2, 3, size, size))
    return BUILT[name].eval().requires_grad_(True)


def pictures(name: str, rows: int) -> Tensor:
    return torch.randn(rows, 3, NETS[name][1], NETS[name][1], generator=torch.Generator().manual_seed(rows))


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= 1e-5 * b.abs().max())


@pytest.mark.parametrize("name", NETS)
def test_stages(name: str) -> None:
    chain, stages = chain_of(name), NETS[name][2]
    assert chain.stages[-1] == "head"
    assert len(set(chain.stages)) == len(chain.stages)
    if stages is not None:
        assert list(chain.stages) == [*stages, "head"]
    assert (len(chain.stages) == 2) == (name == "crossvit_9_240")


@pytest.mark.parametrize("name", NETS)
def test_every_cut_holds(name: str) -> None:
    chain = chain_of(name)
    x = pictures(name, 3)
    with torch.no_grad():
        whole = chain(x)
    for cut in (*chain.stages, *chain.blocks):
        with torch.no_grad():
            entering = chain(x, stop=cut)
        kept = entering.clone()
        chain.zero_grad(set_to_none=True)
        answer = chain(entering, start=cut)
        assert close(answer, whole), cut
        assert torch.equal(entering, kept), f"{cut} writes into the tensor that it was given"
        answer.square().sum().backward()
        trained = {parameter for parameter, p in chain.named_parameters() if p.grad is not None}
        assert trained, cut
        assert not any(chain.below(parameter, cut) for parameter in trained), cut
        assert {n for n, _ in chain.named_parameters() if not chain.below(n, cut)} == trained, f"{cut}: what lies above trains"
        chain.prove(cut, x)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "mlp"])
@settings(max_examples=8, deadline=None)
@given(data=st.data(), rows=st.integers(1, 7))
def test_from_any_cut_to_any_cut_in_any_batch(name: str, data: st.DataObject, rows: int) -> None:
    """Running in two steps is running in one, and each row's answer is its own."""
    chain = chain_of(name)
    low, high = sorted(data.draw(st.tuples(*[st.sampled_from((*chain.stages, *chain.blocks))] * 2)), key=lambda cut: chain.cuts[cut])
    x = pictures(name, rows)
    with torch.inference_mode():
        entering = chain(x, stop=low)
        assert len(entering) == rows
        assert close(chain(chain(entering, start=low, stop=high), start=high), chain(x))
        assert close(chain(entering[-1:], start=low), chain(x[-1:]))


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("resnet18", lambda: models.resnet18(num_classes=CLASSES)),
        ("tf_efficientnet_lite0", lambda: timm.create_model("tf_efficientnet_lite0", num_classes=CLASSES)),
        ("vit_tiny_patch16_224", lambda: timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, img_size=64)),
        ("convnext_atto", lambda: timm.create_model("convnext_atto", num_classes=CLASSES)),
    ],
)
def test_answers_as_the_librarys_own_net(name: str, own: object) -> None:
    net = own().eval()  # type: ignore[operator]
    build, size, _ = NETS[name]
    backbone = build()
    state = net.state_dict()
    head = nn.Linear(*reversed(state[f"{backbone.classifier}.weight"].shape))
    head.load_state_dict({part: state.pop(f"{backbone.classifier}.{part}") for part in ("weight", "bias")})
    backbone.module.load_state_dict(state)
    chain = Chain(backbone, head, torch.zeros(2, 3, size, size)).eval()
    x = pictures(name, 4)
    with torch.no_grad():
        assert torch.equal(chain(x), net(x))


def test_mlp_is_written_out() -> None:
    chain = chain_of("mlp")
    one, two = chain.backbone.layer1[1], chain.backbone.layer2[1]
    x = pictures("mlp", 4)
    hidden = torch.relu(x.flatten(1) @ one.weight.T + one.bias)
    assert torch.allclose(chain(x, stop="layer2"), hidden, atol=1e-6)
    assert torch.allclose(chain(x), torch.relu(hidden @ two.weight.T + two.bias) @ chain.head.weight.T + chain.head.bias, atol=1e-6)


def test_what_lies_below_is_not_computed() -> None:
    chain = chain_of("resnet18")
    entering = chain(pictures("resnet18", 2), stop="layer3").detach()
    called: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: called.append(name))
        for name, module in chain.named_modules()
        if isinstance(module, nn.Conv2d) and name != "backbone.conv1"  # a unit: called, but what it gives back is blank
    ]
    chain(entering, start="layer3", stop="layer4")
    for hook in hooks:
        hook.remove()
    assert called
    assert all(name.startswith("backbone.layer3.") for name in called), called


def test_nothing_stays_behind() -> None:
    """Building and cutting leave modes, gradients, statistics, forwards and the random stream as they were, also when a pass fails."""
    backbone = resnet.build(18)
    net = backbone.module.train()
    net.layer2.eval()
    net.layer1.requires_grad_(False)
    modes = {name: module.training for name, module in net.named_modules()}
    wanted = [parameter.requires_grad for parameter in net.parameters()]
    state = copy.deepcopy(net.state_dict())
    stream = torch.get_rng_state()
    chain = Chain(backbone, nn.Identity(), torch.zeros(2, 3, 32, 32))
    chain.prove("layer3", torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(RuntimeError):
        chain(torch.zeros(2, 4, 32, 32), stop="layer3")
    assert torch.equal(stream, torch.get_rng_state())
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert [parameter.requires_grad for parameter in net.parameters()] == wanted
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert not [name for name, module in net.named_modules() if "forward" in vars(module) or module._forward_hooks]


def test_a_stored_tensor_of_inference_mode_trains_the_part_above() -> None:
    chain = chain_of("resnet18").train()
    frozen = {name: buffer.clone() for name, buffer in chain.named_buffers() if chain.below(name, "layer4")}
    with torch.inference_mode():
        entering = chain.eval()(pictures("resnet18", 4), stop="layer4")
    chain.train()
    chain(entering, start="layer4").sum().backward()
    assert chain.get_parameter("backbone.layer4.0.conv1.weight").grad is not None
    assert all(torch.equal(chain.get_buffer(name), buffer) for name, buffer in frozen.items())
    BUILT.pop("resnet18")  # layer4's statistics have moved


class Skipping(nn.Module):
    """Three layers; what leaves the first also goes around the second."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x.flatten(1))
        return self.c(self.b(a)) + a


class Sharing(nn.Module):
    """The net's own bias is used at both ends: no boundary in between leaves it below."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.ones(4))
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x.flatten(1) + self.bias))) + self.bias


class Twice(nn.Module):
    """One layer is called twice, and the one between writes into its input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Sequential(nn.Hardswish(inplace=True), nn.Linear(4, 4)), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.a(self.b(self.a(x.flatten(1)))))


class Turn(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(0, 1)


class Turned(nn.Module):
    """Keeps the batch in the second dimension for a while: with two pictures and two channels the shapes alone don't tell."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.turn, self.b, self.c = nn.Conv2d(1, 2, 1), Turn(), nn.Linear(2, 2), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.turn(self.a(x))).transpose(0, 1).flatten(1))


@pytest.mark.parametrize(
    ("net", "cuts"),
    [
        (Skipping, {"c": False, "b": True}),
        (Sharing, {"b": False, "c": False}),
        (Turned, {"turn": True, "b": False}),
        (Twice, {"a": False, "b.0": False, "b.1": False, "c": True}),
    ],
)
def test_a_cut_that_does_not_hold_is_not_offered(net: type[nn.Module], cuts: dict[str, bool]) -> None:
    torch.manual_seed(0)
    chain = Chain(Backbone(net(), None, "", (0.0,), (1.0,), 1, 1), nn.Identity(), torch.zeros(2, 1, 2, 2))
    assert {cut: cut in chain.cuts and chain.cuts[cut] > 0 for cut in cuts} == cuts
    for cut in chain.stages:
        chain.prove(cut, torch.randn(3, 1, 2, 2))


def test_candidates_are_more_than_what_holds() -> None:
    """What the proof is for: by the objects alone these nets could be cut."""
    for net, expected in ((Skipping(), {"b", "c"}), (Sharing(), {"b", "c"}), (Turned(), {"turn", "b"})):
        calls, _ = watch(net, torch.zeros(2, 1, 2, 2))
        assert {calls[i].unit for i in candidates(calls, 2)} == expected


def test_prove_tells_a_net_that_was_changed() -> None:
    chain = Chain(Backbone(Skipping(), None, "", (0.0,), (1.0,), 1, 1), nn.Identity(), torch.zeros(2, 1, 2, 2))
    chain.cuts["c"] = 2
    with pytest.raises(CutError, match="can't be cut at c"):
        chain.prove("c", torch.randn(3, 1, 2, 2))


def test_a_net_is_watched_without_memory() -> None:
    with torch.device("meta"):
        net, x = timm.create_model("vit_giant_patch14_224", num_classes=0), torch.zeros(2, 3, 224, 224)
    calls, features = watch(net, x)
    assert features.shape == (2, 1408)
    assert len(candidates(calls, 2)) >= 40


@pytest.mark.parametrize("name", NETS)
def test_each_name_lies_in_one_stage(name: str) -> None:
    chain = chain_of(name)
    for all_of, those_of in (
        (chain.named_parameters(), chain.named_parameters_of),
        (chain.named_buffers(), chain.named_buffers_of),
        (chain.named_modules(), chain.named_modules_of),
    ):
        named = [n for n, _ in all_of if n not in ("", "mean", "std")]
        parted = [n for stage in chain.stages for n, _ in those_of(stage)]
        assert sorted(named) == sorted(parted)
    assert all(chain.stage_of(n) == stage for stage in chain.stages for n, _ in chain.named_modules_of(stage))
    rows = chain.summary()
    assert [stage for stage, _, _ in rows] == list(chain.stages)
    assert sum(count for _, count, _ in rows) == sum(p.numel() for p in chain.parameters())
    assert all(count > 0 for _, count, _ in rows), "a stage without parameters stands alone"
    assert [shape for _, _, shape in rows][-2:] == [(chain.features,), (CLASSES,)]


def test_pictures_are_normalised_by_the_nets_own_numbers() -> None:
    chain = chain_of("resnet18")
    picture = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 3, 16, 16)
    expected = (picture.double() / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(
        3, 1, 1
    )
    assert torch.allclose(chain.prepare(picture).double(), expected, atol=1e-6)
    assert torch.allclose(chain.prepare(picture / 255).double(), expected, atol=1e-6)
    assert not {"mean", "std"} & chain.state_dict().keys()


def test_mistakes_are_told() -> None:
    chain = chain_of("resnet18")
    x = pictures("resnet18", 2)
    with pytest.raises(UserError, match=r"layer9.*did you mean layer"):
        chain(x, stop="layer9")
    with pytest.raises(UserError, match="lies below start"):
        chain(chain(x, stop="layer3"), start="layer3", stop="layer1")
    with pytest.raises(CutError, match=r"layer2\.0 takes \['b', 64, 16, 16\]"):
        chain(torch.zeros(2, 64, 8, 8), start="layer2")
    with pytest.raises(UserError, match=r"data\.size = 100"):
        Chain(any_timm.build("crossvit_9_240", 100), nn.Identity(), torch.zeros(2, 3, 100, 100))
    with pytest.raises(CutError, match="not in the order"):
        Chain(Backbone(resnet.build(18).module, {"top": ("layer4",), "low": ("layer1",)}, "", (0.0,), (1.0,), 3, 1), nn.Identity(), x)


def test_units_are_the_children_with_sequences_opened_once() -> None:
    relu = nn.ReLU()
    inner = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    net = nn.Sequential(OrderedDict(a=nn.Linear(1, 1), b=nn.Sequential(relu, inner), c=relu, d=nn.ModuleList(), e=nn.ModuleList([inner])))
    assert list(units(net)) == ["a", "b.0", "b.1", "d"]
