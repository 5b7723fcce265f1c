"""A plan as plain data, for `dnic plan --json`."""

from __future__ import annotations

from typing import Any

from dnic.partition.plan import Plan


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan, every way to train, and the verdict: dicts, lists, strings, numbers, bools, None.

    Keys of `plan` are those of `plan.yaml`, where alternatives and verdict stand under
    `prediction`.
    """
    content = plan.model_dump(mode="json", by_alias=True)
    predicted = content["prediction"]
    return {
        "plan": content,
        "alternatives": predicted["alternatives"],
        "verdict": predicted["verdict"],
    }
