"""A paper's file says what is run and what is claimed; regraft paper runs it, and each claim is judged by its figures alone."""

from __future__ import annotations

import json
import shutil

import numpy as np
import polars
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from runs import run

from regraft import papers
from regraft.cli import main
from regraft.config import Composer
from regraft.errors import UserError
from regraft.record import SHIFTED
from regraft.report import claims, rows
from regraft.report.claims import OPEN, REFUTED, SUPPORTED

LETTERS = "abcdefgh"
NAMES = [f"{letter}{n}" for letter in LETTERS for n in range(25)]
KEYS = {"title": "t", "cite": "c", "claim": "a", "budget": "b", "differs": "d", "axes": ["model"]}


def claim(**values):
    return papers.Claim.model_validate({"says": "It is so.", **values})


def rowed(root, skills, seeds=3, shift=None):
    """A row for each depth, right about so many of the 200 pictures: always the same ones, but for a few that a seed draws."""
    for depth, skill in skills.items():
        for seed in range(seeds):
            draw = np.random.default_rng([seed, int(1000 * skill)])
            right = set(NAMES[: round(skill * len(NAMES))]) ^ set(draw.choice(NAMES, 4, replace=False))
            says = {name: name[0] if name in right else "z" for name in NAMES}
            folder = run(root / f"{depth}-{seed}", says, {"model": {"name": "mlp", "depth": depth}, "seed": seed})
            if shift:
                metrics = {**folder.record["metrics"], f"{shift}/accuracy": folder.record["metrics"]["test/accuracy"]}
                folder.update(metrics=metrics)
                table = {"shift": shift, "id": [f"{name}@{shift}" for name in NAMES], "truth": [name[0] for name in NAMES]}
                table |= {"predicted": [says[name] for name in NAMES], "scores": [[0.9, 0.1]] * len(NAMES)}
                polars.DataFrame(table).write_parquet(folder / SHIFTED)
    return rows.boards(rows.read([root]))


def judged(boards, *statements):
    return claims.judged(statements, boards)


# claims


def test_what_is_better_beyond_doubt_is_supported_and_its_opposite_is_not(tmp_path):
    boards = rowed(tmp_path, {1: 0.5, 2: 0.8})
    yes, no = judged(
        boards, claim(better={"model.depth": 2}, than={"model.depth": 1}), claim(better={"model.depth": 1}, than={"model.depth": 2})
    )
    assert (yes.word, no.word) == (SUPPORTED, REFUTED)
    assert yes.difference.value == pytest.approx(0.3, abs=0.03)
    assert no.difference.value == pytest.approx(-yes.difference.value)
    assert 0.2 < yes.difference.low < yes.difference.value < yes.difference.high < 0.4
    assert (yes.pictures, yes.adjusted) == (200, min(1.0, 2 * yes.p))
    assert "model.depth=2 0.7" in yes.told
    assert "(3 runs)" in yes.told


def test_what_few_pictures_say_is_not_enough(tmp_path):
    [verdict] = judged(rowed(tmp_path, {1: 0.5, 2: 0.53}), claim(better={"model.depth": 2}, than={"model.depth": 1}))
    assert verdict.word == OPEN
    assert verdict.difference.low < 0 < verdict.difference.high


def test_a_difference_that_is_too_small_to_count_is_no_support(tmp_path):
    boards = rowed(tmp_path, {1: 0.5, 2: 0.53})
    [verdict] = judged(boards, claim(better={"model.depth": 2}, than={"model.depth": 1}, within=0.2))
    assert verdict.word == REFUTED
    assert "lies below 0.2" in verdict.told


def test_the_correction_is_over_all_claims_of_a_paper(tmp_path):
    boards = rowed(tmp_path, {1: 0.5, 2: 0.56})
    one = claim(better={"model.depth": 2}, than={"model.depth": 1})
    [alone], many = judged(boards, one), judged(boards, *[one] * 12)
    assert many[0].p == alone.p == alone.adjusted
    assert many[0].adjusted == pytest.approx(min(1.0, 12 * alone.p))


def test_several_rows_in_order_rise(tmp_path):
    depths = [{"model.depth": depth} for depth in (1, 2, 3)]
    rising, falling = judged(rowed(tmp_path, {1: 0.5, 2: 0.6, 3: 0.7}), claim(rising=depths), claim(rising=depths[::-1]))
    assert (rising.word, rising.test) == (SUPPORTED, "permutation of rows")
    assert falling.word == REFUTED
    assert rising.difference.value == pytest.approx(0.2, abs=0.03)


