"""A plan as plain data, for `dnic plan --json`."""

from __future__ import annotations

from typing import Any

from dnic.partition.plan import Plan


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan with the keys of `plan.yaml`: only dicts, lists, strings, numbers, bools, None."""
    return plan.model_dump(mode="json", by_alias=True)
