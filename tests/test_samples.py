"""Samples as columns: what goes in comes out, selections share what they select from, and little is held for each."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regraft.datasets.samples import CHUNK, SPLITS, Sample, Samples
from regraft.datasets.source import Source

TEXT = st.text(st.characters(blacklist_categories=("Cs",)), max_size=8)
HASHES = st.one_of(st.binary(min_size=32, max_size=32).map(bytes.hex), TEXT, st.just("AB" * 32), st.just("ab " * 21 + "a"))


@st.composite
def given_samples(draw: st.DrawFn) -> list[Sample]:
    """Any ids, hashes and groups; targets for all or for none."""
    k = draw(st.sampled_from([None, 1, 3]))
    targets = st.none() if k is None else st.tuples(*[st.floats(-1e30, 1e30)] * k)
    made = st.builds(Sample, TEXT, st.sampled_from(SPLITS), st.integers(0, 2**31 - 1), HASHES, st.none() | TEXT, targets)
    return draw(st.lists(made, max_size=20, unique_by=lambda sample: sample.id))


@given(given_samples(), st.data())
def test_what_goes_in_comes_out(given: list[Sample], data: st.DataObject) -> None:
    samples, ordered = Samples.of(given), sorted(given, key=lambda sample: sample.id)
    assert list(samples) == ordered
    assert [samples[at] for at in range(-len(ordered), len(ordered))] == ordered * 2
    cut = slice(*data.draw(st.tuples(*[st.none() | st.integers(-25, 25)] * 2, st.sampled_from([None, 1, 3, -1]))))
    assert list(samples[cut]) == ordered[cut]
    chosen = data.draw(st.lists(st.integers(0, len(ordered) - 1), max_size=9)) if ordered else []
    assert list(samples.take(chosen)) == [ordered[at] for at in chosen]
    for split in SPLITS:
        own = [sample for sample in ordered if sample.split == split]
        assert (list(samples.of_split(split)), samples.counts()[split]) == (own, len(own))
        assert list(samples.of_split(split)[1:]) == own[1:], "a selection of a selection"
    assert samples.sha256s() == [sample.sha256 for sample in ordered]
    assert [samples.find(sample.id) for sample in ordered] == list(range(len(ordered)))
    assert list(pickle.loads(pickle.dumps(samples))) == ordered


@given(given_samples())
def test_the_truth_is_a_column(given: list[Sample]) -> None:
    picked = Samples.of(given).of_split("train")
    truth = picked.truth()
    if given and given[0].target is not None:
        assert truth.dtype == np.float32
        assert truth.tolist() == [np.array(sample.target, np.float32).tolist() for sample in picked]
    else:
        assert (truth.dtype, truth.tolist()) == (np.int64, [sample.label for sample in picked])


def test_what_is_not_there_is_not_found() -> None:
    samples = Samples.of(Sample(name, "train", 0, "") for name in ("b", "d"))
    assert [bool(samples.of_split("dev")), len(samples.of_split("test"))] == [False, 0]
    for name in ("a", "c", "e"):
        with pytest.raises(KeyError, match=name):
            samples.find(name)
    for place in (2, -3):
        with pytest.raises(IndexError):
            samples[place]


def test_a_sample_takes_about_a_hundred_bytes_and_few_objects() -> None:
    count = 3 * CHUNK + 5
    made = (
        Sample(f"train/n{i % 9:08d}/n{i % 9:08d}_{i}.JPEG", "train", i % 9, hashlib.sha256(bytes(i % 251)).hexdigest())
        for i in range(count)
    )
    source = Source([str(label) for label in range(9)], made)
    train = source.split("train")
    assert train.columns is source.samples.columns, "a split holds no samples of its own"
    assert len(pickle.dumps((source.samples, train), 5)) < 100 * count
    assert sum(1 for _ in train) == count
    assert train[CHUNK] == list(train)[CHUNK], "chunks meet"


def test_hashes_are_kept_as_they_are_where_one_of_many_is_none() -> None:
    plain = [Sample(f"{i:05d}", "train", 0, hashlib.sha256(bytes(i)).hexdigest()) for i in range(CHUNK + 3)]
    odd = [*plain[:-1], replace(plain[-1], sha256="F" * 64)]
    assert isinstance(Samples.of(plain).columns.sha256, np.ndarray)
    assert Samples.of(plain).sha256s() == [sample.sha256 for sample in plain]
    assert Samples.of(odd).sha256s() == [sample.sha256 for sample in odd]
