"""`plan.yaml`: the plan as a person reads and edits it.

PyYAML's own style is either all block (a shape over four lines) or all flow; here lists and
mappings of plain values stand on one line and everything above them in blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from dnic.errors import SpecError
from dnic.partition.plan import Plan, PlannedSchedule

HEADER = """\
# What dnic decided for this bundle, and why.
#
# Free to edit, effective at the next run: everything under `train`, and `gradient`, `head`,
# `window`, `warmup_steps`, `warmup_until`, `guard`, `message` and `return_every` of an interface.
# To move a cut, edit `cuts` and write the bundle anew:
#   dnic compile --plan plan.yaml -o ANOTHER_FOLDER
"""


# Said only where a schedule is written.
SCHEDULE = """\
# `schedule` may be edited too: mode is one of decoupled, stale, exact, gpipe, 1f1b, interleaved,
# zerobubble, zbv, ddp, backprop.
"""


# Of an interface, where it is so.
_LEFT_OUT: Mapping[str, Any] = {"predict_weights": False, "warmup": "exact", "context": []}


class _Dumper(yaml.SafeDumper):
    """Plain values on one line; no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        return super().increase_indent(flow, False)


def _represent(dumper: yaml.SafeDumper, tag: str, value: Any, items: list[Any]) -> yaml.Node:
    flow = not any(isinstance(item, dict | list) and item for item in items)
    if isinstance(value, dict):
        return dumper.represent_mapping(tag, value.items(), flow_style=flow)
    return dumper.represent_sequence(tag, value, flow_style=flow)


_Dumper.add_representer(
    dict, lambda d, v: _represent(d, "tag:yaml.org,2002:map", v, list(v.values()))
)
_Dumper.add_representer(list, lambda d, v: _represent(d, "tag:yaml.org,2002:seq", v, v))


def plan_text(plan: Plan) -> str:
    """The content of `plan.yaml`."""
    content = plan.model_dump(mode="json", by_alias=True)
    for interface in content["interfaces"]:
        for key, usual in _LEFT_OUT.items():
            if interface[key] == usual:
                del interface[key]
    header = HEADER + SCHEDULE
    if plan.schedule == PlannedSchedule():
        del content["schedule"]
        header = HEADER
    elif plan.schedule.replicas == 1:
        del content["schedule"]["replicas"], content["schedule"]["shard"]
    body = yaml.dump(
        _rounded(content), Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True
    )
    return f"{header}{body}"


def read_plan_file(path: Path) -> Plan:
    """The plan in a `plan.yaml`, checked.

    Raises:
        SpecError: no such file, no YAML, or not a plan; names the key.
    """
    if path.is_dir():
        path = path / "plan.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(
            "there is no such plan",
            where=str(path),
            expected="the folder of a bundle, or its plan.yaml",
            hint="dnic compile MODEL.py writes one",
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise SpecError(f"the plan cannot be read: {error}", where=str(path)) from error
    if not isinstance(content, Mapping):
        raise SpecError("this is no plan", where=str(path), expected="a mapping")
    try:
        return Plan.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise SpecError(
            f"{key}: {first['msg']}",
            where=str(path),
            hint="undo the edit, or compile the model again",
        ) from error


def _rounded(value: Any) -> Any:
    """Floats to six significant digits: what a prediction is worth."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    return value
