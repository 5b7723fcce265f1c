"""`torch.compile` of the stages: the same training, and an error where there is no compiler."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dnic.errors import RuntimeFault
from dnic.runtime.compiled import check_compiler, compiled_forward
from dnic.runtime.record import read_record

# All of torch.compile but the C++ compiler, which takes a minute for these stages.
QUICK = "torch.compile = functools.partial(torch.compile, backend='aot_eager')"


@pytest.mark.processes
def test_compiled_stages_train_like_others(
    bundle: Callable[..., Path], run_ranks: Any, tmp_path: Path
) -> None:
    """With BatchNorm, recomputation, an uneven last batch, and evaluation before and after."""

    def edit(name: str, text: str) -> str:
        if name != "train.py":
            return text
        evaluate = "        trainer.evaluate(test_batches)\n"
        train = "        trainer.train(train_batches)\n"
        text = text.replace(
            "import model\n", f"import functools\nimport model\nimport torch\n{QUICK}\n"
        )
        return text.replace(train, evaluate + train)

    records = {}
    for name, options in (("plain", {}), ("compiled", {"compile": True, "recompute": True})):
        train = {
            "batch_size": 16,
            "epochs": 2,
            "seed": 3,
            "optimizer": {"name": "SGD", "options": {"lr": 0.1}},
            **options,
        }
        folder = bundle("conv2", edit=edit, plan_keys={"train": train})
        record = tmp_path / name
        run_ranks(folder, 2, "--mode=exact", f"--record={record}")
        records[name] = read_record(record)
    plain, compiled = records["plain"], records["compiled"]
    torch.testing.assert_close(compiled.losses, plain.losses, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(compiled.parameters, plain.parameters, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
def test_torchs_default_compiler_is_used() -> None:
    layer = nn.Linear(4, 4)
    forward = compiled_forward(layer.forward, torch.device("cpu"))
    x = torch.randn(8, 4)
    with torch.no_grad():
        torch.testing.assert_close(forward(x), layer(x))
    assert torch._dynamo.utils.counters["inductor"]


def test_without_a_compiler_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeFault, match="there is no no-such-compiler"):
        check_compiler(torch.device("cpu"))
    check_compiler(torch.device("cuda"))
