"""What is learnt and how it is measured: every figure is scikit-learn's on predictions.parquet, and no figure hangs on the batches."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from sklearn import metrics

from regraft import cli, heads
from regraft.errors import UserError
from regraft.graft import Run
from regraft.record import Metrics
from regraft.tasks.frames import Frames

DIGITS = ["dataset=digits", "dataset.per_class=5", "model=mlp", "model.weights=none", "trainer.max_epochs=3", "hardware=cpu"]
DIGITS += ["trainer.checkpoint_seconds=0", "optimizer.lr=0.01", "data.batch_size=10", "hardware.workers=0"]


def epochs(run: Run, name: str) -> list[float]:
    return [float(row["value"]) for row in Metrics(run.folder / "metrics.csv").rows() if row["metric"] == name]


def answers(run: Run) -> pl.DataFrame:
    return pl.read_parquet(run.folder / "predictions.parquet")


def test_every_metric_of_a_class_equals_scikit_learns(executed):
    run = executed(DIGITS)
    told = answers(run)
    truth, scores = told["truth"].to_list(), np.array(told["scores"].to_list())
    labels = [run.classes.index(name) for name in truth]
    expected = {
        "accuracy": metrics.accuracy_score(truth, told["predicted"].to_list()),
        "top5_accuracy": metrics.top_k_accuracy_score(labels, scores, k=5),
        "macro_f1": metrics.f1_score(truth, told["predicted"].to_list(), average="macro"),
        "auroc": metrics.roc_auc_score(labels, scores / scores.sum(1, keepdims=True), multi_class="ovr"),
    }
    for name, value in expected.items():
        assert run.metrics[f"test/{name}"] == pytest.approx(value, abs=1e-6), name
    sure, right = scores.max(1), scores.argmax(1) == labels
    bins = np.clip(np.ceil(sure * 15).astype(int) - 1, 0, 14)  # 15 of equal width (Guo et al. 2017, eq. 3)
    error = sum(abs(sure[bins == each].mean() - right[bins == each].mean()) * (bins == each).mean() for each in set(bins))
    assert run.metrics["test/calibration_error"] == pytest.approx(error, abs=1e-5)


@pytest.fixture
def table(tmp_path):
    """60 grey pictures; a csv with two labels of 0 and 1 and a number for each: light, tall, level."""
    random = np.random.default_rng(0)
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["picture", "light", "tall", "level", "split"])
        for number in range(60):
            level, tall = int(random.integers(20, 236)), number % 2
            picture = np.zeros((12, 12, 3), np.uint8)
            picture[:, 4:8] = level
            picture = picture if tall else picture.transpose(1, 0, 2)
            Image.fromarray(np.ascontiguousarray(picture)).save(tmp_path / f"{number}.png")
            rows.writerow([f"{number}.png", int(level > 127), tall, 10 * level + 1000, ("train", "train", "val", "test")[number % 7 % 4]])
    return ["dataset=csv", f"dataset.path={tmp_path / 'labels.csv'}", "dataset.file=picture", "dataset.split=split", "dataset.size=12"]


CSV = [
    "model=mlp",
    "model.weights=none",
    "freeze=none",
    "hardware=cpu",
    "hardware.workers=0",
    "trainer.max_epochs=40",
    "optimizer.lr=0.003",
]
LABELS = ["dataset.labels=[light,tall]", "task=tag"]
NUMBERS = ["task=regress", "loss=mse"]
# each batch is measured with the same weights
STILL = ["trainer.max_epochs=1", "optimizer.lr=1e-12", "trainer.keep=last", "head.dropout=0"]


def resplit(path: Path, **counts: int) -> None:
    """The table's rows dealt to splits anew: so many val and test rows, the others train."""
    rows = list(csv.reader(path.open(newline="")))
    splits = ["val"] * counts["val"] + ["test"] * counts["test"]
    for row, split in zip(rows[1:], splits + ["train"] * (len(rows) - 1 - len(splits)), strict=True):
        row[-1] = split
    csv.writer(path.open("w", newline="")).writerows(rows)


