"""Plans of the study: edited as asked, read by the runtime as edited, or refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dnic.runtime.bundle import read_plan
from studies.learning.bundles import Unable, bundle_of, check, edit, run_folder
from tests.studies.conftest import small


def content(to: tuple[int, ...] = (1,)) -> dict[str, Any]:
    interface = {"name": "a", "gradient": "synthetic", "window": 2, "head": {"hidden_layers": 1}}
    train = {"epochs": 5, "seed": 0, "optimizer": {"name": "SGD", "options": {"lr": 1.0}}}
    return {
        "model": {"weights": "file"},
        "train": train,
        "interfaces": [{**interface, "to": t} for t in to],
    }


def test_what_is_edited() -> None:
    plan = content()
    edit(plan, small(source="cdni-hidden", window=4, seed=3, warmup_steps=None))
    assert plan == {
        "model": {"weights": "seed"},
        "train": {
            "epochs": 2,
            "seed": 3,
            "optimizer": {"name": "AdamW", "options": {"lr": 0.003}},
            "scheduler": {
                "name": "CosineAnnealingLR",
                "options": {"T_max": 2},
                "interval": "epoch",
            },
        },
        "interfaces": [
            {
                "name": "a",
                "to": 1,
                "gradient": "synthetic",
                "window": 4,
                "head": {
                    "hidden_layers": 1,
                    "width": 64,
                    "context": "target",
                    "lr": 1e-3,
                    "one_in": 1,
                },
                "return_every": 1,
                "message": "float32",
                "warmup_steps": "auto",
                "guard": False,
            }
        ],
    }


@pytest.mark.parametrize(
    ("source", "gradient", "head"),
    [
        ("exact", "exact", None),
        ("stale", "stale", None),
        ("stale-weights", "stale", None),
        ("begun", "stale", {"hidden_layers": 0, "context": "target"}),
        ("none", "none", {"hidden_layers": 0}),
        ("virtual", "virtual", {"hidden_layers": 0, "task": 0.0}),
        ("virtual-task", "virtual", {"hidden_layers": 0, "task": 1.0}),
        ("local", "local", {"hidden_layers": 0, "context": "target"}),
        ("dni", "synthetic", {"context": "none"}),
    ],
)
def test_sources(source: str, gradient: str, head: dict[str, Any] | None) -> None:
    plan = content()
    edit(plan, small(source=source, part="time", window=3))
    (interface,) = plan["interfaces"]
    assert interface["gradient"] == gradient
    assert interface["window"] == 3
    assert (interface["head"] is None) == (head is None)
    assert (head or {}).items() <= (interface["head"] or {}).items()
    assert interface.get("predict_weights", False) == (source in ("stale-weights", "begun"))
    assert interface.get("warmup", "exact") == ("local" if source == "begun" else "exact")
    # True gradients that nobody learns from are not sent.
    assert interface["return_every"] == (0 if source in ("none", "local") else 1)
    assert plan["train"]["scheduler"]["options"] == {"T_max": 2}


@pytest.mark.parametrize("stages", [3, 4, 6])
def test_in_turns_the_last_interface_is_late(stages: int) -> None:
    plan = content(to=tuple(range(1, stages)))
    edit(plan, small(source="turns-hidden", stages=stages, window=1))
    gradients = [interface["gradient"] for interface in reversed(plan["interfaces"])]
    assert gradients[::2] == ["stale"] * len(gradients[::2])
    assert gradients[1::2] == ["local"] * len(gradients[1::2])
    for interface in plan["interfaces"]:
        late = interface["gradient"] == "stale"
        assert interface.get("predict_weights", False) == late
        assert interface["return_every"] == late
        assert late or interface["head"]["hidden_layers"] == 1


def test_sparse_updates_and_a_guard() -> None:
    plan = content()
    edit(plan, small(update_probability=0.2, guard=True))
    assert plan["train"]["update_probability"] == 0.2
    assert plan["interfaces"][0]["guard"] == {}


@pytest.mark.parametrize(
    ("run", "missing"),
    [
        (small(update_probability=0.2), "reads no train.update_probability"),
        (small(guard=True), "reads no interfaces.guard"),
        (small(source="virtual-task"), "reads no options of virtual heads"),
        (small(source="stale-weights"), "reads no interfaces.predict_weights"),
    ],
)
def test_what_would_silently_be_left_out_is_refused(run: Any, missing: str) -> None:
    interface = SimpleNamespace(head=SimpleNamespace(hidden_layers=0))
    plan: Any = SimpleNamespace(train=SimpleNamespace(), interfaces=[interface])
    with pytest.raises(Unable, match=missing) as refused:
        check(plan, run)
    assert refused.value.where == run.key
    able = SimpleNamespace(options={"task": 1.0})
    every: Any = SimpleNamespace(
        train=SimpleNamespace(update_probability=0.2),
        interfaces=[SimpleNamespace(head=able, guard=object(), predict_weights=True)],
    )
    check(every, run)


def test_the_runtime_reads_what_was_edited(images: Path, tmp_path: Path) -> None:
    run = small(layers=3, stages=3, window=4, seed=5)
    plan = read_plan(bundle_of(run, tmp_path / "cache", tmp_path / "one") / "plan.yaml")
    assert len(plan.stages) == 3
    assert plan.weights == "seed"
    assert (plan.train.seed, plan.train.epochs, plan.train.batch_size) == (5, 2, 256)
    assert [i.window for i in plan.interfaces] == [4, 4]
    assert [i.gradient for i in plan.interfaces] == ["synthetic"] * 2
    assert all(i.head is not None and i.head.hidden_layers == 0 for i in plan.interfaces)
    # Compiled once: another run finds it there.
    (compiled,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    before = compiled.stat().st_mtime_ns
    other = bundle_of(small(layers=3, stages=3, source="stale"), tmp_path / "cache", tmp_path / "b")
    assert compiled.stat().st_mtime_ns == before
    assert {i.gradient for i in read_plan(other / "plan.yaml").interfaces} == {"stale"}


def test_a_source_that_there_is_not(images: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from studies.learning import sources

    unknown = sources.Source("unheard of", "unheard-of", sources.LINEAR)
    monkeypatch.setitem(sources.SOURCES, "unheard-of", unknown)
    with pytest.raises(Unable, match="unheard-of"):
        bundle_of(small(source="unheard-of"), tmp_path / "cache", tmp_path / "one")


def test_folders_have_plain_names() -> None:
    assert run_folder(small()) == (
        "sources_fashion_connected-3_k2_cdni_w1_e2_lr0.003_width=32_warmup_steps=0_samples=1024_s0"
    )
