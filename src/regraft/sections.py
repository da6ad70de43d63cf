"""The config's sections that are no groups: how pictures become batches, how long a run trains, how it is measured, what a sweep is."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from regraft.registry import Spec, doc


class DataSpec(Spec):
    """The config section `data`: how pictures become batches."""

    batch_size: int = doc("pictures of a global batch, whatever the number of devices", ge=1)
    size: Annotated[int, Field(ge=1)] | Literal["auto"] = doc("side of the square pictures that the net sees, px; auto: the dataset's own")
    fit: Literal["crop", "squash", "pad"] = doc("how a picture becomes square: crop its middle, squash it, pad it with white")
    crop: float = doc("with fit=crop: the part of the shorter side that is kept, 0..1; 0.875 is 224 px out of 256", gt=0, le=1)


class TrainerSpec(Spec):
    """The config section `trainer`: how long, and which epoch is kept."""

    max_epochs: int = doc("epochs over all phases together; 0: no training, the net is measured as it is", ge=0)
    max_steps: int | None = doc("optimizer steps over all phases together, in place of max_epochs; null: max_epochs decides", ge=1)
    keep: Literal["best", "last"] = doc("which epoch's weights are tested and saved; best: by trainer.monitor")
    monitor: str = doc("what decides which epoch is the best: auto (the task's first metric), val/loss, val/accuracy, ...")
    patience: int | None = doc("a phase ends after so many epochs without a better trainer.monitor; null: never", ge=1)
    clip: float | None = doc("gradients are scaled down to this norm (Pascanu et al. 2013); null: never", gt=0)
    ema: float | None = doc("decay of an average of the weights, which is what is measured and kept; null: none", gt=0, lt=1)
    checkpoint_seconds: float = doc("least seconds between two checkpoints; 0: one after each epoch", ge=0, decides=False)

    @property
    def trains(self) -> bool:
        """Whether there is any training."""
        return self.max_steps is not None or self.max_epochs > 0

    def epochs(self, steps: int) -> int:
        """Epochs over all phases, the last of them perhaps a shorter one; `steps`: optimizer steps of a whole epoch."""
        return self.max_epochs if self.max_steps is None else -(-self.max_steps // steps)


class EvaluateSpec(Spec):
    """The config section `evaluate`: how whole splits are measured at the end, and pictures predicted."""

    views: bool = doc("whether an answer is the mean over the augmentation's views (finite, or pre-drawn) of a picture")


class SweepSpec(Spec):
    """The config section `sweep`: many runs of one command."""

    name: str = doc("the sweep's name, and its folder under multirun/", decides=False)
    on_error: Literal["continue", "stop"] = doc("what happens to the runs that are left when one fails", decides=False)
    retry: bool = doc("whether runs of the sweep that have failed before are tried again", decides=False)
    stack: bool = doc("whether runs that differ in their heads' numbers alone are trained as one batch of heads", decides=False)
    skip_invalid: bool = doc("whether points of a grid that can't be are left out and told, instead of refused", decides=False)
