"""A restricted Boltzmann machine is the distribution that its energy defines, learns by the gradient of its name, and AIS finds its Z."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from regraft.ais import Estimate, log_likelihood, log_z
from regraft.errors import UserError
from regraft.rbm import RBM, Units

V, H = 4, 3


def states(n: int) -> Tensor:
    """All 2^n rows of 0 and 1."""
    return torch.tensor([[number >> i & 1 for i in range(n)] for number in range(2**n)], dtype=torch.float64)


def machine(units: Units = "binary", visible: int = V, hidden: int = H, scale: float = 1.0, **more: int) -> RBM:
    torch.manual_seed(0)
    rbm = RBM(visible, hidden, units, **more).double()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in rbm.parameters():
            parameter.copy_(torch.randn(parameter.shape) * scale)
    return rbm


def energy(rbm: RBM, v: Tensor, h: Tensor) -> Tensor:
    """E(v, h), written out: [n, v], [m, h] -> [n, m]"""
    b, c, w = rbm.visible_bias, rbm.hidden_bias, rbm.weight
    own = (v - b).square().sum(1) / 2 if rbm.units == "gaussian" else -(v @ b)
    return own[:, None] - (h @ c)[None] - v @ w.T @ h.T


def exact(rbm: RBM) -> float:
    """log Z by summing over all states of what is binary; the integral over gaussian visibles is closed."""
    h = states(len(rbm.hidden_bias))
    if rbm.units == "binary":
        return float((-energy(rbm, states(len(rbm.visible_bias)), h)).flatten().logsumexp(0).detach())
    field = h @ rbm.weight  # of exp(-|v - b|^2 / 2 + v.field) the integral is (2 pi)^(v/2) exp(b.field + |field|^2 / 2)
    terms = h @ rbm.hidden_bias + field @ rbm.visible_bias + field.square().sum(1) / 2
    return float(terms.logsumexp(0).detach()) + len(rbm.visible_bias) / 2 * math.log(2 * math.pi)


@pytest.mark.parametrize("units", ["binary", "gaussian"])
def test_free_energy_sums_the_hidden_units_out(units: Units) -> None:
    rbm = machine(units)
    v = states(V) if units == "binary" else torch.randn(20, V, dtype=torch.float64)
    torch.testing.assert_close(rbm.free_energy(v), -(-energy(rbm, v, states(H))).logsumexp(1))


def test_binary_probabilities_are_those_of_the_joint_distribution() -> None:
    rbm = machine()
    v, h = states(V), states(H)
    joint = (-energy(rbm, v, h)).flatten().softmax(0).view(2**V, 2**H)
    torch.testing.assert_close((-rbm.free_energy(v) - exact(rbm)).exp(), joint.sum(1))
    torch.testing.assert_close((-rbm.free_energy(v) - exact(rbm)).exp().sum(), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(rbm.hidden(v), joint @ h / joint.sum(1, keepdim=True))
    torch.testing.assert_close(rbm.visible(h), joint.T @ v / joint.sum(0)[:, None])


def test_gaussian_density_is_that_of_the_joint_distribution() -> None:
    rbm = machine("gaussian", visible=1)
    v, h = torch.linspace(-12, 12, 24001, dtype=torch.float64)[:, None], states(H)
    rbm.requires_grad_(False)
    density = (-energy(rbm, v, h) - exact(rbm)).exp()  # [n, 2^h]
    assert float(torch.trapezoid((-rbm.free_energy(v) - exact(rbm)).exp(), v[:, 0])) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(rbm.hidden(v), density @ h / density.sum(1, keepdim=True))
    means = torch.trapezoid(density * v, v, dim=0) / torch.trapezoid(density, v, dim=0)
    torch.testing.assert_close(rbm.visible(h)[:, 0], means, atol=1e-6, rtol=1e-6)


def test_gaussian_gibbs_step_draws_the_mixture_of_its_hidden_states() -> None:
    rbm, n = machine("gaussian", visible=2, hidden=2), 100_000
    v0 = torch.tensor([[0.3, -0.5]], dtype=torch.float64)
    draws = torch.rand(n, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    v1 = rbm.gibbs(v0.expand(n, -1), draws)
    h, on = states(2), rbm.hidden(v0)
    weights = (h * on + (1 - h) * (1 - on)).prod(1)
    mean = weights @ rbm.visible(h)
    spread = rbm.visible(h) - mean
    torch.testing.assert_close(v1.mean(0), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(v1.T.cov(), torch.eye(2, dtype=torch.float64) + spread.T @ (weights[:, None] * spread), atol=0.05, rtol=0)


def gradient(rbm: RBM, loss: Tensor) -> Tensor:
    return torch.cat([each.flatten() for each in torch.autograd.grad(loss, list(rbm.parameters()))])


@pytest.mark.parametrize("k", [1, 3])
def test_the_mean_gradient_is_that_of_contrastive_divergence(k: int) -> None:
    """Enumerated: the chain's transition matrix over all v, to the k-th power."""
    rbm, n = machine(k=k), 40_000
    v, h = states(V), states(H)
    with torch.no_grad():
        up = (h[None] * rbm.hidden(v)[:, None] + (1 - h[None]) * (1 - rbm.hidden(v)[:, None])).prod(2)  # [2^v, 2^h]
        down = (v[None] * rbm.visible(h)[:, None] + (1 - v[None]) * (1 - rbm.visible(h)[:, None])).prod(2)  # [2^h, 2^v]
    ends = torch.linalg.matrix_power(up @ down, k)
    first = 5
    expected = gradient(rbm, rbm.free_energy(v)[first] - ends[first] @ rbm.free_energy(v))
    found = gradient(rbm, rbm.losses(v[first].expand(n, -1), torch.arange(n)).mean())
    torch.testing.assert_close(found.double(), expected, atol=4 * 0.5 / math.sqrt(n), rtol=0)
    assert expected.abs().max() > 0.1  # and so the test can fail


