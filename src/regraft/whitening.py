"""Whitening: train's own covariance, fitted once from exact sums, turned into a fixed linear map that every split passes through.

Krizhevsky (2009), "Learning multiple layers of features from tiny images", appendix A; Bell and Sejnowski (1997), "The independent
components of natural scenes are edge filters". With C = U diag(v) U^T the covariance of train's pictures and e the regulariser, PCA
whitening is diag(v + e)^-1/2 U^T (x - mean), and ZCA whitening turns that back: U diag(v + e)^-1/2 U^T (x - mean), of all maps that
whiten the one whose pictures stay closest to the originals.

Pixels are whole numbers, and their sums and products are added up as such (in float64, exact up to 2^53): the result does not depend on
the batches that the pictures come in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from regraft.errors import Problem, UserError

Pictures = Callable[[], Iterable[Tensor]]  # gives the same uint8 [b, 3, s, s] each time it is called
MOST = 2**28  # float64 values of the largest table, 2 GB
COLUMNS = 2**24  # float64 values of a block that is worked on at once, 128 MB
LEVELS = 255.0  # a uint8 of 255 is 1.0


class Colours(NamedTuple):
    """The colours of train's pixels, in 0..1."""

    mean: Tensor  # [3] float64
    eigenvalues: Tensor  # [3] float64, of the covariance, the largest first
    eigenvectors: Tensor  # [3, 3] float64, one a row


