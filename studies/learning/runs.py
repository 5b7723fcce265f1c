"""What one run of the study is, as a frozen value with a key that stays the same.

The key is what results are kept under: a run whose description changes in anything that could
change its result is another run. Nothing here starts one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Part = Literal["tuning", "paper", "rates", "sources", "cold", "time", "budget"]
Model = Literal["connected", "convolutional", "residual", "characters"]
Way = Literal["reference", "backprop", "ddp", "exact", "stale", "decoupled", "local"]

BATCH: Mapping[str, int] = {
    "connected": 256,
    "convolutional": 128,
    "residual": 128,
    "characters": 16,
}
TRAIN_SAMPLES = 60_000
HELD_OUT = 10_000
CHARACTER_EPOCH_STEPS = 375


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        part: of the study; `tuning` finds learning rates, on a held-out part of the training set;
            `rates` is what part 1 has at lower ones, `cold` what part 2 has without a warm-up,
            `budget` what part 3 has by the reference.
        data: `mnist`, `fashion` or `text`.
        model: a file of `studies/learning/models`.
        layers: with weights, or blocks.
        stages: into which the model is cut.
        source: of gradients, at every interface; of `sources.SOURCES`.
        window: batches after which a true gradient comes.
        epochs: of training.
        lr: of AdamW.
        seed: of initial weights, the data's order and heads.
        way: by the reference, or by the engine: in this mode, `stale` and `local` in `decoupled`.
        link: between two processes; of `engine.LINKS`.
        width: of a connected model's layers.
        warmup_steps: on true gradients; None: as long as `auto` is.
        update_probability: of each stage in each step.
        guard: whether the guard may put an interface back to `exact`.
        samples: images to train on, or windows to test on, at most; None: all there are.
        epoch_steps: of the transformer's epochs.
    """

    part: Part
    data: str
    model: Model
    layers: int
    stages: int
    source: str
    window: int
    epochs: int
    lr: float
    seed: int
    way: Way = "reference"
    link: str = "loopback"
    width: int = 256
    warmup_steps: int | None = None
    update_probability: float = 1.0
    guard: bool = False
    samples: int | None = None
    epoch_steps: int = CHARACTER_EPOCH_STEPS

    @property
    def key(self) -> str:
        """All of it in a line that a person can read; what is as it comes is left out."""
        words = [self.part, self.data, f"{self.model}-{self.layers}", f"k{self.stages}"]
        words += [self.source, f"w{self.window}", f"e{self.epochs}", f"lr{self.lr:g}"]
        for entry in fields(self)[10:]:
            value = getattr(self, entry.name)
            if value != entry.default:
                words.append(f"{entry.name}={value}")
        return " ".join([*words, f"s{self.seed}"])

    @property
    def classifies(self) -> bool:
        """Whether quality is accuracy; otherwise it is bits per character, and less is better."""
        return self.model != "characters"

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        if self.model == "characters":
            return self.epoch_steps
        held_out = HELD_OUT if self.part == "tuning" else 0
        samples = TRAIN_SAMPLES - held_out
        if self.samples is not None:
            samples = min(samples, self.samples)
        return -(-samples // BATCH[self.model])

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.epochs * self.steps_per_epoch

    @property
    def environment(self) -> dict[str, str]:
        """What the model file reads."""
        values = {"DNIC_DATA": self.data, "DNIC_LAYERS": str(self.layers)}
        values |= {"DNIC_WIDTH": str(self.width), "DNIC_EPOCH_STEPS": str(self.epoch_steps)}
        if self.part == "tuning":
            values["DNIC_HOLD_OUT"] = "1"
        if self.samples is not None:
            values["DNIC_SAMPLES"] = str(self.samples)
        return values

    @property
    def kind(self) -> str:
        """What runs of about the same time per step have in common."""
        words = (self.model, str(self.layers), str(self.width), f"k{self.stages}", self.source)
        return " ".join((*words, self.way, self.link))

    def to_json(self) -> dict[str, Any]:
        """For the store."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Run:
        """The inverse of `to_json`."""
        return cls(**content)


def cuts(run: Run) -> list[str]:
    """The modules after which a run's model is cut, into stages of about equal numbers of layers.

    Raises:
        ValueError: the model has fewer layers than stages are asked for.
    """
    blocks = "layers" if run.model in ("connected", "convolutional") else "blocks"
    # The classifier is a layer by itself where layers are counted; behind blocks it is none.
    count = run.layers
    if run.stages > count:
        raise ValueError(f"{count} layers cannot make {run.stages} stages")
    return [f"{blocks}.{stage * count // run.stages - 1}" for stage in range(1, run.stages)]
