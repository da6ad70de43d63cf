"""What costs nothing to say, beside which a net's figure means something: notes by their own frequency, the nearest picture's title."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch.nn.functional import normalize

from regraft import config, graft
from regraft.datasets.source import Source
from regraft.datasets.steps import Sequences
from regraft.layout import HEAD
from regraft.settings import Settings
from regraft.tasks import spoken


def notes() -> str:
    """Minus the log-likelihood of a step of test, in nats, where each note sounds by its frequency in train, whatever sounds beside it."""
    _, source = _opened("task=frames", "dataset=chorales", "model=lstm", "model.pool=none")
    rolls = {split: np.concatenate([cast(Sequences, source).steps(each) for each in source.split(split)]) for split in ("train", "test")}
    p = rolls["train"].mean(0).clip(1e-6, 1 - 1e-6)  # [P]
    nll = -np.where(rolls["test"] > 0, np.log(p), np.log1p(-p)).sum(1)
    return f"independent notes: NLL per step of test {nll.mean():.3f} nats ({len(nll):,} steps)"


def titles() -> str:
    """CIDEr-D on test where each picture is given the title of the train picture whose features are nearest, by cosine."""
    _, source = _opened("task=caption", "model=captioner", "dataset=clipart_titles")
    plain, _ = _opened("dataset=clipart")  # the same net with its pooled features
    chain, _ = graft.build(plain, ["any"])
    features, texts = {}, {}
    for split in ("train", "test"):
        samples = source.split(split)
        with torch.inference_mode():
            pictures = torch.stack([torch.from_numpy(source.read(each)).permute(2, 0, 1) for each in samples])
            rows = [chain(chain.prepare(some), stop=HEAD) for some in pictures.split(64)]
        features[split] = normalize(torch.cat(rows))
        texts[split] = [_words(each.target) for each in samples]
    nearest = (features["test"] @ features["train"].T).argmax(1).tolist()
    said = [texts["train"][number][0] for number in nearest]
    figures = spoken.cider(said, texts["test"])
    return f"nearest train picture's title: CIDEr-D on test {sum(figures) / len(figures):.3f} ({len(said)} pictures)"


def _words(target: object) -> list[spoken.Words]:
    """A picture's references, as words in numbers: of [R, L], 0 behind the end."""
    return [tuple(int(word) for word in row if word) for row in cast(Sequence[Sequence[int]], target) if any(row)]


def _opened(*words: str) -> tuple[Settings, Source]:
    """What a command would take."""
    [job] = config.Composer().jobs(list(words), multirun=False)
    return job.settings, job.settings.dataset.open(job.settings.cache.folder())
