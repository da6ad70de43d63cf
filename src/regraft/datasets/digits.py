"""scikit-learn's handwritten digits: small enough to be held in memory, and there without a download."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from regraft.datasets.source import InMemory, Sample, Source
from regraft.datasets.splits import few, make
from regraft.errors import Problem, UserError

if TYPE_CHECKING:
    from regraft.datasets import Digits

FILE = "datasets/data/digits.csv.gz"


def load(spec: Digits) -> Source:
    """1,797 pictures [8, 8, 3]; grey 0..16 becomes 0..255. Equal pictures share a split."""
    table = _table()
    grey = np.rint(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # [1797, 8, 8]
    digits = [str(int(digit)) for digit in table[:, -1]]
    names = spec.classes or [str(digit) for digit in range(10)]
    label_of = {name: label for label, name in enumerate(names)}
    kept = [index for index, digit in enumerate(digits) if digit in label_of]
    ids = [f"digits/{index:04d}" for index in kept]
    labels = [label_of[digits[index]] for index in kept]
    hashes = [hashlib.sha256(grey[index].tobytes()).hexdigest() for index in kept]
    splits = make(ids, labels, hashes, names, {"val": spec.val, "test": spec.test}, spec.split_seed)
    samples = [Sample(name, split, label, sha256) for name, split, label, sha256 in zip(ids, splits, labels, hashes, strict=True)]
    pictures = {name: np.repeat(grey[index][:, :, None], 3, axis=2) for name, index in zip(ids, kept, strict=True)}
    return InMemory(pictures, names, few(samples, spec.per_class, spec.split_seed))


def _table() -> np.ndarray:
    """[1797, 65]: 64 pixels and the digit, from the file that scikit-learn brings; importing scikit-learn itself takes a second."""
    found = find_spec("sklearn")
    place = Path(found.submodule_search_locations[0], FILE) if found and found.submodule_search_locations else Path(FILE)
    try:
        return np.loadtxt(place, delimiter=",")  # it opens .gz by itself
    except OSError:
        remedy = f"scikit-learn's file {place} is not there; pip install scikit-learn"
        raise UserError(Problem("dataset.name", "digits", remedy)) from None
