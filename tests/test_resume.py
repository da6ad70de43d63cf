"""A run that is told to stop saves, and ends as the uninterrupted one, bit for bit; a damaged checkpoint falls back to the one before."""

from __future__ import annotations

import csv
import signal
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from regraft import checkpoints, errors, running, stacking, stopping
from regraft.batches import GlobalBatches
from regraft.errors import UserError
from regraft.graft import Run
from regraft.hardware import Batch
from regraft.record import CHECKPOINT, PREVIOUS, Metrics, RunFolder
from regraft.stacking import StackModule
from regraft.stopping import Listener, Stopped
from regraft.tasks.module import PhaseModule

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ["dataset=digits", "dataset.per_class=8", 'dataset.classes=["0","1","2"]', "model.weights=none", "trainer.max_epochs=2"]
SMALL += ["trainer.checkpoint_seconds=3600", "hardware=cpu", "optimizer.lr=0.01", "data.batch_size=7", "hardware.workers=0"]
SMALL += ["dataset.val=0.04", "dataset.test=0.04"]
MLP, CONV = ["model=mlp"], ["model=timm", "model.arch=test_efficientnet"]
STEPS = 4  # of an epoch: 24 pictures in batches of 7, the last of 3


def lines(folder):
    return Metrics(folder / "metrics.csv").rows()


def same(one: Run, other: Run, **close: float) -> None:
    """Two runs ended with the same weights and measured the same: bit for bit, unless `close` says how near."""
    first, second = one.chain.state_dict(), other.chain.state_dict()
    assert list(first) == list(second)
    if close:
        rows = [[float(row["value"]) for row in lines(run.folder)] for run in (one, other)]
        assert rows[0] == pytest.approx(rows[1], **close)
        assert max((first[name] - second[name]).abs().max().item() for name in first) < close["abs"]
        return
    assert lines(one.folder) == lines(other.folder)
    assert one.metrics == other.metrics
    assert one.record["kept"] == other.record["kept"]
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@contextmanager
def told(after: int, where: tuple[object, str] = (PhaseModule, "training_step")):
    """SIGTERM comes when this is called for the n-th time; at the end the run has stopped, if it came so far. Yields a list of the calls,
    and then of what it said."""
    calls, words = [], []
    call = getattr(*where)

    def telling(*arguments):
        calls.append(arguments)
        if len(calls) == after:
            stopping.listener.hear(signal.SIGTERM, None)
        return call(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stopping, "listener", Listener())
        patch.setattr(*where, telling)
        try:
            yield calls, words
        except Stopped as stopped:
            words.append(str(stopped))
    assert bool(words) == (len(calls) >= after), "it stops where it was told, and nowhere else"


def again(folder: RunFolder) -> Run:
    """What the same command does with an interrupted run."""
    running.execute([folder], lambda what: None)
    return Run(folder.path)


@pytest.fixture
def stop(executed, tmp_path):
    """`stop(words, n, (where, name))`: a run that is told to stop at the n-th call, by default in its n-th micro-batch. Its folder, how
    many calls there were, and what it said."""

    def execute(words, after, *where):
        with told(after, *where) as (calls, said):
            executed(words, folder="stopped")
        return RunFolder(tmp_path / "runs" / "stopped"), len(calls), said[0]

    return execute


CASES = {  # what is begun again after each step, and how many micro-batches of train a step has
    "dropout, d4 live": ([*MLP, "freeze=none", "head.dropout=0.3", "augmentation=d4", "trainer.clip=0.5"], 1),
    "micro-batches": ([*MLP, "freeze=none", "hardware.accumulate=7", "head.dropout=0.3", "optimizer=sgd"], 7),
    "two phases, an average, patience, BatchNorm": (
        [*CONV, "freeze=lp_ft", "freeze.probe=0.5", "trainer.ema=0.8", "trainer.patience=1", "augmentation=flips"],
        1,
    ),
    "drawn anew by other processes": ([*MLP, "freeze=none", "augmentation=random_resized_crop", "hardware.workers=1"], 1),
    "mixed": ([*MLP, "freeze=none", "augmentation=mixup"], 1),
    "cached, a short last epoch": ([*CONV, "freeze=backbone", "head.dropout=0.3", "trainer.max_steps=7", "augmentation=d4"], 1),
}


