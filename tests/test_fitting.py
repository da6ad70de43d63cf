"""Heads without epochs: equal to scikit-learn's, whatever shares the work with them and however their pictures come in batches."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor, NearestCentroid
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, one_hot

from regraft import classifiers, fitting
from regraft.errors import UserError
from regraft.fitting import Fitted, fit
from regraft.heads import GROUP, HeadSpec
from regraft.registry import parse

CONF = Path(__file__).parent.parent / "conf" / "head"
SOLVED = sorted(name for name in GROUP.builtin if GROUP.spec(name).fits)  # type: ignore[attr-defined]
CASES = [(name, kind) for name in SOLVED for kind in GROUP.spec(name).kinds]  # type: ignore[attr-defined]
PLAIN: dict[str, dict[str, Any]] = {  # with nothing to choose on val
    "ridge": {"penalty": 3.0, "calibrate": False},
    "logistic": {"penalty": 3.0},
    "knn": {"k": 3},
    "nearest_mean": {"calibrate": False},
    "svm": {"penalty": 3.0, "calibrate": False},
    "forest": {"depth": 4},
    "majority": {},
}
SMALL: dict[str, dict[str, Any]] = {"forest": {"trees": 7, "folds": 3}}  # what would only take time


def spec(name: str, **changed: Any) -> HeadSpec:
    found = parse(GROUP.spec(name), yaml.safe_load((CONF / f"{name}.yaml").read_text()) | SMALL.get(name, {}) | changed, "head")
    assert isinstance(found, HeadSpec)
    return found


def plain(name: str) -> HeadSpec:
    return spec(name, **PLAIN[name])


def data(n: int, f: int, kind: str = "class", outputs: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features far from 0, of unlike deviations, that tell something of the truth."""
    of = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, outputs, generator=of)
    x = hidden @ torch.randn(outputs, f, generator=torch.Generator().manual_seed(99)) + torch.randn(n, f, generator=of)
    x = x * torch.linspace(0.3, 2, f) + 3
    noisy = hidden + torch.randn(n, outputs, generator=of)
    return x, {"class": noisy.argmax(1), "tags": (noisy > 0.5).float(), "numbers": 5 * noisy + 2}[kind]


def split(x: Tensor, y: Tensor, sizes: Sequence[int] | int = 7) -> fitting.Batches:
    def batches() -> Iterable[tuple[Tensor, Tensor]]:
        return zip(x.split(sizes), y.split(sizes), strict=True)  # type: ignore[arg-type]

    return batches


def accuracy(logits: Tensor, truth: Tensor) -> float:
    return float((logits.argmax(1) == truth).float().mean())


def error(logits: Tensor, truth: Tensor) -> float:
    """The mean squared error, for any kind of truth."""
    return float((logits - (one_hot(truth, logits.shape[1]) if truth.ndim == 1 else truth)).square().mean())


def solve(
    specs: HeadSpec | Sequence[HeadSpec],
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor] | None = None,
    kind: str = "class",
    outputs: int = 4,
    judge: Callable[[Tensor, Tensor], float] = error,
    lower: bool = True,
    sizes: Sequence[int] | int = 7,
) -> list[Fitted]:
    several = [specs] if isinstance(specs, HeadSpec) else specs
    batches = split(*val) if val else None
    return fit(several, split(*train, sizes), batches, train[0].shape[1], outputs, kind, judge, lower, lambda text: None)


def close(one: nn.Module, other: nn.Module, x: Tensor, tolerance: float = 1e-5) -> bool:
    return torch.allclose(one(x), other(x), atol=tolerance)


