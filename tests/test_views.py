"""Views: each is computed once for all that share it, pre-drawn ones are the same live and cached, and answers can be means over them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from regraft import cache, config, graft, passes
from regraft.augment import D4
from regraft.datasets.source import Sample, Source
from regraft.errors import UserError
from regraft.graft import Run
from regraft.keeping import READ, Cost, again_pays, wanted
from regraft.reading import Reading
from regraft.record import Metrics
from regraft.tasks import Classify, Regress, Tag
from regraft.views import IDENTITY, Drawn

SMALL = ["dataset=digits", "dataset.per_class=6", 'dataset.classes=["0","1","2"]', "model.weights=none", "trainer.max_epochs=2"]
SMALL += ["trainer.keep=last", "hardware=cpu", "optimizer.lr=0.01", "data.batch_size=8", "hardware.workers=0"]
CONVNET = ["model=convnet", "data.size=16"]
DRAWN = ["augmentation=[random_erasing,flips]", "cache.views=3"]
EIGHT = D4(name="d4", views="draw").finite()


@pytest.fixture(autouse=True)
def _thread(one_thread):
    """Small pictures."""


@pytest.fixture
def passed(monkeypatch):
    """Counts, while runs are made, the pictures that are computed in the lowest stage. At the forward itself: above a cut the chain calls
    the modules below it too, which then give back blanks, and hooks would count those."""
    counts: list[int] = []
    build = graft.build

    def hooked(*arguments):
        chain, origin = build(*arguments)
        stem = next(module for name, module in chain.named_modules_of(chain.stages[0]) if not list(module.children()))
        forward = stem.forward
        vars(stem)["forward"] = lambda x: counts.append(len(x)) or forward(x)
        return chain, origin

    monkeypatch.setattr("regraft.running.build", hooked)
    return counts


def losses(run: Run) -> list[float]:
    return [float(row["value"]) for row in Metrics(run.folder / "metrics.csv").rows() if row["metric"] == "train/loss"]


def furthest(one: Run, other: Run) -> float:
    a, b = one.chain.state_dict(), other.chain.state_dict()
    return max((a[name].float() - b[name].float()).abs().max().item() for name in a)


def read(monkeypatch) -> list[str]:
    """The ids of the pictures that are decoded from now on."""
    from regraft.datasets.source import Packed

    ids, before = [], Packed.read
    monkeypatch.setattr(Packed, "read", lambda self, sample: ids.append(sample.id) or before(self, sample))
    return ids


@pytest.mark.parametrize(
    ("policy", "boundaries"), [(["freeze=backbone"], 1), (["freeze=gradual", "freeze.down_to=conv4", "trainer.max_epochs=3"], 3)]
)
def test_under_d4_the_backbone_sees_each_picture_exactly_eight_times(executed, passed, monkeypatch, tmp_path, policy, boundaries):
    """However many boundaries are written, and although the first batch is timed; val and test are seen once."""
    ids = read(monkeypatch)
    run = executed([*SMALL, *CONVNET, *policy, "augmentation=d4", f"cache.dir={tmp_path / 'new'}"])
    sizes = run.record["data"]["sizes"]
    notes = run.record["cache"]
    assert {note["mode"] for note in notes} == {"cached"}
    assert len({note["boundary"] for note in notes}) == boundaries
    assert sum(passed) == 8 * sizes["train"] + sizes["val"] + sizes["test"]
    for note in notes:
        assert note["computed"] == sizes[note["split"]]
    train = [name for name in ids if name in {sample.id for sample in run.source.split("train")}]
    assert len(train) == sizes["train"], "one reading for all views"


def test_pre_drawn_views_are_the_same_cached_and_live_in_every_epoch_and_for_all_seeds(executed, passed, tmp_path):
    same = [*SMALL, *CONVNET, *DRAWN, "trainer.max_epochs=3", f"cache.dir={tmp_path / 'new'}"]
    cached = executed([*same, "cache.mode=require"])
    sizes = cached.record["data"]["sizes"]
    assert sum(passed) == 3 * sizes["train"] + sum(sizes.values()), "and once more as they are, to be measured"
    train = [note for note in cached.record["cache"] if note["split"] == "train" and note["view"].startswith("draw")]
    assert [(note["view"], note["augmentation"]) for note in train] == [(f"draw {number}", "3 pre-drawn views") for number in range(3)]
    live = executed([*same, "cache.mode=off"])
    assert {note.get("augmentation") for note in live.record["cache"]} == {"3 pre-drawn views"}
    assert losses(cached) == pytest.approx(losses(live), rel=1e-5)
    assert furthest(cached, live) < 1e-5
    again = executed([*same, "seed=1", "head.dropout=0.5"])
    drawn = [note for note in again.record["cache"] if note["view"].startswith("draw")]
    assert [note["computed"] for note in drawn] == [sizes["train"]] * 3, "a net with other random weights has rows of its own"
    assert executed([*same, "cache.views=2"]).record["run_id"] != cached.record["run_id"]


def a_reading(*words: str) -> tuple[Reading, Source]:
    s = config.Composer().jobs([*SMALL, *CONVNET, *words], multirun=False)[0].settings
    source = s.dataset.open(s.cache.folder())
    return Reading(s, source), source


def test_a_draw_is_the_pictures_own_whatever_the_seed_the_set_and_the_epoch():
    one, source = a_reading(*DRAWN, "seed=0")
    other, _ = a_reading(*DRAWN, "seed=5", "dataset.per_class=3", "cache.views=7", "augmentation.views=expand")
    at = {sample.sha256: number for number, sample in enumerate(one.samples["train"])}
    feed, few = one.live("train", augmented=True), other.live("train", augmented=True)
    shared = [(at[sample.sha256], number) for number, sample in enumerate(other.samples["train"]) if sample.sha256 in at]
    assert len(shared) > 2
    for here, there in shared:
        views = [feed.picture(here, view, 0) for view in range(3)]
        assert all(torch.equal(view, feed.picture(here, number, 4)) for number, view in enumerate(views))
        assert all(torch.equal(view, few.picture(there, number, 0)) for number, view in enumerate(views))
    every = one.every(source.split("train"), [Drawn(2), IDENTITY, Drawn(0)]).tensors(torch.arange(4), torch.zeros(4), 0)
    assert torch.equal(every[:, 0], feed.tensors(torch.arange(4), torch.full((4,), 2), 0))
    assert torch.equal(every[:, 2], feed.tensors(torch.arange(4), torch.zeros(4, dtype=torch.int64), 1))
    assert torch.equal(every[:, 1], one.live("train", augmented=False).tensors(torch.arange(4), torch.zeros(4, dtype=torch.int64), 0))
    drawn = torch.stack([feed.tensors(torch.arange(len(at)), torch.full((len(at),), view), 0) for view in range(3)])
    assert len({tuple(each.flatten().tolist()) for each in drawn.flatten(0, 1)}) > 2.5 * len(at), "draws differ"


@pytest.mark.parametrize(
    ("words", "key", "remedy"),
    [
        (["augmentation=mixup", "cache.views=2"], "cache.views", "mixes each picture"),
        (["augmentation=[flips,cutmix]", "cache.views=2"], "cache.views", "mixes each picture"),
        (["augmentation=d4", "cache.views=8"], "cache.views", "enumerated"),
        (["augmentation=none", "cache.views=1"], "cache.views", "null works"),
        (["augmentation=randaugment", "cache.views=0"], "cache.views", "at least 1"),
        (["augmentation=randaugment", "cache.mode=require"], "cache.mode", "cache.views=8"),
        (["augmentation=mixup", "cache.mode=require"], "cache.mode", "mixes pictures, and runs live; auto works"),
        (["augmentation=randaugment", "evaluate.views=true"], "evaluate.views", "cache.views=8"),
        (["augmentation=cutmix", "evaluate.views=true"], "evaluate.views", "false works"),
    ],
)
def test_views_that_can_not_be_are_refused_before_anything_is_built(words, key, remedy):
    with pytest.raises(UserError) as caught:
        config.Composer().jobs([*SMALL, *CONVNET, *words], multirun=False)
    assert [problem.key for problem in caught.value.problems] == [key]
    assert remedy in str(caught.value)


@pytest.mark.parametrize("augmentation", [["augmentation=d4"], DRAWN])
@pytest.mark.parametrize("policy", [["freeze=backbone"], ["freeze=last", "freeze.n=2"]])
def test_answers_are_means_over_the_views_cached_live_evaluated_and_predicted(executed, tmp_path, augmentation, policy):
    same = [*SMALL, *CONVNET, *augmentation, *policy, "evaluate.views=true", "optimizer.lr=0.1"]
    cached, live = executed(same), executed([*same, "cache.mode=off"])
    plain = executed([*same, "evaluate.views=false"])
    assert cached.metrics == pytest.approx(live.metrics, abs=1e-5)
    assert cached.metrics["test/loss"] != pytest.approx(plain.metrics["test/loss"], rel=1e-4)
    assert losses(cached) == losses(plain), "training, and the choice of the epoch, stay as they were"
    assert cached.evaluate() == pytest.approx(cached.metrics, abs=1e-5)
    reading = Reading(cached.settings, cached.source)
    views, samples = reading.measuring(), reading.samples["test"][:3]
    assert len(views) == {8: 8, 3: 3}[len(views)]
    seen = reading.every(samples, views).tensors(torch.arange(3), torch.zeros(3), 0)  # [3, views, c, h, w]
    by_hand = torch.stack([cached.scores(seen[:, view].numpy()) for view in range(len(views))]).mean(0)
    import polars as pl

    told = torch.tensor(pl.read_parquet(cached.folder / "predictions.parquet")["scores"].to_list()[:3])
    torch.testing.assert_close(told, by_hand, atol=1e-5, rtol=1e-4)


def test_a_picture_is_predicted_as_the_mean_over_its_views(executed, tmp_path):
    run = executed([*SMALL, *CONVNET, "augmentation=d4", "evaluate.views=true"])
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    scores = []
    for number, view in enumerate(EIGHT):
        turned = np.ascontiguousarray(view(torch.from_numpy(picture.transpose(2, 0, 1))).numpy().transpose(1, 2, 0))
        Image.fromarray(turned).save(tmp_path / f"{number}.png")
        scores.append(run.scores(turned.transpose(2, 0, 1)[None])[0])
    found = [score for _, score in run.predict([tmp_path / f"{number}.png" for number in range(8)])]
    for score in found:  # each turn of a picture has the same eight views
        torch.testing.assert_close(score, torch.stack(scores).mean(0))
    assert (torch.stack(scores).amax(0) - torch.stack(scores).amin(0)).max() > 1e-4, "and they differ"


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**20), st.sampled_from([1.0, 30.0]))
def test_scores_of_averaged_answers_are_the_means_of_the_scores(views, rows, outputs, seed, scale):
    logits = torch.randn(views, rows, outputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    for task in (Classify(name="classify"), Tag(name="tag"), Regress(name="regress")):
        torch.testing.assert_close(task.scores(task.averaged(logits)), task.scores(logits).mean(0), rtol=1e-9, atol=1e-12)


def test_what_is_wanted_stands_once_and_the_lowest_first():
    order = ["stem", "layer1", "layer2", "head"]
    measuring = {"train": [IDENTITY], "val": [IDENTITY], "test": [IDENTITY]}
    found = wanted(order, ["head", "layer2", "stem"], "stem", EIGHT, measuring)
    assert list(found) == ["layer2", "head"], "there is nothing below the lowest stage"
    assert found["head"] == found["layer2"] == {"train": EIGHT, "val": [IDENTITY]}
    found = wanted(order, ["head", "layer1"], "layer1", EIGHT, measuring)
    assert found["layer1"] == {"train": EIGHT, "val": [IDENTITY], "test": [IDENTITY]}, "the plain picture is one of the eight"
    drawn = [Drawn(0), Drawn(1)]
    assert wanted(order, ["head"], "head", drawn, measuring)["head"]["train"] == [*drawn, IDENTITY]
    assert wanted(order, ["head"], "head", None, measuring)["head"]["train"] == [IDENTITY], "what is random never ends"
    assert wanted(order, [], "head", EIGHT, measuring) == {"head": {split: [IDENTITY] for split in measuring}}


def test_a_row_pays_where_it_is_read_sooner_than_computed():
    assert Cost(2e-3, int(0.9e-3 * READ)).pays
    assert not Cost(2e-3, int(2.1e-3 * READ)).pays
    assert [again_pays(1, 1, False), again_pays(2, 1, False), again_pays(8, 8, False), again_pays(9, 8, False)] == [
        False,
        True,
        False,
        True,
    ]
    assert [again_pays(1, 8, True), again_pays(2, 8, True)] == [False, True], "all views are shown in each epoch"


def test_a_boundary_that_does_not_pay_or_fit_is_live_and_the_others_are_kept(executed, monkeypatch, tmp_path):
    same = [*SMALL, *CONVNET, "freeze=gradual", "freeze.down_to=conv2", "trainer.max_epochs=4"]
    kept = executed([*same, f"cache.dir={tmp_path / 'kept'}"])
    boundaries = {note["boundary"] for note in kept.record["cache"]}
    assert len(boundaries) == 4
    monkeypatch.setattr("regraft.keeping.READ", 1e3)  # a disk so slow that only small rows are read sooner than computed
    monkeypatch.setattr(passes.Pass, "timed", lambda self, positions, places: dict.fromkeys((b for b, _ in places), 1.0))
    slow = executed([*same, f"cache.dir={tmp_path / 'slow'}"])
    notes = slow.record["cache"]
    told = {note["boundary"]: note["why"] for note in notes if note["mode"] == "live"}
    assert told
    assert all("longer to read" in why for why in told.values())
    assert {note["boundary"] for note in notes if note["mode"] == "cached"} == boundaries - set(told) != set()
    assert losses(slow) == pytest.approx(losses(kept), rel=1e-5)
    monkeypatch.undo()
    bytes_of = dict.fromkeys(boundaries, 0)
    shapes = passes.entering(kept.chain)
    for note in kept.record["cache"]:
        bytes_of[note["boundary"]] += note["rows"] * 4 * int(np.prod(shapes[note["boundary"]]))
    order = sorted(boundaries, key=kept.chain.stages.index, reverse=True)
    room = sum(bytes_of[boundary] for boundary in order[:2])
    tight = executed([*same, f"cache.dir={tmp_path / 'tight'}", f"cache.max_gb={(room + 1000) / 1e9:.9f}"])
    assert {note["boundary"] for note in tight.record["cache"] if note["mode"] == "cached"} == set(order[:2]), "the topmost first"
    assert losses(tight) == pytest.approx(losses(kept), rel=1e-5)
    assert furthest(tight, kept) < 1e-5


def test_on_a_full_disk_training_goes_on_live(executed, monkeypatch, tmp_path):
    same = [*SMALL, *CONVNET, "freeze=backbone"]
    whole = executed([*same, f"cache.dir={tmp_path / 'whole'}"])

    def full(*arguments):
        raise cache.NoRoom(cache.Problem("cache.dir", "there", "can't write (No space left on device); free room"))

    monkeypatch.setattr("regraft.supply.fill", full)
    run = executed([*same, f"cache.dir={tmp_path / 'full'}"])
    assert {(note["mode"], "No space left" in note["why"]) for note in run.record["cache"]} == {("live", True)}
    assert losses(run) == pytest.approx(losses(whole), rel=1e-5)
    with pytest.raises(UserError, match="No space left on device"):
        executed([*same, f"cache.dir={tmp_path / 'full'}", "cache.mode=require"])


def test_a_picture_that_was_changed_is_never_stored(executed, tmp_path):
    draws = np.random.default_rng(0)
    for split, name, number in [(s, n, k) for s in ("train", "val", "test") for n in ("a", "b") for k in range(3)]:
        (tmp_path / "set" / split / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / "set" / split / name / f"{number}.png")
    words = ["dataset=folder", f"dataset.path={tmp_path / 'set'}", *SMALL[3:], *CONVNET, f"cache.dir={tmp_path / 'cache'}"]
    s = config.Composer().jobs(words, multirun=False)[0].settings
    source = s.dataset.open(s.cache.folder())
    victim: Sample = source.split("val")[1]
    path = tmp_path / "set" / victim.id
    Image.fromarray(draws.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    with pytest.raises(UserError, match=r"its bytes have changed since the set was opened") as caught:
        source.read(victim)
    assert caught.value.problems[0].key == str(path)
    with pytest.raises(UserError, match="have changed"):
        Reading(s, source).every(source.split("val"), [IDENTITY]).in_order(8).__next__()
