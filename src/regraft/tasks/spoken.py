"""How near captions are to what people wrote: BLEU, ROUGE-L and CIDEr-D as the COCO caption toolkit defines them, on words as numbers.

Said: [n, L] whole numbers; references: [n, R, L'], both 0 where there is no word. All captions of a split are measured together.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.text import bleu_score
from torchmetrics.utilities.data import dim_zero_cat

Words = tuple[int, ...]
LONGEST = 4  # words of an n-gram
SIGMA = 6.0  # words: how far the length of a caption may be from its reference's (Vedantam et al. 2015, section 7)
BETA = 1.2  # recall's weight beside precision's in ROUGE-L, as in the toolkit


def bleu(said: Sequence[Words], references: Sequence[Sequence[Words]], longest: int) -> float:
    """BLEU of n-grams up to `longest` over the whole corpus, each caption against its closest reference's length (Papineni et al. 2002,
    section 2.3).

    0 where no n-gram of a length is right at all; the toolkit gives less than 1e-4 there.
    """
    spelt = [[" ".join(map(str, each)) for each in sorted(texts, key=len)] for texts in references]  # of two as close the shorter counts
    return float(bleu_score([" ".join(map(str, each)) for each in said], spelt, n_gram=longest))


def rouge_l(said: Words, references: Sequence[Words]) -> float:
    """F of the longest common subsequence (Lin 2004, section 3.1): the best precision and the best recall of all references."""
    if not said or not references:
        return 0.0
    common = [_common(said, each) for each in references]
    precision = max(length / len(said) for length in common)
    recall = max(length / len(each) for length, each in zip(common, references, strict=True))
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision) if precision else 0.0


def cider(said: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """CIDEr-D of each caption, 0..10 (Vedantam, Zitnick and Parikh 2015, equations 1 to 4 and section 7).

    As the toolkit computes it: words are not stemmed, counts are not divided by a caption's length, and how common an n-gram is among
    pictures is counted on the references of the very set that is measured. A caption of fewer than four words has no 4-grams, and can reach
    2.5 for each length of n-grams that it has.
    """
    common = Counter(gram for texts in references for gram in {gram for text in texts for gram in _grams(text)})

    def weighted(text: Words) -> dict[Words, float]:
        """TF-IDF (equation 1)."""
        return {gram: count * math.log(len(references) / max(1, common[gram])) for gram, count in _grams(text).items()}

    def near(ours: dict[Words, float], theirs: dict[Words, float]) -> float:
        """The mean over the lengths of n-grams of the clipped cosine (equations 2 to 4)."""
        total = 0.0
        for length in range(1, LONGEST + 1):
            norms = math.prod(math.sqrt(sum(v * v for gram, v in each.items() if len(gram) == length)) for each in (ours, theirs))
            dot = sum(min(v, theirs[gram]) * theirs[gram] for gram, v in ours.items() if len(gram) == length and gram in theirs)
            total += dot / norms if norms else 0.0
        return total / LONGEST

    scores = []
    for caption, texts in zip(said, references, strict=True):
        ours = weighted(caption)
        each = [math.exp(-((len(caption) - len(text)) ** 2) / (2 * SIGMA**2)) * near(ours, weighted(text)) for text in texts]
        scores.append(10 * sum(each) / max(1, len(texts)))
    return scores


def _grams(text: Words) -> Counter[Words]:
    """How often each run of 1 to 4 words is in a text."""
    return Counter(text[at : at + length] for length in range(1, LONGEST + 1) for at in range(len(text) - length + 1))


def _common(one: Words, other: Words) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(other) + 1)  # of the words of `one` so far and each begin of `other`
    for word in one:
        before = 0
        for at, each in enumerate(other, 1):
            row[at], before = (before + 1 if word == each else max(row[at], row[at - 1])), row[at]
    return row[-1]


class Spoken(Metric):
    """A metric of captions: it keeps what was said and the references until all are there."""

    higher_is_better = True
    full_state_update = False
    said: list[Tensor]
    references: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("said", [], dist_reduce_fx="cat")
        self.add_state("references", [], dist_reduce_fx="cat")

    def update(self, said: Tensor, references: Tensor) -> None:
        """[b, L] and [b, R, L'], of no rows too"""
        self.said.append(said.long())
        self.references.append(references.long())

    def compute(self) -> Tensor:
        """NaN for no captions."""
        if not sum(map(len, self.said)):
            return torch.tensor(math.nan)
        texts = [[text for row in rows if (text := _spoken(row))] for rows in dim_zero_cat(self.references).tolist()]
        return torch.tensor(self.measured([_spoken(row) for row in dim_zero_cat(self.said).tolist()], texts))

    def measured(self, said: list[Words], references: list[list[Words]]) -> float:
        raise NotImplementedError


def _spoken(row: Sequence[int]) -> Words:
    return tuple(number for number in row if number)


class Bleu(Spoken):
    def __init__(self, longest: int) -> None:
        """`longest`: 1 to 4 words of an n-gram"""
        super().__init__()
        self.longest = longest

    def measured(self, said: list[Words], references: list[list[Words]]) -> float:
        return bleu(said, references, self.longest)


class RougeL(Spoken):
    def measured(self, said: list[Words], references: list[list[Words]]) -> float:
        return sum(map(rouge_l, said, references)) / len(said)


class Cider(Spoken):
    def measured(self, said: list[Words], references: list[list[Words]]) -> float:
        return sum(cider(said, references)) / len(said)


def meters() -> dict[str, Any]:
    """A metric for each name of `tasks.caption.Caption.METRICS`."""
    return {"cider": Cider(), **{f"bleu{n}": Bleu(n) for n in range(1, LONGEST + 1)}, "rouge_l": RougeL()}
