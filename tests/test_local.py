"""Workers at once on this machine: so many, each with cores and GPUs of its own, and what ends early ends all."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regraft.launchers import local, workers
from regraft.launchers.local import Launcher, Room
from regraft.launchers.workers import Share


@pytest.fixture
def machine(monkeypatch):
    """A machine of so many cores and GPUs, of which CUDA_VISIBLE_DEVICES may show some."""

    def made(cores: int, gpus: int = 0, visible: str | None = None) -> None:
        monkeypatch.setattr(local, "cores", lambda: cores)
        monkeypatch.setattr(local, "visible_gpus", lambda: gpus)
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return made


def test_cores_are_shared_out_and_no_worker_is_without_one(machine):
    machine(cores=8)
    for jobs, share in ((1, 8), (2, 4), (3, 2), (20, 1)):
        room = Room(jobs, gpus=False)
        assert [room.take(1, False) for _ in range(jobs)] == [Share(share)] * jobs
        assert room.take(1, False) is None
    assert Room("auto", gpus=False).take(1, False) == Share(8), "one after the other, with all of the machine"


def test_gpus_are_shared_out(machine):
    machine(cores=8, gpus=4)
    room = Room("auto", gpus=True)
    one, pair = room.take(1, True), room.take(2, True)
    assert (one, pair) == (Share(2, ("0",)), Share(2, ("1", "2")))
    assert room.take(2, True) is None, "one is left"
    assert room.take(1, True) == Share(2, ("3",))
    room.give(pair)
    room.give(one)
    assert room.take(3, True).gpus == ("1", "2", "0")


def test_only_visible_gpus_are_shared_out_by_the_names_that_they_have(machine):
    machine(cores=4, gpus=2, visible="5, GPU-7f,-1,6")  # CUDA stops at -1
    room = Room(2, gpus=True)
    assert [room.take(1, True).gpus for _ in range(2)] == [("5",), ("GPU-7f",)]


def test_a_worker_by_itself_sees_what_is_visible(machine):
    machine(cores=4, gpus=2, visible="1,3")
    assert Room(1, gpus=True).take(2, True) == Share(4)
    assert workers.environment(1, Share(4))["CUDA_VISIBLE_DEVICES"] == "1,3"
    assert workers.environment(2, Share(4, ("3", "1")))["CUDA_VISIBLE_DEVICES"] == "3,1"


@given(
    jobs=st.integers(1, 4),
    count=st.integers(1, 4),
    turns=st.lists(st.tuples(st.booleans(), st.integers(1, 3), st.integers(0, 9)), max_size=30),
)
def test_no_gpu_is_taken_twice_and_none_is_lost(jobs, count, turns):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "cores", lambda: 8)
        patch.setattr(local, "visible_gpus", lambda: count)
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        room, taken = Room(jobs, gpus=True), []
        for gives, devices, which in turns:
            if gives and taken:
                room.give(taken.pop(which % len(taken)))
            elif (share := room.take(devices, True)) is not None:
                taken.append(share)
            assert len(taken) <= jobs
            held = [name for share in taken for name in share.gpus or ()]
            assert len(held) == len(set(held))
        for share in taken:
            room.give(share)
        if jobs > 1:
            assert sorted(room.take(count, True).gpus) == [str(number) for number in range(count)]


def test_the_shares_threads_are_a_workers_unless_the_user_says_so(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = workers.environment(2, Share(6))
    assert (found["OMP_NUM_THREADS"], found[workers.SHARE]) == ("3", "6")
    assert workers.environment(4, Share(2))["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert workers.environment(2, Share(6))["OMP_NUM_THREADS"] == "5"


class Group:
    """Stands for runs: what `begin` finds left to run, and whether others may follow."""

    gpus = False

    def __init__(self, name: str, log: list, left: bool = True, follow: bool = True, devices: int = 1) -> None:
        self.name, self.log, self.left, self.follow, self.devices = name, log, left, follow, devices
        self.folders = [name]

    def begin(self):
        self.log.append(("begin", self.name))
        return self.folders if self.left else []

    def ended(self):
        self.log.append(("ended", self.name))
        return self.follow


@pytest.fixture
def fake(monkeypatch, machine):
    """Workers that are none: each ends when all that may run at once have started, the one that started last first."""
    machine(cores=4)
    log: list = []
    alive: list = []

    class Worker:
        def __init__(self, name):
            self.name, self.folders = name, [name]
            self.again = name.startswith("again") and ("settled", name) not in log

        def tell(self, number):
            log.append(("told", self.name))

        def stop(self):
            log.append(("stopped", self.name))

        def settle(self):
            again, self.again = self.folders if self.again else [], False
            log.append(("settled", self.name))
            return again

    def start(folders, devices, show, share, ends):
        alive.append(Worker(folders[0]))
        log.append(("start", folders[0], share.cores))
        return alive[-1]

    def ended():
        """What the launcher waits for."""
        assert alive, "it waits, and nobody works"
        return alive.pop()

    monkeypatch.setattr(local, "start", start)
    monkeypatch.setattr(local, "SimpleQueue", lambda: SimpleNamespace(get=ended))
    return log


def test_as_many_as_there_is_room_for_and_the_next_when_one_has_ended(fake):
    groups = [Group(name, fake) for name in "abcd"]
    Launcher(2).launch(groups, False)
    assert [each for each in fake if each[0] in ("start", "ended")] == [
        *[("start", "a", 2), ("start", "b", 2), ("ended", "b"), ("start", "c", 2)],
        *[("ended", "c"), ("start", "d", 2), ("ended", "d"), ("ended", "a")],
    ]
    begins = [name for what, name, *_ in fake if what == "begin"]
    assert begins == list("abcd")
    assert fake.index(("begin", "c")) > fake.index(("ended", "b")), "begun when there is room, and not before"


def test_what_another_process_has_taken_costs_no_room(fake):
    Launcher(1).launch([Group("a", fake, left=False), Group("b", fake), Group("c", fake, left=False)], False)
    assert [each[:2] for each in fake if each[0] == "start"] == [("start", "b")]
    assert [each for each in fake if each[0] == "ended"] == [("ended", "b")]


def test_on_error_stop_begins_no_other_and_waits_for_those_at_work(fake):
    groups = [Group("a", fake), Group("bad", fake, follow=False), Group("c", fake), Group("d", fake)]
    Launcher(2).launch(groups, False)
    assert [name for what, name, *_ in fake if what == "begin"] == ["a", "bad"]
    assert [name for what, name, *_ in fake if what == "ended"] == ["bad", "a"]
    assert not [each for each in fake if each[0] == "told"], "what is at work comes to its end"


def test_a_worker_that_is_to_start_again_keeps_its_room(fake):
    Launcher(1).launch([Group("again", fake), Group("b", fake)], False)
    assert [each[:2] for each in fake if each[0] in ("start", "ended")] == [
        *[("start", "again"), ("start", "again"), ("ended", "again"), ("start", "b"), ("ended", "b")]
    ]


def test_all_are_told_before_any_is_waited_for(fake, monkeypatch):
    counted = itertools.count()
    told = local.SimpleQueue().get

    def interrupted():
        if next(counted) == 1:
            raise KeyboardInterrupt
        return told()

    monkeypatch.setattr(local, "SimpleQueue", lambda: SimpleNamespace(get=interrupted))
    groups = [Group(name, fake) for name in "abcd"]
    with pytest.raises(KeyboardInterrupt):
        Launcher(2).launch(groups, False)
    assert [each[:2] for each in fake[fake.index(("told", "a")) :]] == [
        *[("told", "a"), ("told", "c")],
        *[("stopped", "a"), ("settled", "a"), ("ended", "a"), ("stopped", "c"), ("settled", "c"), ("ended", "c")],
    ]
    assert ("begin", "d") not in fake
