"""Recurrent nets: padding changes nothing, layers are torch's own, and each is a stage of the chain that can be cached below the next."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from regraft import streams
from regraft.chain import Backbone, Chain
from regraft.errors import UserError
from regraft.models.recurrent import FrameHead, Pool, build, step_nll
from regraft.models.recurrents import Gru, Lstm, Recurrent, Rnn
from regraft.registry import parse
from regraft.tasks.frame_metrics import ExpectedFrameAccuracy, FrameAccuracy, FrameNLL
from regraft.tasks.frames import Frames

pytestmark = pytest.mark.usefixtures("one_thread")

CONF = Path(__file__).parent.parent / "conf"
SPECS: dict[str, type[Recurrent]] = {"rnn": Rnn, "lstm": Lstm, "gru": Gru}
LIBRARY = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


def spec_of(name: str, **changed: Any) -> Recurrent:
    spec = parse(SPECS[name], yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text()) | changed, "model")
    assert isinstance(spec, Recurrent)
    return spec


def net(cell: str = "lstm", features: int = 3, kind: str = "sequence", steps: int = 9, seed: int = 0, **changed: Any) -> Backbone:
    values = {"depth": 2, "width": 4, "bidirectional": True, "dropout": 0.0, "embedding": 5, "pool": "last"} | changed
    shape = [steps] if kind == "tokens" else [steps, features + 1]
    with streams.seeded(seed, "test"):
        return build(cell, **values, enters={"kind": kind, "shape": shape, "tokens": 7})


def padded(rows: list[Tensor], steps: int) -> Tensor:
    """Sequences [t, f] -> [b, T, f + 1]"""
    x = torch.zeros(len(rows), steps, rows[0].shape[-1] + 1)
    for i, row in enumerate(rows):
        x[i, : len(row), :-1], x[i, : len(row), -1] = row, 1
    return x


def gradients(module: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(module.parameters())))


@settings(max_examples=25, deadline=None)
@given(
    cell=st.sampled_from(sorted(LIBRARY)),
    pool=st.sampled_from(["last", "mean", "none"]),
    bidirectional=st.booleans(),
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    more=st.integers(0, 5),
)
def test_padding_and_companions_change_neither_answers_nor_gradients(
    cell: str, pool: str, bidirectional: bool, lengths: list[int], more: int
) -> None:
    module = net(cell, pool=pool, bidirectional=bidirectional).module
    draws = torch.Generator().manual_seed(len(lengths))
    rows = [torch.randn(length, 3, generator=draws) for length in lengths]
    together = module(padded(rows, 6 + more))
    alone = [module(padded([row], max(len(row), 1))) for row in rows]
    weight = torch.randn(6 + more, together.shape[-1], generator=draws)
    if pool == "none":
        assert not together[together[..., -1] == 0].any()
        parts = [(y[0, : len(row)] * weight[: len(row)]).sum() for y, row in zip(alone, rows, strict=True)]
        torch.testing.assert_close(together, padded([y[0, : len(row), :-1] for y, row in zip(alone, rows, strict=True)], 6 + more))
    else:
        parts = [(y * weight[0]).sum() for y in alone]
        torch.testing.assert_close(together, torch.cat(alone))
    total = (together * (weight if pool == "none" else weight[0])).sum()
    for mine, theirs in zip(gradients(module, total), gradients(module, sum(parts, torch.zeros(()))), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cell", LIBRARY)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_layers_with_the_library_s_weights_are_the_library_s_layers(cell: str, bidirectional: bool) -> None:
    whole = LIBRARY[cell](3, 4, num_layers=3, batch_first=True, bidirectional=bidirectional)
    module = net(cell, depth=3, bidirectional=bidirectional, pool="none").module
    for name, tensor in whole.state_dict().items():  # weight_ih_l1_reverse -> layer2.cell.weight_ih_l0_reverse
        kind, layer, reverse = re.fullmatch(r"(\w+_l)(\d)(_reverse)?", name).groups()  # type: ignore[union-attr]
        module.get_parameter(f"layer{int(layer) + 1}.cell.{kind}0{reverse or ''}").data.copy_(tensor)
    rows = [torch.randn(length, 3) for length in (5, 2, 7)]
    found = module(padded(rows, 8))
    pooled = Pool("last", 1 + bidirectional)(found)
    for i, row in enumerate(rows):
        expected, state = whole(row[None])
        torch.testing.assert_close(found[i, : len(row), :-1], expected[0])
        last = (state[0] if cell == "lstm" else state)[-1 - bidirectional :, 0].flatten()  # the top layer's, of each direction
        torch.testing.assert_close(pooled[i], last)


def test_the_mean_is_over_the_steps_that_are_there() -> None:
    x = padded([torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0]])], 4)
    assert Pool("mean", 1)(x).tolist() == [[2.0], [5.0]]
    assert Pool("mean", 1)(padded([torch.zeros(0, 1)], 4)).tolist() == [[0.0]]


def test_tokens_are_read_up_to_the_first_padding() -> None:
    module = net(kind="tokens", pool="mean").module
    short, long = torch.tensor([[3, 6, 1]]), torch.tensor([[3, 6, 1, 0, 0]])
    torch.testing.assert_close(module(short), module(long))
    assert not torch.allclose(module(short), module(torch.tensor([[3, 6, 2]])))
    assert net(kind="tokens").module.get_submodule("embedding.table").weight[0].abs().max() == 0  # type: ignore[union-attr,index]


@pytest.mark.parametrize("kind", ["sequence", "tokens"])
@pytest.mark.parametrize("pool", ["last", "none"])
def test_each_layer_is_a_stage_and_the_net_can_be_cut_below_it(kind: str, pool: str) -> None:
    backbone = net(kind=kind, pool=pool, depth=3, bidirectional=pool != "none", dropout=0.5)
    rows = [torch.randn(length, 3) for length in (9, 4, 9)]
    x = padded(rows, 9) if kind == "sequence" else torch.randint(1, 7, (3, 9))
    width = backbone.module.eval()(x).shape[-1]
    head: nn.Module = nn.Linear(width, 5) if pool == "last" else FrameHead(width, 5, 0.0)
    chain = Chain(backbone, head, x, 5).eval()
    layers = ("layer1", "layer2", "layer3")
    assert chain.stages == (*(("embedding",) if kind == "tokens" else ()), *layers, "head")
    for stage in chain.stages[1:]:
        stored = chain(x, stop=stage)
        assert stored.dtype == torch.float32
        torch.testing.assert_close(chain(stored, start=stage), chain(x), rtol=0, atol=0)


def test_dropout_belongs_to_the_layer_that_it_feeds() -> None:
    """A frozen layer's output is the same in each epoch, so it may be cached; and masks do not depend on how a batch is divided."""
    module = net(dropout=0.5, pool="none", bidirectional=False).module
    x = padded([torch.randn(length, 3) for length in (9, 4, 6)], 9)
    first, second = module.get_submodule("layer1"), module.get_submodule("layer2")
    module.train()
    streams.place(module, (0, "dropout", 1), 3, torch.arange(3))
    entered = first(x)
    torch.testing.assert_close(entered, first.eval()(x), rtol=0, atol=0)
    whole = second(entered)
    assert not torch.allclose(whole, second.eval()(entered))
    second.train()
    streams.place(module, (0, "dropout", 1), 3, torch.tensor([2]))
    torch.testing.assert_close(second(entered[2:]), whole[2:])