@pytest.mark.parametrize("kind", ["class", "tags", "numbers"])
@pytest.mark.parametrize("n", [15, 60])  # fewer pictures than features, and more
@pytest.mark.parametrize("penalty", [0.01, 3.0, 500.0])
def test_ridge_is_scikit_learn_s(kind: str, n: int, penalty: float) -> None:
    x, y = data(n, 20, kind)
    [found] = solve(spec("ridge", penalty=penalty, calibrate=False), (x, y), kind=kind)
    targets = {"class": one_hot(y, 4).double() if kind == "class" else y, "tags": 2 * y.double() - 1, "numbers": y.double()}[kind]
    expected = SklearnRidge(alpha=penalty).fit(x.double().numpy(), targets.numpy())
    weight, bias = found.module.state_dict().values()
    assert np.allclose(weight, expected.coef_, rtol=1e-6, atol=1e-6)
    assert np.allclose(bias, expected.intercept_, rtol=1e-6, atol=1e-6)
    assert np.allclose(found.module(x), expected.predict(x.double().numpy()), rtol=1e-6, atol=1e-5)
    assert found.facts == {"penalty": penalty, "factor": 1.0, "pictures": n}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(1e-3, 1e4), min_size=1, max_size=6, unique=True), st.integers(2, 40), st.integers(0, 99))
def test_many_penalties_are_each_alone(penalties: list[float], n: int, seed: int) -> None:
    train, val = data(n, 12, seed=seed), data(9, 12, seed=seed + 1)
    alone = [solve(spec("ridge", penalty=penalty), train, val)[0] for penalty in penalties]
    together = solve([spec("ridge", penalty=penalty) for penalty in penalties], train, val)
    assert all(close(a.module, b.module, val[0]) for a, b in zip(alone, together, strict=True))
    [chosen] = solve(spec("ridge", penalty=penalties), train, val)
    errors = {penalty: error(each.module(val[0]), val[1]) for penalty, each in zip(penalties, alone, strict=True)}
    assert errors[chosen.facts["penalty"]] == pytest.approx(min(errors.values()), abs=1e-5)
    if len(penalties) > 1:
        assert {each["penalty"]: each["val"] for each in chosen.facts["tried"]} == pytest.approx(errors, abs=1e-5)


def sklearn_logistic(c: float) -> LogisticRegression:
    return LogisticRegression(C=c, tol=1e-10, max_iter=10_000)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("penalty", [0.1, 10.0])
def test_logistic_is_scikit_learn_s(classes: int, standardize: bool, penalty: float) -> None:
    x, y = data(80, 20, outputs=classes)
    [found] = solve(spec("logistic", penalty=penalty, standardize=standardize, tolerance=1e-7), (x, y), outputs=classes)
    rows = StandardScaler().fit_transform(x.double().numpy()) if standardize else x.double().numpy()
    expected = sklearn_logistic((2 if classes == 2 else 1) / penalty).fit(rows, y.numpy()).predict_proba(rows)
    assert np.abs(found.module(x).softmax(1).numpy() - expected).max() < 1e-4
    assert found.facts["converged"]
    assert 1 < found.facts["iterations"] < 1000


def test_logistic_of_tags_is_one_for_each() -> None:
    x, y = data(80, 20, "tags")
    [found] = solve(spec("logistic", penalty=2.0, standardize=False, tolerance=1e-7), (x, y), kind="tags")
    for tag in range(4):
        rows = x.double().numpy()  # in float32, scikit-learn's is not exact
        expected = sklearn_logistic(1 / 2).fit(rows, y[:, tag].numpy()).predict_proba(rows)[:, 1]
        assert np.abs(found.module(x).sigmoid().numpy()[:, tag] - expected).max() < 1e-4


def test_the_tolerance_of_the_yaml_is_enough_and_warm_starts_change_nothing() -> None:
    train, val = data(80, 20), data(30, 20, seed=1)
    penalties = [1000.0, 0.3, 20.0]
    together = solve([spec("logistic", penalty=penalty) for penalty in [*penalties, penalties]], train, val)
    for penalty, found in zip(penalties, together[:3], strict=True):
        [alone] = solve(spec("logistic", penalty=penalty, tolerance=1e-8), train)
        difference = (found.module(val[0]).softmax(1) - alone.module(val[0]).softmax(1)).abs().max()
        assert difference < 1e-4
        assert found.facts["penalty"] == penalty
    assert [each["penalty"] for each in together[3].facts["tried"]] == [1000, 20, 0.3]