def judged(run: Run) -> dict[str, float]:
    """scikit-learn's view of a run that learns tags, from its test pictures' answers."""
    told = answers(run)
    truth = np.array([[name in row.split("|") for name in run.classes] for row in told["truth"]])
    scores = np.array(told["scores"].to_list())
    said = np.array([[name in row.split("|") for name in run.classes] for row in told["predicted"]])
    assert np.array_equal(said, scores >= np.array(run.record["thresholds"], np.float32))
    return {
        "map": metrics.average_precision_score(truth, scores, average="macro"),
        "accuracy": (said == truth).mean(),
        "micro_f1": metrics.f1_score(truth.ravel(), said.ravel()),
        "macro_f1": np.mean([metrics.f1_score(*columns) for columns in zip(truth.T, said.T, strict=True)]),
        "auroc": metrics.roc_auc_score(truth, scores, average="macro"),
    }


@pytest.mark.parametrize("labels", ["[light,tall]", "[light]"])
def test_every_metric_of_tags_equals_scikit_learns(executed, table, labels):
    run = executed([*CSV, *table, f"dataset.labels={labels}", "task=tag", "trainer.max_epochs=2"])
    for name, value in judged(run).items():
        assert run.metrics[f"test/{name}"] == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("labels", ["[light,tall]", "[light]"])
def test_logits_that_look_like_probabilities_are_not_taken_for_them(executed, table, monkeypatch, labels):
    """All logits lie within 0.2..0.4: as they stand none would reach one half, and as scores all do."""
    build = heads.Linear.build

    def shifted(self, features, classes):
        head = build(self, features, classes)
        with torch.no_grad():
            for name, parameter in head.named_parameters():
                parameter.mul_(0.02) if name.endswith("weight") else parameter.fill_(0.3)
        return head

    monkeypatch.setattr(heads.Linear, "build", shifted)
    run = executed([*CSV, *table, *STILL, f"dataset.labels={labels}", "task=tag"])
    scores = np.array(answers(run)["scores"].to_list())
    logits = np.log(scores / (1 - scores))
    assert logits.min() > 0.2
    assert logits.max() < 0.4
    expected = judged(run)
    assert expected["macro_f1"] > 0.3, "of logits it would be 0"
    for name, value in expected.items():
        assert run.metrics[f"test/{name}"] == pytest.approx(value, abs=1e-6), name
    assert epochs(run, "val/map") == pytest.approx([run.metrics["val/map"]], abs=1e-6)
    for metric in ("accuracy", "macro_f1"):
        followed = executed([*CSV, *table, *STILL, f"dataset.labels={labels}", "task=tag", f"trainer.monitor=val/{metric}"])
        assert epochs(followed, f"val/{metric}") == pytest.approx([run.metrics[f"val/{metric}"]], abs=1e-6)


@pytest.mark.parametrize("labels", ["[light,tall]", "[light]"])
def test_an_epochs_metrics_do_not_hang_on_its_batches(executed, table, labels):
    """Of single pictures some have logits within 0..1, of whole batches none has all of them there."""
    same = [*CSV, *table, *STILL, f"dataset.labels={labels}", "task=tag"]
    runs = {size: executed([*same, f"data.batch_size={size}"]) for size in (1, 3, 60)}
    for size, run in runs.items():
        for split in ("train", "val"):
            assert epochs(run, f"{split}/map") == pytest.approx([run.metrics[f"{split}/map"]], abs=1e-6), (size, split)
    scores = np.array(answers(runs[1])["scores"].to_list())
    assert (scores > 0.5).any()
    assert (scores < 0.5).any()


def test_epochs_metrics_of_classes_and_numbers_do_not_hang_on_their_batches_either(executed, table):
    for words in (["dataset.label=light"], ["dataset.targets=[level]", *NUMBERS], ["dataset.targets=[level,tall]", *NUMBERS]):
        name = "accuracy" if words[0].startswith("dataset.label") else "mae"
        for size in (1, 3, 60):
            run = executed([*CSV, *table, *STILL, *words, f"data.batch_size={size}"])
            for split in ("train", "val"):
                found = run.metrics[f"{split}/{name}"]
                assert epochs(run, f"{split}/{name}") == pytest.approx([found], rel=1e-5), (words, size, split)


