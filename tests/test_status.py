"""`regraft status` tells what the folders say: every run once, in its state, and nothing is written or disturbed."""

from __future__ import annotations

import fcntl
import io
import json
import multiprocessing
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from regraft import cli, config, dispatch, manifest, standing, status, sweep
from regraft.errors import UserError, killed
from regraft.files import write_json
from regraft.record import JOB, METRICS, Metrics, RunFolder
from regraft.standing import Reader, Run, Sweep

OVERRIDES = {"a": ["model=mlp", "head.dropout=0"], "b": ["model=mlp", "head.dropout=0.2"], "c": ["model=mlp", "head.dropout=0.5"]}
FINISHED: dict[str, Any] = {
    "done": {"metrics": {"val/accuracy": 0.5, "test/accuracy": 0.9}, "kept": {"epoch": 3, "monitor": "val/accuracy", "value": 0.5}},
    "pruned": {"kept": {"epoch": 1, "monitor": "val/accuracy", "value": 0.9}},
    "failed": {"error": {"kind": "ValueError", "message": "the first line\nthe second", "rank": 0}},
}


def begun(path: Path, **fields: Any) -> RunFolder:
    """A run folder as a worker leaves it a little after its start."""
    folder = RunFolder(path)
    overrides = OVERRIDES.get(path.name, [])
    folder.begin({"trainer": {"monitor": "auto"}}, {"run_id": path.name, "overrides": overrides, "times": {"launched": time.time() - 100}})
    folder.update(**{"phases": [{"epochs": 2}, {"epochs": 8}], "metric": "accuracy", "error": None} | fields)
    return folder


def ended(path: Path, state: str, seconds: float = 20, **fields: Any) -> RunFolder:
    return begun(path, status=state, times={"launched": 0, "total": seconds, "finished": seconds}, **FINISHED[state] | fields)


def epochs(folder: RunFolder, count: int) -> None:
    metrics = Metrics(folder / METRICS)
    metrics.start(0)
    for epoch in range(count):
        metrics.append("fine-tune", epoch, epoch, {"train/loss": 1.0, "val/accuracy": epoch / 10})


def look(root: Path) -> Sweep:
    [sweep] = Reader(root).look()
    return sweep


def text(sweeps: list[Sweep]) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(status.shown(sweeps))
    return console.file.getvalue()  # type: ignore[attr-defined]


def states(sweep: Sweep) -> dict[str, str]:
    return {run.run_id: run.status for run in sweep.runs}


def test_every_state_is_told(tmp_path: Path) -> None:
    root = tmp_path / "sweep"
    names = ["done", "pruned", "failed", "running", "interrupted", "killed", "handed", "waiting"]
    manifest.note(root, "regraft train -m seed=0", [(name, root / name, [f"seed={name}", "model=mlp"]) for name in names])
    for name in ("done", "pruned", "failed"):
        ended(root / name, name)
    epochs(begun(root / "running"), 4)
    begun(root / "interrupted")
    begun(root / "killed", error={"kind": "Killed", "message": "the worker was ended by SIGKILL", "rank": None})
    handed = begun(root / "handed")
    (handed / "job.json").write_text('{"launcher": "slurm", "id": "12_3"}')
    (root / "damaged").mkdir()
    (root / "damaged" / "record.json").write_text("{")
    with RunFolder(root / "running").hold(), manifest.working(root):
        sweep = look(root)
        told = text([sweep])
    assert states(sweep) == {name: "interrupted" if name == "killed" else name for name in [*names, "damaged"]}
    assert sweep.working
    assert sweep.counts == {**dict.fromkeys(standing.STATES, 1), "interrupted": 2}
    running = next(run for run in sweep.runs if run.run_id == "running")
    assert (running.epoch, running.epochs, running.monitor, running.value) == (4, 10, "val/accuracy", 0.3)
    assert "epoch 4 of 10, val/accuracy 0.300" in told
    assert "ValueError: the first line" in told
    assert "the second" not in told
    assert "handed to slurm as 12_3" in told
    assert "SIGKILL" in told
    assert "its process is gone" in told
    assert "0.9" not in told, "neither what is measured on test nor a pruned run is the best"


