"""The store: each content is computed once, read as it was written, never read half, and never evicted under a reader."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft import cache, segments
from regraft.cache import NoRoom, Store, fill, make_room
from regraft.eviction import size, stores_in
from regraft.files import digest
from regraft.locks import Lock
from regraft.ranks import Ranks

FORK = multiprocessing.get_context("fork")
DTYPES = ["float32", "bfloat16", "uint8"]


def key(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def keys(numbers) -> list[str]:
    return [key(number) for number in numbers]


def row(number: int, dtype: torch.dtype = torch.float32, store: int = 0) -> torch.Tensor:
    """[3, 2], another for each number and store"""
    return (torch.randn(3, 2, generator=torch.Generator().manual_seed(number)) * 50 + 100 + store).to(dtype)


def rows(numbers, dtype: torch.dtype = torch.float32, store: int = 0) -> torch.Tensor:
    return torch.stack([row(number, dtype, store) for number in numbers])


def build(stores, numbers, dtype=torch.float32, batch=4, each: Callable[[int], Any] = lambda count: None, log: list[Any] | None = None):
    """Fills the stores; `each` is called after every batch; what was computed is appended to `log`."""

    def compute(positions, wanted):
        for count, start in enumerate(range(0, len(positions), batch)):
            part = [numbers[position] for position in positions[start : start + batch]]
            if log is not None:
                log.extend((number, store) for number in part for store in wanted)
            yield [rows(part, dtype, store) for store in wanted]
            each(count)

    return fill(stores if isinstance(stores, list) else [stores], keys(numbers), compute)


def there(store, numbers, dtype=torch.float32, number=0) -> bool:
    return torch.equal(store.open(keys(numbers)).gather(torch.arange(len(numbers))), rows(numbers, dtype, number))


def child(work: Callable[..., Any], *arguments: Any) -> Any:
    process = FORK.Process(target=work, args=arguments, daemon=True)  # no test that fails leaves one behind
    process.start()
    return process


@pytest.fixture
def tiny(monkeypatch):
    """A segment for every four rows."""
    monkeypatch.setattr(segments, "LARGEST", 4 * 24)


@settings(max_examples=40, deadline=None)
@given(
    parts=st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=12), min_size=1, max_size=4),
    dtype=st.sampled_from(DTYPES),
    largest=st.sampled_from([1, 40, 2**20]),
)
def test_rows_come_back_as_they_were_and_are_computed_once(tmp_path_factory, parts, dtype, largest):
    store = Store(tmp_path_factory.mktemp("store"), {"dtype": dtype})
    kind, known = getattr(torch, dtype), set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "LARGEST", largest)
        for numbers in parts:
            missing = store.missing(keys(numbers))
            assert {numbers[position] for position in missing} == set(numbers) - known
            assert missing == sorted(missing)
            assert build(store, numbers, kind, batch=3) == [len(missing)] == [len(set(numbers) - known)]
            known |= set(numbers)
            asked = sorted(known, reverse=True) * 2
            found = Store(store.folder.parent.parent, {"dtype": dtype}).open(keys(asked))
            index = torch.randperm(len(asked))
            assert torch.equal(found.gather(index), rows([asked[i] for i in index], kind))
            assert (len(found), found.row_shape, found.dtype) == (len(asked), (3, 2), kind)


@settings(max_examples=40, deadline=None)
@given(known=st.lists(st.sets(st.integers(0, 12)), min_size=1, max_size=3), asked=st.lists(st.integers(0, 12), min_size=1, max_size=20))
def test_one_pass_fills_all_stores_with_what_each_lacks(tmp_path_factory, known, asked):
    folder = tmp_path_factory.mktemp("store")
    stores = [Store(folder, {"store": number}) for number in range(len(known))]
    for number, numbers in enumerate(known):
        there_already = sorted(numbers)
        fill([stores[number]], keys(there_already), lambda at, _, n=there_already, s=number: iter([[rows([n[i] for i in at], store=s)]]))
    log: list[Any] = []
    counts = build(stores, asked, log=log)
    assert sorted(log) == sorted((number, store) for store in range(len(known)) for number in set(asked) - known[store])
    assert counts == [len(set(asked) - numbers) for numbers in known]
    assert all(there(store, asked, number=number) for number, store in enumerate(stores))
    visits = [number for number, _ in dict.fromkeys(log)]
    assert build(stores, asked, log=log) == [0] * len(known)
    assert len(visits) == len(log)


def test_nothing_asked_for_is_nothing_computed(tmp_path):
    store = Store(tmp_path, {})
    assert (fill([store], [], lambda *_: iter(())), store.missing([]), len(store.open([]))) == ([0], [], 0)


def test_another_description_is_another_store(tmp_path):
    one, other = Store(tmp_path, {"size": 128, "view": 0}), Store(tmp_path, {"size": 160, "view": 0})
    assert one.folder != other.folder
    assert Store(tmp_path, {"view": 0, "size": 128}).folder == one.folder
    build(one, [1])
    assert build(other, [1]) == [1]


def test_a_pass_of_another_kind_or_length_is_a_mistake_of_the_program(tmp_path):
    store = Store(tmp_path, {})
    with pytest.raises(ValueError, match="1 rows were computed of 2"):
        fill([store], keys([1, 2]), lambda *_: iter([[rows([1])]]))
    for strange in (rows([1, 2]).double(), rows([2])[0]):
        with pytest.raises(ValueError, match="can't be stored"):
            fill([store], keys([1, 2, 3]), lambda *_, strange=strange: iter([[rows([2])], [strange]]))


# ---- what is damaged ----


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(["rows.bin", "keys.bin", "segment.json"]), where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found_and_mended(tmp_path_factory, name, where, bit):
    folder = tmp_path_factory.mktemp("store")
    build(Store(folder, {}), [1, 2, 3])
    [path] = folder.glob(f"activations/*/segment-*/{name}")
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 1 << bit
    path.unlink()
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "_SUMS", {})  # as in another process
        store = Store(folder, {})
        assert store.missing(keys([1, 2, 3])) == [0, 1, 2]
        assert build(store, [1, 2, 3]) == [3]
        assert there(store, [1, 2, 3])
        assert not list(store.folder.glob(".damaged-*")), "the builder removes what was set aside"


@pytest.mark.parametrize("name", ["rows.bin", "keys.bin", "segment.json"])
@pytest.mark.parametrize("harm", ["short", "long", "empty", "missing", "link", "pipe", "folder"])
def test_what_is_no_whole_file_is_built_again(tmp_path, name, harm):
    build(Store(tmp_path, {}), [1, 2, 3])
    [path] = tmp_path.glob(f"activations/*/segment-*/{name}")
    data = path.read_bytes()
    path.unlink()
    other = tmp_path / "other"
    other.write_bytes(data)
    harms = {
        "short": lambda: path.write_bytes(data[:-1]),
        "long": lambda: path.write_bytes(data + b"x"),
        "empty": lambda: path.write_bytes(b""),
        "missing": lambda: None,
        "link": lambda: path.symlink_to(other),
        "pipe": lambda: os.mkfifo(path),
        "folder": lambda: path.mkdir(),
    }
    harms[harm]()
    store = Store(tmp_path, {})
    assert build(store, [1, 2, 3]) == [3]
    assert there(store, [1, 2, 3])
    assert other.read_bytes() == data


LIES: dict[str, Any] = {
    "more rows": {"rows": 4},
    "too many rows": {"rows": 2**60},
    "no rows": {"rows": 0},
    "rows below none": {"rows": -3},
    "rows as words": {"rows": "3"},
    "rows as truth": {"rows": True},
    "another shape": {"shape": [2, 2]},
    "a shape below none": {"shape": [-3, -2]},
    "a huge shape": {"shape": [2**40, 2**40]},
    "a nested shape": {"shape": [[3], 2]},
    "a deep shape": {"shape": [1] * 40 + [3, 2]},
    "a shape in words": {"shape": "32"},
    "wider values": {"dtype": "float64"},
    "objects": {"dtype": "object"},
    "a list as type": {"dtype": ["float32"]},
    "no checksums": {"sha256": {}},
    "checksums of nothing": {"sha256": None},
    "another store's": {"store": "0" * 32},
    "a file elsewhere": {"sha256": {"../../x": "0"}},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_strangers_lie_under_a_right_seal_is_damage(tmp_path, lie):
    build(Store(tmp_path, {}), [1, 2, 3])
    [path] = tmp_path.glob("activations/*/segment-*/segment.json")
    meta = json.loads(path.read_text())
    del meta["seal"]
    assert digest(meta) == json.loads(path.read_text())["seal"], "the seal is right, and so only the lie is found"
    meta |= LIES[lie]
    path.write_text(json.dumps(meta | {"seal": digest(meta)}))
    store = Store(tmp_path, {})
    assert build(store, [1, 2, 3]) == [3]
    assert there(store, [1, 2, 3])


@pytest.mark.parametrize(
    "text", ["", "[]", "3", "null", "[" * 60000, '{"rows": ' + "9" * 5000 + "}", '{"seal": {}}', "\xff", "{" + " " * 2**17 + "}"]
)
def test_a_strangers_text_is_damage(tmp_path, text):
    build(Store(tmp_path, {}), [1])
    [path] = tmp_path.glob("activations/*/segment-*/segment.json")
    path.write_text(text, encoding="latin-1")
    assert build(Store(tmp_path, {}), [1]) == [1]


def test_whole_segments_of_two_kinds_are_built_again(tmp_path):
    store = Store(tmp_path, {})
    build(store, [1, 2])
    fill([store], [key(3)], lambda *_: iter([[torch.zeros(1, 6)]]))
    assert store.missing(keys([1, 2, 3])) == [0, 1, 2]
    assert build(store, [1, 2, 3]) == [3]
    assert there(store, [1, 2, 3])


def test_a_damaged_segment_is_moved_away_under_a_reader(tmp_path):
    build(Store(tmp_path, {}), [1, 2])
    reader = Store(tmp_path, {}).open(keys([1, 2]))
    [path] = tmp_path.glob("activations/*/segment-*/keys.bin")
    path.write_bytes(bytes(64))
    assert build(Store(tmp_path, {}), [1, 2]) == [2]
    assert torch.equal(reader.gather(torch.tensor([0, 1])), rows([1, 2])), "it is gone from the folder, and still mapped"


def test_a_file_is_read_through_once_in_a_process(tmp_path, monkeypatch):
    build(Store(tmp_path, {}), [1, 2])
    read: list[Path] = []
    whole = segments.sha256
    monkeypatch.setattr(segments, "sha256", lambda path: read.append(path) or whole(path))
    for _ in range(3):
        store = Store(tmp_path, {})
        assert store.missing(keys([1])) == []
        assert there(store, [1, 2])
    assert sorted(path.name for path in read) == ["keys.bin", "rows.bin"]


def test_rows_that_go_between_filling_and_opening_are_told(tmp_path):
    store = Store(tmp_path, {})
    build(store, [1])
    shutil.rmtree(store.folder)
    with pytest.raises(NoRoom, match="rows that were there have gone"):
        store.open([key(1)])
    assert build(store, [1]) == [1], "also where a user has removed the folder by hand"
    assert there(store, [1])


# ---- what breaks off ----


def test_a_builder_that_raises_keeps_whole_rows_and_nothing_else(tmp_path):
    store = Store(tmp_path, {})

    def broken(count):
        raise RuntimeError("a broken picture")

    with pytest.raises(RuntimeError, match="a broken picture"):
        build(store, list(range(10)), each=broken)
    assert not list(store.folder.glob(".building-*"))
    assert build(store, list(range(10))) == [6]
    assert there(store, range(10))


def test_a_long_pass_publishes_as_it_goes(tmp_path, tiny):
    store, seen = Store(tmp_path, {}), []
    build(store, list(range(20)), each=lambda count: seen.append(len(list(store.folder.glob("segment-*")))))
    assert seen == [1, 2, 3, 4, 5]


def _crash(folder, where, turn):
    """Builds, and is killed at the nth call of something that writes."""
    owner, name = {"write": (segments.os, "fsync"), "rename": (segments.Path, "rename"), "keys": (segments.Path, "write_bytes")}[where]
    before, calls = getattr(owner, name), iter(range(100))

    def deadly(*arguments, **more):
        if next(calls) == turn:
            os.kill(os.getpid(), signal.SIGKILL)
        return before(*arguments, **more)

    setattr(owner, name, deadly)
    build(Store(folder, {}), list(range(20)))


@pytest.mark.parametrize("where", ["write", "keys", "rename"])
@pytest.mark.parametrize("turn", [0, 3])
def test_a_killed_builder_leaves_whole_rows_and_no_lock(tmp_path, tiny, where, turn):
    builder = child(_crash, tmp_path, where, turn)
    builder.join(20)
    assert builder.exitcode == -signal.SIGKILL
    store = Store(tmp_path, {})
    assert list(store.folder.glob(".*")), "it was killed in the middle of something"
    lost = 20 - 4 * (turn if where != "write" else turn - 1 if turn else 0)  # store.json is put on the disk first
    assert len(store.missing(keys(range(20)))) == lost
    assert build(store, list(range(20))) == [lost]
    assert there(store, range(20))
    assert not list(store.folder.glob(".*")), "what the killed one left is swept"


def _fork_and_sleep(folder, told):
    def fork(count):
        if number := os.fork():
            told.put(number)
        time.sleep(60)
        os._exit(0)

    build(Store(folder, {}), [1], each=fork)


def test_a_killed_builders_own_child_holds_no_lock(tmp_path):
    """A loader's worker outlives its parent for some seconds."""
    told = FORK.Queue()
    builder = child(_fork_and_sleep, tmp_path, told)
    grandchild = told.get(timeout=30)
    path = Store(tmp_path, {}).folder / cache.LOCK
    with pytest.raises(BlockingIOError):
        Lock(path, alone=True, wait=False)
    builder.kill()
    builder.join()
    os.kill(grandchild, 0)  # it lives
    Lock(path, alone=True, wait=False).release()
    os.kill(grandchild, signal.SIGKILL)


