"""Splits are a partition, stratified, grouped, and a function of ids and seed alone; for any data that hypothesis can think of."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.datasets.source import Sample
from regraft.datasets.splits import assign, few, folds, joined, make
from regraft.errors import UserError

Rows = list[tuple[str, int, str | None]]  # id, label, group


@st.composite
def rows(draw: st.DrawFn, *, shared: bool = False, least: int = 1) -> Rows:
    """Pictures in groups of 1 to 6; with `shared`, the pictures of a group may be of several classes."""
    made: Rows = []
    for label in range(draw(st.integers(1, 4))):
        for group, size in enumerate(draw(st.lists(st.integers(1, 6), min_size=least, max_size=25))):
            name = None if size == 1 else f"{group % 7}" if shared else f"{label}-{group}"
            made += [(f"{label}/{group}/{index}.png", label, name) for index in range(size)]
    return made


FRACTIONS = st.fixed_dictionaries({"val": st.floats(0.02, 0.3), "test": st.floats(0.02, 0.3)})
SEEDS = st.integers(0, 1000)


def split(data: Rows, fractions: dict[str, float], seed: int) -> dict[str, str]:
    ids, labels, groups = zip(*data, strict=True)
    return dict(zip(ids, assign(ids, labels, groups, fractions, seed), strict=True))


def sizes(data: Rows) -> dict[int, Counter[str]]:
    """Class -> group -> pictures; a picture that stands alone is its own group."""
    found: dict[int, Counter[str]] = defaultdict(Counter)
    for name, label, group in data:
        found[label][group or name] += 1
    return found


@given(rows(shared=True), FRACTIONS, SEEDS)
def test_a_group_never_crosses_a_split(data: Rows, fractions: dict[str, float], seed: int) -> None:
    found = split(data, fractions, seed)
    assert set(found.values()) <= {"train", "val", "test"}
    where = defaultdict(set)
    for name, _, group in data:
        where[group or name].add(found[name])
    assert all(len(splits) == 1 for splits in where.values())


@given(rows(least=3), FRACTIONS, SEEDS)
def test_stratified_within_one_group_and_no_split_empty(data: Rows, fractions: dict[str, float], seed: int) -> None:
    found = split(data, fractions, seed)
    for label, groups in sizes(data).items():
        have = Counter(found[name] for name, other, _ in data if other == label)
        assert all(have[name] > 0 for name in ("train", "val", "test"))
        for name, fraction in fractions.items():
            assert abs(have[name] - fraction * groups.total()) <= max(groups.values())


@given(st.integers(20, 300), FRACTIONS, SEEDS)
def test_without_groups_the_sizes_are_exact(count: int, fractions: dict[str, float], seed: int) -> None:
    have = Counter(split([(f"{index}", 0, None) for index in range(count)], fractions, seed).values())
    for name, fraction in fractions.items():
        assert have[name] == 1 if fraction * count < 1 else abs(have[name] - fraction * count) <= 0.5


@given(rows(shared=True), FRACTIONS, SEEDS, st.randoms())
def test_order_does_not_matter_nor_what_groups_and_classes_are_called(data: Rows, fractions: dict[str, float], seed: int, chance) -> None:
    shuffled = list(data)
    chance.shuffle(shuffled)
    renamed = [(name, 9 - label, group and f"another {group}") for name, label, group in shuffled]
    assert split(data, fractions, seed) == split(shuffled, fractions, seed) == split(renamed, fractions, seed)


@given(rows(least=1), FRACTIONS, SEEDS)
def test_a_class_is_split_alike_without_the_others(data: Rows, fractions: dict[str, float], seed: int) -> None:
    whole = split(data, fractions, seed)
    alone = [row for row in data if row[1] == 0]
    assert split(alone, fractions, seed) == {name: whole[name] for name, _, _ in alone}


def test_the_seed_matters_and_a_split_that_is_not_wanted_is_not_made() -> None:
    data: Rows = [(f"{index}", index % 2, None) for index in range(200)]
    both = {"val": 0.2, "test": 0.2}
    assert split(data, both, 0) != split(data, both, 1)
    assert set(split(data, {"val": 0.2, "test": 0}, 0).values()) == {"train", "val"}
    assert set(split(data, {}, 0).values()) == {"train"}


def test_golden() -> None:
    """The same on every machine and in every version: a change here changes everybody's splits."""
    found = split([(f"{index}.png", 0, None) for index in range(12)], {"val": 0.25, "test": 0.25}, 0)
    assert "".join(place[1] for place in found.values()) == GOLDEN  # r: train, a: val, e: test