def test_a_job_that_waits_in_a_queue_is_handed_on_though_its_controller_has_claimed_it(tmp_path: Path) -> None:
    root = tmp_path / "sweep"
    folder = begun(root / "queued")
    write_json(folder / JOB, {"launcher": "slurm", "id": "7_0"})
    with folder.hold("controller"):
        assert states(look(root)) == {"queued": "handed"}
        with folder.hold():
            assert states(look(root)) == {"queued": "running"}


def test_the_controllers_lock_makes_a_run_running_before_its_worker_has_one(tmp_path: Path) -> None:
    folder = begun(tmp_path / "a")
    assert states(look(tmp_path)) == {"a": "interrupted"}
    with folder.hold("controller"):
        assert states(look(tmp_path)) == {"a": "running"}
    assert states(look(tmp_path)) == {"a": "interrupted"}


def test_one_that_is_interrupted_again_is_no_longer_a_launchers(tmp_path: Path) -> None:
    folder = begun(tmp_path / "a", error={"kind": "Stopped", "message": "told to stop", "rank": 0})
    (folder / "job.json").write_text('{"launcher": "slurm", "id": "12_3"}')
    assert states(look(tmp_path)) == {"a": "interrupted"}


def test_looking_writes_nothing_and_takes_no_lock_that_is_not_there(tmp_path: Path) -> None:
    epochs(begun(tmp_path / "a"), 2)
    ended(tmp_path / "b", "done")
    manifest.note(tmp_path, "x", [("c", tmp_path / "c", ["seed=1"])])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    text(Reader(tmp_path).look())
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_run_that_starts_while_somebody_looks_is_not_refused(tmp_path: Path) -> None:
    """Somebody who looks holds the lock for an instant: a run waits that long, and no longer."""
    folder = begun(tmp_path / "a")
    folder.hold().release()
    number = os.open(folder / ".worker", os.O_RDONLY)
    fcntl.flock(number, fcntl.LOCK_SH)  # what a look holds, caught in the middle
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(lambda: folder.hold().release())  # by the thread that took it
        time.sleep(0.02)
        os.close(number)
        held.result()
    with folder.hold(), pytest.raises(UserError, match="another process"):
        RunFolder(folder.path).hold()


def test_a_sweep_is_at_work_as_long_as_any_command_is(tmp_path: Path) -> None:
    manifest.note(tmp_path, "x", [("c", tmp_path / "c", [])])
    with manifest.working(tmp_path):
        with manifest.working(tmp_path):
            assert look(tmp_path).working
        assert look(tmp_path).working
    assert not look(tmp_path).working
    assert not look(tmp_path).moving


# The manifest


def _note(root: Path, number: int) -> None:
    for count in range(5):
        manifest.note(root, f"command {number}", [(f"{number}-{count}", root / f"{number}-{count}", [f"seed={count}"])])