@pytest.mark.parametrize("case", CASES)
def test_stopped_after_each_step_it_ends_as_the_uninterrupted_one(executed, stop, case):
    words, micro = [*SMALL, *CASES[case][0]], CASES[case][1]
    whole = executed(words, folder="whole")
    folder, done, _ = stop(words, 1)
    assert done == micro, "the step is ended, and no other begun"
    starts = 1
    while True:
        assert (folder / CHECKPOINT).is_file()
        with told(1) as (calls, _):
            again(folder)
        if not calls:  # nothing was left to train
            break
        assert len(calls) == micro
        starts += 1
    epochs = [row for row in lines(whole.folder) if row["metric"] == "train/loss"]
    assert starts == max(int(row["step"]) for row in epochs) + (int(epochs[0]["step"]) if len({row["phase"] for row in epochs}) > 1 else 0)
    same(whole, Run(folder.path))


@pytest.mark.parametrize("batch", [1, 2, 3 * STEPS, 3 * STEPS + 1, 3 * STEPS + 3])
def test_a_step_that_is_begun_is_ended(executed, stop, batch):
    """Whichever of its micro-batches the word comes in, of the first epoch or the next."""
    words = [*SMALL, *MLP, "freeze=none", "data.batch_size=6", "hardware.accumulate=3"]
    whole = executed(words)
    folder, done, _ = stop(words, batch)
    assert done == -(-batch // 3) * 3
    same(whole, again(folder))


def test_metrics_that_keep_every_answer_go_on_too(executed, stop, tmp_path):
    """Average precision is no sum over batches: what was answered before the stop must be there at the epoch's end."""
    drawn = np.random.default_rng(0)
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["picture", "split", "light", "tall"])
        for number in range(60):
            Image.fromarray(drawn.integers(0, 256, (12, 12), dtype=np.uint8)).save(tmp_path / f"{number}.png")
            writer.writerow([f"{number}.png", ("train", "val", "test")[number % 3], *drawn.integers(0, 2, 2)])
    words = ["dataset=csv", f"dataset.path={tmp_path / 'labels.csv'}", "dataset.file=picture", "dataset.split=split", "dataset.size=12"]
    words += ["dataset.labels=[light,tall]", "task=tag", *MLP, "freeze=none", *SMALL[3:-2]]
    whole = executed(words)
    folder, *_ = stop(words, 2)
    states = checkpoints.read(folder, print)["regraft"]["measures"][0]["train/map"]["states"]
    assert any(isinstance(state, list) and len(state) == 2 for state in states.values()), "a batch's answers each"
    same(whole, again(folder))


def test_a_checkpoint_falls_due_within_an_epoch_and_serves_a_run_that_was_killed(executed, monkeypatch, tmp_path):
    words = [*SMALL, *CONV, "freeze=none", "head.dropout=0.3", "trainer.checkpoint_seconds=1e-9"]
    monkeypatch.setattr(checkpoints, "SHARE", 0)
    whole = executed(words)
    written = []
    write = checkpoints.write

    def dying(folder, checkpoint):
        write(folder, checkpoint)
        written.append((checkpoint["regraft"]["epochs"], checkpoint["regraft"]["step"]))
        if len(written) == STEPS + 2:
            raise KeyError("killed")

    monkeypatch.setattr(checkpoints, "write", dying)
    with pytest.raises(KeyError, match="killed"):
        executed(words, folder="killed")
    assert written == [(0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2)]
    same(whole, again(RunFolder(tmp_path / "runs" / "killed")))


def test_0_seconds_are_a_checkpoint_after_each_epoch_and_none_within(executed, monkeypatch):
    written = []
    write = checkpoints.write
    monkeypatch.setattr(checkpoints, "write", lambda *each: (written.append(each[1]["regraft"]["step"]), write(*each)))
    executed([*SMALL, *MLP, "freeze=none", "trainer.checkpoint_seconds=0"])
    assert written == [0, 0]


