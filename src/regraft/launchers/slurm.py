"""Slurm: an array of jobs for each shape of resources, handed on through submitit; each job is a worker's whole life on its node."""

from __future__ import annotations

import io
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft import files, launchers
from regraft.errors import Problem, UserError, killed
from regraft.launchers.launcher import Group
from regraft.launchers.workers import ENDING, Share, heeded, run
from regraft.record import JOB, RunFolder, environment

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission

NAME = "regraft"  # of all jobs
ARRAY = 1000  # jobs of an array at most: what Slurm takes where nobody has told it otherwise
SAVE = 90  # seconds before its time is up at which a job is told
SLOWEST = 30  # seconds between two looks at the queue at most
GRACE = 10  # seconds that a shared file system may need to show what a job has written
WORD = 60  # seconds that a job waits to be told, by job.json, that its runs are its own
OVER = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT")
)
NEVER = frozenset(  # reasons for which a job would wait for ever
    ("AccountNotAllowed", "BadConstraints", "InvalidAccount", "InvalidQOS", "PartitionConfig", "PartitionNodeLimit", "PartitionTimeLimit")
)
REFUSALS = {  # what sbatch says -> the key that it is about
    "partition name": "launcher.partition",
    "account": "launcher.account",
    "qos": "launcher.qos",
    "memory": "launcher.mem_gb",
    "time limit": "launcher.time_min",
    "cpu|processor": "launcher.cpus_per_device",
    "node configuration|gres|generic resource": "hardware.devices",
}


class Launcher:
    """As `launchers.launcher` says. What is handed on goes on when this process is gone: the same command then waits for it."""

    def __init__(self, spec: launchers.Slurm) -> None:
        self.spec = spec

    def launch(self, groups: Sequence[Group], show: bool) -> None:
        unsent: list[Group] = []
        running: dict[str, Group] = {}
        with heeded([number for number in ENDING if number != signal.SIGHUP]):  # a terminal that is lost ends no job
            try:
                for group in groups:
                    if folders := group.begin():
                        job = folders[0].job  # where it has one, an earlier command has handed it on
                        running |= {job["id"]: group} if job else {}
                        unsent += [] if job else [group]
                self._submit(unsent, running)
                self._collect(running)
            finally:
                try:
                    if running:
                        _ask("scancel", *running)  # each saves, all at once
                        self._collect(running)
                finally:
                    for group in unsent:
                        for folder in group.folders:
                            _tell(folder, "it was not handed on to Slurm")
                    for group in (*unsent, *running.values()):
                        group.ended()

    def busy(self, jobs: Collection[str]) -> set[str]:
        return {job for job, (state, _) in _queue().items() if job in jobs and state not in OVER} if jobs else set()

    def _submit(self, unsent: list[Group], running: dict[str, Group]) -> None:
        """Each group becomes a job, and moves from one to the other. Raises UserError with Slurm's words where it refuses one."""
        if not unsent:
            return
        below = Path(os.path.commonpath([folder.path.parent for group in unsent for folder in group.folders])) / ".slurm"
        shapes = defaultdict(list)
        for group in unsent:
            shapes[group.devices, group.gpus].append(group)
        for alike in shapes.values():
            for first in range(0, len(alike), ARRAY):
                array = alike[first : first + ARRAY]
                for job, group in zip(self._array(array, below), array, strict=True):
                    for folder in group.folders:
                        files.write_json(folder / JOB, {"launcher": "slurm", "id": job})
                    running[job] = group
                    unsent.remove(group)

    def _array(self, groups: Sequence[Group], below: Path) -> list[str]:
        """The ids of the jobs of groups that need the same."""
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        devices, gpus, spec = groups[0].devices, groups[0].gpus, self.spec
        # exec: the batch script becomes the worker's keeper, which alone is then told (B:) that its time is nearly up
        executor = SlurmExecutor(below, max_num_timeout=spec.max_requeues, python=f"exec {shlex.quote(sys.executable)}")
        asked: dict[str, Any] = {"nodes": 1, "ntasks_per_node": 1, "cpus_per_task": spec.cpus_per_device * devices, "time": spec.time_min}
        asked |= {"gpus_per_node": devices} if gpus else {}
        asked |= {"mem": f"{round(1024 * spec.mem_gb)}M"} if spec.mem_gb else {}
        notice = {"signal": f"B:USR2@{min(SAVE, 30 * spec.time_min)}", "requeue": True}
        chosen = {"partition": spec.partition, "account": spec.account, "qos": spec.qos, "setup": spec.setup, "wckey": None}
        try:
            executor.update_parameters(
                job_name=NAME,
                use_srun=False,
                array_parallelism=spec.array_parallelism,
                additional_parameters=notice | spec.additional,
                **asked,
                **chosen,
            )
            with _outside_a_job(), redirect_stderr(io.StringIO()):
                jobs = executor.submit_array([Task([str(folder.path) for folder in group.folders], devices) for group in groups])
        except (FailedJobError, FailedSubmissionError) as error:
            raise _refused(str(error), spec, devices, gpus) from None
        return [job.job_id for job in jobs]

    def _collect(self, running: dict[str, Group]) -> None:
        """Wait until none is left. Slurm is asked for all of them in one question, the more seldom the longer it takes."""
        start, over = time.monotonic(), dict[str, float]()
        while running:
            time.sleep(min(SLOWEST, max(1.0, (time.monotonic() - start) / 10)))
            try:
                queue = _queue()
            except UserError:  # the cluster's controller starts anew; jobs go on
                continue
            for job, group in list(running.items()):
                state, reason = queue.get(job, ("", ""))
                never = state == "PENDING" and reason in NEVER
                if never:
                    _ask("scancel", job)
                elif state and state not in OVER:
                    over.pop(job, None)
                    continue
                known = all(_told(folder) for folder in group.folders)
                if not never and not known and time.monotonic() - over.setdefault(job, time.monotonic()) < GRACE:
                    continue
                _settle(group, job, state, reason)
                del running[job]
                if not group.ended() and running:
                    _ask("scancel", "--state=PENDING", *running)