def test_two_commands_at_once_lose_nothing_of_each_other(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("fork")
    several = [spawn.Process(target=_note, args=(tmp_path, number)) for number in range(4)]
    for each in several:
        each.start()
    for each in several:
        each.join()
    told = manifest.read(tmp_path)
    assert {entry.run_id for entry in told.runs} == {f"{number}-{count}" for number in range(4) for count in range(5)}
    assert sorted(told.commands) == [f"command {number}" for number in range(4)]


@given(
    commands=st.lists(
        st.tuples(st.text(max_size=5), st.dictionaries(st.text("abc", min_size=1, max_size=2), st.lists(st.text(max_size=3), max_size=2)))
    ),
    trials=st.none() | st.integers(0, 99),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_manifest_holds_what_all_commands_wanted(tmp_path_factory: Any, commands: Any, trials: int | None) -> None:
    root = tmp_path_factory.mktemp("sweep")
    for command, runs in commands:
        manifest.note(root, command, [(run_id, root / "in" / run_id, words) for run_id, words in runs.items()])
    if commands and trials is not None:
        manifest.note(root, commands[0][0], [], trials)
        manifest.note(root, commands[0][0], [])
        assert manifest.read(root).trials == trials
    told = manifest.read(root)
    last = {run_id: words for _, runs in commands for run_id, words in runs.items()}
    assert {entry.run_id: list(entry.overrides) for entry in told.runs} == last
    assert all(entry.folder == f"in/{entry.run_id}" for entry in told.runs)
    assert list(told.commands) == list(dict.fromkeys(command for command, _ in commands))


def test_a_manifest_is_not_written_again_for_nothing(tmp_path: Path) -> None:
    manifest.note(tmp_path, "x", [("a", tmp_path / "a", [])])
    before = (tmp_path / manifest.NAME).stat().st_mtime_ns
    manifest.note(tmp_path, "x", [("a", tmp_path / "a", [])])
    assert (tmp_path / manifest.NAME).stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", ["{", "[]", '{"schema": 2}', '{"schema": 1, "commands": [], "runs": [1], "trials": null}', "\xff" * 9])
def test_a_damaged_manifest_is_a_line_and_is_written_anew(tmp_path: Path, damage: str) -> None:
    ended(tmp_path / "a", "done")
    (tmp_path / manifest.NAME).write_text(damage, encoding="latin-1")
    sweep = look(tmp_path)
    assert states(sweep) == {"a": "done"}
    assert "sweep.json" in text([sweep])
    manifest.note(tmp_path, "x", [("b", tmp_path / "b", [])])
    assert states(look(tmp_path)) == {"a": "done", "b": "waiting"}


# What follows from the runs


def test_the_best_is_chosen_on_val_and_told_by_what_it_alone_has(tmp_path: Path) -> None:
    for name, val, test in (("a", 0.5, 0.9), ("b", 0.7, 0.1), ("c", 0.6, 1.0)):
        ended(tmp_path / name, "done", kept={"monitor": "val/accuracy", "value": val}, metrics={"test/accuracy": test})
    sweep = look(tmp_path)
    assert sweep.best is not None
    assert (sweep.best.run_id, sweep.name(sweep.best)) == ("b", "head.dropout=0.2")
    for name, loss in (("a", 0.5), ("b", 0.7), ("c", 0.6)):
        ended(tmp_path / name, "done", kept={"monitor": "val/loss", "value": loss})
    assert look(tmp_path).best.run_id == "a"  # type: ignore[union-attr]


def test_seeds_and_folds_are_no_choice(tmp_path: Path) -> None:
    for seed in range(2):
        ended(tmp_path / f"{seed}", "done", overrides=["model=mlp", f"seed={seed}"])
    assert look(tmp_path).best is None


def sweep_of(*runs: Run, working: bool = True) -> Sweep:
    return Sweep(Path("x"), runs, working)


def run(state: str, number: int = 0, **fields: Any) -> Run:
    return Run(f"{state}{number}", Path(f"x/{state}{number}"), state, **fields)


def test_the_time_left_follows_from_what_others_took_and_how_far_each_is() -> None:
    done = run("done", seconds=100.0)
    half = run("running", epoch=5, epochs=10, seconds=7.0)
    waiting = [run("waiting", number) for number in range(3)]
    assert sweep_of(done, half, *waiting).left == pytest.approx(350)
    other = run("running", 1, epoch=0, epochs=10, seconds=1.0)
    assert sweep_of(done, half, other, *waiting).left == pytest.approx(450 / 2), "two work at once"
    assert sweep_of(done, half, other).left == pytest.approx(100), "no sooner than the one that has most to do"
    stacked = [run("running", number, epoch=5, epochs=10, group="g") for number in range(4)]
    assert sweep_of(done, *stacked).left == pytest.approx(200), "one worker runs the four"
    assert sweep_of(half, waiting[0]).left == pytest.approx(7 + 14), "at its own pace, where none has ended"
    assert sweep_of(half, other).left == pytest.approx(14), "one that has made no epoch yet as another that has"
    paced = [run("running", number, epoch=5, epochs=10, seconds=7.0, group="g") for number in range(4)]
    assert sweep_of(*paced).left == pytest.approx(7), "what runs together ends together"


def test_the_time_left_is_unknown_before_anything_is_known() -> None:
    fresh = run("running", epochs=10, seconds=3.0)
    assert sweep_of(fresh).left is None
    assert sweep_of(run("waiting")).left is None
    assert sweep_of(run("done", seconds=3.0), fresh, run("handed")).left is None, "nobody knows a queue's pace"
    assert sweep_of(run("done", seconds=3.0), run("waiting"), working=False).left is None, "nobody is at work"
    assert "nobody is at work" in status.line(sweep_of(run("done", seconds=3.0), run("waiting"), working=False))
    assert "unknown" in status.line(sweep_of(fresh))
    assert sweep_of(run("done", seconds=3.0)).left is None


@given(
    st.lists(
        st.builds(
            Run,
            run_id=st.text("abcdef", min_size=1, max_size=3),
            folder=st.just(Path("x")),
            status=st.sampled_from(standing.STATES),
            epoch=st.integers(0, 20),
            epochs=st.none() | st.integers(0, 10),
            monitor=st.none() | st.sampled_from(["val/loss", "val/accuracy"]),
            value=st.none() | st.floats(0, 1),
            seconds=st.none() | st.floats(0, 1e6),
            group=st.none() | st.sampled_from("gh"),
        ),
        min_size=1,
    ),
    st.booleans(),
    st.none() | st.integers(0, 50),
)
@settings(max_examples=150, deadline=None)
def test_whatever_the_runs_are_all_are_counted_and_no_time_is_negative(runs: list[Run], working: bool, trials: int | None) -> None:
    sweep = Sweep(Path("x"), tuple(runs), working, trials)
    waiting = sum(run.status == "waiting" for run in runs)
    assert sum(sweep.counts.values()) == len(runs) - waiting + sweep.counts.get("waiting", 0)
    assert sweep.counts.get("waiting", 0) >= waiting
    if trials is not None and working:
        good = sum(count for state, count in sweep.counts.items() if state not in ("failed", "damaged"))
        assert good == max(trials, sum(run.status not in ("failed", "damaged") for run in runs)), "as many as were asked for"
    assert sweep.left is None or sweep.left >= 0
    assert sweep.left is None or sweep.moving
    assert sweep.best is None or sweep.best.status == "done"
    json.dumps(status.plain([sweep]), allow_nan=False)
    assert text([sweep])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["epochs", "id", "kind", "value", "total", "x"]), inner),
    max_leaves=8,
)
KEYS = ["status", "error", "phases", "times", "kept", "metrics", "metric", "overrides", "group"]


