"""The classifiers that torch has no layer for: by cosine similarity, a published one folded into few classes, nearest neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize, pad

from regraft.errors import Problem, UserError
from regraft.streams import Dropout


class Cosine(nn.Module):
    """logit = scale * cos(features, the class's weights) (Gidaris and Komodakis 2018, section 3.1). [b, f] -> [b, classes]"""

    scale: Tensor

    def __init__(self, features: int, classes: int, scale: float, learn: bool) -> None:
        """`scale` is where it starts; `learn`: whether it trains."""
        super().__init__()
        self.weight = nn.Linear(features, classes, bias=False).weight
        if learn:
            self.scale = nn.Parameter(torch.tensor(scale))
        else:
            self.register_buffer("scale", torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * linear(normalize(x), normalize(self.weight))


class Folded(nn.Module):
    """A linear classifier that does not train, and whose classes are folded into few. [b, f] -> [b, folds]

    The logit of a fold is the logsumexp of its members' logits: its softmax is the members' share of the probability of all that are
    folded, so that classes in no fold are as if they did not exist. Training saw each class as often, and so a fold of many more often;
    with an equal prior that is divided out (Saerens et al. 2002, eq. 2.4).
    """

    weight: Tensor
    bias: Tensor
    members: Tensor
    prior: Tensor

    def __init__(self, features: int, classes: int, folds: Sequence[Sequence[int]], dropout: float, equal: bool) -> None:
        """`dropout`: part of the features dropped while training, 0..1; `classes`: of the classifier that `take` brings; `folds`: for each
        output, in order, the classes that it is made of; `equal`: all folds are as likely before a picture is seen."""
        super().__init__()
        self.dropout = Dropout(dropout)
        self.register_buffer("weight", torch.zeros(classes, features))
        self.register_buffer("bias", torch.zeros(classes))
        most = max(map(len, folds))
        members = torch.tensor([[*fold, *[classes] * (most - len(fold))] for fold in folds])  # filled up with a class that never is
        self.register_buffer("members", members, persistent=False)  # [folds, most]
        sizes = torch.tensor([float(len(fold)) for fold in folds])
        self.register_buffer("prior", sizes.log() if equal else torch.zeros(len(folds)), persistent=False)  # [folds]

    def take(self, weight: Tensor, bias: Tensor) -> None:
        """The classifier: weight [classes, f], bias [classes]. Raises UserError for another one."""
        if weight.shape != self.weight.shape or bias.shape != self.bias.shape:
            remedy = f"folds the net's own classifier, {list(self.weight.shape)}, and these weights have {list(weight.shape)}"
            raise UserError(Problem("head.name", "narrow", f"{remedy}; weights trained on ImageNet's 1,000 classes would work"))
        self.weight.copy_(weight)
        self.bias.copy_(bias)

    def forward(self, x: Tensor) -> Tensor:
        logits = pad(linear(self.dropout(x), self.weight, self.bias), (0, 1), value=-torch.inf)  # [b, classes + 1]
        return logits[:, self.members].logsumexp(-1) - self.prior  # [b, folds, most] -> [b, folds]


KINDS = ("class", "tags", "numbers")  # of truth, in the order in which a module's tensors count them
ROOM = 2**24  # values of the largest tensor on the way to an answer: 64 MiB in float32


class Direction(nn.Module):
    """Features divided by their length. [b, f] -> [b, f]"""

    def forward(self, x: Tensor) -> Tensor:
        return normalize(x)


def solved(features: int, outputs: int, direction: bool = False) -> nn.Module:
    """A linear layer of zeros, [b, features] -> [b, outputs]; `direction`: on features of length 1."""
    layer = nn.utils.skip_init(nn.Linear, features, outputs)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
    return nn.Sequential(Direction(), layer) if direction else layer


class Neighbours(nn.Module):
    """The k nearest pictures of a bank vote, each by exp(similarity / temperature) (Wu et al. 2018, section 3.4). [b, f] -> [b, outputs]

    The similarity of features x and v is their cosine, or -|x - v|^2 / 2, which is the same but for a constant where both have length 1.
    The weights are scaled to a sum of k, and one vote more is shared out evenly among the classes, so that no probability is 0: class:
    log((votes + 1 / classes) / (k + 1)); tags: the logit of (votes + 1 / 2) / (k + 1); numbers: the weighted mean, with nothing added.
    Memory stays flat in the rows of x and of the bank.
    """

    bank: Tensor
    labels: Tensor
    values: Tensor
    k: Tensor
    kind: Tensor

    def __init__(self, features: int, outputs: int, metric: str, temperature: float | None) -> None:
        """`metric`: cosine or euclidean; `temperature`: None: all votes weigh the same."""
        super().__init__()
        self.outputs, self.cosine, self.temperature = outputs, metric == "cosine", temperature
        self.register_buffer("bank", torch.zeros(0, features))  # [n, f]; of length 1 for the cosine
        self.register_buffer("labels", torch.zeros(0, dtype=torch.int64))  # [n] of class, else [0]
        self.register_buffer("values", torch.zeros(0, outputs))  # [n, outputs] of tags and numbers, else [0, outputs]
        self.register_buffer("k", torch.tensor(1))
        self.register_buffer("kind", torch.tensor(0))  # a place in KINDS

    def take(self, bank: Tensor, truth: Tensor, kind: str) -> None:
        """The pictures that vote: [n, f], which is changed in place for the cosine, and [n] int64 or [n, outputs]"""
        for part in bank.split(_rows(bank.shape[1])) if self.cosine else ():
            part.copy_(normalize(part))
        self.bank = bank
        self.labels, self.values = (truth, self.values) if kind == "class" else (self.labels, truth.float())
        self.kind = torch.tensor(KINDS.index(kind))

    def near(self, x: Tensor, most: int) -> tuple[Tensor, Tensor]:
        """[b, f] -> similarities and rows of the bank, both [b, most], the nearest first; `most`: at most as many as the bank has."""
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 would mix up who is near
            size = _rows(max(x.shape[1], min(len(self.bank), ROOM // 256)))
            found = [self._near(part, most) for part in x.float().split(size)]
        return torch.cat([similarity for similarity, _ in found]), torch.cat([rows for _, rows in found])

    def _near(self, x: Tensor, most: int) -> tuple[Tensor, Tensor]:
        x = normalize(x) if self.cosine else x
        best, where = x.new_empty(len(x), 0), self.labels.new_empty(len(x), 0)
        width = max(1, ROOM // max(len(x), self.bank.shape[1]))
        for first in range(0, len(self.bank), width):
            part = self.bank[first : first + width]
            similarity = x @ part.T if self.cosine else x @ part.T - part.square().sum(1) / 2  # |x|^2 is the same for all
            similarity, rows = similarity.topk(min(most, len(part)))
            best, order = torch.cat([best, similarity], 1).topk(min(most, best.shape[1] + similarity.shape[1]))
            where = torch.cat([where, rows + first], 1).gather(1, order)
        return best, where

    def votes(self, similarity: Tensor, rows: Tensor, k: int) -> Tensor:
        """What `near` gave, of which the first k vote -> logits [b, outputs]"""
        similarity, rows = similarity[:, :k], rows[:, :k]
        k, kind = similarity.shape[1], KINDS[int(self.kind)]
        weights = torch.zeros_like(similarity) if self.temperature is None else similarity / self.temperature
        weights = weights.softmax(1)  # [b, k]
        if kind == "class":
            share = weights.new_zeros(len(rows), self.outputs).scatter_add_(1, self.labels[rows], weights)
            return ((k * share + 1 / self.outputs) / (k + 1)).log()
        parts = zip(weights.split(_rows(k * self.outputs)), rows.split(_rows(k * self.outputs)), strict=True)
        share = torch.cat([torch.einsum("bk,bko->bo", weight, self.values[row]) for weight, row in parts])
        return share if kind == "numbers" else ((k * share + 0.5) / (k + 1)).logit()

    def forward(self, x: Tensor) -> Tensor:
        if not len(self.bank):
            return x.new_zeros(len(x), self.outputs)
        k = min(int(self.k), len(self.bank))
        return self.votes(*self.near(x, k), k)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *others: Any) -> None:
        """A file's bank comes with its own number of rows."""
        for name in ("bank", "labels", "values"):
            own, given = getattr(self, name), state_dict.get(prefix + name)
            if given is not None and given.shape[1:] == own.shape[1:]:
                setattr(self, name, own.new_empty(given.shape))
        super()._load_from_state_dict(state_dict, prefix, *others)


def _rows(width: int) -> int:
    """How many rows of so many values may be worked on at once."""
    return max(1, ROOM // max(width, 1))