class Task:
    """What a job does: on its node, a worker's whole life. submitit pickles it for the node."""

    def __init__(self, paths: Sequence[str], devices: int) -> None:
        self.paths, self.devices, self._near = list(paths), devices, False

    def __call__(self) -> None:
        """Exit status 0: the runs have ended, each as its record says."""
        from submitit import JobEnvironment
        from submitit.core.utils import UncompletedJobError

        folders = self._own(JobEnvironment().job_id)
        if not folders:
            return
        for folder in folders:
            folder.update(**environment(), error=None)  # of this machine; and what has kept it from its end before is over
        again: Any = signal.getsignal(signal.SIGUSR2)
        try:
            signal.signal(signal.SIGUSR2, self._notice)
            run(folders, self.devices, share=Share(int(os.environ["SLURM_CPUS_PER_TASK"])))
        except KeyboardInterrupt:
            if self._near:
                try:
                    again(signal.SIGUSR2, None)  # submitit's: puts the job into the queue once more, and exits
                except UncompletedJobError as error:
                    for folder in folders:
                        _tell(folder, str(error))
            sys.exit(128 + signal.SIGTERM)  # without a word of submitit's that all is over: Slurm may start the job anew

    def checkpoint(self) -> DelayedSubmission:
        """What the job does when it runs once more: submitit's name for it."""
        from submitit.core.utils import DelayedSubmission

        return DelayedSubmission(Task(self.paths, self.devices))

    def _notice(self, number: int, frame: Any) -> None:
        """The time is nearly up, or somebody with precedence needs the node: as being told to stop, and to go on later."""
        first, self._near = not self._near, True
        if first:
            raise KeyboardInterrupt

    def _own(self, job: str) -> list[RunFolder]:
        """Its runs that are not done. None where no word comes that they are its own: the command was killed while it submitted them, or
        another one has taken them."""
        folders, end = [RunFolder(path) for path in self.paths], time.monotonic() + WORD
        while not (mine := [folder for folder in folders if folder.job == {"launcher": "slurm", "id": job}]) and time.monotonic() < end:
            time.sleep(1)
        return [folder for folder in mine if folder.record["status"] == "running"]


