"""Heads: what is grafted on the backbone's features, [b, features] -> [b, classes]."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.registry import Group, Named, doc

if TYPE_CHECKING:
    from torch import nn


class HeadSpec(Named):
    """Common to all heads."""

    dropout: float = doc("part of the head's inputs dropped while training, 0..1", ge=0, lt=1)

    def build(self, features: int, classes: int) -> nn.Module:
        """[b, features] -> [b, classes]; draws from torch's global stream, which the caller seeds."""
        raise NotImplementedError


class Linear(HeadSpec):
    """One linear layer: the linear probe."""

    def build(self, features: int, classes: int) -> nn.Module:
        from torch import nn

        from regraft.streams import Dropout

        return nn.Sequential(Dropout(self.dropout), nn.Linear(features, classes))


class MLPHead(HeadSpec):
    """One hidden layer with ReLU, dropout before each linear layer."""

    width: int = doc("units of the hidden layer", ge=1)

    def build(self, features: int, classes: int) -> nn.Module:
        from torch import nn

        from regraft.streams import Dropout

        return nn.Sequential(
            Dropout(self.dropout), nn.Linear(features, self.width), nn.ReLU(), Dropout(self.dropout), nn.Linear(self.width, classes)
        )


GROUP = Group("head", {"linear": Linear, "mlp": MLPHead}, "regraft.heads", about="what is grafted on the backbone")
