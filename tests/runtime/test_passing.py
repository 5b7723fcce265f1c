"""What a stage returned gets the names that its plan has for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from dnic.errors import RuntimeFault
from dnic.runtime.passing import named

PLAN = cast(Any, SimpleNamespace(name="stage1", outputs=("h", "mask")))


@pytest.mark.parametrize("kind", [tuple, list])
def test_outputs_have_the_plans_names(kind: type) -> None:
    h, mask = torch.ones(2), torch.zeros(2)
    assert named(PLAN, kind((h, mask))) == {"h": h, "mask": mask}


def test_one_tensor_is_one_output() -> None:
    h = torch.ones(2)
    assert named(cast(Any, SimpleNamespace(name="stage0", outputs=("h",))), h) == {"h": h}


def test_another_number_of_outputs_names_stage_and_outputs() -> None:
    with pytest.raises(RuntimeFault, match="stage1 returned 1 tensors") as found:
        named(PLAN, torch.ones(2))
    assert found.value.expected == "h, mask"
