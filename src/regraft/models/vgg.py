"""VGG (Simonyan and Zisserman 2015, Very Deep Convolutional Networks, table 1): torchvision's nets, depth as a table."""

from __future__ import annotations

from torch import nn
from torchvision import models

from regraft.chain import Backbone
from regraft.streams import Dropout

NETS = {
    (11, False): models.vgg11,
    (13, False): models.vgg13,
    (16, False): models.vgg16,
    (19, False): models.vgg19,
    (11, True): models.vgg11_bn,
    (13, True): models.vgg13_bn,
    (16, True): models.vgg16_bn,
    (19, True): models.vgg19_bn,
}


def build(depth: int, batchnorm: bool, dropout: float, least: int) -> Backbone:
    """[b, 3, h, w] -> [b, 4096], with random weights. `dropout` comes after fc6 and fc7, as in torchvision."""
    net = NETS[depth, batchnorm](weights=None)
    net.classifier[2], net.classifier[5] = Dropout(dropout), Dropout(dropout)
    net.classifier[6] = nn.Identity()
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return Backbone(net, _stages(net.features), "classifier.6", mean, std, channels=3, least=least)


def _stages(features: nn.Sequential) -> dict[str, tuple[str, ...]]:
    """conv1 to conv5, each up to and with the pool that halves h and w; then fc6 and fc7 as one stage."""
    pools = [i for i, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)]
    starts = [0, *(pool + 1 for pool in pools)]
    convs = {
        f"conv{number}": tuple(f"features.{i}" for i in range(start, pool + 1))
        for number, (start, pool) in enumerate(zip(starts, pools, strict=False), 1)
    }
    return {**convs, "fc": ("avgpool", "classifier")}
