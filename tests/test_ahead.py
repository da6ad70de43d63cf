"""`regraft check` tells what is to come: groups, passes, disk and time, by what was measured here before."""

from __future__ import annotations

import pytest

from regraft import ahead, config, outlook, sweep

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = ["dataset.per_class=5", "data.size=40", "trainer.max_epochs=1", "optimizer.lr=1e-3,1e-2"]


def told(words: list[str], tmp_path) -> tuple[str, outlook.Outlook]:
    planned = sweep.plan(config.Composer().jobs([*words, f"hydra.sweep.dir={tmp_path / 'ahead'}"], multirun=True))
    found = sweep.ahead(planned)
    return "\n".join(ahead.lines(planned, sweep.groups(planned), found, str)), found


def test_what_never_ran_here_is_told_as_unknown_and_then_known(swept, tmp_path):
    words = [*SMALL, f"cache.dir={tmp_path / 'cache'}"]
    before, found = told(words, tmp_path)
    assert "group 1: 2 runs as one batch of heads" in before
    assert "known once one like it has run here" in before
    assert (found.launches, found.runs, found.unknown) == (1, 2, 1)
    [run, _] = swept(words)
    sizes = run.record["data"]["sizes"]
    after, found = told([*words, "head.dropout=0.5,0.6"], tmp_path)
    assert (found.unknown, found.bytes, found.there) == (0, 0, sum(sizes.values()))
    assert "none, all rows are there" in after
    assert "disk: 0.0 MB" in after
    assert found.seconds > 0


def test_rows_that_are_missing_are_counted_once_however_many_groups_want_them(swept, tmp_path):
    words = [*SMALL, f"cache.dir={tmp_path / 'cache'}"]
    small = swept(words)[0].record["data"]["sizes"]
    more = [word.replace("per_class=5", "per_class=8") for word in words]
    _, found = told([*more, "head=linear,mlp"], tmp_path)
    planned = sweep.plan(config.Composer().jobs([*more, f"hydra.sweep.dir={tmp_path / 'other'}"], multirun=True))
    large = planned[0].data["sizes"]
    assert found.launches == 2
    assert sum(found.passes.values()) == large["train"] - small["train"], "val and test are the same pictures"
    assert found.bytes == sum(found.passes.values()) * 1280 * 4


def test_runs_alone_are_told_with_the_reason(tmp_path):
    text, _ = told(["freeze=backbone,last", "optimizer.lr=1e-3,1e-2", "trainer.max_epochs=1"], tmp_path)
    assert "group 1: 2 runs as one batch of heads" in text
    assert "2 runs alone: more than the head trains" in text


def test_what_was_noted_and_is_damaged_is_unknown_again(swept, tmp_path):
    words = [*SMALL, f"cache.dir={tmp_path / 'cache'}"]
    swept(words)
    for text in ("", "{", "[]", '{"passes": [{}], "spent": {}}', '{"passes": [], "spent": {"start": NaN}}'):
        [note] = (tmp_path / "cache" / "outlook").glob("*.json")
        note.write_text(text)
        assert told([*words, "seed=5"], tmp_path)[1].unknown == 1