def test_what_rises_and_falls_again_does_not_rise(tmp_path):
    [verdict] = judged(rowed(tmp_path, {1: 0.5, 2: 0.9, 3: 0.7}), claim(rising=[{"model.depth": depth} for depth in (1, 2, 3)]))
    assert (verdict.word, verdict.reason) == (REFUTED, "model.depth=3 lies below model.depth=2")


def test_one_run_of_a_row_supports_nothing(tmp_path):
    [verdict] = judged(rowed(tmp_path, {1: 0.5, 2: 0.8}, seeds=1), claim(better={"model.depth": 2}, than={"model.depth": 1}))
    assert verdict.word == OPEN
    assert verdict.difference.low > 0
    assert "one run" in verdict.told


@pytest.mark.parametrize(
    ("value", "within", "word"), [(0.8, 0.1, SUPPORTED), (0.5, 0.1, REFUTED), (0.7, 0.1, OPEN)], ids=["near", "far", "between"]
)
def test_a_figure_lies_near_another(tmp_path, value, within, word):
    boards = rowed(tmp_path, {1: 0.8}, seeds=1)
    [verdict] = judged(boards, claim(near={"model.depth": 1}, value=value, within=within))
    assert verdict.word == word
    assert verdict.difference.value == pytest.approx(0.8 - value, abs=0.03)


def test_under_a_shift_its_own_answers_decide(tmp_path):
    boards = rowed(tmp_path, {1: 0.5, 2: 0.8}, shift="noise-3")
    [verdict] = judged(boards, claim(metrics=["noise-3/accuracy"], better={"model.depth": 2}, than={"model.depth": 1}))
    assert (verdict.word, verdict.pictures) == (SUPPORTED, 200)
    [both] = judged(boards, claim(metrics=["noise-3/accuracy", "test/accuracy"], better={"model.depth": 2}, than={"model.depth": 1}))
    assert both.difference.value == pytest.approx(verdict.difference.value)
    [missing] = judged(boards, claim(metrics=["blur-1/accuracy"], better={"model.depth": 2}, than={"model.depth": 1}))
    assert (missing.word, missing.why) == (OPEN, "no run with model.depth=2 has blur-1/accuracy")


def test_a_metric_of_no_single_picture_is_compared_over_seeds(tmp_path):
    for depth in (1, 2):
        for seed in range(4):
            metrics = {"val/f1": 0.1, "test/f1": 0.2 * depth + seed / 100}
            run(
                tmp_path / f"{depth}-{seed}",
                {"a": "a"},
                {"model": {"name": "mlp", "depth": depth}, "seed": seed},
                metrics=metrics,
                metric="f1",
            )
    boards = rows.boards(rows.read([tmp_path]))
    [verdict] = judged(boards, claim(metrics=["test/f1"], better={"model.depth": 2}, than={"model.depth": 1}))
    assert (verdict.word, verdict.test, verdict.pictures) == (SUPPORTED, "Welch's t over seeds", 0)


def test_where_several_rows_fit_val_chooses(tmp_path):
    boards = rowed(tmp_path, {1: 0.5, 2: 0.6, 3: 0.7})
    [verdict] = judged(boards, claim(better={"model": "mlp"}, than={"model.depth": 1}))
    assert verdict.sides[0].name == "model=mlp (of 3 by val: model.depth=3)"
    assert verdict.word == SUPPORTED
    [itself] = judged(boards, claim(better={"model.depth": 3}, than={"model": "mlp"}))
    assert (itself.word, itself.told) == (OPEN, "model.depth=3 is compared with itself: name more keys")


def test_a_row_that_lacks_runs_is_not_chosen_where_another_is_whole(tmp_path):
    rowed(tmp_path, {1: 0.5, 2: 0.6, 3: 0.9})
    run(tmp_path / "3-3", {}, {"model": {"name": "mlp", "depth": 3}, "seed": 3}, status="failed", error={"kind": "Oops", "message": "Oops"})
    [verdict] = judged(rows.boards(rows.read([tmp_path])), claim(better={"model": "mlp"}, than={"model.depth": 1}))
    assert verdict.sides[0].name == "model=mlp (of 3 by val: model.depth=2)"


@pytest.mark.parametrize(("metric", "word"), [("loss", REFUTED), ("f1", SUPPORTED)])
def test_of_a_loss_less_is_better(tmp_path, metric, word):
    for depth in (1, 2):
        for seed in range(4):
            metrics = {f"val/{metric}": 0.1, f"test/{metric}": 0.2 * depth + seed / 100}
            config = {"model": {"name": "mlp", "depth": depth}, "seed": seed}
            run(tmp_path / f"{depth}-{seed}", {"a": "a"}, config, metrics=metrics, metric=metric)
    boards = rows.boards(rows.read([tmp_path]))
    [verdict] = judged(boards, claim(metrics=[f"test/{metric}"], better={"model.depth": 2}, than={"model.depth": 1}))
    assert verdict.word == word


