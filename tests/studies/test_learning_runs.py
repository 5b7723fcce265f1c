"""What the study runs: keys that stay, lists that compare like with like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

from studies.learning import parts, racing
from studies.learning.parts import FAR, FULL, QUICK, Family, chosen
from studies.learning.runs import Run, cuts
from studies.learning.sources import DECOUPLED, SOURCES
from tests.studies.conftest import small

RATES = {"connected": 1e-3, "convolutional": 2e-3, "residual": 3e-3, "characters": 4e-3}


def rate(family: Family) -> float:
    return RATES[family[1]]


def everything(sizes: parts.Sizes) -> Iterator[Run]:
    yield from parts.paper(sizes, rate)
    yield from parts.sources(sizes, rate)
    yield from racing.speeds(sizes, rate, lambda family, lateness: "cdni")
    yield from racing.budgets(sizes, rate, lambda family, lateness: "cdni")


def test_keys_stay() -> None:
    """Results are kept under them: another key is a run that is done again."""
    assert small().key == (
        "sources fashion connected-3 k2 cdni w1 e2 lr0.003 width=32 warmup_steps=0 samples=1024 s0"
    )
    whole = Run("time", "text", "characters", 4, 2, "exact", 1, 18, 1e-3, 2, way="ddp")
    assert whole.key == "time text characters-4 k2 exact w1 e18 lr0.001 way=ddp s2"


def test_every_part_of_a_run_is_in_its_key() -> None:
    other = {"part": "paper", "data": "mnist", "model": "residual", "source": "none"}
    other |= {"way": "ddp", "link": "20ms-1gbit", "guard": True, "update_probability": 0.2}
    base = small()
    changed = [
        replace(base, **{name: other.get(name, 7)}) for name in base.to_json() if name != "key"
    ]
    assert len({run.key for run in (base, *changed)}) == len(changed) + 1


def test_a_run_survives_json() -> None:
    run = small(guard=True, warmup_steps=None)
    assert Run.from_json(run.to_json()) == run


@pytest.mark.parametrize(
    ("model", "layers", "stages", "expected"),
    [
        ("connected", 3, 3, ["layers.0", "layers.1"]),
        ("connected", 6, 6, ["layers.0", "layers.1", "layers.2", "layers.3", "layers.4"]),
        ("connected", 6, 4, ["layers.0", "layers.2", "layers.3"]),
        ("residual", 6, 2, ["blocks.2"]),
        ("characters", 4, 4, ["blocks.0", "blocks.1", "blocks.2"]),
    ],
)
def test_cuts(model: str, layers: int, stages: int, expected: list[str]) -> None:
    assert cuts(small(model=model, layers=layers, stages=stages)) == expected


def test_too_many_stages_are_refused() -> None:
    with pytest.raises(ValueError, match="3 layers cannot make 4 stages"):
        cuts(small(stages=4))


def test_steps() -> None:
    assert small(samples=None).steps == 2 * 235
    assert small(samples=None, part="tuning").steps_per_epoch == 196
    assert small(samples=300).steps_per_epoch == 2
    assert small(model="characters", epoch_steps=250, epochs=12).steps == 3000


@pytest.mark.parametrize("sizes", [FULL, QUICK], ids=["full", "quick"])
def test_the_same_epochs_and_rate_for_every_source(sizes: parts.Sizes) -> None:
    """But for sparse updates, which are a table of their own."""
    runs = [run for run in everything(sizes) if run.update_probability == 1]
    assert len({run.key for run in runs}) == len(set(runs))
    for part in ("paper", "sources"):
        equal: dict[Family, set[tuple[int, float]]] = {}
        for run in runs:
            if run.part == part:
                family = (run.data, run.model, run.layers, run.width)
                equal.setdefault(family, set()).add((run.epochs, run.lr))
        assert equal
        assert all(len(found) == 1 for found in equal.values())


def test_lower_rates_are_rows_of_their_own() -> None:
    runs = list(parts.rates(FULL))
    assert {run.lr for run in runs} == set(parts.LOWER)
    assert max(parts.LOWER) < rate(("mnist", "connected", 6, 256))
    assert not {run.key for run in runs} & {run.key for run in everything(FULL)}
    assert {run.layers for run in runs} == {3, 6}
    at = {(run.layers, run.lr, run.source) for run in runs}
    assert len(at) == len(runs) == 2 * len(parts.LOWER) * 5


def test_without_a_warm_up_stands_beside_the_same_run_with_one() -> None:
    runs = list(parts.cold(FULL, rate))
    assert all(run.warmup_steps == 0 for run in runs)
    assert {run.model for run in runs if run.seed} == {"residual"}
    warmed = {replace(run, part="sources", warmup_steps=None) for run in runs}
    late = {
        run for run in warmed if run.seed in FULL.seeds or run.source in parts.CLOSE[run.stages]
    }
    assert late < set(parts.sources(FULL, rate))
    assert {run.stages for run in runs} == {2, 4, 6}
    assert all(SOURCES[run.source].gradient == "stale" for run in runs)


def test_every_seed_runs_the_same_but_for_what_no_goal_hangs_on() -> None:
    runs = chosen(list(everything(FULL)), [])
    by_seed = {
        seed: {replace(run, seed=9) for run in runs if run.seed == seed} for seed in (0, 1, 2)
    }
    assert by_seed[1] == by_seed[2] < by_seed[0]
    further = by_seed[0] - by_seed[1]
    ended = {run for run in further if run.part == "time"}
    assert {(run.way, run.epochs) for run in ended} == {("stale", 8), ("decoupled", 8)}
    further -= ended
    assert {run.model for run in further} == {"characters", "residual"}
    # None of them is a goal's or a default's at its lateness.
    few = {"cdni", "virtual-task-hidden", "begun", "virtual", "dni", "dni-hidden", "cdni-hidden"}
    assert all(run.source in few or run.window == 4 for run in further)


def test_more_seeds_where_the_spread_is_wide() -> None:
    """Of sources and of the backprop that they are compared with."""
    runs = [run for run in parts.sources(FULL, rate) if run.seed in FULL.more_seeds]
    assert {run.model for run in runs} == {"residual"}
    for seed in FULL.more_seeds:
        at = {(run.stages, run.source, run.window) for run in runs if run.seed == seed}
        assert at == {(2, "exact", 1)} | {
            (k, name, window)
            for k, names in parts.CLOSE.items()
            for name, windows in names.items()
            for window in windows
        }


def test_part_two_has_what_the_goals_are_judged_by() -> None:
    runs = chosen(list(parts.sources(FULL, rate)), [])
    for model, numbers in (
        ("connected", (2, 4, 6)),
        ("residual", (2, 4, 6)),
        ("characters", (2, 4)),
    ):
        layers = 4 if model == "characters" else 6
        here = [run for run in runs if (run.model, run.layers) == (model, layers)]
        more = FULL.more_seeds if model == "residual" else ()
        assert sum(run.source == "exact" for run in here) == len(FULL.seeds + more)
        for stages in numbers:
            at = {(run.source, run.window) for run in here if run.stages == stages}
            assert {("none", 1), ("stale", 1), ("stale", FAR), ("virtual-task", FAR)} <= at
            assert stages == 2 or {("turns", 1), ("turns-hidden", 1)} <= at
        both = {run.source for run in here if run.stages == 2 and not run.guard}
        without_context = {"dni", "dni-hidden"}
        # In two stages there is nothing to take turns with.
        assert set(DECOUPLED) - without_context - {"turns", "turns-hidden"} <= both
        assert both & without_context
        assert any(run.guard for run in here)
    assert all(run.window == 1 for run in runs if not SOURCES[run.source].lateness_matters)
    text = [run for run in runs if run.model == "characters"]
    assert all(run.steps >= 3000 for run in text)


def test_the_paper_decouples_every_layer() -> None:
    runs = list(parts.paper(FULL, rate))
    assert all(run.stages == run.layers and run.warmup_steps == 0 for run in runs)
    sparse = [run for run in runs if run.update_probability == 0.2]
    assert {run.source for run in sparse} == {"dni", "cdni"}
    assert {run.data for run in sparse} == {"mnist", "fashion"}


def test_every_run_is_tuned_by_a_family() -> None:
    runs = list(everything(FULL))
    families = {parts.tuned_as(run, FULL) for run in runs}
    tuned = list(parts.tuning(FULL, families))
    assert len(tuned) == 3 * len(families) == 21
    assert all(run.source == "exact" and run.environment["DNIC_HOLD_OUT"] == "1" for run in tuned)
    assert not any("DNIC_HOLD_OUT" in run.environment for run in runs)


def test_part_three_without_a_best_head_has_no_decoupled_run() -> None:
    runs = racing.speeds(QUICK, rate, lambda family, lateness: None)
    short = Counter(run.way for run in runs if run.epochs == racing.TIMED_EPOCHS)
    assert short == {"backprop": 2, "ddp": 4, "exact": 4, "stale": 4}


def test_what_is_timed_is_trained_by_the_reference_for_several_numbers_of_epochs() -> None:
    heads = {1: "cdni", FAR: "local", None: "local"}
    timed = list(racing.speeds(FULL, rate, lambda family, lateness: heads[lateness]))
    trained = list(racing.budgets(FULL, rate, lambda family, lateness: heads[lateness]))
    assert {run.epochs for run in trained} == {4, 8, 12}
    for run in timed:
        late = SOURCES[run.source].lateness_matters
        like = replace(run, way="reference", link="loopback", warmup_steps=None)
        for epochs in (4, 8, 12):
            wanted = replace(like, epochs=epochs, window=run.window if late else 1)
            assert {replace(wanted, part=part) for part in ("budget", "sources")} & set(trained)
        # Five of a hundred steps of a run to the end, where true gradients matter.
        nominal = replace(run, epochs=8).steps
        short = run.epochs == racing.TIMED_EPOCHS and late and run.source != "begun"
        assert run.warmup_steps == (int(0.05 * nominal) if short else None)
    again = {run for run in trained if run.part == "sources"}
    assert again < set(parts.sources(FULL, rate))
    assert {(run.model, run.epochs) for run in again} == {("characters", 8)}
    assert {(run.source, run.window) for run in again} == {
        ("exact", 1),
        ("stale-weights", 1),
        ("local", 1),
        ("begun", 3),
    }
    ended = [run for run in timed if run.epochs == 8]
    assert {run.way for run in ended} == {"stale", "decoupled", "local"}
    assert {run.seed for run in ended} == {0}
    # Where the best head needs no true gradients it runs once.
    ways = [run.way for run in ended if run.model == "connected" and run.link != "loopback"]
    assert ways == ["stale", "decoupled"]


def test_only_some() -> None:
    runs = [small(), small(), small(source="stale")]
    assert chosen(runs, []) == [runs[0], runs[2]]
    assert chosen(runs, ["stale", "text"]) == [runs[2]]
