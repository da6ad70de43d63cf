"""Every draw of an augmentation is a function of its key, mixes what the papers say, and a list of them is checked step by step."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import v2

from regraft import transforms
from regraft.augment import D4, GROUP, AugmentationSpec, Several, filled
from regraft.errors import UserError
from regraft.registry import parse
from regraft.views import IDENTITY, View
from regraft.whitening import Colours

SIZE = 24
KEY = (0, "augment", 3, 17, 0)
COLOURS = Colours(
    torch.full((3,), 0.5, dtype=torch.float64),
    torch.tensor([0.2, 0.05, 0.01], dtype=torch.float64),
    torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0],
)
VIEWS = st.builds(View, st.integers(0, 3), st.booleans())
RANDOM = ["random_resized_crop", "alexnet", "random_erasing", "pixel_dropout", "randaugment", "trivialaugment"]


def spec(name: str, **values: Any) -> AugmentationSpec:
    """An entry with the values of its YAML file, and some others."""
    [step] = filled([{"name": name, **values}])
    found = parse(GROUP.spec(name), {"views": "draw", **step}, "augmentation")
    assert isinstance(found, AugmentationSpec)
    return found


def several(*steps: Any, views: str = "draw") -> Several:
    return Several(name="several", views=views, steps=filled(list(steps)))


def picture(side: int = SIZE, seed: int = 0) -> Tensor:
    return torch.randint(256, (3, side, side), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def changed(augmentation: AugmentationSpec, key: tuple[int | str, ...] = KEY, seed: int = 0) -> Tensor:
    change = augmentation.transform(SIZE, COLOURS if augmentation.needs_colours else None)
    assert change is not None
    return change(picture(round(SIZE * augmentation.margin), seed), key)


# Views


@given(VIEWS, VIEWS)
def test_one_view_after_another_is_a_view(first: View, second: View) -> None:
    x = picture(4)
    assert torch.equal(first.then(second)(x), second(first(x)))


def test_a_lists_views_are_all_that_its_steps_lead_to_each_once() -> None:
    square = set(D4(name="d4", views="draw").finite())
    for steps in (["rotations", {"name": "flips", "vertical": True}], ["flips", "rotations"], ["d4", "rotations"]):
        views = several(*steps).symmetries()
        assert (views[0], len(views), set(views)) == (IDENTITY, 8, square)
    x = picture(4)
    seen = {tuple(view(x).flatten().tolist()) for view in several({"name": "flips", "vertical": True}, "rotations").symmetries()}
    assert len(seen) == 8
    assert several("rotations", "whitening").finite() == several("rotations").finite(), "whitening is not random, and can be cached"
    mixed = several("random_erasing", "rotations", "mixup")
    assert (mixed.finite(), len(mixed.symmetries()), mixed.symmetries()[0]) == (None, 4, IDENTITY)


# What is random for a picture


@pytest.mark.parametrize("augmentation", [*map(spec, RANDOM), several("rotations", *RANDOM[1:])], ids=[*RANDOM, "several"])
def test_a_draw_is_a_function_of_its_key_alone(augmentation: AugmentationSpec) -> None:
    keys = [(seed, "augment", epoch, index, 0) for seed in (0, 1) for epoch in (0, 1) for index in range(5)]
    first = [changed(augmentation, key) for key in keys]
    torch.manual_seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    again = [changed(augmentation, key) for key in reversed(keys)][::-1]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True)), "whatever was drawn before"
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index,union-attr]
    assert len({tuple(x.flatten().tolist()) for x in first}) > len(keys) / 3, "another key, another draw"
    assert all(x.dtype == torch.uint8 and x.shape == (3, SIZE, SIZE) and x.is_contiguous() for x in first)


@pytest.mark.parametrize("name", RANDOM)
def test_a_loader_worker_can_be_handed_a_copy(name: str) -> None:
    augmentation = several(name)
    change = augmentation.transform(SIZE, COLOURS)
    x = picture(round(SIZE * augmentation.margin))
    assert change is not None
    assert torch.equal(pickle.loads(pickle.dumps(change))(x, KEY), change(x, KEY))


@pytest.mark.parametrize(
    ("name", "values", "library"),
    [
        ("randaugment", {"ops": 3, "magnitude": 12}, v2.RandAugment(3, 12)),
        ("trivialaugment", {}, v2.TrivialAugmentWide()),
        ("random_resized_crop", {"scale": [0.3, 0.9], "ratio": [0.5, 2.0]}, v2.RandomResizedCrop(SIZE, (0.3, 0.9), (0.5, 2.0))),
        ("random_erasing", {"p": 0.8, "scale": [0.1, 0.4], "value": 99}, v2.RandomErasing(0.8, (0.1, 0.4), value=99)),
    ],
)
def test_the_librarys_transforms_do_what_the_library_does(name: str, values: dict[str, Any], library: v2.Transform) -> None:
    augmentation = spec(name, **values)
    for sample in range(12):
        key = (0, "augment", 0, sample, 0)
        torch.manual_seed(transforms.generator(*key).initial_seed())
        assert torch.equal(changed(augmentation, key), library(picture(round(SIZE * augmentation.margin))))


def test_erased_rectangles_may_hold_noise() -> None:
    augmentation = spec("random_erasing", p=1.0, value="random", scale=[0.2, 0.2])
    x, y = picture(), changed(augmentation)
    differs = (x != y).any(0)
    inside = changed(spec("random_erasing", p=1.0, value=0, scale=[0.2, 0.2])) == 0
    assert differs.float().mean() == pytest.approx(0.2, abs=0.03)
    assert not (differs & ~inside.all(0)).any(), "the rectangle is that of a plain value"
    assert len(y[:, differs].unique()) > 100


def test_pixel_dropout_blanks_whole_pixels_at_its_rate() -> None:
    change = spec("pixel_dropout", p=0.3, value=7).transform(SIZE, None)
    assert change is not None
    y = change(torch.full((3, 200, 200), 50, dtype=torch.uint8), KEY)
    assert torch.equal(y[0], y[1])
    assert torch.equal(y[0], y[2])
    assert set(y.unique().tolist()) == {7, 50}
    assert (y == 7).float().mean() == pytest.approx(0.3, abs=0.01)


# AlexNet's


def test_alexnet_cuts_every_window_and_mirrors_half() -> None:
    """Pixels number their places, so that each window is told from its picture."""
    side, size = 10, 8
    place = torch.arange(side * side, dtype=torch.uint8).view(1, side, side).expand(3, -1, -1)
    change = spec("alexnet", crop=0.8, colour=0.0).transform(size, COLOURS)
    assert change is not None
    assert round(size * spec("alexnet", crop=0.8).margin) == side
    seen: dict[tuple[int, bool], int] = {}
    for sample in range(900):
        y = change(place, (0, "augment", 0, sample, 0))[0]
        mirrored = bool(y[0, 0] > y[0, 1])
        corner = int(y[0, -1] if mirrored else y[0, 0])
        top, left = divmod(corner, side)
        window = place[0, top : top + size, left : left + size]
        assert torch.equal(y.flip(-1) if mirrored else y, window)
        seen[corner, mirrored] = seen.get((corner, mirrored), 0) + 1
    assert len(seen) == 3 * 3 * 2
    assert min(seen.values()) > 25
    assert max(seen.values()) < 80
    never = spec("alexnet", crop=0.8, colour=0.0, flip=False).transform(size, COLOURS)
    assert never is not None
    assert all(y[0, 0, 0] < y[0, 0, 1] for y in (never(place, (0, "augment", 0, sample, 0)) for sample in range(20)))


def test_alexnet_reads_256_for_224() -> None:
    assert round(224 * spec("alexnet").margin) == 256


def test_alexnets_colours_shift_along_trains_components() -> None:
    """Whole pictures of one grey: the shift is all there is, and its spread along each component is 0.1 of the variance there."""
    grey = torch.full((3, 2, 2), 128, dtype=torch.uint8)
    wide = COLOURS._replace(eigenvalues=COLOURS.eigenvalues * 5)  # so that grey levels are fine enough to measure it
    change = spec("alexnet", crop=1.0).transform(2, wide)
    assert change is not None
    drawn = torch.stack([change(grey, (0, "augment", 0, sample, 0)) for sample in range(3000)])
    assert (drawn == drawn[..., :1, :1]).all(), "a picture's pixels are shifted alike"
    along = ((drawn[..., 0, 0].double() - 128) / 255) @ wide.eigenvectors.T
    levels = 1 / 255 / 12**0.5  # what rounding adds
    np.testing.assert_allclose(along.std(0), (((0.1 * wide.eigenvalues) ** 2 + levels**2) ** 0.5), rtol=0.05)
    np.testing.assert_allclose(along.mean(0), 0, atol=0.006)


# Pairs

BATCH = 16


def pictures(seed: int = 0, side: int = SIZE) -> Tensor:
    return torch.rand(BATCH, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_a_share_of_the_batch_is_mixed_as_in_the_whole(name: str) -> None:
    mix = spec(name, alpha=0.7).mix()
    assert mix is not None
    x, (partner, plan) = pictures(), mix.draw((0, "mix", 1, 4), BATCH)
    assert sorted(partner.tolist()) == list(range(BATCH)), "each picture is somebody's partner"
    whole, own = mix.apply(x, x[partner], plan)
    for rows in torch.randperm(BATCH, generator=torch.Generator().manual_seed(0)).split(5):
        part, part_own = mix.apply(x[rows], x[partner][rows], mix.rows(plan, rows))
        assert torch.equal(part, whole[rows])
        assert torch.equal(part_own, own[rows])
    assert own.dtype == torch.float32
    again, other = mix.draw((0, "mix", 1, 4), BATCH), mix.draw((0, "mix", 1, 5), BATCH)
    assert torch.equal(again[0], partner)
    assert torch.equal(again[1].lam, plan.lam)
    assert not torch.equal(other[1].lam, plan.lam)
    assert not torch.equal(other[0], partner)


def test_mixup_is_torchvisions() -> None:
    mix = spec("mixup").mix()
    assert mix is not None
    x = pictures()
    _, plan = mix.draw((0,), BATCH)
    y, own = mix.apply(x, x.roll(1, 0), plan)
    library = v2.MixUp(num_classes=2)
    for row in range(BATCH):
        params = {"lam": float(plan.lam[row]), "labels": None, "batch_size": BATCH}
        torch.testing.assert_close(y[row], library.transform(x, params)[row])
    np.testing.assert_allclose(own, plan.lam, rtol=1e-6)


def test_cutmix_is_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library draws one lam and one middle for a batch: here each row's, handed to it."""
    mix = spec("cutmix").mix()
    assert mix is not None
    side = 31
    x = pictures(side=side)
    _, plan = mix.draw((0,), BATCH)
    y, own = mix.apply(x, x.roll(1, 0), plan)
    library = v2.CutMix(num_classes=2)
    for row in range(BATCH):
        drawn = iter((plan.middle[row].flip(0) * side).long()[:, None])  # across first
        monkeypatch.setattr(torch, "randint", lambda *a, _drawn=drawn, **k: next(_drawn))
        monkeypatch.setattr(library._dist, "sample", lambda shape, _lam=plan.lam[row]: _lam)
        params = library.make_params([x])
        monkeypatch.undo()
        wanted = library.transform(x, {**params, "labels": None, "batch_size": BATCH})[row]
        assert torch.equal(y[row], wanted)
        assert float(own[row]) == pytest.approx(params["lam_adjusted"], abs=1e-6)


