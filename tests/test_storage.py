"""`regraft cache`: what is stored is shown, removed where nobody uses it, and compared with its checksums."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from regraft import cli
from regraft.cache import Store, fill
from regraft.eviction import size, stores_in
from regraft.files import digest
from regraft.locks import Lock

KEYS = [hashlib.sha256(bytes([number])).hexdigest() for number in range(4)]
ABOUT = {
    "transform": {"size": 128, "fit": "crop"},
    "view": [1, True],
    "net": {"name": "resnet", "depth": 18, "weights": "imagenet", "trained": True, "more": None},
    "boundary": "layer4",
    "dtype": "bfloat16",
}


def stored(folder: Path, description: dict, used: float | None = None, rows: int = 4) -> Path:
    """A store that was last used so many seconds ago."""
    store = Store(folder, description)
    fill([store], KEYS[:rows], lambda positions, _: iter([[torch.ones(len(positions), 8, dtype=torch.bfloat16)]]))
    if used is not None:
        os.utime(store.folder / "used", (time.time() - used,) * 2)
    return store.folder


def run(*words: object) -> int:
    return cli.main(["cache", *map(str, words)])


def snapshot(folder: Path) -> dict[str, tuple[bytes, float]]:
    return {str(path): (path.read_bytes(), path.stat().st_mtime) for path in folder.rglob("*") if path.is_file()}


def test_list_shows_each_store_and_what_else_takes_room(tmp_path, capsys):
    older, newer = stored(tmp_path, ABOUT, used=900), stored(tmp_path, {"view": {"drawn": 3, "augmentation": {}}}, used=30, rows=2)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "a.safetensors").write_bytes(bytes(2_500_000))
    before = snapshot(tmp_path)
    with Lock(older / "used", alone=False):
        assert run("list", "--dir", tmp_path, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert run("list", "--dir", tmp_path) == 0
    first, second = found["stores"]
    assert (first["key"], first["view"], first["net"], first["rows"], first["in_use"]) == (newer.name, "draw 3", "-", 2, False)
    assert {name: second[name] for name in ("net", "boundary", "view", "size", "dtype", "rows", "in_use")} == {
        "net": "resnet 18 imagenet",
        "boundary": "layer4",
        "view": "mirrored 90 degrees",
        "size": "128",
        "dtype": "bfloat16",
        "rows": 4,
        "in_use": True,
    }
    assert found["others"] == {"weights": 2_500_000}
    assert found["bytes"] == sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    table = capsys.readouterr().out
    assert all(word in table for word in ("resnet 18 imagenet", "in use", "weights: 2.5 MB", "2.5 MB in all"))
    assert snapshot(tmp_path) == before, "to look changes nothing, not even when a store was used"


def test_an_empty_folder_and_none(tmp_path, capsys):
    assert run("list", "--dir", tmp_path) == 0
    assert "no activations are stored" in capsys.readouterr().out
    assert [run(action, "--dir", tmp_path / "not") for action in ("list", "verify")] == [2, 2]
    assert "no such folder" in capsys.readouterr().err


def test_without_a_folder_it_is_the_users_own(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert run("list", "--json") == 0
    assert json.loads(capsys.readouterr().out)["folder"] == str(tmp_path / "regraft")


STRANGE = {
    "escapes": {"net": {"name": "\x1b[31mred\x1b]0;title\x07\n\r"}, "boundary": "\u202eevil", "view": "[bold]markup[/bold] [/nothing]"},
    "long": {"net": {"name": "n" * 10_000}, "boundary": ["x"] * 5000, "dtype": {"deep": [[[[]]]]}},
    "other types": {"net": 3, "transform": [], "boundary": None, "view": [True, 1], "dtype": 1.5},
    "numbers": {"view": [10**30, False], "transform": {"size": -1}},
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_strangers_description_is_shown_and_never_obeyed(tmp_path, capsys, name):
    folder = tmp_path / "activations" / digest(STRANGE[name])[:32]
    folder.mkdir(parents=True)
    (folder / "store.json").write_text(json.dumps(STRANGE[name]))
    assert run("list", "--dir", tmp_path) == run("prune", "--all", "--dry-run", "--dir", tmp_path) == 0
    shown = capsys.readouterr().out
    assert all(letter.isprintable() or letter == "\n" for letter in shown)
    assert "n" * 41 not in shown
    assert run("list", "--json", "--dir", tmp_path) == 0
    assert all(len(str(value)) <= 40 for value in json.loads(capsys.readouterr().out)["stores"][0].values())


@pytest.mark.parametrize("text", ["", "[]", "[" * 50_000, "\x00", '{"net": "another"}', '{"a":' + " " * 2**21 + "1}"])
def test_a_description_that_is_not_the_stores_counts_for_nothing(tmp_path, capsys, text):
    (stored(tmp_path, ABOUT) / "store.json").write_text(text)
    assert run("list", "--dir", tmp_path, "--json") == 0
    [shelf] = json.loads(capsys.readouterr().out)["stores"]
    assert (shelf["net"], shelf["rows"]) == ("-", 4)
    assert run("verify", "--dir", tmp_path) == 1
    assert "store.json: it is not what was written; set aside" in capsys.readouterr().out
    assert run("verify", "--dir", tmp_path) == 0


def test_prune_takes_the_longest_unused_first_and_never_what_is_in_use(tmp_path, capsys):
    folders = [stored(tmp_path, {"number": number}, used=100_000 * (5 - number)) for number in range(5)]
    each = size(folders[0])
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "a").write_bytes(bytes(10 * each))
    with Lock(folders[0] / "used", alone=False):
        before = snapshot(tmp_path)
        assert run("prune", "--max-gb", 3.5 * each / 1e9, "--dry-run", "--dir", tmp_path) == 0
        assert snapshot(tmp_path) == before
        assert run("prune", "--max-gb", 3.5 * each / 1e9, "--dir", tmp_path) == 0
        assert stores_in(tmp_path) == sorted([folders[0], *folders[3:]])
        assert run("prune", "--unused-days", 3, "--dir", tmp_path) == 1, "only the one in use is so old"
        assert stores_in(tmp_path) == sorted([folders[0], *folders[3:]])
        assert "kept, it is in use" in capsys.readouterr().out
        assert run("prune", "--all", "--dir", tmp_path) == 1
        assert stores_in(tmp_path) == [folders[0]]
    assert run("prune", "--max-gb", 0, "--dir", tmp_path) == 0
    assert not list((tmp_path / "activations").iterdir())
    assert (tmp_path / "weights" / "a").stat().st_size == 10 * each


def test_prune_by_days(tmp_path):
    old, new = stored(tmp_path, {"number": 0}, used=8 * 86400), stored(tmp_path, {"number": 1}, used=6 * 86400)
    assert run("prune", "--unused-days", 7, "--dir", tmp_path) == 0
    assert (old.exists(), new.exists()) == (False, True)


def test_prune_removes_what_killed_processes_left_but_not_from_under_a_builder(tmp_path, capsys):
    idle, busy = stored(tmp_path, {"number": 0}), stored(tmp_path, {"number": 1})
    left = [tmp_path / "activations" / ".gone-x", idle / ".building-x", idle / ".damaged-x"]
    for folder in (*left, busy / ".building-y"):
        folder.mkdir()
        (folder / "rows.bin").write_bytes(bytes(1_000_000))
    with Lock(busy / "lock", alone=True):
        assert run("prune", "--max-gb", 1, "--dry-run", "--dir", tmp_path) == 0
        assert run("prune", "--max-gb", 1, "--dir", tmp_path) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("3.0 MB would be freed")
    assert [folder.exists() for folder in (*left, busy / ".building-y", idle, busy)] == [False, False, False, True, True, True]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["prune"], "exactly one of --max-gb, --unused-days, --all"),
        (["prune", "--all", "--max-gb", "0"], "exactly one"),
        (["prune", "--max-gb", "-1"], "0 or more"),
        (["prune", "--unused-days", "nan"], "0 or more"),
        (["prune", "--max-gb", "inf"], "0 or more"),
        (["prune", "--max-gb", "much"], "invalid float value"),
        (["list", "--max-gb", "0"], "cache list does not take it"),
        (["list", "--all"], "cache list does not take it"),
        (["verify", "--json"], "cache verify does not take it"),
        (["tidy"], "invalid choice"),
        ([], "required"),
    ],
)
def test_mistakes_are_told_and_nothing_is_removed(tmp_path, capsys, words, told):
    folder = stored(tmp_path, ABOUT)
    assert run(*words, "--dir", tmp_path) == 2
    said = capsys.readouterr().err
    assert told in said
    assert "Traceback" not in said
    assert folder.exists()


@pytest.mark.parametrize("name", ["rows.bin", "keys.bin", "segment.json"])
def test_verify_tells_what_is_damaged_and_sets_it_aside(tmp_path, capsys, name):
    folder = stored(tmp_path, ABOUT)
    stored(tmp_path, {"other": 1})
    assert run("verify", "--dir", tmp_path) == 0
    assert "2 segments are whole, 0 damaged" in capsys.readouterr().out
    [path] = folder.glob(f"segment-*/{name}")
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.unlink()
    path.write_bytes(data)
    assert run("verify", "--dir", tmp_path) == 1
    said = capsys.readouterr().out
    assert f"{name} is not what was written; set aside" in said
    assert "1 segments are whole, 1 damaged" in said
    assert not list(folder.glob("segment-*"))
    assert run("verify", "--dir", tmp_path) == 0
    assert Store(tmp_path, ABOUT).missing(KEYS) == [0, 1, 2, 3]


def test_hundreds_of_stores_need_no_torch(tmp_path):
    for number in range(300):
        folder = tmp_path / "activations" / digest({"number": number})[:32]
        folder.mkdir(parents=True)
        (folder / "store.json").write_text(json.dumps({"number": number}))
    code = "import sys; from regraft import cli; status = cli.main(sys.argv[1:]); sys.exit(status or 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "cache", "list", "--json", "--dir", str(tmp_path)], capture_output=True)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["stores"]) == 300
