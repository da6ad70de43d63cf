"""scikit-learn's handwritten digits: small enough to be held in memory, and there without a download."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from regraft.datasets.source import Packed, Sample, Source
from regraft.datasets.splits import OPEN, arrange
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
    rows = {f"digits/{index:04d}": index for index in kept}
    samples = [
        Sample(name, OPEN, label_of[digits[index]], hashlib.sha256(grey[index].tobytes()).hexdigest()) for name, index in rows.items()
    ]
    return Packed(grey, rows, names, arrange(spec, names, samples))


def _table() -> np.ndarray:
    """[1797, 65]: 64 pixels and the digit, from the file that scikit-learn brings; importing scikit-learn itself takes a second."""
    found = find_spec("sklearn")
    place = Path(found.submodule_search_locations[0], FILE) if found and found.submodule_search_locations else Path(FILE)
    try:
        return np.loadtxt(place, delimiter=",")  # it opens .gz by itself
    except OSError:
        remedy = f"scikit-learn's file {place} is not there; pip install scikit-learn"
        raise UserError(Problem("dataset.name", "digits", remedy)) from None
