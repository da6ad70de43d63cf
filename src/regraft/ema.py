"""An exponential moving average of the weights: what is validated and kept is the average, what trains goes its own way.

avg <- d avg + (1 - d) w after each optimizer step (Polyak and Juditsky 1992 average the path of SGD; the exponential form and the warm-up
of d are those of TensorFlow's ExponentialMovingAverage: d = min(decay, (1 + n) / (10 + n)) after n steps).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pytorch_lightning.callbacks import Callback
from torch.optim.swa_utils import get_ema_multi_avg_fn

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from torch import Tensor, nn


class Average:
    """The average of a net's parameters that train and of its buffers of floats (BatchNorm's statistics); whole numbers are not averaged.

    What does not change is its own average, bit for bit.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        """Starts from the weights as they are; `decay` 0..1 is what it grows to."""
        self.net, self.decay = net, decay
        self.updates = 0
        self.inside = False  # whether the net holds the average at present, and `_values` what trains
        trains = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
        fixed = {name for name, _ in net.named_parameters()} - trains
        state = net.state_dict()
        self._values = {name: t.clone() for name, t in state.items() if t.is_floating_point() and name not in fixed}

    def update(self) -> None:
        """To be called after each optimizer step."""
        state = self.net.state_dict()
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        if self._values:
            get_ema_multi_avg_fn(decay)(list(self._values.values()), [state[name] for name in self._values], None)  # type: ignore[arg-type]
        self.updates += 1

    def swap(self) -> None:
        """Exchange what the net holds and what is kept beside it, in place."""
        state = self.net.state_dict()
        for name, value in self._values.items():
            held = state[name].clone()
            state[name].copy_(value)
            value.copy_(held)
        self.inside = not self.inside

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The net holds the average inside the block."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def state(self) -> dict[str, Tensor]:
        """Copies of the averages, in memory, by their names in the net."""
        held = self.net.state_dict() if self.inside else self._values
        return {name: held[name].detach().cpu().clone() for name in self._values}

    def state_dict(self) -> dict[str, Any]:
        """All that a checkpoint needs: plain numbers and tensors."""
        return {"updates": self.updates, "values": self.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises KeyError for the averages of another net, or of another part of it."""
        if set(state["values"]) != set(self._values):
            raise KeyError(f"the averages are of other weights: {sorted(set(state['values']) ^ set(self._values))[0]}")
        self.updates = state["updates"]
        for name, value in state["values"].items():
            self._values[name].copy_(value)


class EMA(Callback):
    """Averages the module's `chain` while it is fitted; validation sees the average. `average.state()` is what an epoch keeps."""

    average: Average | None = None  # from the start of a fit

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._loaded: Mapping[str, Any] | None = None
        self._step = 0

    def on_fit_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.average = Average(module.chain, self.decay)
        if self._loaded is not None:
            self.average.load_state_dict(self._loaded)
            self._loaded = None

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.average and trainer.global_step != self._step:  # not after each micro-batch
            self.average.update()
            self._step = trainer.global_step

    def on_validation_start(self, trainer: pl.Trainer, module: Any) -> None:
        if self.average:
            self.average.swap()

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        if self.average and self.average.inside:
            self.average.swap()

    def on_exception(self, trainer: pl.Trainer, module: Any, exception: BaseException) -> None:
        self.on_validation_end(trainer, module)

    def on_save_checkpoint(self, trainer: pl.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        if self.average:
            checkpoint["ema"] = self.average.state_dict()

    def on_load_checkpoint(self, trainer: pl.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        """Raises KeyError for the checkpoint of a run that kept no average."""
        self._loaded = checkpoint["ema"]
