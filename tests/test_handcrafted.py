"""Hand-crafted features are scikit-image's; SVM and forest are scikit-learn's, kept as tensors; folds of train choose, and leak nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from torch import Tensor

skimage = pytest.importorskip("skimage")
from skimage.color import rgb2gray, rgb2hsv  # noqa: E402
from skimage.feature import hog, local_binary_pattern  # noqa: E402

from regraft import trees  # noqa: E402
from regraft.chain import Chain  # noqa: E402
from regraft.errors import UserError  # noqa: E402
from regraft.fitting import Batches, Fitted, fit  # noqa: E402
from regraft.heads import GROUP, HeadSpec  # noqa: E402
from regraft.models.handcrafts import Handcrafted  # noqa: E402
from regraft.registry import parse  # noqa: E402
from regraft.solving import dealt  # noqa: E402
from regraft.streams import generator  # noqa: E402

CONF = Path(__file__).parent.parent / "conf"
PICTURES = Path(__file__).parent.parent / "src" / "regraft" / "datasets" / "clipart_data"


def model(**changed: Any) -> Handcrafted:
    found = parse(Handcrafted, yaml.safe_load((CONF / "model" / "handcrafted.yaml").read_text()) | changed, "model")
    assert isinstance(found, Handcrafted)
    return found


def head(name: str, **changed: Any) -> HeadSpec:
    found = parse(GROUP.spec(name), yaml.safe_load((CONF / "head" / f"{name}.yaml").read_text()) | changed, "head")
    assert isinstance(found, HeadSpec)
    return found


def drawings() -> np.ndarray:
    """Three clipart drawings, [3, 128, 128, 3] uint8"""
    files = sorted(PICTURES.rglob("*.png"))[::300][:3]
    return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])


def prepared(pictures: np.ndarray) -> Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255


def features(pictures: np.ndarray, **changed: Any) -> np.ndarray:
    found: np.ndarray = model(**changed).build(pictures.shape[1]).module(prepared(pictures)).numpy()
    return found


def test_gradients_are_scikit_image_s() -> None:
    found = features(drawings(), features=["hog"])
    assert found.shape == (3, 7 * 7 * 2 * 2 * 9)
    for row, picture in zip(found, drawings(), strict=True):
        alone = hog(picture / 255, 9, (16, 16), (2, 2), block_norm="L2-Hys", channel_axis=-1)
        assert np.allclose(row, alone, atol=1e-5)
    assert found.std() > 0.05


def test_a_step_s_gradients_have_one_direction() -> None:
    picture = np.zeros((1, 32, 32, 3), np.uint8)
    picture[:, :, 16:] = 255  # the grey grows to the right: 0 degrees, the first direction
    directions = features(picture, features=["hog"], cell=8, block=1).reshape(4, 4, 9)
    assert (directions[:, 1:3, 0] > 0.9).all()
    assert (directions[:, :, 1:] == 0).all()


@pytest.mark.parametrize("space", ["hsv", "rgb"])
@pytest.mark.parametrize("grid", [1, 3])
def test_colours_are_numpy_s_joint_histogram(space: str, grid: int) -> None:
    found = features(drawings(), features=["colour"], space=space, bins=[5, 3, 2], grid=grid)
    for row, picture in zip(found, drawings(), strict=True):
        values = rgb2hsv(picture / 255) if space == "hsv" else picture / 255
        parts = [cell for band in np.array_split(values, grid, 0) for cell in np.array_split(band, grid, 1)]
        counted = [np.histogramdd(part.reshape(-1, 3), (5, 3, 2), ((0, 1),) * 3)[0].ravel() / part[..., 0].size for part in parts]
        assert np.allclose(row, np.concatenate(counted), atol=1e-3), "a hue on an edge may fall to either side"
        assert row.sum() == pytest.approx(grid**2)


def test_patterns_are_scikit_image_s_and_stay_when_the_picture_is_turned() -> None:
    found = features(drawings(), features=["lbp"], grid=1)
    for row, picture in zip(found, drawings(), strict=True):
        codes = local_binary_pattern(np.rint(rgb2gray(picture / 255) * 255).astype(np.uint8), 8, 1, "uniform")
        assert np.allclose(row, np.bincount(codes.astype(int).ravel(), minlength=10) / codes.size, atol=1e-6)
    turned = features(np.rot90(drawings(), axes=(1, 2)).copy(), features=["lbp"], grid=1)
    assert np.abs(turned - found).max() < 0.02


def test_features_stand_one_after_another_and_each_row_is_its_picture_s() -> None:
    names = ["lbp", "hog", "colour"]
    alone = [features(drawings(), features=[name]) for name in names]
    together = features(drawings(), features=names)
    assert np.array_equal(together, np.concatenate(alone, 1))
    net = model().build(128).module
    x = prepared(drawings())
    whole = net(x)
    assert whole.shape == (3, 3076)
    assert whole.dtype == torch.float32
    assert torch.equal(torch.cat([net(part) for part in x.split([1, 2])]), whole), "any division into batches"
    assert torch.equal(net(x[[2, 0, 1]]), whole[[2, 0, 1]])
    assert net(x[:0]).shape == (0, 3076)
    with torch.device("meta"):
        assert net(torch.empty(2, 3, 128, 128)).shape == (2, 3076)


def test_a_chain_of_it_has_one_stage_and_trains_its_head_alone() -> None:
    backbone = model().build(32)
    chain = Chain(backbone, torch.nn.Linear(backbone.module(torch.zeros(1, 3, 32, 32)).shape[1], 2), torch.randn(2, 3, 32, 32))
    assert len(chain.stages) == 2
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.allclose(chain.prepare(x), x)
    entered = chain(x, stop="head")
    assert not entered.requires_grad
    assert torch.equal(chain(entered, start="head"), chain(x))
    chain(x).sum().backward()
    assert [name for name, parameter in chain.named_parameters() if parameter.grad is not None] == ["head.weight", "head.bias"]


@pytest.mark.parametrize(
    ("changed", "least"),
    [({}, 32), ({"cell": 8, "block": 3}, 24), ({"features": ["colour"], "grid": 5}, 5), ({"features": ["hog"], "cell": 2, "block": 1}, 3)],
)
def test_the_least_picture_passes(changed: dict[str, Any], least: int) -> None:
    spec = model(**changed)
    assert spec.least() == least
    assert spec.build(least).module(torch.rand(1, 3, least, least)).isfinite().all()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"features": []}, r"model\.features = \[\]: at least one value"),
        ({"features": ["hog", "sift"]}, r"model\.features.*hog, colour or lbp|model\.features.*colour"),
        ({"bins": [8, 3]}, r"model\.bins"),
        ({"points": 3}, r"model\.points = 3: at least 4"),
    ],
)
def test_wrong_values_are_refused(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        model(**changed)


def test_mistakes_that_types_can_t_see_are_found() -> None:
    assert model().problems() == []
    assert [problem.key for problem in model(features=["hog", "hog"], weights="imagenet").problems()] == ["features", "weights"]


def data(n: int, f: int, kind: str = "class", outputs: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features far from 0, of unlike deviations, that tell something of the truth."""
    of = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, outputs, generator=of)
    x = hidden @ torch.randn(outputs, f, generator=torch.Generator().manual_seed(99)) + torch.randn(n, f, generator=of)
    noisy = hidden + torch.randn(n, outputs, generator=of)
    return x * torch.linspace(0.3, 2, f) + 3, {"class": noisy.argmax(1), "tags": (noisy > 0.5).float(), "numbers": 5 * noisy + 2}[kind]


