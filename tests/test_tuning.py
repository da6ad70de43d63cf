"""`auto`: what is measured, what is taken, what is kept; and that asking changes nothing in the net."""

from __future__ import annotations

import json
import math
import os
import threading
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from regraft import freeze, freezing, tuning
from regraft.batches import Batch
from regraft.chain import Backbone, Chain
from regraft.hardware import GROUP, Choice, HardwareSpec
from regraft.registry import parse
from regraft.streams import Dropout
from regraft.tuning import Kept, Measured, applied, candidates, fastest, measure, settle, trial, untouched

PLAIN, LAST, HALF = Choice(), Choice(memory_format="channels_last"), Choice("bf16")


def hardware(name: str = "cpu", **values: Any) -> HardwareSpec:
    usual: dict[str, Any] = {"devices": 1, "accumulate": 1, "precision": "auto", "memory_format": "auto", "compile": "auto"}
    usual |= {"batchnorm": "local", "workers": 0, "threads": "auto"}
    return parse(GROUP.spec(name), {"name": name, **usual, **values}, "hardware")  # type: ignore[return-value]


class Net(nn.Module):
    """[b, 3, h, w] -> [b, 8]; notes the layout of what leaves each layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5))
        self.top = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.seen: list[tuple[bool, torch.dtype]] = []

    def forward(self, x: Tensor) -> Tensor:
        x = self.top(self.body(self.stem(x)))
        self.seen.append((x.is_contiguous(memory_format=torch.channels_last), x.dtype))
        return x.mean((2, 3))


class Module(nn.Module):
    """What a task's module is to a trial."""

    def __init__(self, trains: tuple[str, ...] = ("stem", "body", "top", "head")) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            stages = {name: (name,) for name in ("stem", "body", "top")}
            backbone = Backbone(Net(), stages, "", (0.5,) * 3, (0.5,) * 3, 3, 8)
            self.chain = Chain(backbone, nn.Sequential(Dropout(0.5), nn.Linear(8, 2)), torch.randn(2, 3, 8, 8))
        self.phase = freeze.Phase("tried", 1, trains[0], trains)
        freezing.gradients(self.chain, self.phase)
        self.train()

    def train(self, mode: bool = True) -> Module:
        super().train(mode)
        if mode:
            freezing.modes(self.chain, self.phase)
        return self

    def forward(self, batch: Batch) -> Tensor:
        x = self.chain.prepare(batch.x)
        first = self.phase.boundary == self.chain.stages[0]
        with torch.no_grad():
            x = x if first else self.chain(x, stop=self.phase.boundary)
        return self.chain(x) if first else self.chain(x, start=self.phase.boundary)


class Pictures(NamedTuple):
    """What a trial needs of a batch."""

    x: Tensor


BATCH: Batch = Pictures(torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8))  # type: ignore[assignment]


# what is measured


@pytest.mark.parametrize(
    ("values", "accelerator", "kernels", "expected"),
    [
        ({}, "cpu", True, ["fp32 contiguous", "fp32 channels_last", "bf16 contiguous", "bf16 channels_last"]),
        ({}, "cpu", False, ["fp32 contiguous", "bf16 contiguous"]),
        ({"precision": "bf16"}, "cpu", True, ["bf16 contiguous", "bf16 channels_last"]),
        ({"precision": "bf16", "memory_format": "channels_last"}, "cpu", True, ["bf16 channels_last"]),
        ({"memory_format": "contiguous", "compile": True}, "cpu", True, ["fp32 contiguous compiled", "bf16 contiguous compiled"]),
        (
            {"memory_format": "contiguous"},
            "gpu",
            True,
            [f"{precision} contiguous{compiled}" for precision in ("fp32", "bf16", "fp16") for compiled in ("", " compiled")],
        ),
        ({"precision": "fp32", "memory_format": "contiguous", "compile": False}, "gpu", True, ["fp32 contiguous"]),
    ],
)
def test_only_what_is_auto_varies(values: dict[str, Any], accelerator: str, kernels: bool, expected: list[str]) -> None:
    assert [str(choice) for choice in candidates(hardware(**values), accelerator, kernels)] == expected


