"""Reading: lines follow their seed and keep splits apart, CTC is its definition by brute force, error rates are counted by hand."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageFont
from torch import Tensor

from regraft import config, streams, sweep
from regraft.chain import Chain
from regraft.datasets import Digits, digits
from regraft.datasets.source import Source
from regraft.datasets.strings import _fonts, vocabulary
from regraft.datasets.strung import DigitStrings, Lines, Words
from regraft.errors import UserError
from regraft.heads.ctc import Ctc
from regraft.models.crnn import CTC
from regraft.models.crnns import Crnn
from regraft.registry import Named, parse
from regraft.tasks.error_rates import spelt
from regraft.tasks.ocr import Ocr

CONF = Path(__file__).parent.parent / "conf"
FEW = {"train": 30, "val": 10, "test": 20}


def spec(kind: type[Any], place: str, **changed: Any) -> Any:
    found: Named = parse(kind, yaml.safe_load((CONF / f"{place}.yaml").read_text()) | changed, place.partition("/")[0])  # type: ignore[assignment]
    return found


def strings(**changed: Any) -> Source:
    return spec(DigitStrings, "dataset/digit_strings", **(FEW | changed)).open(Path("unused"))


def words(**changed: Any) -> Source:
    return spec(Words, "dataset/words", **(FEW | changed)).open(Path("unused"))


def texts(source: Source, split: str) -> list[str]:
    return Ocr(name="ocr").truths(torch.from_numpy(source.split(split).truth()), source.classes)


def test_a_string_is_its_digits_drawn_side_by_side_from_its_own_split() -> None:
    source = strings()
    assert source.sizes() == FEW
    assert source.shape == (16, 92)
    assert source.classes == ["", " ", *"0123456789"]
    assert source.facts()["input"] == {"kind": "array", "shape": [16, 92], "tokens": 0}
    known = digits.load(spec(Digits, "dataset/digits", val=0.15, test=0.2))
    of: dict[str, dict[bytes, str]] = {split: {} for split in FEW}
    for sample in known.samples:
        of[sample.split][known.read(sample)[:, :, 0].tobytes()] = str(sample.label)
    assert not set(of["train"]) & set(of["test"])
    for split in FEW:
        for sample, text in zip(source.split(split), texts(source, split), strict=True):
            line = source.read(sample)
            assert line.shape == (16, 92)
            assert line.dtype == np.float32
            assert 0 == line.min() < line.max() == 1
            pixels = np.rint(line * 255).astype(np.uint8)
            found = ""  # every window of 8 x 8 px that is a digit of this split, from left to right
            for left in range(92 - 8 + 1):
                tops = [pixels[top : top + 8, left : left + 8].tobytes() for top in range(2, 7)]
                found += next((of[split][each] for each in tops if each in of[split]), "")
            assert found == text
            assert 3 <= len(text) <= 8


@pytest.mark.parametrize("made", [strings, words])
def test_lines_follow_their_seed_and_stay_when_there_are_more(made: Any) -> None:
    once, again, more, other = made(), made(), made(train=40), made(line_seed=1)
    assert once.fingerprint() == again.fingerprint() != other.fingerprint()
    assert np.array_equal(once.split("train").truth(), more.split("train").truth()[:30])
    for sample in once.split("test"):
        assert np.array_equal(once.read(sample), more.read(sample))


def test_words_and_test_s_fonts_stand_in_one_split() -> None:
    known = vocabulary(0)
    assert len(set().union(*known.values())) == sum(map(len, known.values())) > 1000
    assert {split: round(len(each) / sum(map(len, known.values())), 2) for split, each in known.items()} == {
        "test": 0.2,
        "val": 0.15,
        "train": 0.65,
    }
    source = words()
    assert source.classes == ["", " ", *"abcdefghijklmnopqrstuvwxyz"]
    for split in FEW:
        said = [word for text in texts(source, split) for word in text.split()]
        assert set(said) <= set(known[split])
        assert len(said) > FEW[split], "some lines have two"
    fonts = _fonts(spec(Words, "dataset/words"))
    assert fonts["train"] == fonts["val"]
    families = {split: {ImageFont.truetype(path).getname()[0] for path in paths} for split, paths in fonts.items()}
    assert not families["train"] & families["test"]
    assert len(families["test"]) >= 2


def test_all_ink_of_a_line_is_on_it() -> None:
    """Longer lines of up to four words are written smaller: what they say does not run out of the canvas."""
    source = words(most=4)
    edges = [np.concatenate([source.read(each)[:, -1]]) for each in source.samples]
    assert max(map(np.max, edges)) < 0.9
    assert all(source.read(each).max() > 0.5 for each in source.samples)


def test_a_folder_of_fonts_is_used_and_what_has_no_letters_is_left_out(tmp_path: Path) -> None:
    import matplotlib

    own = Path(matplotlib.get_data_path(), "fonts", "ttf")
    (tmp_path / "bad.ttf").write_bytes(b"no font")
    (tmp_path / "STIXSizOneSymReg.ttf").write_bytes((own / "STIXSizOneSymReg.ttf").read_bytes())  # symbols, and no letters
    with pytest.raises(UserError, match=r"dataset\.fonts = .*holds no \.ttf or \.otf font that has the letters a to z"):
        words(fonts=str(tmp_path))
    (tmp_path / "DejaVuSans.ttf").write_bytes((own / "DejaVuSans.ttf").read_bytes())
    only = [str(tmp_path / "DejaVuSans.ttf")]
    assert _fonts(spec(Words, "dataset/words", fonts=str(tmp_path))) == {"train": only, "val": only, "test": only}


@pytest.mark.parametrize(
    ("kind", "place", "changed", "told"),
    [
        (DigitStrings, "dataset/digit_strings", {"shortest": 9}, r"dataset\.shortest = 9: at most longest \(8\)"),
        (DigitStrings, "dataset/digit_strings", {"folds": 5}, r"dataset\.folds = 5: lines are made for each split"),
        (DigitStrings, "dataset/digit_strings", {"per_class": 5}, r"dataset\.per_class = 5"),
        (Words, "dataset/words", {"fonts": "/no/such"}, r"dataset\.fonts = /no/such: no such folder"),
    ],
)
def test_wrong_values_are_refused(kind: type[Lines], place: str, changed: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        spec(kind, place, **changed).check()


def test_every_key_has_a_comment() -> None:
    places = {"dataset/digit_strings": DigitStrings, "dataset/words": Words, "model/crnn": Crnn, "head/ctc": Ctc, "task/ocr": Ocr}
    for place, kind in places.items():
        lines = (CONF / f"{place}.yaml").read_text().splitlines()
        assert all(" # " in line for line in lines if line[0] != "#" and not line.startswith("name:")), place
        assert spec(kind, place).name == place.partition("/")[2]


def columns(logits: Tensor) -> Tensor:
    """[b, T, o] -> what makes a `CTC` whose layer is the identity say these logits"""
    return torch.cat([logits, torch.ones_like(logits[..., :1])], -1)


def reader(characters: int) -> CTC:
    head = CTC(characters + 1, characters, 0.0).eval()
    with torch.no_grad():
        head.linear.weight.copy_(torch.eye(characters))
        head.linear.bias.zero_()
    return head


def collapsed(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(each for each, _ in itertools.groupby(path) if each)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.lists(st.integers(1, 2), max_size=3), st.integers(1, 5))
def test_ctc_sums_over_all_paths_that_say_the_text(seed: int, text: list[int], steps: int) -> None:
    logits = torch.randn(1, steps, 3, generator=torch.Generator().manual_seed(seed))
    p = logits[0].double().softmax(-1)
    paths = itertools.product(range(3), repeat=steps)
    said = sum(math.prod(float(p[t, c]) for t, c in enumerate(path)) for path in paths if collapsed(path) == tuple(text))
    truth = torch.tensor([[[*text, *[0] * (4 - len(text))]]])
    loss = float(reader(3).losses(columns(logits), truth, torch.zeros(1, dtype=torch.int64)).detach())
    assert loss == pytest.approx(-math.log(said) if said else 0.0, abs=1e-4)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=5))
def test_what_is_read_is_the_path_without_repetitions_and_blanks(paths: list[list[int]]) -> None:
    said = reader(4)(columns(torch.nn.functional.one_hot(torch.tensor(paths), 4).float()))
    assert said.shape == (len(paths), 6)
    assert said.dtype == torch.float32
    for row, path in zip(said.long().tolist(), paths, strict=True):
        text = list(collapsed(tuple(path)))
        assert row == text + [0] * (6 - len(text))


def test_a_line_s_loss_is_its_own_whatever_else_is_in_the_batch() -> None:
    head = reader(4).train()
    x = columns(torch.randn(5, 6, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
    truth = torch.tensor([[[1, 2, 0]], [[3, 3, 3]], [[0, 0, 0]], [[2, 0, 0]], [[1, 1, 1]]])
    seeds = torch.zeros(5, dtype=torch.int64)
    with streams.seeded("test"):
        streams.place(head, (0,), 5, torch.arange(5))
        whole = head.losses(x, truth, seeds)
        alone = torch.cat([head.losses(x[i : i + 1], truth[i : i + 1], seeds[:1]) for i in range(5)])
    assert torch.allclose(whole, alone, atol=1e-5)
    whole.sum().backward()
    assert x.grad is not None
    assert (x.grad.abs().sum((1, 2)) > 0).all()


def test_columns_that_are_not_there_say_nothing() -> None:
    x = columns(torch.nn.functional.one_hot(torch.tensor([[1, 2, 3, 1]]), 4).float() * 9)
    x[:, 2:, -1] = 0
    assert reader(4)(x).tolist() == [[1, 2, 0, 0]]
    short = reader(4).losses(x[:, :2], torch.tensor([[[1, 2]]]), torch.zeros(1, dtype=torch.int64))
    assert torch.allclose(reader(4).losses(x, torch.tensor([[[1, 2]]]), torch.zeros(1, dtype=torch.int64)), short)


def test_error_rates_are_edits_in_parts_of_the_true_length() -> None:
    names = ["", " ", *"abc"]

    def of(*lines: str) -> Tensor:
        return torch.tensor([[names.index(each) for each in line] + [0] * (7 - len(line)) for line in lines])

    task = Ocr(name="ocr")
    said, truth = of("ab c", "cab", "").float(), of("ab cc", "ab", "b")[:, None]
    meters = task.meters(5)
    assert tuple(meters) == task.METRICS
    for first, last in ((0, 1), (1, 1), (1, 3)):  # of no rows too
        for meter in meters.values():
            meter.update(*task.judged(said[first:last], truth[first:last], None))
    assert float(meters["cer"].compute()) == pytest.approx((1 + 1 + 1) / 8)
    assert float(meters["wer"].compute()) == pytest.approx((1 + 1 + 1) / 4)
    assert task.answers(said, names) == ["ab c", "cab", ""]
    assert task.truths(truth, names) == ["ab cc", "ab", "b"]
    assert spelt(of("a b"))[0].count(" ") == 1


def net(shape: tuple[int, ...], classes: int = 12, **changed: Any) -> Chain:
    with streams.seeded(0, "test"):
        backbone = spec(Crnn, "model/crnn", **({"width": 4, "units": 6} | changed)).build_for(
            {"kind": "array", "shape": list(shape), "tokens": 0}
        )
        entered = tuple(backbone.module.eval()(torch.rand(2, *shape)).shape[1:])
        head = spec(Ctc, "head/ctc").build_for(entered, [""] * classes)
        return Chain(backbone, head, torch.rand(3, *shape))


@pytest.mark.parametrize(
    ("changed", "columns"), [({}, 46), ({"halvings": 2}, 23), ({"halvings": 0, "depth": 2}, 92), ({"depth": 7, "layers": 2}, 46)]
)
def test_every_stage_is_a_cut_and_gives_the_whole_net_s_answer(changed: dict[str, int], columns: int) -> None:
    chain = net((16, 92), **changed)
    depth, layers = changed.get("depth", 3), changed.get("layers", 1)
    assert chain.stages == (*(f"conv{i + 1}" for i in range(depth)), *(f"lstm{i + 1}" for i in range(layers)), "head")
    x = torch.rand(4, 16, 92, generator=torch.Generator().manual_seed(0))
    chain.eval()
    whole = chain(x)
    assert whole.shape == (4, columns)
    for stage in chain.stages[1:]:
        chain.prove(stage, x)
        entered = chain(x, stop=stage)
        assert torch.equal(chain(entered, start=stage), whole)
    entered = chain(x, stop="head")
    assert entered.shape == (4, columns, 13)
    assert (entered[..., -1] == 1).all()


def test_a_line_with_too_few_columns_for_its_text_is_refused() -> None:
    words = ["task=ocr", "dataset=digit_strings", "dataset.train=40", "dataset.val=5", "dataset.test=5", "freeze=none"]
    sweep.plan(config.Composer().jobs(words, multirun=False))
    with pytest.raises(UserError, match=r"model\.halvings = 4: a line needs \d+ columns, and 5 are left of its 92 px"):
        sweep.plan(config.Composer().jobs([*words, "model.halvings=4"], multirun=False))


def test_shapes_that_are_no_lines_are_refused() -> None:
    with pytest.raises(UserError, match=r"model = crnn: it takes lines \[h, w\]"):
        spec(Crnn, "model/crnn").build_for({"kind": "array", "shape": [3, 16, 92], "tokens": 0})
    with pytest.raises(UserError, match=r"head = ctc: it reads columns, and this net gives \[128\]; model=crnn"):
        spec(Ctc, "head/ctc").build_for((128,), ["", "a"])
    assert [problem.key for problem in spec(Crnn, "model/crnn").unfit("class")] == ["name"]


def test_a_line_is_learnt() -> None:
    source = strings(train=1, longest=4)
    chain = net(source.shape or (), width=8, units=32, layers=1).train()
    x = torch.stack([torch.from_numpy(source.read(each)) for each in source.split("train")])
    truth, row = torch.from_numpy(source.split("train").truth()), torch.zeros(1, dtype=torch.int64)
    optimizer = torch.optim.Adam(chain.parameters(), lr=1e-2)
    for step in range(160):
        streams.place(chain, (step,), 1, row)
        loss = chain.head.losses(chain(x, stop="head"), truth, row).mean()  # type: ignore[operator]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 1
    task = Ocr(name="ocr")
    assert task.answers(chain(x), source.classes) == task.truths(truth, source.classes)
