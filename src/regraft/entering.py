"""What enters a net: pictures of a size, or a set's sequences, tokens or arrays; the net for it, and samples on which it is watched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regraft.errors import Problem, UserError
from regraft.streams import generator

if TYPE_CHECKING:
    from regraft.chain import Backbone
    from regraft.models.spec import ModelSpec

SAMPLED = 3  # of what is no picture


def net(spec: ModelSpec, size: int, enters: Mapping[str, Any]) -> Backbone:
    """The net with random weights from torch's global stream. `enters`: a set's facts (`Source.facts`). Raises UserError where pictures of
    size x size px are too small for it."""
    if enters["kind"] != "pictures":
        return spec.build_for(enters)
    backbone = spec.build(size)
    if size < backbone.least:
        remedy = f"{spec.name} takes pictures of at least {backbone.least} px; data.size={backbone.least} would work"
        raise UserError(Problem("data.size", size, remedy))
    return backbone


def sample(backbone: Backbone, size: int, enters: Mapping[str, Any]) -> Tensor:
    """What may enter: prepared pictures [2, c, size, size]; or [3, ...] of a set's shape, sequences and tokens of full length."""
    draws = generator("sample")
    if enters["kind"] == "pictures":
        return torch.randn(2, backbone.channels, size, size, generator=draws)
    if enters["kind"] == "tokens":
        return torch.randint(1, enters["tokens"], (SAMPLED, *enters["shape"]), generator=draws)
    x = torch.randn(SAMPLED, *enters["shape"], generator=draws)
    if enters["kind"] == "sequence":
        x[..., -1] = 1  # there is a step
    return x
