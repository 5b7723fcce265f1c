"""Tails of replicas learn what one tail learns from whole batches, and stay copies."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dnic.runtime.bundle import load_bundle
from dnic.runtime.plan import HeadPlan, Size, TargetPlan, TensorSpec
from dnic.runtime.predictor import Predictor
from dnic.runtime.record import Record, read_record
from dnic.runtime.reference_replicas import Meeting, MeetingReplicas, ReplicatedReference
from dnic.runtime.registry import PredictorRequest, predictor_kind
from dnic.runtime.replicas import Replicas
from dnic.runtime.tail_averaging import averaged

Make = Callable[..., Path]
Run = Callable[..., Any]
Work = Callable[[Predictor, int], Any]
Batch = tuple[list[Tensor], Tensor, list[Tensor]]

HEAD = {"hidden_layers": 1, "width": 8, "lr": 2e-2}
SAMPLED = HEAD | {"targets": "sampled"}
# A source of one's own that averages: the mean of the last true gradient.
OWN = """

from dnic.runtime.predictor import Predictor
from dnic.runtime.registry import register
from dnic.runtime.replicas import Replicas


@register("mine")
class Mine(Predictor):
    replicated = True

    def __init__(self, request):
        self.replicas = request.replicas or Replicas()
        self.mean = [torch.zeros(()) for _ in request.tensors]

    def predict(self, tensors, target, microbatches):
        return [torch.ones_like(h) * m for h, m in zip(tensors, self.mean, strict=True)]

    def learn(self, tensors, target, gradients):
        self.mean = [self.replicas.average(g.mean()) for g in gradients]
        return None

    def state_dict(self):
        return {"mean": self.mean}

    def load_state_dict(self, state):
        self.mean = state.get("mean", self.mean)

    def parameters(self):
        return {"mean": torch.stack(self.mean)}
"""


def edited(name: str, text: str) -> str:
    """97 samples: the last batch has one, which one of two replicas is without."""
    text = text.replace("_data(100, 1)", "_data(97, 1)")
    return text + OWN if name == "model.py" else text


def keys(**train: Any) -> dict[str, Any]:
    sizes = {"batch_size": 16, "epochs": 2, "seed": 3}
    adam = {"optimizer": {"name": "AdamW", "options": {"lr": 3e-3}}}
    return {"train": sizes | adam | train, "schedule": {"replicas": 2}}


@pytest.mark.processes
@pytest.mark.parametrize(
    ("kind", "gradient", "head", "microbatches"),
    [
        ("mlp2", "virtual", HEAD, 2),
        ("conv2", "virtual", SAMPLED, 1),
        ("mlp2", "local", SAMPLED | {"one_in": 2}, 1),
        ("conv2", "local", HEAD, 1),
        ("mlp2", "virtual", HEAD | {"targets": "clustered"}, 1),
        ("mlp2", "mine", {}, 1),
    ],
)
def test_replicas_have_the_references_bits(
    bundle: Make,
    run_ranks: Run,
    load_module: Run,
    same: Run,
    tmp_path: Path,
    kind: str,
    gradient: str,
    head: dict[str, Any],
    microbatches: int,
) -> None:
    """Warming up, a guard that checks, a replica without a sample; and both hold the same bits."""
    guard = {"guard": {"check_every": 3, "patience": 2}}
    given = {"gradient": gradient, "head": head, "warmup_steps": 3, **guard}
    folder = bundle(kind, edit=edited, plan_keys=keys(), **given)
    record = tmp_path / "run"
    run_ranks(folder, 4, f"--microbatches={microbatches}", f"--record={record}", "--no-evaluate")
    model, stages = load_module(folder / "model.py"), load_module(folder / "stages.py")
    of_model = model.build_model, model.loss, model.train_data
    reference = ReplicatedReference(
        load_bundle(folder), stages, *of_model, microbatches=microbatches
    )
    assert same(read_record(record), reference.run())
    own = torch.load(record / "rank0.pt", weights_only=True)
    other = torch.load(record / "copy1.pt", weights_only=True)
    assert own["heads"]
    assert own["heads"].keys() == other["heads"].keys()
    assert all(torch.equal(value, other["heads"][name]) for name, value in own["heads"].items())


@pytest.mark.processes
def test_resumed_run_gives_the_same_bits(
    bundle: Make, run_ranks: Run, same: Run, tmp_path: Path
) -> None:
    """Shares of 8 and 9 samples, of which one is cut in two and draws twice for each batch."""
    plan = keys(batch_size=17)
    folder = bundle("mlp2", edit=edited, plan_keys=plan, gradient="virtual", head=SAMPLED)
    out, cut = f"--out={tmp_path / 'run'}", "--microbatches=2"
    run_ranks(folder, 4, out, cut, f"--record={tmp_path / 'whole'}")
    resume = f"--resume={tmp_path / 'run' / 'checkpoints' / 'epoch-0001'}"
    run_ranks(folder, 4, out, cut, resume, f"--record={tmp_path / 'rest'}")
    whole, rest = read_record(tmp_path / "whole"), read_record(tmp_path / "rest")
    assert len(whole.losses) == 12
    assert same(Record(whole.losses[6:], whole.parameters, whole.heads), rest)


def columns(
    count: int, tensors: tuple[TensorSpec, ...], head: HeadPlan, target: TargetPlan, kind: str
) -> list[Predictor]:
    """A tail for each replica."""
    meeting = Meeting(count)
    output: tuple[Size, ...] = ("B", 5)
    return [
        predictor_kind(kind).build(
            PredictorRequest(
                tensors,
                head,
                target,
                F.cross_entropy,
                output,
                replicas=MeetingReplicas(i, count, meeting=meeting) if count > 1 else None,
            )
        )
        for i in range(count)
    ]


def in_turns(predictors: list[Predictor], work: Work) -> list[Any]:
    """Each replica's work in a thread, one at a time, as the reference runs them."""
    meeting = predictors[0]._replicas.meeting  # type: ignore[attr-defined]

    def one(index: int) -> Any:
        meeting.enter(index)
        done = False
        try:
            found = work(predictors[index], index)
            done = True
            return found
        finally:
            meeting.leave(index, failed=not done)

    with ThreadPoolExecutor(len(predictors)) as pool:
        return [run.result() for run in [pool.submit(one, i) for i in range(len(predictors))]]