def test_equal_figures_of_all_seeds_are_no_evidence(tmp_path):
    for depth in (1, 2):
        for seed in range(3):
            config = {"model": {"name": "mlp", "depth": depth}, "seed": seed}
            run(tmp_path / f"{depth}-{seed}", {"a": "a"}, config, metrics={"test/f1": 0.5 + depth / 1000}, metric="f1")
    [verdict] = judged(rows.boards(rows.read([tmp_path])), claim(metrics=["test/f1"], better={"model.depth": 2}, than={"model.depth": 1}))
    assert verdict.word == OPEN


def test_a_row_that_is_not_there_or_has_failed_is_told(tmp_path):
    rowed(tmp_path, {1: 0.5})
    error = {"kind": "Oops", "message": "Oops: no weights"}
    run(tmp_path / "failed", {}, {"model": {"name": "mlp", "depth": 7}}, status="failed", error=error, metrics={})
    boards = rows.boards(rows.read([tmp_path]))
    strange, failed = (judged(boards, claim(better={"model.depth": depth}, than={"model.depth": 1}))[0] for depth in (9, 7))
    assert (strange.word, strange.told) == (OPEN, "no row has model.depth=9")
    assert (failed.word, failed.told) == (OPEN, "no run with model.depth=7 has test/accuracy (Oops: no weights)")


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_no_interval_is_both_supported_and_not(value, low, high, p):
    low, high = sorted((low - 0.5, high - 0.5))
    interval = claims.Interval(value, low, high)
    one = claims.Verdict(claim(better={"a": 1}, than={"a": 2}), (), interval, p, p)
    assert (one.word == SUPPORTED) == (low > 0 and p < claims.LEVEL)
    assert one.word != REFUTED or high < 0.02


# files


@pytest.mark.parametrize("name", papers.names())
def test_every_paper_composes_and_its_claims_speak_of_its_runs(name, tmp_path, monkeypatch):
    """What lies where on this machine, and earlier steps, aside: of the miniature, and of the full size as far as it is embedded data."""
    (tmp_path / "ilsvrc" / "val" / "n01440764").mkdir(parents=True)
    (tmp_path / "cifar").mkdir()
    paper = papers.read(name)
    assert paper.statements(False)
    for full in (False, True):
        found = []
        for step in paper.steps(full):
            overrides = [override.replace("{source}", "none") for override in step.overrides]
            overrides += ["dataset.path=ilsvrc"] if "experiment=imagenet" in overrides else []
            overrides += ["dataset.path=cifar"] if "dataset=cifar10" in overrides else []
            monkeypatch.chdir(tmp_path)
            found += [dict(rows.flat(job.config)) for job in Composer().jobs([*overrides, "hydra.mode=MULTIRUN"], True)]
        assert bool(found) == bool(paper.full if full else paper.runs)
        if found:
            for statement in paper.statements(full):
                for given in statement.rows:
                    asked = {**statement.where, **given}
                    assert any(all(config.get(key) == value for key, value in asked.items()) for config in found), asked
            assert any(axis in config for config in found for axis in paper.axes)


def test_a_paper_is_listed_and_shown_and_a_misspelt_one_is_told(capsys):
    assert main(["paper"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in papers.names())
    assert main(["paper", "lp_ft", "--show"]) == 0
    told = capsys.readouterr().out
    assert "Kumar" in told
    assert "regraft train -m model=efficientnet_lite" in told
    assert main(["paper", "lp_fd"]) == 2
    assert "did you mean lp_ft?" in capsys.readouterr().err


def test_a_paper_without_its_data_says_what_it_needs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["paper", "imagenet"]) == 2
    told = capsys.readouterr().err
    assert "dataset.path" in told
    assert "50,000 validation pictures" in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"titel": "x"}, "did you mean title"),
        ({"figure": "row"}, "did you mean rows?"),
        ({"chosen": ["optimizer.lr"]}, "axes has model"),
        ({"claims": [{"says": "x", "better": {"a": 1}}]}, "claims[0].better"),
        ({"claims": [{"says": "x", "near": {"a": 1}, "value": 1.0, "rising": [{}, {}, {}]}]}, "says one thing"),
        ({"runs": [{"name": "a", "overrides": ["seed=0"]}, {"name": "a", "overrides": ["seed=1"]}]}, "two steps have this name"),
        ({"runs": [{"name": "a", "overrides": ["model.weights={b}"]}]}, "no earlier step"),
        ({"runs": ["a"]}, "runs = [a]"),
        ({"claims": []}, "claims"),
        ({"runs": [{"name": "../x", "overrides": ["seed=0"]}]}, "runs[0].name"),
        ({"claims": [{"says": "x", "better": {"a": 1}, "than": {"a": 2}, "metrics": ["accuracy"]}]}, "SPLIT/METRIC"),
        ({"claims": [{"says": "x", "better": {"a": 1}, "than": {"a": 2}, "metrics": ["test/f1", "noise/accuracy"]}]}, "one metric"),
        ({1: "x"}, "keys and values"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_mistake_in_a_paper_names_its_place(tmp_path, changes, words):
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(KEYS | {"claims": [{"says": "x", "better": {"a": 1}, "than": {"a": 2}}]} | changes))
    with pytest.raises(UserError) as caught:
        papers.read(str(path))
    assert words in str(caught.value)
    assert "own.yaml" in str(caught.value)