@pytest.mark.parametrize("targets", ["[level]", "[level,tall]"])
def test_every_metric_of_numbers_equals_scikit_learns(executed, table, targets):
    """One in its own units, several in train's deviations."""
    run = executed([*CSV, *table, f"dataset.targets={targets}", *NUMBERS, "trainer.max_epochs=10"])
    told = answers(run)
    truth, said = (np.array(told[column].to_list(), np.float64) for column in ("truth", "predicted"))
    mean, deviation = (np.array(numbers) for numbers in run.record["units"])
    learnt = np.array([sample.target for sample in run.source.split("train")])
    np.testing.assert_allclose(mean, learnt.mean(0), rtol=1e-6)
    np.testing.assert_allclose(deviation, learnt.std(0), rtol=1e-6)
    if targets != "[level]":
        truth, said = (truth - mean) / deviation, (said - mean) / deviation
    assert run.metrics["test/mae"] == pytest.approx(metrics.mean_absolute_error(truth, said), rel=1e-5)
    assert run.metrics["test/rmse"] == pytest.approx(np.sqrt(((truth - said) ** 2).mean()), rel=1e-5)
    assert run.metrics["test/r2"] == pytest.approx(metrics.r2_score(truth, said), rel=1e-5)
    deviations = ((truth - said) / (deviation if targets == "[level]" else 1)) ** 2
    assert run.metrics["test/loss"] == pytest.approx(deviations.mean(), rel=1e-4), "the loss is always in deviations"


@pytest.mark.parametrize("monitor", ["auto", "val/r2"])
def test_a_single_picture_has_no_r2_and_loses_no_run(executed, table, tmp_path, monitor):
    resplit(tmp_path / "labels.csv", val=1, test=1)
    same = [*CSV, *table, "dataset.targets=[level]", *NUMBERS, "trainer.max_epochs=2", f"trainer.monitor={monitor}"]
    run = executed(same)
    assert run.record["data"]["sizes"] == {"train": 58, "val": 1, "test": 1}
    assert {"val/r2", "test/r2"}.isdisjoint(run.metrics)
    assert {"train/r2", "val/mae", "test/mae", "test/rmse"} <= set(run.metrics)
    assert run.metrics["test/mae"] == pytest.approx(run.metrics["test/rmse"]), "of one picture both are its error"


