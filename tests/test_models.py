"""Each backbone's spec knows, without torch, what its net takes and where its weights are; the weights that come in a package are right."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import nn
from torchvision.models import get_model_weights

from regraft.chain import Chain
from regraft.errors import UserError
from regraft.models import GROUP, MLP, EfficientNetLite, ModelSpec, ResNet, Timm
from regraft.models import timm as any_timm
from regraft.registry import parse

CONF = Path(__file__).parent.parent / "conf" / "model"
ENTRIES = sorted(CONF.glob("*.yaml"))


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """On such small pictures threads that wait for each other cost more than they give: tenfold on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
        assert re.search(rf"^{key}: \S+ +# \S+", path.read_text(), re.MULTILINE), key
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


SMALL = {"efficientnet_lite": 32, "resnet": 32, "timm": 32, "mlp": 8}


@pytest.mark.parametrize("path", ENTRIES, ids=lambda path: path.stem)
def test_a_net_comes_from_the_seed_and_passes_its_least_picture(path: Path) -> None:
    spec, size = spec_of(path), SMALL[path.stem]
    torch.manual_seed(3)
    one = spec.build(size)
    torch.manual_seed(3)
    two = spec.build(size)
    three = spec.build(size)
    states = [backbone.module.state_dict() for backbone in (one, two, three)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])
    assert len(one.mean) == len(one.std) == one.channels
    side = size if path.stem == "mlp" else one.least
    assert one.module.eval()(torch.zeros(1, one.channels, side, side)).dim() == 2
    chain = Chain(one, nn.Identity(), torch.zeros(2, one.channels, size, size))
    assert len(chain.stages) == {"efficientnet_lite": 10, "resnet": 6, "timm": 9, "mlp": 2}[path.stem]


@pytest.mark.parametrize(("photo", "label", "least"), [("china.jpg", 698, 0.25), ("flower.jpg", 985, 0.25)])  # palace, daisy
def test_the_packaged_weights_see(photo: str, label: int, least: float) -> None:
    """Figures of DATA: resize 256 bicubic, centre crop 224; china.jpg is a palace (.30), flower.jpg a daisy (.32)."""
    spec = spec_of(CONF / "efficientnet_lite.yaml")
    backbone = spec.build(224)
    state = spec.fetch(backbone)
    own = spec.adapt(state, backbone)
    backbone.module.load_state_dict(own, strict=True)
    weight, bias = list(state.values())[-2:]  # the classifier comes last
    head = nn.Linear(1280, 1000)
    head.load_state_dict({"weight": weight, "bias": bias})
    chain = Chain(backbone, head, torch.zeros(2, 3, 224, 224)).eval()
    picture = Image.fromarray(load_sample_image(photo))
    scale = 256 / min(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    left, top = (picture.width - 224) // 2, (picture.height - 224) // 2
    x = torch.from_numpy(np.array(picture.crop((left, top, left + 224, top + 224)))).permute(2, 0, 1)[None]  # [1, 3, 224, 224]
    with torch.no_grad():
        scores = chain(chain.prepare(x)).softmax(1)[0]
    assert int(scores.argmax()) == label
    assert scores[label] > least
    again = spec.adapt(timm.create_model("tf_efficientnet_lite0").state_dict(), backbone)  # a file that has timm's names already
    assert again.keys() == own.keys()


def test_the_packaged_file_is_the_published_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = spec_of(CONF / "efficientnet_lite.yaml")
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


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_the_table_of_files_is_torchvisions(depth: int) -> None:
    published = ResNet(name="resnet", depth=depth, weights="imagenet").published()
    default = get_model_weights(f"resnet{depth}").DEFAULT
    assert published.identity == f"torchvision/{Path(default.url).name}"
    assert f"-{published.sha256}.pth" in default.url
    assert (Path(torch.hub.get_dir()) / "checkpoints" / Path(default.url).name,) == published.places


def test_resnet_weights_load_where_the_file_was_placed(no_network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(CONF / "resnet.yaml")
    backbone = spec.build(32)
    published = spec.published()
    assert published is not None
    with pytest.raises(UserError, match=rf"model\.weights = imagenet.*no network in tests.*place it at {published.places[0]}"):
        spec.fetch(backbone)
    source = spec.build(32).module.state_dict() | {"fc.weight": torch.ones(1000, 512), "fc.bias": torch.ones(1000)}
    published.places[0].parent.mkdir(parents=True, exist_ok=True)
    torch.save(source, published.places[0])
    with pytest.raises(UserError, match="damaged: its sha256"):
        spec.fetch(backbone)
    digest = hashlib.sha256(published.places[0].read_bytes()).hexdigest()
    monkeypatch.setattr(ResNet, "published", lambda self: replace(published, sha256=digest[:8]))
    backbone.module.load_state_dict(spec.adapt(spec.fetch(backbone), backbone), strict=True)
    assert torch.equal(backbone.module.conv1.weight, source["conv1.weight"])


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
    assert spec.adapt(timm.create_model(spec.arch).state_dict(), backbone).keys() == own.keys()


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
        ("efficientnet_lite", {"variant": 4}, "efficientnet_lite has variant 0"),
    ],
)
def test_wrong_values_are_refused(entry: str, wrong: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        spec_of(CONF / f"{entry}.yaml", **wrong)