@pytest.mark.parametrize("name", SPECS)
def test_specs_and_files_agree(name: str) -> None:
    text = (CONF / "model" / f"{name}.yaml").read_text()
    spec = spec_of(name)
    assert yaml.safe_load(text).keys() == type(spec).model_fields.keys()
    assert spec.problems() == []
    assert spec.takes == ("sequence", "tokens")
    changed = spec_of(name, depth=2, width=4)
    module = changed.build_for({"kind": "sequence", "shape": [6, 4], "tokens": 0}).module
    assert module(torch.ones(2, 6, 4)).shape == (2, 4)


def test_settings_that_can_t_be_are_told() -> None:
    [ahead] = spec_of("lstm", pool="none", bidirectional=True).problems()
    assert ahead.key == "bidirectional"
    [published] = spec_of("gru", weights="imagenet").problems()
    assert published.key == "weights"
    assert [problem.key for problem in spec_of("rnn").unfit("frames")] == ["pool"]
    assert [problem.key for problem in spec_of("rnn", pool="none").unfit("class")] == ["pool"]
    assert spec_of("rnn", pool="none").unfit("frames") == spec_of("rnn").unfit("class") == []
    with pytest.raises(UserError, match=r"model\.pool"):
        spec_of("lstm", pool="max")


# Frames