GOLDEN = "erarrerrreaa"


@pytest.mark.parametrize(("count", "expected"), [(1, {"train"}), (2, {"train", "test"}), (3, {"train", "val", "test"})])
def test_too_few_groups_for_every_split(count: int, expected: set[str]) -> None:
    data: Rows = [(f"{group}/{index}", 0, f"{group}") for group in range(count) for index in range(5)]
    assert set(split(data, {"val": 0.2, "test": 0.2}, 0).values()) == expected


def test_one_huge_group_does_not_become_val() -> None:
    data: Rows = [(f"huge/{index}", 0, "huge") for index in range(100)] + [(f"{index}", 0, None) for index in range(3)]
    for seed in range(20):
        assert split(data, {"val": 0.1, "test": 0.1}, seed)["huge/0"] == "train"


def refused(counts: list[int], fractions: dict[str, float], groups: list[str | None] | None = None) -> list[str]:
    ids = [f"{label}/{index}" for label, count in enumerate(counts) for index in range(count)]
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    with pytest.raises(UserError) as caught:
        make(ids, labels, groups or [None] * len(ids), ["cat", "dog", "owl"], fractions, 0)
    assert {problem.key for problem in caught.value.problems} == {"dataset.classes"}
    return [f"{problem.given} {problem.remedy}" for problem in caught.value.problems]


def test_small_classes_are_refused_by_name() -> None:
    dog, owl = refused([3, 2, 1], {"val": 0.1, "test": 0.1})
    assert dog.startswith("dog has 2 pictures, but train and val and test need one each")
    assert owl.startswith("owl has 1 picture,")
    assert "dataset.val=0 and dataset.test=0" in owl
    (owl,) = refused([2, 1, 0], {"val": 0, "test": 0})
    assert owl.startswith("owl has no pictures to train on")
    make(["a", "b", "c"], [0, 1, 2], [None] * 3, ["cat", "dog", "owl"], {"val": 0.0}, 0)


