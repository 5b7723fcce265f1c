"""Proofs of bundles whose plan says another schedule than decoupled stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dnic.codegen.write import bundle_files
from dnic.compiler import plan_model
from dnic.proof.additive import losses_add_up
from dnic.proof.bundle import verify_bundle
from dnic.runtime.record import write_record
from dnic.spec import spec_from_mapping

MODEL = """
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(8, 16), {middle}, nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)
        )

    def forward(self, x):
        return self.layers(x)


build_model = Net


def example_inputs():
    return (torch.randn(12, 8),)


def loss(output, target):
    return F.cross_entropy(output, target, ignore_index={ignored})


def train_data():
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(4, (50,), generator=generator)
    return TensorDataset(torch.randn(50, 8, generator=generator) + target.unsqueeze(1), target)
"""


def written(folder: Path, *, middle: str = "nn.ReLU()", ignored: int = -100, **train: Any) -> Path:
    """A bundle of two stages."""
    model = folder / "net.py"
    model.write_text(MODEL.replace("{middle}", middle).replace("{ignored}", str(ignored)))
    spec = spec_from_mapping(
        {
            "model": {"file": str(model)},
            "train": {"batch_size": 12, "epochs": 1, **train},
            "devices": {"count": 2, "profile": "cpu-core"},
            "partition": {"stages": 2, "cuts": ["layers.2"]},
        },
        "test",
    )
    planned = plan_model(spec)
    bundle = folder / "bundle"
    bundle.mkdir()
    for name, content in bundle_files(planned.coarse, planned.plan, model.read_bytes()).items():
        (bundle / name).write_bytes(content)
    return bundle


def scheduled(bundle: Path, **schedule: Any) -> Path:
    """The bundle with another schedule in its plan."""
    path = bundle / "plan.yaml"
    plan = yaml.safe_load(path.read_text()) | {"schedule": schedule}
    path.write_text(yaml.safe_dump(plan))
    return bundle


@pytest.mark.processes
@pytest.mark.parametrize(
    ("schedule", "told"),
    [
        pytest.param({"mode": "1f1b", "microbatches": 3}, "1f1b;", id="1f1b"),
        pytest.param({"mode": "exact", "microbatches": 3}, "exact;", id="exact"),
    ],
)
def test_a_planned_schedule_is_compared_with_backprop(
    tmp_path: Path, schedule: dict[str, Any], told: str
) -> None:
    bundle = scheduled(written(tmp_path), **schedule)
    begun: list[str] = []
    result = verify_bundle(bundle, begun.append)
    assert begun == ["split", "capture", "exact", "oracle", "schedule"]
    assert {name: rung["passed"] for name, rung in result["rungs"].items()} == dict.fromkeys(
        ("split", "exact", "oracle", "schedule"), True
    )
    rung = result["rungs"]["schedule"]
    assert rung["compared"] == 20
    assert f"against backprop, with {told}" in rung["detail"]


def test_replicas_are_compared_beside_stages_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which runs are started; tests of the runtime start them."""
    started: list[tuple[str, int | None, bool]] = []

    def launch(folder: Path, *, mode: str, processes: int | None, extra: Any, **_: Any) -> None:
        started.append((mode, processes, "--replicas=1" in extra))
        (record,) = [Path(option[9:]) for option in extra if option.startswith("--record=")]
        write_record(record, 0, [1.0], {"weight": torch.zeros(1)}, {}, {})

    monkeypatch.setattr("dnic.proof.bundle.launch", launch)
    result = verify_bundle(scheduled(written(tmp_path), replicas=2), lambda name: None)
    assert started == [
        ("exact", 2, True),
        ("backprop", None, True),
        ("oracle", 2, True),
        ("exact", None, False),
    ]
    assert "exact, 2 replicas of each stage" in result["rungs"]["schedule"]["detail"]


@pytest.mark.parametrize(
    ("keys", "adds_up"),
    [
        pytest.param({}, True, id="a mean over the samples"),
        pytest.param({"batch_size": 13}, True, id="uneven parts"),
        pytest.param({"batch_size": 1}, True, id="one sample"),
        pytest.param({"middle": "nn.BatchNorm1d(16)"}, False, id="BatchNorm"),
        pytest.param({"middle": "nn.Dropout(0.5)"}, True, id="dropout"),
        pytest.param({"ignored": 0}, False, id="samples that do not count"),
    ],
)
def test_whether_parts_are_as_good_as_the_batch(
    tmp_path: Path, keys: dict[str, Any], adds_up: bool
) -> None:
    assert losses_add_up(written(tmp_path, **keys)) is adds_up