TRUTH = torch.tensor([[[1.0, 0, 1], [0, 0, 1], [0, 0, 0]], [[1, 1, 1], [0, 0, 0], [0, 0, 0]]])  # [2, 3, 2 + 1]: two steps, one step
LOGITS = torch.tensor([[[2.0, -1], [0.5, -3], [9, 9]], [[-1.0, 1], [9, 9], [9, 9]]])


def by_hand(answer: float, true: float) -> float:
    """-log p of one note in nats"""
    p = 1 / (1 + torch.tensor(-answer).exp().item())
    return -float(torch.tensor(p if true else 1 - p).log())


STEPS = [
    by_hand(2, 1) + by_hand(-1, 0),
    by_hand(0.5, 0) + by_hand(-3, 0),
    by_hand(-1, 1) + by_hand(1, 1),
]


def test_the_loss_is_each_sequence_s_own_mean() -> None:
    head = FrameHead(3, 2, 0.0)
    head.linear.weight.data.copy_(torch.eye(2))
    head.linear.bias.data.zero_()
    x = torch.cat([LOGITS, TRUTH[..., -1:]], -1)
    losses = head.losses(x, TRUTH, torch.zeros(2, dtype=torch.int64))
    torch.testing.assert_close(losses, torch.tensor([(STEPS[0] + STEPS[1]) / 2, STEPS[2]]))
    assert (head(x)[TRUTH[..., -1] == 0].sigmoid() == 0).all()  # what is no step sounds nothing
    empty = head.losses(torch.zeros(1, 3, 3), torch.zeros(1, 3, 3), torch.zeros(1, dtype=torch.int64))
    assert empty.tolist() == [0.0]
    torch.autograd.grad(losses.sum() + empty.sum(), list(head.parameters()))


def test_the_metrics_are_over_all_steps_of_the_set() -> None:
    nll, accuracy = FrameNLL(), FrameAccuracy()
    for i in range(2):  # a batch each: of two steps, and of one
        nll.update(*Frames(name="frames").judged(LOGITS[i : i + 1], TRUTH[i : i + 1], None))
        accuracy.update(*Frames(name="frames").judged(LOGITS[i : i + 1], TRUTH[i : i + 1], None))
    assert nll.compute().item() == pytest.approx(sum(STEPS) / 3)
    assert accuracy.compute().item() == pytest.approx(2 / 4)  # hit: 2, 1; false: .5; missed: -1
    expected = ExpectedFrameAccuracy()
    expected.update(torch.tensor([[[0.0, 0.0], [9.0, 9.0]]]), torch.tensor([[[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]]]))  # the second step is none
    assert expected.compute().item() == pytest.approx(0.5 / (0.5 + 0.5 + 1 - 0.5))
    for metric in (FrameNLL(), FrameAccuracy(), ExpectedFrameAccuracy()):
        metric.update(LOGITS[:0], TRUTH[:0])
        assert torch.isnan(metric.compute())


def test_independent_notes_of_known_frequency_have_their_entropy() -> None:
    """A check of units: nats, summed over the notes of a step."""
    p = torch.tensor([0.25, 0.5])
    truth = torch.ones(1, 4, 3)
    truth[0, :, 0] = torch.tensor([1.0, 0, 0, 0])
    truth[0, :, 1] = torch.tensor([1.0, 1, 0, 0])
    nll, _ = step_nll(p.logit().expand(1, 4, 2), truth)
    entropy = -(p * p.log() + (1 - p) * (1 - p).log()).sum()
    torch.testing.assert_close(nll.mean(), entropy)


def test_answers_in_words() -> None:
    task = Frames(name="frames")
    assert task.answers(task.scores(LOGITS), ["C4", "E4"]) == ["C4 C4 C4+E4", "E4 C4+E4 C4+E4"]
    assert task.truths(TRUTH, ["C4", "E4"]) == ["C4 -", "C4+E4"]
    views = torch.stack([LOGITS, LOGITS + 1])
    torch.testing.assert_close(task.averaged(views).sigmoid(), views.sigmoid().mean(0))
    assert sorted(task.meters(2)) == sorted(task.METRICS)
