"""`dnic probe`: one short exact run of the whole model, and what every source would have predicted.

One process, plain backpropagation over the fine capture. At every probed cut each source predicts
the gradient of the batch at hand, is compared with the true one, and learns from the batches whose
gradients have come by then: the model never sees a predicted gradient. So all cuts, sources and
latenesses are measured in the same run, on the same gradients; what a source's errors do to the
training that follows from them is not.

Not handled: devices other than the CPU, evaluation, and schedulers that follow one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from statistics import fmean
from typing import TypeVar

import torch
from torch import Tensor

from dnic import __version__
from dnic.errors import RuntimeFault
from dnic.partition.plan import PlannedLrScheduler
from dnic.partition.probed import (
    Probe,
    ProbedCut,
    ProbedModel,
    ProbedRow,
    ProbedTensor,
    ProbedTraining,
    ProbeSkip,
)
from dnic.probe.asked import Asked
from dnic.probe.boundaries import Boundaries, Pass
from dnic.probe.candidates import Candidate
from dnic.probe.expected import Check, Expected, progress
from dnic.probe.figures import Compared, summary
from dnic.probe.predictors import STALE, build_predictor, head_of, head_words
from dnic.probe.site import Learner, Site, mean_us
from dnic.probe.staleness import Staleness
from dnic.probe.subject import Subject, subject_of
from dnic.runtime.inputs import Batch
from dnic.runtime.loss import total_loss
from dnic.runtime.lr import LearningRate, build_scheduler
from dnic.runtime.optimizer import build_optimizer, first_step
from dnic.runtime.plan import HeadPlan, LrSchedulerPlan
from dnic.runtime.precision import autocast
from dnic.runtime.seeds import part_seed, seed_everything, stage_seed
from dnic.spec import Spec
from dnic.trace import as_compilers_see_it, seeded, without_cache

_OTHERS = 2**20
# The parameters' gradients are compared at so many steps of a run.
CHECKS = 32
_CPU = torch.device("cpu")

Seen = TypeVar("Seen", Compared, Check)
Progress = Callable[[str], None]


def probe_model(spec: Spec, asked: Asked, progress: Progress = lambda what: None) -> Probe:
    """Measure how well gradients can be predicted at the cuts of a model.

    The same spec and the same number of steps give the same figures, but for times.

    Args:
        spec: the model, how it trains, and the heads.
        asked: what to measure, and for how long.
        progress: told what is done and how long the rest will take.

    Raises:
        SpecError, TraceError, PartitionError: the model cannot be probed; says why.
        RuntimeFault: training diverges, or a sample is not what the model takes.
    """
    progress("capture")
    subject = subject_of(spec, asked)
    with ExitStack() as stack:
        stack.enter_context(seeded())
        stack.enter_context(without_cache(subject.loaded.model))
        stack.enter_context(as_compilers_see_it(bool(subject.fine.compiling)))
        stack.enter_context(_without_denormals())
        return _Run(subject, asked, progress).result()


@contextmanager
def _without_denormals() -> Iterator[None]:
    """Numbers too small to be normal are zero inside: gradients near zero slow a CPU down."""
    smallest = torch.tensor(torch.finfo(torch.float64).tiny, dtype=torch.float64)
    before = float(smallest / 2) == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


class _Run:
    """A run of a subject."""

    def __init__(self, subject: Subject, asked: Asked, progress: Progress) -> None:
        self._subject, self._asked, self._progress = subject, asked, progress
        self._model = subject.loaded.model.train()
        training = subject.training
        self._optimizer = build_optimizer(
            training.optimizer.name, training.optimizer.options, self._model
        )
        self._rate = LearningRate()
        if training.scheduler is not None:
            self._rate = _learning_rate(training.scheduler, self._optimizer)
        self._boundaries = Boundaries(subject.fine, subject.graph, subject.cuts)
        self._heads: list[dict[str, HeadPlan]] = [{} for _ in subject.cuts]
        self._skipped = list(subject.skipped)
        self._sites = [self._site(number, cut) for number, cut in enumerate(subject.cuts)]
        self._expected = Expected(self._model, self._plain_loss, self._others())
        self._staleness = None
        if STALE in asked.sources:
            self._staleness = Staleness(
                self._model,
                subject.cuts,
                asked.latenesses,
                asked.steps,
                self._plain_loss,
                self._expected,
            )
        self._losses: list[float] = []

    def _site(self, number: int, cut: Candidate) -> Site:
        learners: list[Learner] = []
        subject = self._subject
        for source in self._asked.sources:
            if source == STALE:
                continue
            values = cut.point.differentiable
            choice = subject.request.choice_at(cut.point.after)
            head = head_of(source, choice, values, subject.target)
            self._heads[number][source] = head
            try:
                for lateness in self._asked.latenesses:
                    predictor = build_predictor(
                        source,
                        values,
                        head,
                        target=subject.target_plan,
                        loss=subject.loaded.source.loss,
                        output=subject.output,
                        seed=part_seed(subject.training.seed, number),
                    )
                    if not predictor.needs_gradients:
                        learners.append(Learner(source, 0, predictor))
                        break
                    learners.append(Learner(source, lateness, predictor))
            except RuntimeFault as fault:
                reason = fault.problem
                self._skipped.append(ProbeSkip(cut=cut.point.after, source=source, reason=reason))
        return Site(cut, learners, self._model)

    def result(self) -> Probe:
        """Train, and put what was seen into rows."""
        started = time.perf_counter()
        seed_everything(stage_seed(self._subject.training.seed, 0))
        batches = self._subject.batches(self._subject.training.seed)
        steps = self._asked.steps
        every = max(1, steps // CHECKS)
        for step, batch in self._feed(batches.epoch, steps):
            spent_s = time.perf_counter() - started
            over = self._asked.seconds is not None and spent_s >= self._asked.seconds
            last = over or step == steps - 1
            self._step(step, batch, check=last or step % every == every - 1)
            if last:
                break
            self._tell(step + 1, time.perf_counter() - started)
        return self._probe(batches.samples, time.perf_counter() - started)

    def _feed(
        self, epoch: Callable[[int], Iterator[Batch]], steps: int
    ) -> Iterator[tuple[int, Batch]]:
        """Batches with their step, epoch after epoch."""
        step, number = 0, 0
        while step < steps:
            number += 1
            for batch in epoch(number):
                yield step, batch
                step += 1
                if step == steps:
                    return
            self._rate.trained(number)

    def _others(self) -> Iterator[Batch]:
        """Batches of the training data in another order, without end."""
        batches = self._subject.batches(part_seed(self._subject.training.seed, _OTHERS))
        for number in count(1):
            yield from batches.epoch(number)

    def _step(self, step: int, batch: Batch, *, check: bool) -> None:
        if self._staleness is not None:
            self._staleness.before(step, batch)
        target = batch[1]
        expected = self._expected.gradients() if check else None
        made, loss = self._forward(batch)
        self._losses.append(float(loss.detach()))
        if not math.isfinite(self._losses[-1]):
            raise RuntimeFault(
                f"the loss is {self._losses[-1]} after {step} steps",
                where="the exact run of the probe",
                expected="training that does not diverge",
                hint="a smaller lr in train.optimizer",
            )
        self._optimizer.zero_grad(set_to_none=True)
        made.backward(loss, keep_graph=check)
        if self._staleness is not None:
            self._staleness.after(step)
        for site, crossed in zip(self._sites, made.crossed, strict=True):
            site.step(step, crossed, target, expected)
        limit = self._subject.training.clip_norm
        if limit is not None:
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), limit)
        if step:
            self._optimizer.step()
        else:
            first_step(self._optimizer)
        self._rate.updated()

    def _forward(self, batch: Batch) -> tuple[Pass, Tensor]:
        inputs, target = batch
        with autocast(self._subject.training.precision, _CPU):
            made = self._boundaries.forward(inputs, target.shape[0])
            return made, total_loss(self._subject.loss, made.output, target)

    def _plain_loss(self, batch: Batch) -> Tensor:
        return self._forward(batch)[1]

    def _tell(self, done: int, spent_s: float) -> None:
        left_s = spent_s / done * (self._asked.steps - done)
        if self._asked.seconds is not None:
            left_s = min(left_s, max(self._asked.seconds - spent_s, 0.0))
        self._progress(
            f"step {done} of {self._asked.steps}, loss {self._losses[-1]:.3f}, {left_s:.0f} s left"
        )

    def _probe(self, samples: int, seconds: float) -> Probe:
        steps, half = len(self._losses), len(self._losses) // 2
        rows: list[ProbedRow] = []
        for number, site in enumerate(self._sites):
            for learner in site.learners:
                rows += self._rows(site, learner, half)
            if self._staleness is not None:
                rows += self._stale_rows(number, site, half)
        subject, training = self._subject, self._subject.training
        source = subject.loaded.source
        tenth = max(1, steps // 10)
        return Probe(
            dnic=__version__,
            torch=torch.__version__,
            model=ProbedModel(name=subject.graph.name, digest=subject.digest),
            training=ProbedTraining(
                data=getattr(source.train_data, "__name__", ""),
                samples=samples,
                batch_size=training.batch_size,
                optimizer=training.optimizer.name,
                options=training.optimizer.options,
                scheduler=training.scheduler.name if training.scheduler else None,
                precision=training.precision,
                clip_norm=training.clip_norm,
                seed=training.seed,
                steps=steps,
                first_loss=fmean(self._losses[:tenth]),
                last_loss=fmean(self._losses[-tenth:]),
                seconds=round(seconds, 1),
                threads=torch.get_num_threads(),
            ),
            cuts=tuple(self._cut(number, cut) for number, cut in enumerate(subject.cuts)),
            rows=tuple(rows),
            skipped=tuple(self._skipped),
        )

    def _cut(self, number: int, cut: Candidate) -> ProbedCut:
        named = dict(self._model.named_parameters())
        return ProbedCut(
            after=cut.point.after,
            gap=cut.point.gap,
            share=round(cut.share, 6),
            parameters=sum(named[name].numel() for name in cut.parameters),
            tensors=tuple(
                ProbedTensor(name=value.name, shape=value.shape, dtype=value.dtype)
                for value in cut.point.differentiable
            ),
            heads={source: head_words(head) for source, head in self._heads[number].items()},
        )

    def _rows(self, site: Site, learner: Learner, half: int) -> Iterator[ProbedRow]:
        """One row; for what needs no true gradients one for each lateness, all alike."""
        found = summary(_later(learner.steps, half))
        checks = _later(learner.checks, half)
        follows = summary([check.compared for check in checks])
        after = site.cut.point.after
        if found is None or follows is None:
            reason = "its true gradient is zero"
            self._skipped.append(ProbeSkip(cut=after, source=learner.source, reason=reason))
            return
        for lateness in (learner.lateness,) if learner.lateness else self._asked.latenesses:
            yield ProbedRow(
                cut=after,
                source=learner.source,
                lateness=lateness,
                cosine=found.cosine,
                norm_ratio=found.norm_ratio,
                explained=found.explained,
                beats_zero=found.beats_zero,
                parameter_cosine=follows.cosine,
                progress=_progress(checks)[0],
                progress_error=_progress(checks)[1],
                checks=len(checks),
                predict_us=round(mean_us(learner.predict_us), 1),
                learn_us=round(mean_us(learner.learn_us), 1),
            )

    def _stale_rows(self, number: int, site: Site, half: int) -> Iterator[ProbedRow]:
        assert self._staleness is not None
        for lateness in self._asked.latenesses:
            steps = self._staleness.found[number, lateness]
            some = _later(steps, half)
            found = summary([check.compared for check in some])
            if found is None:
                reason = f"no gradient came {lateness} steps late in {len(self._losses)} steps"
                after = site.cut.point.after
                self._skipped.append(ProbeSkip(cut=after, source=STALE, reason=reason))
                continue
            yield ProbedRow(
                cut=site.cut.point.after,
                source=STALE,
                lateness=lateness,
                compared="parameters",
                cosine=found.cosine,
                norm_ratio=found.norm_ratio,
                explained=found.explained,
                beats_zero=found.beats_zero,
                parameter_cosine=found.cosine,
                progress=_progress(some)[0],
                progress_error=_progress(some)[1],
                checks=len(some),
            )


def _later(steps: Sequence[tuple[int, Seen]], half: int) -> list[Seen]:
    """Those of the last half of the steps; all where there are none."""
    later = [seen for step, seen in steps if step >= half]
    return later or [seen for _, seen in steps]


def _progress(checks: Sequence[Check]) -> tuple[float | None, float | None]:
    """Progress and its error as a row has them; None where they are lost in noise."""
    return progress(checks) or (None, None)


def _learning_rate(scheduler: PlannedLrScheduler, optimizer: torch.optim.Optimizer) -> LearningRate:
    plan = LrSchedulerPlan(scheduler.name, scheduler.options, scheduler.interval)
    rate = LearningRate(build_scheduler(plan, optimizer), plan.interval)
    return LearningRate() if rate.needs_evaluation else rate