def accuracy(logits: Tensor, truth: Tensor) -> float:
    return float((logits.argmax(1) == truth).float().mean())


def solve(
    specs: HeadSpec | Sequence[HeadSpec], train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor] | None = None, **more: Any
) -> list[Fitted]:
    def of(pair: tuple[Tensor, Tensor]) -> Batches:
        def batches() -> Iterable[tuple[Tensor, Tensor]]:
            return zip(pair[0].split(7), pair[1].split(7), strict=True)

        return batches

    options = {"kind": "class", "outputs": 4, "judge": accuracy, "lower": False, "say": lambda text: None} | more
    several = [specs] if isinstance(specs, HeadSpec) else specs
    return fit(several, of(train), of(val) if val else None, train[0].shape[1], **options)


@pytest.mark.parametrize("f", [20, 90])  # more pictures than features, and fewer
@pytest.mark.parametrize("penalty", [10.0, 100.0])
@pytest.mark.parametrize("kind", ["class", "tags"])
def test_svm_is_scikit_learn_s(kind: str, penalty: float, f: int) -> None:
    x, y = data(60, f, kind)
    [found] = solve(head("svm", penalty=penalty, calibrate=False), (x, y), kind=kind)
    rows = StandardScaler().fit_transform(x.double().numpy())
    for output in range(4):
        truth = (y == output if kind == "class" else y[:, output] > 0).numpy()
        expected = LinearSVC(C=1 / penalty, tol=1e-10, max_iter=10**6, dual=f > 60).fit(rows, truth).decision_function(rows)
        assert np.abs(found.module(x)[:, output].numpy() - expected).max() < 1e-3
    assert found.facts == {"penalty": penalty, "factor": 1.0, "converged": True, "pictures": 60}


