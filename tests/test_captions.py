"""Captions and tags as sequences: words are counted on train, the beam finds what exhaustive search finds, and each sample learns alone."""

from __future__ import annotations

import csv
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from regraft import vocabulary
from regraft.captioning import Captioner, Decoder, Tagger
from regraft.datasets import captioned, clipart
from regraft.errors import UserError
from regraft.heads import Captions, Tags
from regraft.registry import parse
from regraft.report import looks
from regraft.vocabulary import OUTSIDE, SPECIAL, UNKNOWN

CONF = Path(__file__).parent.parent / "conf"
ENTRIES = {
    "dataset/clipart_titles": captioned.ClipartTitles,
    "dataset/clipart_tags": captioned.ClipartTags,
    "dataset/coco_captions": captioned.CocoCaptions,
    "dataset/captions": captioned.Captions,
    "head/captioner": Captions,
    "head/tagger": Tags,
}
FREE = (4, 5, 6)  # the words that may be said, of a vocabulary of 7

pytestmark = pytest.mark.usefixtures("one_thread")


def spec_of(entry: str, **changed):
    group, name = entry.split("/")
    return parse(ENTRIES[entry], yaml.safe_load((CONF / group / f"{name}.yaml").read_text()) | changed, group)


@pytest.mark.parametrize("entry", ENTRIES)
def test_each_entry_has_its_file_with_the_same_keys_each_with_a_comment(entry) -> None:
    text = (CONF / f"{entry}.yaml").read_text()
    values = yaml.safe_load(text)
    assert values.keys() == ENTRIES[entry].model_fields.keys()
    assert values["name"] == entry.rpartition("/")[2]
    assert [key for key in values.keys() - {"name"} if not re.search(rf"^{key}: .*\S +# \S+", text, re.MULTILINE)] == []


# Words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man's dog, running!", ["a", "man's", "dog", "running"]),
        ("Clipart by N. B. - book_01", ["clipart", "by", "n", "b", "book", "01"]),
        ("Garlic Toast (B and W)", ["garlic", "toast", "b", "and", "w"]),
        ("ﬁsh l’eau ÉCOLE", ["fish", "l'eau", "école"]),
        ("'quoted' -- ...", ["quoted"]),
        ("猫 2\n", ["猫", "2"]),
        ("!?", []),
    ],
)
def test_words_are_lower_case_without_punctuation(text, words) -> None:
    assert vocabulary.words(text) == words


def test_words_are_counted_on_train_alone_and_references_keep_the_others() -> None:
    train, test = [["a", "cat"], ["a", "dog"], ["a", "cat"]], [["zebra", "cat"], ["zebra", "dog"]]
    names = vocabulary.table(train, train + test, 2)
    assert names == [*SPECIAL, "a", "cat", OUTSIDE, "dog", "zebra"]
    assert vocabulary.known(names) == 6
    truth = vocabulary.encoded([[test[0], train[1]], [train[0]]], names)
    assert truth.dtype == np.int64
    assert truth.tolist() == [[[8, 5], [4, 7]], [[4, 5], [0, 0]]]
    assert vocabulary.known(vocabulary.table(train, train, 1)) == len(vocabulary.table(train, train, 1)) == 7


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=4), max_size=3), min_size=1, max_size=4), st.integers(1, 3))
def test_what_was_encoded_is_decoded(references, floor) -> None:
    every = [text for texts in references for text in texts]
    names = vocabulary.table(every[::2], every, floor)
    for texts, rows in zip(references, vocabulary.encoded(references, names), strict=True):
        assert [vocabulary.decoded(row, names) for row in rows][: len(texts)] == [" ".join(text) for text in texts]
        assert not rows[len(texts) :].any()


# The decoder


def decoder(attention: bool, dropout: float = 0.0, seed: int = 7) -> Decoder:
    """With weights so large that it has opinions, which differ from picture to picture."""
    torch.manual_seed(seed)
    made = Decoder((5, 2, 2) if attention else (5,), 7, 6, dropout, attention)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(4)
    return made


