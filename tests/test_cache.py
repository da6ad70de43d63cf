"""The store: each content is computed once, read as it was written, and never read half."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import signal
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft import cache
from regraft.cache import NoRoom, Store


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def row(number: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(3, 2, generator=torch.Generator().manual_seed(number)).to(dtype)


def fill(store: Store, numbers: list[int], dtype: torch.dtype = torch.float32, batch: int = 4) -> int:
    def compute(missing):
        for start in range(0, len(missing), batch):
            yield torch.stack([row(numbers[position], dtype) for position in missing[start : start + batch]])

    return store.ensure([key(number) for number in numbers], compute)


@settings(max_examples=30, deadline=None)
@given(
    parts=st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=12), min_size=1, max_size=4),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_rows_come_back_as_they_were_and_are_computed_once(tmp_path_factory, parts, dtype):
    store = Store(tmp_path_factory.mktemp("store"), {"dtype": dtype})
    kind, known = getattr(torch, dtype), set()
    for numbers in parts:
        assert fill(store, numbers, kind) == len(set(numbers) - known)
        known |= set(numbers)
        asked = sorted(known, reverse=True)
        rows = Store(store.folder.parent.parent, {"dtype": dtype}).open([key(number) for number in asked])
        index = torch.randperm(len(asked))
        assert torch.equal(rows.gather(index), torch.stack([row(asked[i], kind) for i in index]))


def test_another_description_is_another_store(tmp_path):
    one, other = Store(tmp_path, {"size": 128, "view": 0}), Store(tmp_path, {"size": 160, "view": 0})
    assert one.folder != other.folder
    assert Store(tmp_path, {"view": 0, "size": 128}).folder == one.folder
    fill(one, [1])
    assert fill(other, [1]) == 1


def test_a_damaged_segment_is_built_again(tmp_path):
    fill(Store(tmp_path, {}), [1, 2, 3])
    [rows] = tmp_path.glob("activations/*/segment-*/rows.bin")
    data = bytearray(rows.read_bytes())
    data[5] ^= 1
    rows.write_bytes(data)
    store = Store(tmp_path, {})
    assert fill(store, [1, 2, 3]) == 3
    assert torch.equal(store.open([key(2)]).gather(torch.tensor([0]))[0], row(2))


def test_a_builder_that_raises_leaves_nothing(tmp_path):
    store = Store(tmp_path, {})

    def compute(missing):
        yield torch.stack([row(1)])
        raise RuntimeError("a broken picture")

    with pytest.raises(RuntimeError, match="a broken picture"):
        store.ensure([key(1), key(2)], compute)
    assert not list(store.folder.glob("*building*")) + list(store.folder.glob("segment-*"))
    assert fill(store, [1, 2]) == 2


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    class Full(io.FileIO):
        def write(self, data):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.Path, "open", lambda path, *how, **more: Full(path, "wb"))
    store = Store(tmp_path, {})
    with pytest.raises(NoRoom, match="No space left on device"):
        fill(store, [1, 2])
    monkeypatch.undo()
    assert fill(store, [1, 2]) == 2


def _slow(folder, started):
    def compute(missing):
        yield torch.stack([row(0)])
        started.set()
        time.sleep(60)

    Store(folder, {}).ensure([key(n) for n in range(5)], compute)


def _count(folder, barrier, results):
    barrier.wait()
    results.put(fill(Store(folder, {}), list(range(20))))


def test_a_killed_builder_leaves_no_half_rows_and_no_lock(tmp_path):
    context = multiprocessing.get_context("fork")
    started = context.Event()
    builder = context.Process(target=_slow, args=(tmp_path, started))
    builder.start()
    assert started.wait(30)
    os.kill(builder.pid, signal.SIGKILL)
    builder.join()
    store = Store(tmp_path, {})
    assert fill(store, list(range(5))) == 5
    assert torch.equal(store.open([key(n) for n in range(5)]).gather(torch.arange(5)), torch.stack([row(n) for n in range(5)]))
    assert not list(store.folder.glob(".building-*")), "what the killed one left is swept"


def test_one_process_builds_while_others_wait(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_count, args=(tmp_path, barrier, results)) for _ in range(4)]
    for process in processes:
        process.start()
    counts = sorted(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert counts == [0, 0, 0, 20]
