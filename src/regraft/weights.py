"""Where a net's weights come from: imagenet, none, a file or an earlier run; read safely, named by content, kept once."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft import files
from regraft.errors import Problem, UserError, nearest
from regraft.record import MODEL, RunFolder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
NESTS = ("state_dict", "model", "module")  # keys under which published checkpoints hold the state dict


@dataclass(frozen=True)
class Origin:
    """Which weights a run starts from. `identity` goes into the run id; `path` is a file or a run folder, where there is one."""

    kind: str  # imagenet, none, file, run
    identity: str
    path: Path | None = None


def origin(weights: str, published: str | None) -> Origin:
    """What `model.weights` means; torch-free. `published` is the identity of the net's ImageNet weights, None where it has none.

    Raises UserError for a word that is none of imagenet, none and an existing file or run folder.
    """
    if weights == "none":
        return Origin("none", "none")
    if weights == "imagenet":
        if published is None:
            raise UserError(Problem("model.weights", weights, "this net has no ImageNet weights; none, a file or a run would work"))
        return Origin("imagenet", published)
    path = Path(weights).expanduser()
    if path.is_dir():
        if not RunFolder(path).exists:
            remedy = "a folder must be a run folder (with record.json); imagenet, none or a file would work too"
            raise UserError(Problem("model.weights", weights, remedy))
        content = files.sha256(path / MODEL) if (path / MODEL).is_file() else None
        if content is None:
            raise UserError(Problem("model.weights", weights, "that run is not done: it holds no model.safetensors"))
        return Origin("run", f"run:{RunFolder(path).record['run_id']}:{content}", path)
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise UserError(Problem("model.weights", weights, f"a weights file ends in {', '.join(SUFFIXES)}"))
        return Origin("file", f"sha256:{files.sha256(path)}", path)
    beside = nearest(path.name, [each.name for each in path.parent.iterdir()]) if path.parent.is_dir() else ""
    hint = nearest(weights, ["imagenet", "none"]) or beside or "imagenet, none, a file or a run folder would work"
    raise UserError(Problem("model.weights", weights, f"no such file or run; {hint}"))


def read(path: Path) -> dict[str, Tensor]:
    """The state dict in a file: safetensors, or torch's format with `weights_only`, so that no code in it runs.

    Raises UserError for a file that is damaged or holds something else than tensors.
    """
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the readers raise many kinds for a damaged file
        remedy = f"can't be read as weights ({type(error).__name__}); a file of safetensors, or a state dict saved by torch, is needed"
        raise UserError(Problem("model.weights", str(path), remedy)) from None
    while isinstance(state, dict) and (nest := next((key for key in NESTS if isinstance(state.get(key), dict)), None)):
        state = state[nest]
    if not isinstance(state, dict) or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(Problem("model.weights", str(path), "holds no state dict (names and tensors)"))
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def load(module: nn.Module, state: Mapping[str, Tensor], key: str, given: object) -> None:
    """Load every tensor, no more and no less. Raises UserError, with counts and first names, where names or shapes differ."""
    own = module.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    strange = [name for name in state if name not in own]
    shapes = [name for name in own if name in state and not _takes(own[name], state[name])]
    if missing or strange or shapes:
        parts = [f"{len(own) - len(missing)} of the net's {len(own)} tensors are there"]
        parts += [f"missing: {', '.join(missing[:3])}"] if missing else []
        parts += [f"not the net's: {', '.join(strange[:3])}"] if strange else []
        parts += [f"{name} is {list(state[name].shape)}, not {list(own[name].shape)}" for name in shapes[:3]]
        raise UserError(Problem(key, given, f"these weights are not of this net ({'; '.join(parts)})"))
    module.load_state_dict(dict(state), strict=False)  # older files hold no num_batches_tracked


def _takes(own: Tensor, given: Tensor) -> bool:
    """Whether the shapes are equal; a bank of pictures that has no rows yet takes any number of them."""
    return own.shape == given.shape or (own.ndim > 0 and len(own) == 0 and own.shape[1:] == given.shape[1:])


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """The sha256 of a state dict: names, shapes, types and bytes, whatever the order."""
    import torch

    sha = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        sha.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]
    return sha.hexdigest()


def save(path: Path, state: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    from safetensors.torch import save_file

    with files.whole(path) as part:
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}, part, metadata)


class Kept:
    """Frozen weights, kept once for all runs that share them: a file named by its fingerprint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "weights"

    def put(self, state: Mapping[str, Tensor]) -> str:
        name = fingerprint(state)
        try:
            if not self.path(name).is_file():
                save(self.path(name), state)
        except OSError as error:
            raise UserError(Problem("cache.dir", str(self.folder), f"can't be written ({error.strerror}); name another folder")) from None
        return name

    def get(self, name: str) -> dict[str, Tensor] | None:
        """None where it is not kept here, or not what it was."""
        path = self.path(name)
        if not re.fullmatch("[0-9a-f]{64}", name) or not path.is_file():  # a record is data: it can't name a file elsewhere
            return None
        state = read(path)
        return state if fingerprint(state) == name else None

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def lineage(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The transfers that led to a run's weights, the earliest first, as a later run that starts from it records them."""
    before = record.get("weights", {}).get("lineage", [])
    data = record.get("data", {})
    here = {"run_id": record.get("run_id"), "dataset": data.get("name"), "fingerprint": data.get("fingerprint")}
    return [*before, here]
