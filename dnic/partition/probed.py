"""What a probe measured, as data: the content of `probe.json`.

A short exact run of the whole model, and at each candidate cut, for each source of gradients and
lateness, how well the gradient was predicted (`dnic.probe` measures it, `predictability` makes a
penalty of it). Frozen pydantic models, so that a file is checked as strictly as a plan.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from dnic.graph.shape import Shape


class Measured(BaseModel):
    """Base of every part of a probe: frozen, no unknown keys, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ProbedModel(Measured):
    """The model that was probed; `digest` is `dnic.graph.digest.graph_digest`."""

    name: str
    digest: str


class ProbedTraining(Measured):
    """How the model was trained meanwhile.

    Attributes:
        data: name of the function of the model file.
        samples: in the data.
        batch_size: samples in a batch.
        optimizer, options: a `torch.optim` class and its arguments.
        scheduler: name of a class of `torch.optim.lr_scheduler`, if there was one.
        precision: of the forward passes.
        clip_norm: largest norm of all gradients together.
        seed: of everything random.
        steps: that were made; figures are of the last half of them.
        first_loss, last_loss: mean over the first and the last tenth of the steps.
        seconds: that they took.
        threads: that torch computed with.
    """

    data: str
    samples: int
    batch_size: int
    optimizer: str
    options: dict[str, Any]
    scheduler: str | None = None
    precision: str = "fp32"
    clip_norm: float | None = None
    seed: int
    steps: int = Field(ge=1)
    first_loss: float
    last_loss: float
    seconds: float
    threads: int


class ProbedTensor(Measured):
    """A differentiable tensor that crosses a cut."""

    name: str
    shape: Shape
    dtype: str


class ProbedCut(Measured):
    """A cut that was probed.

    Attributes:
        after: the dotted path of the last module before it, or the name of the last operation.
        gap: before which operation of the fine capture it lies.
        share: of the model's forward cost that lies before it, 0 to 1.
        parameters: before it, that are trained.
        tensors: whose gradients are predicted.
        heads: what the head or tail of each source was like, as in `plan.yaml`.
    """

    after: str
    gap: int
    share: float
    parameters: int
    tensors: tuple[ProbedTensor, ...]
    heads: dict[str, dict[str, Any]] = Field(default_factory=dict)


class ProbedRow(Measured):
    """How well one source predicted the gradient at one cut, over the last half of the steps.

    Attributes:
        cut: `after` of the cut.
        source: of the gradients; `synthetic-no-context` is a head that does not see the targets.
        lateness: steps after which a batch's true gradient was there to learn from; for `stale`
            after which it is used.
        compared: what the four figures below are of: the gradients of the crossing `tensors`, all
            in one; for `stale`, of the `parameters` before the cut.
        cosine: mean over the steps.
        norm_ratio: of predicted over true, mean over the steps.
        explained: 1 - sum of squared errors / sum of squares; 0 for the zero gradient.
        beats_zero: share of the steps in which the error is smaller than the gradient.
        parameter_cosine: of the gradient of all parameters before the cut, as it follows from the
            predicted and from the true gradient; mean over `checks` of the steps.
        progress: what a step along the gradient that follows from the predicted one is worth beside
            a step along the true one, both of length 1: their lengths along the gradient of other
            batches, summed over the `checks` and divided; None where that is lost in noise (a
            standard error above 0.2).
        progress_error: standard error of progress.
        checks: see there.
        predict_us, learn_us: microseconds of a step, mean.
    """

    cut: str
    source: str
    lateness: int = Field(ge=0)
    compared: Literal["tensors", "parameters"] = "tensors"
    cosine: float
    norm_ratio: float
    explained: float
    beats_zero: float
    parameter_cosine: float
    progress: float | None = None
    progress_error: float | None = None
    checks: int = Field(ge=1)
    predict_us: float = 0.0
    learn_us: float = 0.0


class ProbeSkip(Measured):
    """What was not measured, and why; `source` is empty where it is the whole cut."""

    cut: str
    source: str = ""
    reason: str


class Probe(Measured):
    """A whole probe.

    Attributes:
        format: of this file.
        dnic, torch: versions.
        model, training: what was run.
        cuts: in execution order.
        rows: by cut, source, lateness.
        skipped: what is missing.
    """

    format: Literal[1] = 1
    dnic: str
    torch: str
    model: ProbedModel
    training: ProbedTraining
    cuts: tuple[ProbedCut, ...]
    rows: tuple[ProbedRow, ...]
    skipped: tuple[ProbeSkip, ...] = ()

    @property
    def sources(self) -> tuple[str, ...]:
        """That were measured, in the order of the rows."""
        return tuple(dict.fromkeys(row.source for row in self.rows))

    @property
    def latenesses(self) -> tuple[int, ...]:
        """That were measured, ascending."""
        return tuple(sorted({row.lateness for row in self.rows}))

    def of(self, cut: str) -> tuple[ProbedRow, ...]:
        """The rows of one cut."""
        return tuple(row for row in self.rows if row.cut == cut)
