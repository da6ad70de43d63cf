"""Whitening is what numpy's eigendecomposition says, is fitted on train alone, and is rebuilt bitwise from its state."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regraft import whitening
from regraft.errors import UserError
from regraft.whitening import Whitening, colours, fit

MANY, FEW = 80, 20  # pictures: more, and fewer, than a 4 x 4 picture's 48 values
TINY = 1e-9


def made(count: int, side: int = 4, seed: int = 0) -> Tensor:
    """uint8 [n, 3, s, s] whose values hang together, as in a photograph, and whose red and blue are much alike."""
    draws = torch.Generator().manual_seed(seed)
    light = torch.rand(count, 1, 1, 1, generator=draws) + 0.3 * torch.rand(count, 1, side, 1, generator=draws)
    own = torch.rand(count, 3, side, side, generator=draws) * torch.tensor([0.3, 0.6, 0.1])[:, None, None]
    return ((light + own) / 2 * 255).to(torch.uint8)


def batched(x: Tensor, size: int = 7) -> whitening.Pictures:
    return lambda: iter(x.split(size))


def rows(x: Tensor) -> np.ndarray:
    """[n, d] float64 in 0..1"""
    return x.flatten(1).double().numpy() / 255


def pixels(x: Tensor) -> np.ndarray:
    """[pixels, 3] float64 in 0..1"""
    return x.permute(0, 2, 3, 1).reshape(-1, 3).double().numpy() / 255


def eigen(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the covariance of rows: eigenvalues, the largest first, and eigenvectors in columns."""
    found, vectors = np.linalg.eigh(np.cov(values.T))
    return found[::-1].clip(0), vectors[:, ::-1]


def zca(values: np.ndarray, epsilon: float) -> np.ndarray:
    """The textbook's [d, d] matrix."""
    found, vectors = eigen(values)
    return vectors @ np.diag((found + epsilon) ** -0.5) @ vectors.T


# The colours


def test_colours_are_those_of_all_pixels() -> None:
    x = made(MANY)
    found, (values, vectors) = colours(batched(x)), eigen(pixels(x))
    np.testing.assert_allclose(found.mean, pixels(x).mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.eigenvalues, values, rtol=1e-9)
    np.testing.assert_allclose(np.abs(found.eigenvectors.numpy() @ vectors), np.eye(3), atol=1e-9)
    assert (found.eigenvectors.gather(1, found.eigenvectors.abs().argmax(1, keepdim=True)) > 0).all(), "no sign is left to chance"


def test_there_are_no_colours_without_pictures() -> None:
    with pytest.raises(UserError, match="holds no pictures"):
        colours(lambda: iter(()))


# What whitened pictures are


@pytest.mark.parametrize("kind", ["zca", "pca"])
def test_over_colours_the_whitened_colours_are_uncorrelated_and_of_variance_one(kind: str) -> None:
    x = made(MANY)
    module = fit(batched(x), kind, "colours", TINY, None)
    seen = module(x / 255).permute(0, 2, 3, 1).reshape(-1, 3).numpy()
    np.testing.assert_allclose(seen.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(seen.T), np.eye(3), atol=1e-3)


@pytest.mark.parametrize("kind", ["zca", "pca"])
@pytest.mark.parametrize("count", [MANY, FEW])
def test_over_pixels_the_covariance_is_the_identity_where_train_spans_anything(kind: str, count: int) -> None:
    x = made(count)
    seen = fit(batched(x), kind, "pixels", TINY, None)(x / 255).flatten(1).double().numpy()
    rank = min(count - 1, 48)
    np.testing.assert_allclose(seen.mean(0), 0, atol=2e-3)
    covariance = np.cov(seen.T)
    span = np.eye(48)[:, :rank] if kind == "pca" else eigen(rows(x))[1][:, :rank]
    np.testing.assert_allclose(span.T @ covariance @ span, np.eye(rank), atol=5e-3)
    np.testing.assert_allclose(np.trace(covariance), rank, rtol=5e-3)


@pytest.mark.parametrize("count", [MANY, FEW])
@pytest.mark.parametrize("epsilon", [0.01, 0.1])
def test_zca_over_pixels_is_the_textbooks_matrix_for_pictures_of_any_split(count: int, epsilon: float) -> None:
    train, test = made(count), made(30, seed=1)
    module = fit(batched(train), "zca", "pixels", epsilon, None)
    wanted = (rows(test) - rows(train).mean(0)) @ zca(rows(train), epsilon)
    np.testing.assert_allclose(module(test / 255).flatten(1).numpy(), wanted, atol=2e-4)


def test_zca_over_colours_is_symmetric_and_the_textbooks_matrix() -> None:
    x = made(MANY)
    matrix = fit(batched(x), "zca", "colours", 0.01, None).matrix
    assert matrix is not None
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-6)
    np.testing.assert_allclose(matrix, zca(pixels(x), 0.01), rtol=1e-5)


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_no_other_whitening_stays_as_close_to_the_pictures_as_zca(seed: int) -> None:
    """Every whitening is a rotation of ZCA's."""
    x = made(MANY)
    centred = rows(x) - rows(x).mean(0)
    module = fit(batched(x), "zca", "pixels", TINY, None)
    whitened = module(x / 255).flatten(1).double().numpy()
    turn, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((48, 48)))
    assert np.square(whitened - centred).sum() <= np.square(whitened @ turn - centred).sum()


