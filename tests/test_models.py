"""Each backbone's spec knows, without torch, what its net takes and where its weights are; the weights that come in a package are right."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from torchvision import models

from regraft import entering, freeze, freezing, imagenet, streams, weights
from regraft.chain import Chain, CutError
from regraft.datasets.source import PICTURES
from regraft.errors import UserError
from regraft.models import GROUP, MLP, EfficientNetLite, ModelSpec, Timm, Torchvision, convnet
from regraft.models import timm as any_timm
from regraft.optim import parameter_groups
from regraft.registry import parse

CONF = Path(__file__).parent.parent / "conf" / "model"
ENTRIES = sorted(CONF.glob("*.yaml"))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No store of weights, and no way to get any."""

    def refused(*_: object, **__: object) -> None:
        raise OSError("no network in tests")

    for variable in ("TORCH_HOME", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setattr("torch.hub.download_url_to_file", refused)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refused)


def spec_of(path: Path, **changed: object) -> ModelSpec:
    spec = parse(GROUP.spec(path.stem), yaml.safe_load(path.read_text()) | changed, "model")
    assert isinstance(spec, ModelSpec)
    return spec


def test_each_spec_has_its_file() -> None:
    assert [path.stem for path in ENTRIES] == sorted(GROUP.builtin)
    assert len(ENTRIES) >= 4


