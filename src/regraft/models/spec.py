"""What every family of backbones is to the config: how its net is built, and where its published weights are. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from regraft.errors import Problem, UserError
from regraft.registry import Named, doc

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.chain import Backbone
    from regraft.datasets.source import Source


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

    weights: str = doc(
        "imagenet, none, or the path of a weights file or of an earlier run", decides=False, path=True, words=("imagenet", "none")
    )

    packages: ClassVar[tuple[str, ...]] = ()  # beside torch's and timm's, whose versions decide what the net makes of a picture
    alone: ClassVar[bool] = False  # whether its stages can train by losses of their own (`learning.Solitary`)
    takes: ClassVar[tuple[str, ...]] = ("pictures",)  # what enters it: of pictures, sequence, tokens, array
    reported: ClassVar[tuple[float, str] | None] = None  # the family's top-5 error on ImageNet, 0..1, and where that comes from

    def least(self) -> int:
        """The smallest picture side (px) that the net takes, as far as it can be told without torch."""
        return 1

    def too_small(self, size: int) -> Problem | None:
        """Why the net does not take pictures of size x size px, as far as it can be told without torch; None: nothing is against it."""
        remedy = f"{self.name} takes pictures of at least {self.least()} px; data.size={self.least()} would work"
        return Problem("data.size", size, remedy) if size < self.least() else None

    def unfit(self, kind: str) -> list[Problem]:
        """What keeps it from learning truth of this kind; keys are relative to the spec."""
        return []

    def lacks(self, source: Source) -> list[Problem]:
        """What it has too little of for a set's samples; keys are relative to the spec."""
        return []

    def published(self) -> Published | None:
        """What weights=imagenet means here; None: nothing."""
        return None

    def build(self, size: int) -> Backbone:
        """The net for pictures of size x size px, with random weights from torch's global stream."""
        raise NotImplementedError(f"{type(self).__name__} builds nothing")

    def build_for(self, enters: Mapping[str, Any]) -> Backbone:
        """The net for what is no picture: `kind` (of `takes`), `shape` without the batch, how many `tokens`; from torch's global stream."""
        raise NotImplementedError(f"{type(self).__name__} takes pictures")

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
            raise missing(published, f"can't be downloaded ({error})") from error
        if path is None:
            raise missing(published, "is not on this machine")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not digest.startswith(published.sha256 or ""):
            remedy = f"damaged: its sha256 is {digest}, published was {published.sha256}; delete it, then {published.hint}"
            raise UserError(Problem(str(path), None, remedy))
        return torch.load(path, map_location="cpu", weights_only=True)

    def adapt(self, state: dict[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
        """A published state dict under the names of `backbone.module`, without the classifier."""
        return {key: value for key, value in state.items() if not backbone.classifier or not key.startswith(f"{backbone.classifier}.")}

    def inherit(self, state: dict[str, Tensor], backbone: Backbone) -> dict[str, Tensor]:
        """The state dict of an earlier run's backbone under the names of `backbone.module`."""
        return state

    def classifier(self, state: dict[str, Tensor], backbone: Backbone) -> dict[str, Tensor] | None:
        """The classifier in a published state dict: weight [classes, f] and bias [classes]; None where it is not one linear layer."""
        found = {part: state.get(f"{backbone.classifier}.{part}") for part in ("weight", "bias")}
        whole = {part: tensor for part, tensor in found.items() if tensor is not None}
        return whole if len(whole) == 2 and whole["weight"].ndim == 2 else None

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


def missing(published: Published, why: str) -> UserError:
    return UserError(Problem("model.weights", "imagenet", f"{published.identity} {why}; {published.hint}"))
