"""The starter file, and that any spec can be written and read back."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dnic.errors import SpecError
from dnic.spec import (
    ModelSpec,
    Spec,
    load_spec,
    render,
    spec_from_mapping,
    spec_from_text,
    starter,
)


def test_the_starter_loads_to_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(starter("../model.py"))
    expected = Spec(model=ModelSpec(file=tmp_path / "../model.py"))
    assert load_spec(path) == expected


def test_the_starter_gives_every_key_with_a_comment() -> None:
    """Read with plain PyYAML, as an editor would."""
    text = starter("model.py")
    plain = yaml.safe_load(text)
    assert plain == Spec(model=ModelSpec(file=Path("model.py"))).model_dump(
        mode="json", by_alias=True
    )
    for line in text.splitlines():
        assert "#" in line or line.endswith(":") or not line, line
        assert len(line) <= 100


def test_the_commented_example_is_valid() -> None:
    text = starter("model.py")
    used = text.replace("  # layer3:  ", "  layer3:  ").replace("  #   gradient", "    gradient")
    assert used != text
    assert spec_from_text(used, "s").interface("layer3").gradient == "exact"


@pytest.mark.parametrize("name", ["my model.py", "modèle.py", "#1: 'a' \"b\".py", "no", "1e3", "~"])
def test_odd_file_names_are_quoted(name: str) -> None:
    text = starter(name)
    assert spec_from_text(text, "s").model.file == Path(name)
    assert yaml.safe_load(text)["model"]["file"] == name


def test_impossible_file_names_are_refused() -> None:
    with pytest.raises(SpecError):
        starter("a\nb.py")


def _maybe(**keys: st.SearchStrategy[object]) -> st.SearchStrategy[dict[str, object]]:
    return st.fixed_dictionaries({}, optional=dict(keys))


_words = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=12)
_names = st.from_regex(r"[a-z_][a-z_0-9]{4,9}", fullmatch=True).map(lambda n: "f" + n)
_count = st.integers(1, 2**40)
_count_or_auto = _count | st.just("auto")
_rate = st.floats(0, 1e9, allow_subnormal=True)
_head = _maybe(
    hidden_layers=st.integers(0, 3),
    width=_count_or_auto,
    context=st.sampled_from(["target", "none"]),
    lr=_rate,
    train_every=_count,
)
_guard = _maybe(
    enabled=st.booleans(),
    check_every=_count,
    patience=_count,
    retry_after=_count,
    minimum=st.floats(-9, 0.99) | st.just("auto"),
    at_first=st.floats(-9, 0.99) | st.just("auto"),
    growth=_count,
    proof=_count,
    fallback=st.sampled_from(["exact", "none"]),
)
_interface = _maybe(
    gradient=st.sampled_from(["auto", "exact", "virtual", "none", "stale"]),
    head=_head,
    window=_count_or_auto,
    warmup_steps=st.integers(0, 1000) | st.just("auto"),
    warmup_until=st.none() | st.floats(0, 0.99),
    guard=_guard,
    message=st.sampled_from(["auto", "fp32", "bf16"]),
)
_specs = _maybe(
    model=_maybe(file=_words, build_model=_names, loss=_names),
    train=_maybe(
        batch_size=_count_or_auto | st.none(),
        epochs=_count,
        seed=st.integers(0, 2**32 - 1),
        scheduler=st.none()
        | st.sampled_from(
            [
                {"name": "OneCycleLR", "max_lr": 0.1, "total_steps": 9, "interval": "step"},
                {"name": "ChainedScheduler", "schedulers": [{"name": "ConstantLR"}]},
                {"name": "ReduceLROnPlateau", "mode": "max", "min_lr": [0.1]},
            ]
        ),
        clip_norm=st.none() | st.floats(1e-6, 1e6),
        precision=st.sampled_from(["fp32", "bf16"]),
        recompute=st.booleans() | st.lists(st.integers(0, 9), max_size=3),
        compile=st.booleans(),
        optimizer=_maybe(
            lr=_rate,
            betas=st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)).map(list),
            amsgrad=st.booleans(),
            fused=st.none(),
            weight_decay=st.integers(0, 5) | _rate,
        ),
    ),
    devices=_maybe(
        count=_count,
        kind=st.sampled_from(["auto", "cpu", "cuda"]),
        memory=st.sampled_from(["auto", None, "80GiB", "1.5KB", "7 B"]),
        profile=_words,
        links=_maybe(
            default=_maybe(
                bandwidth=_rate.filter(bool).map(lambda x: f"{x!r}GB/s"),
                latency=_rate.map(lambda x: f"{x!r} ms"),
            )
        ),
        costs=st.sampled_from(["auto", "analytic", "measured"]),
    )
    | st.fixed_dictionaries(
        {
            "groups": st.lists(
                _maybe(count=_count, profile=_words, memory=st.just("80GiB"), link=_maybe()),
                min_size=2,
                max_size=3,
            ),
            "links": st.just(
                {"between": [{"groups": [0, 1], "bandwidth": "1Gbit/s", "latency": "20ms"}]}
            ),
        }
    ),
    partition=_maybe(
        stages=st.just("auto"),
        cuts=st.lists(_words, unique=True, max_size=4) | st.just("auto"),
        replicas=st.sampled_from(["auto", 1, 4]),
        schedule=st.sampled_from(["auto", "decoupled", "1f1b", "ddp"]),
        microbatches=st.sampled_from(["auto", 8]),
        max_decoupled_interfaces=st.sampled_from(["auto", None, 2]),
        keep_together=st.lists(st.lists(_words, unique=True, max_size=3), max_size=3),
    ),
    interfaces=st.dictionaries(_words | st.just("default"), _interface, max_size=4),
)


@settings(deadline=None)
@given(_specs)
def test_any_spec_is_written_so_that_it_reads_back(mapping: dict[str, object]) -> None:
    spec = spec_from_mapping(mapping, "given")
    again = spec_from_text(render(spec), "written")
    assert again == spec
    for name in (*spec.interface_names(), "default", "elsewhere"):
        assert again.interface(name) == spec.interface(name)