def test_a_class_that_shares_all_its_groups_is_never_left_without_train_unsaid() -> None:
    """Each picture of cat has twins among dogs and owls, so that one split must do for all three."""
    groups: list[str | None] = ["x", "y", "z"] * 3
    splits = make(
        [f"{index}" for index in range(9)], [index // 3 for index in range(9)], groups, ["cat", "dog", "owl"], {"val": 0.3, "test": 0.3}, 0
    )
    assert splits[:3] == splits[3:6] == splits[6:]
    assert sorted(splits[:3]) == ["test", "train", "val"]


@given(st.integers(1, 40), st.integers(1, 12), SEEDS, st.randoms())
@settings(max_examples=50)
def test_few_is_nested_and_touches_train_only(count: int, most: int, seed: int, chance) -> None:
    samples = [Sample(f"{label}/{index}", "train" if index % 4 else "val", label, "") for label in range(3) for index in range(count)]
    shuffled = list(samples)
    chance.shuffle(shuffled)
    kept = set(few(samples, most, seed))
    assert kept == set(few(shuffled, most, seed))
    assert kept <= set(few(samples, most + 1, seed))
    for label in range(3):
        available = sum(sample.label == label and sample.split == "train" for sample in samples)
        assert sum(sample.label == label and sample.split == "train" for sample in kept) == min(most, available)
    assert [sample for sample in samples if sample.split == "val"] == [
        sample for sample in few(samples, most, seed) if sample.split == "val"
    ]
    assert few(samples, None, seed) == samples


def test_few_depends_on_the_seed() -> None:
    samples = [Sample(f"{index}", "train", 0, "") for index in range(100)]
    assert few(samples, 5, 0) != few(samples, 5, 1)


# ---- k-fold


def dealt(data: Rows, count: int, seed: int) -> dict[str, int]:
    ids, labels, groups = zip(*data, strict=True)
    return dict(zip(ids, folds(ids, labels, groups, ["class"] * 4, count, seed, sparse=True), strict=True))


FOLDS = st.integers(3, 7)


@given(rows(shared=True), FOLDS, SEEDS)
def test_folds_are_a_partition_and_no_group_crosses(data: Rows, count: int, seed: int) -> None:
    found = dealt(data, count, seed)
    assert set(found) == {name for name, _, _ in data}  # each picture is in one fold, and so in test once
    assert set(found.values()) <= set(range(count))
    where = defaultdict(set)
    for name, _, group in data:
        where[group or name].add(found[name])
    assert all(len(places) == 1 for places in where.values())


@given(rows(), FOLDS, SEEDS)
def test_folds_are_stratified_within_one_group(data: Rows, count: int, seed: int) -> None:
    found = dealt(data, count, seed)
    for label, groups in sizes(data).items():
        have = Counter(dict.fromkeys(range(count), 0))
        have.update(found[name] for name, other, _ in data if other == label)
        assert max(have.values()) - min(have.values()) <= max(groups.values())
        if len(groups) >= count:
            assert min(have.values()) > 0


@given(rows(shared=True), FOLDS, SEEDS, st.randoms())
def test_folds_do_not_depend_on_order_or_names(data: Rows, count: int, seed: int, chance) -> None:
    shuffled = list(data)
    chance.shuffle(shuffled)
    renamed = [(name, 3 - label, group and f"another {group}") for name, label, group in shuffled]
    assert dealt(data, count, seed) == dealt(shuffled, count, seed) == dealt(renamed, count, seed)


def test_folds_golden_and_the_seed() -> None:
    data: Rows = [(f"{index}.png", index % 2, None) for index in range(12)]
    assert "".join(map(str, dealt(data, 3, 0).values())) == GOLDEN_FOLDS
    assert dealt(data, 3, 0) != dealt(data, 3, 1)


GOLDEN_FOLDS = "110021220210"


def test_a_class_with_fewer_groups_than_folds_is_refused_by_name() -> None:
    ids = [f"{index}" for index in range(9)]
    groups = [None] * 5 + ["x", "x", "y", "z"]  # the second class: 4 pictures, 3 groups
    with pytest.raises(UserError) as caught:
        folds(ids, [0] * 5 + [1] * 4, groups, ["cat", "dog"], 4, 0)
    (problem,) = caught.value.problems
    assert (problem.key, problem.given) == ("dataset.folds", 4)
    assert problem.remedy.startswith("dog has 3 groups of pictures")
    assert "dataset.folds=3" in problem.remedy
    assert len(set(folds(ids, [0] * 5 + [1] * 4, groups, ["cat", "dog"], 3, 0)[5:])) == 3


@given(st.lists(st.tuples(st.sampled_from([None, *"abcd"]), st.sampled_from([None, *"wxyz"])), min_size=1, max_size=20))
def test_joined_keeps_together_what_any_grouping_does(pairs: list[tuple[str | None, str | None]]) -> None:
    found = joined(*map(list, zip(*pairs, strict=True)))
    # the same, by walking from each picture to all that it hangs together with
    for index in range(len(pairs)):
        reached, fresh = {index}, [index]
        while fresh:
            one = pairs[fresh.pop()]
            near = {
                number for number, other in enumerate(pairs) if any(a is not None and a == b for a, b in zip(one, other, strict=True))
            } - reached
            reached |= near
            fresh += near
        assert {number for number, name in enumerate(found) if name == found[index]} == reached
