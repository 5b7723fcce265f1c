"""`train.py` says how it is run, and `plan.yaml` keeps the schedule only where one was planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dnic.codegen.planfile import plan_text, read_plan_file
from dnic.codegen.train import train_source
from dnic.errors import SpecError
from dnic.partition.plan import Plan, PlannedLrScheduler
from dnic.runtime.bundle import structure_digest


def plan(stages: int, **schedule: Any) -> Plan:
    stage = {
        "inputs": ["x"],
        "outputs": ["y"],
        "modules": [],
        "operations": [],
        "parameters": 1,
        "parameter_bytes": 4,
        "forward_flops": 1,
        "forward_us": 1.0,
        "backward_us": 1.0,
        "memory_bytes": 4,
        "time_share": 1.0,
    }
    return Plan.model_validate(
        {
            "dnic": "0",
            "model": {
                "name": "Net",
                "parameters": 1,
                "parameter_bytes": 4,
                "batch_size": 8,
                "operations": 1,
            },
            "train": {"batch_size": 8, "epochs": 5, "optimizer": {}},
            "schedule": schedule,
            "target": None,
            "stages": [{"name": f"stage{i}", "device": i, **stage} for i in range(stages)],
            "interfaces": [],
            "prediction": {
                "profile": "none",
                "backprop_us": 1.0,
                "step_us": 1.0,
                "speedup": 1.0,
                "bottleneck": "stage0",
            },
        }
    )


@pytest.mark.parametrize(
    ("planned", "title", "command"),
    [
        (plan(2), "2 decoupled stages.", "torchrun --standalone --nproc-per-node=2 train.py"),
        (plan(1), "one stage.", "torchrun --standalone --nproc-per-node=1 train.py"),
        (plan(1, mode="backprop"), "one process.", "python train.py"),
        (
            plan(1, mode="ddp", processes=3),
            "3 processes, each with a share of every batch.",
            "torchrun --standalone --nproc-per-node=3 train.py",
        ),
        (
            plan(4, mode="1f1b", microbatches=8),
            "4 stages under the 1F1B schedule.",
            "torchrun --standalone --nproc-per-node=4 train.py",
        ),
        (
            plan(2, replicas=3),
            "2 decoupled stages, 3 replicas of each.",
            "torchrun --standalone --nproc-per-node=6 train.py",
        ),
        (
            plan(2, mode="gpipe"),
            "2 stages under the GPipe schedule.",
            "torchrun --standalone --nproc-per-node=2 train.py",
        ),
        (
            plan(3, mode="exact", microbatches=4),
            "3 stages under dnic's own 1F1B schedule.",
            "torchrun --standalone --nproc-per-node=3 train.py",
        ),
        (
            plan(2, mode="exact"),
            "2 stages, each waiting for its gradient.",
            "torchrun --standalone --nproc-per-node=2 train.py",
        ),
    ],
)
def test_train_py_says_how_it_is_run(planned: Plan, title: str, command: str) -> None:
    text = train_source(planned)
    lines = text.splitlines()
    assert lines[0] == f'"""Train Net in {title}'
    assert lines[2].strip() == f"{command} --epochs 5"
    assert ("The whole model;" in text) == (planned.schedule.mode in ("ddp", "backprop"))
    assert max(map(len, lines)) <= 100
    compile(text, "train.py", "exec")


def test_a_planned_scheduler_is_seen_in_train_py() -> None:
    planned = plan(2)
    training = planned.train.model_copy(update={"scheduler": PlannedLrScheduler(name="StepLR")})
    text = train_source(planned.model_copy(update={"train": training}))
    assert "    scheduler = worker.scheduler(optimizer)  # the same; or any of torch's\n" in text
    assert "optimizer, loss=model.loss, scheduler=scheduler)\n" in text
    compile(text, "train.py", "exec")
    assert "scheduler" not in train_source(planned)


def test_a_schedule_is_written_where_it_is_not_the_default(tmp_path: Path) -> None:
    planned = plan(1, mode="ddp", processes=3)
    text = plan_text(planned)
    assert yaml.safe_load(text)["schedule"] == {"mode": "ddp", "processes": 3, "microbatches": 1}
    assert "# `schedule` may be edited too" in text
    assert "schedule" not in yaml.safe_load(plan_text(plan(1)))
    assert "`schedule`" not in plan_text(plan(1))
    (tmp_path / "plan.yaml").write_text(text)
    assert read_plan_file(tmp_path) == planned
    for key, value in (("mode", "oracle"), ("processes", 0), ("microbatches", 0)):
        content = yaml.safe_load(text)
        content["schedule"][key] = value
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(content))
        with pytest.raises(SpecError, match=rf"schedule\.{key}"):
            read_plan_file(tmp_path)


def test_replicas_are_written_where_there_are_some(tmp_path: Path) -> None:
    planned = plan(2, replicas=2, shard=True)
    text = plan_text(planned)
    assert "schedule: {mode: decoupled, processes: null, microbatches: 1, replicas: 2" in text
    (tmp_path / "plan.yaml").write_text(text)
    assert read_plan_file(tmp_path) == planned
    assert "replicas" not in plan_text(plan(2, mode="exact"))


def test_the_schedule_is_no_part_of_what_was_generated() -> None:
    digests = {
        structure_digest(planned.model_dump(mode="json", by_alias=True))
        for planned in (plan(2), plan(2, mode="1f1b", microbatches=8))
    }
    assert len(digests) == 1
