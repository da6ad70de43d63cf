"""A package of somebody else's brings a net, a dataset, an augmentation and a head, without a change of regraft: they run like its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

PACKAGE = {
    "elsewhere-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n",
    "elsewhere-1.0.dist-info/entry_points.txt": """\
[regraft.models]
tiny = elsewhere:Tiny
[regraft.datasets]
stripes = elsewhere:Stripes
[regraft.augmentations]
noise = elsewhere:Noise
[regraft.heads]
scaled = elsewhere:Scaled
""",
    "elsewhere/conf/__init__.py": "",
    "elsewhere/conf/model/tiny.yaml": "name: tiny\nwidth: 6\nweights: none\n",
    "elsewhere/conf/dataset/stripes.yaml": "name: stripes\nsize: 8\nclasses: null\nper_class: null\n"
    "folds: null\nfold: 0\non_error: raise\nrows: 8\n",
    "elsewhere/__init__.py": '''\
"""Specs that are read without torch; what they build is imported only then."""

from regraft.augment import AugmentationSpec
from regraft.datasets import DatasetSpec
from regraft.heads import HeadSpec
from regraft.models import ModelSpec
from regraft.registry import doc


class Tiny(ModelSpec):
    """One hidden layer of somebody else's."""

    width: int = doc("units", ge=1)

    def build(self, size):
        from torch import nn

        from regraft.chain import Backbone

        net = nn.Sequential(nn.Flatten(), nn.Linear(3 * size * size, self.width), nn.ReLU())
        return Backbone(net, {"hidden": ("0", "1", "2")}, "", mean=(0.5,) * 3, std=(0.5,) * 3, channels=3, least=1)


class Stripes(DatasetSpec):
    """Stripes that lie or stand."""

    rows: int = doc("px: height of the pictures", ge=4)

    def open(self, cache):
        import hashlib

        import numpy as np

        from regraft.datasets.source import InMemory, Sample

        pictures, samples = {}, []
        for split, count in (("train", 12), ("val", 4), ("test", 4)):
            for index in range(count):
                picture = np.full((self.rows, self.rows, 3), index, np.uint8)
                picture[(slice(None, None, 2), slice(None)) if index % 2 else (slice(None), slice(None, None, 2))] = 255
                name = f"{split}/{index}"
                pictures[name] = picture
                samples.append(Sample(name, split, index % 2, hashlib.sha256(picture.tobytes() + name.encode()).hexdigest()))
        return InMemory(pictures, ["standing", "lying"], samples)


class Noise(AugmentationSpec):
    """A little noise, another each time."""

    views: str = doc("draw", default="draw")
    strength: int = doc("grey levels", ge=0, default=3)

    def finite(self):
        return None

    def random(self, x, key):
        import torch

        from regraft import streams

        noise = torch.randint(-self.strength, self.strength + 1, x.shape, generator=streams.generator(*key))
        return (x.int() + noise).clamp(0, 255).to(x.dtype)


class Scaled(HeadSpec):
    """A linear layer and a scale."""

    dropout: float = doc("0..1", default=0.0)
    scale: float = doc("factor on the logits", default=2.0)

    def build(self, features, classes):
        from torch import nn

        class Scale(nn.Module):
            def __init__(self, factor):
                super().__init__()
                self.factor = factor

            def forward(self, x):
                return x * self.factor

        return nn.Sequential(nn.Linear(features, len(classes)), Scale(self.scale))
''',
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages, with the outside one in it."""
    root = tmp_path_factory.mktemp("site")
    for name, text in PACKAGE.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def regraft(site: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, "-m", "regraft.cli", *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


def test_its_entries_are_listed(site: Path, tmp_path: Path) -> None:
    assert ", tiny" in regraft(site, tmp_path, "list").stdout
    told = regraft(site, tmp_path, "list", "head").stdout
    assert "head=scaled  A linear layer and a scale. (from an installed package)" in told
    assert "head.scale = 2.0  factor on the logits" in told


@pytest.mark.slow
def test_its_entries_run_like_built_in_ones(site: Path, tmp_path: Path) -> None:
    done = regraft(
        site,
        tmp_path,
        *["train", "hydra.searchpath=[pkg://elsewhere.conf]", "hydra.run.dir=run", "model=tiny", "model.width=5", "dataset=stripes"],
        *[
            "augmentation=noise",
            "augmentation.strength=4",
            "head=scaled",
            "freeze=none",
            "trainer.max_epochs=1",
            "hardware=cpu",
            "plots=false",
        ],
    )
    assert done.returncode == 0, done.stdout + done.stderr
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["model"] == {"name": "tiny", "width": 5, "weights": "none"}
    assert config["dataset"]["rows"] == 8, "a value of the package's own YAML file"
    assert config["augmentation"] == {"name": "noise", "views": "draw", "strength": 4}, "the defaults of a spec that brings no YAML file"
    assert config["head"] == {"name": "scaled", "dropout": 0.0, "scale": 2.0}
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["status"] == "done"
    assert record["data"]["classes"] == ["standing", "lying"]
    [phase] = record["phases"]
    assert [(row["stage"], row["parameters"]) for row in phase["stages"]] == [("hidden", 3 * 8 * 8 * 5 + 5), ("head", 5 * 2 + 2)]


def test_its_keys_are_checked_like_built_in_ones(site: Path, tmp_path: Path) -> None:
    told = regraft(site, tmp_path, "check", "head=scaled", "head.scael=3", "augmentation=noise", "augmentation.strength=-1").stderr
    assert "did you mean head.scale?" in told
    assert "at least 0 is needed (grey levels)" in told