@given(st.floats(0.05, 5), st.integers(0, 100), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_cutmix_weighs_labels_by_what_is_left_of_the_picture(alpha: float, seed: int, side: int) -> None:
    mix = spec("cutmix", alpha=alpha).mix()
    assert mix is not None
    _, plan = mix.draw((seed,), BATCH)
    y, own = mix.apply(torch.ones(BATCH, 1, side, side), torch.zeros(BATCH, 1, side, side), plan)
    np.testing.assert_allclose(y.mean((1, 2, 3)), own, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 4.0])
def test_shares_are_drawn_from_a_beta(alpha: float) -> None:
    mix = spec("mixup", alpha=alpha).mix()
    assert mix is not None
    lam = mix.draw((0,), 20_000)[1].lam
    assert lam.mean().item() == pytest.approx(0.5, abs=0.01)
    assert lam.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)
    tiny = spec("mixup", alpha=1e-4).mix()
    assert tiny is not None
    assert torch.isfinite(tiny.draw((0,), 1000)[1].lam).all()


# Lists


def told(*steps: Any) -> list[str]:
    return [str(problem) for problem in several(*steps).problems()]


def test_a_step_is_filled_from_its_file() -> None:
    assert filled(["rotations", {"name": "random_erasing", "p": 0.25}, "mixup"]) == [
        {"name": "rotations"},
        {"name": "random_erasing", "p": 0.25, "scale": [0.02, 0.33], "ratio": [0.3, 3.3], "value": 0},
        {"name": "mixup", "alpha": 0.2},
    ]
    assert filled(filled(["cutmix"])) == filled(["cutmix"])
    assert filled(["rotatons", 3, {"p": 1}]) == [{"name": "rotatons"}, 3, {"p": 1}], "left for the spec to tell"
    assert filled("rotations") == "rotations"


