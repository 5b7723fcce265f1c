"""The model files in `zoo/`, and the ways in which they are called.

Two sets. The named one is what dnic promises to split: each of its models stands for a difficulty.
The unknown one holds others, to see what a user meets. A file may offer a second
way to call its model, with labels: it then computes its own loss and returns it in its output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Set = Literal["named", "unknown"]

FOLDER = Path(__file__).parent.parent / "zoo"
SUFFIX = "_with_labels"

NAMED = (
    # transformers
    *("gpt2", "llama", "llama_masked", "qwen2", "mistral", "mixtral", "mamba", "bert", "albert"),
    *("deberta_v2", "t5", "whisper", "vit", "swin", "clip", "wav2vec2"),
    # pytorchcv
    *("resnet18", "resnet50", "densenet121", "mobilenetv2_w1", "mobilenetv3_large_w1"),
    *("efficientnet_b0", "inceptionv3", "unet_cityscapes", "hrnet_w18_small_v1", "vgg11"),
    *("squeezenet_v1_1", "nasnet_4a1056"),
    # others
    *("x_decoder", "nn_transformer", "two_branches", "embedding_twice", "tuple_output"),
    *("custom_function", "unet", "nested_lists", "frozen_backbone"),
)


@dataclass(frozen=True)
class Case:
    """One way to call the model of one file.

    Attributes:
        model: stem of the file.
        labels: whether it is called with labels and computes its own loss.
        description: what the file says of itself.
    """

    model: str
    labels: bool
    description: str

    @property
    def name(self) -> str:
        """`gpt2`, `gpt2+labels`."""
        return f"{self.model}+labels" if self.labels else self.model

    @property
    def set(self) -> Set:
        """The set that the model belongs to."""
        return "named" if self.model in NAMED else "unknown"

    @property
    def file(self) -> Path:
        """The model file."""
        return FOLDER / f"{self.model}.py"

    def model_spec(self) -> dict[str, Any]:
        """The section `model` of its spec."""
        if not self.labels:
            return {"file": str(self.file)}
        names = {role: role + SUFFIX for role in ("example_inputs", "train_data")}
        return {"file": str(self.file), "loss": None, **names}


def cases(only: Sequence[str] = (), chosen: str = "all") -> list[Case]:
    """The cases of the zoo, the named set first and in its order.

    Args:
        only: models (`gpt2`) or cases (`gpt2+labels`); all when empty.
        chosen: `named`, `unknown` or `all`.

    Raises:
        ValueError: there is no such model.
    """
    others = sorted({path.stem for path in FOLDER.glob("*.py")} - set(NAMED))
    found = [case for model in (*NAMED, *others) for case in _of(model)]
    unknown = set(only) - {name for case in found for name in (case.model, case.name)}
    if unknown:
        raise ValueError(f"there is no model {', '.join(sorted(unknown))} in zoo/")
    return [
        case
        for case in found
        if chosen in ("all", case.set) and (not only or {case.model, case.name} & set(only))
    ]


def _of(model: str) -> list[Case]:
    source = (FOLDER / f"{model}.py").read_text("utf-8")
    description = source.split('"""')[1].partition("\n")[0]
    ways = (False, True) if f"def example_inputs{SUFFIX}" in source else (False,)
    return [Case(model, labels, description) for labels in ways]