@pytest.mark.parametrize("path", ENTRIES, ids=lambda path: path.stem)
def test_file_and_spec_have_the_same_keys_each_with_a_comment(path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    assert next(iter(values)) == "name"
    assert values["name"] == path.stem
    assert values.keys() == GROUP.spec(path.stem).model_fields.keys()
    for key in values.keys() - {"name"}:
        assert re.search(rf"^{key}:.* # \S+", path.read_text(), re.MULTILINE), key
    assert spec_of(path).problems() == []
    assert "weights" not in spec_of(path).deciding()


def test_specs_ask_their_questions_without_torch() -> None:
    program = """
import sys
from regraft.models import GROUP, Timm, ResNet
specs = [GROUP.spec(name) for name in GROUP]
assert ResNet(name="resnet", depth=18, weights="imagenet").published().identity
assert Timm(name="timm", arch="resnet26d", weights="imagenet").published().identity
assert Timm(name="timm", arch="resnet26e", weights="imagenet").problems()
print(sorted({"torch", "timm", "torchvision", "hydra"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


SMALL = {"alexnet": 63, "convnet": 16, "googlenet": 32, "mlp": 8, "vgg": 32}  # px
STAGES = {
    "alexnet": ["conv1", "conv2", "conv3", "conv4", "conv5", "fc"],
    "convnet": ["conv1", "conv2", "conv3", "conv4", "fc"],
    "googlenet": ["stem", "inception3", "inception4", "inception5"],
    "mlp": ["layer1"],
    "resnet": ["stem", "layer1", "layer2", "layer3", "layer4"],
    "vgg": ["conv1", "conv2", "conv3", "conv4", "conv5", "fc"],
    **{name: ["layer1"] for name in ("rnn", "lstm", "gru")},
    "dbn": ["rbm1", "rbm2", "rbm3"],
    "handcrafted": ["features"],
    "crnn": ["conv1", "conv2", "conv3", "lstm1"],
}
BUILT_FOR_ONE_SIZE = ("mlp", "convnet", "dbn", "handcrafted", "rcnn", "captioner")


ENTERS: dict[str, dict[str, Any]] = {
    "pictures": PICTURES,
    "sequence": {"kind": "sequence", "shape": [7, 4], "tokens": 0},
    "array": {"kind": "array", "shape": [16, 40], "tokens": 0},
}


@pytest.mark.parametrize("path", ENTRIES, ids=lambda path: path.stem)
def test_a_net_comes_from_the_seed_and_passes_its_least_picture(path: Path) -> None:
    spec, size = spec_of(path, **{"depth": 11} if path.stem == "vgg" else {}), SMALL.get(path.stem, 32)
    enters = ENTERS[spec.takes[0]]
    torch.manual_seed(3)
    one = entering.net(spec, size, enters)
    drawn = torch.get_rng_state()
    torch.manual_seed(3)
    assert not torch.equal(torch.get_rng_state(), drawn) or not one.module.state_dict()
    two = entering.net(spec, size, enters).module.state_dict()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.module.state_dict().items())
    assert len(one.mean) == len(one.std) == (one.channels if enters == PICTURES else 0)
    chain = Chain(one, nn.Identity(), entering.sample(one, size, enters))
    if path.stem in STAGES:
        assert list(chain.stages) == [*STAGES[path.stem], "head"]
    else:
        assert len(chain.stages) == {"efficientnet_lite": 10, "timm": 9, "rcnn": 10, "captioner": 10}[path.stem]
    if enters != PICTURES:
        return
    side = one.least if path.stem not in BUILT_FOR_ONE_SIZE else size
    assert one.module.eval()(torch.zeros(1, one.channels, side, side)).dim() == (4 if path.stem == "captioner" else 2)
    assert path.stem in ("timm", *BUILT_FOR_ONE_SIZE) or spec.least() == one.least
    assert spec.least() <= side


@pytest.mark.parametrize(("entry", "least"), [("alexnet", 63), ("vgg", 32), ("googlenet", 15)])
def test_the_least_picture_is_the_least(entry: str, least: int) -> None:
    for depth in (11, 13, 16, 19) if entry == "vgg" else (None,):
        for batchnorm in (False, True) if entry == "vgg" else (None,):
            changed = {key: value for key, value in {"depth": depth, "batchnorm": batchnorm}.items() if value is not None}
            spec = spec_of(CONF / f"{entry}.yaml", **changed)
            assert spec.least() == least
            with torch.device("meta"):
                backbone = spec.build(least)
                backbone.module.eval()
                assert backbone.least == least
                assert spec.too_small(least) is None
                assert f"at least {least} px; data.size={least} would work" in str(spec.too_small(least - 1))
                for side in range(least, least + 12):
                    assert backbone.module(torch.zeros(1, 3, side, side)).shape == (1, {"googlenet": 1024}.get(entry, 4096))
                with pytest.raises(RuntimeError, match="too small"):
                    backbone.module(torch.zeros(1, 3, least - 1, least - 1))


def filled(net: nn.Module) -> dict[str, Tensor]:
    """A state dict for a net on the meta device, its values small and cheap to draw; norms as after training."""
    generator = torch.Generator().manual_seed(5)

    def drawn(name: str, like: Tensor) -> Tensor:
        if not like.is_floating_point():
            return torch.zeros(like.shape, dtype=like.dtype)
        values = torch.rand(like.shape, generator=generator)
        around = 1.0 if like.ndim == 1 and name.endswith(("weight", "running_var")) else 0.0
        return around + (values - 0.5) * (0.5 if like.ndim == 1 else (12 / like[0].numel()) ** 0.5)  # weights of variance 1 / fan-in

    return {name: drawn(name, tensor) for name, tensor in net.state_dict().items()}


@pytest.mark.parametrize(("name", "size"), [("alexnet", 67), ("vgg11", 40), ("vgg13_bn", 33), ("googlenet", 47), ("resnet34", 35)])
def test_a_published_state_dict_gives_the_library_s_answer(name: str, size: int) -> None:
    with torch.device("meta"):
        own = getattr(models, name)(weights=None, **{"init_weights": False} if name == "googlenet" else {})
    state = filled(own)
    own.load_state_dict(state, assign=True)
    own.eval()
    family, _, rest = name.partition("_")
    family, depth = re.fullmatch(r"([a-z]+)(\d*)", family).groups()
    changed = {"depth": int(depth)} if depth else {}
    spec = spec_of(CONF / f"{family}.yaml", **changed, **({"batchnorm": bool(rest)} if family == "vgg" else {}))
    assert isinstance(spec, Torchvision)
    assert spec.net() == name
    with torch.device("meta"):
        backbone = spec.build(size)
    backbone.module.to_empty(device="cpu")
    classifier = spec.classifier(state, backbone)
    assert classifier is not None
    head = nn.Linear(classifier["weight"].shape[1], 1000, device="meta")
    head.load_state_dict(classifier, assign=True)
    weights.load(backbone.module, spec.adapt(state, backbone), "model.weights", "imagenet")
    chain = Chain(backbone, head, torch.zeros(2, 3, size, size)).eval()
    assert list(chain.stages) == [*STAGES[family], "head"]
    x = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        goal = own(x)
        assert goal.std() > 1e-3
        assert torch.equal(chain(x), goal)
        for stage in chain.stages:
            assert torch.allclose(chain(chain(x, stop=stage), start=stage), goal, atol=1e-5 * float(goal.abs().max()))


@pytest.mark.parametrize("batchnorm", [False, True])
def test_vgg_s_stages_are_those_of_table_1(batchnorm: bool) -> None:
    for depth, convs in {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}.items():
        with torch.device("meta"):
            backbone = spec_of(CONF / "vgg.yaml", depth=depth, batchnorm=batchnorm).build(32)
        assert sum(convs) + 3 == depth
        assert backbone.stages is not None
        layers = [[backbone.module.get_submodule(name) for name in backbone.stages[f"conv{i + 1}"]] for i in range(5)]
        assert tuple(sum(isinstance(layer, nn.Conv2d) for layer in stage) for stage in layers) == convs
        assert all(isinstance(stage[-1], nn.MaxPool2d) for stage in layers)
        assert [layer for stage in layers for layer in stage] == list(backbone.module.features)


def test_googlenet_is_fed_as_torchvision_feeds_its_published_weights() -> None:
    """There pictures normalised by ImageNet's mean and deviation are normalised again inside (transform_input)."""
    with torch.device("meta"):
        own = models.googlenet(weights=None, init_weights=False, transform_input=True)
    state = filled(own)
    assert sum(name.startswith("aux") for name in state) > 10
    own.load_state_dict(state, assign=True)
    own.eval()
    spec = spec_of(CONF / "googlenet.yaml")
    backbone = spec.build(32)
    backbone.module.load_state_dict(spec.adapt(state, backbone), strict=True)
    head = nn.Linear(1024, 1000)
    head.load_state_dict(spec.classifier(state, backbone) or {})
    chain = Chain(backbone, head, torch.zeros(2, 3, 32, 32)).eval()
    picture = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        goal = own((picture / 255 - mean) / std)
        assert torch.allclose(chain(chain.prepare(picture)), goal, atol=1e-4 * float(goal.abs().max()))
        assert not torch.allclose(chain((picture / 255 - mean) / std), goal, atol=1e-2 * float(goal.abs().max()))


def tapped(size: int = 64, dropped: float = 0.0) -> tuple[Chain, nn.Module]:
    """GoogLeNet with auxiliary classifiers for 5 classes, and torchvision's own with the same weights."""
    torch.manual_seed(7)
    own = models.googlenet(weights=None, num_classes=5, aux_logits=True, init_weights=False, dropout=0.0, dropout_aux=0.0)
    state = own.state_dict()
    spec = spec_of(CONF / "googlenet.yaml")
    backbone = spec.build(size)
    backbone.module.load_state_dict(spec.adapt(state, backbone), strict=True)
    head = nn.Linear(1024, 5)
    head.load_state_dict(spec.classifier(state, backbone) or {})
    chain = Chain(backbone, head, torch.zeros(2, 3, size, size), 5)
    own_auxiliary = {name: tensor for name, tensor in state.items() if name.startswith("aux")}
    chain.auxiliary.load_state_dict(own_auxiliary, strict=True)
    for module in chain.modules():
        if isinstance(module, streams.Dropout):
            module.p = dropped
    return chain, own


def test_auxiliary_classifiers_answer_as_torchvision_s_and_their_losses_reach_the_same_weights() -> None:
    chain, own = tapped()
    chain.train()
    own.train()
    x = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    goal = own(x)
    answer = chain(x)
    heard = chain.heard()
    assert torch.equal(answer, goal.logits)
    assert [weight for weight, _ in heard] == [0.3, 0.3]
    assert torch.equal(heard[0][1], goal.aux_logits1)
    assert torch.equal(heard[1][1], goal.aux_logits2)
    assert chain.heard() == []
    (answer.square().mean() + sum(weight * logits.square().mean() for weight, logits in heard)).backward()
    (goal.logits.square().mean() + 0.3 * goal.aux_logits1.square().mean() + 0.3 * goal.aux_logits2.square().mean()).backward()
    wanted = {name: parameter.grad for name, parameter in own.named_parameters()}
    for name, parameter in chain.named_parameters():
        name = name.removeprefix("backbone.").removeprefix("auxiliary.").replace("head.", "fc.")
        assert torch.allclose(parameter.grad, wanted.pop(name), atol=1e-6), name
    assert wanted == {}


def test_auxiliary_classifiers_run_only_while_the_stage_below_them_trains() -> None:
    chain, _ = tapped()
    x = torch.randn(2, 3, 64, 64)
    plain = Chain(spec_of(CONF / "googlenet.yaml").build(64), nn.Linear(1024, 5), torch.zeros(2, 3, 64, 64))
    assert (chain.cuts, chain.stages, chain.blocks) == (plain.cuts, plain.stages, plain.blocks)
    assert len(plain.auxiliary) == 0
    assert {chain.stage_of(name) for name, _ in chain.named_parameters() if name.startswith("auxiliary.")} == {"inception4"}
    assert chain.below("auxiliary.aux1.fc1.weight", "inception4b")
    assert not chain.below("auxiliary.aux2.fc1.weight", "inception4b")

    def heard(start: str | None, *trains: str) -> int:
        """How many are heard from a cut (None: from the picture) while these stages train."""
        phase = freeze.phase("a phase", 1, trains)
        freezing.gradients(chain, phase)
        freezing.modes(chain, phase)
        chain(x if start is None else chain(x, stop=start), start=start)
        return len(chain.heard())

    upper = ("inception4", "inception5", "head")
    assert heard(None, *chain.stages) == 2
    assert heard(None, *upper) == heard("inception4", *upper) == 2
    assert heard("inception4b", *upper) == 1
    assert heard("inception5", *upper) == 0  # it trains, but what it hears is not computed
    assert heard(None, "inception5", "head") == heard("inception5", "inception5", "head") == heard(None, "head") == 0
    assert not any(group["stage"] == "inception4" for group in parameter_groups(chain, 1.0, 0.0))
    assert heard(None, *upper) == 2
    grouped = {id(p) for group in parameter_groups(chain, 1.0, 0.0) if group["stage"] == "inception4" for p in group["params"]}
    assert {id(parameter) for parameter in chain.auxiliary.parameters()} <= grouped
    chain(x, stop="inception4")
    assert chain.heard() == []
    chain.eval()
    chain(x)
    assert chain.heard() == []
    chain.train()
    chain(x)
    chain(x, stop="stem")  # the last pass counts
    assert chain.heard() == []
    for stage in chain.stages[:-1]:
        chain.prove(stage, x)


def test_an_auxiliary_classifier_listens_to_a_unit_that_is_called() -> None:
    backbone = spec_of(CONF / "googlenet.yaml").build(32)
    backbone.auxiliary = (backbone.auxiliary[0]._replace(after="inception4z"),)
    with pytest.raises(CutError, match="aux1 listens to inception4z, which the net does not call"):
        Chain(backbone, nn.Identity(), torch.zeros(2, 3, 32, 32), 5)


def test_without_auxiliary_there_are_none() -> None:
    assert spec_of(CONF / "googlenet.yaml", auxiliary=False).build(32).auxiliary == ()
    assert len(spec_of(CONF / "googlenet.yaml", auxiliary=True).build(32).auxiliary) == 2


@pytest.mark.parametrize("entry", ["alexnet", "vgg", "googlenet", "convnet", "mlp"])
def test_dropout_is_ours(entry: str) -> None:
    """A library's own draws from torch's global stream, and so depends on how many devices share a batch."""
    with torch.device("meta"):
        backbone = spec_of(CONF / f"{entry}.yaml", **{} if entry == "googlenet" else {"dropout": 0.25}).build(64)
        nets = [backbone.module, *(each.build(5) for each in backbone.auxiliary)]
    found = [module for net in nets for module in net.modules() if isinstance(module, streams.Dropout)]
    assert not any(isinstance(module, nn.Dropout) for net in nets for module in net.modules())
    assert {module.p for module in found} == {0.7 if entry == "googlenet" else 0.25}
    assert len(found) == {"convnet": 4, "mlp": 1}.get(entry, 2)


def test_dropout_of_pictures_is_of_the_global_batch() -> None:
    """[b, c, h, w]: two devices that share a batch drop what one would; a mask is neither a row's nor a channel's."""
    backbone = convnet.build(depth=2, width=3, batchnorm=False, dropout=0.5, fc=4, size=8)
    net = backbone.module.train()
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    def answer(rows: list[int]) -> Tensor:
        streams.place(net, (0, "dropout", 0, 0), 6, torch.tensor(rows))
        return net(x[rows])

    assert torch.allclose(torch.cat([answer([0, 1, 2]), answer([3, 4, 5])]), answer(list(range(6))))
    assert torch.allclose(answer([5, 1]), answer(list(range(6)))[[5, 1]])
    dropout = streams.Dropout(0.5)
    dropout.at((0,), 4, torch.arange(4))
    kept = dropout(torch.ones(4, 8, 16, 16))
    assert kept.unique().tolist() == [0, 2]
    assert abs(float(kept.mean()) - 1) < 0.05
    assert len({tuple(row.tolist()) for row in kept.flatten(1)}) == 4
    assert len({tuple(row.tolist()) for row in kept[0].flatten(1)}) == 8


@settings(max_examples=25, deadline=None)
@given(depth=st.integers(1, 9), size=st.integers(1, 40), batchnorm=st.booleans())
def test_a_convnet_has_any_depth_at_any_size(depth: int, size: int, batchnorm: bool) -> None:
    spec = spec_of(CONF / "convnet.yaml", depth=depth, width=2, batchnorm=batchnorm, fc=3)
    with torch.random.fork_rng():
        backbone = spec.build(size)
        chain = Chain(backbone, nn.Linear(3, 2), torch.zeros(2, 3, size, size)).eval()
    assert list(chain.stages) == [*(f"conv{i + 1}" for i in range(depth)), "fc", "head"]
    sides = [shape[-1] for _, _, shape in chain.summary()[:depth]]
    assert sides == sorted(sides, reverse=True)
    assert sides[-1] >= min(size, 4)
    pools = sum(isinstance(module, nn.MaxPool2d) for module in backbone.module.modules())
    assert pools == depth or sides[-1] < 8  # all that fit: one more would leave less than 4 px
    convs = [module for module in backbone.module.modules() if isinstance(module, nn.Conv2d)]
    assert [conv.in_channels for conv in convs] == [3, *(conv.out_channels for conv in convs[:-1])]
    assert max(conv.out_channels for conv in convs) == 2 * 2 ** min(3, max(0, pools - 1))  # the last pool comes after the last
    assert sum(isinstance(module, nn.BatchNorm2d) for module in backbone.module.modules()) == depth * batchnorm


def picture_of(photo: str, side: int) -> Tensor:
    """uint8 [1, 3, side, side]: resized to side + 32 (bicubic), the middle cut out."""
    picture = Image.fromarray(load_sample_image(photo))
    scale = (side + 32) / min(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return torch.from_numpy(np.array(picture.crop((left, top, left + side, top + side)))).permute(2, 0, 1)[None]


@pytest.mark.parametrize(
    ("variant", "side", "photo", "name", "probability"),
    [
        (0, 224, "china.jpg", "palace", 0.315),
        (0, 224, "flower.jpg", "daisy", 0.364),
        (1, 240, "china.jpg", "palace", 0.562),
        (2, 260, "china.jpg", "palace", 0.352),
        (2, 260, "flower.jpg", "honeycomb", 0.353),
    ],
)
def test_the_packaged_weights_see(variant: int, side: int, photo: str, name: str, probability: float) -> None:
    """Probabilities of efficientnet-lite-pytorch 0.1.0, the code that the weights were published with; its logits differ by 2e-6."""
    spec = spec_of(CONF / "efficientnet_lite.yaml", variant=variant)
    backbone = spec.build(side)
    state = spec.fetch(backbone)
    own = spec.adapt(state, backbone)
    backbone.module.load_state_dict(own, strict=True)
    head = nn.Linear(1280, 1000)
    head.load_state_dict(spec.classifier(state, backbone) or {})
    chain = Chain(backbone, head, torch.zeros(2, 3, side, side)).eval()
    with torch.no_grad():
        scores = chain(chain.prepare(picture_of(photo, side))).softmax(1)[0]
    assert imagenet.names()[int(scores.argmax())] == name
    assert float(scores.max()) == pytest.approx(probability, abs=0.01)
    again = timm.create_model(f"tf_efficientnet_lite{variant}").state_dict()  # a file that has timm's names already
    assert spec.adapt(again, backbone).keys() == own.keys()
    assert torch.equal((spec.classifier(again, backbone) or {})["weight"], again["classifier.weight"])


@pytest.mark.parametrize("variant", [0, 1, 2])
def test_the_packaged_file_is_the_published_one(variant: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = spec_of(CONF / "efficientnet_lite.yaml", variant=variant)
    published = spec.published()
    assert published is not None
    path = published.path()
    assert path is not None
    assert published.identity == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    broken = tmp_path / path.name
    broken.write_bytes(path.read_bytes()[:-1])
    monkeypatch.setattr(EfficientNetLite, "published", lambda self: replace(published, places=(broken,)))
    with pytest.raises(UserError, match=rf"{broken}: damaged"):
        spec.fetch(spec.build(32))


def test_a_file_of_another_net_is_refused() -> None:
    spec = spec_of(CONF / "efficientnet_lite.yaml")
    with pytest.raises(UserError, match=r"model\.weights.*not EfficientNet-Lite"):
        spec.adapt(timm.create_model("mobilenetv3_small_100").state_dict(), spec.build(32))


TORCHVISION = [
    spec_of(CONF / f"{entry}.yaml", **changed)
    for entry, each in {
        "alexnet": [{}],
        "googlenet": [{}],
        "resnet": [{"depth": depth} for depth in (18, 34, 50, 101, 152)],
        "vgg": [{"depth": depth, "batchnorm": batchnorm} for depth in (11, 13, 16, 19) for batchnorm in (False, True)],
    }.items()
    for changed in each
]


@pytest.mark.parametrize("spec", TORCHVISION, ids=lambda spec: spec.net())
def test_the_table_of_files_is_torchvisions(spec: Torchvision) -> None:
    published = spec.published()
    default = models.get_model_weights(spec.net()).DEFAULT
    assert published.identity == f"torchvision/{Path(default.url).name}"
    assert f"-{published.sha256}.pth" in default.url
    assert (Path(torch.hub.get_dir()) / "checkpoints" / Path(default.url).name,) == published.places


@pytest.mark.parametrize("entry", ["resnet", "googlenet"])
def test_weights_load_where_the_file_was_placed(entry: str, no_network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(CONF / f"{entry}.yaml")
    assert isinstance(spec, Torchvision)
    backbone = spec.build(32)
    published = spec.published()
    with pytest.raises(UserError, match=rf"model\.weights = imagenet.*no network in tests.*place it at {published.places[0]}"):
        spec.fetch(backbone)
    with torch.device("meta"):
        own = getattr(models, spec.net())(weights=None, **{"init_weights": False} if entry == "googlenet" else {})
    source = filled(own)
    published.places[0].parent.mkdir(parents=True, exist_ok=True)
    torch.save(source, published.places[0])
    with pytest.raises(UserError, match="damaged: its sha256"):
        spec.fetch(backbone)
    digest = hashlib.sha256(published.places[0].read_bytes()).hexdigest()
    monkeypatch.setattr(type(spec), "published", lambda self: replace(published, sha256=digest[:8]))
    state = spec.fetch(backbone)
    backbone.module.load_state_dict(spec.adapt(state, backbone), strict=True)
    assert all(torch.equal(tensor, source[name]) for name, tensor in backbone.module.state_dict().items())
    assert torch.equal((spec.classifier(state, backbone) or {})["weight"], source["fc.weight"])


def test_timm_weights_without_a_network(no_network: None) -> None:
    spec = spec_of(CONF / "timm.yaml")
    with pytest.raises(
        UserError, match=r"timm/mobilenetv3_small_100\.lamb_in1k can't be downloaded \(no network in tests\).*model\.weights=PATH"
    ):
        spec.fetch(spec.build(32))


def test_timm_weights_are_those_that_timm_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm is handed a file of its own in place of the hub's; position embeddings are resampled to the size of the net that was built."""
    arch = "vit_tiny_patch16_224"
    torch.manual_seed(1)
    donor = timm.create_model(arch).state_dict()
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: None)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(donor))
    spec = Timm(name="timm", arch=arch, weights="imagenet")
    backbone = spec.build(96)
    stream = torch.get_rng_state()
    state = spec.adapt(spec.fetch(backbone), backbone)
    assert torch.equal(stream, torch.get_rng_state())
    backbone.module.load_state_dict(state, strict=True)
    assert torch.equal(backbone.module.blocks[3].mlp.fc1.weight, donor["blocks.3.mlp.fc1.weight"])
    assert backbone.module.pos_embed.shape == (1, 1 + 6 * 6, 192)
    assert backbone.least == 96


def test_every_classifier_is_dropped() -> None:
    spec = Timm(name="timm", arch="deit_tiny_distilled_patch16_224", weights="none")
    backbone = spec.build(224)
    own = backbone.module.state_dict()
    state = timm.create_model(spec.arch).state_dict()
    assert spec.adapt(state, backbone).keys() == own.keys()
    assert spec.classifier(state, backbone) is None


@pytest.mark.parametrize(
    ("arch", "linear"), [("resnet26d", True), ("convnext_atto", True), ("levit_128s", False), ("mobilenetv3_small_050", True)]
)
def test_a_timm_classifier_is_given_where_it_is_all_that_stands_above_the_features(
    arch: str, linear: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """levit has a norm between its features and its classes."""
    donor = timm.create_model(arch).eval()
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: None)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: donor.state_dict())
    spec = Timm(name="timm", arch=arch, weights="imagenet")
    size = donor.pretrained_cfg["input_size"][-1] if donor.pretrained_cfg["fixed_input_size"] else 64
    backbone = spec.build(size)
    state = spec.fetch(backbone)
    found = spec.classifier(state, backbone)
    weights.load(backbone.module, spec.adapt(state, backbone), "model.weights", "imagenet")
    assert (found is not None) == linear
    assert (spec.classifier(donor.state_dict(), backbone) is not None) == linear
    if found is not None:
        x = torch.randn(2, 3, size, size)
        with torch.no_grad():
            answer = nn.functional.linear(backbone.module.eval()(x), found["weight"], found["bias"])
            assert torch.allclose(answer, donor(x), atol=1e-5)


def test_where_nothing_was_published_there_is_no_classifier() -> None:
    for path in ENTRIES:
        with torch.device("meta"):
            spec = spec_of(path)
            assert spec.classifier({}, entering.net(spec, 64, ENTERS[spec.takes[0]])) is None


def test_what_the_talk_reports_is_told_by_the_specs() -> None:
    told = {name: GROUP.spec(name).reported for name in GROUP.builtin}
    assert {name: reported[0] for name, reported in told.items() if reported} == {
        "alexnet": 0.16,
        "vgg": 0.07,
        "googlenet": 0.067,
        "resnet": 0.037,
    }


@pytest.mark.parametrize(
    ("arch", "told"),
    [
        ("resnet26e", "did you mean resnet26"),
        ("vit_tiny_patch16_224.augreg", "did you mean augreg_in21k"),
        ("qqqq", "timm.list_models()"),
        ("hf-hub:some/net", "no such net"),
    ],
)
def test_an_unknown_timm_net_is_refused_with_a_suggestion(arch: str, told: str) -> None:
    (problem,) = Timm(name="timm", arch=arch, weights="none").problems()
    assert problem.key == "arch"
    assert told in problem.remedy


def test_names_read_from_the_sources_are_timms() -> None:
    assert set(any_timm.architectures()) == set(timm.list_models())
    assert len(any_timm.architectures()) > 1000


def test_tags_read_from_the_sources_are_timms() -> None:
    """For one net in forty: which weights timm would load, or that there are none."""
    compared = 0
    for arch in timm.list_models()[::40]:
        config = timm.get_pretrained_cfg(arch)
        if any_timm.tags(arch):
            compared += 1
            expected = f"{arch}.{config.tag}".rstrip(".") if timm.models.is_model_pretrained(arch) else None
            assert any_timm.published(arch) == expected
    assert compared > 30


def test_where_nothing_is_published_imagenet_is_refused() -> None:
    for spec, name in (
        (MLP(name="mlp", depth=1, width=4, dropout=0, weights="imagenet"), "mlp"),
        (Timm(name="timm", arch="davit_huge", weights="imagenet"), "davit_huge"),
    ):
        (problem,) = spec.problems()
        assert (problem.key, problem.given) == ("weights", "imagenet")
        assert f"no weights are published for {name}; give none" in problem.remedy
        assert spec.model_copy(update={"weights": "none"}).problems() == []
        with pytest.raises(UserError, match="no weights are published"):
            spec.fetch(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("entry", "wrong", "told"),
    [
        ("resnet", {"depth": 20}, "18, 34, 50, 101 or 152"),
        ("mlp", {"width": 0}, "at least 1 is needed"),
        ("mlp", {"dropout": 1.0}, "less than 1"),
        ("efficientnet_lite", {"variant": 4}, "efficientnet_lite has variant 0, 1 or 2"),
        ("vgg", {"depth": 18}, "vgg has depth 11, 13, 16 or 19"),
        ("vgg", {"batchnorm": 1}, "true or false"),
        ("alexnet", {"depth": 7}, "alexnet has depth 8"),
        ("googlenet", {"depth": 23}, "googlenet has depth 22"),
        ("convnet", {"depth": 0}, "at least 1 is needed"),
        ("convnet", {"fc": 0}, "at least 1 is needed"),
    ],
)
def test_wrong_values_are_refused(entry: str, wrong: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        spec_of(CONF / f"{entry}.yaml", **wrong)