def test_every_entry_can_be_a_step() -> None:
    names = [name for name in GROUP if name != "several"]
    assert len(names) == 13
    assert [told(name) for name in names] == [[]] * 13


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        (["flips", {"name": "random_erasing", "p": 5}], "steps[1].p = 5: at most 1.0 is needed"),
        (
            ["flips", {"name": "random_erasing", "scal": [0.1, 0.2]}],
            "steps[1].scal = [0.1,0.2]: no such key; did you mean augmentation.steps[1].scale?",
        ),
        ([{"name": "random_erasing", "scale": [0.5, 0.1]}], "steps[0].scale = [0.5,0.1]: [least, largest] is needed"),
        (["rotatons"], "steps[0] = rotatons: no such augmentation; did you mean rotations?"),
        (["flips", 3], "steps[1] = 3: a name is needed"),
        (["flips", {"p": 0.5}], "steps[1] = {p:0.5}: a name is needed"),
        (["flips", "several"], "steps[1] = several: a list in a list"),
        ([{"name": "rotations", "views": "expand"}], "steps[0].views = expand: augmentation.views is for the whole list"),
        (["mixup", "flips", "cutmix"], "steps[2] = cutmix: a list holds no more than one that mixes"),
        (["whitening", "whitening"], "steps[1] = whitening: a list holds no more than one that whitens"),
        (["alexnet", "random_resized_crop"], "steps[1] = random_resized_crop: a list holds no more than one that crops"),
        ([{"name": "whitening", "over": "colours", "components": 3}], "steps[0].components = 3: over=colours always keeps its three"),
        ([], "steps = []: at least one is needed"),
    ],
)
def test_a_wrong_step_is_named(steps: list[Any], problem: str) -> None:
    [only] = told(*steps)
    assert problem in only


