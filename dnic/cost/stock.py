"""Finding a profile by its name: stock devices and links, a file of the user's, or this machine.

The numbers are data (`profiles.yaml` beside this file), so that a new device is not new code. A
user's own file holds the fields of one device; its `link` is a stock name or the fields of a link.
Units are part of the keys, so that values are plain numbers here.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from dnic.cost.calibration import calibrate
from dnic.cost.profile import Crowded, DeviceProfile, Efficiency, Link
from dnic.errors import SpecError
from dnic.spec.nearest import nearest

AUTO = "auto"
_PARTS: dict[str, type[BaseModel]] = {"link": Link, "efficiency": Efficiency, "crowded": Crowded}
_SUFFIXES = (".yaml", ".yml", ".json")


def load_profile(name_or_path: str, threads: int = 1) -> DeviceProfile:
    """The profile of a device.

    Args:
        name_or_path: a stock name (`cpu-core`, `A100-80GB`), a file that ends in `.yaml`, `.yml`
            or `.json`, or `auto` for this machine's CPU as measured by `calibrate`.
        threads: threads that one process computes with; used by `auto` only.

    Raises:
        SpecError: no such device or file, or a file whose keys or values are wrong.
    """
    if name_or_path == AUTO:
        return calibrate(threads)
    if name_or_path.endswith(_SUFFIXES):
        return _read(Path(name_or_path))
    stock = _stock()["devices"]
    if name_or_path not in stock:
        raise _unknown("device profile", name_or_path, [AUTO, *stock])
    return _device(name_or_path, stock[name_or_path], where="profiles.yaml")


def is_stock(name: str) -> bool:
    """Whether a stock device has this name."""
    return name in _stock()["devices"]


def load_link(name: str) -> Link:
    """The stock link of that name (`loopback`, `10gbe`, `pcie4`, `nvlink4`, `ib-ndr`, `wan-20ms`).

    Raises:
        SpecError: there is none.
    """
    stock = _stock()["links"]
    if name not in stock:
        raise _unknown("link", name, list(stock))
    return Link(name=name, **stock[name])


@cache
def _stock() -> dict[str, dict[str, Any]]:
    text = files("dnic.cost").joinpath("profiles.yaml").read_text(encoding="utf-8")
    loaded: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return loaded


def _read(path: Path) -> DeviceProfile:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"the profile cannot be read: {error}", where=str(path)) from error
    except yaml.YAMLError as error:
        raise SpecError(f"the profile is not valid YAML: {error}", where=str(path)) from error
    if not isinstance(data, dict):
        raise SpecError(
            "the profile is not a mapping",
            where=str(path),
            expected="the keys " + ", ".join(DeviceProfile.model_fields),
        )
    return _device(path.stem, data, where=str(path))


def _device(name: str, data: dict[str, Any], where: str) -> DeviceProfile:
    data = {"name": name, **data}
    if isinstance(data.get("link"), str):
        data["link"] = load_link(data["link"])
    try:
        return DeviceProfile.model_validate(data)
    except ValidationError as error:
        # A mistyped key is also a missing one; the typing mistake is what helps.
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        key = ".".join(str(part) for part in first["loc"])
        part = _PARTS.get(key.partition(".")[0]) if "." in key else None
        known = list((part or DeviceProfile).model_fields)
        if first["type"] == "extra_forbidden":
            raise _unknown("key", key.rpartition(".")[2], known, where=where) from error
        raise SpecError(f"{key}: {first['msg']}", where=where) from error


def _unknown(what: str, name: str, known: list[str], where: str | None = None) -> SpecError:
    close = nearest(name, known)
    return SpecError(
        f"no {what} is called {name!r}",
        where=where,
        expected="one of " + ", ".join(known),
        hint=close,
    )
