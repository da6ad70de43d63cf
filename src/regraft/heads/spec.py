"""What every head is to the config: what it is built for, which truth it can learn, and how. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from regraft.errors import Problem, UserError
from regraft.registry import Named, doc

if TYPE_CHECKING:
    from torch import nn


class HeadSpec(Named):
    """Common to all heads."""

    pretrained: ClassVar[bool] = (
        False  # whether it wants the classifier that the net's weights came with: what `build` gives has `take(weight, bias)`
    )
    fits: ClassVar[bool] = False  # whether it is solved in closed form, or by a solver of its own (`fitting.fit`), with no epochs
    stacks: ClassVar[bool] = False  # whether many of them can be trained as one batch
    learns: ClassVar[bool] = False  # whether its module has a loss of its own (`learning.Learner`)
    brings: ClassVar[Mapping[str, str]] = {}  # what its choice chooses too, unless something else is given
    kinds: ClassVar[tuple[str, ...]] = ("class", "tags", "numbers")  # of truth that it can learn

    def unfit(self, classes: Sequence[str]) -> list[Problem]:
        """What keeps it from telling a dataset's classes apart, found without torch; keys are relative to the spec."""
        return []

    def build(self, features: int, classes: Sequence[str]) -> nn.Module:
        """[b, features] -> [b, classes], in the order of their names; draws from torch's global stream, which the caller seeds."""
        raise NotImplementedError

    def build_for(self, shape: tuple[Any, ...], classes: Sequence[str]) -> nn.Module:
        """The head for what enters it, [b, *shape]; or for several tensors that enter packed as one, of these shapes. Raises UserError
        where it takes features alone, and they are none."""
        if len(shape) != 1:
            remedy = f"it takes features, and this net gives {list(shape)}; give the net a pooling end, or another head"
            raise UserError(Problem("head", self.name, remedy))
        return self.build(shape[0], classes)


class Trained(HeadSpec):
    """Common to the heads that train in epochs."""

    dropout: float = doc("part of the head's inputs dropped while training, 0..1", ge=0, lt=1)


class Keeping(Trained):
    """Common to the heads that can go on from those of an earlier run."""

    kept: bool = doc("true: begins as the head of the earlier run that model.weights names, of the same classes; false: anew", before=False)
