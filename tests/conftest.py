"""What every test stands on: folders of its own for caches and runs, no network, no other launcher's environment."""

from __future__ import annotations

import itertools
import os
from contextlib import contextmanager

import pytest

FOREIGN = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def pytest_collection_modifyitems(items):
    """Files of whole commands first: what is slow must not be left for the end, where one process would wait for the other."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def _surroundings(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    patch.setenv("MPLCONFIGDIR", str(tmp_path_factory.mktemp("matplotlib")))
    patch.setenv("WANDB_MODE", "offline")
    patch.setenv("HF_HUB_OFFLINE", "1")
    for name in FOREIGN:
        patch.delenv(name, raising=False)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def one_thread():
    """On such small pictures threads that wait for each other cost more than they give: tenfold on a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def executed(tmp_path):
    """Runs overrides in this process, as a worker would: `executed(overrides, folder="name") -> Run`."""
    from regraft import config, running, sweep
    from regraft.graft import Run

    numbers = itertools.count()

    def execute(overrides, folder=None):
        where = tmp_path / "runs" / (folder or f"run-{next(numbers)}")
        [planned] = sweep.plan(config.Composer().jobs(["plots=false", *overrides, f"hydra.run.dir={where}"], multirun=False))
        sweep.begin(planned, "a test", {"git": None, "packages": {}, "machine": {}})
        running.execute([planned.folder], lambda what: None)
        return Run(planned.folder.path)

    assert "RANK" not in os.environ
    return execute


@pytest.fixture
def swept(tmp_path):
    """Runs a sweep in this process, group by group, as workers would: `swept(overrides, folder="name") -> [RunFolder]`, in their order."""
    from regraft import config, running, sweep

    def execute(overrides, folder="sweep"):
        words = ["plots=false", *overrides, f"hydra.sweep.dir={tmp_path / folder}"]
        planned = sweep.plan(config.Composer().jobs(words, multirun=True))
        for group in sweep.groups(planned):
            sweep.begin_together(group, "a test", {"git": None, "packages": {}, "machine": {}})
            running.execute([each.folder for each in group], lambda what: None)
        return [each.folder for each in planned]

    return execute


class Death(BaseException):
    """What no handler of errors takes for one."""


@pytest.fixture
def dying(monkeypatch):
    """`with dying(n)`: the process dies when the n-th epoch of any run is written, before its checkpoint is."""
    from regraft.record import Metrics

    @contextmanager
    def after(epochs):
        append, written = Metrics.append, []

        def append_and_die(self, *arguments):
            append(self, *arguments)
            written.append(arguments)
            if len(written) == epochs:
                raise Death

        with monkeypatch.context() as patch:
            patch.setattr(Metrics, "append", append_and_die)
            with pytest.raises(Death):
                yield

    return after


@pytest.fixture
def killed(executed, dying):
    """A run that dies in its n-th epoch; the folder "killed" is what is left."""

    def execute(overrides, epoch):
        with dying(epoch):
            executed(overrides, folder="killed")

    return execute
