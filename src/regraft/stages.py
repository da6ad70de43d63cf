"""Which stages and blocks a net has, asked of a process of its own: it is told before any job starts, and torch stays there.

`python -m regraft.stages` reads a list of nets from its input, builds each with random weights (nothing is downloaded or loaded), and
writes one answer for each. What was answered is kept in the cache folder.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from regraft import models
from regraft.datasets.source import PICTURES
from regraft.errors import Problem, UserError
from regraft.files import digest, sha256, write_json
from regraft.launchers.workers import environment
from regraft.models import ModelSpec
from regraft.registry import parse
from regraft.worker import end_with_parent

Layout = dict[str, list[str]]  # stages, lowest first, with their blocks (`Chain.layout`)


class Net(NamedTuple):
    """What is asked about."""

    spec: ModelSpec
    size: int  # px of the pictures that enter it
    enters: Mapping[str, Any] = PICTURES  # a set's facts of what does (`Source.facts`)


def ask(nets: Sequence[Net], folder: Path) -> list[Layout | UserError]:
    """The layout of each net, or why it has none; one process answers for all that is not known yet.

    `folder`: the cache folder. Raises UserError where the process fails.
    """
    keys = [digest(net.spec.deciding(), net.size, *([] if net.enters == PICTURES else [net.enters]), *_deciding()) for net in nets]
    files = {key: folder / "stages" / f"{key}.json" for key in keys}
    known = {key: answer for key, path in files.items() if (answer := _read(path))}
    missing = {key: net for key, net in zip(keys, nets, strict=True) if key not in known}
    for (key, (spec, *_)), answer in zip(missing.items(), _asked(list(missing.values())) if missing else (), strict=True):
        known[key] = answer
        if spec.name not in models.GROUP.outside():  # an outside package may change without our noticing
            with suppress(OSError):  # a folder that can't be written to: asked again the next time
                write_json(files[key], answer)
    return [_told(known[key]) for key in keys]


def answers(questions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each {"model", "size", "enters"} its {"layout"}, or the {"problems"} that keep it from being built."""
    import torch

    from regraft import entering
    from regraft.chain import Chain

    found: list[dict[str, Any]] = []
    for question in questions:
        values, size, enters = question["model"], question["size"], question["enters"]
        torch.manual_seed(0)
        try:
            spec: Any = parse(models.GROUP.spec(values["name"]), values, "model")
            backbone = entering.net(spec, size, enters)
            found.append({"layout": Chain(backbone, torch.nn.Identity(), entering.sample(backbone, size, enters)).layout})
        except UserError as error:
            found.append({"problems": [list(problem) for problem in error.problems]})
    return found


def _asked(nets: Sequence[Net]) -> list[dict[str, Any]]:
    questions = [{"model": net.spec.model_dump(mode="json"), "size": net.size, "enters": dict(net.enters)} for net in nets]
    command = [sys.executable, "-m", "regraft.stages"]
    asked = subprocess.run(
        command, input=json.dumps(questions), env=environment(1), capture_output=True, text=True, preexec_fn=end_with_parent, check=False
    )
    if asked.returncode:
        last = (asked.stderr.strip().splitlines() or [f"status {asked.returncode}"])[-1]
        names = ", ".join(dict.fromkeys(net.spec.name for net in nets))
        raise UserError(Problem("model", names, f"its stages can't be told, since building it fails: {last}"))
    return json.loads(asked.stdout.splitlines()[-1])


@cache
def _deciding() -> tuple[Any, ...]:
    """What a layout depends on beside the net's own values: the libraries, and the files here that build nets and cut them."""
    here = Path(__file__).parent
    own = [here / "chain.py", *sorted((here / "models").glob("*.py"))]
    return (*(metadata.version(package) for package in ("torch", "torchvision", "timm")), *map(sha256, own))


def _read(path: Path) -> dict[str, Any] | None:
    with suppress(OSError, ValueError):
        answer = json.loads(path.read_text(encoding="utf-8"))
        return answer if isinstance(answer, dict) and answer.keys() & {"layout", "problems"} else None
    return None


def _told(answer: dict[str, Any]) -> Layout | UserError:
    return answer["layout"] if "layout" in answer else UserError(Problem(*problem) for problem in answer["problems"])


def main() -> int:
    end_with_parent()
    with redirect_stdout(sys.stderr):  # a library's chatter is no answer
        found = answers(json.load(sys.stdin))
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
