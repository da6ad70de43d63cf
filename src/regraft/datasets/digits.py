"""scikit-learn's handwritten digits: small enough to be held in memory, and there without a download."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from regraft.datasets.source import InMemory, Sample, Source
from regraft.datasets.splits import few, make

if TYPE_CHECKING:
    from regraft.datasets import Digits


def load(spec: Digits) -> Source:
    """1,797 pictures [8, 8, 3]; grey 0..16 becomes 0..255. Equal pictures share a split."""
    from sklearn.datasets import load_digits  # slow to import, and needed here only

    bunch = load_digits()
    grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # [1797, 8, 8]
    names = spec.classes or [str(digit) for digit in range(10)]
    label_of = {name: label for label, name in enumerate(names)}
    kept = [index for index, digit in enumerate(bunch.target) if str(digit) in label_of]
    ids = [f"digits/{index:04d}" for index in kept]
    labels = [label_of[str(bunch.target[index])] for index in kept]
    hashes = [hashlib.sha256(grey[index].tobytes()).hexdigest() for index in kept]
    splits = make(ids, labels, hashes, names, {"val": spec.val, "test": spec.test}, spec.split_seed)
    samples = [Sample(name, split, label, sha256) for name, split, label, sha256 in zip(ids, splits, labels, hashes, strict=True)]
    pictures = {name: np.repeat(grey[index][:, :, None], 3, axis=2) for name, index in zip(ids, kept, strict=True)}
    return InMemory(pictures, names, few(samples, spec.per_class, spec.split_seed))