def test_logistic_says_what_has_not_converged() -> None:
    said: list[str] = []
    x, y = data(80, 20)
    [found] = fit([spec("logistic", penalty=0.01, max_iter=2)], split(x, y), None, 20, 4, "class", error, True, said.append)
    assert not found.facts["converged"]
    assert said == ["logistic: penalty 0.01 has not converged in 2 iterations; raise max_iter or tolerance"]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 4, 9])
def test_knn_counts_the_votes_that_scikit_learn_counts(metric: str, k: int) -> None:
    (x, y), (others, _) = data(60, 8), data(25, 8, seed=1)
    [found] = solve(spec("knn", k=k, metric=metric, temperature=None), (x, y))
    expected = KNeighborsClassifier(k, metric=metric, algorithm="brute").fit(x.numpy(), y.numpy()).predict_proba(others.numpy())
    logits = found.module(others)
    assert np.allclose(logits.exp() * (k + 1) - 1 / 4, k * expected, atol=1e-5)
    assert torch.allclose(logits.softmax(1), logits.exp(), atol=1e-6), "they are probabilities"
    assert (logits.argmax(1).numpy() == expected.argmax(1)).all()


def test_knn_of_numbers_is_their_mean_and_of_tags_their_share() -> None:
    (x, y), (others, _) = data(60, 8, "numbers"), data(25, 8, "numbers", seed=1)
    [found] = solve(spec("knn", k=5, metric="euclidean", temperature=None), (x, y), kind="numbers")
    assert np.allclose(found.module(others), KNeighborsRegressor(5).fit(x.numpy(), y.numpy()).predict(others.numpy()), atol=1e-4)
    tags = (y > 2).float()
    [found] = solve(spec("knn", k=5, metric="euclidean", temperature=None), (x, tags), kind="tags")
    share = KNeighborsRegressor(5).fit(x.numpy(), tags.numpy()).predict(others.numpy())
    assert np.allclose(found.module(others).sigmoid() * 6 - 0.5, 5 * share, atol=1e-4)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_vote_weighs_as_wu_and_others_say(metric: str) -> None:
    (x, y), (others, _) = data(40, 8), data(10, 8, seed=1)
    if metric == "euclidean":
        x, others = x - 3, others - 3
    [found] = solve(spec("knn", k=6, metric=metric, temperature=0.5), (x, y))
    near = {"cosine": cosine_similarity(others[:, None], x[None], dim=-1), "euclidean": -torch.cdist(others, x).square() / 2}[metric]
    best, rows = near.double().topk(6)
    weights = (best / 0.5).exp()
    votes = torch.stack([(weights * (y[rows] == label)).sum(1) for label in range(4)], 1) / weights.sum(1, keepdim=True)
    assert torch.allclose(found.module(others).exp().double(), (6 * votes + 1 / 4) / 7, atol=1e-4)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_nearest_mean_is_scikit_learn_s(metric: str) -> None:
    (x, y), (others, _) = data(60, 8), data(40, 8, seed=1)
    [found] = solve(spec("nearest_mean", metric=metric, calibrate=False), (x, y))
    logits = found.module(others)
    if metric == "euclidean":
        expected = NearestCentroid().fit(x.numpy(), y.numpy())
        assert (logits.argmax(1).numpy() == expected.predict(others.numpy())).all()
        distances = np.square(others.numpy()[:, None] - expected.centroids_[None]).sum(-1)
        assert np.allclose(logits.softmax(1), torch.from_numpy(-distances).softmax(1), atol=1e-4)
    else:
        means = torch.stack([nn.functional.normalize(x[y == label]).mean(0) for label in range(4)])
        assert torch.allclose(logits, cosine_similarity(others[:, None], means[None], dim=-1), atol=1e-5)
        assert torch.allclose(found.module(50 * others), logits, atol=1e-5)


