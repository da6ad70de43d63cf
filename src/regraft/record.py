"""The run folder: what a run was, what it ran on and what came out of it; written whole, and read only when it is whole."""

from __future__ import annotations

import json
import os
import pickle
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from regraft import files
from regraft.errors import Problem, UserError

SCHEMA = 1
CONFIG, RECORD, METRICS, PREDICTIONS, CHECKPOINT, PREVIOUS, MODEL, LOG = (
    "config.yaml",
    "record.json",
    "metrics.csv",
    "predictions.parquet",
    "last.ckpt",
    "previous.ckpt",
    "model.safetensors",
    "log.txt",
)
SHIFTED = "shifted.parquet"  # of a run whose test was measured under shifts too: what it said there
VOCABULARY = "vocabulary.json"  # of a run that reads tokens: what each number stands for
DRY = "dry_run"  # in place of a job's id, where nothing was submitted
JOB = "job.json"  # beside the record of a run that was handed on to what outlives this command
ENDED = ("done", "pruned")  # what a record says of a run that has nothing left to do
PACKAGES = (
    "regraft",
    "torch",
    "torchvision",
    "timm",
    "pytorch-lightning",
    "torchmetrics",
    "hydra-core",
    "omegaconf",
    "numpy",
    "pillow",
    "peft",
)
BOUND = 64 << 20  # bytes of a config or record that is still read
TAIL = 16 << 10  # bytes at the end of metrics.csv that hold its last epoch


