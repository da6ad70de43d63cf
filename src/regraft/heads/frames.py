"""The head that answers each step of a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from regraft.errors import Problem, UserError
from regraft.heads.spec import Trained

if TYPE_CHECKING:
    from torch import nn


class Frames(Trained):
    """One linear layer on each step: yes or no for each output, by the log-likelihood of a step."""

    learns: ClassVar[bool] = True
    brings: ClassVar = {"loss": "own"}
    kinds = ("frames",)

    def build_for(self, shape: tuple[int, ...], classes: Sequence[str]) -> nn.Module:
        from regraft.models.recurrent import FrameHead

        if len(shape) != 2:
            raise UserError(
                Problem("head", self.name, f"it answers each step, and this net gives {list(shape)}; model.pool=none would work")
            )
        return FrameHead(shape[-1], len(classes), self.dropout)
