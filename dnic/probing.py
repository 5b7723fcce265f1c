"""The command `dnic probe`: parses, calls, prints; computes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dnic.arguments import JsonOption, ModelArg, SpecOption, err, out


def probe_command(
    model: ModelArg = None,
    spec: SpecOption = None,
    steps: Annotated[
        int, typer.Option("--steps", min=2, metavar="N", help="of exact training")
    ] = 200,
    cuts: Annotated[
        str | None,
        typer.Option("--cuts", metavar="N|LIST", help="so many at most, or their names; 16"),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="every cut that there is")] = False,
    sources: Annotated[
        str | None,
        typer.Option("--sources", metavar="LIST", help="such as synthetic,stale; default: all"),
    ] = None,
    lateness: Annotated[
        str | None,
        typer.Option("--lateness", metavar="LIST", help="of true gradients, in updates; 1,4,16"),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option("--seconds", min=1, metavar="S", help="of training, at most")
    ] = None,
    memory: Annotated[
        float, typer.Option("--memory", min=0, metavar="GIB", help="for batches that wait")
    ] = 1.0,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="default: build/NAME.probe.json"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure where in a model gradients can be predicted, and how late they may come."""
    from dnic.asked import probe_files, requested
    from dnic.compiler.probe_file import write_probe
    from dnic.probe.asked import asked_of
    from dnic.probe.run import probe_model
    from dnic.report import probe_svg, probe_table

    asked = asked_of(
        steps=steps,
        cuts=cuts,
        every=every,
        sources=sources,
        lateness=lateness,
        seconds=seconds,
        memory_gib=memory,
    )
    spec_asked = requested(model, spec, None, None)
    data, picture = probe_files(spec_asked, output)
    with (err if not as_json else Console(quiet=True)).status("probing") as status:
        probe = probe_model(spec_asked, asked, lambda what: status.update(f"probing: {what}"))
    write_probe(probe, data)
    picture.write_text(probe_svg(probe), encoding="utf-8")
    if as_json:
        print(json.dumps(probe.model_dump(mode="json"), indent=2))
        return
    out.print(probe_table(probe))
    out.print(
        f"data:    {data}\npicture: {picture}\n"
        f"plan:    dnic plan {_again(model, spec)} --probe {data}",
        soft_wrap=True,
    )


def _again(model: Path | None, spec: Path | None) -> str:
    """Model and spec as they were typed."""
    parts = [str(model)] if model is not None else []
    return " ".join([*parts, f"--spec {spec}"] if spec is not None else parts)
