"""What a right spec means: defaults, units, inheritance, paths."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from dnic.spec import Spec, json_schema, load_spec, override, spec_from_mapping, spec_from_text

DESIGN = """
model:      {file: ../examples/mnist/model.py}
train:      {batch_size: 256, epochs: 5, optimizer: {name: AdamW, lr: 1.0e-3}, precision: fp32, seed: 0}
devices:    {count: 4, kind: auto, memory: 80GiB, profile: auto, links: {default: {bandwidth: 25GB/s, latency: 10us}}}
partition:  {stages: auto, cuts: auto, replicas: auto, keep_together: []}
interfaces:
  default:  {gradient: auto, head: {hidden_layers: 1, width: auto, context: target}, window: auto, warmup_steps: 200}
  layer3:   {gradient: synthetic, head: {hidden_layers: 0}}
"""  # noqa: E501


def test_the_spec_of_the_design_page(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(DESIGN)
    spec = load_spec(path)
    assert spec.model.file == tmp_path / "../examples/mnist/model.py"
    assert spec.train.batch_size == 256
    assert spec.train.optimizer.options == {"lr": 1e-3}
    assert spec.devices.memory == 80 * 2**30
    assert spec.devices.links.default.bandwidth_bytes_per_s == 25e9
    assert spec.devices.links.default.latency_us == 10.0
    assert spec.interface_names() == ("layer3",)
    layer3 = spec.interface("layer3")
    assert (layer3.gradient, layer3.warmup_steps) == ("synthetic", 200)
    assert (layer3.head.hidden_layers, layer3.head.width) == (0, "auto")


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "{}", "null", "train:\npartition:\n"])
def test_nothing_is_all_defaults(text: str) -> None:
    spec = spec_from_text(text, "spec.yaml")
    assert spec == Spec()
    assert (spec.train.epochs, spec.train.batch_size, spec.train.precision) == (5, None, "fp32")
    assert spec.train.optimizer.name == "AdamW"
    assert (spec.devices.count, spec.devices.kind, spec.devices.memory) == (2, "auto", None)
    assert (spec.partition.stages, spec.partition.cuts) == ("auto", "auto")
    assert spec.partition.keep_together == ()
    head = spec.interface("anything").head
    assert (head.hidden_layers, head.width) == ("auto", "auto")
    assert (head.context, head.lr) == ("target", 1e-3)


def test_a_spec_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Spec().train.epochs = 3  # type: ignore[misc]


def test_interfaces_inherit_key_by_key() -> None:
    spec = spec_from_text(
        """
        interfaces:
          default: {window: 3, head: {width: 64, lr: 0.01}}
          layer1:  {head: {width: 8}}
          layer2:  {window: auto, head: {lr: 0.001}}
          layer3:
        """,
        "s",
    )
    assert spec.interface_names() == ("layer1", "layer2", "layer3")
    layer1, layer2 = spec.interface("layer1"), spec.interface("layer2")
    assert (layer1.window, layer1.head.width, layer1.head.lr) == (3, 8, 0.01)
    # A key that was given counts even when it equals the default.
    assert (layer2.window, layer2.head.width, layer2.head.lr) == ("auto", 64, 0.001)
    assert spec.interface("layer3") == spec.interface("default") == spec.interface("elsewhere")


def test_numbers_that_are_names() -> None:
    """`nn.Sequential` calls its modules 0, 1, 2."""
    spec = spec_from_text("partition: {cuts: [3, '5.0']}\ninterfaces: {3: {window: 4}}", "s")
    assert spec.partition.cuts == ("3", "5.0")
    assert spec.interface("3").window == 4


def test_scalars_are_those_of_yaml_1_2() -> None:
    spec = spec_from_text(
        "train: {optimizer: {eps: 1e-9, lr: 1}}\npartition: {cuts: [no, 010, 1:30, 2001-01-01]}",
        "s",
    )
    assert spec.train.optimizer.options == {"lr": 1.0, "eps": 1e-9}
    assert spec.partition.cuts == ("no", "010", "1:30", "2001-01-01")


def test_anchors_and_merges() -> None:
    spec = spec_from_text(
        """
        interfaces:
          layer1: &early {gradient: synthetic, window: 2, head: &head {width: 8}}
          layer2: {<<: *early, window: 4}
          layer3: {<<: [{window: 5}, *early], head: *head}
        """,
        "s",
    )
    assert [spec.interface(f"layer{i}").window for i in (1, 2, 3)] == [2, 4, 5]
    assert {spec.interface(f"layer{i}").gradient for i in (1, 2, 3)} == {"synthetic"}
    assert {spec.interface(f"layer{i}").head.width for i in (1, 2, 3)} == {8}


def test_optimizer_arguments() -> None:
    spec = spec_from_text(
        "train: {optimizer: {name: Adafactor, lr: 0.01, eps: [null, 1e-3], maximize: true, d: 1}}",
        "s",
    )
    assert spec.train.optimizer.options == {
        "lr": 0.01,
        "eps": (None, 1e-3),
        "maximize": True,
        "d": 1,
    }


def test_a_scheduler_and_those_that_it_joins() -> None:
    spec = spec_from_text(
        """
        train:
          optimizer: {name: SGD, lr: 0.1, momentum: 0.9}
          scheduler:
            name: SequentialLR
            milestones: [5]
            schedulers:
              - {name: LinearLR, start_factor: 0.1}
              - {name: CyclicLR, base_lr: 0.01, max_lr: 0.1, mode: triangular2}
            interval: step
          clip_norm: 1
          precision: bf16
          recompute: [2, 0]
          compile: true
        """,
        "s",
    )
    train = spec.train
    assert train.scheduler is not None
    assert (train.scheduler.name, train.scheduler.interval) == ("SequentialLR", "step")
    assert train.scheduler.options == {
        "milestones": [5],
        "schedulers": [
            {"name": "LinearLR", "options": {"start_factor": 0.1}},
            {
                "name": "CyclicLR",
                "options": {"base_lr": 0.01, "max_lr": 0.1, "mode": "triangular2"},
            },
        ],
    }
    assert (train.clip_norm, train.precision, train.recompute) == (1.0, "bf16", (0, 2))
    assert train.compile


def test_paths_are_relative_to_the_spec(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("model: {file: m.py, loss: criterion}\ndevices: {profile: gpus/a.yaml}")
    spec = load_spec(path)
    assert spec.model.file == tmp_path / "m.py"
    assert spec.model.loss == "criterion"
    assert spec.devices.profile == str(tmp_path / "gpus/a.yaml")
    path.write_text("model: {file: /models/m.py}\ndevices: {profile: a100-80gb}")
    spec = load_spec(path)
    assert spec.model.file == Path("/models/m.py")
    assert spec.devices.profile == "a100-80gb"


def test_a_byte_order_mark_is_no_key(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_bytes(b"\xef\xbb\xbftrain: {epochs: 7}\r\n")
    assert load_spec(path).train.epochs == 7


def test_override_keeps_the_rest() -> None:
    given = {
        "devices": {"memory": "1GiB", "links": {"default": {"latency": "1ms"}}},
        "interfaces": {"default": {"window": 2}, "layer1": {"head": {"width": 8}}},
    }
    spec = spec_from_mapping(given, "s")
    changed = override(spec, "devices.count", 4, option="--devices")
    assert changed.devices.count == 4
    assert changed.devices.memory == 2**30
    assert changed.devices.links == spec.devices.links
    assert changed.interface("layer1") == spec.interface("layer1")
    assert spec.devices.count == 2
    changed = override(spec, "interfaces.layer1.gradient", "exact", option="--exact")
    assert changed.interface("layer1").gradient == "exact"
    assert changed.interface("layer1").head.width == 8
    assert changed.interface("layer1").window == 2


def test_json_schema_names_every_key_as_it_is_written() -> None:
    schema = json_schema()
    parts = schema["$defs"]
    assert set(schema["properties"]) == {"model", "train", "devices", "partition", "interfaces"}
    assert parts["LinkSpec"]["properties"]["bandwidth"]["default"] == "25GB/s"
    assert parts["LinkSpec"]["properties"]["latency"]["default"] == "10us"
    assert parts["HeadSpec"]["additionalProperties"] is False
    assert parts["OptimizerSpec"]["additionalProperties"] is True
    for part in (schema, *parts.values()):
        assert part["description"]
        assert all(field.get("description") for field in part["properties"].values())