def colours(pictures: Pictures) -> Colours:
    """The mean and the principal components of RGB over all pixels. Raises UserError where there is no picture."""
    count, total, products = 0, torch.zeros(3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
    for batch in pictures():
        x = batch.transpose(0, 1).reshape(3, -1).double()  # [3, pixels]
        count, total, products = count + x.shape[1], total + x.sum(1), products + x @ x.T
    if not count:
        raise UserError(Problem("dataset", None, "the train split holds no pictures, and the colours are fitted on them"))
    mean = total / count
    values, vectors = _components((products - count * torch.outer(mean, mean)) / max(count - 1, 1) / LEVELS**2)
    return Colours(mean / LEVELS, values, vectors)


class Whitening(nn.Module):
    """A fixed affine map of pictures: [b, 3, h, w] float 0..1 -> the same shape, float32, of mean 0 and (nearly) the identity's covariance.

    Over colours it is a 3 x 3 `matrix` at each pixel. Over pixels the whole picture of d = 3 h w values is turned to the k principal
    directions of `basis`, each scaled by `scale`; ZCA turns it back and scales what lies across the basis by `rest`, PCA lays the k
    values out in the picture's places, the largest variance first, and leaves the other places 0.
    """

    mean: Tensor
    matrix: Tensor | None
    basis: Tensor | None
    scale: Tensor | None
    rest: Tensor | None

    def __init__(
        self,
        mean: Tensor,
        matrix: Tensor | None = None,
        basis: Tensor | None = None,
        scale: Tensor | None = None,
        rest: Tensor | None = None,
    ) -> None:
        """`mean` [3] and `matrix` [3, 3]; or `mean` [d], `basis` [k, d], `scale` [k], and for ZCA `rest` []."""
        super().__init__()
        for name, value in {"mean": mean, "matrix": matrix, "basis": basis, "scale": scale, "rest": rest}.items():
            self.register_buffer(name, None if value is None else value.detach().to(torch.float32, copy=True).contiguous())

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Whitening:
        """The module whose state dict this is."""
        return cls(**state)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # the least variances are the ones that are enlarged most
            x = x.float()
            if self.matrix is not None:
                return torch.einsum("ij,bjhw->bihw", self.matrix, x - self.mean[:, None, None])
            assert self.basis is not None
            assert self.scale is not None
            flat = x.flatten(1) - self.mean  # [b, d]
            parts = flat @ self.basis.T  # [b, k]
            if self.rest is not None:
                return (self.rest * flat + (parts * (self.scale - self.rest)) @ self.basis).view_as(x)
            return nn.functional.pad(parts * self.scale, (0, flat.shape[1] - parts.shape[1])).view_as(x)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={list(value.shape)}" for name, value in self.named_buffers())


def fit(
    pictures: Pictures, kind: Literal["zca", "pca"], over: Literal["colours", "pixels"], epsilon: float, components: int | None
) -> Whitening:
    """Fitted on train's pictures, which are gone through once over colours and twice over pixels.

    `epsilon` is added to each eigenvalue of the covariance of values in 0..1. `components`: how many principal directions are kept over
    pixels; None: all that train's pictures span, at most min(n - 1, d). Directions that are not kept share what variance there is
    across them (Tipping and Bishop 1999): for ZCA those that train does not span are enlarged by epsilon^-1/2, as in the paper.
    Raises UserError where a table would not fit in 2 GB, or where the pictures span fewer directions.
    """
    if over == "colours":
        found = colours(pictures)
        scaled = found.eigenvectors * ((found.eigenvalues + epsilon) ** -0.5)[:, None]  # [3, 3], a component a row
        return Whitening(found.mean, matrix=found.eigenvectors.T @ scaled if kind == "zca" else scaled)
    mean, total, values, basis = _pixels(pictures, components)
    scale = (values + epsilon) ** -0.5
    if kind == "pca":
        return Whitening(mean, basis=basis, scale=scale)
    left = len(mean) - len(values)
    spare = max(total - values.sum().item(), 0.0) / left if left else 0.0
    return Whitening(mean, basis=basis, scale=scale, rest=torch.tensor((spare + epsilon) ** -0.5))


def _pixels(pictures: Pictures, components: int | None) -> tuple[Tensor, float, Tensor, Tensor]:
    """Of whole pictures as rows of d values in 0..1: their mean [d], the trace of their covariance, its k largest eigenvalues
    [k], and their eigenvectors [k, d]; float64, the basis float32."""
    count, size, total = 0, 0, torch.zeros(0, dtype=torch.float64)
    for batch in pictures():
        flat = batch.flatten(1)
        count, size = count + len(flat), batch.shape[-1]
        total = (total if len(total) else torch.zeros(flat.shape[1], dtype=torch.float64)) + flat.sum(0, dtype=torch.int64)
    if count < 2:
        raise UserError(Problem("augmentation.over", "pixels", "at least two train pictures are needed; colours works with one"))
    d, mean = len(total), total / count
    if min(count, d) * d > MOST:
        fits = max(math.isqrt(math.isqrt(MOST) // 3), math.isqrt(MOST // (3 * count)))
        remedy = f"a covariance over the pixels of {count:,} pictures would take {min(count, d) * d * 8 / 1e9:.1f} GB; data.size={fits}"
        raise UserError(Problem("data.size", size, f"{remedy} fits, and so does augmentation.over=colours at any size"))
    if components and components > min(count - 1, d):
        raise _too_many(components, min(count - 1, d))
    values, vectors, trace = _by_pictures(pictures, count, mean) if count <= d else _by_pixels(pictures, count, mean)
    rank = int((values > values[0] * max(count, d) * torch.finfo(torch.float64).eps).sum())  # 0 where all pictures are the same
    rank = min(rank, count - 1)
    if components and components > rank:
        raise _too_many(components, rank)
    kept = components or rank
    return mean / LEVELS, trace / LEVELS**2, values[:kept] / LEVELS**2, vectors(kept)


def _too_many(components: int, rank: int) -> UserError:
    remedy = f"the train pictures span {rank} directions; that many or fewer work, and null keeps them all"
    return UserError(Problem("augmentation.components", components, remedy))


Found = tuple[Tensor, Callable[[int], Tensor], float]  # eigenvalues, the first k eigenvectors as float32 [k, d], the trace


def _by_pictures(pictures: Pictures, count: int, mean: Tensor) -> Found:
    """Fewer pictures than values: X X^T has the same eigenvalues as X^T X, and its eigenvectors lead to those (the SVD of X)."""
    x = torch.cat([batch.flatten(1) for batch in pictures()])  # [n, d] uint8
    gram = torch.zeros(count, count, dtype=torch.float64)
    blocks = torch.arange(x.shape[1]).split(max(COLUMNS // count, 1))
    for columns in blocks:
        block = x[:, columns].double()
        gram += block @ block.T
    centre = gram.mean(1)  # the mean picture taken from each, in the products
    gram = gram - centre[:, None] - centre[None] + centre.mean()
    values, vectors = _components(gram)

    def directions(k: int) -> Tensor:
        turn = vectors[:k] / values[:k].sqrt()[:, None]  # [k, n]
        found = torch.cat([(turn @ (x[:, columns].double() - mean[columns])).float() for columns in blocks], 1)
        return found * _signs(found)

    return values / (count - 1), directions, gram.trace().item() / (count - 1)


def _by_pixels(pictures: Pictures, count: int, mean: Tensor) -> Found:
    """More pictures than values: the covariance itself, added up batch by batch."""
    products = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for batch in pictures():
        x = batch.flatten(1).double()
        products.addmm_(x.T, x)
    covariance = (products - count * torch.outer(mean, mean)) / (count - 1)
    values, vectors = _components(covariance)
    return values, lambda k: vectors[:k].float(), covariance.trace().item()


def _components(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, the largest first and none below 0, and eigenvectors, one a row, of float64 [d, d]."""
    values, vectors = torch.linalg.eigh(symmetric)
    rows = vectors.T.flip(0)
    return values.flip(0).clamp(min=0), rows * _signs(rows)


def _signs(rows: Tensor) -> Tensor:
    """[k, 1]: an eigenvector's sign is free; here its largest value is positive, on every machine."""
    return rows.gather(1, rows.abs().argmax(1, keepdim=True)).sign()