@pytest.mark.parametrize("count", [MANY, FEW])
def test_pca_lays_the_components_out_by_their_variance(count: int) -> None:
    train, test = made(count), made(30, seed=1)
    k, epsilon = 9, 0.05
    seen = fit(batched(train), "pca", "pixels", epsilon, k)(test / 255).flatten(1).numpy()
    values, vectors = eigen(rows(train))
    wanted = (rows(test) - rows(train).mean(0)) @ vectors[:, :k] / np.sqrt(values[:k] + epsilon)
    np.testing.assert_allclose(np.abs(seen[:, :k]), np.abs(wanted), atol=1e-4)
    assert (seen[:, k:] == 0).all()


def test_directions_that_are_not_kept_share_the_variance_that_is_left() -> None:
    x, epsilon, k = made(MANY), 0.01, 9
    values, vectors = eigen(rows(x))
    spectrum = np.concatenate([values[:k], np.full(48 - k, values[k:].mean())])
    wanted = (rows(x) - rows(x).mean(0)) @ vectors @ np.diag((spectrum + epsilon) ** -0.5) @ vectors.T
    np.testing.assert_allclose(fit(batched(x), "zca", "pixels", epsilon, k)(x / 255).flatten(1).numpy(), wanted, atol=2e-4)


def test_grey_pictures_span_a_third_of_their_values() -> None:
    x = made(MANY)[:, :1].expand(-1, 3, -1, -1)
    module = fit(batched(x), "zca", "pixels", 0.1, None)
    assert module.scale is not None
    assert len(module.scale) == 16
    assert torch.isfinite(module(x / 255)).all()


# Fitted on train, once, and kept


@given(size=st.integers(1, MANY), count=st.sampled_from([FEW, MANY]), over=st.sampled_from(["colours", "pixels"]))
@settings(max_examples=30, deadline=None)
def test_the_batches_that_train_comes_in_change_nothing(size: int, count: int, over: str) -> None:
    x = made(count)
    one, other = fit(batched(x, count), "zca", over, 0.1, None).state_dict(), fit(batched(x, size), "zca", over, 0.1, None).state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_blocks_that_are_worked_on_at_once_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = made(FEW)
    whole = fit(batched(x), "zca", "pixels", 0.1, None)(x / 255)
    monkeypatch.setattr(whitening, "COLUMNS", 5 * FEW)
    torch.testing.assert_close(fit(batched(x), "zca", "pixels", 0.1, None)(x / 255), whole)


@pytest.mark.parametrize("kind", ["zca", "pca"])
@pytest.mark.parametrize("over", ["colours", "pixels"])
def test_it_is_rebuilt_from_its_state_bit_by_bit(kind: str, over: str) -> None:
    module = fit(batched(made(FEW)), kind, over, 0.1, None)
    test = made(5, seed=2) / 255
    again = Whitening.of(module.state_dict())
    assert torch.equal(again(test), module(test))
    assert again.state_dict().keys() == module.state_dict().keys()
    again.load_state_dict(module.state_dict())  # shapes and names are the same
    assert not torch.equal(again(test), test)


def test_a_picture_is_whitened_alike_whatever_stands_beside_it() -> None:
    """The statistics are train's, not the batch's."""
    module, test = fit(batched(made(MANY)), "zca", "pixels", 0.1, None).train(), made(6, seed=3) / 255
    torch.testing.assert_close(module(test)[2:3], module(test[2:3]))


def test_autocast_leaves_it_in_full_precision() -> None:
    module, test = fit(batched(made(MANY)), "zca", "pixels", 0.001, None), made(6, seed=3) / 255
    with torch.autocast("cpu", torch.bfloat16):
        seen = module(test)
    assert seen.dtype == torch.float32
    assert torch.equal(seen, module(test))


# What can't be


def refused(x: Tensor, components: int | None = None) -> str:
    with pytest.raises(UserError) as caught:
        fit(batched(x), "zca", "pixels", 0.1, components)
    return str(caught.value)


def test_more_components_than_train_spans_are_refused() -> None:
    assert "augmentation.components = 20: the train pictures span 19 directions" in refused(made(FEW), 20)
    twice = torch.cat([made(FEW), made(FEW)])
    assert "augmentation.components = 20: the train pictures span 19 directions" in refused(twice, 20)
    assert "augmentation.over = pixels: at least two" in refused(made(1))


def test_what_would_not_fit_in_memory_is_refused_with_a_size_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whitening, "MOST", FEW * 3 * 6 * 6)
    told = refused(made(FEW, side=8))
    assert "data.size = 8" in told
    assert "data.size=6 fits" in told
    assert fit(batched(made(FEW, side=6)), "zca", "pixels", 0.1, None).basis is not None
    assert "data.size=6 fits" in refused(made(FEW, side=7)), "and nothing larger does"


def test_pictures_that_are_all_the_same_become_zero() -> None:
    x = made(1).expand(5, -1, -1, -1)
    seen = fit(batched(x), "zca", "pixels", 0.1, None)(x / 255)
    torch.testing.assert_close(seen, torch.zeros_like(seen), atol=1e-5, rtol=0)
