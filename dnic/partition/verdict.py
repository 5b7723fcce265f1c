"""Whether to decouple: one sentence from the table of alternatives.

*Cool* where stages that do not wait beat every exact way by more than the prediction may err,
*meh* elsewhere, with the reason either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dnic.cost import Link
from dnic.errors import PartitionError
from dnic.partition.alternative import Alternative, Mode, Name, fastest
from dnic.partition.request import PartitionRequest

# A predicted gradient costs quality that no cost model knows, another device costs money: a gain
# below this is worth neither.
MARGIN = 0.03

TITLES: dict[Name, str] = {
    "one_device": "one device",
    "ddp": "DDP",
    "naive": "naive model parallel",
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "interleaved_1f1b": "interleaved 1F1B",
    "zero_bubble": "zero-bubble",
    "1f1b_ddp": "1F1B, replicated stages",
    "decoupled": "decoupled",
    "decoupled_replicas": "decoupled, replicated stages",
    "stale": "stale gradients",
    "synthetic": "synthetic gradients",
    "virtual": "virtual gradients",
    "local": "local losses",
}


@dataclass(frozen=True)
class Verdict:
    """The answer.

    Attributes:
        decouple: whether to.
        speedup: useful samples/s of the decoupled plan over those of the best exact way that fits;
            0 where nothing can be decoupled.
        best: name of the fastest way that a bundle can run.
        reason: one sentence, for people.
    """

    decouple: bool
    speedup: float
    best: Name
    reason: str

    @property
    def word(self) -> str:
        """`cool` or `meh`."""
        return "cool" if self.decouple else "meh"


def judge(found: Sequence[Alternative], request: PartitionRequest, link: Link) -> Verdict:
    """The verdict on a table of alternatives.

    Args:
        found: fastest first.
        request: for the number of devices.
        link: between them, for the reason.

    Raises:
        PartitionError: nothing runs on these devices.
    """
    best = _simplest(found)
    names = ("decoupled", "decoupled_replicas", "stale")
    ours = next((a for a in found if a.name in names and a.eligible), None)
    exact = next((a for a in found if not a.decouples and not a.unfit), None)
    if ours is None:
        return Verdict(False, 0.0, best.name, _nothing_to_decouple(found, request))
    if exact is None:
        reason = f"decouple: {title(ours)} is the only way that fits; {_others_do_not_fit(found)}"
        return Verdict(True, 1.0, ours.name, reason)
    speedup = ours.useful_samples_per_s / exact.useful_samples_per_s
    if speedup > 1 + MARGIN:
        how = "decouple here" if ours.name == "decoupled" else f"decouple here, {title(ours)}"
        reason = f"{how}: {speedup:.2f}x over {title(exact)}, the best exact way, which "
        return Verdict(True, speedup, ours.name, reason + _what_holds_it(exact, link))
    within = _simplest([a for a in found if a.runs and not a.decouples] or found)
    best_exact = within if exact.mode else exact
    reason = f"stay with {title(best_exact)}: decoupled stages would run at {speedup:.2f}x of "
    reason += "it" if best_exact is exact else title(exact)
    reason += f", because {_why_not(ours, best_exact, link)}"
    if exact.mode is None:
        reason += f"; no bundle runs that yet, {title(within)} is next"
    return Verdict(False, speedup, within.name, reason)


def _simplest(found: Sequence[Alternative]) -> Alternative:
    """Of the ways that run and are about as fast as the fastest, the one with fewest devices.

    Then that with fewest stages on each.

    Raises:
        PartitionError: none runs.
    """
    least = fastest(found).useful_samples_per_s / (1 + MARGIN)
    near = [a for a in found if a.eligible and a.useful_samples_per_s >= least]
    return min(near, key=lambda a: (a.outcome.devices, a.placement.chunks))


def title(alternative: Alternative) -> str:
    """What an alternative is called in sentences: `1F1B with 8 microbatches`."""
    name = TITLES[alternative.name]
    if alternative.microbatches > 1:
        name += f" with {alternative.microbatches} microbatches"
    return name


def chosen(
    found: Sequence[Alternative], verdict: Verdict, request: PartitionRequest
) -> Alternative:
    """What a bundle is emitted for: what was asked for, or what the verdict says.

    A request that names stages, cuts or gradients asks for decoupled stages.

    Raises:
        PartitionError: what was asked for cannot run here.
    """
    if request.replicated:
        return _with_replicas(found, request)
    if request.free:
        return next(a for a in found if a.name == verdict.best and a.runs)
    mode: Mode = "decoupled" if request.schedule == "auto" else request.schedule
    cut = request.microbatches not in ("auto", 1)
    fitting = sorted((a for a in found if _rank(a, mode, cut)), key=lambda a: _rank(a, mode, cut))
    for alternative in fitting:
        if not alternative.unfit:
            return alternative
    if fitting:
        raise PartitionError(
            f"{title(fitting[0])} cannot run: {fitting[0].unfit}",
            where="partition.schedule",
            hint="partition.schedule: auto takes what fits",
        )
    raise PartitionError(
        f"there is no way to train this model as {mode} on {request.devices} device(s)",
        where="partition.schedule",
        expected="more devices, a batch that can be divided, or a model that can be cut",
    )


def _with_replicas(found: Sequence[Alternative], request: PartitionRequest) -> Alternative:
    """The fastest that has as many replicas of every stage as were asked for.

    Raises:
        PartitionError: there is none.
    """
    names: dict[str, tuple[Name, ...]] = {
        "decoupled": ("decoupled_replicas", "1f1b_ddp"),
        "exact": ("1f1b_ddp",),
        "1f1b": ("1f1b_ddp",),
        "ddp": ("ddp",),
    }
    every: tuple[Name, ...] = ("decoupled_replicas", "1f1b_ddp", "ddp")
    schedule = request.schedule
    if schedule == "auto" and not request.free:
        schedule = "decoupled"
    wanted = every if schedule == "auto" else names.get(schedule, ())
    fitting = [a for a in found if a.name in wanted and a.replicas == request.replicas]
    if schedule != "auto":
        fitting.sort(key=lambda a: wanted.index(a.name))
    for alternative in fitting:
        if alternative.eligible:
            return alternative
    if fitting:
        raise PartitionError(
            f"{title(fitting[0])} cannot run: {fitting[0].unfit}",
            where="partition.replicas",
            hint="partition.replicas: auto takes what fits",
        )
    raise PartitionError(
        f"there is no way to train this model with {request.replicas} replicas of every stage on "
        f"{request.devices} device(s)"
        + ("" if request.schedule == "auto" else f" as {request.schedule}"),
        where="partition.replicas",
        expected="two stages or more, as many devices for each, a batch that they divide; "
        "decoupled, exact or ddp",
        hint="partition.replicas: auto",
    )


def _rank(alternative: Alternative, mode: Mode, cut: bool) -> int:
    """How good an answer to what was asked for; 0 for none.

    Where every gradient is awaited the stages are those of model parallelism; where there is
    nothing to cut, one stage. Batches stay whole in exact mode, unless they are asked to be `cut`.
    """
    names: tuple[Name, ...] = ()
    if mode == "decoupled":
        names = ("decoupled", "naive", "one_device")
    elif mode == "exact":
        names = ("1f1b", "naive") if cut else ("naive",)
    if names:
        return names.index(alternative.name) + 1 if alternative.name in names else 0
    return int(alternative.mode == mode or alternative.name == mode)


def _nothing_to_decouple(found: Sequence[Alternative], request: PartitionRequest) -> str:
    best = title(fastest(found))
    if request.devices == 1:
        return f"{best}: there is one device"
    if request.max_decoupled == 0:
        return f"stay with {best}: no interface may be decoupled"
    if (request.dealt_stages or 0) > request.devices:
        return f"stay with {best}: stages that share a device wait for one another"
    unfit = next((a.unfit for a in found if a.name == "decoupled" and a.unfit), "")
    if unfit:
        return f"stay with {best}: decoupled stages do not fit, {unfit}"
    return f"stay with {best}: no cut of this model can have a predicted gradient"


def _others_do_not_fit(found: Sequence[Alternative]) -> str:
    unfit = [f"{TITLES[a.name]}: {a.unfit}" for a in found if a.unfit and a.mode]
    return "; ".join(unfit[:2])


def _what_holds_it(exact: Alternative, link: Link) -> str:
    """What the best exact way loses its time to."""
    outcome = exact.outcome
    if exact.name == "one_device":
        return "leaves the other devices idle: every exact way over them is slower still"
    idle = f"leaves the devices idle for {outcome.bubble:.0%} of a step"
    if exact.name == "ddp":
        moved = outcome.link_bytes[0][0] / 2**20
        return f"moves {moved:.3g} MiB of gradients over {_link(link)} in every step"
    if outcome.bubble > 0.05:
        return f"{idle} (its bubble, and {_link(link)})"
    return "pays for starting every microbatch"


def _why_not(ours: Alternative, exact: Alternative, link: Link) -> str:
    """What the decoupled stages lose their time to, beside the best exact way."""
    outcome = ours.outcome
    heads = 0.0
    if ours.decided is not None:
        heads = max(cost.total_us for cost in ours.decided.heads) / outcome.step_us
    if "link" in outcome.bottleneck or "transfer" in outcome.bottleneck:
        return f"{_link(link)} cannot carry the activations fast enough"
    if heads > 0.15:
        return f"the heads take {heads:.0%} of a step"
    if min(outcome.busy) < 0.85:
        return f"the stages cannot be balanced: one is busy {min(outcome.busy):.0%} of the time"
    if exact.name == "ddp":
        return f"the model fits and {_link(link)} is fast"
    if exact.name == "one_device":
        return "the model is too small to be worth dividing"
    return f"the link is fast and its bubble is only {exact.outcome.bubble:.0%}"


def _link(link: Link) -> str:
    rate = link.bandwidth_bytes_per_s
    latency = f"{link.latency_us:.3g} us"
    if link.latency_us >= 1000:
        latency = f"{link.latency_us / 1000:.3g} ms"
    return f"the link ({rate / 1e9:.3g} GB/s, {latency})"
