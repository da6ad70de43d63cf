"""The run folder, the batch's arithmetic and the devices: what is written is whole, what is refused says what would work."""

from __future__ import annotations

import json
import multiprocessing

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pytorch_lightning.strategies import DDPStrategy

from regraft import files, hardware, record
from regraft.errors import UserError
from regraft.hardware import CPU, Auto, divide
from regraft.record import Metrics, RunFolder, environment

HARDWARE = {"accumulate": 1, "precision": "fp32", "memory_format": "contiguous", "compile": False}
HARDWARE |= {"batchnorm": "local", "workers": "auto", "threads": "auto"}


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.begin({"seed": 0, "optimizer": {"lr": 1e-05}}, {"run_id": "abc"})
    return folder


def test_a_run_begins_and_finishes(folder):
    assert folder.record["status"] == "running"
    assert folder.config == {"seed": 0, "optimizer": {"lr": 1e-05}}
    files.write_text(folder / "model.safetensors", "weights")
    folder.finish(metrics={"test/accuracy": 0.5})
    assert folder.record["status"] == "done"
    assert set(folder.record["sha256"]) == {"config.yaml", "model.safetensors"}
    folder.verify()
    folder.begin({"seed": 0}, {"run_id": "abc"})
    with pytest.raises(UserError, match=r"holds another run \(abc\)"):
        folder.begin({"seed": 1}, {"run_id": "xyz"})


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"schema": 99}', "{" * 100_000, "null", '{"schema": '])
def test_a_damaged_record_is_told(folder, text):
    (folder / "record.json").write_text(text)
    with pytest.raises(UserError, match=r"record\.json"):
        _ = folder.record


@pytest.mark.parametrize("text", ["a: [", "- 1", "!!python/object/apply:os.system ['true']", "a: &x [*x]\n? : :", "\t"])
def test_a_config_is_data(folder, text):
    (folder / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml"):
        _ = folder.config


def test_a_record_cannot_point_outside_its_folder(folder, tmp_path):
    (tmp_path / "secret").write_text("x")
    folder.update(sha256={"../secret": files.sha256(tmp_path / "secret")})
    with pytest.raises(UserError, match="the record names this file"):
        folder.verify()


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "record.json"
    files.write_json(path, {"a": 1})

    def interrupted() -> None:
        with files.whole(path) as part:
            part.write_text('{"a": ')
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def _hold(path, held, done):
    with RunFolder(path).hold():
        held.set()
        done.wait(30)


def test_two_processes_do_not_run_one_run(folder):
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(folder.path, held, done))
    other.start()
    assert held.wait(30)
    with pytest.raises(UserError, match="another process is running this run"):
        folder.hold()
    done.set()
    other.join()
    folder.hold().release()


def test_metrics_are_lines_and_a_cut_line_is_no_line(tmp_path):
    metrics = Metrics(tmp_path / "metrics.csv")
    metrics.start(0)
    for epoch in range(3):
        metrics.append("probe", epoch, 10 * epoch, {"train/loss": 1 / 3, "val/loss": float("nan")})
    with metrics.path.open("a") as file:
        file.write("probe,3,30,train/l")
    assert [row["epoch"] for row in metrics.rows()] == list("001122")
    metrics.start(2)
    assert [row["epoch"] for row in metrics.rows()] == list("0011")
    assert float(metrics.rows()[0]["value"]) == 1 / 3


def test_no_environment_variable_lands_in_a_record(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "a-secret-of-40-characters")
    assert "a-secret-of-40-characters" not in json.dumps(environment())


@given(size=st.integers(1, 512), devices=st.integers(1, 8), accumulate=st.integers(1, 4))
def test_the_batch_divides_or_the_nearest_sizes_are_named(size, devices, accumulate):
    spec = CPU(name="cpu", devices=devices, **{**HARDWARE, "accumulate": accumulate})
    parts = devices * accumulate
    if size % parts == 0:
        batch = divide(size, spec)
        assert batch.micro * batch.devices * batch.accumulate == batch.size == size
        return
    with pytest.raises(UserError) as error:
        divide(size, spec)
    said = str(error.value)
    for near in {size // parts * parts, size // parts * parts + parts} - {0}:
        assert str(near) in said
        assert divide(near, spec).size == near


def test_what_gpus_there_are_is_counted_without_torch(monkeypatch, tmp_path):
    for number in range(4):
        (tmp_path / f"0000:0{number}").mkdir()
    monkeypatch.setattr(hardware, "Path", lambda path: tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert hardware.visible_gpus() == 4
    auto = Auto(name="auto", devices="auto", **HARDWARE)
    assert auto.accelerator() == "gpu"
    assert auto.count() == 4
    assert isinstance(auto.trainer()["strategy"], DDPStrategy)
    for chosen, count in {"": 0, "0": 1, "1,3": 2, "7": 0, "GPU-abc": 1, "-1": 0, "2,-1,3": 1}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
        assert hardware.visible_gpus() == count
    too_many = Auto(name="auto", devices=2, **HARDWARE)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert "1 GPUs are visible" in too_many.problems()[0].remedy


PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
TREES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3))


@given(st.dictionaries(st.text(max_size=5), TREES, max_size=4))
def test_a_config_read_section_by_section_is_the_config_read_whole(config):
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    assert record._yaml(text) == yaml.load(text, record.PlainLoader) or not config


@pytest.mark.parametrize(
    "text",
    [
        "a: &x [1]\nb: *x\n",
        "{a: 1,\nb: 2}\n",
        "a: 'one\n  b: two'\nc: 1e-3\n",
        "- a\n- b\n",
        "a: |\n  x: 1\n  y\nb:\n- 1\n- 2\n",
        "# a\n\na: 1\na: 2\n",
    ],
)
def test_what_others_write_is_read_as_yaml_is(text):
    assert record._yaml(text) == yaml.load(text, record.PlainLoader)


def test_what_one_reader_changes_no_other_sees():
    for _ in range(2):
        config = record._yaml("a: {b: [1]}\n")
        assert config == {"a": {"b": [1]}}
        config["a"]["b"].append(2)
