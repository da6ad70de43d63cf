"""Maps that leave a net are the net's own, and it can be cut below them; a picture's loss is torchvision's, and is that picture's alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from regraft import streams, weights
from regraft.chain import Chain
from regraft.detecting import CELL, MOST, Detector, Drawn
from regraft.errors import UserError
from regraft.heads import RCNNHead
from regraft.models.rcnns import RCNN
from regraft.registry import parse
from regraft.report import boxes as report
from regraft.tasks.detect import Detect

pytestmark = pytest.mark.usefixtures("one_thread")

CONF = Path(__file__).parent.parent / "conf"
LEAVES = ((6, 8, 8), (4, 4, 4))
TRUTH = torch.tensor(
    [[[0, 0.1, 0.1, 0.4, 0.5], [1, 0.5, 0.4, 0.9, 0.8]], [[-1, 0, 0, 0, 0], [-1, 0, 0, 0, 0]], [[1, 0, 0, 0.3, 0.3], [-1, 0, 0, 0, 0]]]
)
SEEDS = torch.tensor([5, 6, 7])


def model(**changed: object) -> RCNN:
    spec = parse(RCNN, yaml.safe_load((CONF / "model" / "rcnn.yaml").read_text()) | {"weights": "none"} | changed, "model")
    assert isinstance(spec, RCNN)
    return spec


def head(**changed: object) -> RCNNHead:
    spec = parse(RCNNHead, yaml.safe_load((CONF / "head" / "rcnn.yaml").read_text()) | changed, "head")
    assert isinstance(spec, RCNNHead)
    return spec


def detector(**changed: object) -> Detector:
    small = {"width": 16, "hidden": 32, "proposals": 50, "drawn_anchors": 32, "drawn_regions": 16} | changed
    with streams.seeded("test"):
        net = head(**small).build_for(LEAVES, ["a", "b"])
    assert isinstance(net, Detector)
    return net


def packed(count: int) -> torch.Tensor:
    return torch.randn(count, 6 * 64 + 4 * 16, generator=streams.generator("packed"))


# Maps


def test_the_maps_are_those_of_torchvisions_net_and_all_its_stages_can_be_cut() -> None:
    spec = model(backbone={"name": "resnet", "depth": 18}, strides=[32, 8, 16])
    assert spec.problems() == []
    torch.manual_seed(0)
    backbone, plain = spec.build(64), resnet18(weights=None).eval()
    weights.load(backbone.module, spec.adapt(plain.state_dict(), backbone), "model.weights", "here")
    x = torch.randn(2, 3, 64, 64)
    expected = []
    with torch.no_grad():
        y = plain.layer1(plain.maxpool(plain.relu(plain.bn1(plain.conv1(x)))))
        for layer in (plain.layer2, plain.layer3, plain.layer4):
            expected.append(y := layer(y))
        with streams.seeded("test"):
            net = head(width=8).build_for(backbone.leaves, ["a"])
        chain = Chain(backbone, net, x).eval()
        assert backbone.leaves == ((128, 8, 8), (256, 4, 4), (512, 2, 2)) == tuple(tuple(each.shape[1:]) for each in expected)
        for found, wanted in zip(net._maps(chain(x, stop="head")), expected, strict=True):
            torch.testing.assert_close(found, wanted)
        assert chain.stages == ("stem", "layer1", "layer2", "layer3", "layer4", "head")
        assert "layer4.1" in chain.blocks
        for cut in (*chain.stages[2:-1], "layer4.1"):
            torch.testing.assert_close(chain(chain(x, stop=cut), start=cut), chain(x))


def test_one_map_is_not_packed_and_nothing_above_it_runs() -> None:
    backbone = model(backbone={"name": "resnet", "depth": 18}, strides=[16]).build(64)
    assert backbone.module(torch.zeros(2, 3, 64, 64)).shape == (2, 256, 4, 4)
    assert [name for name, _ in backbone.module.named_children()][-1] == "layer3"


def test_a_gradient_reaches_each_map_that_is_carried() -> None:
    backbone = model(backbone={"name": "convnet", "depth": 4, "width": 4, "fc": 8, "dropout": 0.0}, strides=[8, 16]).build(64)
    y = backbone.module.train()(torch.randn(3, 3, 64, 64))
    sizes = [c * h * w for c, h, w in backbone.leaves[::-1]]
    for part in y.split(sizes, 1):
        backbone.module.zero_grad()
        part.square().sum().backward(retain_graph=True)
        assert next(backbone.module.parameters()).grad.abs().sum() > 0


def test_published_weights_come_under_the_names_of_the_whole_net_and_of_an_earlier_run() -> None:
    spec = model(weights="imagenet")
    backbone = spec.build(64)
    state = spec.adapt(spec.fetch(backbone), backbone)
    assert state.keys() == backbone.module.state_dict().keys()
    assert any(".carried." in key for key in state)
    torch.testing.assert_close(spec.adapt(state, backbone), state)  # an earlier run's own names
    inner = dict(spec.inner.build(64).module.state_dict())
    assert spec.adapt(inner, backbone).keys() == state.keys()  # a classifier's run: what it lacks, it lacks


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"backbone": {"name": "mlp"}, "strides": [16]}, "gives no maps; efficientnet_lite or resnet does"),
        ({"backbone": {"name": "timm", "arch": "vit_tiny_patch16_224"}, "strides": [16]}, "gives no maps"),
        ({"backbone": {"name": "convnet", "depth": 2}, "strides": [8]}, "convnet gives maps of stride 1, 2 or 4"),
    ],
)
def test_nets_without_such_maps_are_refused(changed: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        model(**changed).build(64 if changed["backbone"]["name"] != "timm" else 224)  # type: ignore[index]


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"backbone": {"name": "resnet", "depth": 19}}, "backbone.depth"),
        ({"backbone": {"name": "resnett"}}, "backbone.name"),
        ({"backbone": {}}, "backbone.name"),
        ({"backbone": {"name": "rcnn"}}, "backbone.name"),
        ({"backbone": {"name": "resnet", "weights": "none"}}, "backbone.weights"),
        ({"strides": [8, 8]}, "strides"),
    ],
)
def test_mistakes_in_the_inner_net_are_told_by_their_keys(changed: dict[str, object], key: str) -> None:
    assert [problem.key for problem in model(**changed).problems()] == [key]


def test_cells_must_be_whole() -> None:
    assert model().too_small(160) is None
    assert "128 or 160" in str(model().too_small(150))


def test_what_the_inner_net_is_decides_the_run_whether_it_is_written_out_or_not() -> None:
    written = model(backbone={"name": "efficientnet_lite", "variant": 0})
    assert written.deciding() == model().deciding() != model(backbone={"name": "efficientnet_lite", "variant": 1}).deciding()


# Losses and answers


def test_the_loss_of_a_picture_is_torchvisions() -> None:
    net, x = detector(), packed(3)
    ours = net.losses(x, TRUTH, SEEDS)
    for i in range(3):
        net.train()
        net.rpn.fg_bg_sampler.seeds = net.roi.fg_bg_sampler.seeds = [int(SEEDS[i])]
        there = TRUTH[i][TRUTH[i][:, 0] >= 0]
        targets = [{"boxes": there[:, 1:] * 8 * CELL, "labels": there[:, 0].long() + 1}]
        maps = net.pyramid({str(level): each for level, each in enumerate(net._maps(x[i : i + 1]))})
        proposals, first = net.rpn(ImageList(torch.zeros(1, 3, *net.extent), [net.extent]), maps, targets)
        _, second = net.roi(maps, proposals, [net.extent], targets)
        torch.testing.assert_close(ours[i], sum([*first.values(), *second.values()]), rtol=1e-4, atol=1e-5)


def test_the_answers_are_torchvisions_as_parts_and_the_surest_first() -> None:
    net, x = detector(score=0.01).eval(), packed(2)
    with torch.no_grad():
        answers = net(x)
        maps = net.pyramid({str(level): each for level, each in enumerate(net._maps(x))})
        proposals, _ = net.rpn(ImageList(torch.zeros(2, 3, *net.extent), [net.extent] * 2), maps)
        expected, _ = net.roi(maps, proposals, [net.extent] * 2)
    assert answers.shape == (2, MOST, 6)
    for rows, each in zip(answers, expected, strict=True):
        count = len(each["boxes"])
        assert 0 < count <= MOST
        torch.testing.assert_close(rows[:count, :4] * 8 * CELL, each["boxes"])
        torch.testing.assert_close(rows[:count, 4], each["scores"])
        assert (rows[:count, 5].long() + 1).equal(each["labels"])
        assert not rows[count:].any()
        assert (rows[:-1, 4] >= rows[1:, 4]).all()
        assert 0 <= rows[:, :4].min() <= rows[:, :4].max() <= 1


def test_a_pictures_loss_and_answers_are_its_own_whatever_else_is_in_the_batch() -> None:
    net, x = detector(), packed(3)
    torch.manual_seed(1)
    together = net.losses(x, TRUTH, SEEDS)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    alone = torch.cat([net.losses(x[i : i + 1], TRUTH[i : i + 1], SEEDS[i : i + 1]) for i in (2, 0, 1)])[[1, 2, 0]]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert torch.get_rng_state().equal(state)
    assert not torch.isclose(net.losses(x, TRUTH, SEEDS + 1), together).any()  # other anchors and regions are drawn
    net.eval()
    torch.testing.assert_close(net.losses(x, TRUTH, SEEDS), together)
    with torch.no_grad():
        torch.testing.assert_close(net(x)[1:2], net(x[1:2]), rtol=1e-3, atol=1e-4)


def test_a_picture_without_boxes_teaches_that_nothing_is_there() -> None:
    net, x = detector(), packed(1)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for step in range(30):
        optimizer.zero_grad()
        loss = net.losses(x, TRUTH[1:2], torch.tensor([step])).sum()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    assert not net.eval()(x).any()


def test_it_learns_where_a_thing_is_and_what() -> None:
    draws = streams.generator("things")
    x, truth = torch.randn(8, *LEAVES[0], generator=draws) * 0.1, torch.zeros(8, 1, 5)
    for i in range(8):
        column, row = torch.randint(0, 4, (2,), generator=draws).tolist()
        x[i, i % 2, row : row + 4, column : column + 4] += 3
        truth[i, 0] = torch.tensor([i % 2, column / 8, row / 8, (column + 4) / 8, (row + 4) / 8])
    with streams.seeded("things"):
        net = head(width=16, hidden=32, proposals=30, drawn_anchors=32, drawn_regions=16, anchors=[4.0]).build_for(LEAVES[0], ["a", "b"])
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for epoch in range(40):
        optimizer.zero_grad()
        net.losses(x, truth, torch.arange(8) + 100 * epoch).mean().backward()  # type: ignore[operator]
        optimizer.step()
    with torch.no_grad():
        surest = net.eval()(x)[:, 0]
    assert surest[:, 5].equal(truth[:, 0, 0])
    assert box_iou(surest[:, :4], truth[:, 0, 1:]).diagonal().min() > 0.5


@given(st.lists(st.integers(-1, 2), min_size=1, max_size=60), st.integers(2, 20), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_positives_are_drawn_up_to_their_part_and_negatives_fill_up(labels: list[int], count: int, seed: int) -> None:
    sampler, each = Drawn(count, 0.25, "here"), torch.tensor(labels)
    sampler.seeds = [seed, seed]
    positive, negative = sampler([each, each])
    assert positive[0].equal(positive[1])
    assert int(positive[0].sum()) == (chosen := min(int(count * 0.25), int((each >= 1).sum())))
    assert int(negative[0].sum()) == min(count - chosen, int((each == 0).sum()))
    assert (each[positive[0].bool()] >= 1).all()
    assert (each[negative[0].bool()] == 0).all()


def test_a_head_of_boxes_refuses_what_is_no_map() -> None:
    with pytest.raises(UserError, match="model=rcnn would work"):
        head().build_for((1280,), ["a"])
    assert isinstance(head().build_for((8, 4, 4), ["a"]), nn.Module)


# Precision


def brute(answers: np.ndarray, truth: np.ndarray, label: int, overlap: float) -> float:
    """COCO's average precision of one class from its definition: 101 recalls, the best precision at that recall or beyond."""
    found = sorted(
        ((row[4], i, row) for i, rows in enumerate(answers) for row in rows if row[4] > 0 and row[5] == label), key=lambda each: -each[0]
    )
    taken: set[tuple[int, int]] = set()
    hits = []
    for _, i, row in found:
        free = [(iou(row[:4], other[1:]), j) for j, other in enumerate(truth[i]) if other[0] == label and (i, j) not in taken]
        best = max(free, default=(0.0, -1))
        hits.append(best[0] >= overlap)
        taken |= {(i, best[1])} if hits[-1] else set()
    total = int((truth[:, :, 0] == label).sum())
    recall, precision = np.cumsum(hits) / total, np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(np.mean([max(precision[recall >= wanted - 1e-12], default=0.0) for wanted in np.linspace(0, 1, 101)]))


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float(box_iou(torch.tensor(one)[None], torch.tensor(other)[None]))


