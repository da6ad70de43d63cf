"""Character and word error rates of texts as numbers: torchmetrics' own, which take strings.

A text is a row of places in the classes: 0 is no character, 1 the space.
"""

from __future__ import annotations

from torch import Tensor
from torchmetrics.text import CharErrorRate, WordErrorRate

FIRST = 0x4E00  # of a run of 20,000 code points that are letters, each of one character


def spelt(texts: Tensor) -> list[str]:
    """[n, L] -> strings in which equal numbers are equal characters, and 1 is the space"""
    return ["".join(" " if number == 1 else chr(FIRST + number) for number in row if number > 0) for row in texts.tolist()]


class CharacterErrors(CharErrorRate):
    """Edits of characters, in parts of all characters of the true texts; NaN where there are none."""

    def update(self, said: Tensor, truth: Tensor) -> None:  # type: ignore[override]
        """[b, T], [b, L], of no rows too"""
        super().update(spelt(said), spelt(truth))


class WordErrors(WordErrorRate):
    """Edits of words, in parts of all words of the true texts; NaN where there are none."""

    def update(self, said: Tensor, truth: Tensor) -> None:  # type: ignore[override]
        """[b, T], [b, L], of no rows too"""
        super().update(spelt(said), spelt(truth))
