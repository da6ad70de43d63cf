"""The range test: where the loss falls fastest, in proportion to the groups' own rates, and nothing is left changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

from regraft.lr_finder import Found, draw, find, steepest


class Module(pl.LightningModule):
    """A line through noise, its weights and biases at rates of their own, under a schedule that would make all rates 0."""

    def __init__(self, rates: tuple[float, float] = (0.1, 0.1)) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
        self.measure = MeanMetric()
        self.rates = rates
        self.seen: list[list[float]] = []

    def training_step(self, batch: list[Tensor], number: int) -> Tensor:
        self.seen.append([group["lr"] for group in self.trainer.optimizers[0].param_groups])
        torch.rand(1)
        loss = (self.net(batch[0]) - batch[1]).square().mean()
        self.measure.update(loss.detach())
        return loss

    def configure_optimizers(self) -> Any:
        groups = [{"params": [self.net[1].weight], "lr": self.rates[0]}, {"params": [self.net[1].bias], "lr": self.rates[1]}]
        optimizer = torch.optim.SGD(groups, lr=1.0)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def loader(rows: int = 64) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 3, generator=generator)
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True) * 3), 8)


def test_the_rates_grow_in_proportion_and_the_loss_falls_where_it_is_said_to() -> None:
    module = Module((0.1, 0.01))
    found = find(module, loader(), base=0.1, first=1e-5, last=10, steps=60)
    expected = np.geomspace(1e-5, 10, 60)[: len(found.lrs)]
    np.testing.assert_allclose(found.lrs, expected, rtol=1e-9)
    np.testing.assert_allclose(module.seen, np.stack([expected, expected / 10], 1), rtol=1e-9)
    assert found.suggestion is not None
    assert 1e-3 < found.suggestion < 1, "SGD on a quadratic diverges at 2 / curvature, which is about 1"


def test_the_losses_are_the_steps_own_and_an_explosion_ends_the_test() -> None:
    found = find(Module(), loader(), base=0.1, first=1e-5, last=1e4, steps=60)
    assert len(found.losses) < 60
    assert found.losses[-1] > 4 * min(found.losses)
    first = (Module().net(next(iter(loader()))[0]) - next(iter(loader()))[1]).square().mean().item()
    assert found.losses[0] == pytest.approx(first, rel=1e-5)


def test_a_loss_that_is_no_number_ends_the_test() -> None:
    class Broken(Module):
        def training_step(self, batch: list[Tensor], number: int) -> Tensor:
            return super().training_step(batch, number) * (float("nan") if self.global_step == 5 else 1)

    assert len(find(Broken(), loader(), base=0.1, steps=20).losses) == 5


def test_everything_is_put_back() -> None:
    module, stream = Module(), torch.get_rng_state()
    module.net[1].weight.requires_grad_(True).grad = torch.ones(1, 3)
    module.net[0].eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    find(module, loader(), base=0.1, steps=20)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), stream)
    assert torch.equal(module.net[1].weight.grad, torch.ones(1, 3))
    assert (module.net[0].training, module.training) == (False, True)
    assert module.measure.update_count == 0
    assert find(module, loader(), base=0.1, steps=20) == find(module, loader(), base=0.1, steps=20)


def test_micro_batches_make_no_difference() -> None:
    """A step of two micro-batches has the mean of both; batches are gone through again where they are fewer than the steps."""
    module = Module()
    module.net[0] = nn.Identity()
    halves = find(module, loader(), base=0.1, steps=30, trainer={"accumulate_grad_batches": 2})
    x, y = loader().dataset.tensors  # type: ignore[attr-defined]
    whole = find(module, DataLoader(TensorDataset(x, y), 16), base=0.1, steps=30)
    assert len(halves.lrs) == len(whole.lrs) == 30
    np.testing.assert_allclose(halves.losses, whole.losses, rtol=1e-4)


def test_the_steepest_descent() -> None:
    lrs = np.geomspace(1e-6, 1, 61)
    losses = 1 - 1 / (1 + np.exp(-4 * (np.log10(lrs) + 2)))  # a slope whose middle is at 1e-2
    assert steepest(lrs.tolist(), losses.tolist()) == pytest.approx(1e-2)
    assert steepest(lrs.tolist(), np.linspace(1, 2, 61).tolist()) is None, "it only grows"
    assert steepest(lrs[:4].tolist(), [4, 3, 2, 1]) is None, "too few to tell"
    noise = np.random.default_rng(0).normal(0, 0.1, 61)
    assert 2e-3 < (steepest(lrs.tolist(), (losses + noise).tolist()) or 0) < 5e-2, "batches differ"


@pytest.mark.parametrize("suggestion", [0.01, None])
def test_the_picture(suggestion: float | None, tmp_path: Path) -> None:
    draw(Found([1e-3, 1e-2, 1e-1], [3.0, 2.0, 4.0], suggestion), tmp_path / "lr.png")
    with Image.open(tmp_path / "lr.png") as picture:
        assert picture.size == (720, 480)
        reds = sum(1 for r, g, b, *_ in picture.getdata() if r > 180 and g < 80 and b < 80)
    assert (reds > 100) == (suggestion is not None)
    assert [path.name for path in tmp_path.iterdir()] == ["lr.png"]
