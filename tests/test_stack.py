"""A stack of heads steps each head as torch would step it alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from regraft.classifiers import Cosine
from regraft.optim import SGD, Adam, AdamW
from regraft.stack import RULES, Stack, StackedOptimizer, clip
from regraft.streams import Dropout

HEADS = {
    "linear": lambda: nn.Sequential(Dropout(0.0), nn.Linear(6, 4)),
    "mlp": lambda: nn.Sequential(Dropout(0.0), nn.Linear(6, 5), nn.ReLU(), Dropout(0.0), nn.Linear(5, 4)),
    "cosine": lambda: nn.Sequential(Dropout(0.0), Cosine(6, 4, 8.0, True)),
    "fixed scale": lambda: nn.Sequential(Dropout(0.0), Cosine(6, 4, 8.0, False)),
}
SPECS = {
    "sgd": lambda lr, decay: SGD(name="sgd", lr=lr, weight_decay=decay, momentum=0.9, nesterov=False),
    "nesterov": lambda lr, decay: SGD(name="sgd", lr=lr, weight_decay=decay, momentum=0.8, nesterov=True),
    "plain": lambda lr, decay: SGD(name="sgd", lr=lr, weight_decay=decay, momentum=0.0, nesterov=False),
    "adam": lambda lr, decay: Adam(name="adam", lr=lr, weight_decay=decay, betas=[0.8, 0.95]),
    "adamw": lambda lr, decay: AdamW(name="adamw", lr=lr, weight_decay=decay, betas=[0.9, 0.999]),
}
RATES, DECAYS = [1e-3, 1e-2, 1e-1], [0.0, 0.1, 0.5]


def batches(count: int):
    drawn = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 6, generator=drawn), torch.randint(4, (8,), generator=drawn)) for _ in range(count)]


def made(kind: str, count: int = 3) -> list[nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [HEADS[kind]() for _ in range(count)]


def alone(head, spec, rate, decay, data, norm) -> None:
    groups = [[p for p in head.parameters() if (p.ndim > 1) == decayed] for decayed in (True, False)]
    optimizer = spec(rate, decay).build(
        [{"params": each, "lr": rate, "weight_decay": decay * (not i)} for i, each in enumerate(groups) if each], fused=False
    )
    for x, y in data:
        optimizer.zero_grad()
        cross_entropy(head.eval()(x), y).backward()
        if norm:
            nn.utils.clip_grad_norm_(head.parameters(), norm)
        optimizer.step()


def together(stack, spec, rates, decays, data, norm) -> StackedOptimizer:
    optimizer = StackedOptimizer(stack, spec(rates[0], decays[0]), torch.tensor(rates, dtype=torch.float64), torch.tensor(decays))
    for x, y in data:
        optimizer.zero_grad()
        sum(cross_entropy(logits, y) for logits in stack(x[None])).backward()
        if norm:
            clip(list(stack.parameters()), norm)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("norm", [None, 0.3])
@pytest.mark.parametrize("rule", SPECS)
@pytest.mark.parametrize("kind", HEADS)
def test_each_head_is_stepped_as_by_torchs_own_optimizer(kind, rule, norm):
    heads = made(kind)
    stack = Stack(heads)
    together(stack, SPECS[rule], RATES, DECAYS, batches(25), norm)
    for i, head in enumerate(heads):
        alone(head, SPECS[rule], RATES[i], DECAYS[i], batches(25), norm)
        for name, tensor in head.state_dict().items():
            assert torch.allclose(stack.state(i)[name], tensor, atol=1e-6), (name, i)


def test_every_optimizer_that_says_it_stacks_has_a_rule_and_no_other():
    from regraft.optim import GROUP

    assert {spec for spec in GROUP.builtin.values() if spec.stacks} == set(RULES)


@pytest.mark.parametrize("rule", SPECS)
def test_a_head_that_holds_no_numbers_leaves_the_others_as_they_are(rule):
    heads = made("linear")
    clean, spoilt = Stack(heads), Stack(heads)
    with torch.no_grad():
        spoilt.tensors["1/weight"][1] = torch.nan
    for stack in (clean, spoilt):
        together(stack, SPECS[rule], RATES, DECAYS, batches(5), 0.3)
    for i in (0, 2):
        assert torch.equal(spoilt.state(i)["1.weight"], clean.state(i)["1.weight"])
    assert spoilt.state(1)["1.weight"].isnan().all()


@pytest.mark.parametrize("rule", SPECS)
def test_heads_that_stay_go_on_as_if_nobody_had_left(rule):
    whole, parted = Stack(made("mlp")), Stack(made("mlp"))
    together(whole, SPECS[rule], RATES, DECAYS, batches(12), None)
    optimizer = together(parted, SPECS[rule], RATES, DECAYS, batches(12)[:6], None)
    moments, left = optimizer.state_of(parted, 2), parted.state(2)
    for one in (parted, optimizer):
        one.keep(torch.tensor([0, 1]))
    assert len(parted) == 2
    again = Stack(made("mlp", 1))  # the third goes on in a stack of its own
    again.put(0, left)
    other = StackedOptimizer(again, SPECS[rule](1.0, 0.0), torch.tensor(RATES[2:], dtype=torch.float64), torch.tensor(DECAYS[2:]))
    other.put(again, 0, moments, 6)
    for stack, stepping in ((parted, optimizer), (again, other)):
        for x, y in batches(12)[6:]:
            stepping.zero_grad()
            sum(cross_entropy(logits, y) for logits in stack(x[None])).backward()
            stepping.step()
    for stack, place, i in ((parted, 0, 0), (parted, 1, 1), (again, 0, 2)):
        for name, tensor in whole.state(i).items():
            assert torch.allclose(stack.state(place)[name], tensor, atol=1e-6), (name, i)


@settings(max_examples=25, deadline=None)
@given(kind=st.sampled_from(sorted(HEADS)), count=st.integers(1, 5), rows=st.integers(1, 7))
def test_an_input_that_all_share_is_the_same_as_a_copy_for_each(kind, count, rows):
    heads = made(kind, count)
    stack, x = Stack(heads), torch.randn(rows, 6, generator=torch.Generator().manual_seed(rows))
    shared, copied = stack(x[None]), stack(x[None].expand(count, -1, -1).contiguous(), range(count))
    each = torch.stack([head.eval()(x) for head in heads])
    assert torch.allclose(shared, each, atol=1e-5)
    assert torch.allclose(copied, each, atol=1e-5)
    which = sorted(i % 2 for i in range(count))  # two inputs, shared by some
    some = stack(torch.stack([x, 2 * x][: len(set(which))]), which)
    assert torch.allclose(some, torch.stack([head((1 + i) * x) for head, i in zip(heads, which, strict=True)]), atol=1e-5)


def test_what_can_not_be_stacked_is_told():
    with pytest.raises(ValueError, match="Tanh"):
        Stack([nn.Sequential(nn.Linear(2, 2), nn.Tanh())])
    with pytest.raises(ValueError, match="no stack"):
        Stack([HEADS["linear"](), HEADS["mlp"]()])