@pytest.mark.parametrize(("name", "kind"), CASES)
@settings(max_examples=8, deadline=None)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=8), held=st.booleans())
def test_streamed_is_whole(name: str, kind: str, sizes: list[int], held: bool) -> None:
    n = sum(sizes)
    train, (others, _) = data(n, 12, kind), data(9, 12, kind, seed=1)
    [whole] = solve(plain(name), train, kind=kind, sizes=n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "HELD", 10**6 if held else 0)
        patch.setattr(fitting, "ROWS", 5)
        [parts] = solve(plain(name), train, kind=kind, sizes=sizes)
    scale = max(1.0, float(whole.module(others).abs().max()))
    assert close(whole.module, parts.module, others, (1e-3 if name == "logistic" else 1e-5) * scale)


@settings(max_examples=20, deadline=None)
@given(room=st.integers(1, 400), n=st.integers(1, 40), k=st.integers(1, 50), seed=st.integers(0, 99))
def test_neighbours_are_the_same_whatever_the_room(room: int, n: int, k: int, seed: int) -> None:
    others, _ = data(9, 6, seed=seed + 1)
    for metric, kind in (("cosine", "tags"), ("euclidean", "class")):
        [found] = solve(spec("knn", k=k, metric=metric, temperature=2.0), data(n, 6, kind, seed=seed), kind=kind)
        whole = found.module(others)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(classifiers, "ROOM", room)
            assert torch.allclose(found.module(others), whole, atol=1e-4)
            assert found.module(others[:0]).shape == (0, 4)


def test_every_k_comes_from_one_sort() -> None:
    train, val = data(60, 8), data(30, 8, seed=1)
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        near = classifiers.Neighbours.near
        patch.setattr(classifiers.Neighbours, "near", lambda self, x, most: asked.append(most) or near(self, x, most))
        [*alone, best] = solve([*(spec("knn", k=k) for k in (1, 5, 20)), spec("knn", k=[5, 20, 1])], train, val)
    assert asked == [20], "val passes once"
    for tried, each in zip(best.facts["tried"], alone[::-1], strict=True):
        assert tried == {"k": each.facts["k"], "val": pytest.approx(error(each.module(val[0]), val[1]), abs=1e-6)}
    assert best.facts["k"] == min(best.facts["tried"], key=lambda each: each["val"])["k"]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_finished_run_s_tensors_fill_what_build_gives(name: str, kind: str, tmp_path: Path) -> None:
    train, (others, _) = data(30, 12, kind), data(9, 12, kind, seed=1)
    [found] = solve(plain(name), train, kind=kind)
    assert not found.module.training
    assert not any(parameter.requires_grad for parameter in found.module.parameters())
    again = plain(name).build(12, ["a", "b", "c", "d"]).eval()
    assert type(again) is type(found.module)
    assert torch.equal(again(others), torch.zeros(9, 4)), "unfitted, it knows nothing"
    save_file(found.module.state_dict(), tmp_path / "head.safetensors")
    again.load_state_dict(load_file(tmp_path / "head.safetensors"), strict=True)
    assert torch.equal(again(others), found.module(others))
    other = plain(name).build(11, ["a", "b", "c", "d"])
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict(found.module.state_dict())


@pytest.mark.parametrize("name", SOLVED)
@pytest.mark.parametrize("chosen", [False, True])
def test_a_class_without_pictures_never_wins(name: str, chosen: bool) -> None:
    x, y = data(60, 12)
    y = torch.where(y == 2, 3, y)
    others, truth = data(40, 12, seed=1)  # which has some
    [found] = solve(spec(name) if chosen else plain(name), (x, y), (others, truth), judge=accuracy, lower=False)
    far = torch.cat([others, -20 * others, 1e3 * torch.randn(200, 12, generator=torch.Generator().manual_seed(0))])
    logits = found.module(far)
    assert logits.isfinite().all()
    assert not (logits.argmax(1) == 2).any()
    assert cross_entropy(logits[:40], truth).isfinite()