def test_choices_take_turns_and_the_fastest_of_the_turns_that_count_is_told() -> None:
    times = {PLAIN: [0.1, 3, 1, 2], LAST: [9, 0.9, 0.8, 8]}
    order = []

    def step(choice: Choice) -> float:
        order.append(choice)
        return times[choice][order.count(choice) - 1]

    assert measure(step, [PLAIN, LAST], warm=1, steps=3, seconds=1e9) == [Measured(PLAIN, 1), Measured(LAST, 0.8)]
    assert order == [PLAIN, LAST] * 4


def test_what_is_far_behind_rests_and_what_may_win_goes_on() -> None:
    times = {PLAIN: [1.0] * 5, LAST: [1.0, 9.0, 1.2, 0.9, 1.2], HALF: [1.0, 1.3, 1.3]}
    order: list[Choice] = []

    def step(choice: Choice) -> float:
        order.append(choice)
        return times[choice][order.count(choice) - 1]

    found = measure(step, [PLAIN, LAST, HALF], warm=1, steps=4)
    assert [order.count(choice) for choice in (PLAIN, LAST, HALF)] == [5, 5, 3], "one turn may be slow by chance"
    assert found == [Measured(PLAIN, 1.0), Measured(LAST, 0.9), Measured(HALF, 1.3)]


@pytest.mark.parametrize(("seconds", "turns", "told"), [(1e9, 6, 1.0), (24, 2, 2.0), (10, 1, 10.0), (0, 1, 10.0)])
def test_no_turn_begins_after_the_time_is_up(seconds: float, turns: int, told: float) -> None:
    times = iter([10.0, 10.0, 2.0, 2.4, 3.0, 2.4, 1.0, 1.2, 4.0, 2.4, 4.0, 2.4])
    count = 0

    def step(choice: Choice) -> float:
        nonlocal count
        count += 1
        return next(times)

    assert measure(step, [PLAIN, LAST], seconds=seconds)[0].seconds == told
    assert count == 2 * turns


def test_what_raises_or_gives_no_numbers_drops_out() -> None:
    calls = []

    def step(choice: Choice) -> float:
        calls.append(choice)
        if choice == HALF and len(calls) > 3:
            raise RuntimeError("no such kernel\nin detail")
        return float("nan") if choice == LAST else 1.0

    found = measure(step, [PLAIN, LAST, HALF])
    assert found == [
        Measured(PLAIN, 1.0),
        Measured(LAST, None, "its numbers are not finite"),
        Measured(HALF, None, "RuntimeError: no such kernel"),
    ]
    assert calls.count(LAST) == 1
    assert calls.count(HALF) == 2
    assert fastest(found) == PLAIN


# what is taken


@given(st.lists(st.one_of(st.none(), st.floats(1e-6, 1e3)), min_size=1, max_size=12))
def test_the_plainest_of_those_that_are_as_fast_as_any(times: list[float | None]) -> None:
    choices = candidates(hardware(), "gpu")[: len(times)]
    chosen = choices.index(fastest([Measured(choice, seconds) for choice, seconds in zip(choices, times, strict=True)]))
    ran = [seconds for seconds in times if seconds is not None]
    if not ran:
        assert chosen == 0
        return
    seconds = times[chosen]
    assert seconds is not None
    assert seconds <= 1.02 * min(ran)
    assert all(before is None or before > 1.02 * min(ran) for before in times[:chosen])


# that nothing changes


def everything(module: nn.Module) -> list[Any]:
    """Bits, layouts, gradients and modes of a module, and the state of torch's random stream."""
    found: list[Any] = [torch.get_rng_state().tolist()]
    for part in module.modules():
        found += [type(part).__name__, part.training, "forward" in vars(part)]
        for name, tensor in [*part._parameters.items(), *part._buffers.items()]:
            if tensor is not None:
                found += [name, id(tensor), tensor.stride(), tensor.requires_grad, tensor.detach().flatten().view(torch.uint8).tolist()]
                found += [None if tensor.grad is None else (id(tensor.grad), tensor.grad.tolist())]
    return found


