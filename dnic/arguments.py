"""What several commands take, and the consoles that they print to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

out = Console(highlight=False, soft_wrap=False)
err = Console(stderr=True, highlight=False)

ModelArg = Annotated[Path | None, typer.Argument(metavar="MODEL.py", help="the model file")]
BundleArg = Annotated[Path, typer.Argument(metavar="DIR", help="a bundle")]
SpecOption = Annotated[Path | None, typer.Option("--spec", metavar="F", help="a spec (YAML)")]
DevicesOption = Annotated[
    str | None, typer.Option("--devices", metavar="N", help="number of devices")
]
MetaOption = Annotated[
    bool, typer.Option("--meta", help="plan without weights, on the meta device")
]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON object, nothing else")]
ScheduleOption = Annotated[
    str | None,
    typer.Option(
        "--schedule",
        metavar="HOW",
        help="auto (what is fastest), decoupled, exact, 1f1b, gpipe, interleaved, zerobubble, "
        "ddp or backprop",
    ),
]
ProbeOption = Annotated[
    Path | None,
    typer.Option("--probe", metavar="FILE", help="how well gradients are predicted: probe.json"),
]
PrintAfter = Annotated[
    str | None, typer.Option("--print-after", metavar="PASS", help="print the value after a pass")
]
