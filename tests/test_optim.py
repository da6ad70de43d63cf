"""Optimizers: all of timm's by name, on our own groups; a resumed one goes on as if nothing had happened."""

from __future__ import annotations

import io
import random
import subprocess
import sys
from typing import Any

import pytest
import timm.optim
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from regraft.errors import Problem, UserError
from regraft.optim import SGD, AdamW, Timm, offered
from regraft.registry import parse

RUNS = sorted(name for name, offer in offered().items() if not offer.package and not offer.second_order)


def chosen(opt: str, **values: Any) -> Timm:
    usual = {"name": "timm", "opt": opt, "lr": 0.01, "weight_decay": 0.1, "momentum": None, "betas": None}
    return parse(Timm, {**usual, **values}, "optimizer")  # type: ignore[return-value]


def problem(opt: str, **values: Any) -> Problem:
    [found] = chosen(opt, **values).problems()
    return found


def net() -> tuple[nn.Module, list[dict[str, Any]]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    matrices, vectors = ([p for p in made.parameters() if (p.ndim > 1) == wanted] for wanted in (True, False))
    return made, [
        {"params": matrices, "lr": 0.01, "weight_decay": 0.1, "stage": "a"},
        {"params": vectors, "lr": 0.001, "weight_decay": 0.0, "stage": "b"},
    ]


class Training:
    """A few steps on numbers that depend on the step alone."""

    def __init__(self, spec: Any) -> None:
        self.net, self.groups = net()
        self.optimizer = spec.build(self.groups, fused=True)
        self.scheduler = LambdaLR(self.optimizer, lambda step: 1 / (1 + step))

    def steps(self, first: int, last: int) -> Tensor:
        for step in range(first, last):
            self.optimizer.zero_grad()
            x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
            self.net(x).square().sum().backward()
            self.optimizer.step()
            self.scheduler.step()
        return nn.utils.parameters_to_vector(self.net.parameters()).detach()


@pytest.fixture(autouse=True)
def _plain():
    with torch.compiler.set_stance("force_eager"):  # kron translates its inner functions, which takes seconds and changes nothing
        yield


def test_the_names_are_timms() -> None:
    assert set(offered()) == set(timm.optim.list_optimizers())
    assert len(offered()) > 80
    for name, offer in offered().items():
        info = timm.optim.get_optimizer_info(name)
        assert (offer.momentum, offer.betas, offer.second_order) == (info.has_momentum, info.num_betas * info.has_betas, info.second_order)


@pytest.mark.parametrize("opt", [*RUNS, "lookahead_adamw", "lookahead_lion"])
def test_each_keeps_our_groups_trains_and_resumes(opt: str) -> None:
    before, drawn = torch.get_rng_state(), random.getstate()
    whole = Training(chosen(opt))
    start = nn.utils.parameters_to_vector(whole.net.parameters()).detach().clone()
    groups = [(group["initial_lr"], group["weight_decay"], group["stage"], len(group["params"])) for group in whole.optimizer.param_groups]
    assert groups == [(0.01, 0.1, "a", 2), (0.001, 0.0, "b", 4)]
    end = whole.steps(0, 8)
    assert [group["lr"] for group in whole.optimizer.param_groups] == pytest.approx([0.01 / 9, 0.001 / 9])
    assert end.isfinite().all()
    assert (end != start).float().mean() > 0.9, "it trains all there is"

    first = Training(chosen(opt))
    first.steps(0, 4)
    file = io.BytesIO()
    torch.save([first.net.state_dict(), first.optimizer.state_dict(), first.scheduler.state_dict()], file)
    file.seek(0)
    second = Training(chosen(opt))
    for part, state in zip((second.net, second.optimizer, second.scheduler), torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    assert torch.equal(second.steps(4, 8), end), "resumed, bit for bit"
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == drawn


def test_the_same_as_torchs_own() -> None:
    for ours, theirs in (
        (AdamW(name="adamw", lr=0.01, weight_decay=0.1, betas=[0.8, 0.9]), chosen("adamw", betas=[0.8, 0.9])),
        (SGD(name="sgd", lr=0.01, weight_decay=0.1, momentum=0.5, nesterov=True), chosen("sgd", momentum=0.5)),
    ):
        assert torch.equal(Training(ours).steps(0, 3), Training(theirs).steps(0, 3))


def test_lookahead_is_every_sixth_step_halfway_to_where_it_began() -> None:
    """timm takes the place after k = 6 steps as its first slow weights, and goes half the way from there after 12."""
    spec = {"lr": 0.01, "weight_decay": 0.0}
    plain, ahead = Training(chosen("sgd", **spec)), Training(chosen("lookahead_sgd", **spec))
    slow = plain.steps(0, 6).clone()
    assert torch.equal(ahead.steps(0, 6), slow)
    fast = plain.steps(6, 12)
    torch.testing.assert_close(ahead.steps(6, 12), slow + 0.5 * (fast - slow))


def test_what_a_corrected_decay_takes_for_the_peak_is_the_groups_own() -> None:
    """adamc scales the decay by lr / peak: at the peak it decays as adamw does, whatever a phase has made of optimizer.lr."""
    assert torch.equal(Training(chosen("adamc", lr=5.0)).steps(0, 1)[:12], Training(chosen("adamw")).steps(0, 1)[:12])


def test_names_that_there_are_not() -> None:
    assert problem("lambb") == Problem("opt", "lambb", "timm has no such optimizer; did you mean lamb, lambw or lambc?")
    assert "did you mean adamw" in problem("lookahead_adamww").remedy
    assert "names are listed by timm.optim.list_optimizers()" in problem("zzzzzz").remedy
    assert problem("foo_adam").key == "opt"
    assert chosen("lookahead_adam").problems() == []


def test_what_can_not_run_here() -> None:
    assert "the package apex, which is not installed" in problem("fusedadam").remedy
    assert "the package bitsandbytes" in problem("bnblion8bit").remedy
    assert "second derivatives" in problem("adahessian").remedy


def test_keys_that_an_optimizer_does_not_have() -> None:
    assert problem("adamw", momentum=0.5) == Problem("momentum", 0.5, "adamw has no momentum; null works")
    assert problem("sgd", betas=[0.9, 0.99]) == Problem("betas", [0.9, 0.99], "sgd has no betas; null works")
    assert problem("adan", betas=[0.9, 0.99]).remedy == "a list of 3 values works"
    assert chosen("adan", betas=[0.9, 0.99, 0.9]).problems() == []
    assert chosen("rmsprop", momentum=0.5).problems() == []
    with pytest.raises(UserError, match="a list of 2 values"):
        chosen("adamw", betas=[0.9])


def test_the_names_are_known_without_torch() -> None:
    code = "import sys; from regraft.optim import offered; assert len(offered()) > 80; print('torch' in sys.modules, 'timm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