@pytest.mark.parametrize("turn", [0, 2])
def test_a_full_disk_is_told_and_leaves_nothing_half(tmp_path, tiny, monkeypatch, turn):
    class Full:
        """A file on a disk that takes half a batch more."""

        def __init__(self, file):
            self.file, self.room = file, 40

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            if not self.room:
                raise OSError(28, "No space left on device")
            written, self.room = self.file.write(data[: self.room]), 0
            return written

    before, calls = Path.open, iter(range(100))

    def opened(path, *how, **more):
        file = before(path, *how, **more)
        return Full(file) if path.name == "rows.bin" and how == ("xb",) and next(calls) == turn else file

    monkeypatch.setattr(segments.Path, "open", opened)
    store = Store(tmp_path, {})
    with pytest.raises(NoRoom, match=r"No space left on device.*regraft cache prune.*cache\.dir"):
        build(store, list(range(12)))
    monkeypatch.undo()
    assert not list(store.folder.glob(".building-*"))
    assert len(store.missing(keys(range(12)))) == 12 - 4 * turn
    assert build(store, list(range(12))) == [12 - 4 * turn]


# ---- several processes ----


def _count(folder, order, numbers, barrier, results):
    barrier.wait()
    log: list[Any] = []
    stores = [Store(folder, {"store": number}) for number in order]
    build(stores, numbers, log=log)
    results.put([(number, order[store]) for number, store in log])


