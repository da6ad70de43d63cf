"""ImageNet's 1,000 classes by index, name and wnid, as the installed torchvision and timm spell them; read without importing them."""

from __future__ import annotations

import ast
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from regraft.errors import nearest

CLASSES = 1000


@cache
def names() -> list[str]:
    """The English names in the order of the indices, as torchvision has them: all different."""
    tree = ast.parse(_text("torchvision", "models/_meta.py"))
    assigned = {
        node.targets[0].id: node.value for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    return list(ast.literal_eval(assigned["_IMAGENET_CATEGORIES"]))


@cache
def wnids() -> list[str]:
    """WordNet's ids (n02123045) in the order of the indices."""
    return _text("timm", "data/_info/imagenet_synsets.txt").split()


def indices(word: int | str) -> list[int]:
    """The classes that an index (281), a range of indices with both ends ("281-285"), a wnid or a name means.

    Raises ValueError, with what would work, for a word that means none.
    """
    match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", str(word))
    if match is None and not isinstance(word, int):
        return [_named(word)]
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (int(word), int(word))
    if not 0 <= first <= last < CLASSES:
        raise ValueError(f"ImageNet's classes are 0 to {CLASSES - 1}; a range has its smaller end first")
    return list(range(first, last + 1))


def _named(word: str) -> int:
    plain = word.strip()
    for known in (wnids(), names()):
        if plain in known:
            return known.index(plain)
    alike = [i for i, name in enumerate(names()) if name.lower() == plain.lower()]
    if len(alike) == 1:  # Cardigan is a dog, cardigan a garment
        return alike[0]
    either_of = " or ".join(f"{names()[i]} ({i})" for i in alike)
    hint = either_of or nearest(plain, names()) or "an index (281), a range (281-285), a name or a wnid would work"
    raise ValueError(f"no class of ImageNet; {hint}")


def _text(package: str, path: str) -> str:
    found = find_spec(package)
    [root] = (found.submodule_search_locations if found else None) or [""]
    return Path(root, path).read_text("utf-8")
