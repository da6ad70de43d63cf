"""Groups as tasks of a Ray cluster: one of its own on this machine, or one that is there, whose nodes share the run folders."""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from regraft import launchers
from regraft.errors import Problem, UserError, brief, facts, killed
from regraft.hardware import cores, visible_gpus
from regraft.launchers.launcher import Group
from regraft.launchers.node import here
from regraft.launchers.workers import PATIENCE, Share, heeded, run
from regraft.record import RunFolder

TRIES = 3  # to connect; Ray gives its server 30 s in each
GRACE = 10  # seconds that a worker may outlive the Ray process that has started it
Need = Mapping[str, float]  # resource, as Ray names it -> how much of it


class Launcher:
    """As `launchers.launcher` says."""

    def __init__(self, spec: launchers.Ray) -> None:
        self.spec = spec

    def launch(self, groups: Sequence[Group], show: bool) -> None:
        if not groups:
            return
        with heeded():  # also gives back the handler that Ray takes
            ray = self._connected()
            try:
                with heeded():
                    self._run(ray, groups)
            finally:
                ray.shutdown()

    def busy(self, jobs: Collection[str]) -> set[str]:
        """None: Ray ends the tasks of a controller that is gone."""
        return set()

    def _connected(self) -> Any:
        """The module ray, connected. Raises UserError with Ray's words where there is no such cluster."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report its use over the network
        import ray

        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        own: dict[str, Any] = {"num_cpus": cores(), "num_gpus": visible_gpus(), "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        how = quiet if self.spec.address else own | quiet
        try:
            for _ in range(TRIES - 1):
                with suppress(ConnectionAbortedError):  # the cluster is there, and was too busy to start what answers this client
                    ray.init(self.spec.address or "local", **how)
                    return ray
                ray.shutdown()
            ray.init(self.spec.address or "local", **how)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            remedy = f"Ray says: {brief(error)}; null is a cluster of its own on this machine"
            raise UserError(Problem("launcher.address", self.spec.address or "null", remedy)) from None
        return ray

    def _run(self, ray: Any, groups: Sequence[Group]) -> None:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        needs = {group: self._need(group, nodes) for group in groups}
        if self.spec.jobs == "auto":  # else nodes may come for what is waiting
            for group in groups:
                _fits(group, needs[group], nodes)
        # max_calls: a process of its own for each group; what is lost is gone on with by the same command, not by Ray
        task = ray.remote(max_calls=1, max_retries=0)(work)
        waiting, running = deque(groups), dict[Any, Group]()
        try:
            while waiting or running:
                while waiting and self._room(ray, [needs[group] for group in running.values()], needs[waiting[0]]):
                    group = waiting.popleft()
                    if folders := group.begin():
                        need = dict(needs[group])
                        share = {"num_cpus": need.pop("CPU"), "num_gpus": need.pop("GPU"), "resources": need}
                        paths, threads = [str(folder.path) for folder in folders], os.environ.get("OMP_NUM_THREADS")
                        running[task.options(**share).remote(paths, group.devices, group.gpus, share["num_cpus"], threads)] = group
                if running:
                    [ended], _ = ray.wait(list(running), num_returns=1)
                    group = running.pop(ended)
                    _settle(ray, ended, group.folders)
                    if not group.ended():
                        waiting.clear()
        finally:
            for left in running:
                ray.cancel(left)  # each saves, all at once
            if running:
                ray.wait(list(running), num_returns=len(running), timeout=PATIENCE + GRACE)
            for left, group in running.items():
                _settle(ray, left, group.folders)
                group.ended()

    def _need(self, group: Group, nodes: Sequence[Need]) -> Need:
        gpus = group.devices if group.gpus else 0
        share = [node["CPU"] / node["GPU"] for node in nodes if gpus and node.get("GPU") and node.get("CPU")]
        auto = max(1, math.floor(min(share) * gpus)) if share else group.devices
        return {**self.spec.resources, "CPU": auto if self.spec.cpus_per_job == "auto" else self.spec.cpus_per_job, "GPU": gpus}

    def _room(self, ray: Any, taken: Sequence[Need], need: Need) -> bool:
        """Whether one more shall be handed to Ray, which finds it a node. More would only claim run folders and wait."""
        if isinstance(self.spec.jobs, int):
            return len(taken) < self.spec.jobs
        there = ray.cluster_resources()
        return not taken or all(sum(each[name] for each in (*taken, need)) <= there.get(name, 0) for name in need)


def work(paths: Sequence[str], devices: int, gpus: bool, count: int, threads: str | None) -> None:
    """On the node: a worker's whole life. `threads`: OMP_NUM_THREADS of the command, which Ray has overwritten."""
    signal.signal(signal.SIGALRM, lambda number, frame: None)
    signal.setitimer(signal.ITIMER_REAL, 1, 1)  # ray.cancel sets a flag: who waits for a lock looks at it when a signal comes
    os.environ.pop("OMP_NUM_THREADS", None)
    os.environ.update({} if threads is None else {"OMP_NUM_THREADS": threads})
    folders = [RunFolder(path) for path in paths]
    for folder in folders:
        folder.update(**here())
    run(folders, devices, share=Share(count, None if gpus else ()))  # a GPU that was not asked for is another's


def _fits(group: Group, need: Need, nodes: Sequence[Need]) -> None:
    """Raises UserError where no node has what the group needs: Ray would wait for one for ever."""
    if any(all(node.get(name, 0) >= amount for name, amount in need.items()) for node in nodes):
        return
    have = "; ".join(sorted({_listed({name: node.get(name, 0) for name in need}) for node in nodes}))
    remedy = f"such a job takes {_listed(need)}, and no node has that (there are {have}); launcher.jobs=N waits until one comes"
    raise UserError(Problem("hardware.devices", group.devices, remedy))


def _listed(need: Need) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in sorted(need.items()) if amount or name == "CPU")


def _settle(ray: Any, task: Any, folders: Sequence[RunFolder]) -> None:
    """Write into the records what has become of runs whose worker could not: its node is gone, or its process."""
    for folder in folders:
        with suppress(OSError):  # somebody may have removed it
            os.listdir(folder.path)  # has a network file system look again at what another machine has written
    try:
        ray.get(task, timeout=0)
        return
    except ray.exceptions.TaskCancelledError:
        error, status = killed("the task was cancelled"), "running"
    except ray.exceptions.RayTaskError as raised:
        error, status = facts(raised.cause or raised), "failed"
    except ray.exceptions.RayError as raised:
        if isinstance(raised, ray.exceptions.GetTimeoutError):  # it does not end by itself
            with suppress(ray.exceptions.RayError):
                ray.cancel(task, force=True)
        error, status = killed(f"the worker was lost: {brief(raised)}"), "running"
    for folder in filter(lambda folder: folder.exists, folders):
        _tell(folder, status, error)


def _tell(folder: RunFolder, status: str, error: Mapping[str, Any]) -> None:
    """The error into a record that says nothing yet; when the worker has let go of the run, since only one may write."""
    end = time.monotonic() + GRACE
    while time.monotonic() < end:
        try:
            held = folder.hold()
        except UserError:
            time.sleep(0.1)
            continue
        try:
            record = folder.record
            if record["status"] == "running" and not record["error"]:
                folder.update(status=status, error=dict(error))
        finally:
            held.release()
        return
