"""AlexNet (Krizhevsky et al. 2012, ImageNet Classification with Deep Convolutional Neural Networks): torchvision's one-column net."""

from __future__ import annotations

from torch import nn
from torchvision import models

from regraft.chain import Backbone
from regraft.streams import Dropout

STAGES = {  # shapes for pictures of 224 px
    "conv1": ("features.0", "features.1", "features.2"),  # [b, 3, 224, 224] -> [b, 64, 27, 27]
    "conv2": ("features.3", "features.4", "features.5"),  # -> [b, 192, 13, 13]
    "conv3": ("features.6", "features.7"),  # -> [b, 384, 13, 13]
    "conv4": ("features.8", "features.9"),  # -> [b, 256, 13, 13]
    "conv5": ("features.10", "features.11", "features.12"),  # -> [b, 256, 6, 6]
    "fc": ("avgpool", "classifier"),  # fc6 and fc7 -> [b, 4096]
}


def build(dropout: float, least: int) -> Backbone:
    """[b, 3, h, w] -> [b, 4096], with random weights. `dropout` comes before fc6 and fc7, as in torchvision."""
    net = models.alexnet(weights=None)
    net.classifier[0], net.classifier[3] = Dropout(dropout), Dropout(dropout)
    net.classifier[6] = nn.Identity()
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return Backbone(net, STAGES, "classifier.6", mean, std, channels=3, least=least)