def test_runs_that_overlap_compute_nothing_twice_and_do_not_wait_for_each_other_for_ever(tmp_path):
    barrier, results = FORK.Barrier(4), FORK.Queue()
    plans = [([0, 1], range(20)), ([1, 0], range(20)), ([2, 1], range(10, 30)), ([1, 2, 0], range(30))]
    processes = [child(_count, tmp_path, order, list(numbers), barrier, results) for order, numbers in plans]
    made = [each for _ in processes for each in results.get(timeout=20)]
    for process in processes:
        process.join(20)
    assert len(made) == len(set(made)), "each row once"
    assert set(made) == {(number, store) for order, numbers in plans for store in order for number in numbers}


def _read(folder, description, ready):
    found = Store(folder, description).open(keys([1]))
    ready.set()
    time.sleep(60)
    found.gather(torch.tensor([0]))


def _aged(folder, count) -> list[Path]:
    """Stores of one row each, the first unused for longest."""
    folders = []
    for number in range(count):
        store = Store(folder, {"number": number})
        build(store, [1])
        os.utime(store.folder / "used", (number, number))
        folders.append(store.folder)
    return folders


def test_the_longest_unused_goes_first_and_what_is_in_use_never(tmp_path):
    folders = _aged(tmp_path, 4)
    ready = FORK.Event()
    reader = child(_read, tmp_path, {"number": 0}, ready)
    assert ready.wait(20)
    each = size(folders[0])
    make_room(tmp_path, each, 4 * each + 100, keep=[Store(tmp_path, {"number": 1})])
    assert stores_in(tmp_path) == sorted([folders[0], folders[1], folders[3]]), "0 is being read, 1 is to be kept"
    with pytest.raises(NoRoom, match=r"beside .* in use; cache\.max_gb="):
        make_room(tmp_path, 2 * each, 3.5 * each, keep=[Store(tmp_path, {"number": 1})])
    assert len(stores_in(tmp_path)) == 3, "where it does not suffice nothing goes"
    os.kill(reader.pid, signal.SIGKILL)
    reader.join()
    make_room(tmp_path, each, 1 * each, keep=[])
    assert stores_in(tmp_path) == []
    assert not list((tmp_path / "activations").iterdir())


