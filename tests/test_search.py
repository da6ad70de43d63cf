"""Searches: spaces with conditions, rounds that go on as if never killed, reproducible samplers, and runs that are ended early."""

from __future__ import annotations

import json
import math
import shlex
import shutil
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as trying
from hypothesis import strategies as st

from regraft import cli, dispatch, pruning, running, search, sweep, sweepers
from regraft.config import Composer
from regraft.errors import UserError
from regraft.locks import Lock
from regraft.record import Metrics, RunFolder
from regraft.search import Search
from regraft.spaces import Space

HERE = {"git": None, "packages": {}, "machine": {}}
TINY = "sweeper=optuna dataset=digits dataset.per_class=30 model=mlp model.weights=none freeze=none hardware=cpu"
RATE = "optimizer.lr=tag(log,interval(1e-4,1))"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def space(typed: str) -> Space:
    composer = Composer()
    return Space(composer, composer.searched(shlex.split(f"sweeper=optuna dataset=digits hardware=cpu {typed}"), True))


def asked(typed: str) -> Search:
    composer = Composer()
    return Search(composer, composer.searched(shlex.split(typed), True))


def worth(s) -> float:
    """What a made-up run comes to: best at a rate of 0.01."""
    return 1 / (1 + (math.log10(s.optimizer.lr) + 2) ** 2)


class Death(BaseException):
    """What no handler of errors takes for one."""


class Runner:
    """Stands in for dispatch: makes up each run's record, and may die at any of its steps and of the journal's."""

    def __init__(self, monkeypatch):
        self.runs, self.events, self.dies, self.outcome, self.monitor = Counter(), 0, 0, worth, "val/accuracy"
        monkeypatch.setattr(dispatch, "run", self.run)
        append = pruning_backend().append_logs

        def appended(backend, logs):
            self.event()
            append(backend, logs)
            self.event()

        monkeypatch.setattr(pruning_backend(), "append_logs", appended)

    def event(self):
        self.events += 1
        if self.events == self.dies:
            raise Death

    def run(self, planned, command, say, show=False):
        for each in planned:
            if not each.left:
                continue
            self.event()
            sweep.begin(each, command, HERE)
            self.event()
            found = self.outcome(each.job.settings)
            self.runs[each.run_id] += 1
            match found:
                case float():
                    kept = {"epoch": 0, "monitor": self.monitor, "value": found}
                    each.folder.update(status="done", kept=kept, metrics={"val/accuracy": found, "test/accuracy": 1 - found})
                case None:
                    each.folder.update(error={"kind": "Killed", "message": "ended by SIGKILL"})
                case _:
                    each.folder.update(status="failed", error={"kind": "ValueError", "message": found})
        return []


def pruning_backend():
    from optuna.storages.journal import JournalFileBackend

    return JournalFileBackend


@pytest.fixture
def runner(monkeypatch):
    return Runner(monkeypatch)


def go(found: Search):
    return found.run("a test", lambda what: None)


def trials(at: Path):
    study = optuna.load_study(study_name=pruning.STUDY, storage=pruning.storage(at / search.JOURNAL))
    return study.get_trials()


def told(at: Path):
    """All that matters of a search's trials."""
    return [(each.number, each.params, each.state.name, each.value, each.user_attrs.get("overrides")) for each in trials(at)]


# The space


def test_a_depth_is_only_of_nets_that_have_it():
    found = space("model=resnet,vgg,mlp,convnet model.weights=none model.depth=18,34,11,13 head.dropout=interval(0,0.5)")
    names = {chosen[0]: {parameter.name: parameter.values for _, parameter in found.fitting(chosen)} for chosen in found.combinations()}
    assert {net: [key for key in held if key != "head.dropout"] for net, held in names.items()} == {
        "resnet": ["model.depth[18,34]"],
        "vgg": ["model.depth[11,13]"],
        "mlp": [],
        "convnet": ["model.depth"],
    }
    assert names["resnet"]["model.depth[18,34]"] == ("18", "34")
    assert all(held["head.dropout"] == () for held in names.values())


