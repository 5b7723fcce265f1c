"""What an operation, a transfer and a gradient head cost on a device."""

from dnic.cost.analytic import Costs, cost_model
from dnic.cost.calibration import calibrate
from dnic.cost.head import (
    HeadCost,
    choose_width,
    features_and_positions,
    head_cost,
    stage_slack_us,
)
from dnic.cost.link import message_us, occupancy_us, transfer_us
from dnic.cost.optimizer import UpdateRule, update_rule, update_us
from dnic.cost.profile import DeviceProfile, Link
from dnic.cost.stock import load_link, load_profile

__all__ = [
    "Costs",
    "DeviceProfile",
    "HeadCost",
    "Link",
    "UpdateRule",
    "calibrate",
    "choose_width",
    "cost_model",
    "features_and_positions",
    "head_cost",
    "load_link",
    "load_profile",
    "message_us",
    "occupancy_us",
    "stage_slack_us",
    "transfer_us",
    "update_rule",
    "update_us",
]
