"""Whatever comes in, a `Spec` or a `SpecError` comes out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dnic.errors import SpecError
from dnic.spec import Spec, json_schema, load_spec, override, spec_from_mapping, spec_from_text


def _all_keys(schema: object) -> set[str]:
    if isinstance(schema, dict):
        own = set(schema.get("properties", ()))
        return own.union(*map(_all_keys, schema.values())) if schema else own
    return set()


# Words that mean something, so that random values get past the first check.
_WORDS = [
    *sorted(_all_keys(json_schema())),
    *("auto", "default", "cpu", "fp32", "bf16", "exact", "synthetic", "stale", "target", "SGD"),
    *("LBFGS", "betas", "momentum", "params", "closure", "self", "25GB/s", "10us", "80GiB", "<<"),
    *("80", "1e999GB/s", "inf", "\ud800", "\0", "{}", "a.b.c", "class", "⅓", "٣us", "model_config"),
]
_scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, 2, 3, 2**63, -(2**64), 10**400])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(_WORDS)
    | st.binary(max_size=3)
)
_keys = st.sampled_from(_WORDS) | st.text(max_size=4) | st.integers() | st.none()
_values = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner)
        | st.dictionaries(_keys, inner, max_size=4)
        | st.dictionaries(st.sampled_from(_WORDS), inner, max_size=6)
    ),
    max_leaves=30,
)


def _field_values(schema: dict[str, object], depth: int = 0) -> st.SearchStrategy[object]:
    """Mappings that follow the schema's keys with arbitrary values at the leaves."""
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return _values
    parts = json_schema()["$defs"]
    optional = {}
    for key, field in properties.items():
        name = str(field.get("$ref", "")).rpartition("/")[2]
        optional[key] = _field_values(parts[name]) if name else _values
    interface = _field_values(parts["InterfaceSpec"]) if "interfaces" in properties else _values
    if "interfaces" in properties:
        optional["interfaces"] = st.dictionaries(_keys, interface | _values, max_size=3)
    return st.fixed_dictionaries({}, optional=optional) | _values


_mappings = _field_values(json_schema())

# No deadline: the machine is shared.
unhurried = settings(deadline=None)


@unhurried
@given(_mappings)
def test_any_mapping_gives_a_spec_or_a_spec_error(value: object) -> None:
    try:
        spec = spec_from_mapping(value, "given")  # type: ignore[arg-type]
    except SpecError as error:
        assert str(error).startswith("spec error: ")
        assert error.where == "given"
        str(error).encode()
    else:
        assert isinstance(spec, Spec)
        repr(spec)


_PATHS = (
    *("train", "train.seed", "train.epochs", "train.optimizer.betas", "train.optimizer.lr"),
    *("devices.count", "devices.memory", "devices.links.default.bandwidth", "model.file"),
    *("partition.cuts", "partition.keep_together", "interfaces", "interfaces.a.head.lr", "other"),
)


def _loop() -> list[object]:
    loop: list[object] = []
    loop.append(loop)
    return loop


def _deep() -> object:
    deep: object = 1
    for _ in range(5000):
        deep = [deep]
    return deep


@pytest.mark.parametrize("make", [_loop, _deep, lambda: 10**5000, object, lambda: Spec])
@pytest.mark.parametrize("path", _PATHS)
def test_monsters_are_refused_and_can_be_shown(path: str, make: Callable[[], object]) -> None:
    with pytest.raises(SpecError) as caught:
        override(Spec(), path, make(), option="--option")
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("text", ["[" * 200_000, "{a: " * 50_000, "- " * 50_000, "? " * 50_000])
def test_monstrous_texts_are_refused(text: str) -> None:
    with pytest.raises(SpecError, match="nested deeper than 32 levels"):
        spec_from_text(text, "given")


@unhurried
@given(st.text(alphabet="abc:-[]{}&*!|>'\"%@`#?,<~\\0x1.\n \t\0\x85\ufeff\ud800", max_size=60))
@example('"\\UFFFFFFFF"')
@example("%YAML " + "1" * 5000 + ".1\n---\n")
@example("&a [*a, *a]")
@example("? ? ? ?")
@example("a: !!timestamp 2001-99-99")
@example("a: !!binary =")
@example("!<tag:yaml.org,2002:null> x")
def test_any_text_gives_a_spec_or_a_spec_error(text: str) -> None:
    try:
        spec = spec_from_text(text, "given")
    except SpecError as error:
        assert str(error).startswith("spec error: ")
        assert str(error.where).startswith("given")
        str(error).encode()
    else:
        assert isinstance(spec, Spec)


@unhurried
@given(_values)
def test_any_yaml_gives_a_spec_or_a_spec_error(value: object) -> None:
    text = yaml.dump(value)
    try:
        assert isinstance(spec_from_text(text, "given"), Spec)
    except SpecError as error:
        assert str(error.where).startswith("given")


@unhurried
@given(content=st.binary(max_size=80))
def test_any_file_gives_a_spec_or_a_spec_error(tmp_path_factory: object, content: bytes) -> None:
    path = Path(tmp_path_factory.getbasetemp()) / "any.yaml"  # type: ignore[attr-defined]
    path.write_bytes(content)
    try:
        assert isinstance(load_spec(path), Spec)
    except SpecError as error:
        assert str(error.where).startswith(str(path))


@unhurried
@given(st.sampled_from(_WORDS) | st.text(max_size=20), _values)
def test_any_option_gives_a_spec_or_a_spec_error(path: str, value: object) -> None:
    try:
        assert isinstance(override(Spec(), path, value, option="--option"), Spec)
    except SpecError as error:
        assert error.where == "--option"
