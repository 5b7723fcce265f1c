"""What predictors are built with: replicas that can learn together, and those that cannot."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch.nn.functional import cross_entropy

from dnic.errors import RuntimeFault
from dnic.runtime import registry
from dnic.runtime.plan import HeadPlan, InterfacePlan, TargetPlan, TensorSpec
from dnic.runtime.predictors.nothing import Nothing
from dnic.runtime.registry import predictor_kind, register
from dnic.runtime.replicas import Replicas
from dnic.runtime.setting import Setting, build_predictor, weighed


class Alone(Nothing):
    """Says nothing of replicas, as a source of one's own does at first."""

    replicated: ClassVar[bool] = False


@pytest.mark.parametrize("gradient", ["synthetic", "none", "virtual", "local", "alone", "said"])
def test_replicas_learn_together_or_are_refused(
    gradient: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in registry.BUILT_IN:
        predictor_kind(name)
    monkeypatch.setattr(registry, "_kinds", dict(registry._kinds))
    register("alone")(Alone)
    register("said", replicated=True)(Alone)
    tensors = (TensorSpec("h", ("B", 4), "float32", True),)
    plan = InterfacePlan("cut", 0, 1, tensors, gradient, HeadPlan(), 2, 0)
    given = TargetPlan((), "int64", 3), ("B", 3), cross_entropy, torch.device("cpu"), 0
    assert build_predictor(plan, Setting(*given)).weight == 1.0
    two = Setting(*given, Replicas(0, 2))
    if gradient != "alone":
        assert build_predictor(plan, two).weight == 1.0
        return
    with pytest.raises(RuntimeFault, match="alone does not learn in several replicas") as told:
        build_predictor(plan, two)
    assert "replicated = True" in str(told.value.hint)


def test_predictions_weigh_what_their_share_does() -> None:
    gradients = [torch.tensor([1.0, -2.0])]
    assert weighed(gradients, 1.0) is gradients
    assert weighed(gradients, 1.5)[0].tolist() == [1.5, -3.0]
