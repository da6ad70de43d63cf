"""Losses: torch's and torchvision's numbers, one for each sample; class weights as sklearn counts them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from regraft.errors import UserError
from regraft.losses import GROUP, LossSpec
from regraft.registry import parse

LOGITS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3, 3, 0])
TAGS = torch.tensor([[0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 1], [0, 0, 1, 1], [0, 1, 0, 1.0]])
NUMBERS = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)) * 3


def loss(name: str, **values: Any) -> Any:
    usual: dict[str, dict[str, Any]] = {
        "cross_entropy": {"class_weights": None, "label_smoothing": 0.0},
        "focal": {"class_weights": None, "gamma": 2.0, "alpha": None},
        "mse": {},
        "huber": {"delta": 1.0},
    }
    return parse(GROUP.spec(name), {"name": name, **usual[name], **values}, "loss")


SAME = {  # loss, truth, the library's numbers
    "one label": (loss("cross_entropy"), LABELS, F.cross_entropy(LOGITS, LABELS, reduction="none")),
    "one label, smoothed": (
        loss("cross_entropy", label_smoothing=0.2),
        LABELS,
        F.cross_entropy(LOGITS, LABELS, label_smoothing=0.2, reduction="none"),
    ),
    "many labels": (loss("cross_entropy"), TAGS, F.binary_cross_entropy_with_logits(LOGITS, TAGS, reduction="none").mean(1)),
    "many labels, smoothed": (
        loss("cross_entropy", label_smoothing=0.2),
        TAGS,
        F.binary_cross_entropy_with_logits(LOGITS, TAGS.clamp(0.1, 0.9), reduction="none").mean(1),
    ),
    "focal, many labels": (loss("focal", alpha=0.25), TAGS, sigmoid_focal_loss(LOGITS, TAGS, 0.25, 2.0).mean(1)),
    "focal, gamma 0": (loss("focal", gamma=0.0), LABELS, F.cross_entropy(LOGITS, LABELS, reduction="none")),
    "focal, many labels, gamma 0": (
        loss("focal", gamma=0.0),
        TAGS,
        F.binary_cross_entropy_with_logits(LOGITS, TAGS, reduction="none").mean(1),
    ),
    "squares": (loss("mse"), NUMBERS, F.mse_loss(LOGITS, NUMBERS, reduction="none").mean(1)),
    "huber": (loss("huber", delta=0.7), NUMBERS, F.huber_loss(LOGITS, NUMBERS, delta=0.7, reduction="none").mean(1)),
}


@pytest.mark.parametrize("name", SAME)
def test_the_librarys_numbers(name: str) -> None:
    mine, truth, expected = SAME[name]
    torch.testing.assert_close(mine(LOGITS, truth), expected)
    classes = LOGITS.shape[1]
    torch.testing.assert_close(mine.fitted(truth, classes)(LOGITS, truth), expected)
    alone = torch.cat([mine(LOGITS[i : i + 1], truth[i : i + 1]) for i in range(len(truth))])
    torch.testing.assert_close(alone, expected)  # a sample's loss does not depend on its batch


def test_focal_golden() -> None:
    """p = 0.5, 0.9 and 0.1: (1 - p)^2 x -log p"""
    p = torch.tensor([0.5, 0.9, 0.1])
    logits = torch.stack([p.log(), (1 - p).log()], 1)
    expected = [0.25 * 0.693147, 0.01 * 0.105361, 0.81 * 2.302585]
    assert loss("focal")(logits, torch.zeros(3, dtype=torch.int64)).tolist() == pytest.approx(expected, rel=1e-5)


def test_focal_with_two_classes_is_torchvisions_with_one_label() -> None:
    x = torch.linspace(-8, 8, 33)
    two = loss("focal", gamma=1.5)(torch.stack([torch.zeros_like(x), x], 1), torch.ones(33, dtype=torch.int64))
    torch.testing.assert_close(two, sigmoid_focal_loss(x, torch.ones(33), -1, 1.5))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_gradients_are_finite_where_the_answer_is_certain(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0.0], [0.0, 200.0], [0.0, 0.0]], requires_grad=True)
    found = loss("focal", gamma=gamma)(logits, torch.tensor([0, 0, 0]))
    found.sum().backward()
    assert found[0] == 0
    assert found[1] == 200
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_balanced_weights_are_sklearns(labels: list[int]) -> None:
    """Each class that is there has the same part in the sum; the mean weight is 1."""
    truth = torch.tensor(labels)
    logits = torch.randn(len(labels), 5, generator=torch.Generator().manual_seed(len(labels)))
    plain = loss("cross_entropy")(logits, truth)
    weights = loss("cross_entropy", class_weights="balanced").fitted(truth, 5)(logits, truth) / plain
    present = sorted(set(labels))
    table = dict(zip(present, compute_class_weight("balanced", classes=np.array(present), y=labels), strict=True))
    assert weights.tolist() == pytest.approx([table[label] for label in labels], rel=1e-4)
    assert weights.mean().item() == pytest.approx(1, rel=1e-4)


def test_balanced_weights_of_many_labels_are_sklearns_label_by_label() -> None:
    terms = F.binary_cross_entropy_with_logits(LOGITS, TAGS, reduction="none")
    expected = torch.stack([torch.tensor(compute_sample_weight("balanced", column)) for column in TAGS.T], 1)
    found = loss("cross_entropy", class_weights="balanced").fitted(TAGS, 4)(LOGITS, TAGS)
    torch.testing.assert_close(found, (terms * expected).mean(1).float())


def test_a_class_without_pictures_counts_for_nothing() -> None:
    balanced = loss("focal", class_weights="balanced").fitted(torch.tensor([0, 0, 0, 1]), 3)
    plain = loss("focal")
    truth = torch.tensor([0, 1, 2])
    factors = balanced(LOGITS[:3, :3], truth) / plain(LOGITS[:3, :3], truth)
    assert factors.tolist() == pytest.approx([4 / (2 * 3), 4 / 2, 0])
    never = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert loss("cross_entropy", class_weights="balanced").fitted(never, 2)(LOGITS[:2, :2], never).isfinite().all()


@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
def test_a_list_of_weights(name: str) -> None:
    weights = torch.tensor([1.0, 2.0, 0.0, 0.5])
    plain, weighted = loss(name), loss(name, class_weights=weights.tolist())
    torch.testing.assert_close(weighted.fitted(LABELS, 4)(LOGITS, LABELS), plain(LOGITS, LABELS) * weights[LABELS])
    if name == "cross_entropy":
        expected = F.cross_entropy(LOGITS, LABELS, weight=weights, reduction="none")
        torch.testing.assert_close(weighted.fitted(LABELS, 4)(LOGITS, LABELS), expected)
        expected = F.binary_cross_entropy_with_logits(LOGITS, TAGS, weight=weights, reduction="none").mean(1)
        torch.testing.assert_close(weighted.fitted(TAGS, 4)(LOGITS, TAGS), expected)


@pytest.mark.parametrize(
    ("weights", "told"),
    [([1.0, 2.0], "4 weights are needed"), ([], "4 weights are needed")],
)
def test_a_list_of_another_length_is_refused(weights: list[float], told: str) -> None:
    with pytest.raises(UserError) as caught:
        loss("cross_entropy", class_weights=weights).fitted(LABELS, 4)
    [problem] = caught.value.problems
    assert (problem.key, problem.given) == ("loss.class_weights", weights)
    assert told in problem.remedy


@pytest.mark.parametrize("weights", ["balance", [-1.0], 2.0, ["heavy"]])
def test_what_are_no_weights(weights: object) -> None:
    with pytest.raises(UserError) as caught:
        loss("focal", class_weights=weights)
    assert {problem.key for problem in caught.value.problems} == {"loss.class_weights"}


def test_what_each_takes() -> None:
    assert {name: GROUP.spec(name).kinds for name in GROUP.builtin} == {  # type: ignore[attr-defined]
        "cross_entropy": ("class", "tags"),
        "focal": ("class", "tags"),
        "mse": ("numbers",),
        "huber": ("numbers",),
        "own": ("class", "tags", "numbers", "boxes", "text", "frames"),
    }


def test_a_loss_of_an_outside_package_needs_a_call_only() -> None:
    class Hinge(LossSpec):
        """Mine."""

        def __call__(self, logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
            return F.multi_margin_loss(logits, truth, reduction="none")

    mine = Hinge(name="hinge")
    assert mine.kinds == ("class",)
    torch.testing.assert_close(mine.fitted(LABELS, 4)(LOGITS, LABELS), F.multi_margin_loss(LOGITS, LABELS, reduction="none"))
