"""Reading a line of text: convolutions give columns, LSTM layers read them in both directions, CTC needs no place of any character.

Shapes: b lines of h x w px, c channels, T columns, f features, o characters (0: none, CTC's blank), L places of a text.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import ctc_loss

from regraft.chain import Backbone
from regraft.errors import Problem, UserError
from regraft.models.recurrent import Layer
from regraft.streams import Dropout

if TYPE_CHECKING:
    from regraft.models.crnns import Crnn


def build(spec: Crnn, shape: tuple[int, ...]) -> Backbone:
    """[b, h, w] -> [b, T, 2 units + 1], whose last feature is the mask: all columns are there. Raises UserError for other shapes."""
    if len(shape) != 2 or shape[1] < 2**spec.halvings:
        raise UserError(Problem("model", spec.name, f"it takes lines [h, w] of at least {2**spec.halvings} px, not {list(shape)}"))
    parts: OrderedDict[str, nn.Module] = OrderedDict(line=nn.Unflatten(1, (1, shape[0])))  # [b, 1, h, w]
    channels, height = 1, shape[0]
    for i in range(spec.depth):
        wider = spec.width * min(2**i, 4)
        pool = (2 if height >= 2 else 1, 2 if i < spec.halvings else 1)
        layers = (nn.Conv2d(channels, wider, 3, padding=1, bias=False), nn.BatchNorm2d(wider), nn.ReLU(), nn.MaxPool2d(pool))
        parts[f"conv{i + 1}"] = nn.Sequential(*layers)
        channels, height = wider, height // pool[0]
    parts["columns"] = Columns()
    features = channels * height
    for i in range(spec.layers):
        parts[f"lstm{i + 1}"] = Layer("lstm", features, spec.units, True, spec.dropout)
        features = 2 * spec.units
    stages = {name: (name,) for name in parts if name.startswith(("conv", "lstm"))}
    return Backbone(nn.Sequential(parts), stages, "", mean=(), std=(), channels=0, least=0)


class Columns(nn.Module):
    """A feature map as a sequence from left to right: [b, c, h, w] -> [b, w, c h + 1], the mask of ones as last feature."""

    def forward(self, x: Tensor) -> Tensor:
        columns = x.flatten(1, 2).transpose(1, 2)
        return torch.cat([columns, torch.ones_like(columns[..., :1])], -1)


class CTC(nn.Module):
    """Each column says a character or none; a text is what is left without repetitions and blanks (Graves et al. 2006, section 3).

    [b, T, f + 1] -> the likeliest character of each column, as a text: places in the classes [b, T] float32, 0 behind its end.
    """

    def __init__(self, features: int, characters: int, dropout: float) -> None:
        """`features`: of what enters, the mask among them; `characters`: o"""
        super().__init__()
        self.dropout = Dropout(dropout)
        self.linear = nn.Linear(features - 1, characters)

    def forward(self, x: Tensor) -> Tensor:
        said = self.linear(self.dropout(x[..., :-1])).argmax(-1) * (x[..., -1] > 0)  # [b, T]; a padded step says nothing
        before = torch.cat([torch.zeros_like(said[:, :1]), said[:, :-1]], 1)
        kept = (said != 0) & (said != before)
        place = torch.where(kept, kept.cumsum(1) - 1, said.shape[1])  # what is not kept goes behind the end
        text = said.new_zeros(len(said), said.shape[1] + 1).scatter(1, place, said * kept)
        return text[:, :-1].float()

    def losses(self, x: Tensor, truth: Tensor, seeds: Tensor) -> Tensor:
        """[b, T, f + 1], [b, 1, L], [b] -> [b]: minus the log of the probability that the columns say the text, in nats; 0 for a text that
        has not a column for each character and one more between two equal ones. Nothing is drawn from the seeds."""
        scores = self.linear(self.dropout(x[..., :-1])).float().log_softmax(-1).transpose(0, 1)  # [T, b, o]
        texts = truth[:, 0].long()
        lengths = (x[..., -1] > 0).sum(1)
        return ctc_loss(scores, texts, lengths, (texts > 0).sum(1), blank=0, reduction="none", zero_infinity=True)
