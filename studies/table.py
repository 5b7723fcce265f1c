"""The results of the study of models, as a page for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

HEADINGS = {
    "named": "The named set",
    "unknown": "Other models",
}
COLUMNS = (
    "model",
    "parameters",
    "stages",
    "crossing",
    "shared",
    "largest",
    "outputs",
    "gradients",
    "buffers",
    "compared",
    "capture",
    "plan",
)
LEGEND = """\
**Stages**: as many as were asked for ({asked}), or as many as the model allows. **Crossing**: for
each of these, the most tensors that cross one interface, and of them the most through which a
gradient flows back. **Shared**: parameters that several stages use. **Largest**: the share of the
parameters that the largest stage holds. **Outputs**, **gradients**, **buffers**: the largest
absolute difference between the stages and the model, in train mode (the same seed, dropout on) and
in eval mode, at two batch sizes; **compared**: of how many tensors. **Capture**, **plan**: seconds
on one thread; the plan includes the emitted files. A number after a model points to a note.
"""
TRAINING = """\
Bundles of two stages, trained by real processes. **Exact**: every gradient is waited for; the
largest difference of a loss from plain backprop of the undivided model in one process. **Oracle**:
the decoupled machinery is handed the true gradient; the largest difference of a loss from the exact
run. **Interfaces**: how many of those that a gradient crosses have a head that predicts it.
**Decoupled loss**: of the first and the last step of a run as `dnic train` starts it.
"""

Model = Mapping[str, Any]


def page(study: Mapping[str, Any]) -> str:
    """The study as Markdown."""
    models: dict[str, Model] = study["models"]
    counts = sorted({result["asked"] for model in models.values() for result in model["results"]})
    lines = [
        "# Models",
        "",
        "Every model of [`zoo/`](../zoo) through the compiler. Written by `make models`; the data",
        "are in [`models.json`](models.json).",
        "",
        *_made_with(study),
        "",
        *_summary(models),
        "",
        LEGEND.format(asked=", ".join(map(str, counts))),
    ]
    for key, heading in HEADINGS.items():
        chosen = {name: model for name, model in models.items() if model["set"] == key}
        if chosen:
            lines += [f"## {heading}", "", *_table(chosen), ""]
    if study["training"]:
        lines += ["## Training", "", *_training(study["training"]), ""]
    return "\n".join(lines)


def _training(training: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield from TRAINING.splitlines()
    yield ""
    yield "| model | exact | oracle | steps | interfaces | decoupled loss | result |"
    yield "|" + "---|" * 7
    for name, found in training.items():
        losses = found["decoupled"]
        ok = found["proven"] and losses and not found["error"]
        cells = (
            name,
            *("" if found[rung] is None else f"{found[rung]:.1g}" for rung in ("exact", "oracle")),
            str(found["steps"]),
            f"{found['synthetic']} of {found['interfaces']}",
            f"{losses[0]:.3f} to {losses[-1]:.3f}" if losses else "",
            "proven" if ok else _line(found["error"]),
        )
        yield "| " + " | ".join(cells) + " |"


def _made_with(study: Mapping[str, Any]) -> Iterator[str]:
    packages = ("dnic", "python", "torch", "transformers", "x-transformers", "pytorchcv")
    yield from (f"    {command}" for command in study["commands"])
    yield ""
    yield (
        f"{study['date']}; " + ", ".join(f"{name} {study[name]}" for name in packages) + f"; "
        f"seed {study['seed']}, {study['threads']} thread."
    )


def _summary(models: Mapping[str, Model]) -> Iterator[str]:
    for key, heading in HEADINGS.items():
        chosen = [model["results"] for model in models.values() if model["set"] == key]
        if not chosen:
            continue
        whole = sum(all(_proven(result) for result in results) for results in chosen)
        outcomes = Counter(result["outcome"] for results in chosen for result in results)
        yield (
            f"- {heading}: **{whole} of {len(chosen)}** proven at every number of stages. "
            f"Of {outcomes.total()} compilations {outcomes['proven']} are proven, "
            f"{outcomes['refused']} refused with the line that stands against it, "
            f"{outcomes['failed']} failed."
        )


def _proven(result: Mapping[str, Any]) -> bool:
    return bool(result["outcome"] == "proven")


def _table(models: Mapping[str, Model]) -> Iterator[str]:
    notes: list[str] = []
    yield "| " + " | ".join(COLUMNS) + " |"
    yield "|" + "---|" * len(COLUMNS)
    for name, model in models.items():
        marks = []
        for note in _notes(model):
            if note not in notes:
                notes.append(note)
            marks.append(notes.index(note) + 1)
        mark = f" <sup>{', '.join(map(str, sorted(marks)))}</sup>" if marks else ""
        cells = [f"[{name}](../{model['file']}){mark}", *_cells(model["results"])]
        yield "| " + " | ".join(cells) + " |"
    if notes:
        yield ""
        yield from (f"{number}. {note}" for number, note in enumerate(notes, 1))


def _cells(results: list[Mapping[str, Any]]) -> Iterator[str]:
    made = [result for result in results if _proven(result)]
    yield f"{max((result['parameters'] for result in results), default=0):,}"
    yield ", ".join(str(result["stages"]) if _proven(result) else "-" for result in results)
    yield ", ".join(_crossing(result) if _proven(result) else "-" for result in results)
    yield ", ".join(str(result["shared"]) for result in made)
    yield ", ".join(f"{result['largest_share']:.0%}" for result in made)
    for kind in ("outputs", "gradients", "buffers"):
        found = [result["errors"].get(kind) for result in made]
        errors = [error for error in found if error is not None]
        yield f"{max(errors):.1g}" if errors else ""
    yield str(max((result["compared"] for result in made), default=0))
    for time in ("capture_s", "decide_s"):
        yield f"{max((result[time] for result in results), default=0.0):.1f}"


def _crossing(result: Mapping[str, Any]) -> str:
    crossings = result["crossings"]
    if not crossings:
        return "0"
    tensors = max(crossing["tensors"] for crossing in crossings)
    return f"{tensors} ({max(crossing['differentiable'] for crossing in crossings)})"


def _notes(model: Model) -> Iterator[str]:
    """What is worth a note: failures, fewer stages than asked for, modules kept whole."""
    seen: set[str] = set()
    for result in model["results"]:
        if result["error"]:
            note = f"{result['outcome'].capitalize()}: {_line(result['error'])}"
        elif result["fewer"]:
            note = f"No more stages: {_line(result['fewer'])}"
        else:
            continue
        if note not in seen:
            seen.add(note)
            yield note
    whole = {path: why for result in model["results"] for path, why in result["whole"].items()}
    if whole:
        path, why = next(iter(whole.items()))
        more = f" and {len(whole) - 1} more" if len(whole) > 1 else ""
        yield f"Kept whole: `{path}`{more}: {_line(why)}."


def _line(text: str) -> str:
    """A message on one line, without folders of this machine."""
    joined = "; ".join(line.strip() for line in text.strip().splitlines())
    return " ".join(word.rpartition("/")[2] if "/" in word else word for word in joined.split())