@given(st.dictionaries(st.sampled_from(KEYS), JSON), st.sampled_from(["running", "done", "failed", "pruned", "?"]))
@settings(max_examples=150, deadline=None)
def test_no_record_is_the_end(tmp_path_factory: Any, fields: dict[str, Any], state: str) -> None:
    root = tmp_path_factory.mktemp("sweep")
    (root / "a").mkdir()
    (root / "a" / "record.json").write_text(json.dumps({"schema": 1, "run_id": "a", "status": state} | fields))
    sweep = look(root)
    assert sum(sweep.counts.values()) == 1
    assert "1 run" in text([sweep])
    json.dumps(status.plain([sweep]), allow_nan=False)


def test_one_cause_is_told_once(tmp_path: Path) -> None:
    for name in "abc":
        ended(tmp_path / name, "failed")
    told = text([look(tmp_path)])
    assert told.count("the first line") == 1
    assert "head.dropout=0 and 2 more: ValueError" in told


def test_what_lies_inside_a_run_is_no_run(tmp_path: Path) -> None:
    ended(tmp_path / "a", "done")
    ended(tmp_path / "a" / "inside", "done")
    ended(tmp_path / ".hidden" / "b", "done")
    assert states(look(tmp_path)) == {"a": "done"}


def test_sweeps_are_told_apart_and_one_run_stands_alone(tmp_path: Path) -> None:
    manifest.note(tmp_path / "one", "x", [("a", tmp_path / "one" / "deep" / "a", ["seed=0"])])
    ended(tmp_path / "one" / "deep" / "a", "done")
    ended(tmp_path / "two" / "b", "failed")
    found = Reader(tmp_path).look()
    assert {sweep.folder.name: states(sweep) for sweep in found} == {"one": {"a": "done"}, "two": {"b": "failed"}}
    with manifest.working(tmp_path / "two"):
        assert not look(tmp_path / "two" / "b").moving, "a run that has ended, whatever else its sweep does"


def test_a_look_again_sees_what_has_changed(tmp_path: Path) -> None:
    folder = begun(tmp_path / "a")
    reader = Reader(tmp_path)
    with folder.hold():
        assert reader.look()[0].runs[0].epoch == 0
        epochs(folder, 3)
        assert reader.look()[0].runs[0].epoch == 3
    folder.update(status="done", **FINISHED["done"])
    assert states(reader.look()[0]) == {"a": "done"}


