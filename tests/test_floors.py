"""The walls of ARCHITECTURE.md stand: a file imports only from lower floors, and what must be light imports no torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "regraft"


def floors() -> dict[str, tuple[int, bool]]:
    """Module -> (floor, light), from the table in ARCHITECTURE.md; a folder's line holds for all its files."""
    lines = re.findall(r"^\| (\d+) \| `([\w/.]+)`( \*)? \|", (ROOT / "ARCHITECTURE.md").read_text(), re.MULTILINE)
    return {name.removesuffix(".py").rstrip("/"): (int(floor), bool(star)) for floor, name, star in lines}


def module(path: Path) -> str:
    return str(path.relative_to(SOURCE).with_suffix("")).removesuffix("/__init__")


FILES = {module(path): path for path in sorted(SOURCE.rglob("*.py"))}
FLOORS = floors()


def floor(name: str) -> int:
    return FLOORS[name if name in FLOORS else name.partition("/")[0]][0]


def imports(path: Path) -> set[str]:
    """regraft's own modules that a file imports, anywhere in it but for types."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            inner = name.removeprefix("regraft").strip(".").replace(".", "/")
            if name.startswith("regraft") and inner in FILES:
                found.add(inner)
    return found


def test_every_file_has_a_floor():
    assert len(FILES) >= 45
    named = {name if name in FLOORS else name.partition("/")[0] for name in FILES if name not in ("", "__init__")}
    assert named <= set(FLOORS), f"not in ARCHITECTURE.md: {sorted(named - set(FLOORS))}"
    assert set(FLOORS) <= {*FILES, *(name.partition("/")[0] for name in FILES)}, "ARCHITECTURE.md names files that are not there"


@pytest.mark.parametrize("name", [name for name in FILES if name not in (".", "__init__", "")])
def test_imports_go_down(name):
    for other in imports(FILES[name]):
        same_folder = other.partition("/")[0] == name.partition("/")[0]
        assert same_folder or floor(other) < floor(name), f"{name} (floor {floor(name)}) imports {other} (floor {floor(other)})"


def test_every_file_says_its_idea_in_its_first_line():
    for name, path in FILES.items():
        doc = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert len(doc.splitlines()[0]) > 30, name
        assert not re.search(r"(^|/)(utils?|helpers?|misc|common)$", name)


def test_what_is_light_imports_no_torch():
    light = [name for name, (_, star) in FLOORS.items() if star]
    assert {"settings", "config", "cli", "sweep", "record", "registry"} <= set(light)
    names = ", ".join(f"regraft.{name.replace('/', '.')}" for name in light)
    code = f"import sys; import {names}; sys.exit('torch' in sys.modules or 'pytorch_lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_worker_knows_no_hydra():
    code = "import sys; import regraft.worker, regraft.running, regraft.results; sys.exit('hydra' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
