"""What keeps a part of a model from being written down: where it is, and what the user can do.

An obstacle inside a submodule costs little: that module is kept whole and runs as the user wrote
it. Only an obstacle in the model's own forward stops the capture.
"""

from __future__ import annotations


class Obstacle(Exception):
    """Something that a recording cannot prove or cannot write down.

    Attributes:
        what: the obstacle, in words.
        scope: dotted path of the module in whose forward it lies.
        source: `file:line` of the user's code.
    """

    hint = "move this code into a submodule: dnic keeps that whole"

    def __init__(self, what: str, scope: str, source: str) -> None:
        super().__init__(f"{what} at {source}")
        self.what = what
        self.scope = scope
        self.source = source


class ReadsData(Obstacle):
    """The model asked for the value of a tensor: the branch that follows cannot be recorded."""

    hint = "use torch.where, or move the branch into a submodule: dnic keeps that whole"


class Unencodable(Obstacle):
    """An argument or a result that cannot be written down."""


class Misaligned(Obstacle):
    """Two recordings differ in more than sizes and flags."""


class OtherInMode(Misaligned):
    """Train and eval mode run other operations."""


class Draws(Obstacle):
    """Randomness from outside torch: one recording shows one outcome."""

    hint = "use torch's random functions, switch this off, or move it into a submodule"


class Stateful(Obstacle):
    """A forward that changes an attribute of its module, and so behaves otherwise next time."""

    hint = "keep such state in a buffer and change it in place, or move it into a submodule"
