"""A language learnt on one corpus goes on to another: its numbers, its vectors and its layers, frozen or not."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from regraft import config, sweep
from regraft.errors import UserError
from regraft.graft import Run, state_of

pytestmark = pytest.mark.usefixtures("one_thread")

NET = ["model=lstm", "model.depth=2", "model.width=8", "model.embedding=6", "model.pool=mean", "hardware=cpu", "hardware.workers=0"]
NET += [
    "data.batch_size=8",
    "trainer.checkpoint_seconds=3600",
    "optimizer.lr=0.02",
    "dataset=text",
    "dataset.split=split",
    "dataset.floor=1",
]
draw = Random(0)
TOPICS = [["".join(draw.choices("abcdefghij", k=5)) for _ in range(20)] for _ in range(2)]
NEW = "zzz"
POLICIES = {
    "freeze=backbone": {"embedding", "layer1", "layer2"},
    "freeze=until freeze.stage=layer1": {"embedding", "layer1"},
    "freeze=none": set(),
}


def corpus(path: Path, names: str, seed: int, **splits: tuple[int, range]) -> list[str]:
    """A csv of texts of six words of one topic; split -> how many texts of each, and of which of its words."""
    draw = Random(seed)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label", "split"])
        for split, (count, places) in splits.items():
            for _ in range(count):
                for name, topic in zip(names, TOPICS, strict=True):
                    rows.writerow([" ".join(topic[place] for place in draw.choices(places, k=6)), name, split])
        rows.writerow([f"{NEW} {TOPICS[0][0]}", names[0], "val"])
    return [f"dataset.path={path}"]


@pytest.fixture
def first(executed: Any, tmp_path: Path) -> Run:
    """A run that knows which words go together."""
    words = corpus(tmp_path / "first.csv", "ab", 1, train=(60, range(20)), val=(8, range(20)), test=(8, range(20)))
    run: Run = executed([*NET, *words, "freeze=none", "trainer.max_epochs=8"], folder="first")
    assert run.metrics["test/accuracy"] == 1
    return run


@pytest.fixture
def second(tmp_path: Path) -> list[str]:
    """Overrides of another corpus: few texts to learn from, of few words; it is tested on the others."""
    return [*NET, *corpus(tmp_path / "second.csv", "xy", 2, train=(8, range(4)), val=(8, range(4)), test=(20, range(4, 20)))]


def taken(first: Run) -> list[str]:
    return [f"model.weights={first.folder.path}", f"dataset.vocabulary={first.folder.path}"]


def test_a_table_of_other_numbers_is_refused(executed: Any, first: Run, second: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        sweep.plan(config.Composer().jobs([*second, f"model.weights={first.folder.path}", "freeze=backbone"], multirun=False))
    assert f"dataset.vocabulary={first.folder.path} keeps its own" in str(caught.value)


def test_words_keep_their_numbers_and_new_ones_are_unknown(executed: Any, first: Run, second: list[str]) -> None:
    run = executed([*second, *taken(first), "trainer.max_epochs=0"])
    assert run.source.tokens == first.source.tokens == json.loads((run.folder / "vocabulary.json").read_text())
    known = {word: number for number, word in enumerate(first.source.tokens)}
    assert set(known) == {"", "<unknown>", *TOPICS[0], *TOPICS[1]}
    [strange] = [row for sample in run.source.split("val") if (row := run.source.read(sample).tolist())[2] == 0]
    assert strange[:2] == [known["<unknown>"], known[TOPICS[0][0]]] == [1, known[TOPICS[0][0]]]
    for name, tensor in state_of(first.chain).items():
        assert torch.equal(state_of(run.chain)[name], tensor), f"{name} starts as it was learnt"


def test_what_is_frozen_stays_to_the_bit(executed: Any, first: Run, second: list[str]) -> None:
    before = state_of(first.chain)
    for policy, frozen in POLICIES.items():
        run = executed([*second, *taken(first), *policy.split(), "trainer.max_epochs=2"])
        after = state_of(run.chain)
        assert {name.split(".")[0] for name in after if torch.equal(before[name], after[name])} == frozen, policy
        assert run.evaluate() == pytest.approx(run.metrics, abs=1e-6)


def test_few_texts_say_what_words_mean_that_they_never_had(executed: Any, first: Run, second: list[str]) -> None:
    taught = executed([*second, *taken(first), "freeze=backbone", "trainer.max_epochs=8"])
    alone = executed([*second, "freeze=none", "trainer.max_epochs=20"])
    assert alone.metrics["train/accuracy"] == 1
    assert alone.metrics["test/accuracy"] < 0.7, "all words of test are unknown to it"
    assert taught.metrics["test/accuracy"] > 0.95
