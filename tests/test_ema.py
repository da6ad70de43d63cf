"""The average of the weights: what a hand computes, what validation sees, and what a resumed fit goes on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from regraft.ema import EMA, Average


def net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    made[0].requires_grad_(False)
    return made


class Module(pl.LightningModule):
    """Notes the weights that validation sees."""

    def __init__(self) -> None:
        super().__init__()
        self.chain = net()
        self.validated: list[dict[str, Tensor]] = []

    def training_step(self, batch: list[Tensor], number: int) -> Tensor:
        return self.chain(batch[0]).square().mean()

    def validation_step(self, batch: list[Tensor], number: int) -> None:
        assert not self.chain[1].training
        self.validated.append(copied(self.chain))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([parameter for parameter in self.parameters() if parameter.requires_grad], 0.1, momentum=0.9)


class Steps(pl.Callback):
    """Notes the weights after each optimizer step."""

    def __init__(self) -> None:
        self.path: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, *arguments: Any) -> None:
        if trainer.global_step > len(self.path):
            self.path.append(copied(module.chain))


def copied(chain: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in chain.state_dict().items()}


def fit(epochs: int, *callbacks: pl.Callback, accumulate: int = 1, ckpt: Path | None = None) -> tuple[pl.Trainer, Module]:
    module = Module()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        log_every_n_steps=1,
        callbacks=list(callbacks),
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
    )
    data = TensorDataset(torch.randn(24, 3, generator=torch.Generator().manual_seed(1)))
    trainer.fit(module, DataLoader(data, 4), DataLoader(data, 24), ckpt_path=ckpt, weights_only=True)
    return trainer, module


def by_hand(path: list[dict[str, Tensor]], decay: float) -> dict[str, Tensor]:
    """In double precision, from the weights after each step."""
    average = {name: tensor.double() for name, tensor in net().state_dict().items()}
    for n, weights in enumerate(path):
        d = min(decay, (1 + n) / (10 + n))
        average = {name: d * average[name] + (1 - d) * weights[name].double() for name in average}
    return average


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_average_is_what_a_hand_computes_and_what_validation_sees(accumulate: int) -> None:
    ema, path = EMA(0.6), Steps()
    _, module = fit(5, ema, path, accumulate=accumulate)
    assert ema.average is not None
    assert ema.average.updates == len(path.path) == 5 * 6 // accumulate
    found, expected = ema.average.state(), by_hand(path.path, 0.6)
    assert set(found) == {"1.weight", "1.bias", "1.running_mean", "1.running_var", "2.weight", "2.bias"}, "what trains or changes"
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-6, atol=1e-7)
        assert not torch.equal(tensor, module.chain.state_dict()[name])
    for epoch, seen in enumerate(module.validated):
        expected = by_hand(path.path[: (epoch + 1) * 6 // accumulate], 0.6)
        for name in found:
            torch.testing.assert_close(seen[name].double(), expected[name], rtol=1e-6, atol=1e-7)


def test_training_goes_its_own_way() -> None:
    _, plain = fit(4)
    _, averaged = fit(4, EMA(0.9))
    assert all(torch.equal(tensor, averaged.chain.state_dict()[name]) for name, tensor in plain.chain.state_dict().items())


def test_a_resumed_fit_is_the_uninterrupted_one(tmp_path: Path) -> None:
    whole = EMA(0.9)
    _, module = fit(5, whole)
    trainer, _ = fit(2, EMA(0.9))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    resumed = EMA(0.9)
    _, again = fit(5, resumed, ckpt=tmp_path / "last.ckpt")
    assert whole.average is not None
    assert resumed.average is not None
    assert resumed.average.updates == whole.average.updates == 30
    expected = whole.average.state()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.average.state().items())
    assert all(torch.equal(tensor, again.chain.state_dict()[name]) for name, tensor in module.chain.state_dict().items())
    assert all(torch.equal(tensor, again.validated[-1][name]) for name, tensor in module.validated[-1].items())


def test_the_warm_up_forgets_where_it_began() -> None:
    """After n steps of constant weights 1 from 0, 1 - avg is the product of the d: 1/10 2/11 3/12 ..., then decay each."""
    chain = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        chain.weight.fill_(0)
        average = Average(chain, 0.25)
        chain.weight.fill_(1)
    left = 1.0
    for d in (1 / 10, 2 / 11, 3 / 12, 0.25, 0.25):
        average.update()
        left *= d
        assert average.state()["weight"].item() == pytest.approx(1 - left, abs=1e-6)


@given(values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=8), decay=st.floats(0, 0.9999), steps=st.integers(1, 20))
def test_what_does_not_change_is_its_own_average(values: list[float], decay: float, steps: int) -> None:
    chain = nn.Linear(1, 1, bias=False)
    chain.weight.data = torch.tensor([values])
    average = Average(chain, decay)
    for _ in range(steps):
        average.update()
    assert average.state()["weight"].tolist() == [values]


def test_swapping_is_undone_even_after_an_error() -> None:
    chain = net()
    average = Average(chain, 0.5)
    with torch.no_grad():
        chain[2].weight.add_(1)
    average.update()
    before, averaged = copied(chain), average.state()
    with average.swapped():
        assert all(torch.equal(chain.state_dict()[name], tensor) for name, tensor in averaged.items())
        assert all(torch.equal(average.state()[name], tensor) for name, tensor in averaged.items()), "the average, wherever it is kept"
    assert all(torch.equal(chain.state_dict()[name], tensor) for name, tensor in before.items())
    with pytest.raises(ZeroDivisionError), average.swapped():
        1 / 0  # noqa: B018
    assert all(torch.equal(chain.state_dict()[name], tensor) for name, tensor in before.items())
    assert all(torch.equal(average.state()[name], tensor) for name, tensor in averaged.items())


def test_an_error_in_validation_leaves_what_trains_in_the_net() -> None:
    class Failing(Module):
        def validation_step(self, batch: list[Tensor], number: int) -> None:
            raise RuntimeError("on purpose")

    module, path = Failing(), Steps()
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[EMA(0.9), path],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
    )
    data = DataLoader(TensorDataset(torch.randn(8, 3)), 4)
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer.fit(module, data, data)
    assert all(torch.equal(tensor, path.path[-1][name]) for name, tensor in module.chain.state_dict().items())


def test_the_averages_of_another_net_are_refused() -> None:
    state = Average(net(), 0.9).state_dict()
    with pytest.raises(KeyError, match="of other weights"):
        Average(nn.Linear(2, 2), 0.9).load_state_dict(state)