@pytest.mark.parametrize("trains", [("stem", "body", "top", "head"), ("top", "head"), ("head",)])
@pytest.mark.parametrize("choice", [PLAIN, LAST, HALF, Choice("bf16", "channels_last"), Choice("fp32", "channels_last", True)], ids=str)
def test_a_trial_changes_nothing(choice: Choice, trains: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    module = Module(trains)
    module.eval()  # the mode is put back too
    if "body" not in trains:
        module(BATCH).sum().backward()  # and so are gradients
    before = everything(module)
    assert 0 < trial(module, BATCH)(choice) < 60
    assert everything(module) == before


def test_a_trial_is_put_back_after_an_error() -> None:
    module = Module()
    before = everything(module)
    module.chain.head.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trial(module, BATCH)(LAST)
    assert everything(module) == before


def test_untouched_takes_back_a_step_of_training() -> None:
    module = Module()
    module.chain.head[1].weight.grad = torch.ones_like(module.chain.head[1].weight)
    before = everything(module)
    with untouched(module):
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        trial(module, BATCH)(PLAIN)
        module.eval()(BATCH).sum().backward()
        module.requires_grad_(False)
        optimizer.step()
        assert everything(module) != before
    assert everything(module) == before


def test_numbers_that_are_not_finite_are_noticed() -> None:
    module = Module()
    with torch.no_grad():
        module.chain.head[1].weight.fill_(1e30)
    assert math.isnan(trial(module, BATCH)(PLAIN))


# that a choice is what it says


@pytest.mark.parametrize("choice", [PLAIN, LAST, HALF, Choice("bf16", "channels_last")], ids=str)
def test_a_trial_computes_as_chosen(choice: Choice) -> None:
    module = Module()
    trial(module, BATCH)(choice)
    assert module.chain.backbone.seen[-1] == (choice.memory_format == "channels_last", tuning.DTYPES[choice.precision])


def test_a_choice_is_for_what_lies_above_the_boundary_and_the_layout_is_put_back() -> None:
    module = Module(("top", "head"))
    state = {name: tensor.clone() for name, tensor in module.chain.state_dict().items()}
    with applied(module, LAST):
        formats = {name: p.is_contiguous() for name, p in module.chain.named_parameters() if p.dim() == 4}
        assert formats == {"backbone.stem.0.weight": True, "backbone.body.0.weight": True, "backbone.top.0.weight": False}
        assert all(torch.equal(tensor, state[name]) for name, tensor in module.chain.state_dict().items())
    assert all(tensor.is_contiguous() for tensor in module.chain.state_dict().values())


def test_training_as_chosen_gives_the_same_net() -> None:
    ends = []
    for choice in (PLAIN, LAST):
        module = Module()
        for dropout in (module.chain.backbone.body[3], module.chain.head[0]):
            dropout.p = 0.0
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        with applied(module, choice):
            for _ in range(3):
                optimizer.zero_grad()
                module(BATCH).square().mean().backward()
                optimizer.step()
        ends.append(module.state_dict())
        assert all(tensor.is_contiguous() for tensor in ends[-1].values()), "as a file of weights needs it"
    for name, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][name], tensor, rtol=1e-4, atol=1e-5)


def test_what_is_compiled_computes_and_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    module, compiled = Module(("top", "head")), []
    original = torch.compile

    def noted(forward: Any) -> Any:
        compiled.append(forward.__self__)
        return original(forward, backend="eager")

    monkeypatch.setattr(torch, "compile", noted)
    module.eval()
    expected = module(BATCH)
    names = list(module.state_dict())
    with applied(module, Choice(compile=True)):
        torch.testing.assert_close(module(BATCH), expected)
        module(BATCH).sum().backward()
        assert list(module.state_dict()) == names
    assert compiled == list(module.chain.backbone.top)
    assert all(p.grad is not None for p in module.chain.backbone.top.parameters())


# what is kept


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Choice]:
    """The steps that are made; LAST is the fastest."""
    made: list[Choice] = []

    def tried(module: Any, batch: Any) -> Any:
        def step(choice: Choice) -> float:
            made.append(choice)
            return 0.1 if choice == LAST else 0.2

        return step

    monkeypatch.setattr(tuning, "trial", tried)
    return made


