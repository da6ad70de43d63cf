"""Captions are measured as the COCO caption toolkit measures them, a worked example by hand included; thresholds are the best there are."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.tasks import spoken
from regraft.tasks.caption import Caption
from regraft.tasks.thresholds import thresholds

SAID = ["a man rides a brown horse on the beach", "two dogs play", "a red bus", "a plate of food on a table with a fork"]
REFERENCES = [
    ["a man riding a horse on a beach", "a person rides a brown horse along the sea"],
    ["two dogs play with a ball in the grass", "a pair of dogs run after a ball", "two brown dogs play"],
    ["a bus that is red drives down the street", "a red double decker bus"],
    ["a plate of food on a table", "food on a white plate with a fork on a table"],
]
# what pycocoevalcap 1.2 gives for these
CIDER = [2.879206822439388, 2.078985172024706, 1.6581914154016275, 5.674061234861677]
ROUGE_L = 0.7793278497847769
BLEU = [0.8521437888980399, 0.743812079161307, 0.6296187336419646, 0.5348021134539512]

TEXTS = st.lists(st.integers(1, 5), min_size=1, max_size=6).map(tuple)
PICTURES = st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3)), min_size=2, max_size=6)


def numbers(text: str) -> tuple[int, ...]:
    every = sorted({word for said, texts in zip(SAID, REFERENCES, strict=True) for each in (said, *texts) for word in each.split()})
    known = {word: number for number, word in enumerate(every, 1)}
    return tuple(known[word] for word in text.split())


def padded(rows: list[tuple[int, ...]], length: int) -> torch.Tensor:
    return torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])


def test_cider_is_what_the_papers_equations_give_by_hand() -> None:
    """Of two pictures an n-gram that only one has weighs ln 2, and one that both have weighs nothing."""
    a, cat, dog = 1, 2, 3
    assert spoken.cider([(a, cat), (a, cat)], [[(a, cat)], [(a, dog)]]) == pytest.approx(
        [5, 0]
    )  # 1- and 2-grams are right, of four lengths
    # Said three times, a word has the vector (3 ln 2), its reference (ln 2): clipped, 1 of 3. Two words too many: exp(-4 / 72).
    assert spoken.cider([(cat,) * 3, ()], [[(cat,)], [(dog,)]]) == pytest.approx([10 / 4 / 3 * math.exp(-4 / 72), 0])
    # Two references count as their mean: cosines 1 and 1 / sqrt(2) of 1-grams; (cat, dog) is no 2-gram of what was said.
    found = spoken.cider([(cat,), (a,)], [[(cat,), (cat, dog)], [(a,)]])[0]
    assert found == pytest.approx(10 / 2 / 4 * (1 + math.exp(-1 / 72) / math.sqrt(2)))


def test_all_metrics_equal_the_toolkits() -> None:
    said, references = [numbers(each) for each in SAID], [[numbers(each) for each in texts] for texts in REFERENCES]
    assert spoken.cider(said, references) == pytest.approx(CIDER, rel=1e-9)
    assert sum(map(spoken.rouge_l, said, references)) / 4 == pytest.approx(ROUGE_L, rel=1e-9)
    assert [spoken.bleu(said, references, longest) for longest in (1, 2, 3, 4)] == pytest.approx(BLEU, rel=1e-5)


def test_of_two_references_as_close_bleu_takes_the_shorter_in_any_order() -> None:
    long, short = (1, 2, 3, 4), (1, 2)
    brief = spoken.bleu([(1, 2, 3)], [[long, short]], 1)
    assert brief == spoken.bleu([(1, 2, 3)], [[short, long]], 1) == 1, "against the longer it would be too short"


def test_a_split_measures_alike_in_any_batches() -> None:
    said = padded([numbers(each) for each in SAID], 12).float()
    references = torch.stack(
        [torch.cat([padded([numbers(each) for each in texts], 11), torch.zeros(3 - len(texts), 11)]) for texts in REFERENCES]
    )
    task = Caption(name="caption")
    expected = {"cider": sum(CIDER) / 4, "rouge_l": ROUGE_L, **{f"bleu{n}": value for n, value in enumerate(BLEU, 1)}}
    assert tuple(task.meters(99)) == task.METRICS
    for sizes in ([4], [1, 3], [0, 2, 0, 2]):
        for name, meter in task.meters(99).items():
            for some, truth in zip(said.split(sizes), references.split(sizes), strict=True):
                meter.update(*task.judged(some, truth, None))
            assert float(meter.compute()) == pytest.approx(expected[name], rel=1e-5), (name, sizes)
    nothing = task.meters(99)
    for meter in nothing.values():
        meter.update(said[:0], references[:0])
    assert all(math.isnan(meter.compute()) for meter in nothing.values())


@settings(max_examples=50, deadline=None)
@given(PICTURES, st.randoms())
def test_cider_and_bleu_do_not_hang_on_the_order_of_pictures(pictures, random) -> None:
    shuffled = random.sample(pictures, len(pictures))
    one, other = ([list(each) for each in zip(*some, strict=True)] for some in (pictures, shuffled))
    assert sum(spoken.cider(*one)) == pytest.approx(sum(spoken.cider(*other)))
    assert spoken.bleu(*one, 2) == pytest.approx(spoken.bleu(*other, 2))


@settings(max_examples=50, deadline=None)
@given(PICTURES, st.lists(TEXTS, min_size=6, max_size=6))
def test_no_caption_scores_higher_than_the_reference_that_all_agree_on(pictures, others) -> None:
    references = [[texts[0]] * len(texts) for _, texts in pictures]
    best = spoken.cider([texts[0] for texts in references], references)
    for said in ([caption for caption, _ in pictures], others[: len(pictures)]):
        assert all(0 <= score <= most + 1e-9 <= 10 + 1e-8 for score, most in zip(spoken.cider(said, references), best, strict=True))


@settings(max_examples=60, deadline=None)
@given(TEXTS, TEXTS)
def test_rouge_l_finds_the_longest_common_subsequence(one, other) -> None:
    inside = {each for length in range(len(other) + 1) for each in combinations(other, length)}
    longest = max(length for length in range(len(one) + 1) if any(each in inside for each in combinations(one, length)))
    precision, recall = longest / len(one), longest / len(other)
    expected = (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision) if longest else 0
    assert spoken.rouge_l(one, [other]) == pytest.approx(expected)


def test_answers_are_words_and_references_are_told_side_by_side() -> None:
    names = ["", "<begin>", "<end>", "<unknown>", "red", "bus"]
    assert Caption(name="caption").answers(torch.tensor([[4.0, 5.0, 0.0], [0.0, 0.0, 0.0]]), names) == ["red bus", ""]
    assert Caption(name="caption").truths(torch.tensor([[[4, 5], [5, 0], [0, 0]]]), names) == ["red bus|bus"]


def f1(said: torch.Tensor, truth: torch.Tensor) -> float:
    return float(2 * (said & truth).sum() / (said.sum() + truth.sum()).clamp(min=1))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=12))
def test_no_threshold_gives_a_higher_f1(rows) -> None:
    scores, truth = torch.tensor([[level / 10] for level, _ in rows]), torch.tensor([[held] for _, held in rows])
    [found] = thresholds(scores, truth.float())
    if not truth.any():
        assert found == 0.5
        return
    best = max(f1(scores >= level, truth) for level in (*scores.unique(), 2.0))
    assert f1(scores >= found, truth) == pytest.approx(best)
    alike = [level for level in scores.unique() if f1(scores >= level, truth) == pytest.approx(best)]
    assert (scores >= found).sum() == (scores >= max(alike)).sum(), "of equally good ones the highest"


def test_each_tag_has_its_own_threshold_between_the_scores_that_it_parts() -> None:
    scores = torch.tensor([[0.9, 0.2, 0.5], [0.8, 0.1, 0.5], [0.1, 0.05, 0.5], [0.3, 0.01, 0.4]])
    truth = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0]])
    torch.testing.assert_close(thresholds(scores, truth), torch.tensor([0.55, 0.075, 0.5]))
    close = torch.tensor([[0.1], [0.1]]).nextafter(torch.tensor([[1.0], [0.0]]))  # between these two lies one float
    for held in ([[1], [0]], [[1], [1]]):
        assert ((close >= thresholds(close, torch.tensor(held))) == torch.tensor(held).bool()).all()
    assert thresholds(torch.zeros(0, 3), torch.zeros(0, 3)).tolist() == [0.5] * 3