SIZES = (9, 6, 0)
BATCH = sum(SIZES)
VECTOR = TensorSpec("h", ("B", 12), "float64", True)
TOKENS = TensorSpec("h", ("B", 7, 6), "float64", True)
MAPS = TensorSpec("h", ("B", 3, 40, 40), "float64", True)
BIAS = TensorSpec("bias", (7, 6), "float64", True)
LABELS, WORDS = TargetPlan((), "int64", 5), TargetPlan((7,), "int64", 5)
# More classes than targets: clusters that one replica has targets of, and none.
RARE = TargetPlan((), "int64", 40)
VALUES = TargetPlan((3,), "float64", None)


def batches(tensors: tuple[TensorSpec, ...], target: TargetPlan, count: int) -> Iterator[Batch]:
    """Tensors, targets, and gradients of a mean loss that follow from both."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        shape = (BATCH, *target.sample_shape)
        y = torch.randint(target.classes or 1, shape, generator=generator)
        if target.classes is None:
            y = torch.randn(shape, generator=generator, dtype=torch.float64)
        given = [
            torch.randn(t.resolve(BATCH), generator=generator, dtype=torch.float64) for t in tensors
        ]
        told = y.double().reshape(BATCH, -1).mean(1)
        yield given, y, [_true(h, told) / BATCH for h in given]


def _true(h: Tensor, told: Tensor) -> Tensor:
    if h.shape[0] != BATCH:
        return torch.sin(h) * told.sum()
    return torch.sin(h) + told.view(-1, *[1] * (h.ndim - 1))


def share(whole: list[Tensor], index: int, *, gradients: bool = False) -> list[Tensor]:
    """What a replica gets of a batch; of gradients those of its loss times its weight.

    The replica without a sample has one all the same, without weight.
    """
    begin, size = sum(SIZES[:index]), SIZES[index]
    rows = slice(begin, begin + size) if size else slice(0, 1)
    factor = len(SIZES) if size else 0
    found = []
    for tensor in whole:
        if tensor.shape[0] == BATCH:
            found.append(tensor[rows] * factor if gradients else tensor[rows])
        else:
            found.append(tensor * (len(SIZES) * size / BATCH) if gradients else tensor)
    return found


def trained(own: Predictor, index: int, *, batch: Batch, late: bool) -> list[Tensor]:
    """A replica's predictions, weighed; it has learnt then."""
    given, y, true = batch
    part, (targets,) = share(given, index), share([y], index)
    found = own.predict(part, targets, 1)
    own.learn(part, targets, None if late else share(true, index, gradients=True))
    return [gradient * own.weight for gradient in found]


