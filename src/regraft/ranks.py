"""The ranks of one run speak before torch.distributed does: values are shared, and what fails on one fails on all."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from regraft import files
from regraft.errors import FULL, Problem, UserError
from regraft.stopping import Stopped

MEETING = "REGRAFT_MEETING"  # the environment variable that names a file where ranks that were forked learn where to meet
CONNECT = timedelta(minutes=5)  # for ranks to find each other; what they then wait for may take hours
PAUSES = (0.001, 0.5)  # s between two looks, at first and at most


class Ranks:
    """This process's rank among `world`; `store` is what all of them reach (torch.distributed's), None where there is one rank."""

    def __init__(self, rank: int, world: int, store: Any = None) -> None:
        self.rank, self.world, self._store, self._turns = rank, world, store, count()

    def share(self, value: Any) -> list[Any]:
        """Every rank gives a value (plain data) and gets all ranks' values, by rank. All ranks must come here, and none goes on before."""
        if self.world == 1:
            return [value]
        names = self._give(value)
        pause, most = PAUSES
        while not self._store.check(names):  # asked again and again, so that a signal is heard and no time limit is needed
            time.sleep(pause)
            pause = min(2 * pause, most)
        return [json.loads(self._store.get(name)) for name in names]

    def first(self, name: str, value: Any = None) -> Any:
        """What the first rank that had something to say under this name has said; None: none has yet. Nobody waits."""
        if self.world == 1:
            return value
        if value is not None:
            return json.loads(self._store.compare_set(name, "", json.dumps(value)))
        return json.loads(self._store.get(name)) if self._store.check([name]) else None

    @contextmanager
    def together(self) -> Iterator[None]:
        """Ends when all ranks have come to its end; what was raised inside on one rank, the lowest, is then raised on all.

        A UserError crosses as it is, with its class, and so do a word to stop and a GPU's want of memory; of anything else the other
        ranks raise RuntimeError with its words.
        """
        own = None
        try:
            yield
        except Exception as error:
            own = error
        except BaseException as error:  # told to stop: it waits for nobody
            if self.world > 1:
                self._give(_told(error))
            raise
        told = self.share(own and _told(own))
        first = next((rank for rank, error in enumerate(told) if error), None)
        if own is not None and first == self.rank:
            raise own
        if first is not None:
            raise _error(first, *told[first]) from own

    def _give(self, value: Any) -> list[str]:
        """Leaves this rank's value for the others; gives back where those of all will lie."""
        turn = next(self._turns)
        names = [f"{turn}/{rank}" for rank in range(self.world)]
        self._store.set(names[self.rank], json.dumps(value))
        return names


ALONE = Ranks(0, 1)


def here() -> Ranks:
    """The ranks that this process was started among, by the environment that torchrun makes; ALONE where there are none."""
    world = int(os.environ.get("WORLD_SIZE") or 1)
    if world == 1:
        return ALONE
    if at := os.environ.pop(MEETING, None):
        _meet(Path(at), int(os.environ["RANK"]), world)
    names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
    return connected(int(os.environ["RANK"]), world, tuple(os.environ.get(name, "") for name in names))


def _meet(at: Path, rank: int, world: int) -> None:
    """What torchrun's agent does for its ranks: rank 0 hosts a store on a free port of this machine, which it leaves in the file `at`.

    Raises RuntimeError where rank 0 does not come.
    """
    if rank == 0:
        from torch.distributed import TCPStore

        global _hosted
        _hosted = TCPStore("127.0.0.1", 0, world, True, timeout=CONNECT, wait_for_workers=False)
        files.write_text(at, str(_hosted.port))
    end = time.monotonic() + CONNECT.total_seconds()
    while not at.is_file():
        if time.monotonic() > end:
            raise RuntimeError(f"rank {rank} has waited {CONNECT} for rank 0")
        time.sleep(PAUSES[0])
    os.environ["MASTER_PORT"] = at.read_text()


_hosted: Any = None  # the store lives as long as its process


@cache
def connected(rank: int, world: int, where: tuple[str, ...]) -> Ranks:
    """Through the store that torchrun's agent hosts (rank 0 where it hosts none); a restarted attempt reads nothing of the one before."""
    from torch.distributed import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(iter(rendezvous("env://", rank, world, timeout=CONNECT)))
    return Ranks(rank, world, PrefixStore(f"regraft/{where[2]}/{where[3]}", store))


def _told(error: BaseException) -> list[Any]:
    problems = [[problem.key, _plain(problem.given), problem.remedy] for problem in getattr(error, "problems", [])]
    return [type(error).__name__, str(error), problems if isinstance(error, UserError) else []]


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _error(rank: int, kind: str, message: str, problems: list[list[Any]]) -> BaseException:
    if kind == Stopped.__name__:
        return Stopped(message)
    if kind == FULL:
        from torch import OutOfMemoryError

        return OutOfMemoryError(f"rank {rank}: {message}")
    if not problems:
        return RuntimeError(f"rank {rank}: {kind}: {message}")
    kinds: dict[str, type[UserError]] = {each.__name__: each for each in UserError.__subclasses__()}
    return kinds.get(kind, UserError)([Problem(*each) for each in problems])
