"""Costs are those that the libraries and papers publish, and the table names every net."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from torchvision.models import get_model_weights

from regraft import cli, cost, listing
from regraft.models import GROUP, MLP, ModelSpec, Timm, Torchvision
from regraft.registry import parse

CONF = Path(__file__).parent.parent / "conf" / "model"


pytestmark = pytest.mark.usefixtures("one_thread")


def net(name: str, **values: Any) -> ModelSpec:
    own = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    spec = parse(GROUP.spec(name), {**own, "weights": "none", **values}, "model")
    assert isinstance(spec, ModelSpec)
    return spec


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is counted does not need to run: nets without memory, and no stopwatch."""
    build = {spec: spec.build for spec in (*(GROUP.spec(name) for name in GROUP.builtin),)}

    def on_meta(self: ModelSpec, size: int) -> Any:
        with torch.device("meta"):
            return build[type(self)](self, size)

    for spec in build:
        monkeypatch.setattr(spec, "build", on_meta)
    rand = torch.rand
    monkeypatch.setattr(cost.torch, "rand", lambda *shape: rand(*shape, device="meta"))
    monkeypatch.setattr(cost, "_rate", lambda *_: 12.5)


@pytest.mark.parametrize(
    ("spec", "parameters", "giga"),  # as the papers and DESIGN's talk tell them
    [
        (net("resnet", depth=50), 25.6, 4.09),
        (net("vgg", depth=16), 138.4, 15.5),
        (net("alexnet"), 61.1, 0.71),
        (net("googlenet"), 6.6, 1.5),
        (net("efficientnet_lite", variant=0), 4.65, 0.385),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_published_figures(untimed: None, spec: ModelSpec, parameters: float, giga: float) -> None:
    found = cost.measure(spec, 224)
    assert found.parameters / 1e6 == pytest.approx(parameters, rel=0.01)
    assert found.multiply_adds / 1e9 == pytest.approx(giga, rel=0.01)


@pytest.mark.parametrize("spec", [spec for spec, _ in listing.nets() if isinstance(spec, Torchvision)], ids=lambda spec: spec.net())
def test_torchvision_s_own_table(untimed: None, spec: Torchvision) -> None:
    meta = get_model_weights(spec.net()).DEFAULT.meta
    found = cost.measure(spec, 224)
    assert found.parameters == meta["num_params"]
    assert found.multiply_adds / 1e9 == pytest.approx(meta["_ops"], abs=0.0011)  # the table has three digits


def test_memory_is_counted_by_hand() -> None:
    """mlp: 3 * 8 * 8 inputs, 5 hidden units, 1,000 classes; the largest tensor is the picture, flat."""
    spec = MLP(name="mlp", depth=1, width=5, dropout=0.0, weights="none")
    found = cost.measure(spec, 8, seconds=0.001)
    weights = (192 * 5 + 5) + (5 * 1000 + 1000)
    assert (found.parameters, found.weights) == (weights, 4 * weights)
    assert found.multiply_adds == 192 * 5 + 5 * 1000
    assert found.activation == 4 * 192
    assert found.rate > 0
    stream = torch.get_rng_state()
    cost.measure(spec, 8, seconds=0.001)
    assert torch.equal(stream, torch.get_rng_state())


def test_multiply_adds_follow_the_picture_s_area_and_the_least_size_holds(untimed: None) -> None:
    small, large = (cost.measure(net("resnet", depth=18), size) for size in (64, 128))
    assert small.parameters == large.parameters
    assert (large.multiply_adds - 512_000) == 4 * (small.multiply_adds - 512_000)  # all but the classifier
    assert large.activation == 4 * small.activation
    assert cost.measure(net("alexnet"), 32).size == 63


def test_a_transformer_s_products_are_counted(untimed: None) -> None:
    found = cost.measure(Timm(name="timm", arch="vit_tiny_patch16_224", weights="none"), 224)
    assert found.parameters / 1e6 == pytest.approx(5.7, abs=0.05)
    assert found.multiply_adds / 1e9 == pytest.approx(1.26, abs=0.02)  # timm's results: 1.26 GMACs


def test_every_depth_and_variant_is_listed() -> None:
    listed = [(spec.name, keys) for spec, keys in listing.nets()]
    assert len(set(listed)) == len(listed)
    for name, keys in {
        "vgg": ["depth=11", "depth=13", "depth=16", "depth=19"],
        "resnet": ["depth=18", "depth=34", "depth=50", "depth=101", "depth=152"],
        "efficientnet_lite": ["variant=0", "variant=1", "variant=2"],
        "alexnet": ["depth=8"],
        "googlenet": ["depth=22"],
        "convnet": [""],
        "timm": ["arch=mobilenetv3_small_100"],
    }.items():
        assert [key for own, key in listed if own == name] == keys


def test_the_table_shows_all_and_says_where_errors_come_from() -> None:
    some = cost.Cost(size=224, parameters=25_557_032, multiply_adds=4_089_184_256, weights=102_440_000, activation=3_211_264, rate=12.34)
    rows = [
        (net("resnet", depth=50), "depth=50", some),
        (net("resnet", depth=152), "depth=152", replace(some, rate=3.0)),
        (net("mlp"), "", some),
    ]
    console = Console(width=160, file=io.StringIO())
    console.print(cost.table(rows))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    cells = next(line.split() for line in lines if "depth=50" in line)
    assert cells == ["resnet", "depth=50", "224", "25.6", "4.09", "102.4", "3.21", "12.3"]
    assert next(line.split() for line in lines if "depth=152" in line)[-3:] == ["3", "3.7", "%"]
    assert any("resnet: " in line and "He et al. 2016" in line for line in lines)
    assert not any(line.strip().startswith("mlp: ") for line in lines)


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small = MLP(name="mlp", depth=1, width=5, dropout=0.0, weights="none")
    monkeypatch.setattr(listing, "nets", lambda: iter([(small, "depth=1")]))
    monkeypatch.setenv("COLUMNS", "150")
    assert cli.main(["list", "model", "--cost", "--size", "16"]) == 0
    assert ["mlp", "depth=1", "16"] in [line.split()[:3] for line in capsys.readouterr().out.splitlines()]
    for words, told in (
        (["list", "--cost"], "regraft list model --cost"),
        (["list", "head", "--cost"], "regraft list model --cost"),
        (["list", "model", "--cost", "--size", "0"], "--size = 0"),
    ):
        assert cli.main(words) == 2
        assert told in capsys.readouterr().err


def test_without_cost_the_list_needs_no_torch() -> None:
    code = "import sys; from regraft.cli import main; main(['list', 'model']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "model=vgg" in done.stdout
