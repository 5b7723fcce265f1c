"""Which ways to train a bundle are measured, and why others are not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import pytest

from dnic.bench.variant import (
    FAMILIES,
    MICROBATCHES,
    LeftOut,
    Variant,
    parse_families,
    parse_microbatches,
    variants,
)
from dnic.errors import SpecError
from dnic.runtime.options import MICROBATCHED
from dnic.runtime.plan import (
    HeadPlan,
    InterfacePlan,
    Mode,
    Plan,
    SamplePlan,
    SchedulePlan,
    StagePlan,
    TensorSpec,
    TrainPlan,
)

HEAD = HeadPlan(0, None, "target", 1e-3)
TENSOR = TensorSpec("h", ("B", 4), "float32", True)


def plan(stages: int, pairs: Sequence[tuple[int, int]], batch: int = 16) -> Plan:
    return Plan(
        model="Net",
        samples=SamplePlan(),
        weights="file",
        train=TrainPlan(batch, 1, 0, "SGD", {}),
        target=None,
        stages=tuple(StagePlan(f"stage{i}", (), ()) for i in range(stages)),
        interfaces=tuple(
            InterfacePlan(f"cut{a}{b}", a, b, (TENSOR,), "synthetic", HEAD, 2, 0) for a, b in pairs
        ),
        shared=(),
        digest="",
        files={},
    )


def names(found: Sequence[Variant | LeftOut], *families: str) -> list[str]:
    return [f.name for f in found if f.name.partition("-")[0] in families]


def reasons(left_out: Sequence[LeftOut]) -> dict[str, str]:
    return {entry.name: entry.reason for entry in left_out}


def test_every_way_of_a_chain() -> None:
    found, left_out = variants(plan(2, [(0, 1)]), FAMILIES, MICROBATCHES, cores=2)
    always = ["backprop", "threads", "ddp", "naive", "gpipe-2", "gpipe-4", "gpipe-8"]
    assert [v.name for v in found][:10] == [*always, "1f1b-2", "1f1b-4", "1f1b-8"]
    assert names(found, "interleaved", "zerobubble") == [f"zerobubble-{m}" for m in (2, 4, 8)]
    assert "the plan has one stage for each process" in reasons(left_out)["interleaved"]
    assert [v.name for v in found][-2:] == ["decoupled", "ceiling"]
    by = {v.name: v for v in found}
    assert by["naive"] == Variant("naive", "naive", "exact", 2, microbatches=1)
    assert by["threads"] == Variant("threads", "threads", "backprop", 1, threads=2, wired=False)
    assert by["gpipe-4"] == Variant("gpipe-4", "gpipe", "gpipe", 2, microbatches=4)
    assert by["ceiling"] == Variant("ceiling", "ceiling", "alone", 2, wired=False)
    # Other modes are measured as soon as the runtime has them, and named until then.
    assert ("stale" in by) == ("stale" in get_args(Mode)) == ("stale" not in reasons(left_out))
    cut = ["exact-2", "exact-4", "exact-8"] if "exact" in MICROBATCHED else []
    assert names(found, "exact") == cut and (not cut) == ("exact" in reasons(left_out))


def test_what_cannot_be_is_named_with_its_reason() -> None:
    skipping = plan(3, [(0, 1), (1, 2), (0, 2)])
    found, left_out = variants(skipping, FAMILIES, MICROBATCHES, cores=1)
    assert "h of the interface cut02 goes from stage 0 to stage 2" in reasons(left_out)["gpipe"]
    assert reasons(left_out)["threads"] == "this machine has one core"
    assert not names(found, "gpipe", "1f1b", "threads")
    whole = reasons(variants(plan(1, []), FAMILIES, (2,), cores=2)[1])
    assert whole["ceiling"] == whole["decoupled"] == whole["naive"] == "the plan has one stage"
    assert whole["ddp"] == "it takes two processes or more; the plan has one"


def test_microbatches_that_do_not_fit() -> None:
    chain = plan(3, [(0, 1), (1, 2)], batch=12)
    found, left_out = variants(chain, ("gpipe", "1f1b"), (2, 4, 8), cores=2)
    assert [v.name for v in found] == ["gpipe-2", "gpipe-4", "1f1b-4"]
    assert reasons(left_out) == {
        "gpipe-8": "8 does not divide the batch of 12",
        "1f1b-2": "1F1B over 3 stages takes 3 microbatches or more",
        "1f1b-8": "8 does not divide the batch of 12",
    }


def test_stages_with_replicas_take_as_many_processes() -> None:
    chain = plan(2, [(0, 1)], batch=12)
    wide = replace(chain, schedule=SchedulePlan(replicas=3))
    found, left_out = variants(wide, FAMILIES, (4, 8), cores=2)
    processes = {v.name: v.processes for v in found}
    assert {name for name, number in processes.items() if number == 6} == {
        "ddp",
        "naive",
        "exact-4",
        "stale",
        "decoupled",
        "ceiling",
    }
    assert processes["gpipe-4"] == processes["1f1b-4"] == 2  # torch's have none
    assert reasons(left_out)["exact-8"] == "8 does not divide the batch of 4"


def test_a_plan_that_deals_its_stages_out() -> None:
    chain = plan(4, [(0, 1), (1, 2), (2, 3)], batch=12)
    dealt = replace(chain, schedule=SchedulePlan("interleaved", 2, 4))
    families = ("1f1b", "interleaved", "zerobubble")
    found, left_out = variants(dealt, families, (2, 3, 4, 8, 12), cores=2)
    assert [(v.name, v.processes) for v in found] == [
        ("1f1b-4", 4),
        ("1f1b-12", 4),
        *[(f"interleaved-{m}", 2) for m in (2, 3, 4, 12)],
        *[(f"zerobubble-{m}", 2) for m in (2, 3, 4, 12)],
    ]
    found, left_out = variants(chain, families, (2, 6), cores=2)
    assert [(v.name, v.processes) for v in found] == [("1f1b-6", 4), ("zerobubble-6", 4)]
    refused = "2 microbatches do not fill rounds of 4 processes"
    assert reasons(left_out)["zerobubble-2"] == refused
    compiled = replace(chain, train=replace(chain.train, compile=True))
    left_out = variants(compiled, ("zerobubble",), (4,), cores=2)[1]
    assert "a compiled stage has one" in reasons(left_out)["zerobubble"]


def test_a_plan_whose_interfaces_all_wait() -> None:
    waiting = plan(2, [(0, 1)])
    (interface,) = waiting.interfaces
    waiting = replace(waiting, interfaces=(replace(interface, gradient="exact", head=None),))
    found, left_out = variants(waiting, ("decoupled", "naive"), (), cores=2)
    assert [v.name for v in found] == ["naive"]
    assert "exact is the same" in reasons(left_out)["decoupled"]


def test_what_is_asked_for() -> None:
    assert parse_families("all") == FAMILIES
    assert parse_families("1f1b, ddp") == ("backprop", "ddp", "1f1b", "decoupled", "ceiling")
    with pytest.raises(SpecError, match="no way to train called 'ddpp'") as caught:
        parse_families("ddpp")
    assert caught.value.hint == "ddp"
    assert parse_microbatches("8, 2,8") == (8, 2)
    for text in ("1", "2,x", ""):
        with pytest.raises(SpecError, match="no list of microbatches"):
            parse_microbatches(text)
