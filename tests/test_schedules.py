"""Schedules: the same numbers as torch's own, and rules that hold for every length, warm-up and duration."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from regraft.errors import UserError
from regraft.registry import parse
from regraft.schedules import GROUP, Constant, Cosine, Linear, OneCycle, Schedule, Step, in_steps

PLAIN: dict[str, dict[str, Any]] = {
    "constant": {"warmup": 0.0},
    "cosine": {"warmup": 0.0},
    "linear": {"warmup": 0.0, "end": 0.1},
    "one_cycle": {"warmup": 0.3, "start": 0.04, "end": 4e-6, "anneal": "cosine"},
    "step": {"warmup": 0.0, "gamma": 0.1, "milestones": [0.5, "30 steps", "4 epochs"]},
}


def schedule(name: str, **values: Any) -> Any:
    return parse(GROUP.spec(name), {"name": name, **PLAIN[name], **values}, "schedule")


def followed(build: Any, steps: int) -> list[float]:
    """The learning rates that torch's own scheduler gives an optimizer of lr 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = build(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


TORCHS = {
    "linear": (schedule("linear"), lambda o: lr_scheduler.LinearLR(o, 1.0, 0.1, 40)),
    "cosine": (schedule("cosine"), lambda o: lr_scheduler.CosineAnnealingLR(o, 40)),
    "step": (schedule("step"), lambda o: lr_scheduler.MultiStepLR(o, [20, 30, 32], 0.1)),
    "constant": (schedule("constant"), lambda o: lr_scheduler.ConstantLR(o, 1.0)),
    "a cycle": (
        schedule("one_cycle"),
        lambda o: lr_scheduler.OneCycleLR(o, 1.0, 40, pct_start=0.3, div_factor=25, final_div_factor=1e4, cycle_momentum=False),
    ),
    "a cycle of lines": (
        schedule("one_cycle", anneal="linear", warmup="10 steps", start=0.1, end=0.01),
        lambda o: lr_scheduler.OneCycleLR(
            o, 1.0, 40, pct_start=0.25, div_factor=10, final_div_factor=10, anneal_strategy="linear", cycle_momentum=False
        ),
    ),
}


@pytest.mark.parametrize("name", TORCHS)
def test_the_same_as_torchs_own(name: str) -> None:
    mine, torchs = TORCHS[name]
    factor = mine.factor(40, 8)
    assert [factor(step) for step in range(40)] == pytest.approx(followed(torchs, 40), abs=1e-9)


def test_golden_numbers() -> None:
    warm = schedule("cosine", warmup="4 steps").factor(12, 3)
    assert [warm(step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 0.9619398])  # (1 + cos(pi / 8)) / 2
    assert schedule("cosine", warmup="2 epochs").factor(12, 3)(5) == pytest.approx(6 / 7)
    steps = schedule("step", warmup="2 steps", milestones=["1 epoch", 0.5]).factor(8, 3)
    assert [steps(step) for step in range(8)] == pytest.approx([1 / 3, 2 / 3, 1, 0.1, 0.01, 0.01, 0.01, 0.01])


@given(
    name=st.sampled_from(sorted(GROUP.builtin)),
    steps=st.integers(1, 300),
    epochs=st.integers(1, 5),
    warmup=st.one_of(st.floats(0, 0.99), st.integers(0, 299).map("{} steps".format), st.integers(0, 5).map("{} epochs".format)),
)
def test_up_to_the_peak_and_never_up_again(name: str, steps: int, epochs: int, warmup: float | str) -> None:
    epoch_steps = max(1, steps // epochs)
    spec = schedule(name, warmup=warmup)
    first = in_steps(spec.warmup, steps, epoch_steps)
    if isinstance(warmup, str) and first >= steps:
        with pytest.raises(UserError, match=f"{steps} steps"):
            spec.factor(steps, epoch_steps)
        return
    factor = spec.factor(steps, epoch_steps)
    factors = [factor(step) for step in range(steps + 1)]  # torch asks once more, after the last step
    assert all(0 <= each <= 1 for each in factors)
    assert all(each > 0 for each in factors[:steps])
    top = max(0, first - 1) if name == "one_cycle" else first
    assert factors[:top] == sorted(factors[:top])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert [factor(step) for step in range(steps + 1)] == factors, "a pure function"


@given(st.floats(0, 0.999), st.integers(1, 10_000), st.integers(1, 100))
def test_a_duration_means_the_same_in_every_unit(part: float, steps: int, epoch_steps: int) -> None:
    count = in_steps(part, steps, epoch_steps)
    assert in_steps(f"{count} steps", steps, epoch_steps) == count
    assert in_steps(f"{count} epochs", steps, epoch_steps) == count * epoch_steps
    assert in_steps("0.5 epochs", steps, epoch_steps) == round(epoch_steps / 2)


def test_epochs_need_their_length() -> None:
    with pytest.raises(ValueError, match="how many steps"):
        schedule("cosine", warmup="1 epoch").factor(10)
    assert schedule("cosine", warmup="1 step").factor(10)(0) == 0.5


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (500, "'500 steps' or '500 epochs'"),
        (1.0, "'1 steps' or '1 epochs'"),
        (-0.1, "a part 0..1"),
        (True, "a part 0..1"),
        (None, "a part 0..1"),
        ("500", "'500 steps' or '3 epochs'"),
        ("3 weeks", "'500 steps' or '3 epochs'"),
        ("1.5 steps", "whole number of steps"),
        ("-3 epochs", "'3 epochs'"),
        (["3 epochs"], "'3 epochs'"),
    ],
)
def test_what_is_no_duration(given: object, told: str) -> None:
    with pytest.raises(UserError) as caught:
        schedule("cosine", warmup=given)
    [problem] = caught.value.problems
    assert problem.key == "schedule.warmup"
    assert told in problem.remedy


def test_a_milestone_that_is_no_duration_is_told() -> None:
    with pytest.raises(UserError) as caught:
        schedule("step", milestones=[0.5, 30])
    [problem] = caught.value.problems
    assert problem.key == "schedule.milestones"
    assert "'30 steps' or '30 epochs'" in problem.remedy


def test_a_duration_can_be_typed() -> None:
    """Hydra's grammar takes the space as it is, and in a list."""
    from regraft.config import Composer

    words = ["schedule=step", "schedule.warmup=3 epochs", "schedule.milestones=[0.5,40 epochs]"]
    [found] = Composer().jobs(words, False)
    assert (found.settings.schedule.warmup, found.settings.schedule.milestones) == ("3 epochs", [0.5, "40 epochs"])


def test_outside_schedules_need_only_a_shape() -> None:
    class Root(Schedule):
        """Mine."""

        def shape(self, part: float) -> float:
            return (1 - part) ** 0.5

    assert Root(name="root", warmup=0).factor(100)(75) == pytest.approx(0.5)
    assert all(issubclass(each, Schedule) for each in (Constant, Cosine, Linear, OneCycle, Step))
