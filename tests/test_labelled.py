"""Few labels: stages that learn without any see all of train, and what learns the task sees the labelled pictures alone."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from test_resume import again, same, told

from regraft import config, grouping, sweep
from regraft.batches import GlobalBatches
from regraft.errors import UserError
from regraft.hardware import Batch
from regraft.learning import seeds
from regraft.record import RunFolder
from regraft.tasks.module import PhaseModule

pytestmark = pytest.mark.usefixtures("one_thread")

# 24 pictures of three classes, 6 of which have a label: in batches of 7 an epoch is 4 steps without labels and 1 with
SMALL = ["dataset=digits", "dataset.per_class=8", 'dataset.classes=["0","1","2"]', "data.size=8", "data.batch_size=7", "dataset.labelled=2"]
SMALL += ["model=dbn", "model.depth=2", "model.width=12", "model.weights=none", "model.betas=0", "hardware=cpu", "hardware.workers=0"]
SMALL += ["trainer.checkpoint_seconds=3600", "dataset.val=0.04", "dataset.test=0.04"]
GREEDY = [*SMALL, "freeze=greedy", "freeze.pretrain=1", "trainer.max_epochs=5"]
LABELLED, TRAIN = 6, 24


def opened(*words: str):
    [job] = config.Composer().jobs(["dataset=digits", *words], multirun=False)
    return job.settings.dataset.open(job.settings.cache.folder()), job.settings


def known(*words: str) -> set[str]:
    """The ids of the train pictures that have a label."""
    from regraft.reading import Reading

    source, settings = opened("model=dbn", "freeze=greedy", "trainer.max_epochs=20", *words)
    reading = Reading(settings, source)
    return {reading.samples["train"][place].id for place in reading.told("train").tolist()}


def test_the_labelled_pictures_are_those_that_per_class_keeps_and_fewer_are_a_part_of_more() -> None:
    few, more = known("dataset.labelled=3"), known("dataset.labelled=7")
    assert few < more
    assert len(few) == 30
    assert few == {sample.id for sample in opened("dataset.per_class=3")[0].split("train")}
    assert few != known("dataset.labelled=3", "dataset.split_seed=1")
    assert known("dataset.labelled=3", "dataset.per_class=5") == few, "of fewer pictures the same ones are labelled"
    assert len(known("dataset.labelled=5000")) == opened()[0].sizes()["train"]


def test_stages_alone_see_all_of_train_and_the_task_the_labelled_pictures(executed, monkeypatch) -> None:
    seen: dict[str, Counter[int]] = {}
    step = PhaseModule.training_step

    def watching(module, batch, number):
        seen.setdefault(module.phase.name, Counter()).update(batch.share.picture.tolist())
        return step(module, batch, number)

    monkeypatch.setattr(PhaseModule, "training_step", watching)
    run = executed(GREEDY)
    everything = Counter(range(TRAIN))
    assert seen["rbm1"] == seen["rbm2"] == everything
    train = run.source.split("train")
    labels = [train[place].label for place in seen["fine-tune"]]
    assert Counter(labels) == {0: 2, 1: 2, 2: 2}
    assert set(seen["fine-tune"].values()) == {3}, "each in each of its epochs"
    assert run.record["data"]["sizes"]["train"] == LABELLED
    assert run.record["data"]["unlabelled"] == TRAIN - LABELLED
    rows = (run.folder / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[2] for row in rows if ",train/loss," in row] == ["4", "4", "1", "2", "3"], "steps of each phase so far"
    assert run.metrics["train/accuracy"] * LABELLED == pytest.approx(round(run.metrics["train/accuracy"] * LABELLED))
    assert run.evaluate() == pytest.approx(run.metrics, abs=1e-5)


def test_where_nothing_learns_without_labels_the_others_are_not_there(executed) -> None:
    plain = [word for word in SMALL if "per_class" not in word and "labelled" not in word]
    plain += ["freeze=none", "trainer.max_epochs=3"]
    few, fewer = executed([*plain, "dataset.labelled=2"]), executed([*plain, "dataset.per_class=2"])
    same(few, fewer)
    assert few.record["data"]["sizes"] == fewer.record["data"]["sizes"]
    probe = ["model=mlp", "freeze=backbone", "trainer.max_epochs=2"]
    cached = executed([*(word for word in plain if not word.startswith(("model.", "freeze", "trainer.max"))), *probe, "dataset.labelled=2"])
    assert [note["rows"] for note in cached.record["cache"] if note["split"] == "train"] == [LABELLED]


@pytest.mark.parametrize("step", [2, 5, 9])
def test_a_stop_in_either_kind_of_phase_changes_nothing(executed, tmp_path, step) -> None:
    """Both machines take 3 steps, and each epoch that learns the task 2."""
    typed = [*GREEDY, "data.batch_size=2", "dataset.per_class=2", "dataset.labelled=1"]
    whole = executed(typed, folder="whole")
    with told(step) as (_, said):
        executed(typed, folder="stopped")
    assert said
    same(whole, again(RunFolder(tmp_path / "runs" / "stopped")))


def test_cached_is_live_and_micro_batches_are_whole_ones(executed) -> None:
    typed = [*GREEDY, "freeze.pretrain=2", "trainer.max_epochs=7", "data.batch_size=6"]
    cached = executed(typed, folder="cached")
    assert {note["rows"] for note in cached.record["cache"] if note.get("split") == "train"} == {TRAIN}
    same(executed([*typed, "cache.mode=off"], folder="live"), cached, abs=1e-5)
    same(executed([*typed, "hardware.accumulate=3"], folder="parts"), cached, abs=1e-4)


def jobs(*words: str) -> list[sweep.Planned]:
    return sweep.plan(config.Composer().jobs(["model=mlp", "model.weights=none", "trainer.max_epochs=2", "dataset=digits", *words], True))


def test_runs_that_differ_in_labels_share_no_stack_and_no_id() -> None:
    planned = jobs("dataset.labelled=2,3,null", "seed=0,1")
    assert len({each.run_id for each in planned}) == 6
    assert len({each.data["fingerprint"] for each in planned}) == 1
    keys = [grouping.key(each.job.settings, each.data["fingerprint"], "w") for each in planned if each.job.settings.seed == 0]
    assert len(set(keys)) == 3


def test_who_asks_for_no_labels_has_the_id_of_earlier_versions() -> None:
    [planned] = jobs()
    earlier = {**planned.job.config, "dataset": {key: value for key, value in planned.job.config["dataset"].items() if key != "labelled"}}
    from regraft.settings import settings

    assert settings(earlier).run_id("data", "weights") == planned.job.settings.run_id("data", "weights")
    assert "labelled" not in repr(sorted(earlier["dataset"]))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dataset=clipart_tags", "task=tag", "dataset.labelled=3"], r"dataset\.labelled = 3: labels are counted class by class.*tags"),
        ([*GREEDY, "trainer.max_steps=9"], r"trainer\.max_steps = 9: .*give trainer\.max_epochs"),
        (["dataset.labelled=0"], r"dataset\.labelled = 0"),
    ],
)
def test_what_can_not_be_is_told(words, said) -> None:
    with pytest.raises(UserError, match=said):
        sweep.plan(config.Composer().jobs(words, multirun=False))


def test_places_say_which_pictures_an_epoch_has_and_nothing_else() -> None:
    places = torch.tensor([3, 5, 9, 20, 21])
    how = {"seed": 4, "views": 3, "expand": True}
    some = GlobalBatches(5, Batch(4, 1, 4, 1), places=places, **how)
    for share, other in zip(some, GlobalBatches(5, Batch(4, 1, 4, 1), **how), strict=True):
        assert torch.equal(share.picture, places[other.picture])
        assert torch.equal(share.view, other.view)
        assert torch.equal(share.row, other.row)
    assert len(set(seeds((0, "sample", 0), places).tolist())) == 5
