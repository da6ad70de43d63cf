"""Hardware entries: what each runs on, what it refuses here and what it warns of; cores are shared out among ranks."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pytorch_lightning.strategies import DDPStrategy

from regraft import hardware
from regraft.hardware import AZURE, GROUP, Choice, HardwareSpec
from regraft.registry import parse

CONF = Path(__file__).parents[1] / "conf" / "hardware"
VALUES = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(CONF.glob("*.yaml"))}


def entry(name: str, **values: Any) -> HardwareSpec:
    """An entry as its file has it, but for these values."""
    return parse(GROUP.spec(name), {**VALUES[name], **values}, "hardware")  # type: ignore[return-value]


def refused(name: str, **values: Any) -> dict[str, str]:
    return {problem.key: problem.remedy for problem in entry(name, **values).problems()}


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`gpus(count)`: so many are visible."""
    return lambda count: monkeypatch.setattr(hardware, "visible_gpus", lambda: count)


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "visible_gpus", lambda: 0)
    monkeypatch.setattr(hardware.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(hardware.platform, "machine", lambda: "arm64")


def test_every_entry_has_its_file_and_the_plainest_arithmetic() -> None:
    assert set(VALUES) == set(GROUP.builtin)
    assert len(VALUES) == 15
    for name in VALUES:
        assert entry(name).plainest() == Choice("fp32", "contiguous", False), "runs are repeatable unless a user says otherwise"


def test_the_talks_machines_and_their_successors() -> None:
    """1, 2 and 4 GPUs: retired, and each warning names a machine of today with as many."""
    today = {name for name in AZURE if not entry(name).warnings()}
    assert {name: entry(name).count() for name in AZURE if name not in today} == {"azure_nc6": 1, "azure_nc12": 2, "azure_nc24": 4}
    for name in set(AZURE) - today:
        [warning] = entry(name).warnings()
        [successor] = [other for other in today if f"hardware={other} " in warning]
        assert entry(successor).count() == entry(name).count()
        assert name in warning
        assert "retired in August 2023" in warning
    assert {name: VALUES[name]["devices"] for name in today} == {
        "azure_nc4as_t4": 1,
        "azure_nc64as_t4": 4,
        "azure_nc24ads_a100": 1,
        "azure_nc48ads_a100": 2,
        "azure_nc96ads_a100": 4,
        "azure_nc40ads_h100": 1,
        "azure_nc80adis_h100": 2,
    }
    for name in AZURE:
        assert VALUES[name]["gpus"].startswith(f"{VALUES[name]['devices']} x ")
        assert VALUES[name]["instance"].lower().replace("standard", "azure").startswith(name.rpartition("_")[0] if name in today else name)


@pytest.mark.parametrize("name", sorted(set(VALUES) - set(AZURE)))
def test_other_entries_warn_of_nothing(name: str) -> None:
    assert entry(name).warnings() == []


@pytest.mark.parametrize("name", ["gpu", *AZURE])
def test_gpus_are_refused_where_there_are_none_and_taken_where_there_are_enough(name: str, gpus: Any) -> None:
    gpus(0)
    told = refused(name)
    assert list(told) == ["name"]
    assert told["name"].startswith("no GPU is visible here; hardware=cpu or hardware=auto work")
    assert ("retired" in told["name"]) == (name in ("azure_nc6", "azure_nc12", "azure_nc24")), "and by what"
    gpus(4)
    assert refused(name) == {}
    assert entry(name).trainer()["accelerator"] == "gpu"
    gpus(1)
    assert set(refused(name)) == ({"devices"} if entry(name).count() > 1 else set())


def test_what_the_processor_and_a_mac_take(mac: None) -> None:
    assert refused("ddp_cpu") == refused("mps") == refused("auto") == {}
    assert [entry(name).accelerator() for name in ("ddp_cpu", "mps", "auto")] == ["cpu", "mps", "mps"]
    assert set(refused("mps", devices=2)) == set(refused("auto", devices=2)) == {"devices"}
    assert refused("mps", precision="fp16") == {}
    assert set(refused("cpu", precision="fp16")) == {"precision"}


def test_a_mac_is_refused_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware.platform, "system", lambda: "Linux")
    assert "hardware=cpu or hardware=auto" in refused("mps")["name"]


def test_several_ranks_on_the_processor() -> None:
    assert entry("ddp_cpu").count() == 2
    ranks, devices = entry("ddp_cpu").trainer(), entry("cpu", devices=2).trainer()
    for strategy in (ranks.pop("strategy"), devices.pop("strategy")):
        assert isinstance(strategy, DDPStrategy)
    assert ranks == devices
    assert entry("cpu").trainer()["strategy"] == "auto"


def test_the_trainer_takes_what_was_measured() -> None:
    auto = entry("cpu", precision="auto", memory_format="auto", compile="auto")
    assert auto.plainest() == Choice()
    assert auto.trainer()["precision"] == "32-true", "until it has been measured"
    assert auto.trainer(Choice("bf16", "channels_last", False))["precision"] == "bf16-mixed"
    written = entry("cpu", precision="bf16", memory_format="channels_last", compile=True)
    assert written.plainest() == Choice("bf16", "channels_last", True)
    known = inspect.signature(pl.Trainer).parameters
    for name in VALUES:
        assert set(entry(name).trainer()) <= set(known)


@given(there=st.integers(1, 128), devices=st.integers(1, 16))
def test_ranks_share_the_cores(there: int, devices: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "cores", lambda: there)
        patch.delenv("OMP_NUM_THREADS", raising=False)
        shared = entry("cpu", devices=devices)
        assert 1 <= shared.computing() <= max(1, there // devices)
        assert devices * shared.computing() <= max(there, devices)
        assert devices * shared.readers() * 2 <= there
        assert entry("cpu", devices=devices, threads=3, workers=5).computing() == 3
        assert entry("cpu", devices=devices, threads=3, workers=5).readers() == 5


@pytest.mark.parametrize(("given", "threads"), [("3", 3), ("3,1", 3), (" 2", 2), ("", 8), ("0", 8), ("many", 8)])
def test_a_users_own_number_of_threads_stands(given: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert entry("cpu").computing() == threads


def test_numbers_that_make_no_sense() -> None:
    assert set(refused("cpu", devices=0, threads=0, workers=-1)) == {"devices", "threads", "workers"}


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(hardware, "which", lambda name: None)
    assert "false works" in refused("cpu", compile=True)["compile"]
    assert refused("cpu", compile="auto") == {}
    monkeypatch.setattr(hardware, "which", lambda name: "/usr/bin/clang++" if name == "clang++" else None)
    assert refused("cpu", compile=True) == {}


def test_what_decides_a_result() -> None:
    deciding = entry("azure_nc24ads_a100").deciding()
    assert {"precision", "memory_format", "compile", "devices", "accumulate", "batchnorm"} <= set(deciding)
    assert {"threads", "workers", "instance", "gpus", "note"}.isdisjoint(deciding)
