"""EfficientNet-Lite: timm's net, with the padding and the normalisation that the published weights were trained with."""

from __future__ import annotations

import timm
from torch import Tensor

from regraft.chain import Backbone
from regraft.errors import Problem, UserError

# The tf_ nets pad as TensorFlow does (SAME), and their norms add 1e-3; `efficientnet_lite0` would load the same weights and be wrong.
NETS = {0: "tf_efficientnet_lite0", 1: "tf_efficientnet_lite1", 2: "tf_efficientnet_lite2"}


def build(variant: int) -> Backbone:
    """[b, 3, h, w] -> [b, 1280], with random weights."""
    net = timm.create_model(NETS[variant], pretrained=False, num_classes=0)
    return Backbone(net, None, "classifier", mean=(127 / 255,) * 3, std=(128 / 255,) * 3, channels=3, least=1)


def rename(state: dict[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
    """The package's state dict under timm's names: both list the same tensors in the same order, the classifier last.

    A state dict that has timm's names already is given back as it is. Raises UserError for one that has other tensors.
    """
    own = backbone.module.state_dict()
    if own.keys() <= state.keys():
        return state
    names = [*own, f"{backbone.classifier}.weight", f"{backbone.classifier}.bias"]
    if len(state) != len(names) or any(own[name].shape != value.shape for name, value in zip(own, state.values(), strict=False)):
        remedy = f"{len(state)} tensors that are not EfficientNet-Lite's {len(names)} in order; give a file of this net"
        raise UserError(Problem("model.weights", None, remedy))
    return dict(zip(names, state.values(), strict=True))
