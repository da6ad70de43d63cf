"""Features without weights, one picture at a time: what scikit-image says of gradients, colours and texture, as a chain of one stage.

Shapes: b pictures, s x s px, f features. A picture's row depends on that picture alone, and so on no division into batches.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from skimage.color import rgb2gray, rgb2hsv
from skimage.feature import hog, local_binary_pattern
from torch import Tensor, nn

from regraft.chain import Backbone

if TYPE_CHECKING:
    from regraft.models.handcrafts import Handcrafted

CHANNELS = 3


class Features(nn.Module):
    """[b, 3, s, s] in 0..1 -> [b, f] float32. Nothing in it trains, and no gradient passes through it."""

    def __init__(self, spec: Handcrafted, size: int) -> None:
        super().__init__()
        self.spec = spec
        self.length = len(self._of(np.zeros((size, size, CHANNELS))))

    def forward(self, x: Tensor) -> Tensor:
        if x.is_meta:
            return x.new_empty(len(x), self.length, dtype=torch.float32)
        levels = (x.detach().float().clamp(0, 1) * 255).round()  # a picture's own, so that no tie hangs on a device's rounding
        pictures = levels.cpu().permute(0, 2, 3, 1).double().numpy() / 255  # [b, s, s, 3]
        rows = [self._of(picture) for picture in pictures]
        return torch.from_numpy(np.stack(rows) if rows else np.zeros((0, self.length), np.float32)).to(x.device)

    def _of(self, picture: np.ndarray) -> np.ndarray:
        """[s, s, 3] in 0..1 -> [f] float32"""
        return np.concatenate([FEATURES[name](picture, self.spec) for name in self.spec.features]).astype(np.float32)


def build(spec: Handcrafted, size: int) -> Backbone:
    """[b, 3, size, size] -> [b, f]"""
    module = nn.Sequential(OrderedDict(features=Features(spec, size)))
    none, one = (0.0,) * CHANNELS, (1.0,) * CHANNELS
    return Backbone(module, {"features": ("features",)}, "", mean=none, std=one, channels=CHANNELS, least=spec.least())


def gradients(picture: np.ndarray, spec: Handcrafted) -> np.ndarray:
    """Histograms of oriented gradients (Dalal and Triggs 2005, section 6): of each pixel the channel of the steepest gradient, L2-Hys.

    (s // cell - block + 1)^2 blocks of block^2 cells of `orientations` values.
    """
    return hog(picture, spec.orientations, (spec.cell,) * 2, (spec.block,) * 2, "L2-Hys", channel_axis=-1)


def colours(picture: np.ndarray, spec: Handcrafted) -> np.ndarray:
    """A joint histogram of the three channels for each part of the grid, each of sum 1 (Swain and Ballard 1991, section 2)."""
    values = rgb2hsv(picture) if spec.space == "hsv" else picture
    bins = np.array(spec.bins)
    place = np.minimum((values * bins).astype(int), bins - 1)  # [s, s, 3]; 1.0 is in the last bin
    return _histograms(np.ravel_multi_index(tuple(np.moveaxis(place, -1, 0)), tuple(spec.bins)), int(bins.prod()), spec.grid)


def patterns(picture: np.ndarray, spec: Handcrafted) -> np.ndarray:
    """Uniform local binary patterns, whichever way the picture is turned (Ojala et al. 2002, eq. 9), a histogram for each part of the
    grid: points + 2 values of sum 1. Grey is in 256 levels, as scikit-image wants it: equal neighbours must be equal."""
    grey = np.rint(rgb2gray(picture) * 255).astype(np.uint8)
    return _histograms(local_binary_pattern(grey, spec.points, spec.radius, "uniform").astype(int), spec.points + 2, spec.grid)


def _histograms(values: np.ndarray, bins: int, grid: int) -> np.ndarray:
    """[s, s] of 0..bins - 1 -> [grid * grid * bins]: for each part of the grid, row by row, how often each value stands there, of sum 1"""
    parts = [part for rows in np.array_split(values, grid, 0) for part in np.array_split(rows, grid, 1)]
    return np.concatenate([np.bincount(part.ravel(), minlength=bins) / part.size for part in parts])


FEATURES: dict[str, Callable[[np.ndarray, Handcrafted], np.ndarray]] = {"hog": gradients, "colour": colours, "lbp": patterns}
