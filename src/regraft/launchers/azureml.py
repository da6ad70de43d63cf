"""Azure ML: one command job for each kind of machine and number of devices, written as a file, checked, and submitted.

A job carries copies: this package's source, and the folders of its runs. It runs `launchers.node`; what that copies out is fetched by the
user into the sweep's folder, where the same command takes it for what it is: done.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata, resources
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from regraft import files, launchers
from regraft.errors import Problem, UserError, brief, killed
from regraft.launchers import node
from regraft.launchers.launcher import Group
from regraft.record import DRY, JOB
from regraft.report import words
from regraft.settings import GROUPS, Settings, settings

FOLDER = ".azureml"  # in the sweep's folder: job files, and what they carry
OVER = ("Failed", "Canceled")  # states after which the runs are to be handed on once more
RUNS = ("lite", "mlflow")  # extras that a run may need
WHERE = {  # key -> the variable that Azure ML's own machines have
    "subscription_id": "AZUREML_ARM_SUBSCRIPTION",
    "resource_group": "AZUREML_ARM_RESOURCEGROUP",
    "workspace": "AZUREML_ARM_WORKSPACE_NAME",
}
SCHEMA = "https://azuremlschemas.azureedge.net/latest/commandJob.schema.json"


class Shape(NamedTuple):
    """What the groups of one job have in common."""

    machine: str  # Azure's name; empty: whatever the cluster has
    devices: int

    def __str__(self) -> str:
        return "-".join(filter(None, (self.machine.lower().replace("_", "-"), f"{self.devices}-device{'s' if self.devices > 1 else ''}")))


class Launcher:
    """As `launchers.launcher` says, but it waits for nothing: the runs' records say `running`, and their job.json who has them."""

    def __init__(self, spec: launchers.AzureML) -> None:
        self.spec = spec

    def launch(self, groups: Sequence[Group], show: bool) -> None:
        if not groups:
            return
        client = None if self.spec.dry_run else self._client()  # before anything is begun
        shapes: dict[Shape, list[tuple[Group, Settings]]] = defaultdict(list)
        begun, going = [], dict[str, Path]()
        try:
            for group in groups:
                if not (folders := group.begin()):
                    continue
                begun.append(group)
                if handed := folders[0].job:  # by an earlier command
                    going[handed["id"]] = folders[0].path.parent
                else:
                    s = settings(folders[0].config)
                    shapes[Shape("" if self.spec.compute else getattr(s.hardware, "instance", ""), group.devices)].append((group, s))
            for job, below in going.items():
                print(f"job {job} has been handed on before. {_fetching(job, below)}")
            for shape, alike in shapes.items():
                self._hand_on(client, shape, alike)
        finally:
            for group in begun:
                for folder in group.folders:
                    if not folder.job:
                        folder.update(error=killed("it was not handed on to Azure ML"))
                group.ended()

    def busy(self, jobs: Collection[str]) -> set[str]:
        """Those that are not known to have come to nothing. Of one that has ended well, the outputs are to be fetched."""
        asked = [job for job in jobs if job != DRY]
        if not asked or self.spec.dry_run:
            return set(asked)
        client = self._client()
        with _heard():
            return {job for job in asked if client.jobs.get(job).status not in OVER}

    def _client(self) -> Any:
        """Azure ML's client. Raises UserError where there are no credentials, or no workspace is named."""
        from azure.ai.ml import MLClient
        from azure.core.exceptions import ClientAuthenticationError
        from azure.identity import DefaultAzureCredential

        logging.getLogger("azure.identity").setLevel(logging.CRITICAL)  # each way that it tries in vain is a warning of many lines
        credential = DefaultAzureCredential()
        try:
            credential.get_token("https://management.azure.com/.default")
        except ClientAuthenticationError as error:
            remedy = f"nobody is logged in to Azure ({brief(error)}); az login, or launcher.dry_run=true writes the job files"
            raise UserError(Problem("launcher", "azureml", remedy)) from None
        where = {key: getattr(self.spec, key) or os.environ.get(variable) for key, variable in WHERE.items()}
        missing = [key for key, value in where.items() if not value]
        with _heard():
            if len(missing) == len(where):
                return MLClient.from_config(credential)
        if missing:
            remedy = f"with {', '.join(key for key in where if key not in missing)} it is needed too: launcher.{missing[0]}=NAME"
            raise UserError(Problem(f"launcher.{missing[0]}", "null", remedy))
        return MLClient(credential, where["subscription_id"], where["resource_group"], where["workspace"])

    def _hand_on(self, client: Any, shape: Shape, alike: Sequence[tuple[Group, Settings]]) -> None:
        """One job: its file, its check, its submission. Raises UserError with Azure's words."""
        from azure.ai.ml import load_job

        folders = [folder for group, _ in alike for folder in group.folders]
        below = Path(os.path.commonpath([folder.path.parent for folder in folders]))
        path = self._written(below, shape, alike)
        for warning in dict.fromkeys(line for _, s in alike for line in s.hardware.warnings()):
            print(f"warning: {warning}")
        with _heard():
            job: Any = load_job(path)
            if not (found := job._validate()).passed:
                raise UserError(Problem(str(path), None, "; ".join(f"{key}: {what}" for key, what in found.error_messages.items())))
            sent = client.jobs.create_or_update(job) if client else None
        for folder in folders:
            files.write_json(folder / JOB, {"launcher": "azureml", "id": sent.name if sent else DRY})
        count = f"{words.count(len(folders), 'run')} on {shape}"
        if sent:
            print(f"{count}: job {sent.name}, {sent.studio_url}\n{_fetching(sent.name, below)}")
        else:
            print(f"{count}: {path} is written and checked, and not submitted (az ml job create --file would)")

    def _written(self, below: Path, shape: Shape, alike: Sequence[tuple[Group, Settings]]) -> Path:
        """The job's file, and beside it what it carries."""
        names = {folder.path: str(folder.path.relative_to(below)) for group, _ in alike for folder in group.folders}
        at, first = below / FOLDER / f"{shape}-{files.digest(*names.values())[:6]}", alike[0][1]
        shutil.rmtree(at, ignore_errors=True)
        _carry(below / FOLDER / "code")
        for folder, name in names.items():
            node.copy(folder, at / "runs" / name)
        groups = [{"devices": shape.devices, "folders": [names[folder.path] for folder in group.folders]} for group, _ in alike]
        data = {str(Path(path).expanduser().absolute()): where for path, where in self.spec.data.items()}
        files.write_json(at / "runs" / node.PLAN, {"groups": groups, "data": list(data)})
        inputs: dict[str, Any] = {"runs": {"type": "uri_folder", "path": "runs", "mode": "ro_mount"}}
        for number, (path, where) in enumerate(data.items()):
            inputs[f"data_{number}"] = {"type": "uri_file" if Path(path).is_file() else "uri_folder", "path": where, "mode": "ro_mount"}
        words = " ".join(["${{inputs.runs}} ${{outputs.runs}}", *(f"${{{{inputs.data_{number}}}}}" for number in range(len(data)))])
        needed = ["python=3.11", "pip", {"pip": sorted(_needed([s for _, s in alike]))}]
        job = {
            "$schema": SCHEMA,
            "type": "command",
            "display_name": f"{first.sweep.name} on {shape}",
            "experiment_name": first.sweep.name if self.spec.experiment_name == "auto" else self.spec.experiment_name,
            "code": "../code",
            "command": f'PYTHONPATH="$PWD" python -m regraft.launchers.node {words}',
            "environment": {"image": self.spec.image, "conda_file": {"channels": ["conda-forge"], "dependencies": needed}},
            "inputs": inputs,
            "outputs": {"runs": {"type": "uri_folder", "mode": "rw_mount"}},
            **({"compute": f"azureml:{self.spec.compute}"} if self.spec.compute else {}),
            "resources": {"instance_count": 1, **({"instance_type": shape.machine} if shape.machine else {})},
        }
        files.write_text(at / "job.yaml", yaml.safe_dump(job, sort_keys=False, allow_unicode=True))
        return at / "job.yaml"