@pytest.mark.parametrize(
    ("where", "at", "left"),
    [
        ((PhaseModule, "validation_step"), ((1, 0, False), "saved after epoch 0"), STEPS),
        ((running, "finish"), ((2, 0, True), "at once"), 0),
    ],
)
def test_told_while_it_measures(executed, stop, where, at, left):
    """An epoch's validation is ended, and saved after; when all is trained it stops at once, and nothing is trained again."""
    words = [*SMALL, *MLP, "freeze=none"]
    whole = executed(words)
    folder, _, said = stop(words, 1, where)
    mine = checkpoints.read(folder, print)["regraft"]
    assert ((mine["epochs"], mine["step"], mine["over"]), said.partition(" and ")[2] or said.partition(", ")[2].partition(";")[0]) == at
    with told(100) as (calls, _):
        same(whole, again(folder))
    assert len(calls) == left
    assert not folder.saved, "a run that is done keeps no checkpoint"


def test_a_second_word_stops_at_once_and_an_echo_of_the_first_does_not(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    trainer = type("Trainer", (), {"_signal_connector": type("Connector", (), {})()})()
    mine, heard = Listener(), []

    def trains(*words):
        with mine.later(trainer):
            for passed, number in words:
                now[0] += passed
                mine.hear(number, None)
                heard.append(number)

    with pytest.raises(Stopped, match="SIGUSR1, at once"):
        trains((0, signal.SIGUSR1), (stopping.ECHO / 2, signal.SIGTERM), (stopping.ECHO, signal.SIGTERM))
    assert heard == [signal.SIGUSR1, signal.SIGTERM]
    with pytest.raises(Stopped):  # where the first word was lost in a place that lets nothing out
        trains((0, signal.SIGINT))
    assert len(heard) == 2
    with pytest.raises(Stopped, match="SIGINT, at once"):
        Listener().hear(signal.SIGINT, None)


def test_the_end_of_its_parent_keeps_no_worker_from_saving_what_it_was_told_to_save(monkeypatch):
    """`timeout -k 5` and `docker stop` kill the controller while the worker still writes; the system's word for that is SIGTERM too."""
    mine, trainer = Listener(), type("Trainer", (), {"_signal_connector": type("Connector", (), {})()})()
    monkeypatch.setattr(stopping.time, "monotonic", iter([100.0, 100.0 + 2 * stopping.ECHO]).__next__)
    written = []

    def saves():
        with mine.later(trainer):
            mine.hear(signal.SIGTERM, None)
            monkeypatch.setattr(stopping.os, "getppid", lambda: 1)
            mine.hear(signal.SIGTERM, None)
            written.append("all of it")

    with pytest.raises(Stopped):
        saves()
    assert written


def test_outside_of_training_nothing_waits():
    mine = Listener()
    before = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    try:
        mine.listen()
        with pytest.raises(Stopped, match="SIGUSR1"):
            signal.raise_signal(signal.SIGUSR1)
        mine.ignore()
        signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A folder with a last checkpoint and the one before."""
    folder = RunFolder(tmp_path_factory.mktemp("pair"))
    for epoch in (1, 2):
        mine = {"epochs": epoch, "over": False, "best": {"state": {}}}
        checkpoints.write(folder, {"regraft": mine, "state_dict": {"w": torch.full((5000,), float(epoch))}})
    return folder, (folder / CHECKPOINT).read_bytes()


@given(cut=st.none() | st.integers(0, 20000), at=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_whatever_is_damaged_is_noticed_or_does_no_harm(pair, cut, at, bit):
    """Every byte of the last checkpoint may be cut off or have a bit turned: it is read as it was written, or not at all."""
    folder, whole = pair
    damaged = bytearray(whole[:cut])
    if cut is None:
        damaged[at % len(whole)] ^= 1 << bit
    (folder / CHECKPOINT).write_bytes(damaged)
    said = []
    found = checkpoints.read(folder, said.append)
    epoch = 1 if said else 2
    assert found["regraft"]["epochs"] == epoch
    assert torch.equal(found["state_dict"]["w"], torch.full((5000,), float(epoch)))
    assert not said or "previous.ckpt takes its place" in said[0]


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(executed, stop):
    words = [*SMALL, *MLP, "freeze=none", "trainer.checkpoint_seconds=0"]
    whole = executed(words)
    folder, *_ = stop(words, STEPS + 2)
    (folder / CHECKPOINT).write_bytes(b"PK")
    said = []
    with told(100) as (calls, _):
        running.execute([folder], said.append)
    assert len(calls) == STEPS, "the second epoch again, from its begin"
    assert any("last.ckpt is damaged" in str(each) for each in said)
    same(whole, Run(folder.path))


def test_between_two_renames_the_one_before_is_there(executed, stop):
    words = [*SMALL, *MLP, "freeze=none", "trainer.checkpoint_seconds=0"]
    whole = executed(words)
    folder, *_ = stop(words, STEPS + 2)
    (folder / CHECKPOINT).unlink()
    assert folder.saved
    same(whole, again(folder))


def test_two_damaged_checkpoints_are_named(stop):
    folder, *_ = stop([*SMALL, *MLP, "freeze=none", "trainer.checkpoint_seconds=0"], STEPS + 2)
    for name in (CHECKPOINT, PREVIOUS):
        (folder / name).write_bytes((folder / name).read_bytes()[:-100])
    with pytest.raises(UserError, match=r"last.ckpt: the checkpoint can't be read"):
        again(folder)


@pytest.fixture
def tags(tmp_path):
    """Overrides: 24 pictures of train that carry two tags, and 4 of val."""
    rows = ["file,wide,odd,split"]
    for i in range(32):
        picture = Image.new("RGB", (32, 32), "white")
        picture.paste("black", (0, 8, i + 1, 24))
        picture.save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{int(i > 15)},{i % 2},{'train' if i % 4 else 'val' if i % 8 else 'test'}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    return ["dataset=csv", f"dataset.path={tmp_path / 'table.csv'}", "dataset.labels=[wide,odd]", "task=tag", "data.size=32"]


STACKS = {
    "heads of one seed share their input, and are counted all at once": ["optimizer.weight_decay=0,0.1", "trainer.max_epochs=2,3"],
    "tags are measured head by head": ["optimizer.weight_decay=0,0.1"],
}


@pytest.mark.parametrize("case", STACKS)
@pytest.mark.parametrize("after", [1, STEPS - 1, STEPS, 6])
def test_a_stack_that_is_told_to_stop_saves_after_the_step_and_goes_on(swept, tags, case, after):
    own, tagged = {word.partition("=")[0] for word in STACKS[case]}, case.startswith("tags")
    words = [word for word in SMALL if word.partition("=")[0] not in own and not (tagged and word.startswith("dataset"))]
    words += [*STACKS[case], *(tags if tagged else []), *CONV, "freeze=backbone", "head.dropout=0.3"]
    whole = swept(words, "whole")
    with told(after, (StackModule, "training_step")) as (calls, said):
        swept(words, "stopped")
    assert len(calls) == after
    assert (f"after step {after % STEPS} of an epoch" if after % STEPS else "after an epoch") in said[0]
    with told(100, (StackModule, "training_step")) as (calls, _):
        goes_on = swept(words, "stopped")
    assert len(calls) == max(folder.config["trainer"]["max_epochs"] for folder in whole) * STEPS - after, "no step is done again"
    for one, other in zip(whole, goes_on, strict=True):
        assert other.record["group"]
        same(Run(one.path), Run(other.path))


def test_heads_of_a_stack_that_were_saved_after_different_steps_go_on_in_stacks_of_their_own(swept, tmp_path):
    words = [*SMALL, *CONV, "optimizer.lr=1e-3,1e-2", "freeze=backbone", "head.dropout=0.3"]
    whole = swept(words, "whole")
    with told(2, (StackModule, "training_step")):
        swept(words, "stopped")
    (tmp_path / "stopped" / whole[0].path.name / CHECKPOINT).unlink()
    for one, other in zip(whole, swept(words, "stopped"), strict=True):
        same(Run(one.path), Run(other.path), abs=1e-5)


def test_a_stack_that_was_too_much_for_a_gpus_memory_goes_on_in_halves(swept, monkeypatch):
    words, sizes = [*SMALL, *CONV, "freeze=backbone", "optimizer.lr=1e-4,1e-3,1e-2,1e-1,1"], []
    whole = swept(words, "whole")
    execute, fit = running.execute, stacking._fit

    def halved(folders, *rest):
        for folder in folders:
            folder.update(halved=1)
        execute(folders, *rest)

    monkeypatch.setattr(running, "execute", halved)
    monkeypatch.setattr(stacking, "_fit", lambda members, *rest: (sizes.append(len(members)), fit(members, *rest)))
    for one, other in zip(whole, swept(words, "halved"), strict=True):
        same(Run(one.path), Run(other.path), abs=1e-5)
    assert sizes == [2, 2, 1]


@pytest.mark.parametrize("micro", [0, 1])
def test_begun_batches_are_the_rest_of_the_epoch(micro):
    how = {"seed": 3, "views": 4, "first_epoch": 2}
    arithmetic = Batch(8, 1, 4, 2) if micro else Batch(8, 1, 8, 1)
    each = GlobalBatches(21, arithmetic, **how)
    for step in range(each.steps):
        rest = GlobalBatches(21, arithmetic, **how, begun=(2, step))
        assert len(rest) == len(each), "what has been done is counted"
        for one, other in zip(list(each)[step * arithmetic.accumulate :], rest, strict=True):
            assert all(torch.equal(one[i], other[i]) for i in range(4))
            assert one[4:7] == other[4:7]
        rest.set_epoch(1)
        assert len(list(rest)) == len(rest), "the next epoch is a whole one"


@given(st.integers(1, 4), st.integers(1, 40), st.integers(1, 3), st.integers(0, 8))
def test_halved_batches_keep_the_global_one(devices, micro, accumulate, times):
    whole = Batch(devices * micro * accumulate, devices, micro, accumulate)
    half = whole.halved(times)
    assert (half.size, half.devices) == (whole.size, devices)
    rows = [share.row for rank in range(devices) for share in GlobalBatches(half.size, half, rank=rank, seed=0) if share.weight.any()]
    assert sorted(torch.cat(rows).tolist()) == list(range(whole.size))
    assert max(map(len, rows)) == half.micro == max(1, -(-micro // 2**times))
    assert half.accumulate <= accumulate * 2**times


@pytest.mark.parametrize("saved", [False, True])
def test_a_run_whose_micro_batches_were_halved_ends_the_same(executed, stop, saved):
    """As after a GPU's memory was too small; `saved`: within an epoch there was a checkpoint, of which Lightning counts micro-batches."""
    words = [*SMALL, *MLP, "freeze=none", "head.dropout=0.3", "augmentation=d4", "optimizer=sgd", "data.batch_size=8"]
    whole = executed(words)
    folder, *_ = stop(words, 2)
    if not saved:
        (folder / CHECKPOINT).unlink()
    folder.update(halved=2)
    with told(100) as (calls, _):
        halved = again(folder)
    assert halved.record["batch"] == {"global": 8, "devices": 1, "micro": 2, "accumulate": 4}
    assert len(calls) == 4 * (6 - 2 * saved)
    same(whole, halved, abs=1e-6)
    assert halved.record["run_id"] == whole.record["run_id"]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_want_of_memory_is_told_as_what_a_user_can_mend(error):
    told = errors.facts(error, 1)
    assert (told["kind"], told["rank"]) == ("UserError", 1)
    assert "data.batch_size" in told["message"]
    assert "hardware.accumulate=2" in told["message"]
    assert type(error).__name__ in told["message"]
    assert errors.facts(torch.OutOfMemoryError("CUDA out of memory"))["kind"] == "OutOfMemoryError", "which the controller mends"
    for words in ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"):
        assert errors.facts(RuntimeError(words))["kind"] == "OutOfMemoryError"
    assert errors.facts(RuntimeError("mat1 and mat2"))["kind"] == "RuntimeError"