# The command


def test_the_command_tells_words_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["status"]) == 2
    assert "no such folder" in capsys.readouterr().err
    ended(tmp_path / "multirun" / "default" / "a", "done")
    assert cli.main(["status"]) == 0
    assert "multirun/default: 1 run: 1 done" in capsys.readouterr().out
    assert cli.main(["status", "multirun/default", "--json"]) == 0
    [sweep] = json.loads(capsys.readouterr().out)["sweeps"]
    assert sweep["counts"] == {"done": 1}
    assert sweep["runs"][0]["value"] == 0.5
    (tmp_path / "empty").mkdir()
    assert cli.main(["status", "empty"]) == 2
    assert "holds no run folders" in capsys.readouterr().err


def test_watching_ends_when_nothing_runs_and_prints_each_change_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begun(tmp_path / "a")
    lock, looks = folder.hold(), []

    def pause(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            folder.update(status="done", **FINISHED["done"])
            lock.release()

    monkeypatch.setattr(status.time, "sleep", pause)
    assert cli.main(["status", str(tmp_path), "--watch"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[2].split(";")[0] for line in lines] == ["1 running", "1 done"]
    assert len(looks) == 3


# What the controller says, and leaves


class Fake:
    """A launcher whose runs end at once; `broken` seeds fail."""

    def __init__(self, broken: tuple[int, ...] = (), removed: tuple[int, ...] = (), lost: tuple[int, ...] = ()) -> None:
        """Seeds of runs that fail, whose folder somebody removes, and whose worker is killed."""
        self.broken, self.removed, self.lost, self.seen = broken, removed, lost, list[tuple[str, dict[str, int]]]()

    def launch(self, groups: Any, show: bool) -> None:
        for group in groups:
            for folder in group.begin():
                sweep = look(folder.path.parent)
                self.seen.append((folder.record["run_id"], sweep.counts))
                if folder.record["seed"] in self.broken:
                    folder.update(status="failed", error={"kind": "ValueError", "message": "no such thing\nat all", "rank": 0})
                elif folder.record["seed"] in self.removed:
                    shutil.rmtree(folder.path)
                elif folder.record["seed"] in self.lost:
                    folder.update(error=killed("the worker was ended by SIGKILL"))
                else:
                    folder.update(status="done", metrics={"val/accuracy": 0.5}, times={"launched": 0, "total": 3.0}, metric="accuracy")
            if not group.ended():
                return

    def busy(self, jobs: Any) -> set[str]:
        return set()


@pytest.fixture
def commanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`commanded(words, launcher) -> what was said`, of a sweep of tiny runs."""

    def command(words: list[str], launcher: Fake) -> list[str]:
        said: list[str] = []
        tiny = ["dataset=digits", "model=mlp", "model.weights=none", "freeze=none", "hardware=cpu", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
        monkeypatch.setattr(dispatch, "launcher", lambda spec: launcher)
        dispatch.run(
            sweep.plan(config.Composer().jobs([*tiny, *words], multirun=True)), "regraft train -m ...", lambda what: said.append(str(what))
        )
        return said

    return command


def test_a_sweep_says_what_begins_and_ends_and_how_much_is_left(commanded: Any, tmp_path: Path) -> None:
    launcher = Fake(broken=(1,))
    said = commanded(["seed=0,1,2"], launcher)
    assert next(line for line in said if " runs: " in line).endswith("seed=0")
    ends = [line for line in said if "ended" in line]
    assert ["1 of 3 ended, about" in ends[0], "2 of 3 ended, about" in ends[1], "3 of 3 ended)" in ends[2]] == [True] * 3
    assert "failed: ValueError: no such thing\nat all" in ends[1], "all of an error, when it happens"
    assert said.index(ends[1]) < next(number for number, line in enumerate(said) if line.endswith("seed=2")), "and not at the end"
    assert [counts for _, counts in launcher.seen] == [
        {"running": 1, "waiting": 2},
        {"done": 1, "running": 1, "waiting": 1},
        {"done": 1, "running": 1, "failed": 1},
    ]
    again = commanded(["seed=0,1,2,3"], launcher)
    assert sum("is done already" in line for line in again) == 2
    assert sum("is passed over" in line for line in again) == 1
    assert "4 of 4 ended)" in again[-1]
    told = manifest.read(tmp_path / "sweep")
    assert len(told.runs) == 4
    assert not look(tmp_path / "sweep").moving


def test_runs_that_are_not_begun_wait(commanded: Any, tmp_path: Path) -> None:
    commanded(["seed=0,1,2", "sweep.on_error=stop"], Fake(broken=(0,)))
    sweep = look(tmp_path / "sweep")
    assert sweep.counts == {"failed": 1, "waiting": 2}
    assert "goes on with" in text([sweep])
    assert not (tmp_path / "sweep" / "record.json").exists()


def test_the_same_command_does_not_pass_a_failure_over_where_that_stops(commanded: Any, tmp_path: Path) -> None:
    words = ["seed=0,1,2", "sweep.on_error=stop"]
    commanded(words, Fake(broken=(0,)))
    again = Fake()
    assert commanded(words, again)[-1] == "Nothing else is begun (sweep.on_error=stop)."
    assert not again.seen
    commanded([*words, "sweep.retry=true"], again)
    assert look(tmp_path / "sweep").counts == {"done": 3}


@pytest.mark.parametrize(("seeds", "at"), [("seed=0,1", "hydra.sweep.dir"), ("seed=0", "hydra.sweep.dir"), ("seed=0", "hydra.run.dir")])
def test_a_folder_that_is_gone_is_no_success(
    seeds: str, at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dispatch, "launcher", lambda spec: Fake(removed=(0,)))
    words = ["dataset=digits", "model=mlp", "model.weights=none", "freeze=none", "hardware=cpu", seeds, f"{at}={tmp_path / 'at'}"]
    assert cli.main(["train", *(["-m"] if "sweep" in at else []), *words]) == 1
    assert "was removed while it ran" in "".join(capsys.readouterr())


def test_what_was_interrupted_or_removed_is_told_and_the_others_run(commanded: Any, tmp_path: Path) -> None:
    said = commanded(["seed=0,1,2"], Fake(removed=(0,), lost=(1,)))
    assert any("has gone" in line and "was removed while it ran" in line for line in said)
    assert "was interrupted, and goes on when the command is given again" in next(line for line in said if "SIGKILL" in line)
    assert "2 of 3 ended" in said[-1], "the interrupted one has not ended"
    again = commanded(["seed=0,1,2"], Fake())
    assert sum("is done already" in line for line in again) == 1
    assert look(tmp_path / "sweep").counts == {"done": 3}


def test_what_a_run_was_computed_in_stays_with_it(commanded: Any, tmp_path: Path) -> None:
    commanded(["seed=0"], Fake(lost=(0,)))
    [folder] = [RunFolder(path.parent) for path in (tmp_path / "sweep").glob("*/record.json")]
    kept = {"tuning": [{"number": 0, "choice": {"precision": "bf16"}}], "halved": 1}
    folder.update(**kept)
    commanded(["seed=0"], Fake())
    assert folder.record["status"] == "done"
    assert {key: folder.record[key] for key in kept} == kept


def test_the_worker_of_a_controller_that_was_killed_is_waited_for(commanded: Any, tmp_path: Path) -> None:
    commanded(["seed=0"], Fake(lost=(0,)))
    [folder] = [RunFolder(path.parent) for path in (tmp_path / "sweep").glob("*/record.json")]
    orphan = FileLock(folder / ".worker", thread_local=False)
    orphan.acquire()
    timer = threading.Timer(0.5, orphan.release)
    timer.start()
    try:
        commanded(["seed=0"], Fake())
    finally:
        timer.cancel()
    assert folder.record["status"] == "done"


def test_a_single_run_needs_no_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "launcher", lambda spec: Fake())
    words = ["dataset=digits", "model=mlp", "model.weights=none", "freeze=none", "hardware=cpu", f"hydra.run.dir={tmp_path / 'run'}"]
    dispatch.run(sweep.plan(config.Composer().jobs(words, multirun=False)), "regraft train", lambda what: None)
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    assert set(states(look(tmp_path / "run")).values()) == {"done"}