def test_calibrating_an_svm_changes_no_answer() -> None:
    train, val = data(60, 20), data(50, 20, seed=1)
    [off, on] = solve([head("svm", penalty=50.0, calibrate=calibrate) for calibrate in (False, True)], train, val)
    assert torch.allclose(on.module(val[0]), on.facts["factor"] * off.module(val[0]), atol=1e-3)
    assert on.facts["factor"] != 1


def grown(kind: str, depth: int | None, x: Tensor, y: Tensor, seed: int = 0) -> Any:
    of = RandomForestClassifier if kind == "class" else RandomForestRegressor
    start = generator(seed, "forest").initial_seed() % 2**32
    truth = y.numpy() if kind == "class" else y.double().numpy()
    return of(11, max_depth=depth, max_features="sqrt", random_state=start).fit(x.numpy(), truth)


@pytest.mark.parametrize("kind", ["class", "tags", "numbers"])
def test_a_forest_is_scikit_learn_s(kind: str) -> None:
    (x, y), (others, _) = data(80, 20, kind), data(60, 20, kind, seed=1)
    [found] = solve(head("forest", trees=11, depth=None), (x, y), kind=kind)
    expected = grown(kind, None, x, y)
    for rows in (x, others):
        means = expected.predict_proba(rows.numpy()) if kind == "class" else expected.predict(rows.numpy())
        assert np.allclose(found.module.means(rows), means, atol=1e-5)
        logits = found.module(rows)
        if kind == "class":
            assert np.allclose(logits.exp(), (11 * means + 1 / 4) / 12, atol=1e-6)
            assert torch.allclose(logits.softmax(1), logits.exp(), atol=1e-6), "they are probabilities"
        else:
            assert np.allclose(
                logits if kind == "numbers" else 12 * logits.sigmoid() - 0.5, means if kind == "numbers" else 11 * means, atol=1e-4
            )
    assert np.allclose(found.module.importance, expected.feature_importances_, atol=1e-6)
    assert found.facts["nodes"] == sum(tree.tree_.node_count for tree in expected.estimators_)


def test_a_tree_cut_off_is_one_that_stopped_there() -> None:
    """With all features at every split nothing is drawn, and scikit-learn's max_depth gives the very same trees."""
    x, y = data(80, 1)  # one feature: the root of 1 is 1
    for depth in (1, 2, 3, 5):
        [found] = solve(head("forest", trees=11, depth=depth), (x, y))
        expected = grown("class", depth, x, y)
        assert np.abs(found.module.means(x).numpy() - expected.predict_proba(x.numpy())).max() < 1e-6
        assert found.facts["nodes"] == sum(tree.tree_.node_count for tree in expected.estimators_)
    [deep] = solve(head("forest", trees=11, depth=None), (x, y))
    assert torch.allclose(deep.module.means(x, 5), found.module.means(x), atol=1e-6)


