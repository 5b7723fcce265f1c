"""What `dnic compare --modes` and `dnic train --mode` take."""

from __future__ import annotations

import pytest

from dnic.bench.compare import parse_modes
from dnic.errors import SpecError


def test_modes_in_the_order_asked() -> None:
    assert parse_modes("ddp, 1f1b,decoupled") == ("ddp", "1f1b", "decoupled")
    with pytest.raises(SpecError, match="there is no mode 'oracle'") as caught:
        parse_modes("ddp,oracle")
    assert "exact, gpipe, 1f1b, interleaved, zerobubble, zbv, ddp, backprop" in str(caught.value)
