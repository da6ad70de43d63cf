"""Cached equals live: for every kind of boundary and of views the same losses and weights, and what is frozen unchanged to the bit.

In fp32, within 1e-5 of a loss, and of a weight within 1e-5 of the largest in its tensor: what is frozen is computed in batches of other
sizes, and the order of a sum hangs on that.
"""

from __future__ import annotations

import json

import pytest
import torch

from regraft import passes
from regraft.datasets.source import Packed
from regraft.graft import Run, build
from regraft.record import Metrics
from regraft.tasks.module import PhaseModule

SMALL = ["dataset=digits", "dataset.per_class=6", 'dataset.classes=["0","1","2"]', "model.weights=none", "head.dropout=0.3"]
SMALL += ["trainer.max_epochs=3", "trainer.keep=last", "hardware=cpu", "data.batch_size=7", "hardware.workers=0", "optimizer=sgd"]
SMALL += ["optimizer.lr=0.02"]
NETS = {
    "convnet": ["model=convnet", "data.size=16", "model.width=4", "model.fc=16"],
    "batchnorm": ["model=convnet", "data.size=16", "model.width=4", "model.fc=16", "model.batchnorm=true"],
    "resnet": ["model=timm", "model.arch=test_resnet", "data.size=32"],
}
POLICIES = {
    "head": ["freeze=backbone"],
    "last n": ["freeze=last", "freeze.n=2"],
    "a block": ["freeze=until", "freeze.stage=layer2.0"],
    "gradual": ["freeze=gradual", "freeze.down_to=conv4"],
    "lp_ft": ["freeze=lp_ft", "freeze.probe=0.6"],
    "surgical": ["freeze=surgical", "freeze.stages=[conv3]"],
    "up": ["freeze=phases", "freeze.phases=[{name: low, epochs: 1, trains: [conv2, head]}, {name: high, epochs: 2, trains: [head]}]"],
    "up from pictures": [
        "freeze=phases",
        "freeze.phases=[{name: low, epochs: 1, trains: [conv1, head]}, {name: high, epochs: 3, from: fc}]",
        "trainer.max_epochs=4",
    ],
}
VIEWS = {
    "none": ["augmentation=none"],
    "flips": ["augmentation=flips"],
    "d4 draw": ["augmentation=d4"],
    "d4 expand": ["augmentation=d4", "augmentation.views=expand"],
    "pre-drawn": ["augmentation=[pixel_dropout,flips]", "cache.views=2"],
}
CASES = [("batchnorm", policy, "flips") for policy in POLICIES if policy != "a block"]
CASES += [("batchnorm", policy, views) for policy in ("head", "last n", "up") for views in VIEWS if views != "flips"]
CASES += [("convnet", policy, views) for policy, views in (("gradual", "d4 expand"), ("surgical", "pre-drawn"), ("lp_ft", "d4 draw"))]
CASES += [("resnet", "a block", views) for views in ("none", "pre-drawn")]


@pytest.fixture(autouse=True)
def _thread(one_thread):
    """Small pictures."""


@pytest.fixture
def batches(monkeypatch):
    """What each training step is given, in order: pictures, views, rows and epochs; and whether it comes from the cache."""
    seen: list[tuple] = []
    step = PhaseModule.training_step

    def noted(self, batch, batch_idx):
        share = batch.share
        what = tuple(tuple(each.tolist()) for each in (share.picture, share.view, share.row, batch.y))
        seen.append(((share.epoch, share.step, *what), batch.cached))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(PhaseModule, "training_step", noted)
    return seen


def measured(run: Run) -> list[tuple[str, str, float]]:
    return [(row["epoch"], row["metric"], float(row["value"])) for row in Metrics(run.folder / "metrics.csv").rows()]


def losses(run: Run) -> list[float]:
    return [value for _, metric, value in measured(run) if metric.endswith("/loss")]


def apart(one: Run, other: Run) -> float:
    """The largest difference of a weight, as a part of the largest in its tensor."""
    a, b = one.chain.state_dict(), other.chain.state_dict()
    return max(((a[name] - b[name]).abs().max() / a[name].abs().max().clamp(min=1e-3)).item() for name in a if a[name].is_floating_point())


@pytest.mark.parametrize(("net", "policy", "views"), CASES)
def test_cached_equals_live(executed, batches, net, policy, views):
    same = [*SMALL, *NETS[net], *POLICIES[policy], *VIEWS[views]]
    mode = "auto" if policy in ("lp_ft", "up from pictures") else "require"  # a phase of theirs trains the lowest stage
    cached = executed([*same, f"cache.mode={mode}"])
    first = list(batches)
    live = executed([*same, "cache.mode=off"])
    assert [what for what, _ in first] == [what for what, _ in batches[len(first) :]], "the same batches, in the same order"
    assert {cached for _, cached in first} == ({True} if mode == "require" else {True, False})
    assert {cached for _, cached in batches[len(first) :]} == {False}
    modes = [note["mode"] for note in cached.record["cache"]]
    assert "cached" in modes
    assert (set(modes) == {"cached"}) == (mode == "require")
    assert {note["mode"] for note in live.record["cache"]} == {"live"}
    assert losses(cached) == pytest.approx(losses(live), rel=1e-5, abs=1e-6)
    assert apart(cached, live) < 1e-5
    assert cached.metrics == pytest.approx(live.metrics, abs=2e-5)
    for run in (cached, live):  # frozen parameters and buffers, to the bit
        start, end = build(run.settings, run.classes)[0], run.chain.state_dict()
        trained = {stage for phase in run.record["phases"] for stage in phase["trains"]}
        names = [name for name in end if start.stage_of(name) not in trained]
        assert all(torch.equal(start.state_dict()[name], end[name]) for name in names)
        assert len(names) or policy == "lp_ft"