@pytest.fixture(scope="module")
def wide():
    return space(
        "model=resnet,vgg,mlp,convnet model.weights=none model.depth=18,34,11,13,1 optimizer=sgd,adamw optimizer.momentum=0,0.9 "
        "head.dropout=interval(0,0.5) optimizer.lr=tag(log,interval(1e-5,1e-1)) trainer.max_epochs=int(interval(1,9)) "
        "data.batch_size=range(8,65,8) loss.label_smoothing=range(0,0.3,step=0.1)"
    )


DISTRIBUTIONS: dict[str, tuple[str, ...]] = {}  # a name always has the same values, as Optuna wants it


@trying(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_every_point_of_a_space_is_a_job(wide, data):

    class Asked:
        def suggest_categorical(self, name, values):
            assert DISTRIBUTIONS.setdefault(name, values) == values
            return data.draw(st.sampled_from(values))

        def suggest_int(self, name, low, high, step, log):
            return data.draw(st.integers(0, (high - low) // step)) * step + low

        def suggest_float(self, name, low, high, step, log):
            return low + step * data.draw(st.integers(0, round((high - low) / step))) if step else data.draw(st.floats(low, high))

    point = wide.point(lambda parameter: parameter.suggest(Asked()))
    s = wide.job(point).settings
    given = dict(line.split("=", 1) for line in point.lines)
    assert ("optimizer.momentum" in given) == (s.optimizer.name == "sgd")
    assert s.model.depth == int(given["model.depth"])
    assert 0 <= s.head.dropout <= 0.5
    assert 1e-5 <= s.optimizer.lr <= 1e-1
    assert s.data.batch_size % 8 == 0
    assert s.loss.label_smoothing in (0, 0.1, 0.2)


def test_an_axis_of_one_value_is_no_parameter():
    found = space("model=mlp model.weights=none model.depth=1,7 trainer.max_epochs=choice(3) head.dropout=0,0.1")
    asked = []
    point = found.point(lambda parameter: asked.append(parameter.name) or parameter.ends()[0])
    assert point.lines == ("model.depth=1", "trainer.max_epochs=3", "head.dropout=0")
    assert asked == ["head.dropout"]


@pytest.mark.parametrize(
    ("typed", "key", "says"),
    [
        ("optimizer.lr=tag(log,interval(0,1))", "optimizer.lr", "above 0"),
        ("optimizer.lr=interval(1,0.1)", "optimizer.lr", "lower end comes first"),
        ("optimizer.lr=tag(big,interval(0.1,1))", "optimizer.lr", "tag big means nothing"),
        ("optimizer.lr=tag(log,choice(0.1,1))", "optimizer.lr", "log goes with an interval"),
        ("head.dropout=interval(0,1)", "head.dropout", "less than 1"),
        ("head.dropuot=interval(0,0.5)", "head.dropuot", "did you mean head.dropout?"),
        ("model=resnet,vgg model.depth=18,11,12", "model.depth", "12"),
        ("trainer.max_epochs=interval(1,5)", "trainer.max_epochs", "whole number"),
        ("sweeper.seed=1,2", "sweeper.seed", "the same for all trials"),
        ("launcher.jobs=1,2", "launcher.jobs", "the same for all trials"),
        ("model=interval(0,1)", "model", "no order"),
        ("model=glob(*)", "model", "names no values"),
        ("seed=0", "sweeper", "needs an axis"),
        ("trainer.monitor=val/accuracy,val/loss", "trainer.monitor", "trials are compared by it"),
        ("task=classify,tag seed=0,1", "trainer.monitor", "would be judged by val/accuracy and val/"),
        ("sweeper.sampler=grid optimizer.lr=interval(0.1,1)", "optimizer.lr", "no points"),
        ("sweeper.pruner=hyperband trainer.max_epochs=2,4", "sweeper.pruner", "asha works"),
        ("trainer.max_epoch=3 seed=0,1", "trainer.max_epoch", "did you mean trainer.max_epochs?"),
    ],
)
def test_what_can_not_be_searched_is_told(typed, key, says):
    with pytest.raises(UserError) as error:
        asked(f"sweeper=optuna dataset=digits hardware=cpu model.weights=none {typed}")
    assert any(problem.key == key and says in f"{problem.given} {problem.remedy}" for problem in error.value.problems), error.value


def test_a_search_is_a_sweep_and_a_grid_has_no_intervals(capsys):
    assert cli.main(["train", "sweeper=optuna", "seed=1"]) == 2
    assert "regraft train -m sweeper=optuna seed=1" in capsys.readouterr().err
    assert cli.main(["train", "-m", "optimizer.lr=interval(0.1,1)"]) == 2
    assert "sweeper=optuna searches intervals" in capsys.readouterr().err


def test_without_optuna_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(sweepers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'regraft\[optuna\]'"):
        asked(f"{TINY} {RATE}")


def test_a_set_without_val_can_not_be_searched(monkeypatch):
    with pytest.raises(UserError, match="no val pictures"):
        asked(f"{TINY} {RATE} dataset.val=0 trainer.keep=last")


def test_axes_of_the_config_are_searched_too(runner, tmp_path):
    text = "defaults: [config, _self_]\nhydra: {sweeper: {params: {optimizer.lr: 'tag(log,interval(1e-4,1))', model.depth: '1,2'}}}\n"
    (tmp_path / "mine.yaml").write_text(text)
    composer = Composer("mine", str(tmp_path))
    found = Search(composer, composer.searched(shlex.split(f"{TINY} model.depth=2 sweeper.trials=2"), True))
    assert [axis.key for axis in found.space.axes] == ["optimizer.lr"]  # the command's own depth stands
    result = go(found)
    assert result.whole
    assert {folder.config["model"]["depth"] for folder in result.folders} == {2}


def test_check_tells_the_space_and_writes_nothing(capsys, tmp_path):
    words = shlex.split(
        f"check -m sweeper=optuna dataset=digits model=mlp,convnet model.weights=none model.depth=1,2,3 {RATE} sweeper.pruner=asha"
    )
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "20 trials, 4 at a time, by tpe, the first 10 at random, pruned by asha" in said
    assert "model=mlp: model.depth 1,2" in said
    assert "model=convnet: model.depth 1,2,3" in said
    assert not (tmp_path / "multirun").exists()


# Points that can't be, of a grid


def test_skip_invalid_leaves_out_what_nets_lack(capsys):
    typed = "model=resnet,vgg model.weights=none dataset=digits model.depth=18,34,11 hardware=cpu"
    composer = Composer()
    jobs = composer.jobs(shlex.split(f"{typed} sweep.skip_invalid=true"), True)
    assert [(job.settings.model.name, job.settings.model.depth) for job in jobs] == [("resnet", 18), ("resnet", 34), ("vgg", 11)]
    assert len(composer.skipped) == 3
    assert cli.main(["check", "-m", *shlex.split(typed), "sweep.skip_invalid=true"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("left out") and "model.depth" in line for line in said) == 3
    with pytest.raises(UserError, match="vgg has depth"):
        Composer().jobs(shlex.split(typed), True)


def test_skip_invalid_leaves_out_nets_without_the_stage_that_a_policy_names(capsys):
    words = "dataset=digits model=convnet model.depth=1,4 model.weights=none freeze=until freeze.stage=conv3 hardware=cpu"
    assert cli.main(["check", "-m", *shlex.split(words), "sweep.skip_invalid=true"]) == 0
    said = capsys.readouterr().out
    assert "left out (sweep.skip_invalid)" in said
    assert "1 run, nothing wrong" in said
    assert cli.main(["check", "-m", *shlex.split(words)]) == 2


def test_skip_invalid_with_nothing_left_tells_why():
    with pytest.raises(UserError, match="resnet has depth"):
        Composer().jobs(shlex.split("model=resnet model.depth=1,2 sweep.skip_invalid=true"), True)


# Rounds


def test_a_damaged_journal_is_told(runner):
    found = asked(f"{TINY} {RATE} sweeper.trials=2")
    go(found)
    journal = found.at / search.JOURNAL
    journal.write_bytes(journal.read_bytes().replace(b"{", b"<", 3))
    with pytest.raises(UserError, match="can't be read"):
        go(found)


def test_a_search_ends_with_as_many_trials_as_wanted_and_the_best_on_val(runner):
    found = asked(f"{TINY} {RATE} sweeper.trials=7 sweeper.together=3")
    result = go(found)
    all_told = told(found.at)
    assert [state for _, _, state, _, _ in all_told] == ["COMPLETE"] * 7
    assert result.whole
    assert len(result.folders) == 7
    best = max(all_told, key=lambda each: each[3])
    assert " ".join(best[4]) in result.line
    assert f"best val/accuracy {best[3]:.4f}" in result.line
    rounds = Counter(trial.user_attrs["round"] for trial in trials(found.at))
    assert sorted(rounds.values()) == [1, 3, 3]
    assert all(each.record["trial"]["journal"] == str(found.at / search.JOURNAL) for each in result.folders)
    assert json.loads((found.at / "sweep.json").read_text())["trials"] == 7


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_killed_at_any_step_it_goes_on_as_if_it_had_not_been(runner, sampler):
    found = asked(
        f"{TINY} {RATE} head.dropout=interval(0,0.5) sweeper.trials=4 sweeper.together=2 sweeper.startup=2 sweeper.sampler={sampler}"
    )
    go(found)
    undisturbed, steps = told(found.at), runner.events
    assert steps > 24
    for step in range(1, steps + 1, 1 if sampler == "tpe" else 4):
        shutil.rmtree(found.at)
        runner.runs.clear()
        runner.events, runner.dies = 0, step
        with pytest.raises(Death):
            go(found)
        runner.dies = 0
        assert go(found).whole
        assert told(found.at) == undisturbed, f"killed at step {step}"
        assert set(runner.runs.values()) == {1}
        assert len(runner.runs) == 4


@trying(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(deaths=st.lists(st.integers(1, 25), max_size=6))
@example(deaths=[])
def test_killed_again_and_again_it_goes_on_as_if_it_had_not_been(runner, again_and_again, deaths):
    found = again_and_again
    shutil.rmtree(found.at, ignore_errors=True)
    runner.runs.clear()
    for step in deaths:
        runner.events, runner.dies = 0, step
        with suppress(Death):
            go(found)
    runner.dies = 0
    go(found)
    assert set(runner.runs.values()) == {1}
    assert UNDISTURBED.setdefault("told", told(found.at)) == told(found.at)  # the first example has no deaths


UNDISTURBED: dict[str, list[Any]] = {}


@pytest.fixture
def again_and_again():
    UNDISTURBED.clear()
    return asked(f"{TINY} {RATE} model.depth=1,2 sweeper.trials=6 sweeper.together=3 sweeper.startup=3")


def test_a_line_of_the_journal_that_was_cut_is_written_again(runner):
    found = asked(f"{TINY} {RATE} sweeper.trials=4 sweeper.together=2")
    go(found)
    journal, undisturbed = found.at / search.JOURNAL, told(found.at)
    whole = journal.read_bytes()
    end = len(whole)
    for cut in (1, 2, 40, 200, end - whole.rstrip().rfind(b"\n")):
        journal.write_bytes(whole[: end - cut])
        go(found)
        assert told(found.at) == undisturbed
        assert all(json.loads(line) for line in journal.read_bytes().splitlines())


def test_the_same_seed_asks_for_the_same_and_another_for_others(runner):
    def lines(words: str):
        found = asked(f"{TINY} {RATE} model.depth=1,2 sweeper.trials=6 sweeper.startup=2 {words}")
        go(found)
        return [each[4] for each in told(found.at)]

    assert lines("sweep.name=a") == lines("sweep.name=b launcher.jobs=2") != lines("sweep.name=c sweeper.seed=1")


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_a_sampler_learns_from_what_was_found(runner, sampler):
    def mean(sampler: str) -> float:
        words = f"sweeper.trials=32 sweeper.together=4 sweeper.startup=8 sweeper.sampler={sampler} sweep.name={sampler}"
        found = asked(f"{TINY} {RATE} optimizer.weight_decay=interval(0,0.1) {words}")
        go(found)
        return sum(value for _, _, _, value, _ in told(found.at)[-16:]) / 16

    assert mean(sampler) > mean("random") + 0.1


def test_a_grid_runs_each_point_that_can_be_once(runner):
    axes = "model=mlp,convnet model.depth=1,2,3 head.dropout=range(0,0.3,step=0.1)"
    found = asked(f"sweeper=optuna dataset=digits hardware=cpu model.weights=none {axes} sweeper.sampler=grid sweeper.trials=100")
    result = go(found)
    nets = [(net, depth) for net in ("mlp", "convnet") for depth in (1, 2, 3) if not (net == "mlp" and depth == 3)]
    ran = [(s["model"]["name"], s["model"]["depth"], s["head"]["dropout"]) for s in (folder.config for folder in result.folders)]
    assert ran == [(*net, dropout) for net in nets for dropout in (0, 0.1, 0.2)]
    assert set(runner.runs.values()) == {1}
    assert result.whole
    before = told(found.at)
    go(found)
    assert told(found.at) == before


def test_what_was_asked_before_is_told_without_running(runner):
    found = asked(f"{TINY} model.depth=1,2 sweeper.trials=9 sweeper.sampler=random")
    assert go(found).whole
    assert len(told(found.at)) == 9
    assert len(runner.runs) == 2
    assert set(runner.runs.values()) == {1}


def test_more_trials_go_on_with_those_that_are_there(runner):
    fewer = asked(f"{TINY} {RATE} sweeper.trials=4")
    go(fewer)
    before = told(fewer.at)
    more = asked(f"{TINY} {RATE} sweeper.trials=9")
    go(more)
    assert told(more.at)[:4] == before
    assert len(told(more.at)) == 9
    assert len(runner.runs) == 9


@pytest.mark.parametrize(
    ("other", "key"),
    [
        (f"{RATE} model.depth=1,2", "model.depth"),
        ("optimizer.lr=interval(0.1,1)", "optimizer.lr"),
        (f"{RATE} trainer.max_epochs=3", "trainer.max_epochs"),
        (f"{RATE} trainer.monitor=val/loss", "trainer.monitor"),
        (f"{RATE} seed=1", "seed"),
    ],
)
def test_another_search_is_refused_in_the_same_folder(runner, other, key):
    found = asked(f"{TINY} {RATE} sweeper.trials=2")
    go(found)
    before = told(found.at)
    with pytest.raises(UserError) as error:
        go(asked(f"{TINY} {other} sweeper.trials=2"))
    assert key in [problem.key for problem in error.value.problems]
    assert all("name another sweep.name" in problem.remedy for problem in error.value.problems)
    assert told(found.at) == before


def test_less_is_better_where_the_metric_is_a_loss(runner):
    runner.outcome, runner.monitor = lambda s: s.optimizer.lr, "val/loss"
    found = asked(f"{TINY} {RATE} trainer.monitor=val/loss sweeper.trials=3")
    result = go(found)
    best = min(told(found.at), key=lambda each: each[3])
    assert " ".join(best[4]) in result.line


def test_one_process_at_a_time_searches_in_a_folder(runner):
    found = asked(f"{TINY} {RATE} sweeper.trials=2")
    found.at.mkdir(parents=True)
    with Lock(found.at / search.ALONE, alone=True), pytest.raises(UserError, match="another process searches"):
        go(found)
    assert go(found).whole


# Failures


def test_runs_that_fail_do_not_count(runner):
    runner.outcome = lambda s: "too fast" if s.optimizer.lr > 0.01 else worth(s)
    found = asked(f"{TINY} {RATE} sweeper.trials=6 sweeper.sampler=random")
    result = go(found)
    states = Counter(state for _, _, state, _, _ in told(found.at))
    assert states["COMPLETE"] == 6
    assert states["FAIL"] > 0
    assert result.whole
    assert f"{states['FAIL']} failed" in result.line


def test_a_search_in_which_all_fails_stops_and_retry_goes_on_with_the_same(runner):
    runner.outcome = lambda s: "no"
    found = asked(f"{TINY} {RATE} sweeper.trials=12")
    result = go(found)
    failed = told(found.at)
    assert not result.whole
    assert "sweep.retry=true" in result.line
    assert 5 <= len(failed) <= 8
    assert set(runner.runs.values()) == {1}
    runner.outcome = worth
    again = asked(f"{TINY} {RATE} sweeper.trials=12 sweep.retry=true")
    assert go(again).whole
    after = [each for each in told(found.at) if each[2] == "COMPLETE"]
    assert [each[4] for each in after[: len(failed)]] == [each[4] for each in failed]
    assert len(after) == 12


def test_on_error_stop_stops_until_another_try_is_asked_for(runner):
    runner.outcome = lambda s: "no" if len(runner.runs) == 2 else worth(s)
    words = f"{TINY} {RATE} sweeper.trials=6 sweeper.together=2 sweep.on_error=stop"
    found = asked(words)
    for _ in range(2):
        result = go(found)
        assert not result.whole
        assert "sweep.retry=true tries it again" in result.line
        assert len(told(found.at)) == 4
    assert go(asked(f"{words} sweep.retry=true")).whole
    assert Counter(each[2] for each in told(found.at)) == {"COMPLETE": 6, "FAIL": 1}


def test_a_grid_of_which_points_have_failed_is_not_whole(runner):
    runner.outcome = lambda s: "no" if s.optimizer.lr == 0.2 else worth(s)
    words = f"{TINY} optimizer.lr=0.1,0.2,0.3 sweeper.sampler=grid"
    result = go(asked(words))
    assert not result.whole
    assert "1 point failed; sweep.retry=true tries again" in result.line
    runner.outcome = worth
    assert go(asked(f"{words} sweep.retry=true")).whole


def test_a_trial_that_is_interrupted_twice_stops_the_search_and_is_not_lost(runner):
    runner.outcome = lambda s: None if runner.runs.total() >= 2 else worth(s)
    found = asked(f"{TINY} {RATE} sweeper.trials=4 sweeper.together=2")
    result = go(found)
    assert not result.whole
    assert "interrupted twice" in result.line
    interrupted = [each for each in told(found.at) if each[2] == "RUNNING"]
    runner.outcome = worth
    assert go(found).whole
    assert [each[4] for each in told(found.at) if each[0] in {number for number, *_ in interrupted}] == [each[4] for each in interrupted]
    assert len(told(found.at)) == 4


# What a trial is worth


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"kept": {"epoch": 3, "monitor": "val/accuracy", "value": 0.5}, "metrics": {"val/accuracy": 0.4, "test/accuracy": 1.0}}, 0.5),
        ({"kept": {"epoch": -1}, "metrics": {"val/accuracy": 0.4, "test/accuracy": 1.0}}, 0.4),  # solved, without epochs
        ({"kept": {"epoch": 3}, "metrics": {"test/accuracy": 1.0}}, None),
        ({"kept": {"epoch": 3, "monitor": "val/accuracy", "value": math.nan}, "metrics": {}}, None),
    ],
)
def test_a_trial_is_worth_what_was_kept_on_val(record, expected):
    assert pruning.value(record, "val/accuracy") == expected


# Runs that are ended early


@pytest.fixture
def real(monkeypatch):
    """Dispatch in this process, group by group, as workers would."""
    sizes = []

    def run(planned, command, say, show=False):
        for group in sweep.groups(planned):
            sizes.append(len(group))
            sweep.begin_together(group, command, HERE)
            running.execute([each.folder for each in group], lambda what: None)

    monkeypatch.setattr(dispatch, "run", run)
    return sizes


PRUNED = "sweeper.trials=6 sweeper.together=6 sweeper.sampler=grid sweeper.pruner=asha sweeper.reduction=2 trainer.max_epochs=4"


@pytest.mark.parametrize("freeze", ["backbone", "none"])
def test_runs_that_do_worse_are_ended_early(real, freeze):
    rates = "optimizer.lr=0.01,1e-6,1e-5,0.02,1e-7,1e-4"
    found = asked(f"{TINY} freeze={freeze} {rates} {PRUNED} trainer.checkpoint_seconds=0 sweep.name={freeze}")
    result = go(found)
    assert max(real) == (6 if freeze == "backbone" else 1)
    states = {folder.config["optimizer"]["lr"]: folder.record["status"] for folder in result.folders}
    assert "done" in (states[0.01], states[0.02])
    assert sorted(states.values()).count("pruned") >= 2
    for trial, folder in zip(trials(found.at), result.folders, strict=True):
        record, epochs = folder.record, {int(row["epoch"]) for row in Metrics(folder / "metrics.csv").rows()}
        values = {int(r["epoch"]) + 1: float(r["value"]) for r in Metrics(folder / "metrics.csv").rows() if r["metric"] == "val/accuracy"}
        assert trial.intermediate_values == values
        if record["status"] == "done":
            assert trial.state.name == "COMPLETE"
            assert len(epochs) == 4
            assert trial.value == record["kept"]["value"] == max(values.values())
        else:
            assert trial.state.name == "PRUNED"
            assert len(epochs) < 4
            assert record["pruned"]["epoch"] == max(epochs)
            assert trial.value == record["pruned"]["value"] == values[max(values)]
            assert record["metrics"] == {"val/accuracy": max(values.values())}
            assert not (folder / "predictions.parquet").exists()
    pruned = [folder for folder in result.folders if folder.record["status"] == "pruned"]
    before = [folder.record for folder in pruned]
    go(found)
    assert [folder.record for folder in pruned] == before  # a search does not go on with them
    fixed = TINY.replace("sweeper=optuna ", "")
    own = f"freeze={freeze} optimizer.lr={pruned[0].config['optimizer']['lr']} trainer.max_epochs=4 sweep.name={freeze}"
    [planned] = sweep.plan(Composer().jobs(shlex.split(f"{fixed} {own}"), True))
    assert planned.folder.path == pruned[0].path
    assert planned.left  # a sweep that wants all of it does


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_every_pruner_lets_the_best_come_to_its_end(real, pruner):
    words = f"{TINY} freeze=backbone {PRUNED} sweeper.pruner={pruner} sweeper.together=2 sweeper.startup=1 sweeper.trials=4"
    found = asked(f"{words} optimizer.lr=0.01,0.02,1e-7,1e-6")
    result = go(found)
    states = {folder.config["optimizer"]["lr"]: folder.record["status"] for folder in result.folders}
    assert "done" in (states[0.01], states[0.02])
    if pruner == "median":  # those of the first round have ended, and the others are worse
        assert states == {0.01: "done", 0.02: "done", 1e-7: "pruned", 1e-6: "pruned"}


def test_without_a_pruner_the_journal_hears_nothing_of_epochs(real):
    found = asked(f"{TINY} freeze=backbone optimizer.lr=0.01,0.02 sweeper.sampler=grid sweeper.trials=2 trainer.max_epochs=2")
    go(found)
    assert [trial.intermediate_values for trial in trials(found.at)] == [{}, {}]
    assert real == [2]


def test_a_run_that_was_killed_reports_each_epoch_once(real, dying):
    found = asked(f"{TINY} freeze=none optimizer.lr=0.01 head.dropout=0,0.1 {PRUNED} sweeper.trials=2 trainer.checkpoint_seconds=0")
    with dying(2):
        go(found)
    result = go(found)
    for trial, folder in zip(trials(found.at), result.folders, strict=True):
        rows = Metrics(RunFolder(folder.path) / "metrics.csv").rows()
        assert trial.intermediate_values == {int(r["epoch"]) + 1: float(r["value"]) for r in rows if r["metric"] == "val/accuracy"}
