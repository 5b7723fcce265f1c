"""Every entry of the model's state_dict is kept by exactly one stage."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dnic.errors import RuntimeFault
from dnic.runtime.names import StateNames, load_initial
from dnic.runtime.stage import Stage


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(3, 2)
        self.norm = nn.BatchNorm1d(2)
        self.last = nn.Linear(2, 3, bias=False)
        self.last.weight = self.embed.weight
        self.unused = nn.Linear(1, 1, bias=False)
        self.register_buffer("table", torch.arange(2.0))
        self.register_buffer("scratch", torch.zeros(1), persistent=False)


def test_owners_tied_and_unused() -> None:
    model = Tied()
    stages = [Stage(model, "norm", "table"), Stage(model, "last", "table", "scratch")]
    names = StateNames.of(model, stages)
    assert names.tied == {"embed.weight": "last.weight"}
    assert names.owners["last.weight"] == 1
    assert names.owners["table"] == names.owners["unused.weight"] == 0
    parts = [names.state(stage, index) for index, stage in enumerate(stages)]
    assert parts[0].keys().isdisjoint(parts[1])
    assert {*parts[0], *parts[1], *names.tied} == set(model.state_dict())
    # The second stage's own copy of the table, and what state_dict leaves out.
    assert set(names.private(stages[1], 1)) == {"table", "scratch"}


def test_a_shared_tensor_is_written_by_the_earliest_stage_under_its_name_there() -> None:
    model = Tied()
    model.register_buffer("also", model.table)
    stages = [Stage(model, "last", "norm", "also"), Stage(model, "embed", "norm", "table")]
    names = StateNames.of(model, stages)
    assert names.tied == {"embed.weight": "last.weight", "table": "also"}
    assert names.owners["last.weight"] == names.owners["also"] == 0
    assert names.borrowed(stages[0], 0) == {}
    borrowed = names.borrowed(stages[1], 1)
    assert set(borrowed) == {"last.weight", "norm.weight", "norm.bias"}
    assert borrowed["last.weight"].data_ptr() == model.embed.weight.data_ptr()
    # Buffers are every stage's own.
    statistics = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert names.private(stages[0], 0) == {}
    assert set(names.private(stages[1], 1)) == {"table", *statistics}


def test_initial_weights_fill_the_model(tmp_path: Path) -> None:
    path = str(tmp_path / "init.safetensors")
    values = {
        name: torch.rand_like(value)
        for name, value in Tied().state_dict().items()
        if value.is_floating_point()
    }
    values["norm.num_batches_tracked"] = torch.tensor(7)
    del values["embed.weight"]
    save_file(values, path)
    model = Tied()
    load_initial(model, path)
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in values.items())
    assert model.embed.weight is model.last.weight


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"more": torch.ones(1)}, r"more \[1\] is not in the model"),
        ({"unused.weight": torch.ones(2, 2)}, r"unused\.weight \[2, 2\] is not in the model"),
        ({"unused.weight": None}, r"unused\.weight is missing"),
    ],
)
def test_initial_weights_of_another_model(
    tmp_path: Path, change: dict[str, torch.Tensor | None], problem: str
) -> None:
    values = {n: v.clone() for n, v in Tied().state_dict().items() if n != "embed.weight"}
    kept = {name: value for name, value in (values | change).items() if value is not None}
    save_file(kept, tmp_path / "init.safetensors")
    with pytest.raises(RuntimeFault, match=problem):
        load_initial(Tied(), str(tmp_path / "init.safetensors"))


def test_initial_weights_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "init.safetensors"
    with pytest.raises(RuntimeFault, match="cannot be read"):
        load_initial(Tied(), str(path))
    path.write_bytes(b"nonsense")
    with pytest.raises(RuntimeFault, match="cannot be read"):
        load_initial(Tied(), str(path))
