"""Where a model is cut, how the gradient of each cut is obtained, and the plan that says so."""

from dnic.partition.alternative import Alternative
from dnic.partition.assemble import make_plan
from dnic.partition.check import check_plan
from dnic.partition.choose import Placement, choose_cuts, place
from dnic.partition.cuts import CutPoint, CutTable, cut_points, resolve_cuts, resolve_groups
from dnic.partition.decision import Decision, decide
from dnic.partition.plan import (
    Plan,
    PlannedHead,
    PlannedInterface,
    PlannedModel,
    PlannedOperation,
    PlannedOptimizer,
    PlannedSchedule,
    PlannedStage,
    PlannedTarget,
    PlannedTensor,
    PlannedTraining,
    Prediction,
)
from dnic.partition.printer import print_plan
from dnic.partition.request import DeviceGroup, InterfaceChoice, Links, PartitionRequest
from dnic.partition.stages import stages_of

__all__ = [
    "Alternative",
    "CutPoint",
    "CutTable",
    "Decision",
    "DeviceGroup",
    "InterfaceChoice",
    "Links",
    "PartitionRequest",
    "Placement",
    "Plan",
    "PlannedHead",
    "PlannedInterface",
    "PlannedModel",
    "PlannedOperation",
    "PlannedOptimizer",
    "PlannedSchedule",
    "PlannedStage",
    "PlannedTarget",
    "PlannedTensor",
    "PlannedTraining",
    "Prediction",
    "check_plan",
    "choose_cuts",
    "cut_points",
    "decide",
    "make_plan",
    "place",
    "print_plan",
    "resolve_cuts",
    "resolve_groups",
    "stages_of",
]
