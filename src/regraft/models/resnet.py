"""Residual networks (He et al. 2016, Deep Residual Learning for Image Recognition, Table 1): torchvision's nets, depth as a table."""

from __future__ import annotations

from torch import nn
from torchvision import models

from regraft.chain import Backbone

NETS = {18: models.resnet18, 34: models.resnet34, 50: models.resnet50, 101: models.resnet101, 152: models.resnet152}
STAGES = {
    "stem": ("conv1", "bn1", "relu", "maxpool"),  # [b, 3, h, w] -> [b, 64, h/4, w/4]
    "layer1": ("layer1",),
    "layer2": ("layer2",),  # halves h and w, as do the next two
    "layer3": ("layer3",),
    "layer4": ("layer4", "avgpool", "fc"),  # -> [b, 512] for 18 and 34, [b, 2048] for the others
}


def build(depth: int) -> Backbone:
    """[b, 3, h, w] -> [b, 512 or 2048], with random weights."""
    net = NETS[depth](weights=None)
    net.fc = nn.Identity()  # type: ignore[assignment]
    return Backbone(net, STAGES, "fc", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), channels=3, least=1)