def made(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Some boxes of two classes in four pictures, and what was found of them, among false ones."""
    draws = np.random.default_rng(seed)
    truth, answers = np.zeros((4, 3, 5), np.float32), np.zeros((4, 6, 6), np.float32)
    truth[:, :, 0] = draws.integers(-1, 2, (4, 3))
    corner = draws.uniform(0, 0.6, (4, 3, 2))
    truth[:, :, 1:] = np.concatenate([corner, corner + draws.uniform(0.1, 0.4, (4, 3, 2))], 2)
    answers[:, :3, :4] = truth[:, :, 1:] + draws.normal(0, 0.02, (4, 3, 4))
    corner = draws.uniform(0, 0.6, (4, 3, 2))
    answers[:, 3:, :4] = np.concatenate([corner, corner + 0.3], 2)
    answers[:, :, 4] = draws.permutation(24).reshape(4, 6) / 24
    answers[:, :, 5] = draws.integers(0, 2, (4, 6))
    return torch.from_numpy(answers), torch.from_numpy(truth)


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_what_its_definition_gives(seed: int) -> None:
    pytest.importorskip("pycocotools")
    answers, truth = made(seed)
    labels = [label for label in (0, 1) if (truth[:, :, 0] == label).any()]
    meters, told = Detect(name="detect").meters(2), Detect(name="detect").details(answers, truth, ["a", "b"])
    for name, overlaps in (("ap50", [0.5]), ("ap75", [0.75]), ("map", np.arange(0.5, 0.96, 0.05))):
        each = {label: np.mean([brute(answers.numpy(), truth.numpy(), label, overlap) for overlap in overlaps]) for label in labels}
        for half in (slice(0, 2), slice(2, 4), slice(4, 4)):
            meters[name].update(answers[half], truth[half])
        assert meters[name].compute().item() == pytest.approx(np.mean(list(each.values())), abs=2e-4)
        assert {label: told["ab"[label]][name] for label in labels} == pytest.approx(each, abs=2e-4)


def test_without_a_box_there_is_no_precision() -> None:
    pytest.importorskip("pycocotools")
    meter = Detect(name="detect").meters(2)["map"]
    meter.update(torch.zeros(0, 3, 6), torch.zeros(0, 1, 5))
    assert meter.compute().isnan()
    meter.reset()
    meter.update(torch.zeros(2, 3, 6), torch.full((2, 1, 5), -1.0))
    assert meter.compute().isnan()
    assert Detect(name="detect").details(torch.zeros(2, 3, 6), torch.full((2, 1, 5), -1.0), ["a"]) == {}


# What is told and drawn


def test_answers_and_truths_are_json_without_what_is_not_there() -> None:
    task, names = Detect(name="detect"), ["käfer", "b"]
    answers = torch.tensor([[[0.1, 0.2, 0.3, 0.4, 0.9, 1], [0, 0, 0, 0, 0, 0]]])
    assert json.loads(task.answers(answers, names)[0]) == [{"class": "b", "box": [0.1, 0.2, 0.3, 0.4], "score": 0.9}]
    assert task.truths(TRUTH[1:2], ["a", "b"]) == ["[]"]
    assert json.loads(task.truths(torch.tensor([[[0, 0.1, 0.1, 0.4, 0.5]]]), names)[0]) == [{"class": "käfer", "box": [0.1, 0.1, 0.4, 0.5]}]
    assert report.told(answers[0].tolist(), names)[0].name == "b"
    assert len(report.told(answers[0].tolist(), names)) == 1


def test_a_box_is_drawn_where_it_is_and_an_unsure_one_is_not() -> None:
    white = np.full((200, 400, 3), 255, np.uint8)
    sure = report.Drawn("thing", (0.25, 0.5, 0.75, 0.9), 0.8)
    picture = np.asarray(report.draw(white, [sure, report.Drawn("unsure", (0.0, 0.0, 0.2, 0.2), 0.3)]))
    assert picture.shape == white.shape
    blue = (picture[:, :, 2].astype(int) - picture[:, :, 0]) > 100
    rows, columns = blue.any(1).nonzero()[0], blue.any(0).nonzero()[0]
    assert abs(columns[0] - 100) <= 3
    assert abs(columns[-1] - 300) <= 3
    assert abs(rows[-1] - 180) <= 3
    assert blue[140, 99:103].any()
    assert not blue[140, 110:290].any()  # the inside is left as it is


def test_predictions_of_another_task_are_no_boxes(tmp_path: Path) -> None:
    import polars

    polars.DataFrame({"id": ["a"], "truth": ["cat"], "predicted": ["dog"]}).write_parquet(tmp_path / "predictions.parquet")
    with pytest.raises(UserError, match="holds no boxes"):
        report.drawn(tmp_path / "predictions.parquet", None)  # type: ignore[arg-type]
