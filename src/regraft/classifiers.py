"""The classifiers that torch has no layer for: by cosine similarity, and a published one whose classes are folded into few."""

from __future__ import annotations

from collections.abc import Sequence

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
