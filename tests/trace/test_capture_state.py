"""What a forward leaves behind: refused where it matters, allowed where it settles, put back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dnic.errors import TraceError
from dnic.trace import capture_coarse, capture_fine

Written = Callable[..., nn.Module]
X = torch.ones(3, 4)


def counts(m: Any, x: Tensor) -> Tensor:
    m.steps += 1
    return m.linear(x) * m.steps


def remembers_a_tensor(m: Any, x: Tensor) -> Tensor:
    last = m.last
    m.last = m.linear(x)
    return m.last if last is None else m.last + last.sum()


def builds_a_mask_once(m: Any, x: Tensor) -> Tensor:
    if m.mask is None or m.mask.shape[0] != x.shape[1]:
        m.mask = torch.ones(x.shape[1], x.shape[1]).tril()
    return m.linear(x) @ m.mask


def notes_a_length(m: Any, x: Tensor) -> Tensor:
    m.length = x.shape[1]
    return m.linear(x)


def keeps_the_last_output(m: Any, x: Tensor) -> Tensor:
    m.kept = m.linear(x)
    return m.kept * 2


def sets_itself_up_from_data(m: Any, x: Tensor) -> Tensor:
    if m.mask is None:
        m.mask = x.detach().mean(0)
    return m.linear(x) - m.mask


def another_constant_at_first(m: Any, x: Tensor) -> Tensor:
    m.steps = min(m.steps + 1, 2)
    return m.linear(x) * m.steps


def make(run: Callable[..., Any], written: Written) -> Any:
    return written(run, linear=nn.Linear(4, 4), steps=0, last=None, mask=None, length=0, kept=None)


@pytest.mark.parametrize(
    ("run", "name"),
    [
        (counts, "steps"),
        (remembers_a_tensor, "last"),
        (sets_itself_up_from_data, "mask"),
        (another_constant_at_first, "steps"),
    ],
)
def test_a_forward_that_does_something_else_each_time(
    run: Callable[..., Any], name: str, written: Written
) -> None:
    whole = capture_fine(nn.Sequential(nn.Linear(4, 4), make(run, written)), (X,)).whole
    assert list(whole) == ["1"]
    assert f"changes self.1.{name} every time" in whole["1"]
    with pytest.raises(TraceError, match=f"changes self.{name} every time") as caught:
        capture_fine(make(run, written), (X,))
    file, _, line = (caught.value.where or "").rpartition(":")
    assert Path(file) == Path(__file__)
    first = run.__code__.co_firstlineno
    assert first < int(line) < first + 4
    assert "buffer" in (caught.value.hint or "")


@pytest.mark.parametrize("run", [builds_a_mask_once, notes_a_length, keeps_the_last_output])
def test_what_settles_is_fine(run: Callable[..., Any], written: Written) -> None:
    assert capture_fine(nn.Sequential(make(run, written)), (X,)).whole == {}
    assert capture_fine(make(run, written), (X,)).whole == {}


@pytest.mark.parametrize(
    "run", [counts, remembers_a_tensor, builds_a_mask_once, notes_a_length, keeps_the_last_output]
)
def test_attributes_are_put_back(run: Callable[..., Any], written: Written) -> None:
    module = make(run, written)
    capture_fine(nn.Sequential(module), (X,))
    held = [module.steps, module.last, module.mask, module.length, module.kept]
    assert held == [0, None, None, 0, None]


def test_attributes_are_put_back_after_a_failure(written: Written) -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        m.steps += 1
        m.extra = 1
        return x.view(7, 7)

    module = make(run, written)
    with pytest.raises(TraceError):
        capture_fine(module, (X,))
    assert module.steps == 0
    assert not hasattr(module, "extra")


def test_buffers_that_are_bound_anew_are_put_back(written: Written) -> None:
    class Average(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0).detach()
            return x - self.mean

    model = nn.Sequential(nn.Linear(4, 4), Average())
    mean = model[1].mean
    capture_fine(model, (X,))
    assert model[1].mean is mean and torch.equal(mean, torch.zeros(4))


SEEN: list[bool] = []


class WithCache(nn.Module):
    """As transformers do: a cache is made unless the configuration says not to."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(use_cache=True)
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        SEEN.append(self.config.use_cache)
        return self.linear(x)


def test_caches_are_off_while_it_records_and_on_again_after() -> None:
    model = nn.Sequential(WithCache(), WithCache())
    model[1] = nn.Linear(4, 4)
    SEEN.clear()
    capture_fine(model, (X,))
    assert SEEN and not any(SEEN)
    assert model[0].config.use_cache is True


def test_caches_are_on_again_after_a_failure() -> None:
    model = nn.Sequential(WithCache(), nn.Linear(5, 5))
    with pytest.raises(TraceError):
        capture_fine(model, (X,))
    assert model[0].config.use_cache is True


class Shortcut(nn.Module):
    """As transformers' masks: a shortcut that reads data, unless a compiler is watching."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        SEEN.append(torch.compiler.is_compiling())
        if not torch.compiler.is_compiling() and (x == 1).all():  # here
            return self.linear(x)
        return self.linear(x) * 1.0


def test_the_way_of_compilers_is_taken_where_data_is_read_and_reported() -> None:
    model = Shortcut()
    SEEN.clear()
    traced = capture_fine(model, (X,))
    file, _, line = traced.compiling.rpartition(" at ")[2].rpartition(":")
    assert Path(file).read_text().splitlines()[int(line) - 1].endswith("# here")
    assert traced.whole == {}
    assert [n.name for n in traced.graph.nodes] == ["x", "linear", "mul", "output"]
    assert SEEN[0] is False and all(SEEN[1:])
    assert not torch.compiler.is_compiling()
    SEEN.clear()
    assert capture_coarse(traced, (X,), ()).compiling == traced.compiling
    assert all(SEEN), "the second capture goes the same way"


def test_the_way_of_compilers_is_not_taken_without_need() -> None:
    model = nn.Sequential(WithCache())
    assert capture_fine(model, (X,)).compiling == ""

    class Asks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if torch.compiler.is_compiling() else x + 1

    traced = capture_fine(Asks(), (X,))
    assert traced.compiling == ""
    assert "add" in {node.name for node in traced.graph.nodes}


def test_a_small_module_is_kept_whole_rather_than_seen_as_compilers_do() -> None:
    class Small(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.sum() > 0 else x

    traced = capture_fine(nn.Sequential(nn.Linear(4, 4), Small()), (X,))
    assert (traced.compiling, list(traced.whole)) == ("", ["1"])


def test_a_model_that_does_not_run_as_compilers_see_it_is_recorded_as_it_is() -> None:
    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            if torch.compiler.is_compiling():
                raise RuntimeError("not for compilers")
            return self.linear(x) if x.sum() > 0 else x

    traced = capture_fine(nn.Sequential(Picky()), (X,))
    assert (traced.compiling, list(traced.whole)) == ("", ["0"])
