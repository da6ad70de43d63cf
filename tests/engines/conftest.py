"""A real Slurm of one node, for the tests of one file."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

ENGINE = Path(__file__).parents[2] / "scripts" / "engines" / "slurm"


@pytest.fixture(scope="module")
def slurm():
    """A Slurm of its own; the environment of its commands: `slurm["FAKE_GPUS"]` GPUs, which are none."""
    at = Path(tempfile.mkdtemp(prefix="sl", dir="/tmp"))  # a short path: sockets lie in it
    try:
        started = subprocess.run([ENGINE, "start", at], stdout=subprocess.PIPE, text=True, timeout=400, check=True)
        with pytest.MonkeyPatch.context() as patch:
            own = dict(re.findall(r"export (\w+)=(\S+)", started.stdout))
            for name, value in own.items():
                patch.setenv(name, value)
            yield own
    finally:
        subprocess.run([ENGINE, "stop", at], timeout=200, check=True)
        shutil.rmtree(at)
