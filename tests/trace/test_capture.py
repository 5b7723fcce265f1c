"""Captures: what is written down, what is kept whole, what is refused, and what stays untouched."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnic.errors import TraceError
from dnic.trace import BatchSize, ModeSwitch, capture_coarse, capture_fine, opened_by, recorded


def targets(model: nn.Module, *inputs: Tensor) -> list[str]:
    traced = capture_fine(model, inputs)
    return [
        f"{node.op} {getattr(node.target, '__name__', node.target)}" for node in traced.graph.nodes
    ]


class Written(nn.Module):
    """A module whose forward is given as a function."""

    def __init__(self, forward: object, **children: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def test_operators_indexing_and_attributes_are_written_as_the_user_wrote_them() -> None:
    def forward(_: nn.Module, x: Tensor) -> Tensor:
        return (1 - x[:, 0]) * x.mT.sum(1) @ x[0] + 2 / x.sum(1)

    assert targets(Written(forward), torch.ones(3, 4, 4)) == [
        "placeholder x",
        "call_function getitem",
        "call_function sub",
        "call_function getattr",
        "call_method sum",
        "call_function mul",
        "call_function getitem",
        "call_function matmul",
        "call_method sum",
        "call_function truediv",
        "call_function add",
        "output output",
    ]


def test_a_reversed_operator_keeps_the_order_of_its_operands() -> None:
    traced = capture_fine(Written(lambda _, x: 1 - x), (torch.ones(3, 2),))
    (node,) = [n for n in traced.graph.nodes if n.op == "call_function"]
    assert node.args[0] == 1 and str(node.args[1]) == "x"


def test_sizes_that_follow_the_batch_are_marked_and_others_are_not() -> None:
    traced = capture_fine(
        Written(lambda _, x: x.view(x.size(0) * 2, 3).reshape(-1, 6)), (torch.ones(4, 6),)
    )
    view, reshape = [n for n in traced.graph.nodes if n.op == "call_method"]
    assert isinstance(view.args[1], BatchSize) and view.args[1].multiple == 2
    assert view.args[2] == 3 and not isinstance(view.args[2], BatchSize)
    assert not isinstance(reshape.args[2], BatchSize)
    assert traced.shapes["view"] == ("2*B", 3)


def test_flags_that_follow_the_mode_are_marked() -> None:
    def forward(module: nn.Module, x: Tensor) -> Tensor:
        return F.dropout(x, 0.1 if module.training else 0.0, module.training)

    traced = capture_fine(Written(forward), (torch.ones(4, 6),))
    (node,) = [n for n in traced.graph.nodes if n.op == "call_function"]
    assert node.kwargs["p"] == ModeSwitch(0.1, 0.0)
    assert node.kwargs["training"] == ModeSwitch(True, False)


def test_results_are_called_as_the_users_variables() -> None:
    def forward(_: nn.Module, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        hidden = left * right
        hidden = torch.relu(hidden)
        return hidden  # noqa: RET504 (the names are what is tested)

    traced = capture_fine(Written(forward), (torch.ones(3, 4),))
    assert [n.name for n in traced.graph.nodes][2:] == [
        "left",
        "right",
        "hidden",
        "hidden_1",
        "output",
    ]


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # the branch
            return self.linear(x)
        return x


def test_a_module_that_branches_on_data_is_kept_whole() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Branch())
    traced = capture_fine(model, (torch.ones(3, 4),))
    assert list(traced.whole) == ["1"]
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == ["0", "1"]


def test_a_branch_on_data_that_went_through_an_assignment_in_place_is_noticed() -> None:
    class Hidden(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.zeros(x.shape[0], 4)
            y[:, :2] = x[:, :2]
            return y if y.sum() > 0 else x

    traced = capture_fine(nn.Sequential(Hidden()), (torch.ones(3, 4),))
    assert list(traced.whole) == ["0"]


@pytest.mark.parametrize("reads", [bool, float, int, Tensor.item, Tensor.tolist])
def test_a_model_that_reads_data_itself_is_refused_with_the_line(reads: object) -> None:
    def forward(_: nn.Module, x: Tensor) -> Tensor:
        reads(x.sum())  # this line
        return x + 1

    with pytest.raises(TraceError) as caught:
        capture_fine(Written(forward), (torch.ones(3, 4),))
    assert caught.value.where is not None
    file, line = caught.value.where.rsplit(":", 1)
    with open(file) as source:  # noqa: PTH123
        assert "this line" in source.readlines()[int(line) - 1]


def test_a_branch_on_constants_only_is_no_branch_on_data() -> None:
    def forward(_: nn.Module, x: Tensor) -> Tensor:
        return x + 1 if torch.ones(2).sum() > 1 else x

    capture_fine(Written(forward), (torch.ones(3, 4),))


def test_other_operations_in_eval_mode_keep_the_module_whole() -> None:
    class TwoFaced(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if self.training else x.relu().exp()

    traced = capture_fine(nn.Sequential(nn.Linear(4, 4), TwoFaced()), (torch.ones(3, 4),))
    assert list(traced.whole) == ["1"]


def test_a_size_that_changes_otherwise_than_with_the_batch_is_refused() -> None:
    with pytest.raises(TraceError, match="became"):
        capture_fine(Written(lambda _, x: x.repeat(x.shape[0] ** 2, 1)), (torch.ones(2, 4),))


def test_a_model_that_fails_is_named_with_its_line() -> None:
    def forward(_: nn.Module, x: Tensor) -> Tensor:
        return x.view(2, -1, 7)

    with pytest.raises(TraceError, match=r"fails on inputs of shape \(3, 4\)") as caught:
        capture_fine(Written(forward), (torch.ones(3, 4),))
    assert re.search(r"test_capture\.py:\d+$", caught.value.where or "")


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).eval()
    model[1].train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.random.get_rng_state()
    call = nn.Module.__call__
    inputs = torch.ones(3, 4)
    capture_fine(model, (inputs,))
    assert [m.training for m in model] == [False, True, False] and not model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert nn.Module.__call__ is call
    assert torch.equal(inputs, torch.ones(3, 4))


def test_calls_are_restored_after_a_failure() -> None:
    call = nn.Module.__call__
    with pytest.raises(TraceError):
        capture_fine(Written(lambda _, x: x.view(5, 5)), (torch.ones(3, 4),))
    assert nn.Module.__call__ is call


def test_a_coarse_capture_opens_only_what_a_cut_falls_into() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    )
    fine = capture_fine(model, (torch.ones(3, 4),))
    assert opened_by(fine, [3]) == ("1",)
    coarse = capture_coarse(fine, (torch.ones(3, 4),), opened_by(fine, [3]))
    modules = [n for n in coarse.graph.nodes if n.op == "call_module"]
    assert [n.target for n in modules] == ["0", "1.0", "1.1"]
    assert [recorded(n).event for n in modules] == [(0, 2), (2, 3), (3, 4)]


def test_a_module_called_twice_is_counted_call_by_call() -> None:
    shared = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(module: nn.Module, x: Tensor) -> Tensor:
        return module.shared(module.shared(x))

    model = Written(forward, shared=shared)
    fine = capture_fine(model, (torch.ones(3, 4),))
    assert fine.calls.spans["shared", 0] == (0, 2) and fine.calls.spans["shared", 1] == (2, 4)
    coarse = capture_coarse(fine, (torch.ones(3, 4),), ())
    assert [recorded(n).event for n in coarse.graph.nodes if n.op == "call_module"] == [
        (0, 2),
        (2, 4),
    ]


def test_flops_are_counted_operation_by_operation() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    traced = capture_fine(model, (torch.ones(3, 4),))
    flops = [recorded(n).flops for n in traced.graph.nodes if n.op == "call_module"]
    assert flops == [2 * 3 * 4 * 8, 0, 2 * 3 * 8 * 2]


def test_flops_of_attention_on_a_cpu() -> None:
    def forward(_: nn.Module, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)

    traced = capture_fine(Written(forward), (torch.ones(2, 3, 5, 8),))
    assert sum(recorded(n).flops for n in traced.graph.nodes) == 2 * 2 * 3 * 5 * 5 * (8 + 8)


def test_a_module_called_output_is_not_taken_for_the_models_output() -> None:
    model = nn.Sequential()
    model.add_module("output", nn.Linear(4, 4))
    model.add_module("batch", nn.Linear(4, 4))
    traced = capture_fine(model, (torch.ones(3, 4),))
    assert [n.name for n in traced.graph.nodes][1:] == ["output_", "batch_", "output"]


def test_too_many_inputs_are_refused() -> None:
    with pytest.raises(TraceError, match="gives 2 inputs"):
        capture_fine(nn.Linear(4, 4), (torch.ones(3, 4), torch.ones(3, 4)))


def test_a_tensor_from_outside_names_the_line() -> None:
    outside = torch.ones(4)

    def forward(_: nn.Module, x: Tensor) -> Tensor:
        return x + outside

    with pytest.raises(TraceError, match="neither the model holds"):
        capture_fine(Written(forward), (torch.ones(3, 4),))