def test_all_mistakes_of_a_list_are_told_at_once() -> None:
    assert len(told("rotatons", {"name": "pixel_dropout", "p": 2, "value": 300}, "mixup", "mixup")) == 4


def test_a_wrong_step_is_no_traceback_where_a_finished_run_is_read() -> None:
    with pytest.raises(UserError, match=r"augmentation.steps\[0\] = rotatons: .* did you mean rotations"):
        several("rotatons").finite()


def test_the_steps_of_a_list_work_in_its_order_each_with_its_own_stream() -> None:
    erase, blank = {"name": "random_erasing", "p": 1.0, "value": 9}, {"name": "pixel_dropout", "p": 0.5, "value": 200}
    both = changed(several(erase, blank))
    one = spec("random_erasing", p=1.0, value=9).transform(SIZE, None)
    two = spec("pixel_dropout", p=0.5, value=200).transform(SIZE, None)
    assert one is not None
    assert two is not None
    assert torch.equal(both, two(one(picture(), (*KEY, 0)), (*KEY, 1)))
    assert not torch.equal(both, changed(several(blank, erase)))
    twice = changed(several(blank, blank))
    assert (twice[0] == 200).float().mean() == pytest.approx(0.75, abs=0.07), "two steps of one kind draw apart"
    moved = changed(several("rotations", blank))
    assert torch.equal(moved, two(picture(), (*KEY, 1))), "views are not drawn here"


def test_a_list_gathers_what_its_steps_need() -> None:
    whole = several("rotations", "alexnet", "whitening", "cutmix", views="expand")
    assert whole.needs_colours
    assert whole.margin == pytest.approx(1 / 0.875)
    assert whole.mix() == spec("cutmix").mix()
    assert whole.whiten() == spec("whitening", views="expand")
    assert [part.views for part in whole.parts()] == ["expand"] * 4
    assert changed(whole).shape == (3, SIZE, SIZE)
    plain = several("rotations", "whitening")
    assert (plain.transform(SIZE, None), plain.mix(), plain.margin, plain.needs_colours) == (None, None, 1.0, False)


def test_what_mixes_is_known_without_torch() -> None:
    assert {name for name in GROUP if name != "several" and spec(name).mixes} == {"mixup", "cutmix"}
    assert [several("flips", "mixup").mixes, several("flips").mixes] == [True, False]
    code = """
import sys
from regraft.augment import Several, filled
wrong = Several(name="several", views="draw", steps=filled(["rotations", "alexnet", "mixup", "whitening", "cutmix"])).problems()
sys.exit(len(wrong) != 1 or "torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
