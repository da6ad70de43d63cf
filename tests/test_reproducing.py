"""regraft reproduce runs a run again from its record, and says whether it is the same: identical, within tolerance, or different since."""

from __future__ import annotations

import json
import shutil

import pytest
from PIL import Image

from regraft.cli import main
from regraft.record import RunFolder

TINY = ["hardware=cpu", "hardware.workers=0", "plots=false", "trainer.max_epochs=2"]
MLP = ["dataset=digits", "dataset.per_class=5", "model=mlp", "model.weights=none", "freeze=none", *TINY]


def again(capsys, *words: str) -> tuple[int, list[dict]]:
    """The exit status, and what was found."""
    capsys.readouterr()
    status = main(["reproduce", *words, "--json"])
    return status, json.loads(capsys.readouterr().out)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ["dataset=digits", "dataset.per_class=5", "model=convnet", "model.weights=none", "freeze=backbone", "head.dropout=0.2"],
        ["dataset=digits", "dataset.per_class=5", "model=convnet", "model.weights=none", "freeze=none", "augmentation=flips"],
        ["dataset=text", "dataset.path=mails.csv", "model=lstm", "model.width=8", "freeze=none"],
    ],
    ids=["probe", "fine-tune", "lstm"],
)
def test_a_run_alone_is_identical_from_its_record_alone(here, capsys, words):
    mails = [f"{'good morning' if n % 2 else 'buy now'} {chr(97 + n % 26) * (1 + n // 26)},{'ham' if n % 2 else 'spam'}" for n in range(40)]
    (here / "mails.csv").write_text("\n".join(["text,label", *mails]) + "\n")
    assert main(["train", *words, *TINY, "hydra.run.dir=one"]) == 0
    (here / "bare").mkdir()
    for name in ("config.yaml", "record.json"):
        shutil.copy(here / "one" / name, here / "bare" / name)
    status, [found] = again(capsys, "bare")
    assert (status, found["verdict"], found["how"]) == (0, "identical", "alone, as it was")
    assert set(found["checks"].values()) == {"same"}
    assert found["again"] == str(here / "multirun" / "reproduced" / RunFolder("one").record["run_id"])


def test_it_is_run_again_each_time(here, capsys):
    assert main(["train", *MLP, "hydra.run.dir=one"]) == 0
    told = [again(capsys, "one", "--output", "new")[1][0] for _ in range(2)]
    assert [found["verdict"] for found in told] == ["identical"] * 2
    assert told[0]["again"] != told[1]["again"]


def test_one_head_of_a_group_is_identical_with_its_group_and_near_it_alone(here, capsys):
    grid = ["freeze=backbone", "head.dropout=0,0.5", "hydra.sweep.dir=heads"]
    assert main(["train", "-m", *(word for word in MLP if word != "freeze=none"), *grid]) == 0
    one = sorted(path for path in (here / "heads").iterdir() if path.is_dir())[0]
    status, [found] = again(capsys, str(one))
    assert (status, found["verdict"], found["how"]) == (0, "identical", "with its group of 2")
    shutil.move(one, here / "lonely")
    status, [found] = again(capsys, "lonely", "--output", "alone")
    assert (status, found["how"]) == (0, "apart from 1 run of its group, which is not here")
    assert found["verdict"] in ("identical", "within tolerance")


def test_a_whole_sweep_is_told_run_by_run(here, capsys):
    assert main(["train", "-m", *MLP, "seed=0,1", "hydra.sweep.dir=seeds"]) == 0
    assert main(["reproduce", "seeds"]) == 0
    shown = capsys.readouterr().out
    assert shown.count(": identical") == 2


def test_where_a_run_differs_is_told(here, capsys):
    assert main(["train", *MLP, "hydra.run.dir=one"]) == 0
    folder = RunFolder("one")
    record = folder.record
    record["metrics"]["test/accuracy"] += 0.25
    record["code"], record["packages"]["torch"] = {"sha256": "0" * 64}, "1.0"
    (here / "one" / "record.json").write_text(json.dumps(record))
    lines = (here / "one" / "metrics.csv").read_text().splitlines()
    at = next(place for place, line in enumerate(lines) if line.split(",")[1] == "1" and "train/loss" in line)
    lines[at] = ",".join([*lines[at].split(",")[:-1], "9.0"])
    (here / "one" / "metrics.csv").write_text("\n".join(lines) + "\n")
    status, [found] = again(capsys, "one")
    assert (status, found["verdict"]) == (1, "different")
    assert "since epoch 1: train/loss 9 then" in found["why"]
    assert "test/accuracy" in found["why"]
    assert found["checks"]["packages"].startswith("torch 1.0 then")
    assert found["checks"]["code"] != "same"


def test_other_data_is_another_run_and_is_not_run(here, capsys):
    for name, colour in (("a", "red"), ("b", "blue")):
        (here / "pictures" / name).mkdir(parents=True)
        for number in range(8):
            Image.new("RGB", (8, 8), colour).rotate(number).save(here / "pictures" / name / f"{number}.png", dpi=(number + 1, 1))
    words = ["dataset=folder", "dataset.path=pictures", "data.size=8", "model=mlp", "model.weights=none", "freeze=none"]
    assert main(["train", *words, *TINY, "hydra.run.dir=one"]) == 0
    shutil.move("pictures", "elsewhere")
    status, [found] = again(capsys, "one", f"dataset.path={here / 'elsewhere'}")
    assert (status, found["verdict"]) == (0, "identical")
    (here / "elsewhere" / "a" / "0.png").write_bytes((here / "elsewhere" / "b" / "0.png").read_bytes())
    status, [found] = again(capsys, "one", f"dataset.path={here / 'elsewhere'}")
    assert (status, found["verdict"], found["again"]) == (1, "not run", None)
    assert found["why"] == "data not what the record names"
    assert found["checks"]["data"].startswith("fingerprint ")


@pytest.mark.parametrize(
    ("words", "told"), [(["seed=1"], "another run"), (["dataset.pth=x"], "dataset.path"), (["dataset.images=x"], "no such key")]
)
def test_only_places_may_change(here, capsys, words, told):
    assert main(["train", *MLP, "hydra.run.dir=one"]) == 0
    assert main(["reproduce", "one", *words]) == 2
    assert told in capsys.readouterr().err


def test_a_folder_without_a_done_run_is_refused(here, capsys):
    (here / "empty").mkdir()
    assert main(["reproduce", "empty"]) == 2
    assert "empty" in capsys.readouterr().err
