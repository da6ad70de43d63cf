"""What every way of solving a head shares: what it is given, how a choice is made on val or on folds of train, how scores are calibrated.

Shapes: n pictures, b of a batch, f features, o outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, one_hot

from regraft.classifiers import solved
from regraft.errors import Problem, UserError
from regraft.heads import Crossed, HeadSpec
from regraft.streams import generator

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]  # a fresh pass in a fixed order: x [b, f] float32, y [b] int64 or [b, o] float
Key = tuple[Any, ...]  # what decides an answer; first the number that a list holds of it

NEVER = -20.0  # how far below the mean of all logits that of a class without pictures lies, and a tag's that no picture has


class Fitted(NamedTuple):
    """A solved head."""

    module: nn.Module  # [b, f] -> logits [b, o], in eval mode; specs that come to the same answer share it
    facts: dict[str, Any]  # what was found, as plain data for the record; with a choice: `tried`, the monitored value on val of each


class Given(NamedTuple):
    """What every way of solving is given."""

    train: Batches
    val: Batches | None
    features: int
    outputs: int
    kind: str  # of truth: class, tags or numbers
    judge: Callable[[Tensor, Tensor], float]  # the monitored metric on val: logits [n, o], truth [n] or [n, o]
    lower: bool  # of that metric less is better
    say: Callable[[str], None]
    groups: Tensor | None  # [pictures] int64: those of one number never part in folds; None: each stands alone
    seeds: Sequence[int]  # the seed of each spec's run
    marks: Iterator[float] | None = None  # each candidate's value in turn, where folds of train have told it


class Candidate(NamedTuple):
    """One answer, for the specs that asked for it."""

    key: Key
    module: nn.Module
    facts: dict[str, Any]
    answers: Callable[[], Tensor]  # its logits on val [n, o]


Way = Callable[[Sequence[Any], Given], list[Fitted]]


def crossed(way: Way, spec: Crossed, given: Given) -> Fitted:
    """As `way`, but what is to be chosen is chosen by cross-validation on train: the best of the means over the folds that were left out,
    each time solved on the others (Stone 1974). Candidates of one place in the list are the same candidate: a penalty of `auto` follows
    the number of pictures. All of train is held in memory."""
    x, y = whole(given.train)
    fold = dealt(y, given.groups, spec.folds or 0)
    told: list[list[float]] = []
    for number in range(int(fold.max()) + 1 if int(fold.max()) else 0):  # one picture alone leaves nothing to be left out
        out = fold == number
        [found] = way([spec], given._replace(train=_of(x[~out], y[~out]), val=_of(x[out], y[out])))
        told.append([math.nan if each["val"] is None else each["val"] for each in found.facts["tried"]])
    marks = torch.tensor(told, dtype=torch.float64).nanmean(0).tolist() if told else repeat(0.0)
    [found] = way([spec], given._replace(marks=iter(marks)))
    return Fitted(found.module, found.facts | {"folds": len(told)})


def dealt(truth: Tensor, groups: Tensor | None, folds: int) -> Tensor:
    """Which fold each row is in, [n] int64 of 0..folds - 1: the same for all seeds; the classes of [n] int64 are shared out evenly.

    `groups`: [pictures], of which each stands in n / pictures rows, one after the other; a picture's views never part either.
    """
    own = torch.arange(len(truth)) if groups is None else groups.repeat_interleave(len(truth) // len(groups))
    names, row = own.unique(return_inverse=True)  # row: [n]
    order = torch.randperm(len(names), generator=generator("folds"))
    if not truth.is_floating_point():
        label = torch.zeros(len(names), dtype=torch.int64).scatter_reduce(0, row, truth, "amax", include_self=False)
        order = order[label[order].argsort(stable=True)]
    fold = torch.empty_like(order)
    fold[order] = torch.arange(len(names)) % folds
    return fold[row]


def whole(batches: Batches) -> tuple[Tensor, Tensor]:
    """All of a split at once: x [n, f], y [n] or [n, o]"""
    x, y = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    return x, y


def _of(x: Tensor, y: Tensor) -> Batches:
    return lambda: [(x, y)]


def best(key: str, specs: Sequence[HeadSpec], wanted: Sequence[Sequence[Key]], made: Iterable[Candidate], given: Given) -> list[Fitted]:
    """For each spec the best of those that it wanted. Raises UserError where there is no val to choose on; `key`: what is chosen."""
    undecided = next((spec for spec, keys in zip(specs, wanted, strict=True) if len(keys) > 1), None)
    if undecided and given.val is None and given.marks is None:
        remedy = "which is best is found on val, and there are no val pictures; one number, or data with a val split, would work"
        raise UserError(Problem(f"head.{key}", getattr(undecided, key), remedy))
    truth = torch.cat([y for _, y in given.val()]) if given.val and undecided else torch.empty(0)
    where = "val" if given.marks is None else "folds"

    def value_of(candidate: Candidate) -> float:
        return next(given.marks) if given.marks is not None else given.judge(candidate.answers(), truth)

    best: list[tuple[float, Candidate] | None] = [None] * len(specs)
    tried: list[list[dict[str, float | None]]] = [[] for _ in specs]
    for candidate in made:
        users = [i for i, keys in enumerate(wanted) if candidate.key in keys]
        value = value_of(candidate) if any(len(wanted[i]) > 1 for i in users) else math.nan
        for i in users:
            before = best[i]
            if before is None or math.isnan(before[0]) or (value < before[0] if given.lower else value > before[0]):
                best[i] = (value, candidate)
            tried[i].append({key: candidate.key[0], where: value if math.isfinite(value) else None})
    chosen = (found[1] for found in best if found)
    told = ({"tried": each} if len(each) > 1 else {} for each in tried)
    return [Fitted(candidate.module, candidate.facts | more) for candidate, more in zip(chosen, told, strict=True)]


def factor(module: nn.Module, given: Given, live: Tensor | None = None) -> float:
    """By what the scores on val must be multiplied for the least cross-entropy (Guo et al. 2017, section 4.2); `live`: [o] classes that
    have train pictures. One picture's part of the truth is shared out evenly, or scores without a mistake would be multiplied without end.
    1 for numbers, and where there is nothing to find it on."""
    if given.val is None or given.kind == "numbers":
        return 1.0
    logits, truth = answers(module, given).double(), torch.cat([y for _, y in given.val()])
    if live is not None:
        logits, truth = logits[live[truth]][:, live], (live.cumsum(0) - 1)[truth[live[truth]]]
    spread = float(logits.std()) if logits.numel() > 1 else 0.0
    if spread == 0:
        return 1.0
    loss, even = (cross_entropy, 1 / logits.shape[1]) if given.kind == "class" else (binary_cross_entropy_with_logits, 0.5)
    truth = one_hot(truth, logits.shape[1]) if given.kind == "class" else truth
    soft = (len(truth) * truth.double() + even) / (len(truth) + 1)  # [n, o]
    found = minimize_scalar(lambda x: float(loss(math.exp(x) / spread * logits, soft)), bounds=(-5, 7), method="bounded")
    return math.exp(found.x) / spread


def linear(weight: Tensor, bias: Tensor, direction: bool = False) -> nn.Module:
    """[o, f], [o] -> the layer, on features of length 1 with `direction`."""
    module = solved(weight.shape[1], weight.shape[0], direction).eval().requires_grad_(False)
    for own, value in zip(module.parameters(), (weight, bias), strict=True):
        own.copy_(value)
    return module


def silence(weight: Tensor, bias: Tensor, live: Tensor) -> None:
    """In place: the logit of a class without pictures lies below the mean of the others', so that it never wins; `live`: [o] has some."""
    weight[~live], bias[~live] = weight[live].mean(0), bias[live].mean() + NEVER


def answers(module: nn.Module, given: Given) -> Tensor:
    """Its logits on val [n, o]"""
    assert given.val is not None, "asked for only where there is val"
    return torch.cat([module(x) for x, _ in given.val()])


def counts(y: Tensor, given: Given) -> Tensor:
    """[b] or [b, o] -> how many pictures each class or tag has: [o] float64"""
    return y.bincount(minlength=given.outputs).double() if given.kind == "class" else y.double().sum(0)


def penalties(asked: float | list[float] | str, grid: Sequence[float], unit: float) -> list[float]:
    """The strongest first."""
    several = [unit * each for each in grid] if isinstance(asked, str) else asked if isinstance(asked, list) else [asked]
    return sorted(several, reverse=True)


def ordered(wanted: Sequence[Sequence[Key]]) -> list[Key]:
    """What all specs want, each once, the smoothest (the largest number) first."""
    return sorted(dict.fromkeys(key for keys in wanted for key in keys), key=lambda key: -key[0])