def pictures(attention: bool, count: int = 4) -> torch.Tensor:
    return torch.randn(count, 5, 2, 2, generator=torch.Generator().manual_seed(1))[..., *([slice(None)] * 2 if attention else [0, 0])]


@pytest.mark.parametrize("attention", [False, True])
def test_a_wide_beam_finds_what_exhaustive_search_finds(attention) -> None:
    made, x = decoder(attention), pictures(attention)
    places, captioner = made.places(x), Captioner(made, 7, 7, 3)
    texts = [text for length in range(4) for text in itertools.product(FREE, repeat=length)]  # 1 + 3 + 9 + 27
    rows = torch.tensor([[*text, *[0] * (3 - len(text))] for text in texts])
    words, total = made.search(places, 50, 3, captioner.never)
    assert len({tuple(row) for row in words[:, 0].tolist()}) >= 3, "the pictures differ in what is said of them"
    for each, found, chances in zip(places, words, total, strict=True):
        likely = -made.unlikelihood(each.expand(len(rows), -1, -1), rows)
        order = likely.argsort(descending=True)
        assert torch.equal(found[: len(rows)], rows[order])
        torch.testing.assert_close(chances[: len(rows)], likely[order], rtol=1e-4, atol=1e-4)
        assert not chances[len(rows) :].isfinite().any(), "there are no more"
    assert torch.equal(captioner(x).long(), captioner(x.flip(0)).flip(0).long())


@pytest.mark.parametrize("attention", [False, True])
def test_a_beam_of_one_says_the_likeliest_word_at_each_step(attention) -> None:
    made, x = decoder(attention), pictures(attention)
    said = Captioner(made, 7, 1, 4)(x)
    assert said.shape == (4, 4)
    assert said.dtype == torch.float32
    for each, row in zip(made.places(x), said.long().tolist(), strict=True):
        for at in range(4):
            before = torch.tensor([row[:at]], dtype=torch.int64)
            chances = made.follow(each[None], before)[0][0, -1]
            chances[[0, 1, 3]] = -torch.inf
            assert int(chances.argmax()) == (row[at] or 2)
            if not row[at]:
                break


@pytest.mark.parametrize("attention", [False, True])
def test_a_loss_is_its_samples_own(attention) -> None:
    """Neither others in the batch nor their order change it, dropout or not; another seed does."""
    x, truth = pictures(attention), torch.zeros(4, 3, 5, dtype=torch.int64)
    truth[:, 1, :2] = torch.tensor([4, 5])
    truth[1:, 2, :5] = 6
    seeds = torch.tensor([5, 6, 7, 8])
    for dropout in (0.0, 0.5):
        captioner = Captioner(decoder(attention, dropout), 7, 2, 3)
        whole = captioner.losses(x, truth, seeds)
        torch.testing.assert_close(
            torch.cat([captioner.losses(x[i : i + 1], truth[i : i + 1], seeds[i : i + 1]) for i in (0, 1, 2, 3)]), whole
        )
        torch.testing.assert_close(captioner.losses(x.flip(0), truth.flip(0), seeds.flip(0)).flip(0), whole)
        torch.testing.assert_close(captioner.losses(x, truth[..., [0, 1, 2, 3, 4]], seeds), whole)
        assert not torch.equal(captioner.losses(x, truth, seeds + 10), whole)
        plain = captioner.eval().losses(x, truth, seeds)
        assert torch.equal(captioner.losses(x, truth, seeds + 10), plain), "in eval mode nothing is random"


