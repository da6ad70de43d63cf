"""The heads that answer in words, one after the other: what they take, and for which inputs they can be built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from regraft import vocabulary
from regraft.errors import Problem, UserError
from regraft.heads.spec import Trained
from regraft.registry import doc

if TYPE_CHECKING:
    from torch import nn


class Speaking(Trained):
    """Common to both."""

    learns: ClassVar[bool] = True
    brings: ClassVar = {"loss": "own"}

    width: int = doc("units of the LSTM, and numbers that a word is known by", ge=1)
    beam: int = doc("texts that are followed at once when the likeliest is searched, 1 or more (1: the likeliest word at each step)", ge=1)


class Captions(Speaking):
    """An LSTM that says words about a picture, searched by beam (Vinyals et al. 2015); it may look again before each (Xu et al. 2015)."""

    kinds = ("text",)

    length: int = doc("words that a caption has at most", ge=1)
    attention: bool = doc("true: before each word it looks at the places of a feature map; false: the picture is seen once, as features")

    def build_for(self, shape: tuple[int, ...], classes: Sequence[str]) -> nn.Module:
        """`shape`: [f], or [c, h, w] of a feature map, which attention needs. Raises UserError where it is none of these."""
        from regraft.captioning import Captioner, Decoder

        if self.attention and len(shape) != 3:
            remedy = (
                f"it looks at the places of a feature map, and this net gives {list(shape)}; model=captioner or head.attention=false works"
            )
            raise UserError(Problem("head.attention", True, remedy))
        if len(shape) not in (1, 3):
            raise UserError(Problem("head", self.name, f"it takes what a net of pictures gives, and this one gives {list(shape)}"))
        known = vocabulary.known(classes)
        return Captioner(Decoder(shape, known, self.width, self.dropout, self.attention), known, self.beam, self.length)


class Tags(Speaking):
    """Tags told one after the other, the dataset's first ones first (Wang et al. 2016): each knows of those before it."""

    kinds = ("tags",)

    length: int = doc("tags that a picture has at most, when they are told", ge=1)

    def build(self, features: int, classes: Sequence[str]) -> nn.Module:
        from regraft.captioning import Decoder, Tagger

        decoder = Decoder((features,), len(vocabulary.SPECIAL) + len(classes), self.width, self.dropout, attention=False)
        return Tagger(decoder, len(classes), self.beam, self.length)
