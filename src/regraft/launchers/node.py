"""What a job does on a machine that sees none of our folders: copies of begun runs come in one folder, and go out, run, in another."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from regraft.launchers.workers import run
from regraft.record import ENDED, RECORD, RunFolder, environment

PLAN = "plan.json"  # in the folder that comes: {"groups": [{"devices": 2, "folders": [name, ...]}, ...], "data": [path, ...]}


def main(given: Path, results: Path, mounts: Sequence[Path]) -> int:
    """Runs the groups one after the other; each is copied out as soon as it has ended. Exit status 0: every run is done.

    A job that starts once more goes on with what it has copied out before. `mounts`: where the plan's data lies on this machine.
    """
    plan = json.loads((given / PLAN).read_text())
    for path, mount in zip(plan["data"], mounts, strict=True):
        _place(Path(path), mount)
    names = [name for group in plan["groups"] for name in group["folders"]]
    with TemporaryDirectory(prefix="regraft-") as local:  # a mounted store knows no locks
        for name in names:
            copy((results if (results / name / RECORD).is_file() else given) / name, Path(local, name))
        for group in plan["groups"]:
            folders = {name: RunFolder(Path(local, name)) for name in group["folders"]}
            left = [folder for folder in folders.values() if folder.record["status"] == "running"]
            try:
                for folder in left:
                    folder.update(**here(), error=None)
                if left:
                    run(left, group["devices"], show=len(left) == 1)
            finally:
                for name, folder in folders.items():
                    copy(folder.path, results / name)
        return int(any(RunFolder(Path(local, name)).record["status"] not in ENDED for name in names))


def here() -> dict[str, Any]:
    """What the run's record says of the machine that it really runs on."""
    return {key: value for key, value in environment().items() if key != "git"}  # which is the command's


def copy(source: Path, target: Path) -> None:
    """A run folder's files but its locks; the record last, so that a copy whose record says `done` is whole."""
    files = [path for path in source.rglob("*") if path.is_file() and not path.name.startswith(".")]
    for path in sorted(files, key=lambda path: path.name == RECORD):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)  # no times and modes, which a mounted store may not take


def _place(path: Path, mount: Path) -> None:
    """Has the data lie where it lies on the machine of the command, so that the runs' configs hold here too."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(mount.absolute())


if __name__ == "__main__":
    given, results, *mounts = map(Path, sys.argv[1:])
    try:
        sys.exit(main(given, results, mounts))
    except KeyboardInterrupt:
        sys.exit(130)
