"""scripts/bench: the table is what was measured, and each piece of it counts what it says."""

from __future__ import annotations

import csv
import importlib.machinery
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/bench itself, which has no suffix."""
    loader = importlib.machinery.SourceFileLoader("bench", str(SCRIPTS / "bench"))
    spec = importlib.util.spec_from_loader("bench", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    loader.exec_module(module)
    return module


def test_the_table_says_what_was_measured_where_and_how() -> None:
    from benchmarks.table import Row, machine, markdown

    rows = [
        Row("one", "heads", "at most 2x", "1.50x", True, {"ours": 3.0, "theirs": 2.0}, ["regraft train", "peer.py"]),
        Row("two", "more heads", "at most 1x", "-", None),
        Row("three", "start", "1 s", "2 s", False, {"check": 2.0}, ["regraft check"]),
    ]
    assert markdown(rows, {"cores": "2", "torch": "9"}).splitlines() == [
        "| what | must reach | reached | holds | seconds |",
        "|---|---|---|---|---|",
        "| heads | at most 2x | 1.50x | yes | ours 3, theirs 2 |",
        "| more heads | at most 1x | - | - |  |",
        "| start | 1 s | 2 s | no | check 2 |",
        "",
        "cores 2; torch 9",
        "",
        "- one: `regraft train`; `peer.py`",
        "- three: `regraft check`",
    ]
    assert machine()["torch"] == torch.__version__.partition("+")[0]


def test_what_is_compared_takes_turns() -> None:
    from benchmarks.table import interleaved

    order: list[str] = []
    times = {"ours": iter([1.0, 9.0, 2.0]), "theirs": iter([5.0, 4.0, 30.0])}

    def timed(name: str) -> Any:
        def measure() -> float:
            order.append(name)
            return next(times[name])

        return measure

    assert interleaved(3, {name: timed(name) for name in times}) == {"ours": 2.0, "theirs": 5.0}
    assert order == ["ours", "theirs"] * 3


def test_an_epoch_is_compared_with_the_turns_around_it() -> None:
    from benchmarks.live import judged

    bare = {"slow": [1.0, 1.0, 1.0], "fast": [10.0, 20.0, 40.0]}
    assert judged([15.0, 15.0], bare) == ("fast", [1.0, 0.5])


@pytest.mark.parametrize(
    ("ours", "hand", "one", "reached", "holds"),
    [
        (10.0, 10.0, 60.0, "72x lightning; 1.00 of by hand", True),
        (10.0, 9.0, 60.0, "72x lightning; 1.11 of by hand", False),
        (15.0, 20.0, 60.0, "48x lightning; 0.75 of by hand", False),
    ],
)
def test_both_marks_of_the_cold_sweep_count(
    ours: float, hand: float, one: float, reached: str, holds: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import sweeps
    from benchmarks.commands import Bench

    monkeypatch.setattr(Bench, "cold", lambda self, grid, runs: ours)
    monkeypatch.setattr(Bench, "hand", lambda self, runs: hand)
    monkeypatch.setattr(Bench, "lightning", lambda self, epochs: (4.0, one - 4 / 12))
    row = sweeps.cold(Bench(tmp_path, peers=tmp_path))
    assert (row.reached, row.holds) == (reached, holds)
    alone = sweeps.cold(Bench(tmp_path))
    assert (alone.reached, alone.holds) == ("-", None), "nothing is claimed without peers"


def test_a_peer_says_its_own_seconds(tmp_path: Path) -> None:
    from benchmarks.commands import Bench

    (tmp_path / "peer_lightning.py").write_text(
        "import sys\nprint(f'lightning 32: 1 runs x {sys.argv[2]} epochs 54.5s (+7.2s start) test acc')\n"
    )
    assert Bench(tmp_path, peers=tmp_path).lightning(10) == (7.2, 54.5)
    (tmp_path / "peer_lightning.py").write_text("print('nothing')\n")
    with pytest.raises(RuntimeError, match="nothing of its seconds"):
        Bench(tmp_path, peers=tmp_path).lightning(10)


def test_a_sweep_that_leaves_too_few_runs_is_no_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import commands
    from benchmarks.commands import Bench

    fake = tmp_path / "regraft"
    fake.write_text(
        "#!/bin/sh\nfor word; do case $word in hydra.sweep.dir=*) dir=${word#*=};; esac; done\n"
        'for run in a b; do\n  mkdir "$dir/$run"\n'
        '  echo \'{"status": "done", "data": {"sizes": {"train": 7}}}\' > "$dir/$run/record.json"\ndone\n'
    )
    fake.chmod(0o755)
    monkeypatch.setattr(commands, "REGRAFT", fake)
    bench = Bench(tmp_path)
    assert bench.cold(["x=1,2"], 2) > 0
    assert bench.pictures == 7
    with pytest.raises(RuntimeError, match="3 finished run folders"):
        bench.cold(["x=1,2,3"], 3)
    fake.write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    with pytest.raises(RuntimeError, match="broken"):
        bench.cold(["x=1"], 1)


def test_grids_have_as_many_points_as_their_rows_say() -> None:
    from benchmarks import jobs
    from benchmarks.curve import RUNS, rates
    from benchmarks.sweeps import CUTS, MANY, TWELVE

    from regraft.config import Composer

    def points(grid: list[str]) -> int:
        product = 1
        for word in grid:
            values = word.partition("=")[2].split(",")
            assert len(set(values)) == len(values)
            product *= len(values)
        return product

    assert (points(TWELVE), points(MANY), points(CUTS)) == (12, 96, 8)
    assert [points([rates(runs)]) for runs in RUNS] == list(RUNS)
    assert [len(Composer().jobs(words, multirun=True)) for words in (jobs.seeds(jobs.MANY), jobs.RESUMED)] == [200, 1000]


def test_what_a_job_costs_is_what_comes_with_each_further_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import jobs
    from benchmarks.commands import Bench

    def sweep(self: Bench, grid: list[str], cache: Path, runs: int) -> float:
        self.processor = 2 + 0.03 * runs
        return 9 + 0.7 * runs

    monkeypatch.setattr(Bench, "sweep", sweep)
    monkeypatch.setattr(Bench, "child", lambda self, *words: {"seconds": [3.0, 0.3, 0.3]})
    row = jobs.overhead(Bench(tmp_path))
    assert (row.reached, row.holds) == ("0.40 s, 0.030 s of it the controller's", True)
    monkeypatch.setattr(Bench, "child", lambda self, *words: {"seconds": [0.1]})
    assert jobs.overhead(Bench(tmp_path / "again")).holds is False


def test_copies_of_a_finished_run_are_finished_runs_of_their_own(tmp_path: Path, executed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import jobs

    from regraft import config, sweep
    from regraft.graft import Run

    words = [*jobs.TINY, "optimizer.lr=0.01,0.02", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    one, other = sweep.plan(config.Composer().jobs(words, multirun=True))
    own = jobs.first(words)
    assert own[-1] == f"hydra.run.dir={one.folder.path}"
    executed(own[:-1], folder=one.folder.path)
    assert (one.done, other.done) == (True, False)
    assert jobs.copies(words) == {"folders": 2}
    assert other.done
    assert Run(other.folder.path).settings.optimizer.lr == 0.02


def test_a_stack_and_the_bare_loop_run_over_a_made_cache(tmp_path: Path, one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import heads

    monkeypatch.setattr(heads, "CHUNK", 100)
    table, labels = heads.made(tmp_path / "rows.bin", rows=350, features=8)
    assert (table.shape, table.dtype, labels.shape, int(labels.max()) < heads.CLASSES) == ((350, 8), torch.bfloat16, (350,), True)
    assert (tmp_path / "rows.bin").stat().st_size == 350 * 8 * 2
    assert torch.equal(table[:50], table[300:]), "every row is written, the last block too"
    with heads.Watch() as watch:
        assert heads.bare(table, labels, heads=2, batch=64) > 0
        assert heads.ours(table, labels, tmp_path, heads=2, batch=64) > 0
    assert 0.01 < watch.most < 100
    weights = [torch.load(path, weights_only=True)["stacked"]["head"]["1.weight"] for path in sorted(tmp_path.glob("?/last.ckpt"))]
    assert len(weights) == 2
    assert not torch.equal(*weights)


def test_the_cost_curve_is_csv_and_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import curve
    from benchmarks.commands import Bench

    def cold(self: Bench, grid: list[str], runs: int) -> float:
        self.pictures = next((19 * int(word.partition("=")[2]) for word in grid if "per_class" in word), 573)
        return 10 + runs / 10

    monkeypatch.setattr(Bench, "cold", cold)
    monkeypatch.setattr(Bench, "lightning", lambda self, epochs: (5.0, 100.0))
    lines = curve.measured(Bench(tmp_path, peers=tmp_path), runs=(1, 4), per_class=(4, None))
    curve.write(lines, tmp_path / "plot")
    with (tmp_path / "plot/cost.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["axis", "amount", "ours", "lightning"],
        ["runs", "1", "10.10", "105.00"],
        ["runs", "4", "10.40", "405.00"],
        ["pictures", "76", "10.40", ""],
        ["pictures", "573", "10.40", ""],
    ]
    assert (tmp_path / "plot/cost.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_prints_the_table_and_keeps_the_figures(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.table import Row

    row = Row("start", "--help", "1 s", "2 s", False, {"--help": 2.0}, ["regraft --help"])
    monkeypatch.setitem(bench.ROWS, "start", lambda found: row)
    assert bench.main(["--only", "start", "--json", str(tmp_path / "out.json")]) == 1, "a row misses its mark"
    assert "| --help | 1 s | 2 s | no | --help 2 |" in capsys.readouterr().out
    [kept] = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert (kept["name"], kept["seconds"], kept["holds"]) == ("start", {"--help": 2.0}, False)
    for wrong in (["--peers", str(tmp_path)], ["--only", "nothing"], ["--rounds", "0"]):
        with pytest.raises(SystemExit):
            bench.main(wrong)


@pytest.mark.slow
def test_views_are_counted_by_a_hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real thing, small: two heads under d4."""
    from benchmarks import views

    small = [
        "dataset.per_class=1",
        "head.dropout=0",
        "optimizer.lr=1e-3,1e-2",
        "trainer.max_epochs=1",
        "hardware=cpu",
        "hardware.workers=0",
    ]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(views, "D4", ["augmentation=d4", "model=convnet", "model.weights=none", "data.size=32", *small])
    found = views.main(tmp_path)
    assert (found["train"], found["runs"]) == (19, 2)
    assert found["rows"] == 8 * found["train"] + found["val"] + found["test"]
