"""Oxford-IIIT Pet: images/*.jpg with lists of names, breeds and species in annotations/trainval.txt and test.txt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from regraft.datasets import fetch
from regraft.datasets.fingerprint import examine
from regraft.datasets.names import OXFORD_PETS, OXFORD_SPECIES
from regraft.datasets.source import Files, Sample, Source
from regraft.datasets.splits import arrange
from regraft.errors import Problem, UserError

if TYPE_CHECKING:
    from regraft.datasets import OxfordPets

URL = "https://www.robots.ox.ac.uk/~vgg/data/pets/data"  # Parkhi et al. 2012
ARCHIVES = [
    fetch.Archive("images.tar.gz", f"{URL}/images.tar.gz", ("5c4f3ee8e5d25df40f4fd59a7f44e54c",), ("images",)),
    fetch.Archive("annotations.tar.gz", f"{URL}/annotations.tar.gz", ("95a8c909bbe2e81eed6a22bccdf3f68f",), ("annotations",)),
]
LISTS = {"train": "trainval.txt", "test": "test.txt"}


def load(spec: OxfordPets, cache: Path) -> Source:
    """37 breeds or two species; val is made out of trainval. Raises UserError for lines (file and line) that don't fit the set."""
    root = fetch.place(spec, cache, ARCHIVES)
    known = OXFORD_PETS if spec.target == "breed" else OXFORD_SPECIES
    names = spec.classes or known
    listed = {split: _lines(root / "annotations" / file) for split, file in LISTS.items()}
    kept = {
        f"images/{stem}.jpg": (split, names.index(name))
        for split, lines in listed.items()
        for stem, breed, species in lines
        if (name := known[breed if spec.target == "breed" else species]) in names
    }
    hashes, skipped = examine(root, list(kept), cache, spec.on_error)
    samples = [Sample(file, split, label, hashes[file]) for file, (split, label) in kept.items() if file in hashes]
    remarks = fetch.fewer(spec.name, {split: len(lines) for split, lines in listed.items()}, {"train": 3680, "test": 3669})
    return Files(root, names, arrange(spec, names, samples, ("test",)), skipped, remarks=remarks)


def _lines(path: Path) -> list[tuple[str, int, int]]:
    """File stem, breed and species (from 0) of each line `stem breed species number`; breed and stem must agree."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(Problem(str(path), None, f"can't be read ({error}); place the set's annotations again")) from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match line.split():
            case [stem, breed, species, _] if (
                breed.isdecimal()
                and 1 <= int(breed) <= len(OXFORD_PETS)
                and species in ("1", "2")
                and stem.rpartition("_")[0].replace("_", " ").title() == OXFORD_PETS[int(breed) - 1]
            ):
                found.append((stem, int(breed) - 1, int(species) - 1))
            case _:
                remedy = f"'{line}' is not: picture, breed 1 to 37 as in its name, species 1 or 2, number; place the annotations again"
                raise UserError(Problem(f"{path}:{number}", None, remedy))
    return found