def test_what_a_refusal_says_would_do_does(tmp_path):
    store = Store(tmp_path, {})
    build(store, [1])
    with pytest.raises(NoRoom) as told:
        make_room(tmp_path, 10**9, 1e8, keep=[store])
    [problem] = told.value.problems
    assert (problem.key, problem.given) == ("cache.max_gb", 0.1)
    make_room(tmp_path, 10**9, float(problem.remedy.partition("cache.max_gb=")[2].split()[0]) * 1e9, keep=[store])
    assert there(store, [1])


def test_a_store_is_in_use_as_long_as_its_rows_live(tmp_path):
    build(Store(tmp_path, {}), [1])
    found = Store(tmp_path, {}).open(keys([1]))
    with pytest.raises(NoRoom):
        make_room(tmp_path, 10, 10, keep=[])
    del found
    make_room(tmp_path, 10, 10, keep=[])
    assert stores_in(tmp_path) == []


def test_a_disk_with_too_little_room_is_told_before_it_is_full(tmp_path, monkeypatch):
    folders = _aged(tmp_path, 3)
    each = size(folders[0])
    monkeypatch.setattr(cache, "_free", lambda folder: 100)
    make_room(tmp_path, 100 + each, 1e12, keep=[])
    assert stores_in(tmp_path) == sorted(folders[1:])
    with pytest.raises(NoRoom, match="the disk has"):
        make_room(tmp_path, 101 + 2 * each, 1e12, keep=[])
    assert stores_in(tmp_path) == sorted(folders[1:])


