"""GoogLeNet (Szegedy et al. 2015, Going Deeper with Convolutions): torchvision's net, and its two auxiliary classifiers."""

from __future__ import annotations

from functools import partial

from torch import nn
from torchvision import models
from torchvision.models.googlenet import InceptionAux

from regraft.chain import Auxiliary, Backbone
from regraft.streams import Dropout

STAGES = {  # table 1
    "stem": ("conv1", "maxpool1", "conv2", "conv3", "maxpool2"),  # [b, 3, h, w] -> [b, 192, h/8, w/8]
    "inception3": ("inception3a", "inception3b", "maxpool3"),  # -> [b, 480, h/16, w/16]
    "inception4": ("inception4a", "inception4b", "inception4c", "inception4d", "inception4e", "maxpool4"),  # -> [b, 832, h/32, w/32]
    "inception5": ("inception5a", "inception5b", "avgpool", "dropout", "fc"),  # -> [b, 1024]
}
AUXILIARY = {"aux1": ("inception4a", 512), "aux2": ("inception4d", 528)}  # what each listens to, and the channels of that
WEIGHT = 0.3  # of each auxiliary loss (section 5)
DROPPED = 0.7  # inside an auxiliary classifier (section 5)


def build(auxiliary: bool, least: int) -> Backbone:
    """[b, 3, h, w] -> [b, 1024], with random weights.

    torchvision's dropout before the classifier gives way to the head's own. Its published weights want pictures whose channels have mean
    and deviation .5: it takes ImageNet's and converts them (transform_input), here they come so.
    """
    net = models.googlenet(weights=None, aux_logits=False, init_weights=True)
    net.dropout, net.fc = nn.Identity(), nn.Identity()  # type: ignore[assignment]
    classifiers = tuple(Auxiliary(name, after, WEIGHT, partial(_classifier, channels)) for name, (after, channels) in AUXILIARY.items())
    half = (0.5, 0.5, 0.5)
    return Backbone(net, STAGES, "fc", half, half, channels=3, least=least, auxiliary=classifiers if auxiliary else ())


def _classifier(channels: int, classes: int) -> nn.Module:
    """[b, channels, h, w] -> [b, classes]"""
    classifier = InceptionAux(channels, classes)
    classifier.dropout = Dropout(DROPPED)  # type: ignore[assignment]
    return classifier
