"""The launcher group's catalogue: what starts a run's worker, and where."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from regraft.errors import Problem, UserError
from regraft.registry import Group, Named, Spec, doc, paths


class LauncherSpec(Named):
    """Common to all launchers. None of their keys decides a result."""

    needs: ClassVar[tuple[str, str] | None] = None  # what must be installed beside regraft: a module, and the extra that brings it

    @property
    def remote(self) -> bool:
        """Whether workers run on other machines, whose GPUs can't be seen from here."""
        return False

    def reaches(self, machine: Spec, sweeper: str, reading: Mapping[str, Spec]) -> None:
        """Whether its workers get the machine that a run asks for, and what it reads, and its sweeper what comes of it. Raises UserError
        with every mistake.

        `reading`: the specs of what has paths, by their sections.
        """

    def problems(self) -> list[Problem]:
        if self.needs and not _installed(self.needs[0]):
            remedy = f"the package {self.needs[0]} is not installed: pip install 'regraft[{self.needs[1]}]'"
            return [Problem("name", self.name, remedy)]
        return []


class Local(LauncherSpec):
    """Workers on this machine."""

    jobs: Annotated[int, Field(ge=1)] | Literal["auto"] = doc(
        "workers at once, which share cores and GPUs; auto: as many as the GPUs suffice for, one on a CPU", decides=False
    )


class Ray(LauncherSpec):
    """Tasks of a Ray cluster, whose nodes share the folders of the runs."""

    needs = ("ray", "ray")

    address: str | None = doc(
        "null: a cluster of its own on this machine; auto, HOST:PORT or ray://HOST:PORT: one that is there", decides=False
    )
    jobs: Annotated[int, Field(ge=1)] | Literal["auto"] = doc(
        "groups of runs handed to Ray at once; auto: as many as its nodes have room for; N: an autoscaling one grows for them",
        decides=False,
    )
    cpus_per_job: Annotated[int, Field(ge=1)] | Literal["auto"] = doc(
        "cores of each; auto: those of its node that fall to its GPUs, or one for each device", decides=False
    )
    resources: dict[str, Annotated[float, Field(gt=0)]] = doc("what else its node must have, as Ray names it", decides=False)

    @property
    def remote(self) -> bool:
        return self.address is not None


class Slurm(LauncherSpec):
    """Jobs of a Slurm cluster, whose machines share the folders of the runs."""

    needs = ("submitit", "slurm")

    partition: str | None = doc("where jobs queue; null: the cluster's default", decides=False)
    account: str | None = doc("whom the time is charged to; null: the user's default", decides=False)
    qos: str | None = doc("quality of service; null: the user's default", decides=False)
    time_min: int = doc("minutes that a job may take; what has not ended is saved", decides=False, ge=1)
    mem_gb: float | None = doc("GB of memory for each job; null: the partition's default", decides=False, gt=0)
    cpus_per_device: int = doc("cores for each device: threads that compute and processes that read pictures", decides=False, ge=1)
    array_parallelism: int = doc("jobs at once for each number of devices", decides=False, ge=1)
    max_requeues: int = doc("times that a job which has used up its time is put into the queue once more", decides=False, ge=0)
    setup: list[str] = doc("lines of shell before the worker", decides=False)
    additional: dict[str, bool | int | str] = doc("further options of sbatch, by their long names", decides=False)

    @property
    def remote(self) -> bool:
        return True

    def problems(self) -> list[Problem]:
        found = super().problems()
        if not found and not (which("sbatch") and which("srun")):  # submitit looks for srun
            remedy = "there is no sbatch here; give the command on a login node of the cluster, or launcher=local works"
            found.append(Problem("name", self.name, remedy))
        return found


class AzureML(LauncherSpec):
    """Command jobs of Azure ML, one for each kind of machine and number of devices; nothing of this machine is seen there but copies."""

    needs = ("azure.ai.ml", "azure")

    subscription_id: str | None = doc("whose bill it is; null: $AZUREML_ARM_SUBSCRIPTION, or the workspace's config.json", decides=False)
    resource_group: str | None = doc("where the workspace lies; null: $AZUREML_ARM_RESOURCEGROUP, or config.json", decides=False)
    workspace: str | None = doc("Azure ML's workspace; null: $AZUREML_ARM_WORKSPACE_NAME, or config.json", decides=False)
    compute: str | None = doc("a compute cluster's name; null: serverless, on the machine that hardware=azure_... names", decides=False)
    image: str = doc("docker image on which an environment with Python and regraft's requirements is built", decides=False)
    experiment_name: str = doc("the experiment that holds the jobs; auto: sweep.name", decides=False)
    data: dict[str, str] = doc("paths here that runs read -> where Azure has the same: azureml://datastores/...", decides=False)
    dry_run: bool = doc("whether job files are written and checked, and nothing is submitted", decides=False)

    @property
    def remote(self) -> bool:
        return True

    def reaches(self, machine: Spec, sweeper: str, reading: Mapping[str, Spec]) -> None:
        found = []
        if sweeper != "grid":
            remedy = "a search goes on from what its trials have given, and nobody here waits for Azure's jobs; grid works"
            found.append(Problem("sweeper", sweeper, remedy))
        if self.compute is None and not hasattr(machine, "instance"):
            remedy = "without a cluster, a machine must be named: hardware=azure_nc24ads_a100, ... (regraft list hardware)"
            found.append(Problem("launcher.compute", "null", remedy))
        for section, spec in reading.items():
            given = ((key, Path(each)) for key in paths(type(spec)) for each in _listed(getattr(spec, key)))
            for key, path in given:
                if path.is_absolute() and not any(path.is_relative_to(Path(each).expanduser().absolute()) for each in self.data):
                    remedy = f"Azure's machines don't see it; say where they find it: 'launcher.data={{{path}:azureml://datastores/...}}'"
                    found.append(Problem(f"{section}.{key}", str(path), remedy))
        if found:
            raise UserError(found)


GROUP = Group("launcher", {"local": Local, "ray": Ray, "slurm": Slurm, "azureml": AzureML}, about="what starts the runs, and where")


def _listed(value: Any) -> list[str]:
    """A path, a list of them, or none."""
    return value if isinstance(value, list) else [value] if value else []


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it lies in
        return False
