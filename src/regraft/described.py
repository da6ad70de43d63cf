"""All that decides a stored row, beside the picture's bytes: two runs whose descriptions are equal share the row."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any

from regraft import augment, models, weights
from regraft.augment import Several
from regraft.views import Drawn, Seen

if TYPE_CHECKING:
    from regraft.chain import Chain
    from regraft.settings import Settings
    from regraft.whitening import Colours

FORMAT = 2  # of stored activations: raised when the same description would give other rows
PACKAGES = ("torch", "torchvision", "timm", "pillow")


def below(chain: Chain, boundary: str) -> str:
    """The fingerprint of all tensors below a boundary, as they are now."""
    own = {name: tensor for name, tensor in chain.state_dict().items() if not name.startswith("auxiliary.")}  # lead nowhere up
    return weights.fingerprint({name: tensor for name, tensor in own.items() if chain.below(name, boundary)})


def description(s: Settings, chain: Chain, boundary: str, view: Seen, state: str, colours: Colours | None) -> dict[str, Any]:
    """Plain data. `state`: the fingerprint of what lies below the boundary; `colours`: train's, where a pre-drawn view needs them."""
    drawn = isinstance(view, Drawn)
    crop = {"crop": s.data.crop} if s.data.fit == "crop" and s.data.crop < 1 and not (drawn and s.augmentation.margin > 1) else {}
    return {
        "format": FORMAT,
        "transform": {
            "size": s.size,
            "fit": s.data.fit,
            **crop,
            "mean": chain.mean.flatten().tolist(),
            "std": chain.std.flatten().tolist(),
        },
        **({} if len(chain.mean) else {"shape": list(chain.enters)}),
        "view": _drawn(s, view, colours) if isinstance(view, Drawn) else list(view),
        "net": s.model.deciding(),
        "weights": state,
        "boundary": boundary,
        "dtype": s.cache.dtype,
        "computed_by": {package: metadata.version(package) for package in (*PACKAGES, *s.model.packages)}
        | _outside(s, drawn)
        | {"on": s.hardware.accelerator()},
    }


def _drawn(s: Settings, view: Drawn, colours: Colours | None) -> dict[str, Any]:
    """Which draw of what; how often it is shown does not decide it."""
    how = {key: value for key, value in s.augmentation.deciding().items() if key != "views"}
    fitted = [part.tolist() for part in colours] if colours else None
    return {"drawn": view.number, "augmentation": how, "colours": fitted}


def _outside(s: Settings, drawn: bool) -> dict[str, str]:
    """The packages, beyond this one, that bring the net or what is drawn, with their versions."""
    parts = s.augmentation.parts() if isinstance(s.augmentation, Several) else [s.augmentation]
    found = [models.GROUP.package(s.model.name), *(augment.GROUP.package(part.name) for part in parts if drawn)]
    return dict(package for package in found if package)