def test_hand_written_contrastive_divergence_has_the_same_gradient() -> None:
    """<v h> of the data less <v h> of the reconstruction (Hinton 2012, eq. 9), with the hidden units' probabilities."""
    rbm = machine()
    v, seeds = states(V), torch.arange(2**V)
    weight, hidden, visible = torch.autograd.grad(rbm.losses(v, seeds).sum(), [rbm.weight, rbm.hidden_bias, rbm.visible_bias])
    begin, end = (each[:, 0] for each in rbm._ends(v[:, None], seeds))
    assert torch.equal(begin, v)
    assert not torch.equal(end, v)
    torch.testing.assert_close(weight, rbm.hidden(end).T @ end - rbm.hidden(v).T @ v, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(hidden, (rbm.hidden(end) - rbm.hidden(v)).sum(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(visible, (end - v).sum(0), atol=1e-5, rtol=1e-5)


def test_probabilities_are_drawn_afresh_from_each_seed() -> None:
    rbm, n = machine(), 20_000
    v = torch.tensor([0.0, 0.2, 0.7, 1.0], dtype=torch.float64)
    begin, _ = rbm._ends(v.expand(n, 1, -1), torch.arange(n))
    assert set(begin.unique().tolist()) == {0, 1}
    torch.testing.assert_close(begin.mean((0, 1)), v, atol=0.015, rtol=0)
    torch.testing.assert_close(begin[:, 0].T.cov().fill_diagonal_(0), torch.zeros(4, 4, dtype=torch.float64), atol=0.01, rtol=0)


def test_the_likelihood_of_probabilities_is_a_lower_bound_of_their_draws_mean() -> None:
    rbm, n = machine().requires_grad_(False), 20_000
    v = torch.tensor([0.1, 0.2, 0.7, 0.9], dtype=torch.float64)
    begin, _ = rbm._ends(v.expand(n, 1, -1), torch.arange(n))
    assert float(-rbm.free_energy(v)) <= float(-rbm.free_energy(begin).mean())


@pytest.mark.parametrize("units", ["binary", "gaussian"])
def test_a_sample_does_not_see_its_batch(units: Units) -> None:
    rbm = machine(units, k=2).float()
    v, seeds = states(V).float(), torch.arange(2**V) + 7
    whole = rbm.losses(v, seeds)
    parts = torch.cat([rbm.losses(part, seed) for part, seed in zip(v.split(5), seeds.split(5), strict=True)])
    torch.testing.assert_close(whole, parts)
    assert not torch.allclose(whole, rbm.losses(v, seeds + 1))


@pytest.mark.parametrize("units", ["binary", "gaussian"])
@pytest.mark.parametrize("window", [1, 3])
def test_padding_changes_nothing(units: Units, window: int) -> None:
    rbm = machine(units, visible=window * V, window=window).float()
    x = torch.rand(5, 6, V + 1, generator=torch.Generator().manual_seed(0)).round()
    lengths = torch.tensor([6, 3, 1, 0, 2])
    x[..., -1] = (torch.arange(6) < lengths[:, None]).float()
    x = x * x[..., -1:]
    longer, seeds = torch.cat([x, torch.zeros(5, 4, V + 1)], 1), torch.arange(5)
    torch.testing.assert_close(rbm.losses(longer, seeds), rbm.losses(x, seeds))
    for name, each in rbm.measures(longer).items():
        torch.testing.assert_close(each, rbm.measures(x)[name])
    torch.testing.assert_close(rbm(longer)[:, :6], rbm(x))
    assert not rbm(longer)[:, 6:].any()
    assert rbm.losses(x, seeds)[3] == 0


def test_a_window_ends_at_its_step() -> None:
    rbm = machine(visible=6, window=3)
    x = torch.tensor([[[1.0, 2, 1], [3, 4, 1], [5, 6, 1], [7, 8, 1]]])
    v, _ = rbm.visibles(x)
    assert v.tolist() == [[[0, 0, 0, 0, 1, 2], [0, 0, 1, 2, 3, 4], [1, 2, 3, 4, 5, 6], [3, 4, 5, 6, 7, 8]]]


def test_pictures_are_grey_and_binary_units_refuse_what_is_no_probability() -> None:
    rbm = machine().float()
    x = torch.rand(2, 3, 2, 2)
    torch.testing.assert_close(rbm(x), rbm(x.mean(1).flatten(1)))
    with pytest.raises(UserError, match=r"0\.\.1; gaussian takes"):
        rbm.losses(3 * x + 1, torch.arange(2))


def test_cd_learns_a_distribution() -> None:
    """Two patterns of equal probability: the exact log-likelihood comes near -log 2."""
    torch.manual_seed(0)
    rbm = RBM(6, 4, k=1)
    v = torch.tensor([[1.0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]).repeat(20, 1)
    optimizer = torch.optim.SGD(rbm.parameters(), lr=0.2, momentum=0.5)
    for epoch in range(300):
        optimizer.zero_grad()
        rbm.losses(v, 1000 * epoch + torch.arange(40)).mean().backward()
        optimizer.step()
    found = float((-rbm.free_energy(v).detach().double()).mean()) - exact(rbm.double())
    assert -math.log(2) - 0.25 < found < -math.log(2)


def nudged(rbm: RBM) -> RBM:
    """As an optimizer's step changes weights in place, but by next to nothing."""
    with torch.no_grad():
        rbm.hidden_bias.add_(1e-6)
    return rbm


def test_persistent_particles_come_to_the_machines_own_distribution() -> None:
    rbm = machine(scale=0.7, k=5, particles=20_000).train()
    v = states(V)
    seen = torch.zeros(2**V, dtype=torch.float64)
    for _ in range(6):
        nudged(rbm).losses(v, torch.arange(len(v)))
        seen = torch.bincount((rbm.particles @ 2.0 ** torch.arange(V, dtype=torch.float64)).long(), minlength=2**V) / len(rbm.particles)
    torch.testing.assert_close(seen.double(), (-rbm.free_energy(v) - exact(rbm)).exp().detach(), atol=0.012, rtol=0)


def test_pcd_is_the_same_for_every_division_of_a_batch() -> None:
    v, seeds = states(V).float(), torch.arange(2**V)
    whole = machine(particles=7).float().train()
    parts = copy.deepcopy(whole)
    for _ in range(3):
        nudged(whole), nudged(parts)
        one = gradient(whole, whole.losses(v, seeds).sum())
        other = sum(gradient(parts, parts.losses(v[at : at + 4], seeds[at : at + 4]).sum()) for at in range(0, 16, 4))
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(whole.particles, parts.particles)
    assert int(whole.steps) == int(parts.steps) == 3
    torch.testing.assert_close(whole.eval().losses(v, seeds), machine().float().losses(v, seeds))
    assert int(whole.steps) == 3  # validation moves nothing


def test_pcd_goes_on_from_a_checkpoint() -> None:
    v, seeds = states(V).float(), torch.arange(2**V)

    def steps(rbm: RBM, count: int) -> RBM:
        optimizer = torch.optim.SGD(rbm.parameters(), lr=0.1)
        for _ in range(count):
            optimizer.zero_grad()
            rbm.losses(v, seeds).mean().backward()
            optimizer.step()
        return rbm

    uninterrupted = steps(machine(particles=7).float().train(), 5)
    resumed = machine(particles=7).float().train()
    resumed.load_state_dict(steps(machine(particles=7).float().train(), 2).state_dict())
    for name, tensor in steps(resumed, 3).state_dict().items():
        assert torch.equal(tensor, uninterrupted.state_dict()[name]), name


def test_what_trains_has_a_gradient_upwards_too() -> None:
    rbm = machine().float().train()
    rbm(states(V).float()).sum().backward()
    assert rbm.visible_bias.grad is not None
    assert not rbm.visible_bias.grad.any()


@pytest.mark.parametrize("means", [lambda n: None, lambda n: torch.linspace(0, 1, n)], ids=["own", "data"])
@pytest.mark.parametrize("units", ["binary", "gaussian"])
def test_ais_holds_the_exact_value_within_its_interval(units: Units, means: Callable[[int], Tensor | None]) -> None:
    rbm = machine(units, visible=10, hidden=8, scale=1.0 if units == "binary" else 0.5)
    true = exact(rbm)
    found = [log_z(rbm, means(10), chains=100, betas=300, seed=seed) for seed in range(5)]
    assert all(each.low < true < each.high for each in found), (true, found)
    assert all(each.high - each.low < 1 for each in found)
    assert len({each.log_z for each in found}) == 5
    assert log_z(rbm, means(10), chains=100, betas=300, seed=2) == found[2]


def test_ais_is_exact_without_weights_and_its_error_is_that_of_repetition() -> None:
    rbm = machine(visible=10, hidden=8)
    spread = torch.tensor([log_z(rbm, chains=50, betas=60, seed=seed) for seed in range(40)])
    assert float(spread[:, 0].std()) == pytest.approx(float(spread[:, 1].mean()), rel=0.5)
    rbm.requires_grad_(False).weight.zero_()
    known = float(torch.nn.functional.softplus(torch.cat([rbm.visible_bias, rbm.hidden_bias])).sum())
    assert log_z(rbm, chains=5, betas=5).log_z == pytest.approx(known)
    assert log_z(rbm, torch.rand(10), chains=500, betas=500).log_z == pytest.approx(known, abs=0.1)


def test_the_usual_number_of_betas_suits_a_wide_machine_and_few_chains_tell_of_too_few() -> None:
    torch.manual_seed(0)
    rbm = RBM(14, 256)
    torch.nn.init.normal_(rbm.weight, std=0.5)
    true = float((-rbm.free_energy(states(14).float())).double().logsumexp(0).detach())
    usual = yaml.safe_load((Path(__file__).parents[1] / "conf" / "model" / "dbn.yaml").read_text())["betas"]
    found, hasty = log_z(rbm, betas=usual), log_z(rbm, betas=20)
    assert found.log_z == pytest.approx(true, abs=0.3)
    assert found.chains > 30
    assert hasty.chains < 10


def test_log_likelihood_is_that_of_the_enumerated_machine() -> None:
    rbm = machine()
    found = log_likelihood(rbm, states(V), Estimate(exact(rbm), 0, 0, 0))
    assert float(found.exp().sum()) == pytest.approx(1)


def test_measures_hold_the_estimate_of_the_weights_as_they_are() -> None:
    rbm = machine(betas=300).eval()
    v = states(V)
    found = rbm.measures(v)
    torch.testing.assert_close(found["log_likelihood"].double(), (-rbm.free_energy(v) - exact(rbm)).detach(), atol=0.2, rtol=0)
    torch.testing.assert_close(found["free_energy"].double(), rbm.free_energy(v).detach(), atol=1e-5, rtol=1e-5)
    error = (rbm.visible(rbm.hidden(v)) - v).square().mean(1).detach()
    torch.testing.assert_close(found["reconstruction"].double(), error, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        rbm.hidden_bias += 3
    torch.testing.assert_close(rbm.measures(v)["log_likelihood"].double(), (-rbm.free_energy(v) - exact(rbm)).detach(), atol=0.2, rtol=0)
    assert rbm.train().measures(v).keys() == {"reconstruction", "free_energy"}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_every_way_of_changing_the_weights_is_noticed(kind: Callable[..., torch.optim.Optimizer], fused: bool) -> None:
    torch.manual_seed(0)
    rbm = RBM(6, 4, particles=5, betas=50)
    x = torch.rand(8, 6).round()
    optimizer = kind(rbm.parameters(), lr=0.1, fused=fused)
    moves, estimates = [], []
    for epoch in range(3):
        for _ in range(2):  # two micro-batches of one step: the particles move once
            (rbm.train().losses(x, torch.arange(8) + epoch).mean() / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
        moves.append(int(rbm.steps))
        found = rbm.eval().measures(x)["log_likelihood"]
        estimates.append(float(found.mean()))
        torch.testing.assert_close(found, log_likelihood(rbm, x, log_z(rbm, betas=50)).float())
    assert moves == [1, 2, 3]
    assert len(set(estimates)) == 3
