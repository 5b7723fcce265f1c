"""Stages hold the model's own parts under the model's own names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dnic.errors import RuntimeFault
from dnic.runtime.stage import Stage, check_ownership


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.norm = nn.BatchNorm1d(2)
        self.mask = torch.ones(2)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(3, 2)
        self.blocks = nn.ModuleList([Inner(), Inner(), Inner()])
        self.named = nn.ModuleDict({"first": nn.Linear(2, 2)})
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("table", torch.zeros(4), persistent=False)
        self.last = nn.Linear(2, 3)
        self.last.weight = self.embed.weight
        self.again = self.blocks[0]


def test_a_model_that_is_a_sequence() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 3))
    stage = Stage(model, "1", "2")
    assert stage[1] is model[1]
    assert stage[2] is model[2]
    assert list(stage.state_dict()) == ["2.weight", "2.bias"]


def test_keys_and_parts_are_the_models_own() -> None:
    model = Model()
    stage = Stage(model, "embed", "blocks.1", "blocks.2.scale", "named.first", "steps", "table")
    whole = model.state_dict(keep_vars=True)
    own = stage.state_dict(keep_vars=True)
    assert all(own[name] is whole[name] for name in own)
    assert "table" not in own
    assert stage.table is model.table
    assert stage.blocks[1] is model.blocks[1]
    assert stage.blocks[2].scale is model.blocks[2].scale
    assert stage.named["first"] is stage.named.first is model.named["first"]
    assert len(stage.blocks) == 2
    assert "2" in stage.blocks
    assert "0" not in stage.blocks


def test_shared_parts_stay_shared() -> None:
    model = Model()
    stage = Stage(model, "embed", "last", "blocks.0", "again.norm", "again")
    assert stage.embed.weight is stage.last.weight
    assert stage.blocks[0] is stage.again
    assert len(list(stage.parameters())) == len({id(p) for p in model.parameters()}) - 8


def test_paths_inside_another_are_skipped_in_any_order() -> None:
    model = Model()
    stage = Stage(model, "blocks.0.norm", "blocks.0", "blocks.0.scale")
    assert stage.blocks[0] is model.blocks[0]


def test_plain_tensor_attributes_are_held_and_not_saved() -> None:
    model = Model()
    stage = Stage(model, "blocks.0.mask")
    assert stage.blocks[0].mask is model.blocks[0].mask
    assert not stage.state_dict()
    assert stage.to(torch.float64).blocks[0].mask.dtype == torch.float64


def test_train_and_eval_reach_the_parts() -> None:
    model = Model()
    assert not Stage(model.eval(), "last").training
    stage = Stage(model, "blocks.1.norm")
    stage.train()
    assert model.blocks[1].norm.training
    stage.eval()
    assert not model.blocks[1].norm.training


@pytest.mark.parametrize("name", ["nothing", "blocks.7", "blocks.0.nothing", "last.weight.x"])
def test_unknown_parts(name: str) -> None:
    with pytest.raises(RuntimeFault, match=f"no module, parameter or buffer {name}"):
        Stage(Model(), name)


def test_a_parameter_belongs_to_one_stage() -> None:
    model = Model()
    check_ownership([Stage(model, "embed", "last"), Stage(model, "blocks"), Stage(model, "steps")])
    with pytest.raises(RuntimeFault, match=r"last\.weight is in stage 0 and in stage 1"):
        check_ownership([Stage(model, "embed"), Stage(model, "last")])
