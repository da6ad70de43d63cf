"""A multilayer perceptron: one or two hidden layers with ReLU on the flattened picture."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from regraft.chain import Backbone
from regraft.streams import Dropout

CHANNELS = 3


def build(depth: int, width: int, dropout: float, size: int) -> Backbone:
    """[b, 3, size, size] -> [b, width], with random weights."""
    inputs = [CHANNELS * size * size, width]
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        (f"layer{i + 1}", nn.Sequential(nn.Flatten(), nn.Linear(inputs[i], width), nn.ReLU(), Dropout(dropout))) for i in range(depth)
    )
    stages = {layer: (layer,) for layer in layers}
    return Backbone(nn.Sequential(layers), stages, "", mean=(0.5,) * CHANNELS, std=(0.5,) * CHANNELS, channels=CHANNELS, least=1)
