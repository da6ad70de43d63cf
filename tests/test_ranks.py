"""Ranks share what they know and fail together, through the store that their launcher hosts, before any process group is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from regraft import ranks
from regraft.cache import NoRoom
from regraft.errors import Problem, UserError
from regraft.ranks import ALONE, Ranks, here
from regraft.stopping import Stopped


def test_one_rank_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert here() is ALONE
    value = object()
    assert ALONE.share(value) == [value]
    with pytest.raises(KeyError, match="as it was"), ALONE.together():
        raise KeyError("as it was")
    with ALONE.together():
        pass


def launched(world, work, port, attempt=0):
    """What `work(ranks)` gives, or raises, on every rank: threads here, each with a connection of its own."""
    found = {}

    def run(rank):
        try:
            found[rank] = work(ranks.connected.__wrapped__(rank, world, ("127.0.0.1", str(port), "run", str(attempt))))
        except BaseException as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(world)]
    with pytest.MonkeyPatch.context() as patched:
        for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}.items():
            patched.setenv(name, value)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert len(found) == world, "a rank waits for ever"
    return [found[rank] for rank in range(world)]


@pytest.fixture
def port():
    """Of a store that is hosted here, as torchrun's agent hosts it."""
    agent = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))
    yield agent.port
    del agent


def test_values_cross_by_rank_turn_by_turn(port):
    def work(mine):
        return [mine.share({"rank": mine.rank, "turn": turn}) for turn in range(5)]

    assert launched(3, work, port) == [[[{"rank": rank, "turn": turn} for rank in range(3)] for turn in range(5)]] * 3


def test_what_the_first_says_holds_for_all_and_nobody_waits(port):
    def work(mine):
        before = mine.first("late")
        said = mine.first("soon", [mine.rank, True])
        mine.share(None)
        if mine.rank == 2:
            mine.first("late", 7)
        mine.share(None)
        return before, said, mine.first("soon"), mine.first("late"), mine.first("late", 8)

    (*_, [_, winner, *_]) = found = launched(3, work, port)
    assert found == [(None, winner, winner, 7, 7)] * 3
    assert winner in [[rank, True] for rank in range(3)]
    assert (ALONE.first("any"), ALONE.first("any", 5), ALONE.first("any")) == (None, 5, None)


@pytest.mark.parametrize("error", [Stopped("stopped by SIGTERM"), torch.OutOfMemoryError("CUDA out of memory")])
def test_what_is_no_mistake_crosses_as_it_is(port, error):
    """A rank that hears of it from another says the same, so that it does not matter whose word the controller reads first."""

    def work(mine):
        with mine.together():
            if mine.rank == 1:
                raise error

    assert {(type(each).__name__, type(error).__name__ in str(each) or str(error) in str(each)) for each in launched(3, work, port)} == {
        (type(error).__name__, True)
    }


def test_a_share_waits_for_the_slowest(port):
    def work(mine):
        time.sleep(0.3 * mine.rank)
        came = time.time()
        mine.share(None)
        return came, time.time()

    times = launched(3, work, port)
    assert max(came for came, _ in times) <= min(went for _, went in times)


def test_an_attempt_after_a_restart_reads_nothing_of_the_one_before(port):
    assert launched(2, lambda mine: mine.share(f"old {mine.rank}"), port) == [["old 0", "old 1"]] * 2
    assert launched(2, lambda mine: mine.share(f"new {mine.rank}"), port, attempt=1) == [["new 0", "new 1"]] * 2


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_error_reaches_all_ranks_as_it_is(port, failing):
    problems = [Problem("cache.max_gb", 2.5, "raise it"), Problem("dataset.path", ["a", "b"], "look there"), Problem("file", None, "gone")]

    def work(mine):
        with mine.together():
            if mine.rank == failing:
                raise NoRoom(problems)
        return "went on"

    for error in launched(3, work, port):
        assert type(error) is NoRoom
        assert [each.key for each in error.problems] == ["cache.max_gb", "dataset.path", "file"]
        assert (error.problems[0], error.problems[2], error.problems[1].remedy) == (problems[0], problems[2], "look there")


def test_where_several_fail_all_raise_the_first_ranks_error(port):
    def work(mine):
        with mine.together():
            if mine.rank:
                raise UserError(Problem("rank", mine.rank, "fails"))

    assert [str(error) for error in launched(3, work, port)] == ["rank = 1: fails"] * 3


def test_what_is_no_users_mistake_is_told_with_its_rank(port):
    def work(mine):
        with mine.together():
            if mine.rank == 1:
                raise ZeroDivisionError("by nothing")

    other, own = launched(2, work, port)
    assert isinstance(own, ZeroDivisionError)
    assert isinstance(other, RuntimeError)
    assert str(other) == "rank 1: ZeroDivisionError: by nothing"


def test_a_rank_that_is_told_to_stop_waits_for_nobody(port):
    def work(mine):
        with mine.together():
            if mine.rank == 1:
                raise KeyboardInterrupt
            time.sleep(0.5)

    other, own = launched(2, work, port)
    assert isinstance(own, KeyboardInterrupt)
    assert isinstance(other, RuntimeError)


def test_one_rank_never_imports_torch():
    code = "import sys; from regraft.ranks import here; here().share(1); sys.exit('torch' in sys.modules)"
    alone = {name: value for name, value in os.environ.items() if name != "WORLD_SIZE"}
    assert subprocess.run([sys.executable, "-c", code], env=alone).returncode == 0
    assert isinstance(ranks.ALONE, Ranks)


@pytest.mark.engines
def test_under_torchrun_two_ranks_fill_a_store_and_then_make_their_process_group(tmp_path):
    script = tmp_path / "ranked.py"
    script.write_text(
        textwrap.dedent("""
        import json, sys
        from pathlib import Path
        import torch
        import torch.distributed as dist
        from regraft.cache import Store, fill
        from regraft.ranks import here

        folder, mine, ranks = Path(sys.argv[1]), [], here()
        keys = [f"{number:064x}" for number in range(10)]

        def compute(positions, wanted):
            mine.extend(positions)
            yield [torch.tensor(positions, dtype=torch.float32)[:, None]]

        store = Store(folder, {})
        made = fill([store], keys, compute, ranks)
        rows = store.open(keys).gather(torch.arange(10)).flatten().tolist()
        dist.init_process_group("gloo")
        total = torch.ones(1)
        dist.all_reduce(total)
        (folder / f"{ranks.rank}.json").write_text(json.dumps([made, mine, rows, total.item()]))
        dist.destroy_process_group()
        """)
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MASTER_", "TORCHELASTIC_"))}
    subprocess.run([*command, str(script), str(tmp_path)], check=True, env=clean | {"OMP_NUM_THREADS": "1"}, timeout=120)
    shares = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert shares == [[[10], part, list(range(10)), 2] for part in ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9])]
