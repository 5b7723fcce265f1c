"""The starter spec: every key with its value and a comment, as YAML text.

Written from the models themselves, so that a new key appears with its default and its description.
PyYAML's own writer has no comments. Comments of a spec that was read are not kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import yaml

from dnic.spec.loader import spec_from_mapping
from dnic.spec.section import Section
from dnic.spec.spec import DEFAULT, Spec
from dnic.spec.yamlfile import read_yaml

_COLUMN = 34
_HEADER = """\
# What dnic is to do with the model. Every key is optional; these are the defaults.
"""
_EXAMPLE = """\
  # layer3:                       # the interface after module layer3
  #   gradient: exact
"""


# A word or a path, or a quantity such as 25GB/s.
_PLAIN = re.compile(r"[A-Za-z_./][\w./-]*|[0-9.]+[A-Za-z]+(/s)?", re.ASCII)
_YAML_1_1 = ("y", "n", "yes", "no", "on", "off")


def starter(model_file: str) -> str:
    """The commented spec that `dnic init` writes: the defaults for one model file.

    Args:
        model_file: path of the model file, relative to the folder of the spec.

    Raises:
        SpecError: `model_file` cannot stand in a spec.
    """
    spec = spec_from_mapping({"model": {"file": model_file}}, "the model file")
    return render(spec, _HEADER) + _EXAMPLE


def render(spec: Spec, header: str = "") -> str:
    """A commented YAML text that loads back to an equal spec.

    Sections are written whole; interfaces other than `default` with the keys that they were given,
    because what they leave out is inherited.
    """
    lines = []
    for name, info in Spec.model_fields.items():
        lines += ["", f"# {name}: {info.description}", f"{name}:"]
        section = getattr(spec, name)
        if isinstance(section, Section):
            lines += _section(section, "  ")
    for name in (DEFAULT, *spec.interface_names()):
        lines.append(f"  {_scalar(name)}:")
        lines += _section(spec.interfaces[name], "    ", given_only=name != DEFAULT)
    return header + "\n".join(lines) + "\n"


def _section(section: Section, indent: str, given_only: bool = False) -> Iterator[str]:
    written = section.model_dump(mode="json", by_alias=True)
    fields = type(section).model_fields
    for name in (*fields, *(section.model_extra or {})):
        if given_only and name not in section.model_fields_set:
            continue
        info = fields.get(name)
        key = (info.alias if info else None) or name
        comment = info.description if info else None
        value = getattr(section, name)
        if isinstance(value, Section):
            yield _commented(f"{indent}{key}:", comment)
            yield from _section(value, indent + "  ", given_only)
        else:
            yield _commented(f"{indent}{key}: {_value(written[key])}", comment)


def _commented(line: str, comment: str | None) -> str:
    return f"{line:<{_COLUMN - 1}} # {comment}" if comment else line


def _value(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, dict):
        pairs = (f"{_scalar(key)}: {_value(entry)}" for key, entry in value.items())
        return "{" + ", ".join(pairs) + "}"
    return _scalar(value)


def _scalar(value: object) -> str:
    """One scalar, quoted where YAML would read something else."""
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and value.lower() not in _YAML_1_1
        if plain and read_yaml(value, "")[0] == value:
            return value
        return str(yaml.dump(value, default_style='"', width=2**31)).strip()
    if isinstance(value, float):
        # YAML 1.1 readers need a point before the exponent.
        return re.sub(r"^(-?\d+)e", r"\1.0e", repr(value))
    return json.dumps(value)
