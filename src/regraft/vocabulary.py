"""Words as whole numbers: which are known is counted on train alone, and what is measured keeps the words that are not.

A table of words begins with `SPECIAL`, then come the known words. Those that only references hold stand behind `OUTSIDE`: metrics compare
what was said with every word of a reference, while a decoder sees `UNKNOWN` in its place.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

PAD, BEGIN, END, UNKNOWN = range(4)
SPECIAL = ("", "<begin>", "<end>", "<unknown>")
OUTSIDE = "<outside>"  # before the words that are too rare on train, or not in it
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")  # letters and digits of any script; an apostrophe inside of a word belongs to it


def words(text: str) -> list[str]:
    """Lower-cased words without punctuation.

    As the COCO caption toolkit has them, but for what its tokeniser splits ("don't" -> do n't) and joins (a hyphen or an underscore stays
    inside of a word there, and parts two here).
    """
    return [word.replace("’", "'") for word in WORD.findall(unicodedata.normalize("NFKC", text).lower())]


def table(train: Iterable[Sequence[str]], every: Iterable[Sequence[str]], floor: int) -> list[str]:
    """`SPECIAL`, the words that train's texts hold at least `floor` times (frequent ones first), and the others behind `OUTSIDE`."""
    counts = Counter(word for text in train for word in text)
    known = [word for word, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if count >= floor]
    outside = sorted({word for text in every for word in text} - set(known))
    return [*SPECIAL, *known, *([OUTSIDE, *outside] if outside else [])]


def known(names: Sequence[str]) -> int:
    """How many of a table's entries a decoder knows: those before `OUTSIDE`."""
    return names.index(OUTSIDE) if OUTSIDE in names else len(names)


def encoded(references: Sequence[Sequence[Sequence[str]]], names: Sequence[str]) -> np.ndarray:
    """n samples with up to R texts of up to L words -> int64 [n, R, L], 0 behind the end of a text and for texts that are not there."""
    import numpy as np

    place = {name: number for number, name in enumerate(names)}
    most = max((len(texts) for texts in references), default=1)
    longest = max((len(text) for texts in references for text in texts), default=1)
    found = np.zeros((len(references), max(most, 1), max(longest, 1)), np.int64)
    for sample, texts in enumerate(references):
        for row, text in enumerate(texts):
            found[sample, row, : len(text)] = [place[word] for word in text]
    return found


def decoded(ids: Iterable[int | float], names: Sequence[str]) -> str:
    """The words of a row of numbers, `PAD` left out."""
    return " ".join(names[int(number)] for number in ids if number)