def test_one_reference_is_drawn_in_training_and_all_are_measured() -> None:
    captioner, x = Captioner(decoder(False), 7, 2, 3), pictures(False, 1)
    truth = torch.tensor([[[4, 5, 0], [0, 0, 0], [6, 0, 0]]])
    own = [captioner.decoder.unlikelihood(captioner.decoder.places(x), truth[:, row]).item() for row in (0, 2)]
    drawn = captioner.losses(x.expand(64, -1), truth.expand(64, -1, -1), torch.arange(64)).tolist()
    assert all(min(abs(each - one) for one in own) < 1e-5 for each in drawn), "that which is not there is never drawn"
    assert 16 < sum(abs(each - own[0]) < 1e-5 for each in drawn) < 48
    assert captioner.eval().losses(x, truth, torch.arange(1)).item() == pytest.approx(sum(own) / 2, rel=1e-5)


def test_a_loss_is_the_sum_over_words_and_the_end() -> None:
    captioner = Captioner(decoder(False), 7, 2, 3)
    with torch.no_grad():
        captioner.decoder.answer.weight.zero_()
        captioner.decoder.answer.bias.copy_(torch.tensor([0.0, 0, 1, 0, 2, 0, 0]))
    likely = captioner.decoder.answer.bias.log_softmax(0)
    found = captioner.losses(pictures(False, 2), torch.tensor([[[4, 4, 9]], [[5, 0, 0]]]), torch.arange(2))
    expected = -torch.stack([2 * likely[4] + likely[UNKNOWN] + likely[2], likely[5] + likely[2]])  # 9 stands outside: unknown
    torch.testing.assert_close(found, expected)


def test_dropout_keeps_its_part_and_scales_it() -> None:
    made = Decoder((5,), 7, 200, 0.25, False)
    _, kept = made.masks(torch.arange(20), 1, 5, torch.device("cpu"))
    assert kept.shape == (20, 5, 2, 200)
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert float(kept.mean()) == pytest.approx(1, abs=0.01)


def learn(head: torch.nn.Module, x: torch.Tensor, truth: torch.Tensor, steps: int) -> None:
    optimizer = torch.optim.Adam(head.parameters(), 0.02)
    for step in range(steps):
        optimizer.zero_grad()
        head.losses(x, truth, torch.arange(len(x)) + 1000 * step).mean().backward()
        optimizer.step()
    head.eval()


