"""A random forest as tensors: a finished run holds it as numbers, and no library's objects are read back.

Shapes: b pictures, f features, o outputs, t trees, n nodes of all trees, one tree after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

KINDS = ("class", "tags", "numbers")  # of truth, in the order in which a module's tensors count them
ROOM = 2**24  # values of the largest tensor on the way to an answer


class Trees(nn.Module):
    """The mean over all trees of what stands in the node that a picture comes to (Breiman 2001). [b, f] -> [b, outputs]

    One vote more is shared out evenly, so that no probability is 0, as among neighbours: class: log((t share + 1 / outputs) / (t + 1));
    tags: the logit of (t share + 1 / 2) / (t + 1); numbers: the mean, with nothing added.
    A tree that is walked for `depth` steps alone is the tree that would have stopped growing there.
    """

    root: Tensor
    feature: Tensor
    threshold: Tensor
    branch: Tensor
    value: Tensor
    importance: Tensor
    depth: Tensor
    kind: Tensor

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.register_buffer("root", torch.zeros(0, dtype=torch.int64))  # [t] each tree's first node
        self.register_buffer("feature", torch.zeros(0, dtype=torch.int64))  # [n] which is compared
        self.register_buffer("threshold", torch.zeros(0, dtype=torch.float64))  # [n] a feature that is no larger goes to the first child
        self.register_buffer("branch", torch.zeros(0, 2, dtype=torch.int64))  # [n, 2] both the node itself where it is a leaf
        self.register_buffer("value", torch.zeros(0, outputs))  # [n, outputs] share of each class or tag, or mean of each number
        self.register_buffer("importance", torch.zeros(features))  # [f] part of the impurity's fall that each feature has brought, sum 1
        self.register_buffer("depth", torch.tensor(0))  # steps from a root
        self.register_buffer("kind", torch.tensor(0))  # a place in KINDS

    def means(self, x: Tensor, depth: int | None = None) -> Tensor:
        """[b, f] -> the mean over the trees [b, outputs], after `depth` steps from the roots (None: its own)"""
        steps = int(self.depth) if depth is None else depth
        rows = max(1, ROOM // max(len(self.root) * self.outputs, x.shape[1]))
        with torch.autocast(x.device.type, enabled=False):  # a threshold lies between two float32 numbers
            return torch.cat([self._means(part.float().double(), steps) for part in x.split(rows)])

    def _means(self, x: Tensor, steps: int) -> Tensor:
        at = self.root.expand(len(x), -1)  # [b, t]
        for _ in range(steps):
            right = x.gather(1, self.feature[at]) > self.threshold[at]
            below = self.branch[at, right.long()]
            if not (below > at).any():  # all are in leaves; a child lies behind its parent, so that this ends, whatever a file says
                break
            at = torch.maximum(at, below)
        return self.value[at].mean(1)

    def forward(self, x: Tensor) -> Tensor:
        if not len(self.root):
            return x.new_zeros(len(x), self.outputs)
        mean, t, kind = self.means(x), len(self.root), KINDS[int(self.kind)]
        if kind == "class":
            return ((t * mean + 1 / self.outputs) / (t + 1)).log()
        return mean if kind == "numbers" else ((t * mean + 0.5) / (t + 1)).logit()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *others: Any) -> None:
        """A file's trees come with their own number of nodes."""
        for name in ("root", "feature", "threshold", "branch", "value"):
            own, given = getattr(self, name), state_dict.get(prefix + name)
            if given is not None and given.shape[1:] == own.shape[1:]:
                setattr(self, name, own.new_empty(given.shape))
        super()._load_from_state_dict(state_dict, prefix, *others)