@pytest.mark.parametrize(("name", "kind"), CASES)
@pytest.mark.parametrize("case", ["one picture", "one class", "constant features", "all the same", "one output"])
def test_little_to_learn_from_is_no_crash(name: str, kind: str, case: str) -> None:
    outputs = 1 if case == "one output" else 4
    n = 1 if case == "one picture" else 20
    x, y = data(n, 12, kind, outputs)
    y = y[:1].expand(n, *y.shape[1:]).contiguous() if case in ("one class", "all the same") else y
    x[:, 3:5] = torch.tensor([0.0, 0.1]) if case == "constant features" else x[:, 3:5]
    x = x[:1].expand(n, -1).contiguous() if case == "all the same" else x
    val = data(6, 12, kind, outputs, seed=1)
    for each in (plain(name), spec(name)):
        [found] = solve(each, (x, y), val, kind, outputs)
        logits = found.module(val[0])
        assert logits.shape == (6, outputs)
        assert logits.isfinite().all()
        assert all(tensor.isfinite().all() for tensor in found.module.state_dict().values())
    if kind == "class" and case in ("one picture", "one class", "all the same"):
        assert (logits.argmax(1) == y[0]).all(), "what is never seen is never said"


def test_tags_that_never_or_always_hold_are_told_so() -> None:
    x, y = data(40, 12, "tags")
    y[:, 0], y[:, 1] = 0, 1
    for name in ("ridge", "logistic", "knn"):
        [found] = solve(plain(name), (x, y), kind="tags")
        assert (found.module(x)[:, 0] < 0).all()
        assert (found.module(x)[:, 1] > 0).all()
    assert torch.equal((solve(plain("ridge"), (x, y), kind="tags")[0].module(x) > 0).float()[:, :2], y[:, :2])
    [none] = solve(plain("logistic"), (x, torch.ones(40, 4)), kind="tags")  # nothing is left to learn
    assert (none.module(x) == 20).all()


def test_majority_is_train_s_frequencies_whatever_the_picture() -> None:
    x, _ = data(10, 3)
    y = torch.tensor([2] * 5 + [0] * 3 + [3] * 2)
    [found] = solve(spec("majority"), (x, y))
    answers = found.module(torch.randn(4, 3)).softmax(1)
    assert torch.allclose(answers, torch.tensor([0.3, 0.0, 0.5, 0.2]).expand(4, 4), atol=1e-6)


@pytest.mark.parametrize("name", ["ridge", "nearest_mean"])
def test_calibrating_finds_the_factor_of_the_least_cross_entropy_and_changes_no_answer(name: str) -> None:
    train, val = data(60, 12), data(50, 12, seed=1)
    changed = {"penalty": 3.0} if name == "ridge" else {"metric": "euclidean"}
    [off, on] = solve([spec(name, calibrate=calibrate, **changed) for calibrate in (False, True)], train, val)
    factor = on.facts["factor"]
    assert torch.allclose(on.module(val[0]), factor * off.module(val[0]), rtol=1e-3, atol=1e-4)
    losses = [float(cross_entropy(scale * factor * off.module(val[0]), val[1])) for scale in (0.9, 1, 1.1)]
    assert losses[1] < min(losses[0], losses[2])
    [without] = solve(spec(name, **changed), train)
    assert without.facts["factor"] == 1, "without val there is nothing to find it on"
    [sure] = solve(spec(name, **changed), data(60, 12), (train[0], off.module(train[0]).argmax(1)))
    assert sure.facts["factor"] * off.module(train[0]).std() < 200, "no mistake on val, and still not certain"