def _carry(code: Path) -> None:
    """A copy of this package, so that what runs there is what was given here."""
    shutil.rmtree(code, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    for package in ("regraft", "regraft.conf"):
        with resources.as_file(resources.files(package)) as source:
            shutil.copytree(source, code / package.replace(".", "/"), ignore=ignored, dirs_exist_ok=True)


def _needed(runs: Sequence[Settings]) -> Iterator[str]:
    """What pip must install there: regraft's requirements, and the outside packages whose entries the runs have chosen."""
    for line in metadata.requires("regraft") or ():
        requirement, _, marker = map(str.strip, line.partition(";"))
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", marker)
        if not extra or extra[1] in RUNS:
            yield requirement
    chosen = {(key.split(".")[0], getattr(spec, "name", "")) for s in runs for key, spec in s.specs() if key.split(".")[0] in GROUPS}
    yield from {f"{package[0]}=={package[1]}" for group, name in chosen if (package := GROUPS[group].package(name))}


def _fetching(job: str, below: Path) -> str:
    download = f"az ml job download --name {job} --output-name runs --download-path fetched"
    return f"when it has ended: {download} && cp -r fetched/named-outputs/runs/. '{below}'; the same command then shows the table"


@contextmanager
def _heard() -> Iterator[None]:
    """Inside, what Azure says against a job is a UserError, and its remarks on its own classes are left out."""
    from azure.ai.ml.exceptions import ValidationException
    from azure.core.exceptions import AzureError
    from marshmallow import ValidationError

    log = logging.getLogger("azure.ai.ml")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    except (AzureError, ValidationException, ValidationError) as error:
        remedy = f"Azure ML says: {brief(error)}; launcher.dry_run=true writes the job files"
        raise UserError(Problem("launcher", "azureml", remedy)) from None
    finally:
        log.setLevel(before)
