"""What predicts the gradient at an interface: the keys of `interfaces.*.head`."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from dnic.spec.expect import Auto, Count, CountOrAuto, Rate, expected
from dnic.spec.section import Section

Context = Literal["target", "none"]
Targets = Literal["auto", "full", "sampled", "clustered"]
TailLoss = Literal["auto", "model"]


class HeadSpec(Section):
    """The module that predicts the gradient at an interface."""

    hidden_layers: Annotated[
        Annotated[int, Field(strict=True, ge=0, le=3)] | Auto,
        expected("a whole number from 0 to 3, or auto", ["auto"]),
    ] = Field(default="auto", description="0 to 3; 0: one linear map; auto: 1, of a tail 0")
    width: CountOrAuto = Field(
        default="auto", description="of a hidden layer; auto: what fits the slack"
    )
    context: Annotated[
        Context | Annotated[tuple[str, ...], Field(min_length=1)],
        expected("target, none, or a list of names such as [target, tokens]", get_args(Context)),
    ] = Field(
        default="target",
        description="what it sees: target, none, or names: [target, tokens]",
    )
    lr: Rate = Field(default=1e-3, description="its own learning rate")
    one_in: CountOrAuto = Field(
        default="auto",
        description="learns from one in so many samples; auto: what fits the slack",
    )
    train_every: Count = Field(
        default=1, description="learns whenever so many gradients have come back"
    )
    task: Annotated[
        Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)],
        expected("a number of at least 0"),
    ] = Field(default=1.0, description="virtual: weight of the tail's own loss")
    targets: Annotated[Targets, expected("auto, full, sampled or clustered", get_args(Targets))] = (
        Field(
            default="auto",
            description="of tails: full; where classes are many sampled or clustered",
        )
    )
    loss: Annotated[TailLoss, expected("auto or model", get_args(TailLoss))] = Field(
        default="auto", description="of tails: auto, or model: the model file's"
    )
    options: Annotated[
        dict[str, bool | int | float | str], expected("a mapping of names to plain values")
    ] = Field(default={}, description="of a registered source")