@pytest.mark.parametrize("name", ["ridge", "logistic", "knn"])
def test_the_best_on_val_is_chosen_and_of_equals_the_smoothest(name: str) -> None:
    train, val = data(60, 12), data(30, 12, seed=1)
    key = "k" if name == "knn" else "penalty"
    listed = {key: [1, 20, 5]} if name == "knn" else {key: [1.0, 20.0, 5.0]}
    values = iter([0.1, 0.7, 0.3])
    [most] = solve(spec(name, **listed), train, val, judge=lambda logits, truth: next(values), lower=False)
    assert most.facts[key] == 5
    assert most.facts["tried"] == [{key: 20, "val": 0.1}, {key: 5, "val": 0.7}, {key: 1, "val": 0.3}]
    values = iter([0.7, 0.1, 0.3])
    assert solve(spec(name, **listed), train, val, judge=lambda logits, truth: next(values))[0].facts[key] == 5
    assert solve(spec(name, **listed), train, val, judge=lambda logits, truth: 0.5)[0].facts[key] == 20
    values = iter([math.nan, math.nan, 0.3])
    undefined = solve(spec(name, **listed), train, val, judge=lambda logits, truth: next(values))[0]
    assert undefined.facts[key] == 1
    assert json.loads(json.dumps(undefined.facts)) == undefined.facts
    assert [each["val"] for each in undefined.facts["tried"]] == [None, None, 0.3]
    [auto] = solve(spec(name), train, val)
    assert len(auto.facts["tried"]) == {"ridge": 17, "logistic": 8, "knn": 7}[name]  # of 60 pictures, 100 and 200 are 60
    assert auto.facts[key] in [each[key] for each in auto.facts["tried"]]


def test_auto_follows_the_scale_of_the_features() -> None:
    (x, y), (others, truth) = data(60, 12), data(30, 12, seed=1)
    for name, changed in (("ridge", {}), ("logistic", {"standardize": False}), ("logistic", {})):
        [found] = solve(spec(name, **changed), (x, y), (others, truth))
        [scaled] = solve(spec(name, **changed), (100 * x, y), (100 * others, truth))
        factor = 1 if name == "logistic" and not changed else 1e4
        assert [each["penalty"] for each in scaled.facts["tried"]] == pytest.approx(
            [factor * each["penalty"] for each in found.facts["tried"]], rel=1e-4
        )
        assert torch.allclose(scaled.module(100 * others), found.module(others), atol=1e-2)


@pytest.mark.parametrize("name", ["ridge", "logistic", "knn"])
@pytest.mark.parametrize("empty", [False, True])
def test_a_choice_needs_val(name: str, empty: bool) -> None:
    x, y = data(30, 12)
    key = "k" if name == "knn" else "penalty"
    with pytest.raises(UserError, match=rf"head\.{key} = auto: which is best is found on val, and there are no val pictures; one number"):
        solve([plain(name), spec(name)], (x, y), (x[:0], y[:0]) if empty else None)
    solve(plain(name), (x, y), (x[:0], y[:0]))


@pytest.mark.parametrize(("name", "kind"), [("logistic", "numbers"), ("nearest_mean", "tags"), ("nearest_mean", "numbers")])
def test_truth_that_a_head_can_t_learn_is_refused(name: str, kind: str) -> None:
    with pytest.raises(UserError, match=rf"head = {name}: learns class.*, not {kind}"):
        solve(plain(name), data(30, 12, kind), kind=kind)


@pytest.mark.parametrize("name", SOLVED)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_that_are_no_numbers_are_refused(name: str, value: float) -> None:
    x, y = data(30, 12)
    x[20, 3] = value
    with pytest.raises(UserError, match=rf"head = {name}: the features that reach it are not all finite"):
        solve(plain(name), (x, y))


def test_neighbours_do_not_depend_on_autocast() -> None:
    train, (others, _) = data(60, 12), data(30, 12, seed=1)
    [found] = solve(plain("knn"), train)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(found.module(others), found.module(others).float())
        assert torch.allclose(found.module(others), torch.cat([found.module(x) for x in others.split(1)]), atol=1e-4)
