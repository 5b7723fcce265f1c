"""What predictors are built with: replicas that can learn together, and those that cannot."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from dnic.errors import RuntimeFault
from dnic.runtime.plan import HeadPlan, InterfacePlan, TargetPlan, TensorSpec
from dnic.runtime.replicas import Replicas
from dnic.runtime.setting import Setting, build_predictor, weighed


@pytest.mark.parametrize("gradient", ["synthetic", "none", "virtual", "local"])
def test_replicas_learn_together_or_are_refused(gradient: str) -> None:
    tensors = (TensorSpec("h", ("B", 4), "float32", True),)
    plan = InterfacePlan("cut", 0, 1, tensors, gradient, HeadPlan(), 2, 0)
    given = TargetPlan((), "int64", 3), ("B", 3), cross_entropy, torch.device("cpu"), 0
    assert build_predictor(plan, Setting(*given)).weight == 1.0
    two = Setting(*given, Replicas(0, 2))
    if gradient in ("synthetic", "none"):
        assert build_predictor(plan, two).replicated
        return
    with pytest.raises(RuntimeFault, match=f"{gradient} does not learn in several replicas"):
        build_predictor(plan, two)


def test_predictions_weigh_what_their_share_does() -> None:
    gradients = [torch.tensor([1.0, -2.0])]
    assert weighed(gradients, 1.0) is gradients
    assert weighed(gradients, 1.5)[0].tolist() == [1.5, -3.0]