class RunFolder:
    """One run's folder. `record.json` says `running`, `done`, `pruned` or `failed`; a `running` one that nobody holds was interrupted."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def exists(self) -> bool:
        return (self / RECORD).is_file()

    @property
    def barren(self) -> bool:
        """Whether it holds a run that failed before it learned anything: nothing is lost when another one takes the folder."""
        return self.record["status"] == "failed" and not self.saved and not (self / MODEL).exists()

    @property
    def saved(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return any((self / name).is_file() for name in (CHECKPOINT, PREVIOUS))

    @property
    def job(self) -> dict[str, Any] | None:
        """The launcher, and its id of the job, to which the run was handed on; None: it was not, or that can't be read."""
        with suppress(UserError):
            job = _mapping(self / JOB, json.loads)
            if all(isinstance(job.get(key), str) for key in ("launcher", "id")):
                return job
        return None

    @property
    def halved(self) -> int:
        """How often a GPU's memory was too small for the run, and what it takes at once was halved."""
        return int(self.record.get("halved", 0)) if self.exists else 0

    @property
    def waits(self) -> bool:
        """Whether the run was handed on to somewhere, and nobody waits for it here."""
        record = self.record
        return record["status"] == "running" and not record["error"] and self.job is not None

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config. Raises UserError for one that can't be read."""
        return _mapping(self / CONFIG, _yaml)

    @property
    def record(self) -> dict[str, Any]:
        """What is known of the run. Raises UserError for a folder that holds none, or a damaged one."""
        if not self.exists:
            raise UserError(Problem(str(self.path), None, f"not a run folder: it holds no {RECORD}"))
        record = _mapping(self / RECORD, json.loads)
        if record.get("schema") != SCHEMA:
            raise UserError(Problem(str(self / RECORD), record.get("schema"), f"this regraft reads records of schema {SCHEMA}"))
        if not all(isinstance(record.get(key), str) for key in ("run_id", "status")):
            raise UserError(Problem(str(self / RECORD), None, "names no run_id and status; it is no whole record"))
        return record

    def begin(self, config: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        """Write config and a record with status `running`. Raises UserError where the folder holds another run."""
        if self.exists and (held := self.record["run_id"]) != record["run_id"] and not self.barren:
            remedy = f"the folder holds another run ({held}); name another folder, or remove this one"
            raise UserError(Problem("hydra.run.dir", str(self.path), remedy))
        self.path.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        files.write_text(self / CONFIG, text)
        files.write_json(self / RECORD, {"schema": SCHEMA, "status": "running", **record, "sha256": {CONFIG: files.sha256(self / CONFIG)}})

    def update(self, **fields: Any) -> None:
        files.write_json(self / RECORD, {**self.record, **fields})

    def finish(self, **fields: Any) -> None:
        """Status `done`, with the checksums of the files that other verbs read."""
        named = (name for name in (CONFIG, MODEL, PREDICTIONS, SHIFTED) if (self / name).is_file())
        self.update(**fields, status="done", error=None, sha256={name: files.sha256(self / name) for name in named})

    def verify(self) -> None:
        """Raises UserError where a file of the run is missing or is not what the run wrote."""
        problems = []
        for name, expected in self.record.get("sha256", {}).items():
            if Path(name).name != name or not (self / name).is_file():
                problems.append(Problem(str(self / name), None, "the record names this file, and it is not there"))
            elif files.sha256(self / name) != expected:
                problems.append(Problem(str(self / name), None, "not the file that the run wrote (its checksum differs from the record's)"))
        if problems:
            raise UserError(problems)

    def hold(self, who: str = "worker") -> FileLock:
        """The lock that a worker, or the controller that starts it, holds; free again as soon as its process is gone.

        Raises UserError where it is taken, or where the folder can't be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(Problem("hydra.run.dir", str(self.path), f"can't be made ({error.strerror}); name another folder")) from None
        lock = FileLock(self / f".{who}")
        try:
            lock.acquire(timeout=0.05, poll_interval=0.01)  # s; who only asks whether it is held holds it for no time
        except Timeout:
            raise UserError(Problem(str(self.path), None, "another process is running this run; wait for it, or stop it")) from None
        return lock


class PlainLoader(yaml.CSafeLoader if hasattr(yaml, "CSafeLoader") else yaml.SafeLoader):  # type: ignore[misc]
    """Plain YAML, and 1e-3 is a number as in YAML 1.2 and in Hydra."""


PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


SECTION = re.compile(r"^(?=[A-Za-z_])", re.MULTILINE)  # where a key of the first level begins


def _yaml(text: str) -> Any:
    """The document; its sections one by one, since those of a sweep's runs are mostly alike, and each is parsed once."""
    if not any(mark in text for mark in ("---", "...", "&", "*", "%")):  # several documents, and what stands for something elsewhere
        try:
            found: dict[str, Any] = {}
            for section in SECTION.split(text):
                found |= pickle.loads(_section(section))
            return found
        except (yaml.YAMLError, TypeError):
            pass  # the whole says what is wrong with it, if anything
    return yaml.load(text, PlainLoader)


@lru_cache(4096)
def _section(text: str) -> bytes:
    """Pickled: quickly made anew, so that no reader holds what another may change."""
    value = yaml.load(text, PlainLoader)
    if not isinstance(value, dict | None):
        raise TypeError("no keys")
    return pickle.dumps(value or {})


def _mapping(path: Path, parse: Any) -> dict[str, Any]:
    try:
        if path.stat().st_size > BOUND:
            raise UserError(Problem(str(path), None, f"larger than {BOUND >> 20} MB, which no run writes"))
        value = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(Problem(str(path), None, "no such file; the folder is no whole run folder")) from None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(Problem(str(path), None, f"can't be read ({str(error).splitlines()[0]})")) from None
    if not isinstance(value, dict):
        raise UserError(Problem(str(path), None, "holds no mapping of keys to values"))
    return value


class Metrics:
    """metrics.csv in long form: a line for each metric and epoch. Lines are appended whole; those past a checkpoint are trimmed."""

    COLUMNS = ("phase", "epoch", "step", "metric", "value")

    def __init__(self, path: Path) -> None:
        self.path = path

    def start(self, epochs: int) -> None:
        """Keep the lines of the first `epochs` epochs: what a resumed run does again must not stand twice."""
        kept = [row for row in self.rows() if int(row["epoch"]) < epochs]
        lines = [",".join(self.COLUMNS), *(",".join(row[column] for column in self.COLUMNS) for row in kept)]
        files.write_text(self.path, "\n".join(lines) + "\n")

    def append(self, phase: str, epoch: int, step: int, values: Mapping[str, float]) -> None:
        lines = "".join(f"{phase},{epoch},{step},{name},{value!r}\n" for name, value in values.items())
        with self.path.open("ab") as file:
            file.write(lines.encode())

    def rows(self) -> list[dict[str, str]]:
        if not self.path.is_file():
            return []
        return self._parsed(self.path.read_text().splitlines(keepends=True)[1:])

    def last(self) -> tuple[int, dict[str, float]] | None:
        """The last epoch that is written, and its metrics; None: there is none. No more than the file's end is read."""
        with suppress(OSError, ValueError), self.path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            rows = self._parsed(file.read().decode(errors="replace").splitlines(keepends=True)[1:])
            if rows:
                epoch = rows[-1]["epoch"]
                return int(epoch), {row["metric"]: float(row["value"]) for row in rows if row["epoch"] == epoch}
        return None

    def _parsed(self, lines: Sequence[str]) -> list[dict[str, str]]:
        whole = (line.rstrip("\n").split(",") for line in lines if line.endswith("\n"))
        return [dict(zip(self.COLUMNS, cells, strict=True)) for cells in whole if len(cells) == len(self.COLUMNS)]


def environment() -> dict[str, Any]:
    """What the run ran on: `git` of the working folder, regraft's own `code`, `packages`, `machine`. No environment variable is told."""
    return {"git": _git(), "code": {"sha256": _code()}, "packages": _packages(), "machine": _machine()}


@cache
def _code() -> str:
    """Of regraft's own Python files, by their names and bytes."""
    root = Path(__file__).parent
    return files.digest(*((path.relative_to(root).as_posix(), files.sha256(path)) for path in sorted(root.rglob("*.py"))))


def _git() -> dict[str, Any] | None:
    def ask(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _packages() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _machine() -> dict[str, Any]:
    processor = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            processor = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), processor)
    except OSError:
        pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": processor,
        "cores": os.cpu_count(),
        "memory_gb": memory and round(memory / 1e9, 1),
    }