def test_a_forest_follows_its_seed_and_a_choice_of_depth_is_the_best_alone() -> None:
    train, val = data(80, 20), data(60, 20, seed=1)
    specs = [head("forest", trees=11, depth=3)] * 3
    [one, same, other] = solve(specs, train, seeds=[0, 0, 1])
    assert torch.equal(one.module(val[0]), same.module(val[0]))
    assert not torch.equal(one.module(val[0]), other.module(val[0]))
    [chosen] = solve(head("forest", trees=11, depth=[4, 1, 2], folds=None), train, val)
    alone = {depth: solve(head("forest", trees=11, depth=depth), train)[0] for depth in (1, 2, 4)}
    assert {each["depth"]: each["val"] for each in chosen.facts["tried"]} == pytest.approx(
        {depth: accuracy(each.module(val[0]), val[1]) for depth, each in alone.items()}
    )
    assert torch.equal(chosen.module(val[0]), alone[chosen.facts["depth"]].module(val[0]))


def test_a_forest_s_answers_do_not_hang_on_room_or_autocast() -> None:
    (x, y), (others, _) = data(80, 20), data(60, 20, seed=1)
    [found] = solve(head("forest", trees=11, depth=None), (x, y))
    whole = found.module(others)
    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
        patch.setattr(trees, "ROOM", 200)
        assert torch.equal(found.module(others), whole)


def test_trees_of_a_file_that_go_in_circles_end() -> None:
    x, y = data(40, 5)
    [found] = solve(head("forest", trees=3, depth=None), (x, y))
    found.module.branch.copy_(torch.zeros_like(found.module.branch))  # all lead back to the first root
    found.module.depth = torch.tensor(2**60)
    assert found.module(x).isfinite().all()


@settings(max_examples=50, deadline=None)
@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    names=st.lists(st.integers(0, 20), min_size=60, max_size=60),
    views=st.integers(1, 3),
    folds=st.integers(2, 7),
)
def test_folds_keep_groups_and_views_together_and_share_out_classes(labels: list[int], names: list[int], views: int, folds: int) -> None:
    truth, groups = torch.tensor(labels).repeat_interleave(views), torch.tensor(names[: len(labels)])
    fold = dealt(truth, groups, folds)
    rows = groups.repeat_interleave(views)
    assert all(len(fold[rows == name].unique()) == 1 for name in groups.unique())
    assert 0 <= int(fold.min()) <= int(fold.max()) < folds
    alone = dealt(torch.tensor(labels), None, folds)
    for label in set(labels):
        sizes = alone[torch.tensor(labels) == label].bincount(minlength=folds)
        assert int(sizes.max() - sizes.min()) <= 1


@pytest.mark.parametrize(("name", "key"), [("svm", "penalty"), ("logistic", "penalty"), ("forest", "depth")])
def test_folds_choose_what_is_best_where_it_was_left_out(name: str, key: str) -> None:
    train, val = data(61, 12), data(30, 12, seed=1)
    few: dict[str, Any] = {"trees": 5} if name == "forest" else {}
    several = [2, 4, 1] if name == "forest" else [0.1, 1000.0, 10.0]
    [found] = solve(head(name, folds=3, **{key: several}, **few), train, (val[0][:0], val[1][:0]))  # no val is needed
    fold = dealt(train[1], None, 3)
    means = {}
    for one in several:
        told = []
        for number in range(3):
            out = fold == number
            [part] = solve(head(name, **{key: one}, **few), (train[0][~out], train[1][~out]))
            told.append(accuracy(part.module(train[0][out]), train[1][out]))
        means[one] = float(np.mean(told))
    assert {each[key]: each["folds"] for each in found.facts["tried"]} == pytest.approx(means)
    assert means[found.facts[key]] == max(means.values())
    assert found.facts["folds"] == 3
    [all_of_it] = solve(head(name, **{key: found.facts[key]}, **few), train)
    assert torch.allclose(found.module(val[0]), all_of_it.module(val[0]), atol=2e-3), "and is solved on all of train"


def test_one_picture_leaves_nothing_to_be_left_out() -> None:
    [found] = solve(head("svm"), data(1, 12))
    assert found.facts["folds"] == 0
    assert found.module(data(5, 12)[0]).isfinite().all()