def test_the_second_run_does_not_measure_again(tmp_path: Path, counted: list[Choice]) -> None:
    choice, facts = settle(hardware(), Module(), BATCH, tmp_path, {"name": "net"})
    assert choice == LAST
    assert len(counted) == 3 * 4 + 3, "the slower ones rest"
    again, known = settle(hardware(), Module(), BATCH, tmp_path, {"name": "net"})
    assert (again, len(counted)) == (LAST, 15)
    assert facts is not None
    assert known == {**facts, "known": True}
    assert facts["choice"] == {"precision": "fp32", "memory_format": "channels_last", "compile": False}
    assert [row["seconds"] for row in facts["measured"]] == [0.2, 0.1, 0.2, 0.2]
    assert json.loads(json.dumps(facts)) == facts
    assert [path.suffix for path in (tmp_path / "tuning").iterdir()] == [".json"], "written whole"


@pytest.mark.parametrize("change", ["net", "phase", "batch", "threads", "torch", "hardware"])
def test_what_may_change_the_answer_is_asked_again(change: str, tmp_path: Path, counted: list[Choice], monkeypatch: Any) -> None:
    settle(hardware(), Module(), BATCH, tmp_path, {"name": "net"})
    first = len(counted)
    if change == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    if change == "torch":
        monkeypatch.setattr(torch, "__version__", "99")
    settle(
        hardware(precision="fp32") if change == "hardware" else hardware(),
        Module(("top", "head")) if change == "phase" else Module(),
        Pictures(BATCH.x[:4]) if change == "batch" else BATCH,  # type: ignore[arg-type]
        tmp_path,
        {"name": "other"} if change == "net" else {"name": "net"},
    )
    assert len(counted) > first


def test_nothing_is_measured_where_nothing_is_auto(tmp_path: Path, counted: list[Choice]) -> None:
    plain = hardware(precision="bf16", memory_format="contiguous", compile=False)
    assert settle(plain, Module(), BATCH, tmp_path, {}) == (HALF, None)
    idle = hardware(precision="fp32")
    assert settle(idle, Module(("head",)), BATCH, tmp_path, {}) == (PLAIN, None), "a head has no kernels to lay out"
    assert (counted, list(tmp_path.iterdir())) == ([], [])


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"measured": [{}]}', '{"measured": 3}'])
def test_a_damaged_file_is_measured_again(text: str, tmp_path: Path, counted: list[Choice]) -> None:
    settle(hardware(), Module(), BATCH, tmp_path, {})
    [path] = (tmp_path / "tuning").iterdir()
    path.write_text(text)
    assert settle(hardware(), Module(), BATCH, tmp_path, {})[0] == LAST
    assert len(counted) == 30
    assert "question" in json.loads(path.read_text())


def test_other_ranks_follow_rank_0(tmp_path: Path, counted: list[Choice], monkeypatch: pytest.MonkeyPatch) -> None:
    followed: list[Choice] = []
    monkeypatch.setenv("RANK", "1")
    waits = threading.Event()
    original = Kept.wait

    def wait(self: Kept, seconds: float = 60) -> list[Measured]:
        waits.set()
        return original(self, seconds)

    monkeypatch.setattr(Kept, "wait", wait)
    rank1 = threading.Thread(target=lambda: followed.append(settle(hardware(), Module(), BATCH, tmp_path, {})[0]))
    rank1.start()
    assert waits.wait(60)
    os.environ["RANK"] = "0"
    settle(hardware(), Module(), BATCH, tmp_path, {})
    rank1.join(60)
    assert followed == [LAST]
    assert len(counted) == 15, "rank 1 measured nothing"


def test_a_rank_does_not_wait_for_ever(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError, match="rank 0"):
        Kept(tmp_path, {}).wait(0)


def test_the_whole_way(tmp_path: Path) -> None:
    """Really measured, on this machine: whatever it takes is one of the candidates and ran."""
    module = Module()
    before = everything(module)
    choice, facts = settle(hardware(), module, BATCH, tmp_path, {"name": "net"})
    assert everything(module) == before
    assert facts is not None
    seconds = {Choice(row["precision"], row["memory_format"], row["compile"]): row["seconds"] for row in facts["measured"]}
    assert len(seconds) == 4
    assert seconds[choice] <= 1.02 * min(found for found in seconds.values() if found is not None)
