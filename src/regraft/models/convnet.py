"""A plain ConvNet of any depth: 3 x 3 convolutions with ReLU, pools spread evenly among them, and one hidden layer."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from regraft.chain import Backbone
from regraft.streams import Dropout

CHANNELS = 3
SMALLEST = 4  # px: no pool makes a picture smaller than this
WIDEST = 8  # the most channels, in multiples of the first convolution's


def build(depth: int, width: int, batchnorm: bool, dropout: float, fc: int, size: int) -> Backbone:
    """[b, 3, size, size] -> [b, fc], with random weights; each convolution is a stage with what follows it."""
    most = max(0, (size // SMALLEST).bit_length() - 1)  # how often size can be halved
    pools = min(depth, most)
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    inputs, channels, side = CHANNELS, width, size
    for i in range(depth):
        layers: list[nn.Module] = [nn.Conv2d(inputs, channels, kernel_size=3, padding=1, bias=not batchnorm)]
        layers += [nn.BatchNorm2d(channels)] if batchnorm else []
        layers += [nn.ReLU()]
        inputs = channels
        if (i + 1) * pools // depth > i * pools // depth:  # the last of its share of convolutions
            layers += [nn.MaxPool2d(2), Dropout(dropout)]
            side, channels = side // 2, min(channels * 2, width * WIDEST)
        stages[f"conv{i + 1}"] = nn.Sequential(*layers)
    stages["fc"] = nn.Sequential(nn.Flatten(), nn.Linear(inputs * side * side, fc), nn.ReLU())
    half = (0.5,) * CHANNELS
    return Backbone(nn.Sequential(stages), {stage: (stage,) for stage in stages}, "", half, half, channels=CHANNELS, least=1)