@pytest.mark.parametrize("held", [b"title: [", "title: é".encode("latin-1"), b"title: 2020-13-45", b"[" * 5000], ids=range(4))
def test_what_is_no_yaml_is_told(tmp_path, held):
    path = tmp_path / "own.yaml"
    path.write_bytes(held)
    with pytest.raises(UserError, match="can't be read as YAML"):
        papers.read(str(path))


def test_a_paper_of_ones_own_is_run_judged_and_reproduced(tmp_path, monkeypatch, capsys):
    """Two steps: a net that has learnt, and that net under noise, with its own head and a new one."""
    monkeypatch.chdir(tmp_path)
    small = ["dataset=digits", "model=convnet", "model.width=4", "data.size=16", "hardware=cpu", "hardware.workers=0"]
    again = [*small, "dataset.per_class=2", "dataset.corruption=noise:2", "model.weights={learnt}", "trainer.max_epochs=1"]
    own = KEYS | {
        "axes": ["head.kept", "optimizer.lr"],
        "runs": [
            {"name": "learnt", "overrides": [*small, "freeze=none", "trainer.max_epochs=2", "optimizer.lr=0.01"]},
            {"name": "noisy", "overrides": [*again, "head.kept=true,false", "optimizer.lr=0.0001", "seed=0,1"]},
        ],
        "claims": [
            {
                "says": "A head that is kept is better than a new one.",
                "where": {"dataset.corruption": "noise:2"},
                "better": {"head.kept": True},
                "than": {"head.kept": False},
            }
        ],
        "published": [{"what": "by how much", "value": "+50%", "source": "table 1"}],
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    assert main(["paper", "own.yaml"]) == 0
    told = capsys.readouterr().out
    assert "supported: A head that is kept is better than a new one." in told
    assert "published: by how much: +50% (table 1)" in told
    out = tmp_path / "multirun" / "papers" / "own"
    [verdict] = json.loads((out / "verdicts.json").read_text())
    assert verdict["verdict"] == "supported"
    assert verdict["p_holm"] < 0.05
    page = (out / "paper.md").read_text()
    assert "**supported**" in page
    assert "regraft paper own.yaml" in page
    assert all((out / name).is_file() for name in ("index.html", "results.csv", "table.md", "table.tex"))
    [drawn] = out.glob("*.png")
    assert f"({drawn.name})" in page
    assert drawn.read_bytes() == (out / "figures" / drawn.name).read_bytes()
    records = sorted((out / "records").iterdir())
    assert [sorted(path.name for path in each.iterdir()) for each in records] == [["config.yaml", "record.json"]] * 5
    kept = (records[0] / "record.json").read_text()
    assert kept.count("\n") == len(json.loads(kept)) + 2, "a line for each key"
    assert str(out) not in (out / "results.csv").read_text()
    shutil.copytree(records[0], tmp_path / "alone")
    (out / "figures" / "old.png").touch()
    assert main(["paper", "own.yaml", "optimizer.lr=0.01", "trainer.max_epochs=2"]) == 0
    assert "5 runs" in (out / "paper.md").read_text(), "only those of this command"
    assert main(["paper", "own.yaml", "head.kept=true,false", "trainer.max_epochs=2,3"]) == 2
    assert "later steps go on from its one run" in capsys.readouterr().err
    assert main(["paper", "own.yaml", "--output", str(tmp_path)]) == 2
    assert "holds something else" in capsys.readouterr().err
    assert main(["reproduce", str(tmp_path / "alone")]) == 0
    assert "identical" in capsys.readouterr().out
