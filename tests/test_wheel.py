"""The wheel is whole: away from the checkout, with what it brings alone, it checks and trains."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "src", "conf")  # what a wheel is made of
CLIPART = "src/regraft/datasets/clipart_data"

pytestmark = pytest.mark.slow


def pip(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *map(str, words)], check=True, timeout=120)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves its build/ beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / "copy" / name, ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
        elif source.exists():
            (folder / "copy").mkdir(exist_ok=True)
            shutil.copy(source, folder / "copy")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, folder / "copy")
    [built] = folder.glob("regraft-*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the wheel, and nothing else, is installed."""
    folder = tmp_path_factory.mktemp("site")
    pip("install", "--no-deps", "--target", folder, wheel)
    return folder


def regraft(site: Path, folder: Path, *words: str) -> str:
    # in front of the checkout's editable install, which the interpreter adds to the end of its path
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site), "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_holds_what_is_needed_and_no_more(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {f"regraft/{path.relative_to(ROOT / 'src/regraft')}" for path in (ROOT / "src/regraft").rglob("*.py")}
    configs = {f"regraft/conf/{path.relative_to(ROOT / 'conf')}" for path in (ROOT / "conf").rglob("*.yaml")}
    pictures = {str(path.relative_to(ROOT / "src")) for path in (ROOT / CLIPART).rglob("*.png")}
    assert len(configs) >= 90
    assert len(pictures) == 991
    assert modules | configs | pictures | {"regraft/py.typed", f"{CLIPART.removeprefix('src/')}/labels.csv"} <= names
    assert {name.split("/")[0] for name in names} == {"regraft", wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"}
    assert [name for name in names if name.endswith((".pyc", ".ckpt")) or "/tests/" in name] == []


def test_it_runs_away_from_the_checkout(site: Path, tmp_path: Path) -> None:
    where = "import regraft, regraft.conf, sys; print(regraft.__file__, regraft.conf.__file__, *(p for p in sys.path if 'regraft' in p))"
    assert regraft(site, tmp_path, "-c", where).split()[:2] == [f"{site}/regraft/__init__.py", f"{site}/regraft/conf/__init__.py"]
    assert "nothing wrong" in regraft(site, tmp_path, "-m", "regraft.cli", "check")
    words = "train dataset=digits model=mlp model.weights=none freeze=none trainer.max_epochs=1 hardware=cpu hydra.run.dir=run"
    assert "test" in regraft(site, tmp_path, "-m", "regraft.cli", *words.split())
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["status"] == "done"
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files >= {"config.yaml", "record.json", "metrics.csv", "predictions.parquet", "model.safetensors", "log.txt"}
    assert {path.name for path in tmp_path.iterdir()} == {"run", "cache"}
    assert str(ROOT) not in (tmp_path / "run" / "log.txt").read_text()