def test_many_labels_are_learnt_and_measured(executed, table, capsys, tmp_path):
    run = executed([*CSV, *table, "dataset.labels=[light,tall]", "task=tag"])
    assert run.classes == ["light", "tall"]
    assert run.metrics["test/map"] > 0.95
    assert run.metrics["test/accuracy"] > 0.75
    assert run.record["kept"]["monitor"] == "val/map"
    told = answers(run)
    assert set(told["truth"]) == {"", "light", "tall", "light|tall"}
    assert cli.main(["predict", str(run.folder.path), str(tmp_path / "1.png"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["predicted"] in ("tall", "light|tall")
    assert max(said["scores"].values()) <= 1


def test_numbers_are_learnt_in_their_own_units(executed, table, capsys, tmp_path):
    run = executed([*CSV, *table, "dataset.targets=[level]", "task=regress", "loss=mse"])
    truth = answers(run)["truth"].list.first()
    assert run.metrics["test/r2"] > 0.9
    assert run.metrics["test/mae"] < 0.3 * truth.std()
    assert run.evaluate() == pytest.approx(run.metrics, rel=1e-4, abs=1e-4)
    assert cli.main(["predict", str(run.folder.path), str(tmp_path / "1.png"), "--json"]) == 0
    assert 500 < json.loads(capsys.readouterr().out)["scores"]["level"] < 4000


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dataset.labels=[light,tall]"], "task=tag learns them"),
        (["dataset.labels=[light,tall]", "task=tag", "loss=mse"], "loss=cross_entropy|focal would work"),
        (["dataset.targets=[level]", "task=regress", "loss=mse", "augmentation=mixup"], "numbers are not mixed"),
        (["dataset.targets=[level]", "task=regress", "loss=mse", "trainer.monitor=val/accuracy"], "task=regress measures val/mae"),
    ],
)
def test_what_does_not_fit_together_is_refused(executed, table, words, said):
    with pytest.raises(UserError) as error:
        executed([*CSV, *table, *words])
    assert said in str(error.value)


def best_f1(scores: np.ndarray, truth: np.ndarray) -> float:
    """The highest F1 that any threshold gives."""
    return max(metrics.f1_score(truth, scores >= each) for each in scores)


def test_each_tags_threshold_is_the_best_on_val_and_stays_with_the_run(executed, table, tmp_path, capsys):
    run = executed([*CSV, *table, *LABELS, "trainer.max_epochs=2"])
    chosen = np.array(run.record["thresholds"], np.float32)
    val = run.source.split("val")
    scores = np.stack([scores.numpy() for _, scores in run.predict([tmp_path / sample.id for sample in val])])
    truth = val.truth().astype(bool)
    for tag in range(2):
        said = scores[:, tag] >= chosen[tag]
        assert metrics.f1_score(truth[:, tag], said) == pytest.approx(best_f1(scores[:, tag], truth[:, tag]))
    assert run.metrics["val/micro_f1"] == pytest.approx(metrics.f1_score(truth.ravel(), (scores >= chosen).ravel()))
    assert not np.array_equal(scores >= chosen, scores >= 0.5), "else nothing is shown"
    assert run.evaluate() == pytest.approx(run.metrics, abs=1e-6)
    picture = next(row for row in answers(run).to_dicts() if (np.array(row["scores"]) >= chosen).any())
    assert cli.main(["predict", str(run.folder.path), str(tmp_path / picture["id"]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["predicted"] == picture["predicted"]


def test_what_val_can_t_choose_is_one_half_and_said_so(executed, table, tmp_path):
    path = tmp_path / "labels.csv"
    rows = list(csv.reader(path.open(newline="")))
    for row in rows[1:]:
        row[1] = "0" if row[-1] == "val" else row[1]
    csv.writer(path.open("w", newline="")).writerows(rows)
    run = executed([*CSV, *table, *LABELS, "trainer.max_epochs=1"])
    assert run.record["thresholds"][0] == 0.5 != run.record["thresholds"][1]
    assert [text.partition(":")[0] for text in run.record["warnings"] if "0.5" in text] == ["no val picture has light"]
    resplit(path, val=0, test=20)
    none = executed([*CSV, *table, *LABELS, "dataset.val=0", "trainer.max_epochs=1", "trainer.keep=last"])
    assert none.record["thresholds"] == [0.5, 0.5]
    assert any(text.startswith("no val picture has light, tall:") for text in none.record["warnings"])
    assert none.evaluate() == pytest.approx(none.metrics, abs=1e-6)


def test_heads_of_a_stack_have_thresholds_of_their_own(swept, table):
    typed = [*CSV, *table, *LABELS, "freeze=backbone", "trainer.max_epochs=2", "head.dropout=0,0.5"]
    stacked = [Run(folder.path) for folder in swept(typed)]
    assert all(run.record["group"] for run in stacked)
    assert stacked[0].record["thresholds"] != stacked[1].record["thresholds"]
    for run in stacked:
        judged(run)
        assert run.evaluate() == pytest.approx(run.metrics, abs=1e-5)


def test_the_record_holds_each_classs_own_figures_on_test(executed, table, monkeypatch):
    run = executed([*CSV, *table, *LABELS, "trainer.max_epochs=2"])
    told = answers(run)
    truth = np.array([[name in row.split("|") for name in run.classes] for row in told["truth"]])
    scores = np.array(told["scores"].to_list(), np.float32)
    for tag, (name, found) in enumerate(run.record["details"].items()):
        said = scores[:, tag] >= np.float32(run.record["thresholds"][tag])
        assert name == run.classes[tag]
        assert found == pytest.approx(
            {
                "map": metrics.average_precision_score(truth[:, tag], scores[:, tag]),
                "f1": metrics.f1_score(truth[:, tag], said),
                "threshold": run.record["thresholds"][tag],
                "truths": truth[:, tag].sum(),
            },
            abs=1e-6,
        )
    of_classes = executed(DIGITS)
    told, found = answers(of_classes), of_classes.record["details"]
    right = (told["truth"] == told["predicted"]).to_numpy()
    assert set(found) == set(told["truth"])
    for name, figures in found.items():
        own = (told["truth"] == name).to_numpy()
        assert figures == pytest.approx({"accuracy": right[own].mean(), "truths": own.sum()})
    monkeypatch.setattr("regraft.results.DETAILED", 3)
    few = executed(DIGITS).record["details"]
    assert few == {name: figures for name, figures in found.items() if name in few}
    assert sorted(each["accuracy"] for each in few.values()) == sorted(each["accuracy"] for each in found.values())[:3]


def test_a_sequences_answer_ends_with_it():
    task = Frames(name="frames")
    scores = torch.tensor([[[0.9, 0.1], [0.2, 0.3], [0.1, 0.1]], [[0.1, 0.8], [0.9, 0.9], [0.0, 0.2]]])
    truth = torch.zeros(2, 3, 3)
    truth[0, :1, 2], truth[1, :, 2] = 1, 1
    assert task.answers(task.within(scores, truth), ["C4", "E4"]) == ["C4", "E4 C4+E4 -"]