def _told(folder: RunFolder) -> bool:
    """Whether the worker has said what became of the run; a folder that can't be read has said nothing."""
    try:
        os.listdir(folder.path)  # has a network file system look again at what another machine has written
        record = folder.record
    except (OSError, UserError):
        return False
    return record["status"] != "running" or bool(record.get("error"))


def _settle(group: Group, job: str, state: str, reason: str) -> None:
    """What Slurm says into the records of runs that have not ended."""
    left = [folder for folder in group.folders if folder.exists and folder.record["status"] == "running"]
    if not left:
        return
    if not state:  # it has left the queue some minutes ago
        state, _, reason = _ask("sacct", "-X", "--noheader", "--parsable2", "--format=State,Reason", f"--jobs={job}").strip().partition("|")
    said = f"{state or 'it is gone'} ({reason})" if reason not in ("", "None") else state or "it is gone"
    for folder in left:
        _tell(folder, f"Slurm says of job {job}: {said}")


def _tell(folder: RunFolder, what: str) -> None:
    """Add to the record of a run that has not ended what has kept it from that."""
    record = folder.record
    if record["status"] == "running":
        before = record.get("error") or killed("")
        folder.update(error={**before, "message": "; ".join(filter(None, (before["message"], what)))})


def _queue() -> dict[str, tuple[str, str]]:
    """Job -> its state and Slurm's reason for it, of all of the user's jobs that the cluster's controller still knows: some minutes more
    than they last. Raises UserError where it does not answer."""
    asked = subprocess.run(
        ["squeue", f"--user={os.getuid()}", "--states=all", "--array", "--noheader", "--format=%i|%T|%r"],
        capture_output=True,
        text=True,
    )
    if asked.returncode:
        raise UserError(Problem("launcher", "slurm", f"squeue says: {_words(asked.stderr)}"))
    lines = (line.strip().split("|", 2) for line in asked.stdout.splitlines())
    return {job: (state, reason) for job, state, reason in (line for line in lines if len(line) == 3)}


def _ask(*words: str) -> str:
    """What a command of Slurm's answers; nothing where it can't."""
    return subprocess.run(words, capture_output=True, text=True).stdout


@contextmanager
def _outside_a_job() -> Iterator[None]:
    """Inside, nothing is left of a job in which this command may run: what it asks for holds for it alone."""
    from submitit.helpers import clean_env

    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    conf = os.environ.get("SLURM_CONF")
    with clean_env():
        os.environ |= {"SLURM_CONF": conf} if conf else {}
        yield


def _refused(said: str, spec: launchers.Slurm, devices: int, gpus: bool) -> UserError:
    """sbatch's refusal, and the key that it is about."""
    words = _words(said)
    key = next((key for pattern, key in REFUSALS.items() if re.search(pattern, words, re.IGNORECASE)), "launcher")
    given = {"launcher": "slurm", "hardware.devices": devices}.get(key) or getattr(spec, key.removeprefix("launcher."))
    shape = f"{devices} {'GPU' if gpus else 'rank'}{'s' if devices > 1 else ''}, {spec.cpus_per_device * devices} cores"
    return UserError(Problem(key, given, f"sbatch refuses such a job ({shape}): {words}; sinfo shows what the cluster has"))


def _words(said: str) -> str:
    """What a command of Slurm's says of an error, in one line."""
    lines = (re.sub(r"^\w+: (error|fatal): (Batch job submission failed: )?", "", line.strip()) for line in said.splitlines())
    return "; ".join(dict.fromkeys(filter(None, lines))) or "nothing"