@pytest.mark.parametrize(
    ("tensors", "target", "head"),
    [
        pytest.param((VECTOR,), LABELS, HeadPlan(1, 8), id="classes"),
        pytest.param((TOKENS,), WORDS, HeadPlan(0, None), id="words"),
        pytest.param((MAPS,), VALUES, HeadPlan(1, 4), id="values"),
        pytest.param((BIAS, TOKENS), WORDS, HeadPlan(1, 8), id="a tensor of all samples"),
        pytest.param((VECTOR,), LABELS, HeadPlan(options={"loss": "model"}), id="model"),
        pytest.param((VECTOR,), RARE, HeadPlan(options={"targets": "clustered"}), id="clusters"),
    ],
)
@pytest.mark.parametrize("kind", ["virtual", "local"])
def test_replicas_learn_what_one_tail_learns(
    tensors: tuple[TensorSpec, ...], target: TargetPlan, head: HeadPlan, kind: str
) -> None:
    """Three replicas of 9, 6 and no samples: the same parameters, the same predictions.

    The gradient of a tensor that all samples share is not the same in all batches' parts: its mean
    over the replicas is what is matched.
    """
    (one,) = columns(1, tensors, head, target, kind)
    three = columns(3, tensors, head, target, kind)
    weights = [3 * size / BATCH for size in SIZES]
    for predictor, weight in zip(three, weights, strict=True):
        predictor.weight = weight
    for step, batch in enumerate(batches(tensors, target, 12)):
        given, y, true = batch
        late = kind == "local" and step > 3
        predicted = one.predict(given, y, 1)
        one.learn(given, y, None if late else true)
        found = in_turns(three, partial(trained, batch=batch, late=late))
        for index, of_share in enumerate(found[:2]):
            for gradient, expected, tensor in zip(of_share, predicted, given, strict=True):
                if tensor.shape[0] == BATCH:
                    (part,) = share([expected], index, gradients=True)
                    torch.testing.assert_close(gradient, part, rtol=1e-7, atol=1e-10)
    for name, parameter in one.parameters().items():
        copies = [own.parameters()[name] for own in three]
        torch.testing.assert_close(copies[0], parameter, rtol=1e-6, atol=1e-9)
        assert all(torch.equal(copies[0], other) for other in copies[1:])
    state = [own.state_dict() for own in three]
    for name, kept in state[0]["fits"].items():
        torch.testing.assert_close(kept, one.state_dict()["fits"][name], rtol=1e-7, atol=1e-12)
        assert torch.equal(kept, state[1]["fits"][name])


def test_what_is_drawn_does_not_depend_on_the_microbatches() -> None:
    """A replica whose share is cut in two predicts twice for a batch, and draws what others do."""
    head = HeadPlan(options={"targets": "sampled"})
    whole, cut = columns(1, (VECTOR,), head, LABELS, "virtual") + columns(
        1, (VECTOR,), head, LABELS, "virtual"
    )
    for given, y, true in batches((VECTOR,), LABELS, 5):
        whole.predict(given, y, 1)
        for rows in (slice(0, 7), slice(7, None)):
            cut.predict([given[0][rows]], y[rows], 2)
        before = copy.deepcopy(whole.state_dict())
        whole.learn(given, y, true)
        cut.learn(given, y, true)
    for name, parameter in whole.parameters().items():
        assert torch.equal(parameter, cut.parameters()[name])
    assert whole.state_dict()["predicted"] == cut.state_dict()["predicted"] == 5
    # Anew for every batch, and for learning.
    again = predictor_kind("virtual").build(PredictorRequest((VECTOR,), head, LABELS))
    again.load_state_dict(before)
    first, second = (again.predict(given, y, 1)[0] for _ in range(2))
    assert not torch.equal(first, second)
    again.load_state_dict(before)
    assert torch.equal(again.predict(given, y, 1)[0], first)


def test_rows_and_dense_gradients_are_averaged_alike() -> None:
    """Rows that both have used, that one has, and that stand twice."""
    torch.manual_seed(0)
    index = [torch.tensor([3, 0, 3]), torch.tensor([3, 7])]
    rows = [torch.randn(3, 4), torch.randn(2, 4)]
    sparse = [
        torch.sparse_coo_tensor(i.unsqueeze(0), r, (9, 4), check_invariants=False)
        for i, r in zip(index, rows, strict=True)
    ]
    dense, weights = [torch.randn(2, 5), torch.randn(2, 5)], (1.5, 0.5)
    meeting = Meeting(2)

    def work(i: int) -> list[Tensor]:
        meeting.enter(i)
        replicas = MeetingReplicas(i, 2, meeting=meeting)
        found = averaged([sparse[i], dense[i]], replicas, weights[i])
        meeting.leave(i)
        return found

    with ThreadPoolExecutor(2) as pool:
        first, second = (run.result() for run in [pool.submit(work, i) for i in range(2)])
    for place, given in ((0, [s.to_dense() for s in sparse]), (1, dense)):
        found = first[place]
        expected = (1.5 * given[0] + 0.5 * given[1]) / 2
        torch.testing.assert_close(found.to_dense(), expected)
        assert torch.equal(found.to_dense(), second[place].to_dense())
    assert set(first[0].coalesce().indices()[0].tolist()) == {0, 3, 7}
    assert averaged([dense[0]], Replicas(), 1.0)[0] is dense[0]
