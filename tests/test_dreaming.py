"""A run whose machines have learnt alone leaves pictures of them: the filters of the lowest, and dreams of all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from regraft import dreaming
from regraft.models import dbn
from regraft.report import dreams

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = ["plots=true", "dataset=digits", "dataset.per_class=3", "data.size=8", "model=dbn", "model.depth=2", "model.width=9"]
WORDS += ["model.weights=none", "model.betas=0", "freeze.pretrain=1", "trainer.max_epochs=3", "hardware=cpu", "hardware.workers=0"]


def tile(image: Image.Image, number: int) -> np.ndarray:
    """The pixels, 0..1, of a tile's 8 x 8 picture, each taken at its middle."""
    x, y = dreams.MARGIN + number * (dreams.SIDE + dreams.GAP), dreams.HEAD
    return np.asarray(image.convert("L"), float)[y : y + dreams.SIDE, x : x + dreams.SIDE][4::9, 4::9] / 255


def test_a_greedy_run_shows_its_own_filters_and_dreams(executed, monkeypatch) -> None:
    monkeypatch.setattr(dreaming, "STEPS", 20)
    run = executed([*WORDS, "freeze=greedy"])
    assert run.record["warnings"] == []
    before = executed([*WORDS, "freeze=greedy", "trainer.max_epochs=2"])  # no epoch is left for the task
    for name in ("filters.png", "dreams.png"):
        assert (run.folder / name).read_bytes() == (before.folder / name).read_bytes(), "the task has not changed them yet"
    assert not torch.equal(dbn.machines(before.chain)[0].weight, dbn.machines(run.chain)[0].weight)
    run = before
    weights = dbn.machines(run.chain)[0].weight.detach()  # [9, 64]
    first = weights[weights.square().sum(1).argmax()].view(8, 8)
    with Image.open(run.folder / "filters.png") as image:
        np.testing.assert_allclose(tile(image, 0), (first / first.abs().max() / 2 + 0.5).numpy(), atol=0.02)
    with Image.open(run.folder / "dreams.png") as image:
        np.testing.assert_allclose(tile(image, 3), dbn.dream(run.chain, 4, 20, seed=0)[3].numpy(), atol=0.02)


def test_without_machines_that_learn_alone_there_is_no_picture(executed) -> None:
    run = executed([*(word for word in WORDS if "pretrain" not in word), "trainer.max_epochs=1", "freeze=none"])
    assert not list(run.folder.path.glob("[fd][ir]*.png"))
    assert (run.folder / "curves.png").is_file()
