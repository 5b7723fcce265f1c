"""What an operation, a transfer and a gradient head cost on a device."""

from dnic.cost.analytic import AnalyticModel, cost_model
from dnic.cost.calibration import calibrate
from dnic.cost.costs import CostModel, Costs, Crowding, SharePoint
from dnic.cost.head import head_cost, head_features, per_position, samples_of
from dnic.cost.head_choice import (
    NARROWEST,
    choose_width,
    fitting_head,
    most_left_out,
    stage_slack_us,
)
from dnic.cost.head_parts import HeadCost, Source, TargetSize
from dnic.cost.head_time import time_head
from dnic.cost.link import message_us, occupancy_us, transfer_us
from dnic.cost.measured import MeasuredModel
from dnic.cost.optimizer import UpdateRule, update_rule, update_us
from dnic.cost.profile import Crowded, DeviceProfile, Efficiency, Link
from dnic.cost.returned import (
    learns_in_replicas,
    needs_gradients,
    needs_target,
    returned_share,
)
from dnic.cost.stock import is_stock, load_link, load_profile
from dnic.cost.tail import TailChoice

__all__ = [
    "NARROWEST",
    "AnalyticModel",
    "CostModel",
    "Costs",
    "Crowded",
    "Crowding",
    "DeviceProfile",
    "Efficiency",
    "HeadCost",
    "Link",
    "MeasuredModel",
    "SharePoint",
    "Source",
    "TailChoice",
    "TargetSize",
    "UpdateRule",
    "calibrate",
    "choose_width",
    "cost_model",
    "fitting_head",
    "head_cost",
    "head_features",
    "is_stock",
    "learns_in_replicas",
    "load_link",
    "load_profile",
    "message_us",
    "most_left_out",
    "needs_gradients",
    "needs_target",
    "occupancy_us",
    "per_position",
    "returned_share",
    "samples_of",
    "stage_slack_us",
    "time_head",
    "transfer_us",
    "update_rule",
    "update_us",
]