def passing(monkeypatch) -> tuple[list[str], list[tuple[str | None, tuple[str, ...]]]]:
    """The pictures that are read, and the passes that are made: (from, to)."""
    ids, made = [], []
    read, through = Packed.read, passes.through
    monkeypatch.setattr(Packed, "read", lambda self, sample: ids.append(sample.id) or read(self, sample))

    def noted(chain, x, boundaries, dtype, start=None):
        made.append((start, tuple(boundaries)))
        return through(chain, x, boundaries, dtype, start)

    monkeypatch.setattr(passes, "through", noted)
    return ids, made


def test_a_boundary_that_moves_up_is_built_from_the_rows_below_and_no_picture_is_read_again(executed, monkeypatch, tmp_path):
    ids, made = passing(monkeypatch)
    same = [*SMALL, *NETS["batchnorm"], f"cache.dir={tmp_path / 'new'}"]
    run = executed([*same, *POLICIES["up"], "augmentation=d4", "cache.mode=require"])
    sizes = run.record["data"]["sizes"]
    assert len(ids) == sum(sizes.values())
    assert set(made) == {(None, ("conv2",)), ("conv2", ("head",))}
    high = [note for note in run.record["cache"] if note["boundary"] == "head"]
    assert [note["computed"] for note in high] == [sizes["train"]] * 8 + [sizes["val"]]
    ids.clear()
    longer = executed([*same, *POLICIES["up from pictures"]])
    assert len(ids) == sum(sizes.values()) + 2 * (sizes["train"] + sizes["val"]), "live, one pass as the weights are then, and the end"
    assert {note["boundary"]: note["mode"] for note in longer.record["cache"]} == {"conv1": "live", "fc": "cached"}
    short = POLICIES["up from pictures"][1].replace("epochs: 3", "epochs: 1")
    once = executed([*same, "freeze=phases", short, "trainer.max_epochs=2"])
    assert {note["boundary"]: note["mode"] for note in once.record["cache"]} == {"conv1": "live", "fc": "live"}
    assert "too few epochs follow" in json.dumps(once.record["cache"])


def test_several_boundaries_are_written_by_one_pass(executed, monkeypatch, tmp_path):
    ids, made = passing(monkeypatch)
    same = [*SMALL, *NETS["convnet"], *POLICIES["gradual"], f"cache.dir={tmp_path / 'new'}", "cache.mode=require"]
    run = executed(same)
    sizes = run.record["data"]["sizes"]
    assert len(ids) == sum(sizes.values())
    assert set(made) == {(None, ("conv4", "fc", "head")), (None, ("conv4",))}, "test is measured at the lowest alone"
    executed([*same, "optimizer.lr=0.03"])
    assert len(ids) == sum(sizes.values()), "and another run reads them all"


def test_a_resumed_run_makes_the_same_rows_where_its_boundary_has_moved(executed, killed):
    same = [*SMALL, *NETS["batchnorm"], *POLICIES["up"], "trainer.checkpoint_seconds=0", "augmentation=flips"]
    whole = executed(same)
    killed([*same, "cache.mode=require"], 3)  # in the second phase
    again = executed([*same, "cache.mode=require"], folder="killed")
    assert measured(again) == measured(whole)
    a, b = whole.chain.state_dict(), again.chain.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert all(note["computed"] == 0 for note in again.record["cache"]), "they were there"


def test_what_is_frozen_lies_channels_last_and_what_trains_does_not(executed, monkeypatch):
    seen = {}
    fit = PhaseModule.on_fit_start

    def looked(self):
        kernels = {name: p for name, p in self.chain.named_parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1}
        last = {name: p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous() for name, p in kernels.items()}
        seen[self.phase.name] = {self.chain.below(name, self.phase.boundary): set() for name in kernels}
        for name, is_last in last.items():
            seen[self.phase.name][self.chain.below(name, self.phase.boundary)].add(is_last)
        return fit(self)

    monkeypatch.setattr(PhaseModule, "on_fit_start", looked)
    for mode in ("require", "off"):
        executed([*SMALL, *NETS["batchnorm"], *POLICIES["gradual"], f"cache.mode={mode}"])
        assert seen == {"head": {True: {True}}, "from fc": {True: {True}}, "from conv4": {True: {True}, False: {False}}}
