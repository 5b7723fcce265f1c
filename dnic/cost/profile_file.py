"""A device profile as a YAML file: what `dnic calibrate` writes and `devices.profile` reads."""

from __future__ import annotations

from pathlib import Path

import yaml

from dnic.cost.profile import DeviceProfile
from dnic.errors import SpecError

_HEADER = """\
# A device profile of dnic; use it with `devices: {{profile: {name}}}` in a spec.
# Units are in the keys. {source}
"""


def profile_text(profile: DeviceProfile, name: str) -> str:
    """The profile as YAML; fields that are not known are left out.

    Args:
        profile: of a device.
        name: of the file, for the first line.
    """
    data = profile.model_dump(exclude_none=True)
    body = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)
    return _HEADER.format(name=name, source=profile.source) + body


def write_profile(profile: DeviceProfile, path: Path) -> None:
    """Write a profile that `load_profile` reads again as it was.

    Raises:
        SpecError: the name does not end like a profile's, or the file cannot be written.
    """
    if path.suffix not in (".yaml", ".yml"):
        raise SpecError(
            f"a profile cannot be written to {path}", where="-o", expected="a name in .yaml"
        )
    try:
        path.write_text(profile_text(profile, path.name), encoding="utf-8")
    except OSError as error:
        raise SpecError(f"the profile cannot be written: {error}", where=str(path)) from error
