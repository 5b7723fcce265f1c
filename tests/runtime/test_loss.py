"""Where the model's own loss is found, and how several losses become one."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from dnic.errors import RuntimeFault
from dnic.runtime.loss import own_loss, total_loss

LOSS, LOGITS, TARGET = torch.tensor(2.5), torch.zeros(4, 3), torch.zeros(4, 0)
Named = namedtuple("Named", "logits loss")  # as users write it


@dataclass
class Answer:
    logits: Tensor
    loss: Tensor | None = None


@pytest.mark.parametrize(
    "output",
    [
        LOSS,
        (LOSS, LOGITS),
        [LOSS],
        {"logits": LOGITS, "loss": LOSS},
        OrderedDict(loss=LOSS),
        Answer(LOGITS, LOSS),
        Named(LOGITS, LOSS),
    ],
)
def test_own_loss_is_found(output: Any) -> None:
    assert own_loss(output, TARGET) is LOSS


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (LOGITS, r"holds no loss: \[4, 3\]"),
        ((LOGITS, LOSS), r"\(\[4, 3\], \[\]\)"),
        ((), r"\(\)"),
        ({"logits": LOGITS}, r"\{logits: \[4, 3\]\}"),
        (Answer(LOGITS), "Answer"),
        ({"loss": 2.5}, r"\{loss: float\}"),
        (None, "NoneType"),
    ],
)
def test_no_own_loss(output: Any, text: str) -> None:
    with pytest.raises(RuntimeFault, match=text):
        own_loss(output, TARGET)


@pytest.mark.parametrize("losses", [(LOSS, LOSS * 2), [LOSS, LOSS * 2], {"a": LOSS, "b": LOSS * 2}])
def test_several_losses_are_added(losses: Any) -> None:
    assert total_loss(lambda output, target: losses, LOGITS, TARGET).item() == 7.5
    assert total_loss(lambda output, target: LOSS, LOGITS, TARGET) is LOSS


@pytest.mark.parametrize("losses", [3.0, LOGITS, (), [LOSS, LOGITS], {"a": None}, None])
def test_what_is_no_loss(losses: Any) -> None:
    with pytest.raises(RuntimeFault, match="did not return a scalar tensor"):
        total_loss(lambda output, target: losses, LOGITS, TARGET)
