"""From a file, a mapping or a command-line option to a checked `Spec`.

Paths in the file are relative to the file, as in every build tool, so that a spec means the same
from any folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from dnic.errors import SpecError
from dnic.spec.nearest import nearest
from dnic.spec.origin import KeyPath, Origin
from dnic.spec.problem import spec_errors
from dnic.spec.section import Section, overlay
from dnic.spec.spec import Spec
from dnic.spec.yamlfile import read_yaml

_LARGEST_BYTES = 2**18
_PROFILE_SUFFIXES = (".yaml", ".yml", ".json")


def load_spec(path: Path | str) -> Spec:
    """The spec in a YAML file; the paths in it are made relative to it.

    Raises:
        SpecError: no such file, no YAML, or keys and values that no spec has. All problems at once,
            each with `file:line`.
    """
    path = Path(path)
    spec = spec_from_text(_read(path), str(path))
    model, devices = spec.model, spec.devices
    if model.file is not None:
        spec = overlay(
            spec, Spec(model=model.model_copy(update={"file": path.parent / model.file}))
        )
    probe = spec.partition.probe
    if probe is not None:
        partition = spec.partition.model_copy(update={"probe": path.parent / probe})
        spec = overlay(spec, Spec(partition=partition))
    profile = devices.profile
    if "/" in profile or profile.endswith(_PROFILE_SUFFIXES):
        found = str(path.parent / profile)
        spec = overlay(spec, Spec(devices=devices.model_copy(update={"profile": found})))
    return spec


def spec_from_text(text: str, origin: str) -> Spec:
    """The spec in a YAML text; `origin` is the file name for messages.

    Raises:
        SpecError: as `load_spec`.
    """
    value, found = read_yaml(text, origin)
    return _checked(value, found)


def spec_from_mapping(mapping: Mapping[str, object], origin: str) -> Spec:
    """The spec of plain values as YAML would give them; `origin` says in messages what it was.

    Raises:
        SpecError: keys or values that no spec has.
    """
    return _checked(dict(mapping) if isinstance(mapping, Mapping) else mapping, Origin(origin))


def override(spec: Spec, path: str, value: object, *, option: str) -> Spec:
    """`spec` with one key set from the command line.

    Args:
        spec: the spec to change.
        path: dotted path of the key, such as `devices.count`.
        value: as YAML would give it.
        option: what the user typed, such as `--devices`; named in errors.

    Raises:
        SpecError: the value is impossible there, or together with the rest of the spec.
    """
    nested = value
    for key in reversed(path.split(".")):
        nested = {key: nested}
    origin = Origin(option)
    changed = overlay(spec, _checked(nested, origin))
    _check_again(changed, origin)
    return changed


def _checked(value: object, origin: Origin) -> Spec:
    try:
        return Spec.model_validate(value)
    except ValidationError as error:
        raise spec_errors(error, origin) from error


def _check_again(section: Section, origin: Origin, at: KeyPath = ()) -> None:
    """Run the checks that span several keys; `overlay` does not."""
    for key in type(section).model_fields:
        inner = getattr(section, key)
        if isinstance(inner, Section):
            _check_again(inner, origin, (*at, key))
    try:
        type(section).model_validate(section)
    except ValidationError as error:
        raise spec_errors(error, origin, at) from error


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_BYTES + 1)
        if len(content) > _LARGEST_BYTES:
            raise SpecError("the spec is too large", where=str(path), expected="at most 256 KiB")
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SpecError("not UTF-8 text", where=f"{path}:{line}", expected="a YAML file") from error
    except FileNotFoundError as error:
        folder = path.parent
        others = (p.name for p in (*folder.glob("*.yaml"), *folder.glob("*.yml")))
        raise SpecError(
            "no such spec file",
            where=str(path),
            expected="a YAML file",
            hint=nearest(path.name, others),
        ) from error
    except (OSError, ValueError) as error:
        raise SpecError(
            f"cannot read the spec: {getattr(error, 'strerror', None) or error}",
            where=str(path),
            expected="a YAML file",
        ) from error