def test_a_folder_that_is_not_there_has_room(tmp_path):
    make_room(tmp_path / "not" / "yet", 10, 100, keep=[])
    with pytest.raises(NoRoom):
        make_room(tmp_path / "not" / "yet", 10**19, 1e30, keep=[])


def test_a_lock_that_was_waited_for_is_of_the_file_that_is_there_now(tmp_path):
    """Its store was evicted, and made again, while it waited."""
    old, taken = tmp_path / "a" / "lock", FORK.Event()
    old.parent.mkdir()
    held = Lock(old, alone=True)
    waiter = child(_wait, old, taken)
    time.sleep(0.2)
    old.parent.rename(tmp_path / "gone")
    old.parent.mkdir()
    held.release()
    assert taken.wait(20)
    with pytest.raises(BlockingIOError):
        Lock(old, alone=True, wait=False)
    os.kill(waiter.pid, signal.SIGKILL)
    waiter.join()
    assert Lock(old, alone=True, wait=False).stands


def _wait(path, taken):
    lock = Lock(path, alone=True)
    taken.set()
    time.sleep(60)
    lock.release()


# ---- two users ----


@pytest.fixture
def shared():
    """A folder that other users may enter, which pytest's own is not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def _as_nobody(work, results):
    os.setgid(65534)
    os.setuid(65534)
    try:
        results.put(work())
    except BaseException as error:
        results.put(error)


def as_nobody(work):
    results = FORK.Queue()
    process = child(_as_nobody, work, results)
    answer = results.get(timeout=20)
    process.join()
    return answer


def test_published_rows_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        store = Store(tmp_path, {})
        build(store, [1])
        [segment] = store.folder.glob("segment-*")
        assert [path.stat().st_mode & 0o777 for path in (segment, segment / "rows.bin", store.folder / "used")] == [0o750, 0o640, 0o640]
    finally:
        os.umask(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_reads_what_may_be_read_and_is_told_the_rest(shared):
    build(Store(shared, {}), [1, 2])

    def reads():
        store = Store(shared, {})
        with pytest.raises(BlockingIOError):
            return there(store, [1, 2]) and Lock(store.folder / "used", alone=True, wait=False)

    assert as_nobody(reads) is None, "they come as they were, and count as in use"
    assert isinstance(as_nobody(lambda: build(Store(shared, {}), [1, 3])), NoRoom)
    assert isinstance(as_nobody(lambda: build(Store(shared, {"other": 1}), [1])), NoRoom)
    with_refusal = as_nobody(lambda: make_room(shared, 10, 10, keep=[]))
    assert isinstance(with_refusal, NoRoom)
    assert build(Store(shared, {}), [1, 2]) == [0], "another user's refusals have harmed nothing"
    [segment] = shared.glob("activations/*/segment-*")
    segment.chmod(0o700)
    assert as_nobody(lambda: Store(shared, {}).missing(keys([1, 2]))) == [0, 1], "what can't be read is not there"
    assert build(Store(shared, {}), [1, 2]) == [0], "and is not taken for damaged"


# ---- ranks ----


class Heard:
    """A store of values in this process, as torch.distributed's is between several."""

    def __init__(self):
        self.values: dict[str, Any] = {}

    def set(self, name, value):
        self.values[name] = value

    def check(self, names):
        return all(name in self.values for name in names)

    def get(self, name):
        return self.values[name]


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_compute_a_share_each(tmp_path, tiny, world):
    from concurrent.futures import ThreadPoolExecutor

    heard, logs = Heard(), [[] for _ in range(world)]
    build(Store(tmp_path, {"store": 0}), [3, 4])

    def work(rank):
        stores = [Store(tmp_path, {"store": number}) for number in range(2)]

        def compute(positions, wanted):
            for position in positions:
                logs[rank].append((position, tuple(wanted)))
                yield [rows([position], store=number) for number in wanted]

        made = fill(stores, keys(range(20)), compute, Ranks(rank, world, heard))
        return made, all(there(store, range(20), number=number) for number, store in enumerate(stores))

    with ThreadPoolExecutor(world) as pool:
        answers = list(pool.map(work, range(world)))
    assert answers == [([18, 20], True)] * world
    assert sorted(each for log in logs for each in log) == [(n, (1,) if n in (3, 4) else (0, 1)) for n in range(20)]
    assert max(map(len, logs)) - min(map(len, logs)) <= 2


@pytest.mark.parametrize("failing", [0, 1])
def test_what_fails_on_one_rank_fails_on_all(tmp_path, failing):
    from concurrent.futures import ThreadPoolExecutor

    heard = Heard()

    def work(rank):
        ranks, store = Ranks(rank, 2, heard), Store(tmp_path, {})

        def compute(positions, wanted):
            if rank == failing:
                raise NoRoom(cache.Problem("cache.dir", "here", "full"))
            yield [rows(positions)]

        with pytest.raises(NoRoom, match=r"cache\.dir = here: full"):
            fill([store], keys(range(10)), compute, ranks)
        return fill([store], keys(range(10)), lambda positions, wanted: iter([[rows(positions)]]), ranks)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, range(2))) == [[5], [5]], "what the other rank had computed stays"


def test_a_rank_that_can_not_write_stops_all_before_anything_is_computed(tmp_path, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor

    heard = Heard()
    (tmp_path / "activations").write_text("a file in the way")

    def work(rank):
        with pytest.raises(NoRoom, match="can't write"):
            fill([Store(tmp_path, {})], keys([1]), lambda *_: pytest.fail("computed"), Ranks(rank, 2, heard))
        return True

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, range(2))) == [True, True]
