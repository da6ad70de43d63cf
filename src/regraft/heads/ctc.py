"""The head that reads: it says a text of any length, and needs no place of any character."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from regraft.errors import Problem, UserError
from regraft.heads.spec import Trained

if TYPE_CHECKING:
    from torch import nn


class Ctc(Trained):
    """One linear layer on each column, and the likelihood of the text over all its alignments (Graves et al. 2006)."""

    learns: ClassVar[bool] = True
    brings: ClassVar = {"loss": "own"}
    kinds = ("text",)

    def build_for(self, shape: tuple[int, ...], classes: Sequence[str]) -> nn.Module:
        """`shape`: [T, f + 1]. Raises UserError for what is no sequence."""
        from regraft.models.crnn import CTC

        if len(shape) != 2:
            raise UserError(Problem("head", self.name, f"it reads columns, and this net gives {list(shape)}; model=crnn would work"))
        return CTC(shape[-1], len(classes), self.dropout)
