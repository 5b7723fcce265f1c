"""Where a model is cut, how the gradient of each cut is obtained, and the plan that says so."""

from dnic.partition.assemble import make_plan
from dnic.partition.check import check_plan
from dnic.partition.choose import choose_cuts
from dnic.partition.cuts import CutPoint, CutTable, cut_points, resolve_cuts, resolve_groups
from dnic.partition.plan import (
    Plan,
    PlannedHead,
    PlannedInterface,
    PlannedModel,
    PlannedOperation,
    PlannedOptimizer,
    PlannedStage,
    PlannedTarget,
    PlannedTensor,
    PlannedTraining,
    Prediction,
)
from dnic.partition.printer import print_plan
from dnic.partition.request import InterfaceChoice, Links, PartitionRequest
from dnic.partition.solver import CutProblem, CutSolution, solve
from dnic.partition.stages import stages_of

__all__ = [
    "CutPoint",
    "CutProblem",
    "CutSolution",
    "CutTable",
    "InterfaceChoice",
    "Links",
    "PartitionRequest",
    "Plan",
    "PlannedHead",
    "PlannedInterface",
    "PlannedModel",
    "PlannedOperation",
    "PlannedOptimizer",
    "PlannedStage",
    "PlannedTarget",
    "PlannedTensor",
    "PlannedTraining",
    "Prediction",
    "check_plan",
    "choose_cuts",
    "cut_points",
    "make_plan",
    "print_plan",
    "resolve_cuts",
    "resolve_groups",
    "solve",
    "stages_of",
]