def test_attention_looks_where_the_word_is() -> None:
    """Two of four places hold a thing; both are told, in the order of their kinds: each word must be read off its own place."""
    random = np.random.default_rng(0)
    x, truth, where = torch.zeros(120, 5, 2, 2), torch.zeros(120, 1, 2, dtype=torch.int64), torch.zeros(120, 2, dtype=torch.int64)
    for sample in range(120):
        kinds, spots = np.sort(random.choice(3, 2, replace=False)), random.choice(4, 2, replace=False)
        for at, (kind, spot) in enumerate(zip(kinds, spots, strict=True)):
            x[sample, kind, spot // 2, spot % 2] = 3
            truth[sample, 0, at], where[sample, at] = kind + 4, spot
    torch.manual_seed(0)
    head = Captions(name="captioner", dropout=0.0, width=24, beam=2, length=3, attention=True).build_for((5, 2, 2), [*SPECIAL, *"abc"])
    learn(head, x[:80], truth[:80], 120)
    words, weights = head.looks(x[80:])
    assert words.shape == (40, 3)
    assert weights.shape == (40, 3, 2, 2)
    right = (words[:, :2] == truth[80:, 0]).all(1) & (words[:, 2] == 0)
    assert right.float().mean() > 0.9
    assert torch.equal(words, head(x[80:]).long())
    torch.testing.assert_close(weights.sum((2, 3)), (words > 0).float())
    looked = weights[right, :2].flatten(2).argmax(2)
    assert (looked == where[80:][right]).float().mean() > 0.75


@pytest.mark.parametrize("shape", [(5,), (5, 2, 2)])
def test_without_attention_the_picture_is_seen_once(shape) -> None:
    torch.manual_seed(0)
    names = [*SPECIAL, "a", "b", OUTSIDE, "c"]
    head = Captions(name="captioner", dropout=0.1, width=16, beam=3, length=4, attention=False).build_for(shape, names)
    x = torch.randn(6, *shape)
    truth = torch.tensor([[[4, 5, 4]], [[5, 0, 0]], [[4, 4, 0]], [[5, 5, 5]], [[4, 0, 0]], [[7, 5, 0]]])
    learn(head, x, truth, 100)
    said = head(x).long()
    assert torch.equal(said[:5, :3], truth[:5, 0])
    assert set(said[5].tolist()) <= {0, 4, 5}, "what is unknown is not said"
    assert len(head.never) == 6


# Tags


def test_a_tagger_tells_frequent_tags_first_and_knows_of_those_before() -> None:
    """Tags 0 and 1 exclude each other, by chance alone; tag 2 always comes with 1: the sequence can know what no tag knows for itself."""
    torch.manual_seed(0)
    head = Tags(name="tagger", dropout=0.0, width=16, beam=3, length=3).build(5, ["often", "other", "third"])
    x = torch.randn(200, 5)
    coin = torch.rand(200) < 0.6
    truth = torch.stack([coin, ~coin, ~coin], 1).float()
    learn(head, x.zero_(), truth, 60)
    words, total = head.decoder.search(head.decoder.places(x[:1]), 3, 3, head.never, once=True)
    assert words[0, :2].tolist() == [[4, 0, 0], [5, 6, 0]]
    assert total[0, :2].exp().tolist() == pytest.approx([float(coin.float().mean()), float((~coin).float().mean())], abs=0.05)
    # The third is certain after the other, and as likely as it.
    assert head(x[:1]).sigmoid()[0].tolist() == pytest.approx(truth.mean(0).tolist(), abs=0.05)


@pytest.mark.parametrize("beam", [1, 2, 40])
def test_a_tags_probability_is_summed_over_all_that_the_beam_has_followed(beam) -> None:
    head, x = Tagger(decoder(False), 3, 2, 2), pictures(False, 3)
    head.beam = beam
    places = head.decoder.places(x)
    paths, total = head.decoder.search(places, beam, 2, head.never, once=True)
    for row, each in enumerate(head(x).sigmoid()):
        followed = {
            tuple(path[:at]) for path, there in zip(paths[row].tolist(), total[row], strict=True) if there.isfinite() for at in range(3)
        }
        followed = {path for path in followed if 0 not in path}
        if beam == 40:
            assert followed == {path for length in range(3) for path in itertools.permutations(FREE, length)}
        expected = [0.0] * 3
        for path in followed:
            chances, _ = head.decoder.follow(places[row : row + 1], torch.tensor([path], dtype=torch.int64))
            before = sum(chances[0, at, word] for at, word in enumerate(path))
            for tag, word in enumerate(FREE):
                expected[tag] += 0 if word in path else (before + chances[0, len(path), word]).exp().item()
        assert each.tolist() == pytest.approx(expected, abs=1e-4)


def test_a_tagger_ranks_what_it_has_learnt_and_says_no_tag_twice() -> None:
    torch.manual_seed(0)
    half = torch.randn(300, 4)
    x, truth = torch.cat([half, -half], 1), (half > 0).float()
    head = Tags(name="tagger", dropout=0.1, width=24, beam=3, length=9).build(8, list("abcd"))
    assert head.length == 4
    learn(head, x[:200], truth[:200], 100)
    logits = head(x[200:])
    assert logits.shape == (100, 4)
    assert logits.isfinite().all()
    assert ((logits > 0) == truth[200:].bool()).float().mean() > 0.9
    words, _ = head.decoder.search(head.decoder.places(x[200:]), 3, 4, head.never, once=True)
    said = [[word for word in row if word] for row in words.flatten(0, 1).tolist()]
    assert all(len(set(row)) == len(row) for row in said)
    assert head.losses(x[:2], torch.zeros(2, 4), torch.arange(2)).isfinite().all(), "a picture may have no tag"


def test_a_tagger_orders_tags_as_the_dataset_does() -> None:
    head, truth = Tagger(decoder(False), 3, 2, 3), torch.tensor([[0.0, 1, 1], [1, 0, 1]])
    x = pictures(False, 2)
    expected = head.decoder.unlikelihood(head.decoder.places(x), torch.tensor([[5, 6], [4, 6]]))
    torch.testing.assert_close(head.losses(x, truth, torch.arange(2)), expected)


@pytest.mark.parametrize(
    ("entry", "shape", "changed", "told"),
    [
        ("head/captioner", (1280,), {"attention": True}, "head.attention = true: it looks at the places of a feature map"),
        ("head/captioner", (9, 4), {}, "it takes what a net of pictures gives"),
        ("head/tagger", (9, 4, 4), {}, "it takes features"),
    ],
)
def test_what_can_t_be_said_of_is_refused(entry, shape, changed, told) -> None:
    with pytest.raises(UserError, match=re.escape(told)):
        spec_of(entry, **changed).build_for(shape, [*SPECIAL, "a"])


# Data


def test_clipart_titles_and_tags_are_those_of_the_table(tmp_path) -> None:
    titles, rows = spec_of("dataset/clipart_titles").open(tmp_path), {row["file"]: row for row in clipart.rows()}
    assert titles.kind == "text"
    assert titles.sizes() == {"train": 573, "val": 208, "test": 210}
    for sample in (titles.samples[0], titles.samples[500]):
        assert vocabulary.decoded(sample.target[0], titles.classes).split() == vocabulary.words(rows[sample.id]["title"])
    counts = [sum(word in vocabulary.words(rows[s.id]["title"]) for s in titles.split("train")) for word in ("clipart", "penguin")]
    assert titles.classes.index("clipart") == 4
    assert counts[0] > 50
    known = titles.classes[4 : vocabulary.known(titles.classes)]
    assert len(known) == 211
    assert ("penguin" in known) == (counts[1] >= 2)

    tags = spec_of("dataset/clipart_tags").open(tmp_path)
    assert tags.kind == "tags"
    assert len(tags.classes) == 40
    assert tags.classes[:2] == ["food", "mammal"]
    held = tags.samples.truth()[[sample.split == "train" for sample in tags.samples]].sum(0)
    assert (np.diff(held) <= 0).all(), "frequent ones first"
    assert held.min() >= 10
    few = spec_of("dataset/clipart_tags", classes=["dog", "food"]).open(tmp_path)
    assert few.classes == ["dog", "food"]
    assert len(few.samples) == 991, "pictures without a tag stay"
    with pytest.raises(UserError, match="no such class; did you mean dog"):
        spec_of("dataset/clipart_tags", classes=["dogg", "food"]).open(tmp_path)
    with pytest.raises(UserError, match="no tag is that frequent; the most frequent one is on 1"):
        spec_of("dataset/clipart_tags", floor=500).open(tmp_path)
    with pytest.raises(UserError, match=r"dataset\.classes .*captions have no classes"):
        spec_of("dataset/clipart_titles", classes=["a", "b"]).open(tmp_path)


def draw(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(folder / name)


@pytest.fixture
def table(tmp_path):
    """Writes a csv; a.png to d.png are there."""
    draw(tmp_path, "a.png", "b.png", "c.png", "d.png")

    def write(*rows: tuple[str, ...], header=("file", "caption", "split"), **changed):
        with (tmp_path / "t.csv").open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
        return spec_of("dataset/captions", **{"path": str(tmp_path / "t.csv"), "split": "split", "floor": 1} | changed)

    return write


def test_a_picture_may_have_several_lines(table, tmp_path) -> None:
    rows = [("a.png", "A red cat.", "train"), ("b.png", "a dog", "val"), ("c.png", "a zebra", "test"), ("a.png", "cat", "train")]
    source = table(*rows).open(tmp_path)
    assert source.classes == [*SPECIAL, "cat", "a", "red", OUTSIDE, "dog", "zebra"]
    assert [sample.target.tolist() for sample in source.samples] == [
        [[5, 6, 4], [4, 0, 0]],
        [[5, 8, 0], [0, 0, 0]],
        [[5, 9, 0], [0, 0, 0]],
    ]
    assert source.samples.truth().shape == (3, 2, 3)
    assert source.read(source.samples[0]).shape == (4, 4, 3)
    short = table(*rows, length=2).open(tmp_path)
    assert short.samples[0].target.tolist() == [[4, 6], [5, 0]], "which words are frequent is counted on what is kept"
    assert short.remarks == ["1 captions of train are cut to their first 2 words (dataset.length)"]
    rows[2] = ("c.png", "a zebra on a hill", "test")
    assert table(*rows, length=2).open(tmp_path).samples.truth().shape == (3, 2, 5), "what is measured by is whole"
    made = table(*((f"{name}.png", f"the {name}", "") for name in "abcd"), split=None, val=0.25, test=0.25).open(tmp_path)
    assert made.sizes() == {"train": 2, "val": 1, "test": 1}


@pytest.mark.parametrize(
    ("row", "changed", "told"),
    [
        (("x.png", "a cat", "train"), {}, r"t.csv:3 = x.png: no such file in .*; did you mean"),
        (("../x.png", "a cat", "train"), {}, r"t.csv:3 = \.\./x.png: lies outside of"),
        (("/etc/passwd", "a cat", "train"), {}, r"t.csv:3 = /etc/passwd: lies outside of"),
        (("", "a cat", "train"), {}, r"t.csv:3: there is no file name"),
        (("b.png", "...", "train"), {}, r"t.csv:3 = ...: the caption has no words"),
        (("a.png", "a cat", "test"), {}, r"t.csv:3 = a.png: is in another split or group at .*t.csv:2"),
        (("b.png", "a cat", "tset"), {}, r"t.csv:3 = tset: is no split; did you mean test"),
        (("b.png", "a cat"), {}, r"t.csv:3: has 2 fields where the header has 3"),
        (("b.png", "a cat", "train"), {"caption": "captoin"}, r"t.csv:1: has no column captoin \(dataset.caption\); did you mean caption"),
        (
            ("b.png", "a cat", "train"),
            {"floor": 9, "val": 0.0, "test": 0.0},
            r"dataset.floor = 9: no word is in train's captions that often",
        ),
        (("b.png", "a cat", "train"), {"path": "nowhere.csv"}, r"dataset.path = nowhere.csv: no such file"),
        (("b.png", "a cat", "train"), {"val": 0.6, "test": 0.6}, r"dataset.val = 0.6: with test = 0.6 nothing is left"),
    ],
)
def test_lines_that_can_t_be_used_are_told(table, tmp_path, row, changed, told) -> None:
    with pytest.raises(UserError, match=told):
        table(("a.png", "a dog", "train"), row, **changed).open(tmp_path)


COCO = {
    "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}, {"id": 3, "file_name": "c.png"}],
    "annotations": [
        {"image_id": 1, "caption": "A cat."},
        {"image_id": 2, "caption": "A dog runs."},
        {"image_id": 1, "caption": "One cat"},
    ],
}


def coco(folder: Path, name: str, content: object, **changed):
    (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return spec_of("dataset/coco_captions", **{"path": str(folder / f"{name}.json"), "floor": 1, "val": 0.0, "test": 0.0} | changed)


def test_cocos_json_is_read_with_its_test_set(tmp_path) -> None:
    draw(tmp_path, "train/a.png", "train/b.png", "train/c.png", "val/a.png")
    held = {"images": [{"id": 9, "file_name": "a.png"}], "annotations": [{"image_id": 9, "caption": "a zebra"}]}
    (tmp_path / "held.json").write_text(json.dumps(held))
    test = {"test_path": str(tmp_path / "held.json"), "test_root": str(tmp_path / "val")}
    source = coco(tmp_path, "train", COCO, root=str(tmp_path / "train"), **test).open(tmp_path)
    assert [(sample.id, sample.split) for sample in source.samples] == [
        ("train/a.png", "train"),
        ("train/b.png", "train"),
        ("val/a.png", "test"),
    ]
    assert source.classes == [*SPECIAL, "a", "cat", "dog", "one", "runs", OUTSIDE, "zebra"]
    assert source.samples.truth().shape == (3, 2, 3)
    assert source.remarks == ["1 pictures of train.json have no caption and are left out"]
    alone = coco(tmp_path, "train", COCO, root=str(tmp_path / "train"), val=0.4).open(tmp_path)
    assert alone.sizes() == {"train": 1, "val": 1, "test": 0}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{\n oops", r"x.json:2: is no sound json"),
        ("[" * 100_000, r"x.json: is no json of captions"),
        ([], r"x.json: has no list called images"),
        (COCO | {"annotations": {}}, r"x.json: has no list called annotations"),
        (COCO | {"images": [{"id": 1}]}, r"x.json: images\[0\]: file_name is missing"),
        (COCO | {"images": COCO["images"] * 2}, r"x.json: images\[3\] = 1: another picture has this id"),
        (COCO | {"images": [*COCO["images"], {"id": 4, "file_name": "a.png"}]}, r"x.json: images = a.png: two pictures"),
        (COCO | {"annotations": [{"image_id": 7, "caption": "a"}]}, r"x.json: annotations\[0\] = 7: no picture of images"),
        (COCO | {"annotations": [{"image_id": True, "caption": "a"}]}, r"x.json: annotations\[0\]: image_id is missing"),
        (COCO | {"annotations": [{"image_id": 1, "caption": "?"}]}, r"x.json: annotations\[0\] = \?: the caption has no words"),
        (
            {"images": [{"id": 1, "file_name": "../../x.png"}], "annotations": [{"image_id": 1, "caption": "a"}]},
            r"x.json: annotations\[0\] = ../../x.png: lies outside",
        ),
    ],
)
def test_json_that_can_t_be_used_is_told(tmp_path, content, told) -> None:
    draw(tmp_path, "a.png", "b.png", "c.png")
    with pytest.raises(UserError, match=told):
        coco(tmp_path, "x", content).open(tmp_path)


# Where it looked


def test_the_sheet_is_red_where_it_looked() -> None:
    class Head:
        def looks(self, x):
            weights = torch.zeros(2, 3, 2, 2)
            weights[0, 0, 0, 1] = weights[0, 1, 1, 0] = 1
            return torch.tensor([[4, 5, 0], [0, 0, 0]]), weights

    whites = [np.full((8, 8, 3), 255, np.uint8)] * 2
    rows = looks.looked(Head(), torch.zeros(2, 5, 2, 2), whites, ["a red cat", "nothing"], [*SPECIAL, "red", "cat"])
    assert [row.words for row in rows] == [["red", "cat"], []]
    sheet = np.asarray(looks.sheet(rows)).astype(int)
    red = (sheet[..., 0] - sheet[..., 2] > 100)[looks.HEAD : looks.HEAD + looks.BOX]
    found = []
    for at in range(5):
        left = looks.MARGIN + at * looks.PITCH
        half = looks.BOX // 2
        tile = red[:, left : left + looks.BOX]
        found.append([[int(tile[:half, :half].sum() > 500), int(tile[:half, half:].sum() > 500)],
                      [int(tile[half:, :half].sum() > 500), int(tile[half:, half:].sum() > 500)]])  # fmt: skip
    assert found == [[[0, 0], [0, 0]], [[0, 1], [0, 0]], [[0, 0], [1, 0]], [[0, 0], [0, 0]], [[0, 0], [0, 0]]]
    assert looks.sheet([]).size == (760, 200)
