"""Field types that say in plain words what they expect.

pydantic's own messages name its machinery ("Input should be a valid integer", once for every
member of a union). `expected` wraps a type so that whatever goes wrong inside becomes one complaint
with one sentence, which `dnic.spec.problem` turns into a `SpecError`.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
    WrapValidator,
)
from pydantic.functional_validators import ModelWrapValidatorHandler
from pydantic_core import PydanticCustomError

from dnic.spec.nearest import nearest

COMPLAINT = "dnic"

_LARGEST = 2**63 - 1


def shown(value: object) -> str:
    """A value as a message shows it: short, on one line, whatever it holds."""
    if isinstance(value, dict):
        return "a mapping"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    printer = reprlib.Repr()
    printer.maxstring = 60
    try:
        return printer.repr(value)
    except ValueError:  # Python refuses to print integers of thousands of digits.
        return "a number of thousands of digits"


def complaint(
    sentence: str, *, expected: str = "", hint: str = "", at: tuple[str | int, ...] = ()
) -> PydanticCustomError:
    """What a validator raises.

    Args:
        sentence: the problem, with `{}` where the path of the key belongs.
        expected: what would have been right.
        hint: what to do about it.
        at: path from the value under validation to the one at fault.
    """
    details = {"sentence": sentence, "expected": expected, "hint": hint, "at": at}
    return PydanticCustomError(COMPLAINT, "{sentence}", details)


def expected(
    text: str, words: Sequence[str] | Mapping[str, str] = (), later: Sequence[str] = ()
) -> WrapValidator:
    """Annotation of a type: when a value does not fit, complain with this one sentence.

    Args:
        text: what is expected.
        words: values among which to look for the nearest; a mapping gives what to suggest for it.
        later: words that will mean something in a later version.
    """

    meant = words if isinstance(words, Mapping) else dict(zip(words, words, strict=True))

    def check(value: Any, inner: ModelWrapValidatorHandler[Any]) -> Any:
        try:
            return inner(value)
        except ValidationError as error:
            if isinstance(value, str) and value in later:
                sentence = f"{{}} is {shown(value)}, which is not available yet"
                raise complaint(sentence, expected=text) from error
            too_large = isinstance(value, int) and value > _LARGEST
            raise complaint(
                f"{{}} cannot be {shown(value)}",
                expected=f"{text}, below 2**63" if too_large else text,
                hint=meant.get(nearest(value, meant) or "", ""),
            ) from error

    return WrapValidator(check)


def _auto_is_none(value: object) -> object:
    return None if value == "auto" else value


def _none_is_auto(value: int | None) -> int | str:
    return "auto" if value is None else value


Auto = Literal["auto"]
Positive = Annotated[int, Field(strict=True, ge=1, le=_LARGEST)]
NotNegative = Annotated[int, Field(strict=True, ge=0, le=_LARGEST)]

Count = Annotated[Positive, expected("a whole number of at least 1")]
CountOrAuto = Annotated[
    Positive | Auto, expected("a whole number of at least 1, or auto", ["auto"])
]
CountOrNone = Annotated[
    Positive | None,
    BeforeValidator(_auto_is_none),
    expected("a whole number of at least 1, or auto", ["auto"]),
    PlainSerializer(_none_is_auto, when_used="json"),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"enum": ["auto", None]}]}),
]
StepsOrAuto = Annotated[
    NotNegative | Auto, expected("a whole number of at least 0, or auto", ["auto"])
]
Rate = Annotated[
    float, Field(strict=True, ge=0, allow_inf_nan=False), expected("a number of at least 0")
]
